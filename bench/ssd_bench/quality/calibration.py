"""Calibration of acceptance: how sure a model is of its most probable token, and how often that token stands there.

Held-out documents, true tokens to the left; three states: the first open position, drafts behind it (u = 1, read
through the transition where the model has one), and positions whose noisy state holds the model's own guesses. Sums by
bins of certainty, document by document (C. Guo et al., "On Calibration of Modern Neural Networks", 2017). Knows nothing
about records or reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training.data import Batch
from ssd_diffusion.training.objective import (
    block_hidden,
    causal_hidden,
    clean_hidden,
    conditioned_input,
    first_input,
    hidden_states,
    tokens_before,
    truth,
)
from ssd_kernels.types import F64, I32
from torch import Tensor

from ssd_bench.quality.summary import Figures
from ssd_bench.stats import bootstrap, jackknife, paired_bootstrap

CONTEXT, BLOCK, STRIDE, WINDOWS = 64, 8, 4, 15
LENGTH = CONTEXT + STRIDE * (WINDOWS - 1) + BLOCK
BINS = 10
SURE = 1 - 1 / BINS
"""Certainty from which on a token counts as sure: the last bin."""
BASE, FIRST = "base, next token", "1st"
OWN = (0.5, 0.3)
DRAFTS = {"2nd": (1,), "3rd": (2,), "4th": (3,), "5th to 8th": (4, 5, 6, 7)}
_ALL = tuple(range(1, BLOCK))
PLACES = (BASE, FIRST, *(f"{name}, drafted" for name in DRAFTS), *(f"own guesses at u = {u:g}" for u in OWN))
_CHUNK = 128

Sums: TypeAlias = dict[str, list[float]]
"""Of one place of one document: `n`, `confidence` and `right` by bin; `granted` and `overlap` in all."""


class Read(NamedTuple):
    """Of every position read. All [R, N, B], float64.

    Attributes:
        confidence: of the most probable token.
        right: 1 where it is the true one.
        granted: the probability that the floor, which has read all before the position, gives it.
        overlap: what the two distributions share, the chance that a best coupled draft stands.
    """

    confidence: F64
    right: F64
    granted: F64
    overlap: F64


@torch.inference_mode()
def of_documents(model: Ssd2Model, base: Ssd2Model, tokens: I32, *, seed: int) -> list[dict[str, Sums]]:
    """Sums of every place of PLACES, document by document.

    Args:
        model: the core, in evaluation mode.
        base: its autoregressive base.
        tokens: ids. [R, LENGTH]
        seed: of noise and guesses.
    """
    ids = torch.from_numpy(tokens.astype(np.int64))
    starts = CONTEXT + STRIDE * torch.arange(WINDOWS)
    batch = Batch(ids, starts.expand(len(ids), -1), torch.ones_like(ids) > 0, BLOCK)
    hidden = _blind(model, batch, seed)
    floor = clean_hidden(batch, hidden)
    blind = block_hidden(batch, hidden)
    first = _read(model, blind[:, :, :1], floor[:, :, :1], truth(batch)[:, :, :1])
    drafted = _read(model, _through_transition(model, batch, blind), floor, truth(batch))
    places: dict[str, tuple[Read, tuple[int, ...]]] = {BASE: (_base(base, batch), (0,)), FIRST: (first, (0,))}
    places |= {f"{name}, drafted": (drafted, columns) for name, columns in DRAFTS.items()}
    for u in OWN:
        found = _read(model, _over_own_guesses(model, batch, u, seed), floor, truth(batch))
        places[f"own guesses at u = {u:g}"] = (found, _ALL)
    return [
        {place: _sums(read, columns, row) for place, (read, columns) in places.items()} for row in range(len(tokens))
    ]


def _blind(model: Ssd2Model, batch: Batch, seed: int) -> Tensor:
    """Last hidden states with all window positions at u = 1. [R, n + N (B + 1), H]"""
    u = torch.ones(*batch.starts.shape, BLOCK)
    return hidden_states(model, batch, first_input(model, batch, u, torch.Generator().manual_seed(seed)))


def _through_transition(model: Ssd2Model, batch: Batch, states: Tensor) -> Tensor:
    if model.transition is None:
        return states
    last, before = (model.embed(tokens_before(batch, distance)) for distance in (1, 2))
    added: Tensor = model.transition(last, before)
    return states + added.to(states.dtype)


def _over_own_guesses(model: Ssd2Model, batch: Batch, level: float, seed: int) -> Tensor:
    """States of windows whose noise lies over the model's own draws; no self-conditioning. [R, N, B, H]"""
    generator = torch.Generator().manual_seed(seed + 1)
    u = torch.full((*batch.starts.shape, BLOCK), level)
    before = first_input(model, batch, torch.ones_like(u), generator)
    noisy = conditioned_input(model, batch, before, u, generator, own_draws=True)
    return block_hidden(batch, hidden_states(model, batch, replace(noisy, conditioning=before.conditioning)))


