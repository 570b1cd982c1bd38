"""Noise levels and noise for training: which positions of a window are clean, open or hidden, and their x_t.

Levels imitate the states that window decoding passes through: all hidden at the start of an answer, then positions
that fall down the grid together or in the order in which they entered, some of them accepted. Knows nothing about
networks beyond the embedding table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from ssd_kernels.types import F32
from torch import Tensor

from ssd_diffusion.schedule import SCHEDULE_S, SIMPLEX_K, alpha_bar

GRID = (1.0, 0.6, 0.5, 0.4, 0.3, 0.2)
_CHUNK = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelMix:
    """Shares of the level patterns among blocks (they sum to 1), and the step grid.

    Attributes:
        hidden: every position at u = 1.
        accepted: a random subset accepted, biased to a prefix, the rest at u = 1.
        decoding: levels as they arise in window decoding: a position further right is noisier, some are accepted.
        uniform: one continuous level for all open positions of the block.
        between: a run of positions at u = 1 from the left, all or most of the text after it accepted, so that what
            stands to the right is learned from too.
        lowest: lowest u of the uniform pattern.
    """

    hidden: float = 0.15
    accepted: float = 0.15
    decoding: float = 0.5
    uniform: float = 0.2
    between: float = 0.0
    lowest: float = 0.15
    grid: tuple[float, ...] = GRID


def sample_levels(rng: np.random.Generator, blocks: int, block: int, mix: LevelMix) -> F32:
    """Noise levels of independent blocks, each by a pattern of its own. [blocks, B]"""
    shares = np.array([mix.hidden, mix.accepted, mix.decoding, mix.uniform, mix.between])
    kinds = rng.choice(len(shares), size=blocks, p=shares / shares.sum())
    out = np.ones((blocks, block), np.float32)
    for j, kind in enumerate(kinds):
        if kind == 1:
            _accept(rng, out[j], most=block - 1, prefix=True)
        elif kind == 2:
            out[j] = _decoding_levels(rng, block, mix.grid)
            if rng.random() < 0.5:
                _accept(rng, out[j], most=block // 3, prefix=False)
        elif kind == 3:
            out[j] = rng.uniform(mix.lowest, 1.0)
            if rng.random() < 0.3:
                _accept(rng, out[j], most=block // 2, prefix=rng.random() < 0.5)
        elif kind == 4:
            _know_the_right(rng, out[j])
    return out


def _accept(rng: np.random.Generator, u: F32, *, most: int, prefix: bool) -> None:
    """Mark up to `most` positions clean, at least one position left open."""
    count = int(rng.integers(0, min(most, len(u) - 1) + 1))
    leftmost = prefix and rng.random() < 0.6
    u[np.arange(count) if leftmost else rng.permutation(len(u))[:count]] = 0.0


def _know_the_right(rng: np.random.Generator, u: F32) -> None:
    """Mark all after a run of up to half the window clean; in a third of the windows something there stays open too."""
    run = int(rng.integers(1, max(2, len(u) // 2 + 1)))
    u[run:] = 0.0
    if rng.random() < 1 / 3:
        u[run + rng.permutation(len(u) - run)[: int(rng.integers(0, len(u) // 4 + 1))]] = 1.0


def _decoding_levels(rng: np.random.Generator, block: int, grid: tuple[float, ...]) -> F32:
    """Levels after `passes` passes that committed `rate` positions each: the window's right end entered last."""
    passes = int(rng.integers(1, len(grid) + 3))
    rate = float(rng.uniform(0.5, 4.0))
    age = np.minimum(passes, np.floor((block - 1 - np.arange(block)) / rate + rng.random())).astype(int)
    levels: F32 = np.asarray(grid, np.float32)[np.minimum(age, len(grid) - 1)]
    return levels


def preceding_levels(u: F32, grid: tuple[float, ...], rng: np.random.Generator, *, blind: bool) -> F32:
    """Levels of the pass before: the next grid point above u; accepted positions stay accepted.

    Args:
        u: levels of the pass to prepare. [...]
        grid: noise levels from 1 downwards.
        rng: draws for `blind`.
        blind: keep to levels at which the state says next to nothing (u >= .5), so that the estimate of that pass is
            as wrong as one in decoding is.
    """
    points = np.asarray(sorted(grid), np.float32)
    above = points[np.minimum(np.searchsorted(points, u + 1e-4, side="right"), len(points) - 1)]
    if blind:
        high = points[points >= 0.5]
        above = np.where(above >= 0.5, above, high[rng.integers(0, len(high), size=u.shape)])
    return np.where(u <= 0.0, 0.0, np.where(u >= 1.0, 1.0, np.maximum(above, u))).astype(np.float32)


def noised_embedding(
    tokens: Tensor, u: Tensor, table: Tensor, generator: torch.Generator, *, k: float = SIMPLEX_K, s: float = SCHEDULE_S
) -> Tensor:
    """softmax(x_t) E for rows with 0 < u < 1; zero at other rows.

    x_t = sqrt(alpha_bar) w~ + sqrt(1 - alpha_bar) K z (SSD-LM, section 3), fresh z from the generator. The constant -K
    of w~ falls out of the softmax.

    Args:
        tokens: the estimate per row. [N]
        u: [N]
        table: E. [V, H]
    """
    out = torch.zeros(len(tokens), table.shape[1], dtype=table.dtype, device=table.device)
    pick = torch.nonzero((u > 0) & (u < 1)).flatten()
    ab = torch.from_numpy(alpha_bar(u.detach().cpu().numpy(), s)).to(torch.float32).to(table.device)
    for part in torch.split(pick, _CHUNK):
        z = torch.randn(len(part), table.shape[0], generator=generator, device=table.device)
        x_t = z.mul_((1 - ab[part]).sqrt()[:, None] * k)
        x_t[torch.arange(len(part), device=table.device), tokens[part]] += 2 * k * ab[part].sqrt()
        read = torch.softmax(x_t, dim=-1).to(table.dtype) @ table
        out[part] = read.to(out.dtype)  # under autocast the product has another
    return out
