"""Compiled kernels for noise and renoising; the words and formulas of `philox`, `noise` and `simplex`.

All counter arithmetic is in uint64 with masks, so that the same code also runs uncompiled.
"""

from __future__ import annotations

import math

import numpy as np

from ssd_kernels._jit import kernel
from ssd_kernels.philox import U32
from ssd_kernels.types import F32, I32

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = np.uint64(0x9E3779B9)
_W1 = np.uint64(0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_UNIT = 2.0**-32
_TURN = 2.0 * math.pi * 2.0**-32


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
def pair(x: np.uint64, y: np.uint64) -> tuple[float, float]:
    """Box-Muller on two words."""
    radius = math.sqrt(-2.0 * math.log((float(x) + 0.5) * _UNIT))
    angle = (float(y) + 0.5) * _TURN
    return radius * math.cos(angle), radius * math.sin(angle)


@kernel
def normal_rows(k0: np.uint64, k1: np.uint64, positions: U32, step: np.uint64, word: np.uint64, out: F32) -> None:
    """One row of normals for each position, [B, V]."""
    vocab = out.shape[1]
    z = np.empty(4, np.float64)
    for b in range(out.shape[0]):
        position = np.uint64(positions[b])
        for j in range((vocab + 3) // 4):
            x0, x1, x2, x3 = philox(np.uint64(j), position, step, word, k0, k1)
            z[0], z[1] = pair(x0, x1)
            z[2], z[3] = pair(x2, x3)
            for lane in range(min(4, vocab - 4 * j)):
                out[b, 4 * j + lane] = z[lane]


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
