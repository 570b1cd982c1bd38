"""Drafts as a tree: tokens that may come next, each behind the committed text or behind another draft.

A path from the committed text to a draft is a prefix of what may be written, so several guesses at one position are
checked by the same pass (compare SpecInfer, Miao et al., 2024, and Medusa, Cai et al., 2024). Knows nothing about
models, probabilities or the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from ssd_kernels.types import I32, Bool

from ssd_diffusion.errors import InvalidStep

ROOT = -1


def _none() -> I32:
    return np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class DraftTree:
    """Drafts, every one behind the one it follows.

    Attributes:
        tokens: of each draft. [D]
        parents: which draft each one follows; ROOT, -1, where it follows the committed text. [D]

    Raises:
        InvalidStep: sizes differ, a draft comes before the one it follows, or two that follow one are the same token.
    """

    tokens: I32 = field(default_factory=_none)
    parents: I32 = field(default_factory=_none)

    def __post_init__(self) -> None:
        if self.tokens.shape != self.parents.shape or self.tokens.ndim != 1:
            raise InvalidStep(f"{len(self.tokens)} drafts need as many parents, not {len(self.parents)}")
        if (self.parents < ROOT).any() or (self.parents >= np.arange(len(self.parents))).any():
            raise InvalidStep("a draft must stand behind an earlier draft or behind the committed text")
        if len(set(zip(self.parents.tolist(), self.tokens.tolist(), strict=True))) < len(self):
            raise InvalidStep("two drafts with the same text before them must be different tokens")

    @staticmethod
    def chain(tokens: I32) -> DraftTree:
        """Every draft behind the one before it."""
        return DraftTree(np.asarray(tokens, np.int32), np.arange(-1, len(tokens) - 1, dtype=np.int32))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depths(self) -> I32:
        """How many drafts stand before each draft. [D]"""
        return depths(self.parents)

    @property
    def height(self) -> int:
        """Drafts on the longest path."""
        return int(self.depths.max(initial=-1)) + 1

    def after(self, draft: int) -> I32:
        """The drafts that follow a draft, or the committed text (ROOT)."""
        return np.flatnonzero(self.parents == draft).astype(np.int32)

    def step(self, draft: int, token: int) -> int | None:
        """The draft of that token behind a draft (or ROOT), if there is one."""
        found = [int(child) for child in self.after(draft) if int(self.tokens[child]) == token]
        return found[0] if found else None


def depths(parents: I32) -> I32:
    """How many drafts stand before each draft. [D]"""
    out = np.zeros(len(parents), np.int32)
    for i, parent in enumerate(parents.tolist()):
        out[i] = 0 if parent == ROOT else out[parent] + 1
    return out


def lineage(parents: I32) -> Bool:
    """Which drafts lie on the path to each draft, itself included: row i is the path to draft i. [D, D]"""
    out = np.eye(len(parents), dtype=np.bool_)
    for i, parent in enumerate(parents.tolist()):
        if parent != ROOT:
            out[i] |= out[parent]
    return out
