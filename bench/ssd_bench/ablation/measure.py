"""What a trained variant can do on held-out rows, row by row so that variants are compared in pairs.

The agreement of a draft with the exact draw is that of two Gumbel-max draws with the same noise, as looking ahead makes
them: P(equal) = sum_v 1 / sum_u max(p_u / p_v, q_u / q_v). Knows models and batches; nothing about training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training.data import Batch
from ssd_diffusion.training.evaluate import next_token_losses
from ssd_diffusion.training.loss import head_losses
from ssd_diffusion.training.objective import block_hidden, first_input, hidden_states, truth
from ssd_kernels.types import F64
from torch import Tensor

TEMPERATURE, TOP_P = 0.7, 0.9
MEASURES: Mapping[str, str] = {
    "next token": "next token, clean half, nats",
    "first": "first open position, nats",
    "drafts": "drafted positions, nats",
    "tokens a pass": "tokens a pass, expected",
    "right side": "gain of the right side, nats",
    "u .6": "all positions at u = .6, nats",
    "u .3": "all positions at u = .3, nats",
}
"""Of every row, and how a report names them. The right side's gain and tokens a pass are better when higher."""


@torch.inference_mode()
def of_row(model: Ssd2Model, batch: Batch, *, shift: bool, seed: int) -> dict[str, float]:
    """All measures on the one row of a batch.

    Args:
        model: trained, in evaluation mode.
        batch: of one row with blocks.
        shift: whether the state before a position predicts it.
        seed: of the noise.
    """
    hidden_at = _levels(batch, 1.0)
    hidden = _hidden(model, batch, hidden_at, seed)
    states = block_hidden(batch, hidden, shift=shift)
    exact = _exact(batch, hidden)
    drafts = states[:, :, 1:] + _transition(model, batch)
    right = _levels(batch, 1.0)
    middle = batch.block // 2
    right[..., middle:] = 0.0
    with_right = block_hidden(batch, _hidden(model, batch, right, seed), shift=shift)
    true = truth(batch)
    blind = _losses(model, states[:, :, middle - 1], true[:, :, middle - 1])
    seeing = _losses(model, with_right[:, :, middle - 1], true[:, :, middle - 1])
    return {
        "next token": float(next_token_losses(model, batch.tokens).mean()),
        "first": float(_losses(model, states[:, :, 0], true[:, :, 0]).mean()),
        "drafts": float(_losses(model, drafts, true[:, :, 1:]).mean()),
        "tokens a pass": tokens_a_pass(model, exact, drafts),
        "right side": float((blind - seeing).mean()),
        "u .6": _at_level(model, batch, 0.6, shift=shift, seed=seed),
        "u .3": _at_level(model, batch, 0.3, shift=shift, seed=seed),
    }


def tokens_a_pass(model: Ssd2Model, exact: Tensor, drafts: Tensor) -> float:
    """Expected tokens a pass: one, and every draft up to the first that differs. Args: states [1, N, B - 1, H]."""
    agreed = []
    for place in range(exact.shape[2]):
        p, q = (_nucleus(model.logits(part[0, :, place]).float()) for part in (exact, drafts))
        agreed.append([agreement(a, b) for a, b in zip(p.numpy(), q.numpy(), strict=True)])
    runs = np.cumprod(np.array(agreed), axis=0).sum(axis=0)
    return float(1.0 + runs.mean())


def agreement(
    p: np.ndarray[tuple[int], np.dtype[np.float32]], q: np.ndarray[tuple[int], np.dtype[np.float32]]
) -> float:
    """Probability that Gumbel-max draws from p and from q with the same noise are equal."""
    p64, q64 = p.astype(np.float64), q.astype(np.float64)
    both, either = np.flatnonzero((p64 > 0) & (q64 > 0)), np.flatnonzero((p64 > 0) | (q64 > 0))
    if not len(both):
        return 0.0
    ratio: F64 = np.maximum(p64[either] / p64[both, None], q64[either] / q64[both, None])
    return float((1.0 / ratio.sum(axis=1)).sum())


def rows_of(found: Sequence[Mapping[str, float]], name: str) -> F64:
    """One measure over all rows. [n]"""
    return np.array([row[name] for row in found])


def _levels(batch: Batch, u: float) -> Tensor:
    return torch.full((*batch.starts.shape, batch.block), u)


def _hidden(model: Ssd2Model, batch: Batch, u: Tensor, seed: int) -> Tensor:
    return hidden_states(model, batch, first_input(model, batch, u, torch.Generator().manual_seed(seed)))


def _exact(batch: Batch, hidden: Tensor) -> Tensor:
    """States of the clean half that predict every drafted position. [1, N, B - 1, H]"""
    where = batch.starts[0][:, None] + torch.arange(1, batch.block) - 1
    return hidden[:, where]


def _transition(model: Ssd2Model, batch: Batch) -> Tensor:
    """What the two true tokens before a drafted position add to its state. [1, N, B - 1, H] or 0"""
    if model.transition is None:
        return torch.zeros(())
    where = batch.starts[0][:, None] + torch.arange(1, batch.block)
    last, before = batch.tokens[0][where - 1], batch.tokens[0][(where - 2).clamp(min=0)]
    added: Tensor = model.transition(model.embed(last), model.embed(before))
    return added[None]


def _at_level(model: Ssd2Model, batch: Batch, u: float, *, shift: bool, seed: int) -> float:
    states = block_hidden(batch, _hidden(model, batch, _levels(batch, u), seed), shift=shift)
    return float(_losses(model, states, truth(batch)).mean())


def _losses(model: Ssd2Model, states: Tensor, targets: Tensor) -> Tensor:
    return head_losses(model, states.reshape(-1, states.shape[-1]), targets.reshape(-1))


def _nucleus(logits: Tensor) -> Tensor:
    p = torch.softmax(logits / TEMPERATURE, dim=-1)
    best, where = p.sort(dim=-1, descending=True)
    best = best * (best.cumsum(dim=-1) - best < TOP_P)
    return torch.zeros_like(p).scatter(-1, where, best / best.sum(dim=-1, keepdim=True))
