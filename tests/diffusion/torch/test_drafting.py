"""What teaches a model to draft: soft targets from the clean half, and the transition between drafted tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training import data, loop, lora
from ssd_diffusion.training.loss import Teaching, token_losses
from ssd_diffusion.training.noise import LevelMix
from ssd_diffusion.training.objective import ObjectiveOptions, batch_loss

Make = Callable[..., Ssd2Model]
HIDDEN_ONLY = LevelMix(hidden=1.0, accepted=0.0, decoding=0.0, uniform=0.0)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


@settings(max_examples=25)
@given(seed=st.integers(0, 2**31), frozen=st.booleans(), biased=st.booleans())
def test_taught_loss_is_the_equation(seed: int, frozen: bool, biased: bool) -> None:
    rng = np.random.default_rng(seed)
    n, h, v = 5, 6, 11
    hidden, teacher, head = rng.normal(size=(n, h)), rng.normal(size=(n, h)), rng.normal(size=(v, h))
    bias = rng.normal(size=v) if biased else np.zeros(v)
    share, truth = rng.uniform(size=n), rng.integers(0, v, size=n)
    target = share[:, None] * softmax(teacher @ head.T + bias) + (1 - share[:, None]) * np.eye(v)[truth]
    p = softmax(hidden @ head.T + bias)
    expected = -(target * np.log(p)).sum(-1)
    leaf = torch.tensor(hidden, dtype=torch.float32, requires_grad=True)
    weight = torch.tensor(head, dtype=torch.float32, requires_grad=not frozen)
    teaching = Teaching(torch.tensor(teacher, dtype=torch.float32), torch.tensor(share))
    losses = token_losses(
        leaf, weight, torch.tensor(bias, dtype=torch.float32) if biased else None, torch.tensor(truth), teaching
    )
    np.testing.assert_allclose(losses.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), (p - target) @ head, rtol=1e-3, atol=1e-4)


def test_no_share_is_no_teacher() -> None:
    torch.manual_seed(1)
    hidden, head, truth = torch.randn(4, 3), torch.randn(7, 3), torch.tensor([0, 6, 2, 2])
    plain = token_losses(hidden, head, None, truth)
    taught = token_losses(hidden, head, None, truth, Teaching(torch.randn(4, 3), torch.zeros(4)))
    torch.testing.assert_close(plain, taught)


def test_transition_begins_as_nothing(make_model: Make) -> None:
    model = make_model("llama")
    rows = data.PackedRows(np.arange(400, dtype=np.int32) % 200, length=48, block=8, rows=2, seed=1)
    options = ObjectiveOptions(levels=HIDDEN_ONLY, conditioned=0.0)
    before = batch_loss(model, rows.batch(0), options, (1, 2))
    made = model.add_transition()
    assert made.inner.out_features == 2 * model.hidden_size
    after = batch_loss(model, rows.batch(0), options, (1, 2))
    assert before.noisy == pytest.approx(after.noisy, abs=1e-6)


def test_drafted_positions_are_those_behind_an_unknown_one(make_model: Make) -> None:
    """The transition acts on u = 1 positions whose neighbour before is open; never on the first of a block."""
    model = make_model("llama")
    torch.nn.init.normal_(model.add_transition(4).outer.weight)
    rows = data.PackedRows(np.arange(400, dtype=np.int32) % 200, length=48, block=8, rows=1, seed=1)
    seen: list[torch.Size] = []
    assert model.transition is not None
    model.transition.register_forward_hook(lambda _m, given, _out: seen.append(given[0].shape))
    blocks = rows.batch(0).starts.numel()
    batch_loss(model, rows.batch(0), ObjectiveOptions(levels=HIDDEN_ONLY, conditioned=0.0, drafted=1.0), (1, 2))
    assert seen.pop()[0] == blocks * 7
    noisy = LevelMix(hidden=0.0, accepted=0.0, decoding=0.0, uniform=1.0, lowest=0.2)
    batch_loss(model, rows.batch(0), ObjectiveOptions(levels=noisy, conditioned=0.0, drafted=1.0), (1, 2))
    assert seen.pop()[0] == 0


def test_it_learns_which_token_follows(make_model: Make) -> None:
    """Text in which every token fixes the next, at random starts: only the transition can tell a draft's neighbour."""
    rng = np.random.default_rng(0)
    stream = np.concatenate([(int(rng.integers(50)) + 7 * np.arange(6)) % 50 + 40 for _ in range(600)]).astype(np.int32)
    rows = data.PackedRows(stream, length=48, block=6, rows=4, seed=1)
    objective = ObjectiveOptions(levels=HIDDEN_ONLY, conditioned=0.0, taught=0.5, drafted=1.0)
    ends = {}
    for with_transition in (False, True):
        model = make_model("llama").float()
        lora.attach(model, lora.LoraOptions(rank=4, alpha=8))
        if with_transition:
            model.add_transition()
            lora.open_maps(model)
        report = loop.train(model, rows, loop.TrainOptions(steps=100, learning_rate=1e-2, objective=objective))
        ends[with_transition] = float(np.mean([p.noisy for p in report.history[-10:]]))
    assert ends[True] < ends[False] - 0.2


def test_transition_is_kept_with_the_adapter(make_model: Make, tmp_path: Path) -> None:
    model = make_model("llama").float()
    wrapped = lora.attach(model, lora.LoraOptions(rank=4, alpha=8))
    torch.nn.init.normal_(model.add_transition(5).outer.weight)
    lora.save_adapter(wrapped, model, tmp_path)
    again = make_model("llama").float()
    lora.load_adapter(again, tmp_path)
    assert again.transition is not None
    assert model.transition is not None
    for name, value in model.transition.state_dict().items():
        torch.testing.assert_close(again.transition.state_dict()[name], value)
    bare = make_model("llama").float()
    lora.save_adapter(lora.attach(bare, lora.LoraOptions(rank=4, alpha=8)), bare, tmp_path / "bare")
    lora.load_diffusion(again, tmp_path / "bare" / "diffusion.safetensors")
    assert again.transition is None


def test_a_transition_of_another_width_is_refused(make_model: Make, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = make_model("llama").float()
    wrapped = lora.attach(model, lora.LoraOptions(rank=4, alpha=8))
    model.add_transition(5)
    lora.save_adapter(wrapped, model, tmp_path)
    path = tmp_path / "diffusion.safetensors"
    tensors = load_file(path)
    tensors["transition.inner.weight"] = tensors["transition.inner.weight"][:, :-2].contiguous()
    save_file(tensors, path)
    with pytest.raises(InvalidModel, match="does not fit"):
        lora.load_diffusion(make_model("llama").float(), path)
