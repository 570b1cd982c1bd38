"""Compiled kernels that walk rows of logits: softmax, log-softmax, entropy, nucleus.

The formulas of `combine`, `simplex` and `project`; sums are float64, the nucleus' weights whole numbers.
"""

from __future__ import annotations

import math

import numpy as np

from ssd_kernels._jit import kernel
from ssd_kernels.types import F32, I64, Bool

_SCALE = 2.0**45
_BUCKETS = 4096
_PER_NAT = 64.0


@kernel
def log_total(row: F32) -> tuple[float, float]:
    """Largest value of a row and ln sum exp(row - largest); (NaN, NaN) where the row says nothing."""
    peak = -math.inf
    for v in range(row.shape[0]):
        x = float(row[v])
        if not x <= math.inf or x == math.inf:
            return math.nan, math.nan
        peak = max(peak, x)
    if peak == -math.inf:
        return math.nan, math.nan
    total = 0.0
    for v in range(row.shape[0]):
        total += math.exp(float(row[v]) - peak)
    return peak, math.log(total)


@kernel
def log_softmax_rows(logits: F32, out: F32) -> None:
    """[B, V] to [B, V]."""
    for b in range(logits.shape[0]):
        peak, total = log_total(logits[b])
        for v in range(logits.shape[1]):
            out[b, v] = float(logits[b, v]) - peak - total


@kernel
def softmax_rows(logits: F32, out: F32) -> None:
    """[B, V] to [B, V]."""
    for b in range(logits.shape[0]):
        peak, total = log_total(logits[b])
        for v in range(logits.shape[1]):
            out[b, v] = math.exp(float(logits[b, v]) - peak - total)


@kernel
def entropy_rows(logp: F32, out: F32) -> None:
    """[B, V] to [B]."""
    for b in range(logp.shape[0]):
        total = 0.0
        for v in range(logp.shape[1]):
            x = float(logp[b, v])
            if x != -math.inf:
                total -= math.exp(x) * x
        out[b] = total


@kernel
def nucleus_rows(logp: F32, top_p: float, temperature: float, mask: Bool) -> None:
    """The nucleus of each row without a full sort, [B, V] to [B, V].

    Weights are summed in buckets of 1/64 nat below the peak (a monotone map, so buckets keep the order); only the
    bucket in which the sum reaches the limit is sorted.
    """
    vocab = logp.shape[1]
    weights = np.empty(vocab, np.int64)
    bucket = np.empty(vocab, np.int32)
    for b in range(logp.shape[0]):
        row = logp[b]
        peak = float(row.max())
        sums = np.zeros(_BUCKETS, np.int64)
        for v in range(vocab):
            d = float(row[v]) - peak
            weights[v] = np.int64(np.rint(math.exp(d / temperature) * _SCALE))
            bucket[v] = np.int32(min(-d * _PER_NAT, _BUCKETS - 1.0))
            sums[bucket[v]] += weights[v]
        limit = top_p * float(sums.sum())
        edge = 0
        before = np.int64(0)
        while edge < _BUCKETS - 1 and float(before + sums[edge]) < limit:
            before += sums[edge]
            edge += 1
        for v in range(vocab):
            mask[b, v] = bucket[v] < edge
        _take_edge(row, weights, np.flatnonzero(bucket == edge), before, limit, mask[b])


@kernel
def _take_edge(row: F32, weights: I64, ids: I64, before: np.int64, limit: float, mask: Bool) -> None:
    """Of the last bucket: its tokens in order, while the mass before them is below the limit."""
    order = np.argsort(-row[ids], kind="mergesort")
    for n in order:
        if not float(before) < limit:
            break
        mask[ids[n]] = True
        before += weights[ids[n]]
