"""Values that every kernel shares: token sets (`w_hat`), noise purposes, array aliases.

Knows nothing about models, sessions or sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

F32: TypeAlias = NDArray[np.float32]
F64: TypeAlias = NDArray[np.float64]
I32: TypeAlias = NDArray[np.int32]
I64: TypeAlias = NDArray[np.int64]
Bool: TypeAlias = NDArray[np.bool_]


class Purpose(IntEnum):
    """What a Philox stream is used for; the top byte of the fourth counter word."""

    NOISE = 0
    DRAW = 1
    CORE_DRAW = 2
    TRAIN = 3


@dataclass(frozen=True, slots=True, eq=False)
class TokenSets:
    """One set of token ids per position, in compressed-row form: the projection `w_hat`.

    Position i holds `ids[offsets[i]:offsets[i + 1]]`, ascending. One id per position for sampling and greedy, the whole
    nucleus for multi-hot, none where nothing has been estimated yet (noise level u = 1).
    """

    ids: I32
    offsets: I32

    @staticmethod
    def single(ids: I32) -> TokenSets:
        """One id per position, from an array [B]."""
        ids = np.ascontiguousarray(ids, dtype=np.int32)
        return TokenSets(ids=ids, offsets=np.arange(len(ids) + 1, dtype=np.int32))

    @staticmethod
    def empty(b: int) -> TokenSets:
        """No id at any of b positions."""
        return TokenSets(ids=np.zeros(0, np.int32), offsets=np.zeros(b + 1, np.int32))

    @staticmethod
    def of(rows: list[list[int]]) -> TokenSets:
        """From a list of id lists, one per position; sorted here."""
        ids = np.array([t for row in rows for t in sorted(row)], dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int32)
        return TokenSets(ids=ids, offsets=offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> I32:
        """The ids at position i."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def rows(self) -> list[list[int]]:
        """All positions as lists."""
        return [self.row(i).tolist() for i in range(len(self))]

    def same(self, other: TokenSets) -> bool:
        """True when both hold the same ids at every position."""
        return bool(np.array_equal(self.ids, other.ids) and np.array_equal(self.offsets, other.offsets))
