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
from ssd_diffusion.draft_tree import ROOT, DraftTree, depths, lineage
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


def chain(*tokens: int) -> DraftTree:
    return DraftTree.chain(np.array(tokens, np.int32))


@st.composite
def trees(draw: st.DrawFn) -> I32:
    """Parents of up to six drafts."""
    return np.array([draw(st.integers(ROOT, i - 1)) for i in range(draw(st.integers(0, 6)))], np.int32)


def ensemble(core: Member | None, private: Member | None = None) -> Ensemble:
    return Ensemble(core=core, private=private, public=None, weights=Weights(lam=0.4 if core and private else 0.0))


def text(events: list[StepEvent]) -> list[int]:
    return [int(t) for e in events for t in e.committed]


@pytest.mark.parametrize("projection", ["sample", "greedy", "multi-hot"])
@pytest.mark.parametrize(("drafts", "depth"), [(0, 1), (1, 1), (2, 2), (5, 3), (40, 4), (6, 1)])
def test_the_text_does_not_depend_on_the_drafts(
    make_engine: Callable, make_member: Callable, projection: str, drafts: int, depth: int
) -> None:
    params = replace(PARAMS, projection=projection)  # type: ignore[arg-type]
    engine = make_engine(seed=2)
    with ensemble(make_member(engine)) as one:
        twin = text(list(autoregressive.decode(one, params, draw_key=5)))
    with ensemble(make_member(engine)) as one:
        window = text(list(sampler.denoise(one, replace(params, projection="sample"), noise_key=1, draw_key=5)))
    for drafter in (None, Oracle(engine.table)):
        with ensemble(make_member(engine)) as one:
            asked = replace(params, drafts=drafts, depth=depth)
            events = list(decode(one, asked, LAST, drafter, noise_key=1, draw_key=5))
        assert text(events) == twin
        assert all(1 <= len(e.committed) <= min(drafts, depth) + 1 for e in events)
        assert all(len(e.core_share) == len(e.committed) for e in events)
        assert [e.finish for e in events[:-1]] == [None] * (len(events) - 1)
    assert projection != "sample" or window == twin


def test_good_drafts_save_passes(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine(seed=2)
    with ensemble(make_member(engine)) as one:
        events = list(decode(one, replace(PARAMS, drafts=2), LAST, Oracle(engine.table), noise_key=1, draw_key=5))
    assert len(text(events)) == 17
    assert len(events) <= 11
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


def test_a_row_is_worth_its_paths_probability() -> None:
    rows = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 1e-30], [0.1, 0.1, 0.8], [1 / 3] * 3], np.float32))
    tree = DraftTree(np.array([0, 1, 1], np.int32), np.array([ROOT, 0, ROOT], np.int32))
    assert lookahead.worth(rows, tree, most=1000, least=10).tolist() == [1000, 700, 350, 200]
    tree = DraftTree(np.array([0, 2, 1], np.int32), np.array([ROOT, 0, ROOT], np.int32))
    assert lookahead.worth(rows, tree, most=1000, least=10).tolist() == [1000, 700, 10, 200]
    assert lookahead.worth(rows, tree, most=8, least=10).tolist() == [8, 8, 8, 8]
    rows[0, 0] = np.nan
    assert lookahead.worth(rows, tree, most=1000, least=10).tolist()[0] == 1000


@pytest.mark.parametrize("core_drafts", [True, False])
def test_who_drafts_changes_no_token(make_engine: Callable, make_member: Callable, core_drafts: bool) -> None:
    engines = [make_engine(seed=seed) for seed in (1, 8, 3)]
    core, private, public = engines
    weights = Weights(lam=0.6, alpha=0.5)
    members = {"core": core, "private": private, "public": public}
    with Ensemble(**{k: make_member(e) for k, e in members.items()}, weights=weights) as one:
        twin = text(list(autoregressive.decode(one, PARAMS, draw_key=5)))
    with Ensemble(
        **{k: make_member(e) for k, e in members.items()}, weights=weights, core_drafts=core_drafts
    ) as one:  # fmt: skip
        events = list(decode(one, replace(PARAMS, drafts=3, depth=2), LAST, None, noise_key=1, draw_key=5))
    assert text(events) == twin
    ahead = [max(w.ahead for w in engine.windows) for engine in engines]
    assert ahead == [2 if core_drafts else 0, 2, 0]
    assert all(w.drafts is not None for engine in engines for w in engine.windows)


