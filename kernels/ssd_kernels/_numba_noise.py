"""Compiled kernels for noise and renoising; the words and formulas of `philox`, `noise` and `simplex`.

All counter arithmetic is in uint64 with masks, so that the same code also runs uncompiled.
"""

from __future__ import annotations

import math

import numpy as np

from ssd_kernels._jit import kernel
from ssd_kernels._numba_math import minus_log, turn
from ssd_kernels.philox import U32
from ssd_kernels.types import F32, I32

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_UNIT = 2.0**-32
_TWO = np.float32(2.0)
_PIECE = 512
"""Counters at a time."""


@kernel
def philox(
    c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, k0: np.uint64, k1: np.uint64
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    """Ten rounds on one counter."""
    for _ in range(10):
        p0 = c0 * _M0
        p1 = c2 * _M1
        c0, c1, c2, c3 = (p1 >> _SHIFT) ^ c1 ^ k0, p1 & _MASK, (p0 >> _SHIFT) ^ c3 ^ k1, p0 & _MASK
        k0 = (k0 + _W0) & _MASK
        k1 = (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@kernel
def philox_rows(counter: U32, k0: np.uint64, k1: np.uint64, out: U32) -> None:
    """[n, 4] counters to [n, 4] words."""
    for i in range(counter.shape[0]):
        out[i, 0], out[i, 1], out[i, 2], out[i, 3] = philox(
            np.uint64(counter[i, 0]),
            np.uint64(counter[i, 1]),
            np.uint64(counter[i, 2]),
            np.uint64(counter[i, 3]),
            k0,
            k1,
        )


@kernel
def _words(
    first: int, position: np.uint64, step: np.uint64, word: np.uint64, k0: np.uint64, k1: np.uint64, out: U32
) -> None:
    """The words of consecutive counters from `first` on, one output word a row. [4, n]"""
    for j in range(out.shape[1]):
        c0, c1, c2, c3 = philox(np.uint64(first + j), position, step, word, k0, k1)
        out[0, j], out[1, j], out[2, j], out[3, j] = np.uint32(c0), np.uint32(c1), np.uint32(c2), np.uint32(c3)


@kernel
def box_muller(x: U32, y: U32, z: F32) -> None:
    """Normals of pairs of words. [n], [n] to [2, n]"""
    for j in range(x.shape[0]):
        radius = np.sqrt(_TWO * minus_log(x[j]))
        cosine, sine = turn(y[j])
        z[0, j] = radius * cosine
        z[1, j] = radius * sine


@kernel
def normal_row(k0: np.uint64, k1: np.uint64, position: np.uint64, step: np.uint64, word: np.uint64, out: F32) -> None:
    """The normals of one position, [V], a piece after the other, each of a size that stays in the nearest cache."""
    vocab = out.shape[0]
    x = np.empty((4, _PIECE), np.uint32)
    z = np.empty((4, _PIECE), np.float32)
    for first in range(0, (vocab + 3) // 4, _PIECE):
        _words(first, position, step, word, k0, k1, x)
        box_muller(x[0], x[1], z[:2])
        box_muller(x[2], x[3], z[2:])
        start = 4 * first
        whole = min(_PIECE, (vocab - start) // 4)
        for j in range(whole):
            for lane in range(4):
                out[start + 4 * j + lane] = z[lane, j]
        for v in range(start + 4 * whole, min(vocab, start + 4 * _PIECE)):
            out[v] = z[v % 4, whole]


@kernel
def normal_rows(k0: np.uint64, k1: np.uint64, positions: U32, step: np.uint64, word: np.uint64, out: F32) -> None:
    """One row of normals for each position, [B, V]."""
    for b in range(out.shape[0]):
        normal_row(k0, k1, np.uint64(positions[b]), step, word, out[b])


@kernel
def gumbel_rows(k0: np.uint64, k1: np.uint64, positions: U32, step: np.uint64, word: np.uint64, out: F32) -> None:
    """One row of Gumbels for each position, [B, V]."""
    vocab = out.shape[1]
    x = np.empty(4, np.float64)
    for b in range(out.shape[0]):
        position = np.uint64(positions[b])
        for j in range((vocab + 3) // 4):
            x[0], x[1], x[2], x[3] = philox(np.uint64(j), position, step, word, k0, k1)
            for lane in range(min(4, vocab - 4 * j)):
                out[b, 4 * j + lane] = -math.log(-math.log((x[lane] + 0.5) * _UNIT))


@kernel
def renoise_rows(
    k0: np.uint64,
    k1: np.uint64,
    positions: U32,
    step: np.uint64,
    word: np.uint64,
    ids: I32,
    offsets: I32,
    alpha_bar: F32,
    k: float,
    out: F32,
) -> None:
    """x_t for each position, [B, V]."""
    normal_rows(k0, k1, positions, step, word, out)
    for b in range(out.shape[0]):
        signal = np.float32(math.sqrt(float(alpha_bar[b])) * k)
        scale = np.float32(math.sqrt(1.0 - float(alpha_bar[b])) * k)
        for v in range(out.shape[1]):
            out[b, v] = scale * out[b, v] - signal
        for n in range(offsets[b], offsets[b + 1]):
            out[b, ids[n]] += np.float32(2.0) * signal
