"""Compiled kernels from a state, or logits, to softmax weights in whole numbers; the rules of `tables`.

A row at a time, in arrays of one row, so that what a pass leaves is still in the cache for the next.
"""

from __future__ import annotations

import math

import numpy as np

from ssd_kernels._jit import kernel
from ssd_kernels._numba_math import exp32
from ssd_kernels._numba_noise import normal_row
from ssd_kernels._numba_rows import LANES, largest
from ssd_kernels.philox import U32
from ssd_kernels.tables import HEAVY, LEVELS, U8
from ssd_kernels.types import F32, F64, I32

_ZERO, _HALF = np.float32(0.0), np.float32(0.5)
_HIGH, _LOW = np.int32(8), np.int32(255)


@kernel
def state_rows(
    first: int,
    last: int,
    k0: np.uint64,
    k1: np.uint64,
    positions: U32,
    step: np.uint64,
    word: np.uint64,
    ids: I32,
    offsets: I32,
    alpha_bar: F32,
    k: float,
    whole: U8,
    heavy: I32,
    weights: F32,
    sums: F64,
) -> None:
    """Weights of softmax(x_t) of the positions first .. last - 1; outputs as `weigh`, one row a position."""
    x = np.empty(whole.shape[2], np.float32)
    for b in range(first, last):
        normal_row(k0, k1, np.uint64(positions[b]), step, word, x)
        scale = np.float32(math.sqrt(1.0 - float(alpha_bar[b])) * k)
        for v in range(x.shape[0]):
            x[v] = x[v] * scale
        signal = np.float32(2.0 * math.sqrt(float(alpha_bar[b])) * k)
        for n in range(offsets[b], offsets[b + 1]):
            x[ids[n]] += signal
        weigh(x, whole[0, b], whole[1, b], heavy[b], weights[b], sums[b])


@kernel
def logit_rows(first: int, last: int, logits: F32, whole: U8, heavy: I32, weights: F32, sums: F64) -> None:
    """Weights of softmax(logits) of the rows first .. last - 1; outputs as `weigh`."""
    x = np.empty(logits.shape[1], np.float32)
    for b in range(first, last):
        for v in range(x.shape[0]):
            x[v] = logits[b, v]
        weigh(x, whole[0, b], whole[1, b], heavy[b], weights[b], sums[b])


@kernel
def weigh(x: F32, high: U8, low: U8, heavy: I32, weights: F32, sums: F64) -> None:
    """Softmax weights of one row, whose largest is 1 before they are scaled. `x` is overwritten.

    Outputs: high and low bytes of the light tokens [V]; ids and weights of the heavy ones [HEAVY]; and
    [total, weight of one whole number, count of heavy ones]. All NaN for a row with NaN or nothing finite.
    """
    total = _exponentials(x, largest(x))
    if total != total:
        high[:], low[:] = 0, 0
        sums[:] = total
        return
    edge = np.float32(total / HEAVY)
    scale = np.float32(LEVELS / (total / HEAVY))
    count = 0
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        if _above(part, edge):
            for v in range(part.shape[0]):
                if part[v] > edge:
                    heavy[count] = start + v
                    weights[count] = part[v]
                    count += 1
                    part[v] = _ZERO
    for v in range(x.shape[0]):
        q = np.int32(x[v] * scale + _HALF)
        high[v] = np.uint8(q >> _HIGH)
        low[v] = np.uint8(q & _LOW)
    sums[0], sums[1], sums[2] = total, 1.0 / float(scale), float(count)


@kernel
def _above(x: F32, edge: np.float32) -> bool:
    """Whether any value lies above the edge."""
    found = np.int32(0)
    for v in range(x.shape[0]):
        found = np.int32(found + np.int32(x[v] > edge))
    return bool(found > np.int32(0))


@kernel
def _exponentials(x: F32, top: np.float32) -> float:
    """x becomes e^(x - top); returns the sum, of lanes that are added up in float32 and then to one in float64."""
    for v in range(x.shape[0]):
        x[v] = exp32(x[v] - top)
    lanes = np.zeros(LANES, np.float32)
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        for lane in range(part.shape[0]):
            lanes[lane] += part[lane]
    total = 0.0
    for lane in range(LANES):
        total += float(lanes[lane])
    return total
