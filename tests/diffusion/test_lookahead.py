"""Looking ahead: the same text as one token a pass, in fewer passes, and a window that obeys its rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_diffusion import autoregressive, lookahead, sampler
from ssd_diffusion.drafting import TransitionMaps
from ssd_diffusion.engine import Member
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.errors import InvalidStep
from ssd_diffusion.layout import lookahead_layout, pass_layout
from ssd_diffusion.lookahead import LookaheadState, choose, decode, settle, stands
from ssd_diffusion.sampler import DecodeParams, StepEvent
from ssd_diffusion.window import StepRecord
from ssd_kernels.combine import log_softmax
from ssd_kernels.types import F32, I32, TokenSets

VOCAB = 23
PARAMS = DecodeParams(block=1, grid=(1.0,), max_tokens=17, temperature=0.8, top_p=0.9, entropy_budget=0.0)
LAST = np.array([1, 3], np.int32)


class Oracle:
    """A drafter that knows the table of the engine, and is wrong at every third call."""

    def __init__(self, table: F32) -> None:
        self.table, self.calls = table, 0

    def add(self, logp: F32, before: I32) -> F32:
        self.calls += 1
        row = self.table[int(before[-1])].copy()
        if self.calls % 3 == 0:
            row = row[::-1].copy()
        return row + 0.0 * logp


def ensemble(core: Member | None, private: Member | None = None) -> Ensemble:
    return Ensemble(core=core, private=private, public=None, weights=Weights(lam=0.4 if core and private else 0.0))


def text(events: list[StepEvent]) -> list[int]:
    return [int(t) for e in events for t in e.committed]


@pytest.mark.parametrize("projection", ["sample", "greedy", "multi-hot"])
@pytest.mark.parametrize("drafts", [0, 1, 2, 5, 40])
def test_the_text_does_not_depend_on_the_drafts(
    make_engine: Callable, make_member: Callable, projection: str, drafts: int
) -> None:
    params = replace(PARAMS, projection=projection)  # type: ignore[arg-type]
    engine = make_engine(seed=2)
    with ensemble(make_member(engine)) as one:
        twin = text(list(autoregressive.decode(one, params, draw_key=5)))
    with ensemble(make_member(engine)) as one:
        window = text(list(sampler.denoise(one, replace(params, projection="sample"), noise_key=1, draw_key=5)))
    for drafter in (None, Oracle(engine.table)):
        with ensemble(make_member(engine)) as one:
            events = list(decode(one, replace(params, drafts=drafts), LAST, drafter, noise_key=1, draw_key=5))
        assert text(events) == twin
        assert all(1 <= len(e.committed) <= drafts + 1 for e in events)
        assert all(len(e.core_share) == len(e.committed) for e in events)
        assert [e.finish for e in events[:-1]] == [None] * (len(events) - 1)
    assert projection != "sample" or window == twin


def test_good_drafts_save_passes(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine(seed=2)
    with ensemble(make_member(engine)) as one:
        events = list(decode(one, replace(PARAMS, drafts=2), LAST, Oracle(engine.table), noise_key=1, draw_key=5))
    assert len(text(events)) == 17
    assert len(events) <= 10
    assert engine.contexts == {}


def test_it_ends_where_the_answer_ends(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine(seed=4)
    params = replace(PARAMS, max_tokens=40)
    with ensemble(make_member(engine)) as one:
        whole = text(list(autoregressive.decode(one, params, draw_key=9)))
    params = replace(params, eos_ids=(whole[6],), drafts=3)
    with ensemble(make_member(engine)) as one:
        events = list(decode(one, params, LAST, Oracle(engine.table), noise_key=1, draw_key=9))
    assert text(events) == whole[: whole.index(whole[6]) + 1]
    assert events[-1].finish == "stop"


def test_two_members_are_fused_in_every_row(make_engine: Callable, make_member: Callable) -> None:
    first, second = make_engine(seed=1), make_engine(seed=8)
    with ensemble(make_member(first), make_member(second)) as one:
        twin = text(list(autoregressive.decode(one, PARAMS, draw_key=5)))
    with ensemble(make_member(first), make_member(second)) as one:
        events = list(decode(one, replace(PARAMS, drafts=3), LAST, None, noise_key=1, draw_key=5))
    assert text(events) == twin
    assert all(0.0 < share < 1.0 for e in events for share in e.core_share)


def test_ahead_rows_are_those_of_the_prefix(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine()
    with ensemble(make_member(engine)) as one:
        state = replace(LookaheadState.begin(noise_key=1, width=2, limit=20), drafts=np.array([4, 5], np.int32))
        step = one.step(state.window(), np.zeros(0, np.int32))
    np.testing.assert_allclose(step.fused, log_softmax(engine.table[[3, 4, 5]]), atol=1e-6)
    for prefix in range(3):
        np.testing.assert_allclose(step.ahead(prefix), log_softmax(engine.table[[VOCAB] * 2]), atol=1e-6)


def test_a_review_sees_the_exact_rows_alone(make_engine: Callable, make_member: Callable) -> None:
    engine, shapes = make_engine(), []

    def review(core: F32, private: F32 | None, public: F32 | None) -> F32:
        shapes.append((core.shape, None if private is None else private.shape, public))
        return core

    with Ensemble(
        core=make_member(engine), private=make_member(make_engine()), public=None, weights=Weights(), review=review
    ) as one:
        list(decode(one, replace(PARAMS, drafts=2, max_tokens=6), LAST, None, noise_key=1, draw_key=2))
    assert shapes[0] == ((1, VOCAB), (1, VOCAB), None)
    assert shapes[1] == ((3, VOCAB), (3, VOCAB), None)


# ---- leniency ----


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), leniency=st.floats(0.0, 1.0), temperature=st.sampled_from([0.5, 1.0, 1.3]))
def test_what_stands_is_what_the_rule_says(seed: int, leniency: float, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    logp = log_softmax(rng.normal(size=(6, 9)).astype(np.float32) * 2)
    drafts, params = rng.integers(0, 9, 6).astype(np.int32), replace(PARAMS, temperature=temperature, leniency=leniency)
    chosen = choose(logp, params, draw_key=3, first=4)
    found = stands(logp, drafts, chosen, params)
    for row, draft, token, ok in zip(logp.astype(np.float64), drafts, chosen, found, strict=True):
        p = np.exp(row / temperature) / np.exp(row / temperature).sum()
        before = p[p > p[draft] * (1 + 1e-9)].sum()
        near = p[draft] >= (1 - leniency) * p.max()
        margin = min(abs(before - 0.9), abs(p[draft] - (1 - leniency) * p.max()))
        if margin > 1e-5:
            assert ok == (draft == token or (leniency > 0 and before < 0.9 and near))


def test_more_leniency_never_needs_more_passes_on_the_same_drafts() -> None:
    rng = np.random.default_rng(0)
    logp = log_softmax(rng.normal(size=(5, 30)).astype(np.float32))
    drafts = rng.integers(0, 30, 4).astype(np.int32)
    stood = [settle(logp, drafts, replace(PARAMS, leniency=x), draw_key=1, first=0).stood for x in (0.0, 0.5, 0.9, 1.0)]
    assert stood == sorted(stood)
    greedy = settle(logp, drafts, replace(PARAMS, leniency=1.0, temperature=0.0), draw_key=1, first=0)
    assert greedy.tokens.tolist()[-1] == int(logp[greedy.stood].argmax())


@pytest.mark.parametrize("wrong", [{"leniency": 1.5}, {"leniency": -0.1}, {"drafts": -1}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidStep):
        replace(PARAMS, **wrong)  # type: ignore[arg-type]


# ---- the state ----


def record(ids: list[int], taken: int) -> StepRecord:
    return StepRecord(TokenSets.single(np.array(ids, np.int32)), np.arange(len(ids)) < taken)


def test_the_state_moves() -> None:
    state = LookaheadState.begin(noise_key=7, width=3, limit=10)
    window = state.window()
    assert (window.drafts, window.exact, window.ahead, window.rows, window.start) == (0, 1, 3, 4, 0)
    state, committed = state.advance(record([5, 6, 7, 8], 1))
    assert committed.tolist() == [5]
    window = state.window()
    assert (window.drafts, window.exact, window.ahead, window.rows, window.start) == (3, 4, 3, 16, 1)
    assert window.w_hat.rows() == [[6], [7], [8], [], [], []]
    assert window.u.tolist() == [0, 0, 0, 1, 1, 1]
    state, committed = state.advance(record([6, 7, 9], 3))
    assert committed.tolist() == [6, 7, 9]
    assert (state.start, len(state.drafts), state.step) == (4, 0, 2)


def test_the_window_ends_with_the_answer() -> None:
    state = replace(LookaheadState.begin(noise_key=7, width=3, limit=4), start=1, drafts=np.array([1, 2], np.int32))
    assert state.window().ahead == 0
    assert state.window().rows == 3
    state, _ = state.advance(record([1, 2, 3], 3))
    assert state.done


@pytest.mark.parametrize(
    ("ids", "taken"),
    [([], 0), ([5, 6], 0), ([6, 9, 3], 3), ([6, 7, 9, 1], 4), ([9, 1, 1, 1], 1), ([6, 7], 3)],
    ids=["nothing", "none taken", "behind a wrong draft", "too many", "too many drafts", "flags past the end"],
)
def test_broken_records_are_refused(ids: list[int], taken: int) -> None:
    state = replace(LookaheadState.begin(noise_key=7, width=2, limit=30), start=3, drafts=np.array([6, 7], np.int32))
    flags = np.arange(max(len(ids), taken)) < taken
    with pytest.raises(InvalidStep):
        state.advance(StepRecord(TokenSets.single(np.array(ids, np.int32)), flags))


def test_a_gap_in_the_flags_is_refused() -> None:
    state = replace(LookaheadState.begin(noise_key=7, width=2, limit=30), drafts=np.array([6, 7], np.int32))
    with pytest.raises(InvalidStep, match="commits its first"):
        state.advance(StepRecord(TokenSets.single(np.array([6, 7], np.int32)), np.array([False, True])))
    for width, limit in ((-1, 4), (2, 0)):
        with pytest.raises(InvalidStep):
            LookaheadState.begin(noise_key=7, width=width, limit=limit)


# ---- layout and transition ----


@settings(max_examples=40)
@given(
    cached=st.integers(0, 4), pending=st.integers(0, 3), drafts=st.integers(0, 3), ahead=st.integers(0, 3)
)  # fmt: skip
def test_a_pass_is_its_windows_side_by_side(cached: int, pending: int, drafts: int, ahead: int) -> None:
    """Every window of the pass reads the tokens that a pass of its own would read, at the same positions."""
    both = lookahead_layout(cached, pending, drafts, ahead)
    causal = pending + drafts
    keys = [*range(cached), *(cached + np.arange(causal))]  # position of every clean key
    for i in range(drafts + 1):
        alone = pass_layout(cached, pending + i, np.ones(ahead, np.float32))
        queries = [causal + i, *range(causal + drafts + 1 + i * ahead, causal + drafts + 1 + (i + 1) * ahead)]
        own = [cached + q for q in queries]
        assert both.position_ids[queries].tolist() == alone.position_ids[pending + i :].tolist()
        for row, q in enumerate(queries):
            seen = both.allowed[q]
            assert seen[: cached + causal].tolist() == [k < cached + pending + i for k in keys]
            assert seen[own].tolist() == alone.allowed[pending + i + row, cached + pending + i :].tolist()
            assert seen.sum() == cached + pending + i + seen[own].sum()
    if causal:
        plain = pass_layout(cached, causal - 1, np.zeros(0, np.float32)).allowed
        np.testing.assert_array_equal(both.allowed[:causal, : cached + causal], plain)
    assert not both.allowed[:causal, cached + causal :].any()


def test_transition_is_the_equation() -> None:
    rng = np.random.default_rng(3)
    table, inner, bias, outer = (rng.normal(size=s).astype(np.float32) for s in ((9, 4), (5, 8), (5,), (4, 5)))
    maps = TransitionMaps(table=table, head=table, inner=inner, inner_bias=bias, outer=outer, kept=4)
    logp = log_softmax(rng.normal(size=(1, 9)).astype(np.float32))[0]

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2))

    h = inner @ np.concatenate([unit(table[6]), unit(table[2])]) + bias
    cdf = np.array([0.5 * (1 + math.erf(x / 2**0.5)) for x in h])
    expected = logp + table @ (outer @ (h * cdf))
    found = maps.add(logp, np.array([2, 6], np.int32))
    best = np.argsort(logp)[-4:]
    np.testing.assert_allclose(found[best], expected[best], atol=1e-4)
    assert np.isneginf(np.delete(found, best)).all()
    assert lookahead.draft(logp[None], LAST, replace(PARAMS, temperature=0.0), maps, draw_key=1, first=0).shape == (1,)
