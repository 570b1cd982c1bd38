"""The engine against the base, against recomputation, and against itself in other company."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import ContextOverflow, InvalidStep
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.window import StepRecord, Window, WindowState
from ssd_kernels.types import TokenSets

Make = Callable[..., Ssd2Model]
BLOCK = 6


def context(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


def begin(spec: ModelSpec, key: int = 99) -> WindowState:
    return WindowState.begin(grid=spec.grid, noise_key=key, block=BLOCK, limit=40)


def record(seed: int, state: WindowState, accepted: list[int]) -> StepRecord:
    ids = np.random.default_rng(seed).integers(0, 256, len(state.level)).astype(np.int32)
    flags = state.level < 0
    ids[flags] = [state.w_hat.row(int(i))[0] for i in np.flatnonzero(flags)]
    flags[accepted] = True
    return StepRecord(TokenSets.single(ids), flags)


def run(engine: TorchEngine, slot: int, ids: Any, steps: int, seed: int = 0) -> list[Any]:
    """Logits of a few passes with fixed acceptance."""
    engine.prefill([slot], [ids])
    state, found = begin(engine.spec, key=seed), []
    for i in range(steps):
        found.append(engine.step([slot], [state.window()])[0])
        state, committed = state.advance(record(seed * 100 + i, state, [0, 3] if i % 2 else [0]))
        engine.commit([slot], [committed])
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_untrained_anchor_is_the_bases_next_token(
    make_model: Make, family: str, attention: str, spec: ModelSpec
) -> None:
    model = make_model(family, attention=attention)
    engine = TorchEngine(model, spec)
    ids = context(37)
    engine.prefill([0], [ids])
    logits = engine.step([0], [begin(spec).window()])[0]
    base = model.causal(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1, :256].detach().numpy()  # type: ignore[operator]
    np.testing.assert_allclose(logits[0], base, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(engine.next_logits([0])[0], base, rtol=1e-5, atol=1e-5)
    assert logits.shape == (BLOCK, 256)


def test_legible_start_drops_the_mean_and_keeps_the_anchor(make_model: Make, spec: ModelSpec) -> None:
    model = make_model("llama")
    engine = TorchEngine(model, spec)
    engine.prefill([0], [context(9)])
    before = engine.step([0], [begin(spec).window()])[0][0]
    model.make_state_legible(7.0)
    engine.prefill([0], [context(9)])
    np.testing.assert_allclose(engine.step([0], [begin(spec).window()])[0][0], before, atol=1e-6)
    mean = model.mean_embedding
    assert float(model.w_diff(mean).detach().norm()) < 1e-6 * float(mean.norm())
    across = torch.linspace(-1, 1, 16, dtype=torch.float64)
    across = across - (across @ mean) / (mean @ mean) * mean
    torch.testing.assert_close(model.w_diff(across), 7.0 * across)


def test_cached_context_equals_recomputed(make_model: Make, family: str, spec: ModelSpec) -> None:
    model = make_model(family, learned=0.5)
    engine, fresh = TorchEngine(model, spec), TorchEngine(model, spec)
    ids = context(90)
    engine.prefill([0], [ids])
    state = begin(spec)
    for i in range(6):
        kept = engine._slots[0].sc_out
        logits = engine.step([0], [state.window()])[0]
        fresh.prefill([0], [ids])
        if kept is not None:
            fresh._slots[0].sc_out, fresh._slots[0].sc_out_start = kept, engine._slots[0].sc_in_start
        again = fresh.step([0], [state.window()])[0]
        np.testing.assert_allclose(again, logits, rtol=1e-5, atol=1e-5)
        state, committed = state.advance(record(i, state, [0, 2]))
        engine.commit([0], [committed])
        ids = np.concatenate([ids, committed])


def test_same_step_again_is_equal_to_the_bit(make_model: Make, family: str, spec: ModelSpec) -> None:
    engine = TorchEngine(make_model(family, learned=0.5), spec)
    engine.prefill([0], [context(70)])
    state = begin(spec)
    for i in range(5):
        first = engine.step([0], [state.window()])[0]
        held = engine._slots[0].cached
        again = engine.step([0], [state.window()])[0]
        assert np.array_equal(first, again)
        assert engine._slots[0].cached == held
        state, committed = state.advance(record(i, state, [0]))
        engine.commit([0], [committed])


def test_first_step_forgets_an_earlier_session(make_model: Make, spec: ModelSpec) -> None:
    engine = TorchEngine(make_model("llama", learned=0.5), spec)
    first = run(engine, 0, context(20), 4)
    for a, b in zip(first, run(engine, 0, context(20), 4), strict=True):
        assert np.array_equal(a, b)


def test_bits_do_not_depend_on_companions(make_model: Make, family: str, spec: ModelSpec) -> None:
    model = make_model(family, learned=0.5)
    for width in (1, 4):
        alone = TorchEngine(model, spec, slots=4, batch_width=width)
        expected = [run(alone, 0, context(length, s), 5, seed=s) for s, length in enumerate((1, 66, 66, 130))]
        engine = TorchEngine(model, spec, slots=4, batch_width=width)
        engine.prefill(range(4), [context(length, s) for s, length in enumerate((1, 66, 66, 130))])
        states = [begin(spec, key=s) for s in range(4)]
        for i in range(5):
            order = np.random.default_rng(i).permutation(4).tolist()
            found = engine.step(order, [states[s].window() for s in order])
            for s, logits in zip(order, found, strict=True):
                assert np.array_equal(logits, expected[s][i]), (width, i, s)
                states[s], committed = states[s].advance(record(s * 100 + i, states[s], [0, 3] if i % 2 else [0]))
                engine.commit([s], [committed])


def test_hidden_positions_reach_no_other(make_model: Make, family: str, spec: ModelSpec) -> None:
    model = make_model(family, learned=0.5)
    u = np.array([0.6, 1.0, 0.0, 1.0, 0.4, 0.2], np.float32)
    sets = [[5], [], [7], [], [9], [11]]

    def logits() -> Any:
        engine = TorchEngine(model, spec)
        engine.prefill([0], [context(12)])
        return engine.step([0], [Window(0, 3, 0, u, TokenSets.of(sets), 5)])[0]

    before = logits()
    change = torch.linspace(-1, 2, 16, dtype=torch.float64) ** 2
    embed = model.embed_window

    def shifted(tokens: Any, level: Any, noised: Any, conditioning: Any) -> Any:
        out = embed(tokens, level, noised, conditioning)
        return torch.where(level[..., None] >= 1.0, out + change, out)

    model.embed_window = shifted  # type: ignore[method-assign]
    after = logits()
    reached = [i for i in range(BLOCK) if not np.array_equal(before[i], after[i])]
    assert reached == [2, 4]  # only the queries at the hidden positions 1 and 3, which predict 2 and 4


def test_twin_and_window_share_a_slot(make_model: Make, family: str, spec: ModelSpec) -> None:
    model = make_model(family)
    engine = TorchEngine(model, spec)
    ids = context(10)
    engine.prefill([0], [ids])
    for _ in range(4):
        logits = engine.next_logits([0])[0]
        base = model.causal(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1, :256].detach().numpy()  # type: ignore[operator]
        np.testing.assert_allclose(logits, base, rtol=1e-5, atol=1e-5)
        token = np.array([int(logits.argmax())], np.int32)
        engine.commit([0], [token])
        ids = np.concatenate([ids, token])
    window = engine.step([0], [begin(spec).window()])[0]
    base = model.causal(torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1, :256].detach().numpy()  # type: ignore[operator]
    np.testing.assert_allclose(window[0], base, rtol=1e-5, atol=1e-5)


def test_long_prefill_is_cut_and_counted(make_model: Make, spec: ModelSpec) -> None:
    engine = TorchEngine(make_model("llama"), spec)
    engine.prefill([0, 1], [context(300), context(1)])
    assert (engine.forward_passes(0), engine.forward_passes(1)) == (2, 0)
    engine.step([0, 1], [begin(spec).window()] * 2)
    assert (engine.forward_passes(0), engine.forward_passes(1)) == (3, 1)
    assert engine.slot_bytes(0) > engine.slot_bytes(1) > 0
    engine.release([0])
    assert engine.slot_bytes(0) == 0
    assert engine.slots == 8
    assert engine.spec is spec


def test_bounds(make_model: Make, spec: ModelSpec) -> None:
    engine = TorchEngine(make_model("llama"), spec)
    with pytest.raises(ContextOverflow, match="takes 1 to 400"):
        engine.prefill([0], [context(401)])
    with pytest.raises(ContextOverflow, match="takes 1 to 400"):
        engine.prefill([0], [context(0)])
    with pytest.raises(InvalidStep, match="prefill"):
        engine.next_logits([0])
    engine.prefill([0], [context(396)])
    with pytest.raises(ContextOverflow, match="402"):
        engine.step([0], [begin(spec).window()])
