"""Rows of the top-k codec: which tokens are worth sending, and their bits.

A row is self-contained and byte-aligned, little-endian, bits from the least significant upwards:

    u16 k | u8 Rice parameter b | i16 smallest value code c | f32 residual mass r | u16 zeros z
    k low id bits of l each | high id bits in unary | k low value bits of b each | high value bits in unary

The head is k of the most probable tokens, in id order. Ids are Elias-Fano coded: l = floor(log2(V / k)) low bits as
they are, and bit (id >> l) + i set for entry i among k + ((V - 1) >> l) + 1. A value u stands for the code c + u, Rice
coded: b low bits, and u >> b zeros before a one (z zeros in all). The residual mass r belongs to all other tokens; the
head is scaled to the mass 1 - r.

Codes grow with the log-probability l along a curve whose slope is sqrt(p) / FINE, but at least 1 / COARSE. At a given
number of bits, steps in proportion to p^-1/2 leave the least divergence (high-resolution theory: an entry costs
-log2(step) bits and errs by p step^2 / 24 nats); the bound keeps a token that this row finds unlikely where it is,
since the other member may be sure of it.

A row's head ends at k entries, or once at most the given residual is left, or, after k / MIN_ENTRIES_PART entries,
where the next token's probability is below FLOOR_SHARE / k. That last rule spends the bytes on the rows that gain most;
at equal bytes it leaves less divergence than a limit on the residual mass. The least number of entries is for confident
rows, again because of the other member. With a residual of 0 exactly k entries are kept.

Knows one row of log-probabilities; nothing about what a tail looks like.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ssd_kernels.errors import CodecError
from ssd_kernels.types import F32, F64, I64

FLOOR_SHARE = 0.02
MIN_ENTRIES_PART = 16
TAIL_FLOOR = 1e-7
"""Least mass of the tail: what was not sent is unlikely, never impossible."""
FINE, COARSE = 0.0025, 0.5
"""Step of a value in nats: FINE for a probability of 1, FINE / sqrt(p) below, never over COARSE."""

_HEADER = struct.Struct("<HBhfH")
_BEND = 2.0 * np.log(FINE / COARSE)  # the log-probability below which all steps are COARSE
_AT_BEND = 2.0 / COARSE
MAX_CODE = round(2.0 / FINE)  # of a probability of 1
MIN_CODE = -30_000
_MAX_RICE = 15
_U8: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A row as it was received.

    Attributes:
        ids: tokens of the head, ascending. [k]
        logp: their log-probabilities, not yet scaled to 1 - residual. [k]
        step: width of each one's quantisation step in nats. [k]
        residual: mass of all other tokens.
        end: byte after the row.
    """

    ids: I64
    logp: F64
    step: F64
    residual: float
    end: int


def codes(logp: F64) -> I64:
    """Log-probabilities on the curve, rounded to whole codes."""
    above = 2.0 * np.exp(0.5 * np.maximum(logp, _BEND)) / FINE
    below = _AT_BEND + (logp - _BEND) / COARSE
    return np.asarray(np.rint(np.where(logp >= _BEND, above, below)).clip(MIN_CODE, MAX_CODE), dtype=np.int64)


def values(code: I64) -> tuple[F64, F64]:
    """Log-probabilities that codes stand for, and the width of their steps in nats."""
    high = np.maximum(code, _AT_BEND)
    logp = np.where(code >= _AT_BEND, 2.0 * np.log(high * FINE / 2.0), _BEND + (code - _AT_BEND) * COARSE)
    return logp, np.minimum(COARSE, 2.0 / (high - 0.5))  # a step is widest at its lower edge


