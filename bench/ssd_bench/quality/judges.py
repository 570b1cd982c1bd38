"""Judges of generated text: what a continuation costs, in nats, under models that did not write it.

An autoregressive judge is any decoder of the SSD-2 family read as plain next-token model, in float32; the n-gram judge
has never seen a neural network. Knows ids only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training.evaluate import next_token_losses
from ssd_kernels.types import F64, I32

from ssd_bench.kneser_ney import KneserNey

BATCH = 16


class Judge(Protocol):
    """Reads texts."""

    def nats(self, contexts: Sequence[I32], texts: Sequence[I32]) -> F64:
        """Minus the log-probability of each text after its context, all its tokens together. [n]"""
        ...


class AutoregressiveJudge:
    """A decoder's own next-token likelihood.

    Args:
        model: in float32.
    """

    def __init__(self, model: Ssd2Model) -> None:
        self._model = model

    def nats(self, contexts: Sequence[I32], texts: Sequence[I32]) -> F64:
        """See `Judge`; rows of one length share a pass, no padding."""
        out = np.zeros(len(texts))
        rows = [np.concatenate(pair).astype(np.int64) for pair in zip(contexts, texts, strict=True)]
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        while by_length:
            length = len(rows[by_length[0]])
            batch = [i for i in by_length[:BATCH] if len(rows[i]) == length]
            by_length = by_length[len(batch) :]
            losses = next_token_losses(self._model, torch.from_numpy(np.stack([rows[i] for i in batch])))
            for i, row in zip(batch, losses.double().numpy(), strict=True):
                out[i] = row[len(contexts[i]) - 1 :].sum()
        return out


class NgramJudge:
    """An n-gram model's likelihood.

    Args:
        model: counted on text that holds neither prompts nor their continuations.
    """

    def __init__(self, model: KneserNey) -> None:
        self._model = model

    def nats(self, contexts: Sequence[I32], texts: Sequence[I32]) -> F64:
        """See `Judge`."""
        pairs = zip(contexts, texts, strict=True)
        return np.array([
            -self._model.logp(text.astype(np.int64), context=context.astype(np.int64)).sum() for context, text in pairs
        ])  # fmt: skip
