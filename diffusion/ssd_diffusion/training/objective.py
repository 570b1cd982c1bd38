"""The training objective of one batch: levels, an optional pass without gradients, and the supervised losses.

The pass without gradients gives the self-conditioning of a decode step (half of the batches; TESS, diffusion.md 2). In
a share of those its own draws, not the true tokens, are what gets noised: at low levels decoding reads its own earlier
guesses, and a model that only ever saw the truth there would copy them, right or wrong.

Knows nothing about optimizers, files or time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ssd_diffusion.errors import TrainingError
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training.attention import blocks_of, causal_pass, one_pass
from ssd_diffusion.training.data import Batch
from ssd_diffusion.training.lora import without_adapter
from ssd_diffusion.training.loss import Teaching, head_losses
from ssd_diffusion.training.noise import LevelMix, noised_embedding, preceding_levels, sample_levels
from ssd_diffusion.training.onepass import position_ids, query_index

_CHUNK = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveOptions:
    """What is trained.

    Attributes:
        levels: mixture of level patterns.
        conditioned: share of batches with a self-conditioning pass.
        own_draws: share of those in which the model's own draws are noised in place of the true tokens.
        clean_weight: weight of the next-token loss of the clean half.
        clean_share: share of the clean positions that it is computed at (in batches with blocks).
        taught: share of the next-token distribution of the clean half, which has read everything before a position, in
            the targets of drafted positions: those of blocks that hold nothing between clean and pure noise.
        drafted: share of these positions whose logits the model's transition is added to, where it has one.
        kept: share of the unadapted decoder's next-token distribution in the targets of the clean half, so that the
            core goes on writing and reading as the decoder does; not where the text is the model's own.
        shift: whether a position is predicted by the state before it, as engines read it; False is for comparisons.
    """

    levels: LevelMix = field(default_factory=LevelMix)
    conditioned: float = 0.5
    own_draws: float = 0.6
    clean_weight: float = 0.25
    clean_share: float = 0.25
    taught: float = 0.0
    drafted: float = 0.8
    kept: float = 0.0
    shift: bool = True


LOOK_AHEAD = ObjectiveOptions(
    levels=LevelMix(hidden=0.55, accepted=0.15, decoding=0.1, uniform=0.2),
    conditioned=0.0, taught=0.7, clean_weight=0.5, clean_share=0.5,
)  # fmt: skip
"""For models that draft: mostly windows of which nothing is known yet."""


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """Loss of a batch (with gradient), its parts in nats a token, and how many targets each had."""

    loss: Tensor
    noisy: float
    clean: float
    noisy_targets: int
    clean_targets: int


@dataclass(frozen=True, slots=True)
class NoisyInput:
    """Blocks of a batch with their levels and inputs: levels [R, N, B], embeddings [R, N, B, H]."""

    u: Tensor
    noised: Tensor
    conditioning: Tensor


def truth(batch: Batch) -> Tensor:
    """True tokens of the blocks; anything where a row has no such block. [R, N, B]"""
    where = batch.starts.clamp(min=0)[..., None] + torch.arange(batch.block, device=batch.starts.device)
    rows = torch.arange(len(batch.tokens), device=batch.starts.device)[:, None, None]
    return batch.tokens[rows, where]


def targets_mask(batch: Batch) -> Tensor:
    """Block positions that are supervised. [R, N, B]"""
    where = batch.starts.clamp(min=0)[..., None] + torch.arange(batch.block, device=batch.starts.device)
    rows = torch.arange(len(batch.tokens), device=batch.starts.device)[:, None, None]
    return batch.supervised[rows, where] & (batch.starts >= 1)[..., None]


def hidden_states(model: Ssd2Model, batch: Batch, noisy: NoisyInput) -> Tensor:
    """Last hidden states of [x_0 ; x_t]. [R, n + N (B + 1), H]"""
    rows, blocks = batch.starts.shape
    tokens = truth(batch)
    anchors = batch.tokens.gather(1, (batch.starts - 1).clamp(min=0))
    window = model.embed_window(tokens, noisy.u, noisy.noised, noisy.conditioning)
    part = torch.cat([model.embed_clean(anchors)[:, :, None], window], dim=2)
    inputs = torch.cat([model.embed(batch.tokens), part.reshape(rows, blocks * (batch.block + 1), -1)], dim=1)
    length = batch.tokens.shape[1]
    places = position_ids(length, batch.starts, batch.block)
    return one_pass(model, inputs, places, blocks_of(length, batch.starts, noisy.u))


def causal_hidden(model: Ssd2Model, tokens: Tensor) -> Tensor:
    """Last hidden states of clean tokens alone. [R, n] -> [R, n, H]"""
    rows, length = tokens.shape
    return causal_pass(model, model.embed(tokens), torch.arange(length, device=tokens.device).expand(rows, -1))


def clean_hidden(batch: Batch, hidden: Tensor) -> Tensor:
    """The states of the clean half that predict each block position; they have read all before it. [R, N, B, H]"""
    where = batch.starts.clamp(min=1)[..., None] - 1 + torch.arange(batch.block, device=batch.starts.device)
    rows = torch.arange(len(batch.tokens), device=batch.starts.device)[:, None, None]
    return hidden[rows, where]


def block_hidden(batch: Batch, hidden: Tensor, *, shift: bool = True) -> Tensor:
    """The states that predict each block position: the one before it, or without the shift its own. [R, N, B, H]"""
    index = query_index(batch.tokens.shape[1], batch.starts.shape[1], batch.block, hidden.device)
    return hidden[:, index if shift else index + 1]


def first_input(model: Ssd2Model, batch: Batch, u: Tensor, generator: torch.Generator) -> NoisyInput:
    """Blocks noised from the truth, with no self-conditioning."""
    return _input(model, truth(batch), u, _mean(model, u), generator)


@torch.no_grad()
def conditioned_input(
    model: Ssd2Model, batch: Batch, before: NoisyInput, u: Tensor, generator: torch.Generator, *, own_draws: bool
) -> NoisyInput:
    """Blocks at the next levels, conditioned on a pass over `before`; noised from the truth or that pass's draws."""
    hidden = block_hidden(batch, hidden_states(model, batch, before))
    conditioning, tokens = _mean(model, u).clone(), truth(batch).clone()
    pick = (u > 0) & (u < 1)
    reads, draws = [], []
    for part in torch.split(hidden[pick], _CHUNK):
        logits = model.logits(part)
        p = torch.softmax(logits.float(), dim=-1)
        reads.append(p.to(model.table.dtype) @ model.table)
        if not bool(torch.isfinite(p).all()):
            raise TrainingError("the model's estimates are not finite; use a lower learning rate")
        if own_draws:
            draws.append(torch.multinomial(p, 1, generator=generator)[:, 0])
    if reads:
        conditioning[pick] = torch.cat(reads).to(conditioning.dtype)
    if draws:
        tokens[pick] = torch.cat(draws)
    return _input(model, tokens, u, conditioning, generator)


