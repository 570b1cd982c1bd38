"""Attention of a training pass over what its mask leaves open, and nothing else.

In [x_0 ; x_t] a block reads the clean tokens before its anchor and itself; the dense mask also computes every pair of
blocks, most of the pass. Here the clean half is plain causal attention, and each block's scores are those of the clean
half beside those of its own few positions. Equal to `onepass.layout`'s mask. Knows nothing about noise or losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from ssd_diffusion.models.ssd2 import Ssd2Model

NAME = "ssd2_one_pass"


@dataclass(frozen=True, slots=True)
class Blocks:
    """What the queries of a pass may read; queries are n clean tokens, then W for each of N blocks.

    Attributes:
        before: True where a block reads a clean token. [R, N, n]
        own: True where a position of a block reads another of the same. [R, N, W, W]
    """

    before: Tensor
    own: Tensor


_CURRENT: ContextVar[Blocks | None] = ContextVar("blocks", default=None)


def blocks_of(length: int, starts: Tensor, u: Tensor) -> Blocks:
    """The blocks of a training pass; arguments as of `onepass.layout`."""
    used = starts >= 1
    anchor = torch.where(used, starts - 1, 0)
    before = torch.arange(length, device=starts.device) < anchor[..., None]
    shown = torch.cat([torch.ones_like(u[..., :1], dtype=torch.bool), u < 1.0], dim=-1) & used[..., None]
    width = shown.shape[-1]
    own = shown[:, :, None, :] | torch.eye(width, dtype=torch.bool, device=u.device)
    return Blocks(before, own)


def one_pass(model: Ssd2Model, inputs: Tensor, position_ids: Tensor, blocks: Blocks) -> Tensor:
    """Last hidden states of a training pass.

    Args:
        model: whose decoder runs.
        inputs: input embeddings of the clean tokens, then of the blocks. [R, n + N W, H]
        position_ids: [R, n + N W]
        blocks: see `Blocks`.

    Returns:
        [R, n + N W, width of the head]
    """
    decoder: Any = model.causal.get_decoder()  # type: ignore[operator]
    with _attention(decoder.config, blocks):
        # A mask of four dimensions is taken as it is; `attend` has its own.
        mask = torch.zeros(1, 1, 1, 1, dtype=inputs.dtype, device=inputs.device)
        inputs = inputs.to(model.table.dtype)
        out = decoder(inputs_embeds=inputs, attention_mask=mask, position_ids=position_ids, use_cache=False)
    hidden: Tensor = out.last_hidden_state
    return hidden


def causal_pass(model: Ssd2Model, inputs: Tensor, position_ids: Tensor) -> Tensor:
    """Last hidden states of clean tokens alone. Args: [R, n, H], [R, n]. Returns [R, n, width of the head]."""
    rows, length = position_ids.shape
    nothing = torch.zeros(rows, 0, length, dtype=torch.bool, device=inputs.device)
    return one_pass(model, inputs, position_ids, Blocks(nothing, nothing[..., None, :0]))


@contextmanager
def _attention(config: Any, blocks: Blocks) -> Iterator[None]:
    held, token = config._attn_implementation, _CURRENT.set(blocks)
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = held
        _CURRENT.reset(token)


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The attention function of one layer, as transformers calls it.

    Args:
        module: the layer; not read.
        query: [R, heads, Q, d]
        key: [R, kv heads, Q, d]
        value: [R, kv heads, Q, d]
        attention_mask: not read.
        scaling: of the scores; 1 / sqrt(d) if None.

    Returns:
        [R, Q, heads, d]
    """
    del module, attention_mask
    blocks = _CURRENT.get()
    if blocks is None:
        raise RuntimeError("this attention runs inside `one_pass` only")
    n, scale = blocks.before.shape[-1], scaling if scaling is not None else query.shape[-1] ** -0.5
    clean = causal(query[:, :, :n], key[:, :, :n], value[:, :, :n], scale)
    if not blocks.own.shape[1]:
        return clean.transpose(1, 2).contiguous(), None
    noisy = _of_blocks(query[:, :, n:], key, value, blocks, scale)
    return torch.cat([clean, noisy], dim=2).transpose(1, 2).contiguous(), None


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Every position reads itself and what stands before it. Args: [R, heads or kv heads, n, d]. [R, heads, n, d]"""
    if query.is_cuda:
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    if torch.is_autocast_enabled(query.device.type):
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    with torch.autocast(query.device.type, enabled=False):  # which would take the softmax for float32
        found: Tensor = _Causal.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return found


class _Causal(torch.autograd.Function):
    """Causal attention by plain products: for rows of some hundred tokens the way back through torch's own kernel takes
    two to three times as long on a CPU. The heads of a group stand one under the other, so that they share their keys.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows, heads, n, d = query.shape
        kv = key.shape[1]
        q = (query * scale).reshape(rows * kv, -1, d)
        k, v = (x.reshape(rows * kv, n, d) for x in (key, value))
        closed = torch.ones(n, n, dtype=torch.bool, device=query.device).triu(1)
        scores = torch.bmm(q, k.transpose(1, 2)).view(rows * kv, -1, n, n)
        p = torch.softmax(scores.masked_fill_(closed, -torch.inf), dim=-1).view(rows * kv, -1, n)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape)
        return torch.bmm(p, v).view(rows, heads, n, d)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, p = ctx.saved_tensors
        slope = grads[0].reshape(q.shape)
        through = torch.bmm(slope, v.transpose(1, 2))
        scores = torch._softmax_backward_data(through, p, -1, p.dtype)  # closed pairs: p = 0 and so is its slope
        query = torch.bmm(scores, k).mul_(ctx.scale).view(ctx.shapes[0])
        key = torch.bmm(scores.transpose(1, 2), q).view(ctx.shapes[1])
        return query, key, torch.bmm(p.transpose(1, 2), slope).view(ctx.shapes[1]), None


def _of_blocks(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scale: float) -> Tensor:
    """What the blocks read. Args: query [R, heads, N W, d]. Returns the same shape."""
    rows, heads, _, d = query.shape
    kv, n = key.shape[1], blocks.before.shape[-1]
    count, width = blocks.own.shape[1:3]
    grouped = (query * scale).view(rows, kv, heads // kv, count, width, d)
    flat = grouped.reshape(rows, kv, -1, d)
    own_key, own_value = (x[:, :, n:].view(rows, kv, 1, count, width, d) for x in (key, value))
    of_clean = (flat @ key[:, :, :n].transpose(-1, -2)).view(*grouped.shape[:-1], n)
    of_own = grouped @ own_key.transpose(-1, -2)
    closed = torch.cat([~blocks.before[:, :, None, :].expand(-1, -1, width, -1), ~blocks.own], dim=-1)
    scores = torch.cat([of_clean, of_own], dim=-1).float().masked_fill(closed[:, None, None], -torch.inf)
    p = torch.softmax(scores, dim=-1).to(value.dtype)
    read = (p[..., :n].reshape(rows, kv, -1, n) @ value[:, :, :n]).view_as(grouped)
    return (read + p[..., n:] @ own_value).view(rows, heads, -1, d)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
