"""Decoding with the sliding window: estimate, accept what is certain, slide (diffusion.md, section 2b).

Each pass the ensemble gives a distribution for every open position; `decide` projects it to `w_hat` and accepts the
leftmost open position and whatever else the entropy budget allows; `WindowState.advance` moves the window. With an
adapter that has learned nothing this is exactly the autoregressive base, one token a pass. Knows nothing about text or
the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ssd_kernels.combine import entropy, log_softmax
from ssd_kernels.project import greedy, multi_hot, sample
from ssd_kernels.types import F32, F64, I32, Bool, Purpose, TokenSets

from ssd_diffusion.ensemble import Ensemble, EnsembleStep
from ssd_diffusion.errors import InvalidStep
from ssd_diffusion.window import StepRecord, Window, WindowState

ProjectionKind = Literal["sample", "greedy", "multi-hot"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeParams:
    """How an answer is decoded.

    Attributes:
        block: open positions B of the window.
        grid: noise levels u from 1.0 downwards.
        max_tokens: most tokens of the answer.
        projection: how w_hat is chosen.
        temperature: softmax temperature; 0 is greedy.
        top_p: nucleus mass in (0, 1].
        entropy_budget: nats of entropy that one pass may accept beyond its leftmost open position.
        eos_ids: tokens that end the answer.
        stable_passes: early exit: accept a position whose most probable token stood for so many passes ...
        stable_entropy: ... and whose entropy is at most this (nats). 0 passes: off.
        drafts: look ahead, with so many drafts a pass (`lookahead`); it has a window of its own and one noise level.
        depth: most drafts one behind the other.
        leniency: which drafts may stand beside the token chosen, see `lookahead.stands`; 0: none.
    """

    block: int = 16
    grid: tuple[float, ...] = (1.0, 0.6, 0.5, 0.4, 0.3, 0.2)
    max_tokens: int = 128
    projection: ProjectionKind = "sample"
    temperature: float = 1.0
    top_p: float = 0.9
    entropy_budget: float = 0.1
    eos_ids: tuple[int, ...] = ()
    stable_passes: int = 0
    stable_entropy: float = 0.1
    drafts: int = 0
    depth: int = 3
    leniency: float = 0.0

    def __post_init__(self) -> None:
        if self.block < 1 or self.max_tokens < 1:
            raise InvalidStep("the block and the number of tokens must be at least 1")
        if not self.grid:
            raise InvalidStep("the number of steps must be at least 1")
        if not 0.0 <= self.temperature < float("inf"):
            raise InvalidStep(f"the temperature must be 0 or more, not {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise InvalidStep(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if not self.entropy_budget >= 0.0:
            raise InvalidStep(f"the entropy budget must be 0 or more, not {self.entropy_budget}")
        if self.drafts < 0:
            raise InvalidStep(f"the number of drafts must be 0 or more, not {self.drafts}")
        if self.depth < 1:
            raise InvalidStep(f"the drafts one behind the other must be 1 or more, not {self.depth}")
        if not 0.0 <= self.leniency <= 1.0:
            raise InvalidStep(f"the leniency must lie between 0 and 1, not {self.leniency}")


@dataclass(frozen=True, slots=True)
class Decision:
    """What one pass decided.

    Attributes:
        record: estimate and accepted positions, as the other side must know them.
        estimate: one token id per position, for people to look at. [B]
        entropy: nats per position of the tempered distribution; 0 where accepted before. [B]
        logp: fused log-probability of the estimate per position. [B]
    """

    record: StepRecord
    estimate: I32
    entropy: F64
    logp: F64


@dataclass(frozen=True, slots=True)
class StepEvent:
    """One pass, for whoever watches an answer form.

    Attributes:
        window: what the members saw.
        decision: what was decided.
        committed: token ids that became final in this pass, in order.
        core_share: the core's share in each committed token, see `Ensemble.shares`. [len(committed)]
        core_asked: True when the core computed in this pass.
        finish: why the answer ends with this pass, or None.
        fused: log-probabilities of the exact rows [window.exact, V] (not kept by the sampler).
    """

    window: Window
    decision: Decision
    committed: I32
    core_share: F64
    core_asked: bool
    finish: FinishReason | None
    fused: F32


def project(
    logp: F32, params: DecodeParams, *, draw_key: int, window: Window, rows: I32, purpose: Purpose
) -> TokenSets:
    """w_hat of the given rows of a window by the projection of `params`; logp is [len(rows), V]."""
    if params.projection == "greedy" or params.temperature == 0.0:
        return greedy(logp)
    if params.projection == "multi-hot":
        return multi_hot(logp, top_p=params.top_p, temperature=params.temperature)
    return sample(
        logp,
        top_p=params.top_p,
        temperature=params.temperature,
        draw_key=draw_key,
        positions=window.positions[rows],
        step=window.step,
        block=window.block,
        purpose=purpose,
    )


def decide(
    logp: F32,
    state: WindowState,
    params: DecodeParams,
    *,
    draw_key: int,
    purpose: Purpose = Purpose.DRAW,
    settled: Bool | None = None,
) -> Decision:
    """Project the open positions and accept what is certain: the leftmost always, others within the entropy budget.

    Args:
        logp: fused log-probabilities [B, V]; rows of accepted positions are not read.
        state: the window before this pass.
        params: how to decode.
        draw_key: key of the projection's draws.
        purpose: which stream of draws (the device's or, in one-way, the core's).
        settled: early exit: positions to accept in any case. [B]
    """
    window = state.window()
    rows = np.flatnonzero(~window.accepted).astype(np.int32)
    open_logp = logp[rows]
    tempered = log_softmax(open_logp / params.temperature) if params.temperature not in (0.0, 1.0) else open_logp
    nats = entropy(tempered).astype(np.float64)
    taken = _within_budget(nats, params.entropy_budget)
    if settled is not None:
        taken |= settled[rows]
    sets = project(open_logp, params, draw_key=draw_key, window=window, rows=rows, purpose=purpose)
    if params.projection == "multi-hot":
        sets = _single_where(sets, taken, open_logp, params, draw_key, window, rows, purpose)
    return _decision(window, rows, sets, taken, nats, open_logp)


def denoise(ensemble: Ensemble, params: DecodeParams, *, noise_key: int, draw_key: int) -> Iterator[StepEvent]:
    """Decode one answer, yielding every pass; the last event carries the reason it ends."""
    state = WindowState.begin(grid=params.grid, noise_key=noise_key, block=params.block, limit=params.max_tokens)
    committed = np.zeros(0, np.int32)
    watch = _Stability(params)
    while True:
        window = state.window()
        step = ensemble.step(window, committed)
        decision = decide(step.fused, state, params, draw_key=draw_key, settled=watch.settled(window, step.fused))
        state, committed = state.advance(decision.record)
        committed, finish = cut_at_end(committed, params, done=state.done)
        yield event(ensemble, step, window, decision, committed, finish)
        if finish is not None:
            return


def cut_at_end(committed: I32, params: DecodeParams, *, done: bool) -> tuple[I32, FinishReason | None]:
    """Committed tokens up to and including the first that ends the answer, and the reason to end, if any."""
    ends = np.flatnonzero(np.isin(committed, params.eos_ids))
    if len(ends):
        return committed[: ends[0] + 1], "stop"
    return committed, "length" if done else None


def event(
    ensemble: Ensemble,
    step: EnsembleStep,
    window: Window,
    decision: Decision,
    committed: I32,
    finish: FinishReason | None,
    *,
    rows: I32 | None = None,
) -> StepEvent:
    """The event of one pass; committed tokens come from the first rows of the window where `rows` says no other."""
    shares = ensemble.shares(step, np.arange(len(committed), dtype=np.int32) if rows is None else rows, committed)
    return StepEvent(
        window=window, decision=decision, committed=committed, core_share=shares,
        core_asked=step.core_asked, finish=finish, fused=step.fused,
    )  # fmt: skip


def _within_budget(nats: F64, budget: float) -> Bool:
    """The leftmost position, and others from the most certain on while their entropies sum to at most the budget."""
    taken = np.zeros(len(nats), np.bool_)
    taken[0] = True
    order = 1 + np.argsort(nats[1:], kind="stable")
    taken[order[np.cumsum(nats[order]) <= budget]] = True
    return taken


def _single_where(
    sets: TokenSets,
    taken: Bool,
    logp: F32,
    params: DecodeParams,
    draw_key: int,
    window: Window,
    rows: I32,
    purpose: Purpose,
) -> TokenSets:
    """Multi-hot sets with one drawn token at accepted positions: a clean position is one token."""
    drawn = sample(
        logp, top_p=params.top_p, temperature=params.temperature, draw_key=draw_key,
        positions=window.positions[rows], step=window.step, block=window.block, purpose=purpose,
    )  # fmt: skip
    return TokenSets.of([(drawn if taken[i] else sets).row(i).tolist() for i in range(len(sets))])


def _decision(window: Window, rows: I32, sets: TokenSets, taken: Bool, nats: F64, logp: F32) -> Decision:
    b = len(window.u)
    all_rows: list[list[int]] = window.w_hat.rows()
    for i, row in enumerate(rows):
        all_rows[row] = sets.row(i).tolist()
    accepted = window.accepted.copy()
    accepted[rows[taken]] = True
    best = np.argmax(logp, axis=-1)
    estimate = np.array([r[0] if len(r) == 1 else -1 for r in all_rows], dtype=np.int32)
    estimate[rows] = np.where(np.diff(sets.offsets) == 1, sets.ids[sets.offsets[:-1]], best)
    spread, chosen = np.zeros(b), np.zeros(b)
    spread[rows] = nats
    chosen[rows] = logp[np.arange(len(rows)), estimate[rows]]
    return Decision(StepRecord(TokenSets.of(all_rows), accepted), estimate, spread, chosen)


class _Stability:
    """Counts for how many passes the most probable token of each position has stood still."""

    def __init__(self, params: DecodeParams) -> None:
        self._params = params
        self._stood: dict[int, tuple[int, int]] = {}  # position -> (token, passes)

    def settled(self, window: Window, logp: F32) -> Bool:
        """Positions that may be accepted now (early exit). [B]"""
        out = np.zeros(len(window.u), np.bool_)
        if self._params.stable_passes == 0:
            return out
        rows = np.flatnonzero(~window.accepted)
        calm = entropy(logp[rows]) <= self._params.stable_entropy
        best = np.argmax(logp[rows], axis=-1)
        stood: dict[int, tuple[int, int]] = {}
        for row, token, still in zip(rows.tolist(), best.tolist(), calm.tolist(), strict=True):
            position = window.start + row
            before, passes = self._stood.get(position, (-1, 0))
            passes = passes + 1 if before == token else 0
            stood[position] = (token, passes)
            out[row] = still and passes >= self._params.stable_passes
        self._stood = stood
        return out
