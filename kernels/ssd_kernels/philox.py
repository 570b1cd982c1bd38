"""Philox4x32-10, the counter-based generator behind every draw: integers equal to the bit on every backend.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Knows nothing about what
the counter words mean; `noise` gives them a meaning.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ssd_kernels.backend import BackendName, resolve
from ssd_kernels.errors import InvalidInput
from ssd_kernels.types import F64

U32: TypeAlias = NDArray[np.uint32]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def split_key(key: int) -> tuple[int, int]:
    """A 64-bit key as two 32-bit words, low word first.

    Raises:
        InvalidInput: the key is negative or wider than 64 bits.
    """
    if not 0 <= key < 1 << 64:
        raise InvalidInput(f"A noise or draw key must be a whole number from 0 to 2**64 - 1, not {key}.")
    return key & 0xFFFFFFFF, key >> 32


def philox4x32(counter: U32, key: tuple[int, int], *, backend: BackendName | None = None) -> U32:
    """Ten rounds of Philox4x32 on every counter.

    Args:
        counter: four 32-bit words each, [..., 4].
        key: two 32-bit words.
        backend: numpy, numba or None (see `backend.resolve`).

    Returns:
        Four random 32-bit words for each counter, [..., 4].

    Raises:
        InvalidInput: the last axis does not hold four words.
    """
    counter = np.ascontiguousarray(counter, dtype=np.uint32)
    if counter.ndim == 0 or counter.shape[-1] != 4:
        raise InvalidInput(f"Philox counters need four words on the last axis, not the shape {counter.shape}.")
    k0, k1 = int(key[0]) & 0xFFFFFFFF, int(key[1]) & 0xFFFFFFFF
    if resolve(backend) == "numba":
        from ssd_kernels import _numba_noise

        out = np.empty_like(counter)
        _numba_noise.philox_rows(counter.reshape(-1, 4), np.uint64(k0), np.uint64(k1), out.reshape(-1, 4))
        return out
    return _philox_numpy(counter, k0, k1)


def _philox_numpy(counter: U32, k0: int, k1: int) -> U32:
    """The reference: 64-bit products, [..., 4] to [..., 4]."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (p1 >> _SHIFT) ^ c1 ^ np.uint64(k0),
            p1 & _MASK,
            (p0 >> _SHIFT) ^ c3 ^ np.uint64(k1),
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniforms(words: U32) -> F64:
    """Random words as uniforms in (0, 1): (x + 0.5) 2^-32, exact in float64, never 0 or 1."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32
