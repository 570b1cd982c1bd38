"""Shared noise: standard normals and Gumbels that any side rebuilds from a key and a counter.

Counter words: (vocabulary index // 4, position, step, purpose << 24 | block). The four output words x belong to the
vocabulary indices 4j, 4j+1, 4j+2, 4j+3; uniforms are (x + 0.5) 2^-32. Normals by Box-Muller in this lane order:

    z[4j]   = sqrt(-2 ln u0) cos(2 pi u1)        z[4j+2] = sqrt(-2 ln u2) cos(2 pi u3)
    z[4j+1] = sqrt(-2 ln u0) sin(2 pi u1)        z[4j+3] = sqrt(-2 ln u2) sin(2 pi u3)

Gumbels: g[4j+l] = -ln(-ln u_l). Integers are equal to the bit on every backend; see `normals` for the floats.
Knows nothing about schedules, tokens or who holds the key.
"""

from __future__ import annotations

import numpy as np

from ssd_kernels.backend import BackendName, resolve
from ssd_kernels.errors import InvalidInput
from ssd_kernels.philox import U32, philox4x32, split_key, uniforms
from ssd_kernels.types import F32, F64, I32, Purpose


def counter_word(purpose: Purpose, block: int) -> int:
    """The fourth counter word, purpose << 24 | block.

    Raises:
        InvalidInput: the block number does not fit in 24 bits.
    """
    if not 0 <= block < 1 << 24:
        raise InvalidInput(f"A block number must be from 0 to 2**24 - 1, not {block}.")
    return int(purpose) << 24 | block


def check_counter(positions: I32, step: int, vocab: int) -> U32:
    """The positions as counter words [B], after a check of all counters' ranges.

    Raises:
        InvalidInput: positions that are not a list of numbers >= 0, a step outside 32 bits, no vocabulary.
    """
    positions = np.asarray(positions)
    if positions.ndim != 1 or not np.issubdtype(positions.dtype, np.integer):
        raise InvalidInput("Noise needs a one-dimensional array of whole position numbers.")
    if len(positions) and (positions.min() < 0 or positions.max() >= 1 << 32):
        raise InvalidInput("A position number must be from 0 to 2**32 - 1.")
    if not 0 <= step < 1 << 32:
        raise InvalidInput(f"A step number must be from 0 to 2**32 - 1, not {step}.")
    if vocab < 1:
        raise InvalidInput(f"A vocabulary must hold at least one token, not {vocab}.")
    return np.ascontiguousarray(positions, dtype=np.uint32)


def words(
    noise_key: int, positions: I32, *, step: int, block: int, vocab: int, purpose: Purpose = Purpose.NOISE
) -> U32:
    """The raw 32-bit words behind one row of noise for each position, [B, 4 * ceil(V / 4)]."""
    rows = check_counter(positions, step, vocab)
    quads = (vocab + 3) // 4
    counter = np.empty((len(rows), quads, 4), np.uint32)
    counter[..., 0] = np.arange(quads, dtype=np.uint32)
    counter[..., 1] = rows[:, None]
    counter[..., 2] = step
    counter[..., 3] = counter_word(purpose, block)
    return philox4x32(counter, split_key(noise_key), backend="numpy").reshape(len(rows), 4 * quads)


def kernel_counter(
    noise_key: int, positions: I32, *, step: int, block: int, vocab: int, purpose: Purpose = Purpose.NOISE
) -> tuple[np.uint64, np.uint64, U32, np.uint64, np.uint64]:
    """The first arguments of a compiled kernel: both key words, positions [B], step and the fourth counter word.

    Raises:
        InvalidInput: a counter word out of range.
    """
    rows = check_counter(positions, step, vocab)
    k0, k1 = split_key(noise_key)
    return np.uint64(k0), np.uint64(k1), rows, np.uint64(step), np.uint64(counter_word(purpose, block))


