"""Compiled kernel of the top-k codec: a row's head without a sort of the row, and its bits; the rules of `topk`.

How many of the most probable tokens can matter follows from how many lie above the floor. They are found among those
above a cut that a sample of the row suggests, by halving the range of values. Only where the head may end among them
are they sorted. A log-probability is compared by the bits of its distance from 0.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ssd_kernels._jit import inline, kernel
from ssd_kernels._numba_math import exp64
from ssd_kernels.topk import COARSE, FINE, FLOOR_SHARE, MAX_CODE, MIN_CODE, MIN_ENTRIES_PART, TAIL_FLOOR
from ssd_kernels.types import F32, F64, I32, I64

_BEND = 2.0 * math.log(FINE / COARSE)
_AT_BEND = 2.0 / COARSE
_SAMPLE = 8
_PART = 64
_COARSE = 17
_BUCKETS = 1 << (31 - _COARSE)
_MAGNITUDE = np.int32(0x7FFFFFFF)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_HEADER_BYTES = 11


@kernel
def encode_rows(first: int, last: int, logp: F32, most: I64, enough: F64, out: NDArray[np.uint8], sizes: I64) -> None:
    """Bytes of the rows first .. last - 1 into [B, room], and how many each has."""
    vocab = logp.shape[1]
    far, near, counts = np.empty(vocab, np.int32), np.empty(vocab, np.int32), np.empty(_BUCKETS, np.int32)
    ids, values = np.empty(vocab, np.int32), np.empty(vocab, np.float64)
    for b in range(first, last):
        k, residual = _head(logp[b], most[b], enough[b], far, near, counts, values, ids)
        sizes[b] = _write(logp[b], ids[:k], residual, values, out[b])


@kernel
def _head(row: F32, limit: int, enough: float, far: I32, near: I32, counts: I32, p: F64, ids: I32) -> tuple[int, float]:
    """Puts the ids of the head, ascending, to the front of `ids`; returns how many, and the mass left."""
    vocab = row.shape[0]
    bits = row.view(np.int32)
    for v in range(vocab):
        far[v] = bits[v] & _MAGNITUDE if bits[v] < 0 else np.int32(0)
    k = min(limit, vocab)
    if enough > 0.0:
        floor = np.float32(-math.log(FLOOR_SHARE / limit))
        above = _count(far, np.float32(floor).view(np.int32))
        k = min(k, max(above, limit // MIN_ENTRIES_PART, 1))
    k = _nearest(far, k, near, counts, ids)
    for n in range(k):
        p[n] = exp64(float(row[ids[n]]))
    total = 0.0
    for n in range(k):
        total += p[n]
    if enough > 0.0 and 1.0 - total <= enough:
        k, total = _ended(row, far, ids, k, enough)
    return k, 0.0 if k == vocab else min(max(1.0 - total, TAIL_FLOOR), 1.0 - 1e-6)


@kernel
def _ended(row: F32, far: I32, ids: I32, count: int, enough: float) -> tuple[int, float]:
    """Cuts the head where at most `enough` is left; returns how many stay in `ids`, and their mass."""
    keys = np.empty(count, np.uint64)
    for n in range(count):
        keys[n] = (np.uint64(far[ids[n]]) << _WORD) | np.uint64(ids[n])
    keys.sort()
    k, total = 0, 0.0
    while k == 0 or (1.0 - total > enough and k < count):
        ids[k] = np.int32(keys[k] & _LOW)
        total += exp64(float(row[ids[k]]))
        k += 1
    ids[:k].sort()
    return k, total


@kernel
def _count(far: I32, cut: np.int32) -> int:
    """How many values are at most `cut`."""
    found = np.int32(0)
    for v in range(far.shape[0]):
        found += np.int32(far[v] <= cut)
    return int(found)


@kernel
def _nearest(far: I32, k: int, near: I32, counts: I32, ids: I32) -> int:
    """Puts the ids of the k smallest values, ascending, to the front of `ids`, of equal ones the lower; returns k."""
    vocab = far.shape[0]
    cut = _cut(far, k, counts)
    count = 0
    for start in range(0, vocab, _PART):
        end = min(start + _PART, vocab)
        if _count(far[start:end], cut):
            for v in range(start, end):
                ids[count], near[count] = v, far[v]
                count += int(far[v] <= cut)
    low, high = -1, int(cut)  # at most `high` there are k or more, at most `low` fewer
    while high - low > 1:
        middle = (low + high) >> 1
        if _count(near[:count], np.int32(middle)) >= k:
            high = middle
        else:
            low = middle
    ties = k - _count(near[:count], np.int32(low))
    kept = 0
    for n in range(count):
        tied = near[n] == high
        if near[n] < high or (tied and ties > 0):
            ids[kept] = ids[n]
            kept += 1
            ties -= int(tied)
    return kept


@kernel
def _cut(far: I32, k: int, counts: I32) -> np.int32:
    """A value that k or more are at most, and usually few more."""
    vocab = far.shape[0]
    counts[:] = 0
    for v in range(0, vocab, _SAMPLE):
        counts[far[v] >> _COARSE] += 1
    bucket, seen = 0, int(counts[0])
    while seen * _SAMPLE < k and bucket < _BUCKETS - 1:
        bucket += 1
        seen += counts[bucket]
    cut = np.int32(((bucket + 1) << _COARSE) - 1)
    further = 1
    while _count(far, cut) < k:
        bucket, further = min(bucket + further, _BUCKETS - 1), 2 * further
        cut = np.int32(((bucket + 1) << _COARSE) - 1)
    return cut


@inline
def _put(
    words: NDArray[np.uint32], at: int, acc: np.uint64, held: int, value: int, width: int
) -> tuple[int, np.uint64, int]:
    """Append the lowest `width` bits of a number, at most 32 of them; `words` gets whole ones."""
    acc |= np.uint64(value) << np.uint64(held)
    held += width
    words[at] = np.uint32(acc & _LOW)  # no branch: whether the word is full cannot be foreseen
    full = held >> 5
    acc >>= np.uint64(full << 5)
    at, held = at + full, held & 31
    return at, acc, held


@inline
def _unary(words: NDArray[np.uint32], at: int, acc: np.uint64, held: int, zeros: int) -> tuple[int, np.uint64, int]:
    """Append so many zeros and a one."""
    while zeros >= 31:
        at, acc, held = _put(words, at, acc, held, 0, 31)
        zeros -= 31
    return _put(words, at, acc, held, 1 << zeros, zeros + 1)


@kernel
def _write(row: F32, ids: I32, residual: float, values: F64, out: NDArray[np.uint8]) -> int:
    """A row's bytes; returns how many."""
    vocab, k = row.shape[0], ids.shape[0]
    low = 0
    while vocab // k >> (low + 1):
        low += 1
    codes = np.empty(k, np.int32)
    smallest = _codes(row, ids, values, codes)
    rice, zeros = _rice(codes)
    _header(k, rice, smallest, residual, zeros, out)
    words = np.empty(out.shape[0] // 4 + 1, np.uint32)
    at, acc, held = 0, np.uint64(0), 0
    for n in range(k):
        at, acc, held = _put(words, at, acc, held, int(ids[n]) & ((1 << low) - 1), low)
    bit = 0
    for n in range(k):
        high = (int(ids[n]) >> low) + n
        at, acc, held = _unary(words, at, acc, held, high - bit)
        bit = high + 1
    for _ in range(k + ((vocab - 1) >> low) + 1 - bit):
        at, acc, held = _put(words, at, acc, held, 0, 1)
    for n in range(k):
        at, acc, held = _put(words, at, acc, held, int(codes[n]) & ((1 << rice) - 1), rice)
    for n in range(k):
        at, acc, held = _unary(words, at, acc, held, int(codes[n]) >> rice)
    words[at] = np.uint32(acc & _LOW)
    size = 4 * at + (held + 7) // 8
    out[_HEADER_BYTES : _HEADER_BYTES + size] = words.view(np.uint8)[:size]
    return _HEADER_BYTES + size


@kernel
def _codes(row: F32, ids: I32, values: F64, codes: I32) -> int:
    """Values as whole codes above the smallest, which is returned."""
    for n in range(codes.shape[0]):
        x = float(row[ids[n]])
        fine, coarse = 2.0 * exp64(0.5 * x) / FINE, _AT_BEND + (x - _BEND) / COARSE
        values[n] = np.rint(fine if x >= _BEND else coarse)
    smallest = float(MAX_CODE)
    for n in range(codes.shape[0]):
        values[n] = min(max(values[n], float(MIN_CODE)), float(MAX_CODE))
        smallest = min(smallest, values[n])
    for n in range(codes.shape[0]):
        codes[n] = np.int32(values[n] - smallest)
    return int(smallest)


@kernel
def _rice(codes: I32) -> tuple[int, int]:
    """The parameter that writes the values in the fewest bits, and the zeros it needs."""
    best, least, needed = 0, 1 << 62, 0
    for b in range(16):
        zeros = np.int64(0)
        for n in range(codes.shape[0]):
            zeros += codes[n] >> b
        size = codes.shape[0] * b + int(zeros)
        if zeros < 1 << 16 and size < least:
            best, least, needed = b, size, int(zeros)
    return best, needed


@kernel
def _header(k: int, rice: int, smallest: int, residual: float, zeros: int, out: NDArray[np.uint8]) -> None:
    mass = np.int64(np.float32(residual).view(np.uint32))
    for n in range(2):
        out[n] = (k >> (8 * n)) & 255
        out[3 + n] = ((smallest & 0xFFFF) >> (8 * n)) & 255
        out[9 + n] = (zeros >> (8 * n)) & 255
    out[2] = rice
    for n in range(4):
        out[5 + n] = (mass >> (8 * n)) & 255
