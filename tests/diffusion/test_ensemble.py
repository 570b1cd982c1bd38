import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.errors import DiffusionError, MemberLost
from ssd_diffusion.sampler import DecodeParams, denoise
from ssd_diffusion.window import Window, WindowState
from ssd_kernels.types import F32, I32

NONE = np.zeros(0, np.int32)
PARAMS = DecodeParams(block=3, grid=(1.0, 0.5), max_tokens=8, projection="greedy", entropy_budget=0.0)


class LostAfter:
    """A core that is gone after n passes."""

    def __init__(self, inner: object, passes: int) -> None:
        self.inner, self.left, self.closed = inner, passes, False
        self.skipped: list[int] = []

    name = "core"

    @property
    def spec(self) -> ModelSpec:
        return self.inner.spec

    @property
    def forward_passes(self) -> int:
        return self.inner.forward_passes

    def step(self, window: Window, committed: I32) -> F32:
        if self.left == 0:
            raise MemberLost("the node is gone")
        self.left -= 1
        assert threading.current_thread() is not threading.main_thread()
        return self.inner.step(window, committed)

    def skip(self, window: Window, committed: I32) -> None:
        self.skipped.append(window.step)
        self.inner.skip(window, committed)

    def next(self, committed: I32) -> F32:
        if self.left == 0:
            raise MemberLost("the node is gone")
        self.left -= 1
        return self.inner.next(committed)

    def close(self) -> None:
        self.closed = True
        self.inner.close()


def lsm(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def three(make_engine: Callable, make_member: Callable, **weights: float) -> tuple[Ensemble, list]:
    engines = [make_engine(seed=s) for s in (1, 2, 3)]
    members = [make_member(e, name=n) for e, n in zip(engines, ("core", "expert", "plain"), strict=True)]
    return Ensemble(core=members[0], private=members[1], public=members[2], weights=Weights(**weights)), engines


def test_fused_is_the_formula(make_engine: Callable, make_member: Callable) -> None:
    ensemble, engines = three(make_engine, make_member, lam=0.6, alpha=0.5, contrast_top_p=1.0)
    window = WindowState.begin(grid=(1.0,), noise_key=0, block=2, limit=2).window()
    step = ensemble.step(window, NONE)
    core, private, public = (lsm(e.table[[3, -1]]) for e in engines)
    assert step.fused == pytest.approx(lsm(0.4 * core + 0.6 * (1.5 * private - 0.5 * public)), abs=1e-5)
    twin = ensemble.next(NONE)
    assert twin.fused[0] == pytest.approx(step.fused[0], abs=1e-6)
    ensemble.close()
    ensemble.close()


def test_shares_are_the_mixture_responsibilities(make_engine: Callable, make_member: Callable) -> None:
    ensemble, engines = three(make_engine, make_member, lam=0.3)
    window = WindowState.begin(grid=(1.0,), noise_key=0, block=2, limit=2).window()
    step = ensemble.step(window, NONE)
    core, expert = (np.exp(lsm(e.table[[3, -1]])) for e in engines[:2])
    tokens = np.array([5, 8])
    p, q = 0.7 * core[[0, 1], tokens], 0.3 * expert[[0, 1], tokens]
    assert ensemble.shares(step, np.array([0, 1]), tokens) == pytest.approx(p / (p + q), abs=1e-5)
    ensemble.close()


@pytest.mark.parametrize("decoder", ["window", "ar"])
def test_a_lost_core_leaves_the_expert_to_finish(make_engine: Callable, make_member: Callable, decoder: str) -> None:
    from ssd_diffusion import autoregressive

    core = LostAfter(make_member(make_engine(seed=1)), 3)
    expert = make_engine(seed=2, sharpness=3.0)
    with Ensemble(core=core, private=make_member(expert), public=None, weights=Weights(lam=0.5)) as ensemble:
        if decoder == "window":
            events = list(denoise(ensemble, PARAMS, noise_key=1, draw_key=2))
        else:
            events = list(autoregressive.decode(ensemble, PARAMS, draw_key=2))
        assert ensemble.lost == "the node is gone"
    assert core.closed
    assert [e.core_asked for e in events] == [True] * 3 + [False] * 5
    tokens = [int(t) for e in events for t in e.committed]
    for left, right in itertools.pairwise(tokens[2:]):
        assert right == int(np.argmax(expert.table[left]))


def test_a_lost_core_without_expert_is_an_error(make_engine: Callable, make_member: Callable) -> None:
    core = LostAfter(make_member(make_engine()), 1)
    with Ensemble(core=core, private=None, public=None, weights=Weights(lam=0.0)) as ensemble:
        with pytest.raises(MemberLost, match="gone"):
            list(denoise(ensemble, PARAMS, noise_key=1, draw_key=2))


def test_core_every_asks_less_and_keeps_the_core_informed(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine(seed=1)
    core = LostAfter(make_member(engine), 99)
    with Ensemble(
        core=core, private=make_member(make_engine(seed=2)), public=None, weights=Weights(lam=0.5, core_every=2)
    ) as ensemble:
        events = list(denoise(ensemble, PARAMS, noise_key=1, draw_key=2))
        told = list(engine.contexts[0])
    assert [e.core_asked for e in events] == [True, False] * 4
    assert core.skipped == [1, 3, 5, 7]
    tokens = [int(t) for e in events for t in e.committed]
    assert told == [3, *tokens[:7]]


def test_review_may_replace_the_cores_answer(make_engine: Callable, make_member: Callable) -> None:
    seen = []

    def review(core: F32, private: F32 | None, public: F32 | None) -> F32:
        seen.append((core.shape, private is not None, public is not None))
        return np.zeros_like(core)

    with Ensemble(
        core=make_member(make_engine()), private=None, public=None, weights=Weights(lam=0.0), review=review
    ) as ensemble:
        window = WindowState.begin(grid=(1.0,), noise_key=0, block=2, limit=2).window()
        fused = ensemble.step(window, NONE).fused
    assert seen == [((2, 23), False, False)]
    assert fused == pytest.approx(-np.log(23), abs=1e-6)


def test_members_must_share_a_vocabulary(make_engine: Callable, make_member: Callable) -> None:
    other = make_engine()
    other.spec = ModelSpec(model_id="o", family="ssd2", vocab=24, hidden=4, max_block=8, max_context=8)
    with pytest.raises(DiffusionError, match="vocabular"):
        Ensemble(core=make_member(make_engine()), private=make_member(other), public=None, weights=Weights())
    with pytest.raises(ValueError, match="core or an expert"):
        Ensemble(core=None, private=None, public=None, weights=Weights())


@pytest.mark.parametrize(
    "weights", [{"lam": -0.1}, {"lam": 1.1}, {"alpha": -1.0}, {"alpha": float("inf")}, {"core_every": 0}]
)
def test_bad_weights_are_refused(weights: dict) -> None:
    with pytest.raises(ValueError):
        Weights(**weights)
