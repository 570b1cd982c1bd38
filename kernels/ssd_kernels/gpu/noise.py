"""Counters of rows, and standard normals on a card; see `ssd_kernels.noise`. Knows nothing about states or tokens."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.errors import InvalidInput
from ssd_kernels.gpu._words import normals4
from ssd_kernels.noise import check_counter, counter_word
from ssd_kernels.philox import split_key
from ssd_kernels.types import I32, I64, Purpose

_QUADS = 256


def counters(key: int, positions: I32, *, step: int, block: int, purpose: Purpose = Purpose.NOISE) -> I64:
    """What tells the rows of one window apart; those of several windows may be put one under the other. [B, 4]

    Args:
        key: 64-bit key of noise or draw.
        positions: position word of the counter, [B].
        step: pass number.
        block: block number.
        purpose: what the stream is for.

    Raises:
        InvalidInput: a counter word out of range.
    """
    rows = check_counter(positions, step, 1)
    split_key(key)
    out = np.empty((len(rows), 4), np.int64)
    out[:, 0] = np.uint64(key).astype(np.int64)
    out[:, 1] = rows
    out[:, 2] = step
    out[:, 3] = counter_word(purpose, block)
    return out


def check_counters(rows: Tensor, count: int) -> Tensor:
    """Counters as the kernels take them.

    Raises:
        InvalidInput: not one row of four int64 for each of `count` rows.
    """
    if rows.dtype != torch.int64 or rows.shape != (count, 4):
        raise InvalidInput(f"{count} rows need counters of the shape ({count}, 4) in int64, as `counters` makes them.")
    return rows.contiguous()


@triton.jit
def _normals(counters, out, vocab, QUADS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    quad = tl.program_id(1) * QUADS + tl.arange(0, QUADS)[None, :]
    z0, z1, z2, z3 = normals4(counters + 4 * row + tl.zeros((1, 1), tl.int64), quad)
    at = out + row * vocab + 4 * quad
    tl.store(at, z0, mask=4 * quad < vocab)
    tl.store(at + 1, z1, mask=4 * quad + 1 < vocab)
    tl.store(at + 2, z2, mask=4 * quad + 2 < vocab)
    tl.store(at + 3, z3, mask=4 * quad + 3 < vocab)


def normals(rows: Tensor, vocab: int) -> Tensor:
    """Standard normals, within 6 float32 ulps of the float64 formula.

    Args:
        rows: counters, [R, 4].
        vocab: V.

    Returns:
        z [R, V].

    Raises:
        InvalidInput: counters of another shape, or no vocabulary.
    """
    if vocab < 1:
        raise InvalidInput(f"A vocabulary must hold at least one token, not {vocab}.")
    rows = check_counters(rows, len(rows))
    out = torch.empty(len(rows), vocab, dtype=torch.float32, device=rows.device)
    if len(rows):
        _normals[(len(rows), triton.cdiv(vocab, 4 * _QUADS))](rows, out, vocab, QUADS=_QUADS)
    return out
