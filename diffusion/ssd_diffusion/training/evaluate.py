"""Held-out scores of the SSD-2 family on packed rows, with fixed levels, noise and seeds (diffusion.md 2b and 3).

S1 through the anchor with everything else hidden; S2 over the band where the answer cannot be read off the input;
cross-entropy at fixed noise levels. All in nats a token unless a name says otherwise; compare only like with like (same
V, K, B, schedule, rows). Knows nothing about training.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training.data import Batch, Rows
from ssd_diffusion.training.loss import head_losses
from ssd_diffusion.training.objective import (
    NoisyInput,
    block_hidden,
    causal_hidden,
    first_input,
    hidden_states,
    targets_mask,
    truth,
)

LEVELS = (1.0, 0.6, 0.5, 0.4, 0.3, 0.2)
S2_BAND = (0.4, 1.0)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model scores; nats a token.

    Attributes:
        s1: through the anchor, everything else hidden.
        next_token: the clean half's own next-token loss (the autoregressive twin).
        s2: mean over the band [.4, 1].
        eighth: position 8 of a block with the earlier ones accepted, the rest hidden.
        at_level: all positions of a block at one level, by level.
        first_at_level: the first position only, by level.
        tokens: how many tokens s1 is a mean of.
    """

    s1: float
    next_token: float
    s2: float
    eighth: float
    at_level: dict[str, float] = field(default_factory=dict)
    first_at_level: dict[str, float] = field(default_factory=dict)
    tokens: int = 0

    def as_json(self) -> dict[str, object]:
        """Plain values, rounded."""
        return {
            k: {a: round(b, 4) for a, b in v.items()} if isinstance(v, dict) else round(v, 4)
            for k, v in asdict(self).items()
        }


@torch.inference_mode()
def anchor_losses(model: Ssd2Model, tokens: Tensor) -> Tensor:
    """-log p of every token but the first, each predicted by its own anchor with all else hidden (S1). [R, n - 1]

    One pass: n - 1 anchors beside the clean tokens, each reading what stands before it and itself.
    """
    rows, length = tokens.shape
    device = tokens.device
    inputs = torch.cat([model.embed(tokens), model.embed_clean(tokens[:, :-1])], dim=1)
    places = torch.arange(length, device=device)
    position_ids = torch.cat([places, places[:-1]]).expand(rows, -1)
    allowed = torch.zeros(2 * length - 1, 2 * length - 1, dtype=torch.bool, device=device)
    allowed[:length, :length] = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    allowed[length:, :length] = places[None, :] < places[:-1, None]
    allowed[length:, length:] = torch.eye(length - 1, dtype=torch.bool, device=device)
    hidden, _ = model.forward_pass(inputs, position_ids, allowed.expand(rows, -1, -1), keep=False)
    return head_losses(model, hidden[:, length:].flatten(0, 1), tokens[:, 1:].flatten()).view(rows, length - 1)


@torch.inference_mode()
def next_token_losses(model: Ssd2Model, tokens: Tensor) -> Tensor:
    """Plain causal next-token losses. [R, n - 1]"""
    hidden = causal_hidden(model, tokens)
    return head_losses(model, hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).view(len(tokens), -1)


@torch.inference_mode()
def block_losses(model: Ssd2Model, batch: Batch, u: Tensor, seed: int) -> Tensor:
    """Losses of the block positions at given levels, no self-conditioning; NaN where not supervised. [R, N, B]"""
    generator = torch.Generator(u.device).manual_seed(seed)
    noisy: NoisyInput = first_input(model, batch, u, generator)
    hidden = block_hidden(batch, hidden_states(model, batch, noisy))
    wanted = targets_mask(batch) & (u > 0)
    out = torch.full(u.shape, math.nan, device=u.device)
    out[wanted] = head_losses(model, hidden[wanted], truth(batch)[wanted])
    return out


def s2(model: Ssd2Model, batches: Iterable[Batch], *, seed: int = 0) -> float:
    """Denoising cross-entropy over the band, u stratified over the blocks, one fixed (u, z) per block."""
    rng = np.random.default_rng([seed, 2])
    total, count = 0.0, 0
    for number, batch in enumerate(batches):
        blocks = batch.starts.numel()
        strata = (rng.permutation(blocks) + rng.random(blocks)) / blocks
        levels = S2_BAND[0] + (S2_BAND[1] - S2_BAND[0]) * strata
        u = torch.from_numpy(levels.astype(np.float32)).view(*batch.starts.shape, 1).expand(-1, -1, batch.block)
        found = block_losses(model, batch, u.contiguous().to(batch.tokens.device), seed + number)
        kept = found[~found.isnan()]
        total, count = total + float(kept.sum()), count + len(kept)
    return total / max(count, 1)


def evaluate(model: Ssd2Model, rows: Rows, *, batches: int, seed: int = 0) -> Scores:
    """All scores on the first `batches` batches of a source with blocks."""
    held = [rows.batch(i) for i in range(batches)]
    was_training = model.training
    model.eval()
    first = torch.cat([anchor_losses(model, b.tokens).flatten() for b in held])
    plain = torch.cat([next_token_losses(model, b.tokens).flatten() for b in held])
    at_level, first_at_level = {}, {}
    for level in LEVELS:
        found = torch.cat([block_losses(model, b, _flat(b, level), seed + i).flatten(0, 1) for i, b in enumerate(held)])
        at_level[str(level)] = float(found.nanmean())
        first_at_level[str(level)] = float(found[:, 0].nanmean())
    eighth = torch.cat([block_losses(model, b, _eighth(b), seed).flatten(0, 1) for b in held])
    place = min(7, held[0].block - 1)
    scores = Scores(
        s1=float(first.mean()), next_token=float(plain.mean()), s2=s2(model, held, seed=seed),
        eighth=float(eighth[:, place].nanmean()), at_level=at_level, first_at_level=first_at_level, tokens=len(first),
    )  # fmt: skip
    model.train(was_training)
    return scores


def _flat(batch: Batch, level: float) -> Tensor:
    return torch.full((*batch.starts.shape, batch.block), level, device=batch.tokens.device)


def _eighth(batch: Batch) -> Tensor:
    u = torch.ones(*batch.starts.shape, batch.block, device=batch.tokens.device)
    u[..., : min(7, batch.block - 1)] = 0.0
    return u
