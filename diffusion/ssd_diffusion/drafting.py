"""The transition between drafted tokens in numpy: what two tokens say about the next, from their embeddings alone.

The device's side of `ssd_diffusion.models.transition`, which it equals. It depends on token ids alone, so it is added
to rows that came over the wire as well as to the device's own. Knows nothing about windows or members.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from ssd_kernels.types import F32, I32

TRANSITION_FILE = "transition.npz"
HEAD_FILE = "head.npy"
_KEPT = 512
_erf = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True, slots=True)
class TransitionMaps:
    """Two layers over the embeddings of two tokens, read by the head.

    Attributes:
        table: input embeddings E; may be memory-mapped. [V, H]
        head: rows of the output head; the same array where the two are tied. [V, H]
        inner: weight of the first layer; the last token's half first. [W, 2 H]
        inner_bias: [W]
        outer: weight of the second. [H, W]
        kept: how many tokens of a row, the most probable, the transition is added to; the others can be no draft.
    """

    table: F32
    head: F32
    inner: F32
    inner_bias: F32
    outer: F32
    kept: int = _KEPT

    @staticmethod
    def of(model: Any) -> TransitionMaps:
        """The maps of a torch model (`ssd_diffusion.models.ssd2.Ssd2Model`) that has a transition, in float32."""
        parts = {name: value.detach().float().cpu().numpy() for name, value in model.transition.state_dict().items()}
        head = model.causal.get_output_embeddings().weight[: model.vocab]
        table, rows = (x.detach().float().cpu().numpy() for x in (model.table, head))
        return TransitionMaps(
            table=table, head=rows, inner=parts["inner.weight"], inner_bias=parts["inner.bias"],
            outer=parts["outer.weight"],
        )  # fmt: skip

    def hidden(self, before: I32) -> F32:
        """What is added to the last hidden state of the position. Args: the two tokens before it, oldest first. [H]"""
        older, last = (_unit(np.asarray(self.table[int(t)], np.float32)) for t in before)
        inner = self.inner @ np.concatenate([last, older]) + self.inner_bias
        found: F32 = (self.outer @ _gelu(inner)).astype(np.float32)
        return found

    def add(self, logp: F32, before: I32) -> F32:
        """The row with the transition's logits added, -inf where it was not among the most probable. [V]"""
        count = min(self.kept, len(logp))
        best = np.sort(np.argpartition(logp, -count)[-count:])  # in order, since the table may lie on disk
        out = np.full(len(logp), -np.inf, np.float32)
        out[best] = logp[best] + np.asarray(self.head[best], np.float32) @ self.hidden(before)
        return out


def _unit(x: F32) -> F32:
    return np.asarray(x / np.sqrt(np.mean(np.square(x)) + 1e-12), np.float32)


def _gelu(x: F32) -> F32:
    return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))), np.float32)
