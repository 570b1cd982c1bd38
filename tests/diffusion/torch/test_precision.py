"""Training with bfloat16 products: chosen where the hardware has them, and close to float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training import lora
from ssd_diffusion.training.data import PackedRows
from ssd_diffusion.training.loop import TrainOptions, train
from ssd_diffusion.training.noise import noised_embedding
from ssd_diffusion.training.objective import ObjectiveOptions, batch_loss
from ssd_diffusion.training.precision import autocast, cpu_has_bf16, frozen_in_half, resolve

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: x\nflags\t\t: fpu avx512f avx512_bf16 sse\n", True),
        ("flags\t: amx_tile amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t: fpu avx2 avx512f\n", False),
        ("", False),
    ],
)
def test_the_processor_says_so(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_has_bf16(tmp_path / "cpuinfo") is expected


def test_a_system_that_does_not_say_gets_float32(tmp_path: Path) -> None:
    assert cpu_has_bf16(tmp_path / "missing") is False


def test_what_was_asked_for_is_used() -> None:
    assert resolve("fp32", torch.device("cuda")) == "fp32"
    assert resolve("bf16", CPU) == "bf16"
    assert resolve("auto", torch.device("cuda")) == "bf16"
    assert resolve("auto", CPU) == ("bf16" if cpu_has_bf16() else "fp32")


def rows() -> PackedRows:
    stream = np.random.default_rng(0).integers(0, 256, 4000).astype(np.int32)
    return PackedRows(stream, length=48, block=8, rows=2, seed=3)


def test_loss_and_gradient_stay_near_float32(make_model: Callable[..., Ssd2Model], family: str) -> None:
    model = make_model(family, learned=0.3).float()
    lora.attach(model, lora.LoraOptions(rank=4, alpha=8))
    found = {}
    for precision in ("fp32", "bf16"):
        with autocast(precision, CPU):
            loss = batch_loss(model, rows().batch(0), ObjectiveOptions(conditioned=1.0), (4,)).loss
        assert loss.dtype == torch.float32
        loss.backward()
        found[precision] = float(loss.detach()), model.w_diff.weight.grad.clone()
        model.zero_grad()
    assert found["bf16"][0] == pytest.approx(found["fp32"][0], rel=0.02)
    assert found["bf16"][0] != found["fp32"][0]
    assert float(torch.nn.functional.cosine_similarity(*(g.flatten() for _, g in found.values()), dim=0)) > 0.9


def test_weights_stay_in_float32(make_model: Callable[..., Ssd2Model]) -> None:
    model = make_model("llama").float()
    lora.attach(model, lora.LoraOptions(rank=4, alpha=8))
    report = train(model, rows(), TrainOptions(steps=3, precision="bf16"))
    assert report.steps == 3
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_noised_embedding_keeps_its_dtype() -> None:
    table = torch.randn(64, 8)
    generator = torch.Generator().manual_seed(0)
    with autocast("bf16", CPU):
        got = noised_embedding(torch.arange(4), torch.full((4,), 0.4), table, generator)
    assert got.dtype == torch.float32
    assert bool(got.any())


def test_frozen_weights_are_halved_only_where_nothing_is_lost(
    make_model: Callable[..., Ssd2Model], family: str
) -> None:
    model = make_model(family, learned=0.3).bfloat16().float()
    lora.attach(model, lora.LoraOptions(rank=4, alpha=8))
    odd = next(p for n, p in model.named_parameters() if "lora_" not in n and not p.requires_grad and p.ndim == 2)
    odd.data[0, 0] = 1.0 + 2.0**-12
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with frozen_in_half(model, "bf16", CPU):
        kinds = {name: p.dtype for name, p in model.named_parameters()}
        assert odd.dtype == torch.float32
        assert all(kinds[n] == torch.float32 for n, p in model.named_parameters() if p.requires_grad)
        assert sum(kind == torch.bfloat16 for kind in kinds.values()) > len(kinds) / 3
        with autocast("bf16", CPU):
            batch_loss(model, rows().batch(0), ObjectiveOptions(conditioned=1.0), (4,)).loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter.detach(), before[name]), name
    with frozen_in_half(model, "fp32", CPU):
        assert all(p.dtype == torch.float32 for p in model.parameters())


def test_who_watches_training_may_use_the_model(make_model: Callable[..., Ssd2Model], family: str) -> None:
    model = make_model(family, learned=0.3).bfloat16().float()
    lora.attach(model, lora.LoraOptions(rank=4, alpha=8))
    seen: list[float] = []

    def look(_: object) -> None:
        batch = rows().batch(9)
        seen.append(batch_loss(model, batch, ObjectiveOptions(conditioned=0.0), (1,)).noisy)

    report = train(
        model, rows(), TrainOptions(steps=2, precision="bf16", eval_steps=1), on_progress=look,
        evaluate=lambda m: batch_loss(m, rows().batch(8), ObjectiveOptions(conditioned=0.0), (1,)).noisy,
    )  # fmt: skip
    assert len(seen) == len(report.evaluations) == 2
    assert np.isfinite(seen).all()