def _base(base: Ssd2Model, batch: Batch) -> Read:
    """The base's own next token at the windows' first positions."""
    states = clean_hidden(batch, causal_hidden(base, batch.tokens))[:, :, :1]
    return _read(base, states, states, truth(batch)[:, :, :1])


def _read(model: Ssd2Model, states: Tensor, floor: Tensor, targets: Tensor) -> Read:
    """Args: states, floor [R, N, B, H]; targets [R, N, B]."""
    shape, found = targets.shape, []
    flat = (torch.split(x.flatten(0, 2), _CHUNK) for x in (states, floor, targets))
    for part, teacher, wanted in zip(*flat, strict=True):
        q, p = (torch.softmax(model.logits(x).float(), dim=-1) for x in (part, teacher))
        confidence, top = q.max(dim=-1)
        columns = confidence, top == wanted, p.gather(1, top[:, None])[:, 0], torch.minimum(p, q).sum(dim=-1)
        found.append(torch.stack([column.double() for column in columns]))
    return Read(*torch.cat(found, dim=1).view(4, *shape).numpy())


def _sums(read: Read, columns: tuple[int, ...], row: int) -> Sums:
    confidence, right, granted, overlap = (values[row][:, columns].ravel() for values in read)
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    binned = {"n": np.ones_like(confidence), "confidence": confidence, "right": right}
    return {
        **{name: np.bincount(bins, values, BINS).tolist() for name, values in binned.items()},
        "granted": [float(granted.sum())], "overlap": [float(overlap.sum())],
    }  # fmt: skip


def figures(documents: Sequence[Sums]) -> Figures:
    """Mean certainty and hit rate of one place, their difference, the expected calibration error, and the sure ones.

    `sure` is the share of positions whose token has at least SURE, `right when sure` how many of these are right; it is
    missing where none is sure.
    """
    n, confidence, right = (np.array([one[name] for one in documents]) for name in ("n", "confidence", "right"))
    count = n.sum(axis=1)
    some = n[:, -1] > 0
    error = jackknife(lambda rows: _expected_error(*(x[rows].sum(axis=0) for x in (n, confidence, right))), len(n))
    found = {
        "confidence": bootstrap(confidence.sum(axis=1), count), "right": bootstrap(right.sum(axis=1), count),
        "over": paired_bootstrap(confidence.sum(axis=1), right.sum(axis=1), count),
        "error": error,
        "sure": bootstrap(n[:, -1], count),
        "granted": bootstrap([one["granted"][0] for one in documents], count),
        "overlap": bootstrap([one["overlap"][0] for one in documents], count),
    }  # fmt: skip
    return found | ({"right when sure": bootstrap(right[some, -1], n[some, -1])} if some.any() else {})


def _expected_error(n: F64, confidence: F64, right: F64) -> float:
    return float(np.abs(confidence - right).sum() / n.sum())


def curve(documents: Sequence[Sums]) -> list[tuple[float, float, int]]:
    """Mean certainty, hit rate and number of positions of every bin that has any."""
    n, confidence, right = (np.sum([one[name] for one in documents], axis=0) for name in ("n", "confidence", "right"))
    return [(c / k, r / k, int(k)) for k, c, r in zip(n, confidence, right, strict=True) if k]