def batch_loss(model: Ssd2Model, batch: Batch, options: ObjectiveOptions, seed: tuple[int, ...]) -> BatchLoss:
    """Loss of a batch; all its randomness follows from `seed`.

    Args:
        model: the model being trained.
        batch: rows on the model's device.
        options: what is trained.
        seed: non-negative integers, such as (run seed, step, micro-batch).
    """
    rng = np.random.default_rng(list(seed))
    device = batch.tokens.device
    if batch.starts.shape[1] == 0:
        return _next_token_loss(model, batch)
    levels = sample_levels(rng, batch.starts.numel(), batch.block, options.levels)
    levels = levels.reshape(*batch.starts.shape, batch.block)
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    u = torch.from_numpy(levels).to(device)
    if rng.random() < options.conditioned and bool(((u > 0) & (u < 1)).any()):
        own = bool(rng.random() < options.own_draws)
        before = torch.from_numpy(preceding_levels(levels, options.levels.grid, rng, blind=own)).to(device)
        noisy = conditioned_input(
            model, batch, first_input(model, batch, before, generator), u, generator, own_draws=own
        )
    else:
        noisy = first_input(model, batch, u, generator)
    before_adapter = _unadapted(model, batch) if options.kept and batch.origin != "own" else None
    hidden = hidden_states(model, batch, noisy)
    wanted = targets_mask(batch) & (u > 0)
    losses = _block_losses(model, batch, hidden, u, wanted, options, generator)
    clean = _clean_losses(model, batch, hidden, before_adapter, options, generator)
    noisy_mean, clean_mean = _mean_loss(losses), _mean_loss(clean)
    loss = noisy_mean + options.clean_weight * clean_mean
    return BatchLoss(loss, float(noisy_mean.detach()), float(clean_mean.detach()), len(losses), len(clean))


