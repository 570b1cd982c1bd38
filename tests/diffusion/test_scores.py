from collections.abc import Callable

import numpy as np
import pytest
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.sampler import DecodeParams, denoise
from ssd_diffusion.scores import TrajectoryScore, s1, s1_autoregressive, s2, s3

TEXT = np.array([5, 9, 1, 20], np.int32)


def lsm(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.fixture
def scorer(make_engine: Callable, make_member: Callable) -> Callable[[], Ensemble]:
    engine = make_engine(seed=4)

    def start() -> Ensemble:
        return Ensemble(core=make_member(engine), private=None, public=None, weights=Weights(lam=0.0))

    start.engine = engine  # type: ignore[attr-defined]
    return start


def test_s1_is_the_chain_rule(scorer: Callable[[], Ensemble]) -> None:
    table = lsm(scorer.engine.table)  # type: ignore[attr-defined]
    expected = [table[left, right] for left, right in zip([3, 5, 9, 1], TEXT, strict=True)]
    assert s1(scorer, TEXT) == pytest.approx(expected, abs=1e-5)
    assert s1(scorer, TEXT, noise_keys=(1, 2, 3), block=3) == pytest.approx(expected, abs=1e-5)
    assert s1_autoregressive(scorer, TEXT) == pytest.approx(expected, abs=1e-5)


def test_s2_scores_every_level_and_key_from_a_fresh_state(scorer: Callable[[], Ensemble]) -> None:
    out = s2(scorer, TEXT, levels=(1.0, 0.6), noise_keys=(1, 2))
    assert out.shape == (2, 2, 4)
    table = lsm(scorer.engine.table)  # type: ignore[attr-defined]
    assert out[0, 0] == pytest.approx([table[3, 5], *(table[-1, t] for t in TEXT[1:])], abs=1e-5)
    windows = scorer.engine.windows  # type: ignore[attr-defined]
    assert [w.noise_key for w in windows] == [1, 2, 1, 2]
    assert all(w.step == 0 for w in windows)
    assert windows[2].w_hat.rows() == [[t] for t in TEXT.tolist()]
    assert windows[0].w_hat.rows() == [[]] * 4


def test_s3_shows_both_sides(scorer: Callable[[], Ensemble]) -> None:
    out = s3(scorer, TEXT[:2], TEXT[2:])
    window = scorer.engine.windows[-1]  # type: ignore[attr-defined]
    assert window.u.tolist() == [1, 1, 0, 0]
    assert window.w_hat.rows() == [[], [], [1], [20]]
    table = lsm(scorer.engine.table)  # type: ignore[attr-defined]
    assert out == pytest.approx([table[3, 5], table[-1, 9]], abs=1e-5)


def test_s4_averages_the_final_tokens_over_their_passes(scorer: Callable[[], Ensemble]) -> None:
    params = DecodeParams(block=2, grid=(1.0, 0.5, 0.1), max_tokens=3, projection="greedy", entropy_budget=0.0)
    score, rows = TrajectoryScore(), {}
    assert np.isnan(score.value)
    with scorer() as ensemble:
        events = list(denoise(ensemble, params, noise_key=0, draw_key=0))
    for event in events:
        score.update(event)
        for i, position in enumerate(event.window.positions.tolist()):
            if event.window.u[i] >= 0.3:
                rows.setdefault(position, []).append(event.fused[i])
    tokens = [int(t) for e in events for t in e.committed]
    expected = np.mean([np.mean([row[tokens[p]] for row in rows[p]]) for p in range(3)])
    assert score.value == pytest.approx(expected, abs=2e-3)
