"""One-pass training layout: all blocks of a row in one forward over [x_0 ; x_t] (after BD3-LM; diffusion.md 2).

The clean half is token-causal, as in pretraining. Block j of the noisy half is B + 1 queries, a copy of its anchor and
its B positions; it reads the clean positions strictly before its anchor, and itself by the rule of the window
(positions at u = 1 are hidden from the others). Exactly what the engine computes block by block. `layout` is the
definition; training computes the same without the closed pairs (`attention`).

Knows nothing about noise, losses or networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions and mask of one training pass; queries are the n clean tokens, then B + 1 for every block.

    Attributes:
        position_ids: [R, Q]
        allowed: True where a query may read a key. [R, Q, Q]
    """

    position_ids: Tensor
    allowed: Tensor


def layout(length: int, starts: Tensor, u: Tensor) -> Layout:
    """Positions and mask for rows of clean tokens with blocks at any starts.

    Args:
        length: n, clean tokens per row (padding at the end is read by no block that starts before it).
        starts: index of each block's first position; at least 1; -1 where a row has no such block. [R, N]
        u: noise levels. [R, N, B]
    """
    rows, blocks = starts.shape
    width = u.shape[-1] + 1
    device = starts.device
    used = starts >= 1
    anchor = torch.where(used, starts - 1, 0)
    allowed = torch.zeros(rows, length + blocks * width, length + blocks * width, dtype=torch.bool, device=device)
    allowed[:, :length, :length] = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    before = torch.arange(length, device=device) < torch.where(used, anchor, 0)[..., None]
    allowed[:, length:, :length] = before.repeat_interleave(width, dim=1)
    shown = torch.cat([torch.ones(rows, blocks, 1, dtype=torch.bool, device=device), u < 1.0], dim=2)
    shown = (shown & used[..., None]).flatten(1)
    block_of = torch.arange(blocks, device=device).repeat_interleave(width)
    same = block_of[:, None] == block_of[None, :]
    own = torch.eye(blocks * width, dtype=torch.bool, device=device)
    allowed[:, length:, length:] = (same & shown[:, None, :]) | own
    return Layout(position_ids(length, starts, u.shape[-1]), allowed)


def position_ids(length: int, starts: Tensor, block: int) -> Tensor:
    """Positions of the clean tokens, then of every block's anchor and its `block` positions. [R, Q]"""
    anchor = torch.where(starts >= 1, starts - 1, 0)
    noisy = anchor[..., None] + torch.arange(block + 1, device=starts.device)
    clean = torch.arange(length, device=starts.device).expand(len(starts), -1)
    return torch.cat([clean, noisy.flatten(1)], dim=1)


def query_index(length: int, blocks: int, block: int, device: torch.device) -> Tensor:
    """Query that predicts position i of block j: the one before it (output shift). [N, B]"""
    first = length + torch.arange(blocks, device=device) * (block + 1)
    return first[:, None] + torch.arange(block, device=device)