@torch.no_grad()
def _unadapted(model: Ssd2Model, batch: Batch) -> Tensor:
    """Last hidden states of the decoder without its adapter over the clean half. [R, n, H]"""
    with without_adapter(model):
        return causal_hidden(model, batch.tokens)


def _clean_losses(
    model: Ssd2Model, batch: Batch, hidden: Tensor, before_adapter: Tensor | None, options: ObjectiveOptions,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Next-token losses at a share of the clean positions; none for text that the model wrote itself."""
    share = 0.0 if batch.origin == "own" else options.clean_share
    found = torch.rand(batch.supervised[:, 1:].shape, generator=generator, device=hidden.device) < share
    wanted = batch.supervised[:, 1:] & found
    states, targets = hidden[:, : batch.tokens.shape[1] - 1][wanted], batch.tokens[:, 1:][wanted]
    if before_adapter is None:
        return head_losses(model, states, targets)
    kept = torch.full(targets.shape, options.kept, device=hidden.device)
    return head_losses(model, states, targets, Teaching(before_adapter[:, :-1][wanted], kept))


def _block_losses(
    model: Ssd2Model, batch: Batch, hidden: Tensor, u: Tensor, wanted: Tensor, options: ObjectiveOptions,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    """Losses of the wanted block positions. [number wanted]"""
    states, targets = block_hidden(batch, hidden, shift=options.shift)[wanted], truth(batch)[wanted]
    blind = _nothing_to_the_right(u)
    # The first position is no draft: the anchor predicts it with everything before it in sight.
    draft = (blind & (u.roll(1, dims=-1) > 0) & (torch.arange(batch.block, device=u.device) > 0))[wanted]
    if model.transition is not None:
        chosen = draft & (torch.rand(draft.shape, generator=generator, device=u.device) < options.drafted)
        last, before = (tokens_before(batch, distance)[wanted] for distance in (1, 2))
        added = model.transition(model.embed(last[chosen]), model.embed(before[chosen]))
        states = states.index_add(0, torch.nonzero(chosen).flatten(), added.to(states.dtype))
    # What the model wrote itself is no truth about language: there the clean half teaches alone.
    taught = blind[wanted].float() if batch.origin == "own" else options.taught * draft.float()
    if not bool(taught.any()):
        return head_losses(model, states, targets)
    teacher = clean_hidden(batch, hidden)[wanted].detach()
    return head_losses(model, states, targets, Teaching(teacher, taught))


def _nothing_to_the_right(u: Tensor) -> Tensor:
    """Open positions about which neither their own state nor anything to their right says a thing. [R, N, B]"""
    partial = ((u > 0) & (u < 1)).any(dim=-1, keepdim=True)
    known = (u <= 0).flip(-1).cumsum(-1).flip(-1) > 0
    return ~partial & ~known


def tokens_before(batch: Batch, distance: int) -> Tensor:
    """The token so many places before each block position. [R, N, B]"""
    where = (batch.starts.clamp(min=0)[..., None] + torch.arange(batch.block, device=batch.starts.device)) - distance
    rows = torch.arange(len(batch.tokens), device=batch.starts.device)[:, None, None]
    return batch.tokens[rows, where.clamp(min=0)]


def _next_token_loss(model: Ssd2Model, batch: Batch) -> BatchLoss:
    hidden = causal_hidden(model, batch.tokens)
    wanted = batch.supervised[:, 1:]
    losses = head_losses(model, hidden[:, :-1][wanted], batch.tokens[:, 1:][wanted])
    mean = _mean_loss(losses)
    return BatchLoss(mean, float("nan"), float(mean.detach()), 0, len(losses))


def _mean_loss(losses: Tensor) -> Tensor:
    return losses.mean() if len(losses) else losses.sum()


def _mean(model: Ssd2Model, u: Tensor) -> Tensor:
    return model.mean_embedding.expand(*u.shape, -1)


def _input(model: Ssd2Model, tokens: Tensor, u: Tensor, conditioning: Tensor, generator: torch.Generator) -> NoisyInput:
    with torch.no_grad():
        noised = noised_embedding(tokens.flatten(), u.flatten(), model.table.detach(), generator)
    return NoisyInput(u=u, noised=noised.view(*u.shape, -1), conditioning=conditioning)
