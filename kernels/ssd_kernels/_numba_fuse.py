"""Compiled kernels of the ensemble: the members' rows added, a sparse row's tail shaped, and how far it can be off.

The formulas of `combine` and `tail`, a row at a time; arithmetic is float64.
"""

from __future__ import annotations

import math

import numpy as np

from ssd_kernels._jit import kernel
from ssd_kernels._numba_math import exp64
from ssd_kernels._numba_nucleus import nucleus
from ssd_kernels._numba_rows import LANES, largest, log_total
from ssd_kernels.types import F32, F64, I32, I64, Bool

BINS = 512
_DEEPEST = -60.0
_ROUNDS = 50


@kernel
def fuse_rows(
    first: int,
    last: int,
    core: F32,
    private: F32,
    public: F32,
    lam: float,
    alpha: float,
    top_p: float,
    normalise: bool,
    out: F32,
) -> None:
    """(1 - lam) core + lam (the expert's term) of the rows first .. last - 1, normalised.

    A member that has no say comes as an array of no rows: core for lam = 1, public for alpha = 0.
    """
    vocab = private.shape[1]
    weights, ids, term = np.empty(vocab, np.int64), np.empty(vocab, np.int32), np.empty(vocab, np.float64)
    for b in range(first, last):
        expert_term(private[b], _row(public, b), alpha, top_p, normalise, weights, ids, term)
        for v in range(vocab):
            term[v] *= lam
        if core.shape[0] > 0:
            shift = log_total(core[b]) if normalise else 0.0
            row = core[b]
            for v in range(vocab):
                term[v] += (1.0 - lam) * (float(row[v]) - shift)
        _normalised(term, out[b])


@kernel
def _row(rows: F32, b: int) -> F32:
    return rows[b] if rows.shape[0] > 0 else np.empty(0, np.float32)


@kernel
def _normalised(x: F64, out: F32) -> None:
    peak = -math.inf
    for start in range(0, x.shape[0], LANES):
        peak = max(peak, x[start : start + LANES].max())
    lanes = np.zeros(LANES, np.float64)
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        for lane in range(part.shape[0]):
            lanes[lane] += exp64(part[lane] - peak)
    total = peak + math.log(lanes.sum())
    for v in range(x.shape[0]):
        out[v] = x[v] - total


@kernel
def expert_term(
    private: F32, public: F32, alpha: float, top_p: float, normalise: bool, weights: I64, ids: I32, term: F64
) -> None:
    """private + alpha (private - public) on the private row's nucleus, private elsewhere. [V]"""
    total = log_total(private)
    shift = total if normalise else 0.0
    for v in range(private.shape[0]):
        term[v] = float(private[v]) - shift
    if public.shape[0] == 0 or alpha == 0.0 or not math.isfinite(total):  # a row that says nothing has no nucleus
        return
    other = log_total(public) if normalise else 0.0
    for n in range(nucleus(private, float(largest(private)), top_p, 1.0, weights, ids)):
        ratio = term[ids[n]] - (float(public[ids[n]]) - other)
        if math.isfinite(ratio):
            term[ids[n]] += alpha * ratio


@kernel
def tail_rows(
    first: int,
    last: int,
    logp: F32,
    head: Bool,
    residual: F32,
    local: F32,
    common: F64,
    power: float,
    out: F32,
) -> None:
    """The tails of the rows first .. last - 1, see `tail.reshape_tail`; `common` [V] is what all rows share."""
    vocab = logp.shape[1]
    shape, rates = np.empty(vocab, np.float64), np.empty(vocab, np.float64)
    tail = np.empty(vocab, np.int32)
    for b in range(first, last):
        count, edge = 0, math.inf
        for v in range(vocab):
            if head[b, v]:
                edge = min(edge, float(logp[b, v]))
            else:
                tail[count] = v
                count += 1
        if count:
            for n in range(count):
                shape[n] = common[tail[n]] + power * float(local[b, tail[n]])
            _shaped(shape[:count], rates[:count], edge, float(residual[b]))
            for n in range(count):
                out[b, tail[n]] = shape[n]


