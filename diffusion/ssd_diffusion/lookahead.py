"""Decoding several tokens a pass without changing one of them: drafts, checked by the pass that looks beyond them.

A pass holds the drafts of the pass before, a tree of tokens that may come (`draft_tree`), each read causally behind its
own path. Its exact rows say what follows the committed text and each draft, as a pass of one token would; from them
the next tokens are chosen, and a draft stands where it is the token chosen. So a pass commits the drafts of one path
and one token more, and with the same keys the text is the one that is written without drafts. Behind the text and
behind every draft lie open positions at u = 1, which the diffusion model fills in parallel: they give the next drafts,
whichever draft is the last to stand (compare blockwise parallel decoding, Stern et al., 2018, and TiDAR, 2025).

`leniency` lets more drafts stand: see `stands`. Knows nothing about models, text or the wire.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from ssd_kernels.combine import entropy, log_softmax
from ssd_kernels.noise import gumbels_at
from ssd_kernels.project import greedy, nucleus_mask, sample
from ssd_kernels.types import F32, F64, I32, Bool, Purpose, TokenSets

from ssd_diffusion.draft_tree import ROOT, DraftTree
from ssd_diffusion.ensemble import Ensemble
from ssd_diffusion.errors import InvalidStep
from ssd_diffusion.sampler import Decision, DecodeParams, StepEvent, cut_at_end, event
from ssd_diffusion.window import StepRecord, Window

_CANDIDATES = 64
"""Tokens of a row, the most probable, that can be drafted."""
_NOISE, _SHARPEST = 0.5, 0.5
"""How far the noise of the draw is trusted, and the lowest temperature of a belief: about what foretells best which
tokens are drawn when held-out texts are continued. No value changes a text."""


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
        depth: most drafts on a path: open positions after the text and after each draft.
        limit: number of answer positions in all.
        start: index of the first position that is not committed.
        step: number of the next pass.
        drafts: of the positions from `start` on.
    """

    noise_key: int
    width: int
    depth: int
    limit: int
    start: int = 0
    step: int = 0
    drafts: DraftTree = field(default_factory=DraftTree)

    @staticmethod
    def begin(*, noise_key: int, width: int, depth: int, limit: int) -> LookaheadState:
        """The state before the first pass, which has no drafts.

        Raises:
            InvalidStep: width, depth or limit is below its least value, 0, 0 and 1.
        """
        if width < 0 or depth < 0 or limit < 1:
            raise InvalidStep("looking ahead needs 0 drafts or more, and an answer of at least 1 token")
        return LookaheadState(noise_key=noise_key, width=width, depth=depth, limit=limit)

    @property
    def done(self) -> bool:
        """True when every position up to the limit is committed."""
        return self.start >= self.limit

    def window(self) -> Window:
        """What members see in the next pass."""
        count = len(self.drafts)
        ahead = min(self.depth if self.width else 0, self._room(self.start + self.drafts.height))
        return Window(
            start=self.start, step=self.step, block=0, noise_key=self.noise_key, parents=self.drafts.parents,
            u=np.concatenate([np.zeros(count), np.ones(ahead)]).astype(np.float32),
            w_hat=TokenSets(
                ids=self.drafts.tokens, offsets=np.minimum(np.arange(count + ahead + 1), count).astype(np.int32)
            ),
        )  # fmt: skip

    def advance(self, record: StepRecord) -> tuple[LookaheadState, I32]:
        """The state after a pass, and the token ids committed by it: the accepted ones; the others are the next drafts.

        Raises:
            InvalidStep: no token is committed or one behind a draft that did not stand, or the next drafts are no tree
                or a larger one than the pass can have given.
        """
        ids, taken = record.w_hat.ids, int(record.accepted.sum())
        if len(record.w_hat) != len(ids) or len(record.accepted) != len(ids) or not record.accepted[:taken].all():
            raise InvalidStep(
                "a pass that looks ahead commits its first tokens, one at a position, and drafts the rest"
            )
        if not 1 <= taken <= self.drafts.height + 1:
            raise InvalidStep(f"the pass can commit 1 to {self.drafts.height + 1} tokens, not {taken}")
        draft = ROOT
        for token in ids[: taken - 1].tolist():
            found = self.drafts.step(draft, token)
            if found is None:
                raise InvalidStep("a token was committed behind a draft that did not stand")
            draft = found
        return self._after(ids[:taken].copy(), self._next(ids[taken:].copy(), taken, record.parents))

    def _next(self, tokens: I32, taken: int, parents: I32 | None) -> DraftTree:
        if len(tokens) > self.width:  # before anything grows with what the other side sent
            raise InvalidStep(f"the pass can draft {self.width} tokens, not {len(tokens)}")
        tree = DraftTree.chain(tokens) if parents is None else DraftTree(tokens, parents)
        most = min(self.window().ahead, self._room(self.start + taken))
        if tree.height > most:
            raise InvalidStep(f"the pass can draft {most} tokens one behind the other, not {tree.height}")
        return tree

    def _after(self, committed: I32, drafts: DraftTree) -> tuple[LookaheadState, I32]:
        return replace(self, start=self.start + len(committed), step=self.step + 1, drafts=drafts), committed

    def _room(self, start: int) -> int:
        """Positions that can be drafted when the next token is that at `start`."""
        return max(0, self.limit - start - 1)


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
) -> DraftTree:  # fmt: skip
    """The drafts that are likeliest to stand: a tree of at most `params.drafts`, no path longer than there are rows.

    A draft stands where it wins the draw, and the noise of that draw is known. How the row will differ from the one
    that drafts is not; half of the noise stands for that, see `_beliefs`. From the likeliest path on, each draft added
    is the one whose whole path is the most probable.

    Args:
        logp: fused log-probabilities of the positions, blind to one another. [n, V]
        before: the two tokens before the first of them, oldest first.
        params: as for `choose`; and how many drafts.
        drafter: what the tokens before say; None: nothing.
        draw_key: key of the draws.
        first: position of the first row.
    """
    tokens: list[int] = []
    parents: list[int] = []
    waiting: list[tuple[float, int, int, int, tuple[int, int]]] = []  # (nats of the path, token, parent, depth, before)
    parent, depth, nats, tail = ROOT, 0, 0.0, (int(before[-2]), int(before[-1]))
    while len(tokens) < params.drafts:
        if depth < len(logp):
            row = logp[depth] if drafter is None else drafter.add(logp[depth], np.array(tail, np.int32))
            ids, beliefs = _beliefs(row, params, draw_key=draw_key, position=first + depth, most=params.drafts)
            for token, belief in zip(ids.tolist(), beliefs.tolist(), strict=True):
                heapq.heappush(waiting, (nats - belief, token, parent, depth, tail))
        if not waiting:
            break
        nats, token, parent, depth, tail = heapq.heappop(waiting)
        tokens.append(token)
        parents.append(parent)
        parent, depth, tail = len(tokens) - 1, depth + 1, (tail[1], token)
    return DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32))


