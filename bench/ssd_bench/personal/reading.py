"""What a model thinks of true tokens: logits at every place, read in one pass over the clean text and its windows.

    next   the clean half's own next-token logits: the autoregressive twin
    s1     the first open position before every token, all else hidden: the chain rule
    s2     whole blocks under noise, at some levels: denoising

The noise depends on the seed and the target alone, so that models and contexts read the same. Knows nothing about
documents, ensembles or statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training.data import Batch
from ssd_diffusion.training.objective import block_hidden, first_input, hidden_states
from ssd_kernels.types import F32, I32, I64
from torch import Tensor

from ssd_bench.quality.denoising import BLOCK

Measure: TypeAlias = Literal["s1", "next", "s2"]
MEASURES: tuple[Measure, ...] = ("s1", "next", "s2")
LEVELS = (0.55, 0.85)
"""Of S2: the middles of the halves of its band [.4, 1]."""


@dataclass(frozen=True, eq=False)
class Reading:
    """A model before the tokens of a target, after a context.

    Attributes:
        model: in evaluation mode.
        context: clean ids before. [m]
        target: the true ids; whole blocks of BLOCK for `s2`. [n]
        seed: of the noise.
    """

    model: Ssd2Model
    context: I32
    target: I32
    seed: int = 0

    def logits(self, measure: Measure) -> Tensor:
        """[n, V], for s2 level after level: [len(LEVELS) n, V]"""
        if measure == "s2":
            return self._noisy
        return self._chain[0] if measure == "s1" else self._chain[1]

    @cached_property
    def _chain(self) -> tuple[Tensor, Tensor]:
        first = len(self.context)
        starts = np.arange(first, first + len(self.target))
        tokens = np.concatenate([self.context, self.target])
        u = np.ones((len(starts), 1), np.float32)
        rows, clean = window_logits(self.model, tokens, starts, u, seed=self.seed, clean=slice(first - 1, -1))
        return rows[:, 0], clean

    @cached_property
    def _noisy(self) -> Tensor:
        first, blocks = len(self.context), len(self.target) // BLOCK
        starts = np.tile(first + BLOCK * np.arange(blocks), len(LEVELS))
        u = np.repeat(np.array(LEVELS, np.float32), blocks)[:, None] * np.ones((1, BLOCK), np.float32)
        tokens = np.concatenate([self.context, self.target])
        rows, _ = window_logits(self.model, tokens, starts, u, seed=self.seed, clean=slice(0, 0))
        return rows.flatten(0, 1)


def truth(target: I32, measure: Measure) -> I32:
    """The true id of every row of `Reading.logits`."""
    return np.tile(target[: BLOCK * (len(target) // BLOCK)], len(LEVELS)) if measure == "s2" else target


@torch.inference_mode()
def window_logits(
    model: Ssd2Model, tokens: I32, starts: I64, u: F32, *, seed: int, clean: slice
) -> tuple[Tensor, Tensor]:
    """Logits of windows that all lie over one clean text, and of the clean text itself, in one pass.

    Args:
        model: in evaluation mode.
        tokens: the clean ids. [n]
        starts: first position of every window, at least 1. [N]
        u: noise levels; windows reach to the end of the text at most. [N, B]
        seed: of the noise.
        clean: the clean tokens whose next-token logits are wanted.

    Returns:
        Of the windows [N, B, V], and next-token logits after the wanted clean tokens [m, V].
    """
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    batch = Batch(ids, torch.from_numpy(starts)[None], torch.ones_like(ids) > 0, u.shape[1])
    noisy = first_input(model, batch, torch.from_numpy(u)[None], torch.Generator().manual_seed(seed))
    hidden = hidden_states(model, batch, noisy)
    return model.logits(block_hidden(batch, hidden)[0]), model.logits(hidden[0, : len(tokens)][clean])
