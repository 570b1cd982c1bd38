"""SSD-LM's own decoding, as its paper has it: fixed blocks, one noise level for the whole block, no acceptance.

    x <- K N(0, I);  for t = T .. 1:  logits = f(context, softmax(x), t/T);  w_hat = project(logits);
    x <- sqrt(alpha_bar_{t-1}) w_hat + sqrt(1 - alpha_bar_{t-1}) K z,  z fresh

(Han, Kumar, Tsvetkov, ACL 2023, section 3). T of decoding redefines the whole schedule: the grid is t/T, uniform. The
reference beside the sliding window of `sampler`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from ssd_kernels.combine import entropy
from ssd_kernels.project import greedy
from ssd_kernels.types import F32, I32, Purpose, TokenSets

from ssd_diffusion.ensemble import Ensemble
from ssd_diffusion.errors import InvalidStep
from ssd_diffusion.sampler import Decision, DecodeParams, StepEvent, cut_at_end, event, project
from ssd_diffusion.window import StepRecord, Window, check_grid

FinalTokens = Literal["argmax-logits", "argmax-x0"]


@dataclass(frozen=True, slots=True)
class BlockState:
    """A fixed block between passes. Same calls as `WindowState`.

    Attributes:
        grid: noise levels of one block, from 1.0 downwards; one pass each.
        noise_key: key of the shared noise.
        block: B; the last block is shorter when `limit` asks for it.
        limit: number of answer positions in all.
        start: index of the block's first position.
        step: number of the next pass since the session began.
        level: index into the grid of the next pass.
        w_hat: estimate of the pass before; none at level 0.
    """

    grid: tuple[float, ...]
    noise_key: int
    block: int
    limit: int
    start: int = 0
    step: int = 0
    level: int = 0
    w_hat: TokenSets = field(default_factory=lambda: TokenSets.empty(0))

    @staticmethod
    def begin(*, grid: tuple[float, ...], noise_key: int, block: int, limit: int) -> BlockState:
        """The state before the first pass.

        Raises:
            InvalidStep: the grid does not start at 1 or does not fall strictly, or block or limit is below 1.
        """
        check_grid(grid, block, limit)
        return BlockState((1.0, *grid[1:]), noise_key, block, limit, w_hat=TokenSets.empty(min(block, limit)))

    @property
    def size(self) -> int:
        """Positions of the block at hand."""
        return min(self.block, self.limit - self.start)

    @property
    def last_pass(self) -> bool:
        """True when the next pass is the block's last."""
        return self.level == len(self.grid) - 1

    @property
    def done(self) -> bool:
        """True when every position up to the limit is committed."""
        return self.start >= self.limit

    def window(self) -> Window:
        """What members see in the next pass."""
        u = np.full(self.size, self.grid[self.level], np.float32)
        return Window(self.start, self.step, self.start // self.block, u, self.w_hat, self.noise_key)

    def advance(self, record: StepRecord) -> tuple[BlockState, I32]:
        """The state after a pass, and the token ids committed by it (none, or the whole block after its last pass).

        Raises:
            InvalidStep: sizes differ, a position has no estimate, or positions are accepted but by the last pass.
        """
        counts = np.diff(record.w_hat.offsets)
        if len(record.accepted) != self.size or len(counts) != self.size or (counts < 1).any():
            raise InvalidStep(f"the step needs an estimate for each of the block's {self.size} positions")
        if bool(record.accepted.all()) != self.last_pass or record.accepted.any() != self.last_pass:
            raise InvalidStep("a fixed block is accepted as a whole, after its last pass")
        if not self.last_pass:
            return replace(self, step=self.step + 1, level=self.level + 1, w_hat=record.w_hat), np.zeros(0, np.int32)
        if (counts != 1).any():
            raise InvalidStep("an accepted position needs exactly one token")
        start = self.start + self.size
        empty = TokenSets.empty(max(0, min(self.block, self.limit - start)))
        return replace(self, start=start, step=self.step + 1, level=0, w_hat=empty), record.w_hat.ids.copy()


def decide_block(
    logp: F32,
    state: BlockState,
    params: DecodeParams,
    *,
    draw_key: int,
    purpose: Purpose = Purpose.DRAW,
    final: FinalTokens = "argmax-logits",
) -> Decision:
    """Project every position; after the block's last pass its tokens are final.

    `final` chooses them: the argmax of the last logits (the released code), or the argmax of x_0, which is the last
    projection itself (the paper). With a multi-hot projection x_0 has several maxima; the most probable is taken.
    """
    window = state.window()
    rows = np.arange(state.size, dtype=np.int32)
    sets = project(logp, params, draw_key=draw_key, window=window, rows=rows, purpose=purpose)
    best = np.argmax(logp, axis=-1).astype(np.int32)
    if state.last_pass and (final == "argmax-logits" or params.projection == "multi-hot"):
        sets = greedy(logp)
    accepted = np.full(state.size, state.last_pass)
    single = np.diff(sets.offsets) == 1
    estimate = np.where(single, sets.ids[sets.offsets[:-1]], best).astype(np.int32)
    chosen = logp[rows, estimate].astype(np.float64)
    return Decision(StepRecord(sets, accepted), estimate, entropy(logp).astype(np.float64), chosen)


def decode_blocks(
    ensemble: Ensemble, params: DecodeParams, *, noise_key: int, draw_key: int, final: FinalTokens = "argmax-logits"
) -> Iterator[StepEvent]:
    """Decode one answer block by block, yielding every pass; the last event carries the reason it ends."""
    state = BlockState.begin(grid=params.grid, noise_key=noise_key, block=params.block, limit=params.max_tokens)
    committed = np.zeros(0, np.int32)
    while True:
        window = state.window()
        step = ensemble.step(window, committed)
        decision = decide_block(step.fused, state, params, draw_key=draw_key, final=final)
        state, committed = state.advance(decision.record)
        committed, finish = cut_at_end(committed, params, done=state.done)
        yield event(ensemble, step, window, decision, committed, finish)
        if finish is not None:
            return