def _beliefs(row: F32, params: DecodeParams, *, draw_key: int, position: int, most: int) -> tuple[I32, F64]:
    """The tokens that are likeliest to be chosen at a position, best first, and the log-probability that each is.

    Args:
        row: what is known of the position. [V]
        params, draw_key: of the draw.
        position: of the row.
        most: tokens wanted.
    """
    count = min(_CANDIDATES, len(row))
    likeliest = np.argpartition(row, -count)[-count:]
    ids: I32 = np.sort(likeliest[np.isfinite(row[likeliest])]).astype(np.int32)
    drawn = params.projection != "greedy" and params.temperature > 0.0
    scores = row[ids].astype(np.float64) / (max(params.temperature, _SHARPEST) if drawn else _SHARPEST)
    if drawn:
        scores += _NOISE * gumbels_at(draw_key, ids, position, step=position, block=0, purpose=Purpose.DRAW)
    order = np.argsort(-scores, kind="stable")[:most]
    return ids[order], scores[order] - np.logaddexp.reduce(scores)


def worth(logp: F32, drafts: DraftTree, *, most: int, least: int) -> I32:
    """How many entries each exact row is worth: `most` times the probability of the path to it, by these rows. [D + 1]

    Args:
        logp: exact rows of one member, as log-probabilities. [D + 1, V]
        drafts: D of them.
        most: entries of the row after the committed text.
        least: of a row on the unlikeliest path.
    """
    nats = np.zeros(len(drafts) + 1)
    for i, (token, parent) in enumerate(zip(drafts.tokens.tolist(), drafts.parents.tolist(), strict=True)):
        nats[i + 1] = nats[parent + 1] + float(logp[parent + 1, token])
    return np.asarray(np.clip(np.rint(np.nan_to_num(most * np.exp(nats))), min(least, most), most), dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a pass commits.

    Attributes:
        tokens: drafts that stand, one behind the other, and one token more. [n]
        rows: exact row that each token was chosen from: 0 for the committed text, i + 1 for draft i. [n]
    """

    tokens: I32
    rows: I32


def settle(
    logp: F32, drafts: DraftTree, params: DecodeParams, *, draw_key: int, first: int, purpose: Purpose = Purpose.DRAW
) -> Chosen:
    """The drafts that stand on one path, and one more token.

    Args:
        logp: exact rows. [D + 1, V]
        drafts: D of them.
        params, draw_key, first, purpose: see `choose`.
    """
    tokens: list[int] = []
    rows = [0]
    while True:
        row, place = logp[rows[-1]][None], first + len(tokens)
        chosen = int(choose(row, params, draw_key=draw_key, first=place, purpose=purpose)[0])
        draft = _standing(row, drafts, rows[-1] - 1, chosen, params)
        tokens.append(chosen if draft is None else int(drafts.tokens[draft]))
        if draft is None:
            return Chosen(np.array(tokens, np.int32), np.array(rows, np.int32))
        rows.append(draft + 1)


def _standing(row: F32, drafts: DraftTree, behind: int, chosen: int, params: DecodeParams) -> int | None:
    """Which of the drafts behind one stands: that of the token chosen, else the most probable that leniency lets."""
    same = drafts.step(behind, chosen)
    children = drafts.after(behind)
    if same is not None or not len(children):
        return same
    tokens = drafts.tokens[children]
    kept = stands(np.repeat(row, len(children), axis=0), tokens, np.full(len(children), chosen, np.int32), params)
    order = np.argsort(-row[0, tokens], kind="stable")
    return next((int(children[i]) for i in order if kept[i]), None)


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
    state = LookaheadState.begin(
        noise_key=noise_key, width=params.drafts, depth=params.depth, limit=params.max_tokens
    )  # fmt: skip
    committed, before = np.zeros(0, np.int32), np.append(last[:1], last)[-2:].astype(np.int32)
    while True:
        window = state.window()
        step = ensemble.step(window, committed)
        found = settle(step.fused, state.drafts, params, draw_key=draw_key, first=state.start)
        before = np.append(before, found.tokens)[-2:]
        after = state.start + len(found.tokens)
        room = min(window.ahead, max(0, params.max_tokens - after - 1))
        drafts = DraftTree()
        if room and not np.isin(found.tokens, params.eos_ids).any():
            ahead = step.ahead(int(found.rows[-1]))[:room]
            drafts = draft(ahead, before, params, drafter, draw_key=draw_key, first=after)
        decision = _decision(found, drafts, step.fused, params)
        state, committed = state.advance(decision.record)
        committed, finish = cut_at_end(committed, params, done=state.done)
        yield event(ensemble, step, window, decision, committed, finish, rows=found.rows[: len(committed)])
        if finish is not None:
            return


def _decision(found: Chosen, drafts: DraftTree, logp: F32, params: DecodeParams) -> Decision:
    """The decision over committed tokens and drafts; entropy and log-probability are those of the committed ones."""
    count, rows = len(found.tokens), logp[found.rows]
    tempered = rows if params.temperature in (0.0, 1.0) else log_softmax(rows / params.temperature)
    ids = np.append(found.tokens, drafts.tokens).astype(np.int32)
    spread, chosen = np.zeros(len(ids)), np.zeros(len(ids))
    spread[:count], chosen[:count] = entropy(tempered), rows[np.arange(count), found.tokens]
    record = StepRecord(TokenSets.single(ids), np.arange(len(ids)) < count, drafts.parents)
    return Decision(record, ids, spread, chosen)