def test_a_core_alone_drafts_in_any_case(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine(seed=1)
    with Ensemble(core=make_member(engine), private=None, public=None, weights=Weights(), core_drafts=False) as one:
        list(decode(one, replace(PARAMS, drafts=3, depth=2), LAST, None, noise_key=1, draw_key=5))
    assert max(w.ahead for w in engine.windows) == 2


def test_ahead_rows_are_those_of_the_prefix(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine()
    with ensemble(make_member(engine)) as one:
        state = replace(LookaheadState.begin(noise_key=1, width=2, depth=2, limit=20), drafts=chain(4, 5))
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
    tree, leniencies = DraftTree.chain(drafts), (0.0, 0.5, 0.9, 1.0)
    found = [settle(logp, tree, replace(PARAMS, leniency=x), draw_key=1, first=0) for x in leniencies]
    stood = [len(one.tokens) for one in found]
    assert stood == sorted(stood)
    greedy = settle(logp, tree, replace(PARAMS, leniency=1.0, temperature=0.0), draw_key=1, first=0)
    assert greedy.tokens.tolist()[-1] == int(logp[greedy.rows[-1]].argmax())


def test_among_brothers_the_token_chosen_stands_and_leniency_takes_the_likeliest() -> None:
    rows = np.log(np.array([[0.5, 0.3, 0.19, 0.01], *[[0.01, 0.01, 0.01, 0.97]] * 4], np.float32))
    tree = DraftTree(np.array([2, 1, 3, 3], np.int32), np.array([ROOT, ROOT, 1, 0], np.int32))
    exact, lenient = replace(PARAMS, top_p=1.0, temperature=1.0), replace(PARAMS, temperature=1.0, leniency=0.9)
    seen = set()
    for key in range(40):
        chosen = int(choose(rows[:1], exact, draw_key=key, first=7)[0])
        found = settle(rows, tree, exact, draw_key=key, first=7)
        on = {2: [0, 1], 1: [0, 2]}.get(chosen, [0])
        assert (found.tokens[0], found.rows[: len(on)].tolist()) == (chosen, on)
        seen.add(chosen)
        chosen = int(choose(rows[:1], lenient, draw_key=key, first=7)[0])
        kept = settle(rows, tree, lenient, draw_key=key, first=7)
        assert kept.tokens[0] == (chosen if chosen in (1, 2) else 1)
    assert seen >= {0, 1, 2}


@pytest.mark.parametrize("wrong", [{"leniency": 1.5}, {"leniency": -0.1}, {"drafts": -1}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidStep):
        replace(PARAMS, **wrong)  # type: ignore[arg-type]


# ---- the state ----


def record(ids: list[int], taken: int) -> StepRecord:
    return StepRecord(TokenSets.single(np.array(ids, np.int32)), np.arange(len(ids)) < taken)


def test_the_state_moves() -> None:
    state = LookaheadState.begin(noise_key=7, width=3, depth=3, limit=10)
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
    state = replace(LookaheadState.begin(noise_key=7, width=3, depth=3, limit=4), start=1, drafts=chain(1, 2))
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
    state = replace(LookaheadState.begin(noise_key=7, width=2, depth=2, limit=30), start=3, drafts=chain(6, 7))
    flags = np.arange(max(len(ids), taken)) < taken
    with pytest.raises(InvalidStep):
        state.advance(StepRecord(TokenSets.single(np.array(ids, np.int32)), flags))


def test_a_gap_in_the_flags_is_refused() -> None:
    state = replace(LookaheadState.begin(noise_key=7, width=2, depth=2, limit=30), drafts=chain(6, 7))
    with pytest.raises(InvalidStep, match="commits its first"):
        state.advance(StepRecord(TokenSets.single(np.array([6, 7], np.int32)), np.array([False, True])))
    for width, depth, limit in ((-1, 1, 4), (2, -1, 4), (2, 2, 0)):
        with pytest.raises(InvalidStep):
            LookaheadState.begin(noise_key=7, width=width, depth=depth, limit=limit)


def test_a_branch_is_committed_and_no_other_path_is() -> None:
    tree = DraftTree(np.array([6, 7, 8, 9], np.int32), np.array([ROOT, ROOT, 1, 2], np.int32))
    state = replace(LookaheadState.begin(noise_key=7, width=4, depth=3, limit=30), start=3, drafts=tree)
    window = state.window()
    assert (window.drafts, window.exact, window.ahead, window.rows) == (4, 5, 3, 20)
    after, committed = state.advance(record([7, 8, 1], 3))
    assert (committed.tolist(), after.start) == ([7, 8, 1], 6)
    for ids in ([6, 8, 1], [7, 9, 1], [7, 8, 9, 1, 2]):
        with pytest.raises(InvalidStep):
            state.advance(record(ids, len(ids)))
    state, _ = state.advance(StepRecord(record([7, 8, 5, 5], 2).w_hat, np.arange(4) < 2, np.array([ROOT, 0], np.int32)))
    assert (state.drafts.height, state.window().start) == (2, 5)


@pytest.mark.parametrize(
    ("tokens", "parents"), [([1], []), ([1, 2], [-1, 1]), ([1, 2], [-1, -2]), ([1, 1], [-1, -1]), ([1, 2], [-1, 5])]
)
def test_what_is_no_tree_is_refused(tokens: list[int], parents: list[int]) -> None:
    with pytest.raises(InvalidStep):
        DraftTree(np.array(tokens, np.int32), np.array(parents, np.int32))


@given(trees())
def test_paths_of_a_tree(parents: I32) -> None:
    path = lineage(parents)
    for i in range(len(parents)):
        expected, draft = set(), i
        while draft != ROOT:
            expected.add(draft)
            draft = int(parents[draft])
        assert set(np.flatnonzero(path[i]).tolist()) == expected
        assert depths(parents)[i] == len(expected) - 1


def test_the_tree_holds_the_likeliest_paths() -> None:
    """Against all paths: without noise, every draft kept has a path at least as probable as any that was left out."""
    rng = np.random.default_rng(5)
    logp = log_softmax(rng.normal(size=(3, 6)).astype(np.float32) * 2)
    params = replace(PARAMS, temperature=0.0, drafts=7)
    tree = lookahead.draft(logp, LAST, params, None, draw_key=1, first=0)
    beliefs = log_softmax(logp / 0.5)
    nats = {(): 0.0}
    for depth in range(3):
        paths = [p for p in nats if len(p) == depth]
        nats |= {(*p, t): nats[p] + float(beliefs[depth, t]) for p in paths for t in range(6)}
    best = sorted((p for p in nats if p), key=lambda p: -nats[p])[:7]
    found = set()
    for i in range(len(tree)):
        on = np.flatnonzero(lineage(tree.parents)[i])
        found.add(tuple(int(t) for t in tree.tokens[on]))
    assert found == set(best)


def test_drafts_follow_the_noise_of_the_draw() -> None:
    """With rows that are exact the first draft is the token drawn more often than the most probable token is."""
    rng = np.random.default_rng(2)
    logp = log_softmax(rng.normal(size=(200, 30)).astype(np.float32))
    params = replace(PARAMS, drafts=1, temperature=1.0)
    drawn = choose(logp, params, draw_key=3, first=0)
    drafted = [
        int(lookahead.draft(row[None], LAST, params, None, draw_key=3, first=i).tokens[0]) for i, row in enumerate(logp)
    ]
    assert (drawn == drafted).mean() > (drawn == logp.argmax(axis=1)).mean() + 0.2


# ---- layout and transition ----


@settings(max_examples=60)
@given(cached=st.integers(0, 4), pending=st.integers(0, 3), parents=trees(), ahead=st.integers(0, 3))
def test_a_pass_is_its_windows_side_by_side(cached: int, pending: int, parents: I32, ahead: int) -> None:
    """Every window of the pass reads the tokens that a pass of its own would read, at the same positions."""
    both, drafts = lookahead_layout(cached, pending, parents, ahead), len(parents)
    causal, path = pending + drafts, lineage(parents)
    for i in range(drafts + 1):
        # The clean token before the window is item i of [last clean token, *drafts]; it reads the items on its path.
        on = [0, *(1 + np.flatnonzero(path[i - 1]))] if i else [0]
        clean = [*range(cached + pending), *(cached + pending + item for item in on[:-1])]
        first = pending + len(on) - 1
        alone = pass_layout(cached, first, np.ones(ahead, np.float32))
        queries = [causal + i, *range(causal + drafts + 1 + i * ahead, causal + drafts + 1 + (i + 1) * ahead)]
        own = [cached + q for q in queries]
        assert both.position_ids[queries].tolist() == alone.position_ids[first:].tolist()
        for row, q in enumerate(queries):
            seen = both.allowed[q]
            assert np.flatnonzero(seen[: cached + causal]).tolist() == clean
            assert seen[own].tolist() == alone.allowed[first + row, cached + first :].tolist()
            assert seen.sum() == len(clean) + seen[own].sum()
        if i < drafts:  # the same token as one of the causal ones
            seen = both.allowed[pending + i]
            assert np.flatnonzero(seen).tolist() == [*clean, cached + pending + i]
            assert both.position_ids[pending + i] == both.position_ids[causal + i]
    plain = pass_layout(cached, pending, np.zeros(0, np.float32)).allowed[:pending, : cached + pending]
    np.testing.assert_array_equal(both.allowed[:pending, : cached + pending], plain)
    assert not both.allowed[:pending, cached + pending :].any()


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
    tree = lookahead.draft(logp[None], LAST, replace(PARAMS, temperature=0.0, drafts=1), maps, draw_key=1, first=0)
    assert tree.tokens.tolist() == [int(maps.add(logp, LAST).argmax())]
