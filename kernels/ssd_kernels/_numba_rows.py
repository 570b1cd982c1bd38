"""Compiled kernels that walk rows of logits: softmax, log-softmax, entropy.

The formulas of `combine` and `simplex`; sums are float64.
"""

from __future__ import annotations

import math

from ssd_kernels._jit import kernel
from ssd_kernels.types import F32


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
