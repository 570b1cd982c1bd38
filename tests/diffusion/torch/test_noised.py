"""The engine as it runs on a card (under Triton's interpreter where there is none) against itself on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.layout import embed_noised
from ssd_diffusion.models import noised
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.window import StepRecord, Window, WindowState
from ssd_kernels.types import TokenSets


def windows(spec: ModelSpec, steps: int, keys: tuple[int, ...]) -> list[Window]:
    """One window a key, after some passes: some positions accepted, the others between noise and estimate."""
    found = []
    for key in keys:
        state = WindowState.begin(grid=spec.grid, noise_key=key, block=6, limit=40)
        for step in range(steps):
            ids = np.random.default_rng(key + step).integers(0, 256, len(state.level)).astype(np.int32)
            flags = state.level < 0
            ids[flags] = [state.w_hat.row(int(i))[0] for i in np.flatnonzero(flags)]
            flags[[2]] = True
            state, _ = state.advance(StepRecord(TokenSets.single(ids), flags))
        found.append(state.window())
    return found


def test_windows_of_several_sessions_in_one_call(spec: ModelSpec) -> None:
    table = np.random.default_rng(0).normal(size=(spec.vocab, 24)).astype(np.float32)
    several = windows(spec, 3, (5, 2**63 + 1))
    found = noised.embed_noised(several, torch.from_numpy(table), simplex_k=5.0, schedule_s=1e-4)
    for got, window in zip(found.numpy(), several, strict=True):
        partly = np.flatnonzero((window.u > 0) & (window.u < 1))
        assert 0 < len(partly) < len(window.u)
        want = np.zeros((len(window.u), 24), np.float32)
        want[partly] = embed_noised(window, partly, table, simplex_k=5.0, schedule_s=1e-4)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_windows_without_anything_between(spec: ModelSpec) -> None:
    begun = windows(spec, 0, (1, 2))
    found = noised.embed_noised(begun, torch.ones(spec.vocab, 8), simplex_k=5.0, schedule_s=1e-4)
    assert found.shape == (2, 6, 8)
    assert not found.any()


def test_the_engine_says_the_same(make_model: Callable[..., Ssd2Model], spec: ModelSpec) -> None:
    model = make_model("llama", learned=0.5).float()
    plain, card = TorchEngine(model, spec), TorchEngine(model, spec)
    card.on_card = True
    ids = np.arange(20, dtype=np.int32)
    for step in range(4):
        found = []
        for engine in (plain, card):
            engine.prefill([0, 1], [ids, ids[:9]])
            found.append(engine.step([0, 1], windows(spec, step, (3, 4))))
        for want, got in zip(*found, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=0.02)  # the table in whole numbers
