"""Decoding several tokens a pass without changing one of them: drafts, checked by the pass that looks beyond them.

A pass holds the D drafts of the pass before as causal tokens. Its exact rows say what follows the context and each
prefix of the drafts, as a pass of one token would; from them the next tokens are chosen, and a draft stands for as long
as it is the token chosen. So a pass commits 1 to D + 1 tokens, and with the same keys the text is the one that D = 0
writes. Behind every prefix lie open positions at u = 1, which the diffusion model fills in parallel: they give the next
drafts, whichever prefix stands (compare blockwise parallel decoding, Stern et al., 2018, and TiDAR, 2025).

`leniency` lets more drafts stand: see `stands`. Knows nothing about models, text or the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from ssd_kernels.combine import entropy, log_softmax
from ssd_kernels.project import greedy, nucleus_mask, sample
from ssd_kernels.types import F32, I32, Bool, Purpose, TokenSets

from ssd_diffusion.ensemble import Ensemble
from ssd_diffusion.errors import InvalidStep
from ssd_diffusion.sampler import Decision, DecodeParams, StepEvent, cut_at_end, event
from ssd_diffusion.window import StepRecord, Window


class Drafter(Protocol):
    """Adds to the distribution of a drafted position what the tokens just before it say."""

    def add(self, logp: F32, before: I32) -> F32:
        """Log-probabilities, up to a constant, of one position. Args: logp [V]; the two tokens before, oldest first."""
        ...


@dataclass(frozen=True, slots=True)
class LookaheadState:
    """The drafts between passes, and what has been committed so far. Same calls as `WindowState`.

    Attributes:
        noise_key: of the session; nothing here is noised.
        width: most drafts of a pass.
        limit: number of answer positions in all.
        start: index of the first position that is not committed.
        step: number of the next pass.
        drafts: tokens drafted for the positions from `start` on. [D]
    """

    noise_key: int
    width: int
    limit: int
    start: int = 0
    step: int = 0
    drafts: I32 = field(default_factory=lambda: np.zeros(0, np.int32))

    @staticmethod
    def begin(*, noise_key: int, width: int, limit: int) -> LookaheadState:
        """The state before the first pass, which has no drafts.

        Raises:
            InvalidStep: width or limit is below its least value, 0 and 1.
        """
        if width < 0 or limit < 1:
            raise InvalidStep("looking ahead needs 0 drafts or more, and an answer of at least 1 token")
        return LookaheadState(noise_key=noise_key, width=width, limit=limit)

    @property
    def done(self) -> bool:
        """True when every position up to the limit is committed."""
        return self.start >= self.limit

    def window(self) -> Window:
        """What members see in the next pass."""
        count = len(self.drafts)
        ahead = max(0, min(self.width, self.limit - self.start - count - 1))
        return Window(
            start=self.start, step=self.step, block=0, noise_key=self.noise_key, drafts=count,
            u=np.concatenate([np.zeros(count), np.ones(ahead)]).astype(np.float32),
            w_hat=TokenSets(
                ids=self.drafts, offsets=np.minimum(np.arange(count + ahead + 1), count).astype(np.int32)
            ),
        )  # fmt: skip

    def advance(self, record: StepRecord) -> tuple[LookaheadState, I32]:
        """The state after a pass, and the token ids committed by it: the accepted ones; the others are the next drafts.

        Raises:
            InvalidStep: no token or more tokens than the pass can have given, or a draft neither stands nor ends it.
        """
        ids, taken = record.w_hat.ids, int(record.accepted.sum())
        if len(record.w_hat) != len(ids) or len(record.accepted) != len(ids) or not record.accepted[:taken].all():
            raise InvalidStep(
                "a pass that looks ahead commits its first tokens, one at a position, and drafts the rest"
            )
        if not 1 <= taken <= len(self.drafts) + 1:
            raise InvalidStep(f"the pass can commit 1 to {len(self.drafts) + 1} tokens, not {taken}")
        if (ids[: taken - 1] != self.drafts[: taken - 1]).any():
            raise InvalidStep("a token was committed behind a draft that did not stand")
        room = min(self.window().ahead, max(0, self.limit - self.start - taken - 1))
        if len(ids) - taken > room:
            raise InvalidStep(f"the pass can draft {room} tokens, not {len(ids) - taken}")
        after = replace(self, start=self.start + taken, step=self.step + 1, drafts=ids[taken:].copy())
        return after, ids[:taken].copy()


def choose(logp: F32, params: DecodeParams, *, draw_key: int, first: int, purpose: Purpose = Purpose.DRAW) -> I32:
    """One token for each row, greedy or drawn with the noise that a pass of one token has at that position.

    Args:
        logp: log-probabilities [n, V].
        params: projection, temperature and nucleus; a multi-hot projection draws, since a token is one token.
        draw_key: key of the draws.
        first: position of the first row.
        purpose: stream of the draws.
    """
    if params.projection == "greedy" or params.temperature == 0.0:
        return greedy(logp).ids
    found = [
        sample(
            logp[i : i + 1], top_p=params.top_p, temperature=params.temperature, draw_key=draw_key,
            positions=np.array([first + i], np.int32), step=first + i, block=0, purpose=purpose,
        ).ids
        for i in range(len(logp))
    ]  # fmt: skip
    return np.concatenate([*found, np.zeros(0, np.int32)]).astype(np.int32)


def stands(logp: F32, drafts: I32, chosen: I32, params: DecodeParams) -> Bool:
    """Which drafts may stay. [D]

    A draft stands where it is the token chosen. With leniency L > 0 it also stands where it lies in the nucleus and
    p(draft) >= (1 - L) max p, after temperature: at L = 1 the whole nucleus, which is a bound on quality and not the
    model's own distribution (compare the typical acceptance of Medusa, Cai et al., 2024).

    Args:
        logp: exact rows of the drafted positions. [D, V]
        drafts: drafted tokens. [D]
        chosen: tokens chosen at these positions. [D]
        params: temperature, nucleus and leniency.
    """
    same: Bool = np.asarray(drafts == chosen)
    if params.leniency == 0.0 or params.temperature == 0.0 or params.projection == "greedy" or same.all():
        return same
    rows = np.arange(len(drafts))
    near = (logp[rows, drafts] - logp.max(axis=-1)) / params.temperature >= np.log(max(1.0 - params.leniency, 1e-30))
    inside = nucleus_mask(logp, params.top_p, temperature=params.temperature)[rows, drafts]
    return np.asarray(same | (near & inside))


def draft(
    logp: F32, before: I32, params: DecodeParams, drafter: Drafter | None, *, draw_key: int, first: int
) -> I32:  # fmt: skip
    """Tokens for the open positions, one after the other, each drawn as `choose` will draw there. [n]

    Args:
        logp: fused log-probabilities of the positions. [n, V]
        before: the two tokens before the first of them, oldest first.
        params: as for `choose`.
        drafter: what the tokens before say; None: nothing.
        draw_key: key of the draws.
        first: position of the first row.
    """
    out: list[int] = []
    tokens = [int(t) for t in before]
    for i, row in enumerate(logp):
        scores = row if drafter is None else drafter.add(row, np.array(tokens[-2:], np.int32))
        token = int(choose(scores[None], params, draw_key=draw_key, first=first + i)[0])
        out.append(token)
        tokens.append(token)
    return np.array(out, np.int32)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tokens committed by a pass, and how many of them were drafts that stood."""

    tokens: I32
    stood: int