def _normals_numpy(x: U32, vocab: int) -> F64:
    """Box-Muller in float64 over the lane pairs (0, 1) and (2, 3)."""
    u = uniforms(x).reshape(len(x), x.shape[1] // 2, 2)
    radius, angle = np.sqrt(-2.0 * np.log(u[..., 0])), 2.0 * np.pi * u[..., 1]
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return np.asarray(z.reshape(x.shape)[:, :vocab])


def _gumbels_numpy(x: U32, vocab: int) -> F64:
    return np.asarray(-np.log(-np.log(uniforms(x[:, :vocab]))))


def normals(
    noise_key: int,
    positions: I32,
    *,
    step: int,
    block: int,
    vocab: int,
    purpose: Purpose = Purpose.NOISE,
    backend: BackendName | None = None,
) -> F32:
    """Standard normals, one row for each position.

    Every backend stays within 4 float32 ulps of the float64 formula (0.5 measured for numpy and numba, which compute in
    float64 and round once).

    Args:
        noise_key: 64-bit key; its low word is the first key word.
        positions: position word of the counter, [B].
        step: pass number.
        block: block number, below 2^24.
        vocab: V; need not be a multiple of 4.
        purpose: what the stream is for.
        backend: numpy (float64 inside, rounded once) or numba.

    Returns:
        z [B, V].

    Raises:
        InvalidInput: a counter word out of range.
    """
    if resolve(backend) == "numba":
        from ssd_kernels import _numba_noise

        counter = kernel_counter(noise_key, positions, step=step, block=block, vocab=vocab, purpose=purpose)
        out = np.empty((len(positions), vocab), np.float32)
        _numba_noise.normal_rows(*counter, out)
        return out
    return normals_f64(noise_key, positions, step=step, block=block, vocab=vocab, purpose=purpose).astype(np.float32)


def normals_f64(
    noise_key: int, positions: I32, *, step: int, block: int, vocab: int, purpose: Purpose = Purpose.NOISE
) -> F64:
    """The float64 reference of `normals`, [B, V]."""
    x = words(noise_key, positions, step=step, block=block, vocab=vocab, purpose=purpose)
    return _normals_numpy(x, vocab)


def gumbels(
    noise_key: int,
    positions: I32,
    *,
    step: int,
    block: int,
    vocab: int,
    purpose: Purpose = Purpose.NOISE,
    backend: BackendName | None = None,
) -> F32:
    """Standard Gumbel draws, one row for each position; arguments and errors as `normals`. [B, V]"""
    if resolve(backend) == "numba":
        from ssd_kernels import _numba_noise

        counter = kernel_counter(noise_key, positions, step=step, block=block, vocab=vocab, purpose=purpose)
        out = np.empty((len(positions), vocab), np.float32)
        _numba_noise.gumbel_rows(*counter, out)
        return out
    return gumbels_f64(noise_key, positions, step=step, block=block, vocab=vocab, purpose=purpose).astype(np.float32)


def gumbels_f64(
    noise_key: int, positions: I32, *, step: int, block: int, vocab: int, purpose: Purpose = Purpose.NOISE
) -> F64:
    """The float64 reference of `gumbels`, [B, V]."""
    x = words(noise_key, positions, step=step, block=block, vocab=vocab, purpose=purpose)
    return _gumbels_numpy(x, vocab)


def gumbels_at(noise_key: int, ids: I32, position: int, *, step: int, block: int, purpose: Purpose) -> F64:
    """The Gumbels of a few token ids at one position, equal to those of `gumbels_f64`, without the whole row. [n]"""
    counter = np.empty((len(ids), 4), np.uint32)
    counter[:, 0] = np.asarray(ids) // 4
    counter[:, 1:] = [position, step, counter_word(purpose, block)]
    x = philox4x32(counter, split_key(noise_key), backend="numpy")
    u = uniforms(x[np.arange(len(ids)), np.asarray(ids) % 4])
    return np.asarray(-np.log(-np.log(u)))