@kernel
def _shaped(shape: F64, rates: F64, edge: float, mass: float) -> None:
    """Log-weights -ln(e^(-a - shape) + e^-edge) in place of the shapes, scaled so that they sum to the mass."""
    top = -math.inf
    for n in range(shape.shape[0]):
        top = max(top, shape[n])
    low = 0.0
    for n in range(shape.shape[0]):
        shape[n] = max(shape[n] - top, _DEEPEST) if math.isfinite(top) else 0.0
        low = min(low, shape[n])
    a = _scale(shape, low, edge, math.log(mass))
    cap, total = math.exp(-edge), 0.0
    for n in range(shape.shape[0]):
        rates[n] = exp64(-shape[n] - a) + cap
    for n in range(shape.shape[0]):
        total += 1.0 / rates[n]
    shift = math.log(mass) - math.log(total)
    for n in range(shape.shape[0]):
        shape[n] = shift - math.log(rates[n])


@kernel
def _scale(shape: F64, low: float, edge: float, mass: float) -> float:
    """The factor e^a at which the weights of a histogram of the shapes sum to e^mass; returns a."""
    width = max(-low, 1e-9) / BINS
    count, inverse = np.zeros(BINS, np.float64), np.empty(BINS, np.float64)
    for n in range(shape.shape[0]):
        count[min(int((shape[n] - low) / width), BINS - 1)] += 1.0
    for i in range(BINS):
        inverse[i] = math.exp(-(low + (i + 0.5) * width))
    under, over, cap = mass - 60.0, mass + 120.0, math.exp(-edge)
    for _ in range(_ROUNDS):
        a, total = (under + over) / 2.0, 0.0
        rate = math.exp(-a)
        for i in range(BINS):
            total += count[i] / (inverse[i] * rate + cap)
        if total > math.exp(mass):
            over = a
        else:
            under = a
    return under


@kernel
def bound_rows(
    first: int,
    last: int,
    logp: F32,
    head: Bool,
    residual: F32,
    value_step: F32,
    private: F32,
    public: F32,
    lam: float,
    alpha: float,
    top_p: float,
    floor: float,
    out: F32,
) -> None:
    """`tail.total_variation_bound` of the rows first .. last - 1, for 0 < lam < 1."""
    vocab = logp.shape[1]
    weights, ids, term = np.empty(vocab, np.int64), np.empty(vocab, np.int32), np.empty(vocab, np.float64)
    for b in range(first, last):
        expert_term(private[b], _row(public, b), alpha, top_p, True, weights, ids, term)
        _exponentials(term)
        out[b] = _bound(logp[b], head[b], residual[b], value_step[b], term, lam, floor)


@kernel
def _exponentials(x: F64) -> None:
    """x becomes e^(x - its largest)."""
    top = -math.inf
    for start in range(0, x.shape[0], LANES):
        top = max(top, x[start : start + LANES].max())
    for v in range(x.shape[0]):
        x[v] = exp64(x[v] - top)


@kernel
def _mass(weights: F64, head: Bool) -> float:
    """Sum of the weights of the tokens that are not of the head."""
    lanes = np.zeros(LANES, np.float64)
    for start in range(0, weights.shape[0], LANES):
        part, inside = weights[start : start + LANES], head[start : start + LANES]
        for lane in range(part.shape[0]):
            lanes[lane] += 0.0 if inside[lane] else part[lane]
    return float(lanes.sum())


@kernel
def _bound(
    logp: F32, head: Bool, residual: np.float32, value_step: F32, weights: F64, lam: float, floor: float
) -> float:
    share, entries = 1.0 - lam, 0
    own, wider, fused, narrower, moved = 0.0, 0.0, 0.0, 0.0, 0.0
    for v in range(logp.shape[0]):
        if head[v]:
            entries += 1
            half = float(value_step[v]) / 2.0
            p = math.exp(float(logp[v]))
            q = p**share * weights[v] ** lam
            own += p
            wider += p * math.exp(half)
            fused += q
            narrower += q * math.exp(-share * half)
            moved += q * share * half * math.exp(share * half)
    r = 0.0 if entries == logp.shape[0] else max(float(residual), floor)
    upper = r**share * _mass(weights, head) ** lam
    scale = share * max(math.log(wider / max(own, 1e-300)), 0.0)
    bound = upper / (fused + upper) + moved / max(narrower, 1e-300) + scale
    return float(min(max(bound, 0.0), 1.0))
