"""A pass that looks ahead against the windows it stands for, one by one; and the same text from a real network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from ssd_diffusion import autoregressive
from ssd_diffusion.draft_tree import DraftTree, lineage
from ssd_diffusion.drafting import TransitionMaps
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.errors import ContextOverflow
from ssd_diffusion.lookahead import LookaheadState, decode
from ssd_diffusion.members import EngineMember
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.sampler import DecodeParams
from ssd_diffusion.window import Window
from ssd_kernels.types import I32, TokenSets

Make = Callable[..., Ssd2Model]


def ids(length: int, seed: int = 0) -> I32:
    return np.random.default_rng(seed).integers(0, 256, length).astype(np.int32)


def looking(step: int, drafts: I32 | DraftTree, ahead: int) -> Window:
    tree = drafts if isinstance(drafts, DraftTree) else DraftTree.chain(drafts)
    state = LookaheadState(noise_key=5, width=8, depth=ahead, limit=1000, step=step, start=step, drafts=tree)
    return state.window()


def hidden(step: int, size: int) -> Window:
    return Window(step, step, 0, np.ones(size, np.float32), TokenSets.empty(size), 5)


@pytest.mark.parametrize("parents", [[], [-1], [-1, 0, 1], [-1, -1, 0, 2, 1, 2]], ids=["none", "one", "chain", "tree"])
@pytest.mark.parametrize("width", [1, 4])
def test_every_row_is_that_of_a_window_of_its_own(
    make_model: Make, family: str, spec: ModelSpec, parents: list[int], width: int
) -> None:
    model = make_model(family, learned=0.4)
    engine = TorchEngine(model, spec, slots=4, batch_width=width)
    drafts, ahead = len(parents), 2
    tree = DraftTree(ids(drafts, seed=3), np.array(parents, np.int32))
    context, path = ids(21), lineage(tree.parents)
    engine.prefill([0], [context])
    engine.step([0], [looking(0, DraftTree(), ahead)])
    for step, new in ((1, ids(3, seed=4)), (2, ids(1, seed=5))):
        engine.commit([0], [new])
        context = np.concatenate([context, new])
        found = engine.step([0], [looking(step, tree, ahead)])[0]
        assert found.shape == ((drafts + 1) * (1 + ahead), 256)
        for i in range(drafts + 1):
            engine.prefill([1], [np.concatenate([context, tree.tokens[path[i - 1]] if i else tree.tokens[:0]])])
            alone = engine.step([1], [hidden(0, ahead + 1)])[0]
            np.testing.assert_allclose(found[i], alone[0], atol=1e-6)
            first = drafts + 1 + i * ahead
            np.testing.assert_allclose(found[first : first + ahead], alone[1:], atol=1e-6)


def test_a_step_asked_for_again_is_the_same(make_model: Make, spec: ModelSpec) -> None:
    engine = TorchEngine(make_model("llama", learned=0.4), spec)
    engine.prefill([0], [ids(9)])
    engine.step([0], [looking(0, ids(0), 2)])
    engine.commit([0], [ids(2, seed=1)])
    first = engine.step([0], [looking(1, ids(2, seed=2), 2)])[0]
    np.testing.assert_array_equal(engine.step([0], [looking(1, ids(2, seed=2), 2)])[0], first)


def test_company_changes_nothing(make_model: Make, spec: ModelSpec) -> None:
    model = make_model("llama", learned=0.4)
    engine = TorchEngine(model, spec, slots=4, batch_width=3)
    contexts = [ids(n, seed=n) for n in (9, 30, 31)]
    engine.prefill([0, 1, 2], contexts)
    fork = DraftTree(ids(2), np.array([-1, -1], np.int32))
    windows = [looking(0, fork, 2), looking(0, ids(2), 2), hidden(0, 4)]
    together = engine.step([0, 1, 2], windows)
    for slot, window in enumerate(windows):
        engine.prefill([3], [contexts[slot]])
        np.testing.assert_array_equal(engine.step([3], [window])[0], together[slot])


def test_drafts_count_against_the_context(make_model: Make, spec: ModelSpec) -> None:
    engine = TorchEngine(make_model("llama"), replace(spec, max_context=12))
    engine.prefill([0], [ids(9)])
    with pytest.raises(ContextOverflow):
        engine.step([0], [looking(0, ids(2), 2)])


def test_text_of_a_network_does_not_depend_on_the_drafts(make_model: Make, family: str, spec: ModelSpec) -> None:
    model = make_model(family, learned=0.4)
    torch.nn.init.normal_(model.add_transition(6).outer.weight)
    maps = TransitionMaps.of(model)
    engine = TorchEngine(model, spec)
    params = DecodeParams(block=1, grid=(1.0,), max_tokens=20, temperature=0.6, top_p=0.9, entropy_budget=0.0)
    texts = []
    for drafts in (0, 1, 4):
        core = EngineMember(engine, 0, ids(7), name="core")
        with Ensemble(core=core, private=None, public=None, weights=Weights(lam=0.0)) as one:
            events = decode(one, replace(params, drafts=drafts), ids(7)[-2:], maps, noise_key=1, draw_key=2)
            texts.append([int(t) for e in events for t in e.committed])
    assert texts[0] == texts[1] == texts[2]
    core = EngineMember(engine, 0, ids(7), name="core")
    with Ensemble(core=core, private=None, public=None, weights=Weights(lam=0.0)) as one:
        twin = [int(t) for e in autoregressive.decode(one, params, draw_key=2) for t in e.committed]
    assert len(twin) == 20


def test_transition_in_numpy_is_the_one_in_torch(make_model: Make) -> None:
    model = make_model("llama")
    made = model.add_transition(6)
    torch.nn.init.normal_(made.outer.weight)
    maps = TransitionMaps.of(model)
    before = np.array([17, 200], np.int32)
    with torch.inference_mode():
        wanted = made(model.embed(torch.tensor([200])), model.embed(torch.tensor([17])))[0]
        logits = model.logits(wanted).numpy()
    np.testing.assert_allclose(maps.hidden(before), wanted.numpy(), atol=1e-5)
    row = np.zeros(256, np.float32)
    found = maps.add(row, before)
    kept = np.isfinite(found)
    assert kept.sum() == 256
    np.testing.assert_allclose(found, logits, atol=1e-4)
