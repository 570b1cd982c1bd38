"""Compiled kernels that walk rows of logits: log-softmax, softmax, entropy, and the sums that others are made of.

The formulas of `combine` and `simplex`. Sums are float64: each lane's own over the row, then over the lanes, so that
their order is the same on every machine.
"""

from __future__ import annotations

import math

import numpy as np

from ssd_kernels._jit import kernel
from ssd_kernels._numba_math import exp64
from ssd_kernels.types import F32

LANES = 512
"""Also how much of a row is taken at once: a slice, since then no index can be negative and its loop is vectorised."""
_LOWEST = np.float32(-math.inf)


@kernel
def largest(row: F32) -> np.float32:
    """Largest value that is not NaN; -inf where there is none."""
    lanes = np.full(LANES, _LOWEST)
    for start in range(0, row.shape[0], LANES):
        part = row[start : start + LANES]
        for lane in range(part.shape[0]):
            lanes[lane] = part[lane] if part[lane] > lanes[lane] else lanes[lane]
    top = _LOWEST
    for lane in range(LANES):
        top = lanes[lane] if lanes[lane] > top else top
    return top


@kernel
def log_total(row: F32) -> float:
    """ln sum exp(row); NaN where the row holds NaN, +inf or nothing finite."""
    peak = float(largest(row))
    lanes = np.zeros(LANES, np.float64)
    for start in range(0, row.shape[0], LANES):
        part = row[start : start + LANES]
        for lane in range(part.shape[0]):
            lanes[lane] += exp64(float(part[lane]) - peak)
    return peak + math.log(lanes.sum())


@kernel
def log_softmax_rows(first: int, last: int, logits: F32, out: F32) -> None:
    """The rows first .. last - 1. [B, V] to [B, V]"""
    for b in range(first, last):
        total = log_total(logits[b])
        for v in range(logits.shape[1]):
            out[b, v] = float(logits[b, v]) - total


@kernel
def softmax_rows(first: int, last: int, logits: F32, out: F32) -> None:
    """The rows first .. last - 1. [B, V] to [B, V]"""
    for b in range(first, last):
        total = log_total(logits[b])
        for v in range(logits.shape[1]):
            x = float(logits[b, v]) - total
            out[b, v] = exp64(x) if x != -math.inf else 0.0


@kernel
def entropy_rows(first: int, last: int, logp: F32, out: F32) -> None:
    """The rows first .. last - 1. [B, V] to [B]"""
    lanes = np.empty(LANES, np.float64)
    for b in range(first, last):
        lanes[:] = 0.0
        for start in range(0, logp.shape[1], LANES):
            part = logp[b, start : start + LANES]
            for lane in range(part.shape[0]):
                x = float(part[lane])
                lanes[lane] += exp64(x) * (x if x != -math.inf else 0.0)
        out[b] = -lanes.sum()