def head(logp: F32, most: int, enough: float) -> tuple[I64, float]:
    """Ids of the head (ascending) and the mass left, for one row of log-probabilities."""
    limit, most = most, min(most, len(logp))
    ids = np.arange(len(logp))
    if most < len(logp):  # ties at the edge go to the lower id
        edge = np.partition(logp, len(logp) - most)[len(logp) - most]
        above, level = np.flatnonzero(logp > edge), np.flatnonzero(logp == edge)
        ids = np.concatenate([above, level[: most - len(above)]])
    ids = ids[np.lexsort((ids, -logp[ids]))]
    p = np.exp(logp[ids].astype(np.float64))
    left = 1.0 - np.cumsum(p)
    k = most
    if enough > 0.0:
        faint = np.append(p[1:], 0.0) < FLOOR_SHARE / limit
        faint[: max(limit // MIN_ENTRIES_PART - 1, 0)] = False
        ends = np.flatnonzero((left <= enough) | faint)
        k = int(ends[0]) + 1 if len(ends) else most
    tail = 0.0 if k == len(logp) else min(max(float(left[k - 1]), TAIL_FLOOR), 1.0 - 1e-6)
    return np.sort(ids[:k]).astype(np.int64), tail


def _bits(numbers: I64, width: int) -> _U8:
    """Numbers as `width` bits each, least significant first, flat."""
    return ((numbers[:, None] >> np.arange(width)) & 1).astype(np.uint8).ravel()


def _numbers(bits: _U8, width: int, count: int) -> I64:
    """The inverse of `_bits`. [count]"""
    return np.asarray(bits.reshape(count, width).astype(np.int64) @ (1 << np.arange(width, dtype=np.int64)))


def _low_bits(vocab: int, k: int) -> int:
    return max((vocab // k).bit_length() - 1, 0)


def _rice(u: I64) -> tuple[int, int]:
    """The parameter that writes the values in the fewest bits, and the zeros it needs."""
    zeros = [int((u >> b).sum()) for b in range(_MAX_RICE + 1)]
    sizes = [len(u) * b + z if z < 1 << 16 else 1 << 62 for b, z in enumerate(zeros)]
    best = int(np.argmin(sizes))
    return best, zeros[best]


def _unary(gaps: I64) -> _U8:
    """Each gap as that many zeros and a one."""
    bits = np.zeros(int(gaps.sum()) + len(gaps), np.uint8)
    bits[np.cumsum(gaps) + np.arange(len(gaps))] = 1
    return bits


def encode_row(logp: F32, most: int, enough: float) -> bytes:
    """A row's bytes.

    Args:
        logp: log-probabilities [V].
        most: most entries.
        enough: the residual mass at which the head may end; 0 keeps exactly `most` entries.
    """
    vocab = len(logp)
    ids, residual = head(logp, most, enough)
    k, low = len(ids), _low_bits(vocab, len(ids))
    code = codes(logp[ids].astype(np.float64))
    smallest = int(code.min())
    u = code - smallest
    rice, zeros = _rice(u)
    high = np.zeros(k + ((vocab - 1) >> low) + 1, np.uint8)
    high[(ids >> low) + np.arange(k)] = 1
    payload = [_bits(ids & ((1 << low) - 1), low), high, _bits(u & ((1 << rice) - 1), rice), _unary(u >> rice)]
    header = _HEADER.pack(k, rice, smallest, residual, zeros)
    return header + np.packbits(np.concatenate(payload), bitorder="little").tobytes()


def room(vocab: int, most: int) -> int:
    """Bytes that a row takes at most."""
    k = min(vocab, most)
    return _HEADER.size + (k * (_low_bits(vocab, 1) + 3 + _MAX_RICE + 1) + (1 << 16)) // 8 + 2


def decode_row(data: bytes, at: int, row: int, vocab: int, most: int) -> Row:
    """The row that starts at byte `at`.

    Args:
        data: all rows.
        at: where it starts.
        row: its number, for messages.
        vocab: V.
        most: most entries that were agreed.

    Raises:
        CodecError: bytes that `encode_row` cannot have written.
    """
    if len(data) < at + _HEADER.size:
        raise CodecError(f"The encoded logits end before row {row}.")
    k, rice, smallest, residual, zeros = _HEADER.unpack_from(data, at)
    at += _HEADER.size
    if not 1 <= k <= min(vocab, most):
        raise CodecError(f"Row {row} of the encoded logits has {k} entries; from 1 to {min(vocab, most)} are allowed.")
    if not (residual == 0.0 if k == vocab else 0.0 < residual < 1.0):
        raise CodecError(f"Row {row} of the encoded logits has a residual mass that its {k} entries do not allow.")
    low = _low_bits(vocab, k)
    ends = np.cumsum([k * low, k + ((vocab - 1) >> low) + 1, k * rice, k + zeros])
    size = (int(ends[-1]) + 7) // 8
    if rice > _MAX_RICE or len(data) < at + size:
        raise CodecError(f"The encoded logits end within row {row}.")
    bits = np.unpackbits(np.frombuffer(data, np.uint8, size, at), bitorder="little")
    low_ids, high_ids, low_values, high_values, padding = np.split(bits, ends)
    if high_ids.sum() != k or high_values.sum() != k or not high_values[-1] or padding.any():
        raise CodecError(f"Row {row} of the encoded logits does not hold the {k} entries that it claims.")
    ids = (np.flatnonzero(high_ids) - np.arange(k)) << low | _numbers(low_ids, low, k)
    if ids[-1] >= vocab or (np.diff(ids) <= 0).any():
        raise CodecError(f"The ids of row {row} of the encoded logits are out of range or not ascending.")
    gaps = np.diff(np.flatnonzero(high_values) - np.arange(k), prepend=0)
    code = smallest + (gaps << rice | _numbers(low_values, rice, k))
    if smallest < MIN_CODE or code.max() > MAX_CODE:
        raise CodecError(f"Row {row} of the encoded logits holds values that are no log-probabilities.")
    logp, step = values(code)
    return Row(ids, logp, step, residual, at + size)
