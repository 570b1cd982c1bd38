"""The window of open positions and how it moves: the one rule that device and node share.

A window is B positions after the committed text. Every position has its own level on the step grid: it enters at
level 0 (u = 1, pure noise), goes one level down each pass while it is open (and stays on the last level), and is clean
(u = 0) once it is accepted. The accepted prefix is committed and the window slides. Both sides of the wire call
`advance` with the same `w_hat` and `accepted`, so neither sends noise levels.

Knows nothing about models, logits, randomness or the wire.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
from ssd_kernels.types import F32, I32, Bool, TokenSets

from ssd_diffusion.errors import InvalidStep


def check_grid(grid: tuple[float, ...], block: int, limit: int) -> None:
    """Refuse a grid that does not fall strictly from 1, or an empty block or answer.

    Raises:
        InvalidStep: one of these.
    """
    falls = all(b < a for a, b in itertools.pairwise(grid))
    if not grid or abs(grid[0] - 1.0) > 1e-6 or not grid[-1] > 0 or not falls:
        raise InvalidStep("the step grid must start at 1 and fall strictly towards 0")
    if block < 1 or limit < 1:
        raise InvalidStep("the block and the number of tokens must be at least 1")


@dataclass(frozen=True, slots=True)
class Window:
    """What a member needs for one pass.

    Attributes:
        start: index of the first open position, counted from the end of the prompt (0 = first token of the answer).
        step: number of the pass since the session began; a counter word of the noise.
        block: block number, 0 for a sliding window; a counter word of the noise.
        u: noise level per position [B] in [0, 1]; 0 = accepted (clean), 1 = pure noise.
        w_hat: the estimate per position; one id where accepted, none where u == 1.
        noise_key: key of the shared noise.
        parents: None for a window whose positions read one another. Else the pass looks ahead (`lookahead`): the
            leading positions hold drafts, each read behind its parent (`draft_tree`), and the others are open after
            the committed text and after each draft. [D]
    """

    start: int
    step: int
    block: int
    u: F32
    w_hat: TokenSets
    noise_key: int
    parents: I32 | None = None

    @property
    def drafts(self) -> int | None:
        """Number D of drafts; None for a window that does not look ahead."""
        return None if self.parents is None else len(self.parents)

    @property
    def exact(self) -> int:
        """Rows of logits of which the next tokens are chosen: B, or those after the text and after each draft."""
        return len(self.u) if self.drafts is None else self.drafts + 1

    @property
    def ahead(self) -> int:
        """Open positions after the text and after each draft; 0 for a window that does not look ahead."""
        return 0 if self.parents is None else len(self.u) - len(self.parents)

    @property
    def rows(self) -> int:
        """Rows of logits of the pass: the exact ones, then those ahead, after the text and after each draft."""
        return self.exact * (1 + self.ahead)

    def exact_only(self) -> Window:
        """The same pass for a member that does not draft: without the positions ahead."""
        if self.parents is None:
            return self
        drafts = len(self.parents)
        sets = TokenSets(ids=self.w_hat.ids, offsets=self.w_hat.offsets[: drafts + 1])
        return replace(self, u=self.u[:drafts], w_hat=sets)

    @property
    def positions(self) -> I32:
        """Answer indices of the B positions: the position word of the noise counter. [B]"""
        return np.arange(self.start, self.start + len(self.u), dtype=np.int32)

    @property
    def accepted(self) -> Bool:
        """Which positions are clean. [B]"""
        return np.asarray(self.u == 0.0)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What was decided after one pass: enough, with the key and grid, to rebuild the session.

    Attributes:
        w_hat: the estimate for the B positions of that pass (accepted ones repeat their id).
        accepted: positions that are clean from now on, earlier accepted ones included. [B]
        parents: looking ahead, which draft each draft behind the committed tokens follows (`draft_tree`); None: each
            the one before it.
    """

    w_hat: TokenSets
    accepted: Bool
    parents: I32 | None = None


