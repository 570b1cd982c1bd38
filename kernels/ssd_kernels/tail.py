"""What a sparse row left out: shaped by the receiver's own member, and bounded.

Knows rows as the codec gives them back and the rows of members on this side; nothing about bytes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ssd_kernels.backend import BackendName, resolve
from ssd_kernels.codec import Decoded, check_unigram
from ssd_kernels.combine import expert_term, log_softmax
from ssd_kernels.errors import CodecError, InvalidInput
from ssd_kernels.project import checked_rows
from ssd_kernels.threads import over_rows
from ssd_kernels.topk import TAIL_FLOOR
from ssd_kernels.types import F32, F64

LOCAL_POWER = 0.7
SHARED_POWERS = (0.25, 0.5)
"""Powers of the local member alone; of a shared unigram and the local member where there is one."""
_BINS = 512


def reshape_tail(
    seen: Decoded, local: F32, *, tail_logp: F32 | None = None, backend: BackendName | None = None
) -> Decoded:
    """The received rows with their tail mass spread after a member that the receiver runs itself; costs no byte.

    A tail token's weight is 1 / (1 / (a s) + 1 / e): proportional to s = local^LOCAL_POWER where that is small, and
    never over e, the smallest probability that was sent, since every token above it was. The factor a makes the tail's
    mass the residual mass. The head and that mass stay as they are, so `total_variation_bound` holds for any shape.

    Args:
        seen: top-k rows of `decode_full`.
        local: logits or log-probabilities of the local member for the same positions, [B, V]; -inf is allowed.
        tail_logp: the shared unigram [V]; None: the local member alone.
        backend: numpy, numba or None.

    Raises:
        CodecError: shapes that differ, or local rows with NaN.
    """
    if np.shape(local) != seen.logp.shape or np.isnan(local).any():
        raise CodecError(f"The local rows must hold numbers in the shape {seen.logp.shape}, not {np.shape(local)}.")
    vocab = seen.logp.shape[1]
    power = LOCAL_POWER if tail_logp is None else SHARED_POWERS[1]
    common = 0.0 if tail_logp is None else SHARED_POWERS[0] * check_unigram(tail_logp, vocab)
    logp = seen.logp.copy()
    if resolve(backend) == "numba":
        from ssd_kernels import _numba_fuse

        shared = np.zeros(vocab) if tail_logp is None else np.asarray(common)
        rows = np.ascontiguousarray(local, np.float32)
        over_rows(
            len(logp),
            lambda first, last: _numba_fuse.tail_rows(
                first, last, seen.logp, seen.head, seen.residual, rows, shared, power, logp
            ),
        )
        return replace(seen, logp=logp)
    for i in np.flatnonzero(~seen.head.all(axis=1)):
        tail = ~seen.head[i]
        shape = (common + power * np.asarray(local[i], dtype=np.float64))[tail]
        shape = np.maximum(shape - shape.max(), -60.0) if np.isfinite(shape.max()) else np.zeros(len(shape))
        edge = float(seen.logp[i, seen.head[i]].min())
        logp[i, tail] = _capped(shape, edge, np.log(float(seen.residual[i])))
    return replace(seen, logp=logp)


def _capped(shape: F64, edge: float, mass: float) -> F64:
    """Log-weights -log(exp(-a - shape) + exp(-edge)) whose mass is exp(mass), with `a` found on a histogram. [n]"""
    low = float(shape.min())
    width = max(float(-low), 1e-9) / _BINS
    which = np.minimum(((shape - low) / width).astype(np.int64), _BINS - 1)
    count = np.bincount(which, minlength=_BINS)
    middle = low + (np.arange(_BINS) + 0.5) * width
    under, over = mass - 60.0, mass + 120.0
    for _ in range(50):
        a = (under + over) / 2.0
        if (count * np.exp(-np.logaddexp(-a - middle, -edge))).sum() > np.exp(mass):
            over = a
        else:
            under = a
    logw = -np.logaddexp(-under - shape, -edge)
    return np.asarray(logw + mass - np.log(np.exp(logw - logw.max()).sum()) - logw.max())


def total_variation_bound(
    core: Decoded,
    private: F32 | None,
    public: F32 | None,
    *,
    lam: float,
    alpha: float,
    contrast_top_p: float = 0.95,
    backend: BackendName | None = None,
) -> F32:
    """How far the fused distribution can lie from the one with the core's exact row, in total variation.

    With g the expert's term of `combine.fuse`, S the tail and h the unnormalised fused mass of the head:
    U = r^(1-lam) (sum over S of exp(g))^lam bounds the fused mass of any tail of mass r (Hölder), so TV <= U / (h + U);
    the head's rounding adds what `_rounding` says.

    Args:
        core: the received rows.
        private: the expert with private context, log-probabilities or logits [B, V]; None: the core alone.
        public: the expert without private context [B, V], or None.
        lam: the expert's share in [0, 1].
        alpha: weight of the contrastive term, >= 0.
        contrast_top_p: as in `combine.fuse`.
        backend: numpy, numba or None.

    Returns:
        A bound in [0, 1] for each row, [B].

    Raises:
        InvalidInput: lam or alpha out of range.
    """
    if not (0.0 <= lam <= 1.0 and alpha >= 0.0):
        raise InvalidInput(f"lambda must lie from 0 to 1 and alpha from 0 upwards, not {lam} and {alpha}.")
    share = 0.0 if private is None else lam
    if share == 1.0:
        return np.zeros(len(core.logp), np.float32)
    if private is not None and share > 0.0 and resolve(backend) == "numba":
        return _bound_numba(core, private, public, share, alpha, contrast_top_p)
    logp = core.logp.astype(np.float64)
    own_head = np.where(core.head, np.exp(logp), 0.0)
    if private is None or share == 0.0:
        return np.asarray(
            (core.residual + _rounding(own_head, own_head, core.value_step, 1.0)).clip(0.0, 1.0), np.float32
        )
    own = log_softmax(private, backend=backend)
    other = None if public is None else log_softmax(public, backend=backend)
    g = expert_term(own, other, alpha=alpha, contrast_top_p=contrast_top_p, backend=backend)
    g -= g.max(axis=1, keepdims=True)
    in_tail = np.where(core.head, 0.0, np.exp(g)).sum(axis=1)
    r = np.where(core.head.all(axis=1), 0.0, np.maximum(core.residual, TAIL_FLOOR)).astype(np.float64)
    upper = r ** (1.0 - share) * in_tail**share
    fused_head = np.where(core.head, np.exp((1.0 - share) * logp + share * g), 0.0)
    head, rounding = fused_head.sum(axis=1), _rounding(own_head, fused_head, core.value_step, 1.0 - share)
    return np.asarray((upper / (head + upper) + rounding).clip(0.0, 1.0), np.float32)


def _bound_numba(
    core: Decoded, private: F32, public: F32 | None, lam: float, alpha: float, contrast_top_p: float
) -> F32:
    from ssd_kernels import _numba_fuse

    out = np.empty(len(core.logp), np.float32)
    mine = np.ascontiguousarray(private, np.float32)
    if public is not None and alpha > 0.0:
        checked_rows(mine)  # the contrast acts on their nucleus
    others = np.empty((0, mine.shape[1]), np.float32) if public is None else np.ascontiguousarray(public, np.float32)
    over_rows(
        len(out),
        lambda first, last: _numba_fuse.bound_rows(
            first, last, core.logp, core.head, core.residual, core.value_step, mine, others, lam, alpha,
            contrast_top_p, TAIL_FLOOR, out,
        ),
    )  # fmt: skip
    return out


def _rounding(core_head: F64, fused_head: F64, step: F32, weight: float) -> F64:
    """Total variation that rounding by at most half a step an entry can make of the fused masses. [B]

    Along the rounding, the derivative of a set's fused mass is the covariance of its indicator with the errors, at most
    their mean size. A fused error is at most weight step_i / 2, and what scaling the rounded head to its mass adds.
    """
    half = step.astype(np.float64) / 2.0
    total = np.maximum(core_head.sum(axis=1), 1e-300)
    scale = weight * np.log((core_head * np.exp(half)).sum(axis=1) / total).clip(0.0)
    most = weight * half
    below = np.maximum((fused_head * np.exp(-most)).sum(axis=1), 1e-300)
    return np.asarray((fused_head * most * np.exp(most)).sum(axis=1) / below + scale)
