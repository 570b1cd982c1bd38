"""Held-out cross-entropy of the denoiser, document by document: by noise level, as a chain (S1), and infilling (S3).

Every document gives a context and the tokens after it; all windows of a document lie over one clean half, so a
document costs a pass or three. Nats a token. The denoising loss is no likelihood of a text: compare it with itself
alone. S1 and the infill chain are normalised over sequences and may be held against an autoregressive model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training.data import Batch
from ssd_diffusion.training.evaluate import LEVELS, block_losses, next_token_losses
from ssd_diffusion.training.loss import head_losses
from ssd_diffusion.training.noise import GRID, preceding_levels
from ssd_diffusion.training.objective import block_hidden, conditioned_input, first_input, hidden_states, truth
from ssd_kernels.types import F32, F64, I32
from torch import Tensor

CONTEXT, BLOCK, EIGHTH = 64, 16, 7
LENGTH = CONTEXT + BLOCK
LEFT, SPAN, RIGHT = 48, 4, 12
INFILL_LENGTH = LEFT + SPAN - 1 + BLOCK
PLACES = ("all", "first", "eighth")

Found: TypeAlias = dict[str, float]


def by_level(model: Ssd2Model, tokens: I32, *, seed: int) -> list[Found]:
    """Cross-entropy at every level, with and without self-conditioning, for documents of LENGTH tokens.

    Keys are "LEVEL PLACE" and "LEVEL PLACE conditioned". At the level, PLACE `all` is the mean over the block, `first`
    its first position, and `eighth` position 8 with the seven before it accepted. The conditioning comes from a pass at
    the grid's next higher level; both read the same noise.

    Args:
        model: in evaluation mode.
        tokens: ids. [R, LENGTH]
        seed: of the noise.
    """
    u = np.ones((len(LEVELS), 2, BLOCK), np.float32) * np.array(LEVELS, np.float32)[:, None, None]
    u[:, 1, :EIGHTH] = 0.0
    levels = u.reshape(-1, BLOCK)
    batch = _batch(tokens, [CONTEXT] * len(levels))
    plain = _shaped(block_losses(model, batch, _repeated(levels, batch), seed))
    conditioned = _shaped(_conditioned_losses(model, batch, levels, seed))
    return [
        {**_places(alone, ""), **_places(given, " conditioned")}
        for alone, given in zip(plain, conditioned, strict=True)
    ]


def _places(losses: F64, suffix: str) -> Found:
    """The three places at every level from the losses of one document. [levels, 2, B]"""
    found: Found = {}
    for level, (flat, accepted) in zip(LEVELS, losses, strict=True):
        values = dict(zip(PLACES, (flat.mean(), flat[0], accepted[EIGHTH]), strict=True))
        found |= {f"{level:g} {place}{suffix}": float(value) for place, value in values.items()}
    return found


@torch.inference_mode()
def _conditioned_losses(model: Ssd2Model, batch: Batch, levels: F32, seed: int) -> Tensor:
    """Losses after a pass at the grid's level before. [R, N, B]"""
    above = preceding_levels(levels, GRID, np.random.default_rng(seed), blind=False)
    earlier = torch.Generator().manual_seed(seed + 1)
    before = first_input(model, batch, _repeated(above, batch), earlier)
    generator = torch.Generator().manual_seed(seed)
    u = _repeated(levels, batch)
    noisy = conditioned_input(model, batch, before, u, generator, own_draws=False)
    hidden = block_hidden(batch, hidden_states(model, batch, noisy))
    out = torch.full(u.shape, torch.nan)
    out[u > 0] = head_losses(model, hidden[u > 0], truth(batch)[u > 0])
    return out


def chain(model: Ssd2Model, tokens: I32, *, first: int) -> F64:
    """S1 of a row's tokens from `first` on: each read at the first position of a window of its own, u = 1. [n - first]

    Args:
        model: in evaluation mode.
        tokens: ids of one text. [n]
        first: how many of them are context; at least one.
    """
    starts = torch.arange(first, len(tokens))[None]
    batch = Batch(torch.from_numpy(tokens.astype(np.int64))[None], starts, torch.ones(1, len(tokens)) > 0, 1)
    return block_losses(model, batch, torch.ones(1, starts.shape[1], 1), 0)[0, :, 0].double().numpy()


def infill(model: Ssd2Model, base: Ssd2Model, tokens: I32) -> list[Found]:
    """S3 of SPAN tokens with RIGHT clean tokens after them in the window, and what the span costs without these.

    `one pass` reads all positions of the span at once, each given the visible sides and none of the span's others;
    `chain` commits the span token by token, the right side standing as accepted positions, which is a normalised
    distribution over spans like the base's. `left` hides the right side and is the same in all else. Nats a token.

    Args:
        model: the core, in evaluation mode.
        base: its autoregressive base.
        tokens: ids. [R, INFILL_LENGTH]
    """
    both = chain_levels(SPAN, RIGHT)
    levels = np.concatenate([both, np.ones_like(both)])
    batch = _batch(tokens, [*range(LEFT, LEFT + SPAN)] * 2)
    losses = block_losses(model, batch, _repeated(levels, batch), 0).double().numpy()
    plain = next_token_losses(base, batch.tokens)[:, LEFT - 1 : LEFT + SPAN - 1].double().numpy()
    return [
        {
            "one pass, both": float(row[0, :SPAN].mean()), "one pass, left": float(row[SPAN, :SPAN].mean()),
            "chain, both": float(row[:SPAN, 0].mean()), "chain, left": float(row[SPAN:, 0].mean()),
            "base": float(own.mean()),
        }
        for row, own in zip(losses, plain, strict=True)
    ]  # fmt: skip


def chain_levels(span: int, right: int) -> F32:
    """Noise levels of the windows that commit a span token by token, `right` clean tokens after it. [span, BLOCK]"""
    levels = np.ones((span, BLOCK), np.float32)
    for i in range(span):  # window i starts i tokens later; what its end gains stays hidden, so all see the same
        levels[i, span - i : span - i + right] = 0.0
    return levels


def _batch(tokens: I32, starts: Sequence[int]) -> Batch:
    ids = torch.from_numpy(tokens.astype(np.int64))
    return Batch(ids, torch.tensor(starts).expand(len(ids), -1), torch.ones_like(ids) > 0, BLOCK)


def _repeated(levels: F32, batch: Batch) -> Tensor:
    return torch.from_numpy(levels).expand(len(batch.tokens), -1, -1).contiguous()


def _shaped(losses: Tensor) -> F64:
    return losses.double().numpy().reshape(len(losses), len(LEVELS), 2, BLOCK)