@dataclass(frozen=True, slots=True)
class WindowState:
    """The window between passes: levels, estimates, and what has been committed so far.

    Attributes:
        grid: noise levels u from 1.0 downwards, all > 0.
        noise_key: key of the shared noise.
        start: index of the first open position.
        step: number of the next pass.
        level: index into `grid` per position [B]; -1 = accepted.
        w_hat: current estimate.
        limit: number of answer positions in all; positions at or past it do not exist (the window shrinks at the end).
    """

    grid: tuple[float, ...]
    noise_key: int
    block: int
    limit: int
    start: int = 0
    step: int = 0
    level: I32 = field(default_factory=lambda: np.zeros(0, np.int32))
    w_hat: TokenSets = field(default_factory=lambda: TokenSets.empty(0))

    @staticmethod
    def begin(*, grid: tuple[float, ...], noise_key: int, block: int, limit: int) -> WindowState:
        """The state before the first pass: min(block, limit) positions of pure noise.

        Raises:
            InvalidStep: the grid does not start at 1 or does not fall strictly, or block or limit is below 1.
        """
        check_grid(grid, block, limit)
        b = min(block, limit)
        return WindowState(
            grid=(1.0, *grid[1:]), noise_key=noise_key, block=block, limit=limit,
            level=np.zeros(b, np.int32), w_hat=TokenSets.empty(b),
        )  # fmt: skip

    @property
    def done(self) -> bool:
        """True when every position up to the limit is committed."""
        return self.start >= self.limit

    def window(self) -> Window:
        """What members see in the next pass."""
        levels = np.asarray((*self.grid, 0.0), dtype=np.float32)
        return Window(
            start=self.start, step=self.step, block=0, u=levels[self.level], w_hat=self.w_hat, noise_key=self.noise_key
        )

    def advance(self, record: StepRecord) -> tuple[WindowState, I32]:
        """The state after a pass, and the token ids committed by it.

        Raises:
            InvalidStep: sizes differ from the window, an accepted position was given up or changed or has not exactly
                one id, or an open position has none.
        """
        accepted, sets = record.accepted, record.w_hat
        self._check(accepted, sets)
        taken = int(np.argmin(accepted)) if not accepted.all() else len(accepted)
        committed = sets.ids[: sets.offsets[taken]].copy()
        start = self.start + taken
        kept = len(accepted) - taken
        b = min(self.block, self.limit - start)
        level = np.zeros(b, np.int32)
        moved = np.minimum(self.level[taken:] + 1, len(self.grid) - 1)
        level[:kept] = np.where(accepted[taken:], -1, moved)
        rows = [sets.row(taken + i) if level[i] != 0 else sets.ids[:0] for i in range(kept)]
        counts = [len(r) for r in rows] + [0] * (b - kept)
        w_hat = TokenSets(
            ids=np.concatenate([*rows, sets.ids[:0]]).astype(np.int32),
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
        )
        state = WindowState(
            grid=self.grid, noise_key=self.noise_key, block=self.block, limit=self.limit,
            start=start, step=self.step + 1, level=level, w_hat=w_hat,
        )  # fmt: skip
        return state, committed

    def _check(self, accepted: Bool, sets: TokenSets) -> None:
        b = len(self.level)
        if len(accepted) != b or len(sets) != b:
            raise InvalidStep(f"the step has {len(sets)} estimates and {len(accepted)} flags for {b} open positions")
        counts = np.diff(sets.offsets)
        if (counts < 1).any() or (counts[accepted] != 1).any():
            raise InvalidStep("every open position needs an estimate, and an accepted one exactly one token")
        for i in np.flatnonzero(self.level < 0):
            if not accepted[i] or sets.row(int(i))[0] != self.w_hat.row(int(i))[0]:
                raise InvalidStep("an accepted position was given up or changed")