def settle(
    logp: F32, drafts: I32, params: DecodeParams, *, draw_key: int, first: int, purpose: Purpose = Purpose.DRAW
) -> Chosen:
    """The drafts that stand, and one more token.

    Args:
        logp: exact rows. [D + 1, V]
        drafts: [D]
        params, draw_key, first, purpose: see `choose`.
    """
    chosen = choose(logp, params, draw_key=draw_key, first=first, purpose=purpose)
    kept = stands(logp[:-1], drafts, chosen[:-1], params)
    stood = int(np.argmin(kept)) if not kept.all() else len(kept)
    return Chosen(np.append(drafts[:stood], chosen[stood]).astype(np.int32), stood)


def decode(
    ensemble: Ensemble, params: DecodeParams, last: I32, drafter: Drafter | None, *, noise_key: int, draw_key: int
) -> Iterator[StepEvent]:
    """Decode one answer with `params.drafts` drafts a pass; the last event carries the reason it ends.

    Args:
        ensemble: core and expert.
        params: how.
        last: the end of the context, at least one token; what the drafter reads before the answer.
        drafter: see `Drafter`; None: drafts come from the model's own rows alone.
        noise_key: of the session.
        draw_key: key of the draws.
    """
    state = LookaheadState.begin(noise_key=noise_key, width=params.drafts, limit=params.max_tokens)
    committed, before = np.zeros(0, np.int32), np.append(last[:1], last)[-2:].astype(np.int32)
    while True:
        window = state.window()
        step = ensemble.step(window, committed)
        found = settle(step.fused, state.drafts, params, draw_key=draw_key, first=state.start)
        before = np.append(before, found.tokens)[-2:]
        after = state.start + len(found.tokens)
        room = min(window.ahead, max(0, params.max_tokens - after - 1))
        drafts = np.zeros(0, np.int32)
        if room and not np.isin(found.tokens, params.eos_ids).any():
            ahead = step.ahead(found.stood)[:room]
            drafts = draft(ahead, before, params, drafter, draw_key=draw_key, first=after)
        decision = _decision(found, drafts, step.fused, params)
        state, committed = state.advance(decision.record)
        committed, finish = cut_at_end(committed, params, done=state.done)
        yield event(ensemble, step, window, decision, committed, finish)
        if finish is not None:
            return


def _decision(found: Chosen, drafts: I32, logp: F32, params: DecodeParams) -> Decision:
    """The decision over committed tokens and drafts; entropy and log-probability are those of the committed ones."""
    count, rows = len(found.tokens), np.arange(len(found.tokens))
    tempered = logp[:count]
    if params.temperature not in (0.0, 1.0):
        tempered = log_softmax(tempered / params.temperature)
    ids = np.append(found.tokens, drafts).astype(np.int32)
    spread, chosen = np.zeros(len(ids)), np.zeros(len(ids))
    spread[:count], chosen[:count] = entropy(tempered), logp[rows, found.tokens]
    record = StepRecord(TokenSets.single(ids), np.arange(len(ids)) < count)
    return Decision(record, ids, spread, chosen)
