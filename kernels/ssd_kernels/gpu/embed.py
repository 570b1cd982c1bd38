"""softmax(x_t) E on a card, from estimates and counters, with neither noise nor state in memory.

A program takes a stretch of the vocabulary and a tile of rows: noise, weights exp(x_t - bound), and their product with
the stretch of E. The bound is the largest value a state can have, so no row needs a maximum first. A second kernel adds
the stretches, and the estimate's own tokens, which the first took for any other. Every row's sums run in one order,
whatever its companions. Knows nothing about models.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.errors import InvalidInput
from ssd_kernels.gpu._words import normals4
from ssd_kernels.gpu.noise import check_counters

_ROWS, _QUADS, _WIDTH, _GROUPS = 16, 128, 64, 4
_FARTHEST = tl.constexpr(6.77)
"""No normal of 32-bit words is larger: sqrt(2 * 33 ln 2)."""


@triton.jit
def _weight(z, scale, live):
    """exp(x_t - bound) of a token outside the estimate: x_t = scale z - signal, the bound scale 6.77 - signal."""
    return tl.where(live, tl.exp(scale * (z - _FARTHEST)), 0.0)


@triton.jit
def _stretches(
    counters, scale, table, part, sums, rows, vocab, hidden, per_group,
    ROWS: tl.constexpr, QUADS: tl.constexpr, WIDTH: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Sums of weights, and of weights times E, of one stretch. part [S, R, H], sums [S, R]"""
    stretch, group, tile = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = tile * ROWS + tl.arange(0, ROWS)
    live = row < rows
    safe = tl.where(live, row, 0).to(tl.int64)[:, None]
    sigma = tl.load(scale + safe)
    quad = stretch * QUADS + tl.arange(0, QUADS)
    z0, z1, z2, z3 = normals4(counters + 4 * safe, quad[None, :])
    first = 4 * quad
    kind = table.dtype.element_ty
    p0 = _weight(z0, sigma, live[:, None] & (first < vocab)[None, :]).to(kind)
    p1 = _weight(z1, sigma, live[:, None] & (first + 1 < vocab)[None, :]).to(kind)
    p2 = _weight(z2, sigma, live[:, None] & (first + 2 < vocab)[None, :]).to(kind)
    p3 = _weight(z3, sigma, live[:, None] & (first + 3 < vocab)[None, :]).to(kind)
    total = tl.sum(p0.to(tl.float32) + p1.to(tl.float32) + p2.to(tl.float32) + p3.to(tl.float32), axis=1)
    tl.store(sums + stretch.to(tl.int64) * rows + row, total, mask=live)  # of every group, all of them the same
    for tile_h in range(per_group):
        h = (group * per_group + tile_h) * WIDTH + tl.arange(0, WIDTH)
        wide = (h < hidden)[None, :]
        at = table + first.to(tl.int64)[:, None] * hidden + h[None, :]
        acc = tl.zeros((ROWS, WIDTH), tl.float32)
        for lane in tl.static_range(4):
            e = tl.load(at + lane * hidden, mask=(first + lane < vocab)[:, None] & wide, other=0.0)
            p = p0 if lane == 0 else (p1 if lane == 1 else (p2 if lane == 2 else p3))
            if EXACT:
                p, e = p.to(tl.float32), e.to(tl.float32)
            acc = tl.dot(p, e, acc, input_precision="ieee")
        out = part + (stretch.to(tl.int64) * rows + row)[:, None] * hidden + h[None, :]
        tl.store(out, acc, mask=live[:, None] & wide)


@triton.jit
def _finish(
    counters, signal, scale, ids, offsets, table, part, sums, out, rows, hidden, stretches, WIDTH: tl.constexpr
):
    """All stretches of one row, and its estimate's tokens, whose x_t is 2 signal higher. [H]"""
    row = tl.program_id(0).to(tl.int64)
    h = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    wide = h < hidden
    s, sigma = tl.load(signal + row), tl.load(scale + row)
    total, mixed = 0.0, tl.zeros((WIDTH,), tl.float32)
    for stretch in range(stretches):
        total += tl.load(sums + stretch * rows + row)
        mixed += tl.load(part + (stretch * rows + row) * hidden + h, mask=wide, other=0.0)
    for n in range(tl.load(offsets + row), tl.load(offsets + row + 1)):
        token = tl.load(ids + n).to(tl.int64)
        one = tl.zeros((1, 1), tl.int64)
        z0, z1, z2, z3 = normals4(counters + 4 * row + one, token // 4 + one)
        lane = token % 4
        z = tl.sum(tl.where(lane == 0, z0, tl.where(lane == 1, z1, tl.where(lane == 2, z2, z3))))
        below = sigma * (z - _FARTHEST)
        more = tl.exp(below + 2.0 * s) - tl.exp(below)
        total += more
        mixed += more * tl.load(table + token * hidden + h, mask=wide, other=0.0).to(tl.float32)
    tl.store(out + row * hidden + h, mixed / total, mask=wide)


def renoise_embed(ids: Tensor, offsets: Tensor, alpha_bar: Tensor, table: Tensor, rows: Tensor, *, k: float) -> Tensor:
    """softmax(x_t) E of every row; see `ssd_kernels.simplex.renoise_embed`.

    Args:
        ids: ids of all rows' estimates, int32, inside the vocabulary (not checked here). [N]
        offsets: where every row's ids begin, and the end, int32. [R + 1]
        alpha_bar: share of the signal, in [0, 1], float32. [R]
        table: E, float32, or bfloat16, in which the weights are rounded too. [V, H]
        rows: counters. [R, 4]
        k: simplex scale K, at most 30.

    Returns:
        [R, H], float32.

    Raises:
        InvalidInput: lengths that differ, or K out of range.
    """
    count, (vocab, hidden) = len(alpha_bar), table.shape
    if len(offsets) != count + 1:
        raise InvalidInput(f"{count} positions need {count + 1} offsets, not {len(offsets)}.")
    if not 0.0 < k <= 30.0:
        raise InvalidInput(f"The simplex scale K must lie above 0 and be at most 30 on a card, not {k}.")
    rows, table = check_counters(rows, count), table.contiguous()
    signal = k * torch.sqrt(alpha_bar.to(torch.float64))
    scale = k * torch.sqrt(1.0 - alpha_bar.to(torch.float64))
    signal, scale = signal.to(torch.float32), scale.to(torch.float32)
    out = torch.empty(count, hidden, dtype=torch.float32, device=table.device)
    if not count:
        return out
    stretches, tiles = triton.cdiv(vocab, 4 * _QUADS), triton.cdiv(hidden, _WIDTH)
    part = torch.empty(stretches, count, hidden, dtype=torch.float32, device=table.device)
    sums = torch.empty(stretches, count, dtype=torch.float32, device=table.device)
    per_group = triton.cdiv(tiles, _GROUPS)
    grid = (stretches, triton.cdiv(tiles, per_group), triton.cdiv(count, _ROWS))
    _stretches[grid](
        rows, scale, table, part, sums, count, vocab, hidden, per_group, ROWS=_ROWS, QUADS=_QUADS,
        WIDTH=_WIDTH, EXACT=triton.knobs.runtime.interpret,  # which does not multiply bfloat16
        num_stages=3 if table.dtype == torch.bfloat16 else 1,  # more tiles of float32 do not fit a card's fast memory
    )  # fmt: skip
    _finish[(count, tiles)](
        rows, signal, scale, ids, offsets, table, part, sums, out, count, hidden, stretches, WIDTH=_WIDTH
    )
    return out
