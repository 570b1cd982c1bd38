"""Token ids, flags and counts as the wire packs them: little-endian u16 (u32 where V > 65,536), bits LSB first.

Knows nothing about messages or sessions. Whatever is malformed raises `PackingError` with one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_U16_VOCAB = 65_536


class PackingError(ValueError):
    """Bytes that do not hold what they should."""


def id_bytes(vocab: int) -> int:
    """Bytes of one token id: 2, or 4 where V > 65,536."""
    return 2 if vocab <= _U16_VOCAB else 4


def pack_ids(ids: NDArray[np.int32] | Sequence[int], vocab: int) -> bytes:
    """Ids as bytes.

    Raises:
        PackingError: an id is outside 0 .. V - 1.
    """
    values = np.asarray(ids, dtype=np.int64)
    if values.size and (values.min() < 0 or values.max() >= vocab):
        raise PackingError(f"token ids must lie in 0 .. {vocab - 1}")
    return values.astype(f"<u{id_bytes(vocab)}").tobytes()


def unpack_ids(data: bytes, vocab: int) -> NDArray[np.int32]:
    """The ids in some bytes, int32.

    Raises:
        PackingError: a broken length, or an id of V or more.
    """
    width = id_bytes(vocab)
    if len(data) % width:
        raise PackingError(f"{len(data)} bytes are not a whole number of {width}-byte token ids")
    ids = np.frombuffer(data, dtype=f"<u{width}").astype(np.int64)
    if ids.size and ids.max() >= vocab:
        raise PackingError(f"token id {int(ids.max())} is outside the vocabulary of {vocab}")
    return ids.astype(np.int32)


def pack_flags(flags: NDArray[np.bool_] | Sequence[bool]) -> bytes:
    """Flags as bits, LSB first, padded with zeros to whole bytes."""
    return np.packbits(np.asarray(flags, dtype=np.bool_), bitorder="little").tobytes()


def unpack_flags(data: bytes, count: int) -> NDArray[np.bool_]:
    """`count` flags from bits.

    Raises:
        PackingError: not exactly the bytes that `count` flags need, or a padding bit that is set.
    """
    if len(data) != (count + 7) // 8:
        raise PackingError(f"{len(data)} bytes of flags for {count} positions")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little").astype(np.bool_)
    if bits[count:].any():
        raise PackingError(f"a flag is set past the last of {count} positions")
    return bits[:count]


def pack_counts(counts: NDArray[np.int32] | Sequence[int]) -> bytes:
    """Numbers of ids per position, u16; nothing at all where every one is 1.

    Raises:
        PackingError: a count is negative or over 65,535.
    """
    values = np.asarray(counts, dtype=np.int64)
    if (values == 1).all():
        return b""
    if values.min() < 0 or values.max() > 0xFFFF:
        raise PackingError("a position can hold at most 65,535 ids")
    return values.astype("<u2").tobytes()


def unpack_sets(
    ids: bytes, counts: bytes, *, positions: int, vocab: int, max_set_ids: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Sets of ids per position in compressed-row form: `(ids, offsets)`, offsets [positions + 1].

    Raises:
        PackingError: lengths disagree, an empty or too large set, or ids of a set that do not rise.
    """
    flat = unpack_ids(ids, vocab)
    if not counts:
        if len(flat) != positions:
            raise PackingError(f"{len(flat)} token ids for {positions} open positions")
        return flat, np.arange(positions + 1, dtype=np.int32)
    if len(counts) != 2 * positions:
        raise PackingError(f"{len(counts)} bytes of counts for {positions} open positions")
    sizes = np.frombuffer(counts, dtype="<u2").astype(np.int64)
    if sizes.size and (sizes.min() < 1 or sizes.max() > max_set_ids):
        raise PackingError(f"every position needs between 1 and {max_set_ids} ids")
    if sizes.sum() != len(flat):
        raise PackingError(f"{len(flat)} token ids where the counts say {int(sizes.sum())}")
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    rises = np.diff(flat) > 0
    rises[offsets[1:-1] - 1] = True
    if not rises.all():
        raise PackingError("the ids of a position must rise strictly")
    return flat, offsets
