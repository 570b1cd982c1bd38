from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from ssd_diffusion import autoregressive
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.errors import InvalidStep
from ssd_diffusion.sampler import DecodeParams, StepEvent, decide, denoise
from ssd_diffusion.ssdlm import decode_blocks
from ssd_diffusion.window import WindowState
from ssd_kernels.combine import log_softmax
from ssd_kernels.project import nucleus_mask

GREEDY = DecodeParams(block=4, grid=(1.0, 0.5), max_tokens=9, projection="greedy", entropy_budget=0.0)


def core_only(member: object) -> Ensemble:
    return Ensemble(core=member, private=None, public=None, weights=Weights(lam=0.0))  # type: ignore[arg-type]


def text(events: list[StepEvent]) -> list[int]:
    return [int(t) for e in events for t in e.committed]


def markov_greedy(table: np.ndarray, start: int, n: int) -> list[int]:
    out = [start]
    for _ in range(n):
        out.append(int(np.argmax(table[out[-1]])))
    return out[1:]


def test_one_token_a_pass_is_the_autoregressive_text(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine(sharpness=2.0)
    with core_only(make_member(engine)) as ensemble:
        events = list(denoise(ensemble, GREEDY, noise_key=1, draw_key=2))
    assert text(events) == markov_greedy(engine.table, 3, 9)
    assert len(events) == 9
    assert events[-1].finish == "length"
    assert all(e.finish is None for e in events[:-1])
    assert engine.contexts == {}


def test_sampled_text_equals_the_autoregressive_twin(make_engine: Callable, make_member: Callable) -> None:
    params = replace(GREEDY, projection="sample", top_p=0.8, temperature=0.7)
    engine = make_engine()
    with core_only(make_member(engine)) as ensemble:
        diffusion = text(list(denoise(ensemble, params, noise_key=1, draw_key=5)))
    with core_only(make_member(engine)) as ensemble:
        twin = text(list(autoregressive.decode(ensemble, params, draw_key=5)))
    assert diffusion == twin


def test_autoregressive_ends_and_multi_hot_draws_one(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine()
    engine.table[:, 0] = 40.0
    params = replace(GREEDY, projection="multi-hot", eos_ids=(0,))
    with core_only(make_member(engine)) as ensemble:
        events = list(autoregressive.decode(ensemble, params, draw_key=5))
    assert text(events) == [0]
    assert events[-1].finish == "stop"


def test_a_budget_accepts_more_positions_a_pass(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine(sharpness=30.0)
    with core_only(make_member(engine)) as ensemble:
        events = list(denoise(ensemble, replace(GREEDY, entropy_budget=50.0), noise_key=1, draw_key=2))
    assert [len(e.committed) for e in events] == [4, 4, 1]


def test_acceptance_takes_the_most_certain_within_the_budget() -> None:
    state = WindowState.begin(grid=(1.0, 0.5), noise_key=0, block=4, limit=8)
    scale = np.array([0.0, 3.0, 8.0, 20.0], np.float32)
    rows = np.zeros((4, 6), np.float32)
    rows[:, 2] = scale
    logp = log_softmax(rows)
    nats = -(np.exp(logp.astype(np.float64)) * logp).sum(-1)
    budget = nats[3] + nats[2] + 1e-6
    decision = decide(logp, state, replace(GREEDY, entropy_budget=float(budget)), draw_key=0)
    assert decision.record.accepted.tolist() == [True, False, True, True]
    assert decision.entropy == pytest.approx(nats, abs=1e-5)
    assert decide(logp, state, GREEDY, draw_key=0).record.accepted.tolist() == [True, False, False, False]


def test_answer_ends_at_eos(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine()
    engine.table[:, 0] = -50.0
    engine.table[4, 0] = 50.0
    engine.table[3, 4] = 50.0
    params = replace(GREEDY, eos_ids=(0,), max_tokens=64)
    with core_only(make_member(engine)) as ensemble:
        events = list(denoise(ensemble, params, noise_key=1, draw_key=2))
    assert text(events) == [4, 0]
    assert events[-1].finish == "stop"


def test_early_exit_accepts_a_window_that_stands_still(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine()
    engine.table[-1] = 0.0
    engine.table[-1, 9] = 9.0
    params = replace(GREEDY, stable_passes=1, max_tokens=12, grid=(1.0, 0.8, 0.6))
    with core_only(make_member(engine)) as ensemble:
        quick = len(list(denoise(ensemble, params, noise_key=1, draw_key=2)))
    with core_only(make_member(engine)) as ensemble:
        plain = len(list(denoise(ensemble, replace(params, stable_passes=0), noise_key=1, draw_key=2)))
    assert plain == 12
    assert quick < plain


@pytest.mark.parametrize("projection", ["sample", "greedy", "multi-hot"])
def test_same_keys_same_text_and_noise_follows_the_estimate(
    make_engine: Callable, make_member: Callable, projection: str
) -> None:
    params = replace(GREEDY, projection=projection, entropy_budget=1.0, top_p=0.7)
    runs = []
    for draw_key in (3, 3, 4):
        with core_only(make_member(make_engine())) as ensemble:
            runs.append(list(denoise(ensemble, params, noise_key=1, draw_key=draw_key)))
    assert text(runs[0]) == text(runs[1])
    for before, after in zip(runs[0], runs[0][1:], strict=False):
        taken = len(before.committed)
        kept = before.decision.record.w_hat.rows()[taken:]
        assert after.window.w_hat.rows()[: len(kept)] == kept
    if projection == "sample":
        assert text(runs[0]) != text(runs[2])


def test_draws_stay_in_the_nucleus(make_engine: Callable, make_member: Callable) -> None:
    params = replace(GREEDY, projection="sample", top_p=0.5, max_tokens=16)
    with core_only(make_member(make_engine())) as ensemble:
        for e in denoise(ensemble, params, noise_key=1, draw_key=11):
            rows = np.flatnonzero(~e.window.accepted)
            mask = nucleus_mask(e.fused[rows], 0.5)
            assert mask[np.arange(len(rows)), e.decision.estimate[rows]].all()


def test_ssdlm_blocks(make_engine: Callable, make_member: Callable) -> None:
    engine = make_engine()
    params = replace(GREEDY, grid=(1.0, 0.66, 0.33), max_tokens=7, projection="sample")
    for final in ("argmax-logits", "argmax-x0"):
        with core_only(make_member(engine)) as ensemble:
            events = list(decode_blocks(ensemble, params, noise_key=1, draw_key=2, final=final))
        assert [len(e.committed) for e in events] == [0, 0, 4, 0, 0, 3]
        assert [e.window.u[0] for e in events[:3]] == pytest.approx([1.0, 0.66, 0.33])
    # every position of a block but the first has an open left neighbour until the block is done
    assert int(np.argmax(engine.table[-1])) == int(
        text(list(decode_blocks(core_only(make_member(engine)), params, noise_key=1, draw_key=2)))[1]
    )


@pytest.mark.parametrize(
    "change",
    [{"block": 0}, {"max_tokens": 0}, {"grid": ()}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5},
     {"entropy_budget": -0.1}, {"temperature": float("nan")}, {"entropy_budget": float("nan")}],
)  # fmt: skip
def test_bad_params_are_refused(change: dict) -> None:
    with pytest.raises(InvalidStep):
        replace(GREEDY, **change)
