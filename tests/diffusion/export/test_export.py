"""Exported graphs against the torch models they were made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.export import onnx as export_module
from ssd_diffusion.export.agreement import Agreement, check_agreement
from ssd_diffusion.export.graph import can_build
from ssd_diffusion.export.onnx import choose, drop, export
from ssd_diffusion.export.shape import cache_shape
from ssd_diffusion.models.folder import load
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.models.tiny import write_tiny


def tiny(tmp_path: Path, family: str, width: int = 16) -> Ssd2Model:
    folder = write_tiny(tmp_path / family, family=family, learned=0.5, width=width)  # type: ignore[arg-type]
    return load(folder)[0]


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_the_graph_says_what_torch_says(tmp_path: Path, family: str) -> None:
    model = tiny(tmp_path, family)
    report = export(model, tmp_path / "onnx")
    assert report.use == "fp32"
    found = check_agreement(model, tmp_path / "onnx", windows=6, threads=1)
    assert found.ok
    assert found.max_error < 2e-4
    assert found.greedy == 1.0


def test_grouped_queries_and_wide_heads(tmp_path: Path) -> None:
    model = tiny(tmp_path, "llama", width=32)
    assert cache_shape(model).kv_heads < cache_shape(model).heads
    export(model, tmp_path / "onnx")
    assert check_agreement(model, tmp_path / "onnx", windows=3, threads=1).max_error < 2e-4


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_eight_bits_are_close_and_smaller(tmp_path: Path, family: str) -> None:
    model = tiny(tmp_path, family, width=64)
    report = export(model, tmp_path / "onnx", int8=True)
    assert report.size_bytes["int8"] < report.size_bytes["fp32"]
    found = check_agreement(model, tmp_path / "onnx", "int8", windows=6, threads=1)
    assert 1e-4 < found.rms_error < 0.4  # it is another graph, and not a wrong one


def test_a_wrong_graph_is_caught(tmp_path: Path) -> None:
    model = tiny(tmp_path, "llama")
    export(model, tmp_path / "onnx")
    with torch.no_grad():
        model.causal.get_decoder().layers[1].mlp.down_proj.weight.mul_(1.2)  # type: ignore[operator]
    assert not check_agreement(model, tmp_path / "onnx", windows=4, threads=1).ok


def test_windows_may_come_from_texts(tmp_path: Path) -> None:
    model = tiny(tmp_path, "llama")
    export(model, tmp_path / "onnx")
    texts = [np.arange(200, dtype=np.int32), np.arange(3, dtype=np.int32)]
    found = check_agreement(model, tmp_path / "onnx", texts=texts, windows=3, threads=1)
    assert isinstance(found, Agreement)
    assert found.ok


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny(tmp_path, "llama")
    with torch.no_grad():
        model.w_diff.weight[0, 0] = float("nan")
    with pytest.raises(InvalidModel, match="not finite"):
        export(model, tmp_path / "onnx")


def test_a_truncated_graph_is_refused(tmp_path: Path) -> None:
    model = tiny(tmp_path, "llama")
    export(model, tmp_path / "onnx")
    path = tmp_path / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InvalidModel, match="cannot be loaded"):
        check_agreement(model, tmp_path / "onnx", windows=1, threads=1)


def test_the_report_follows_what_is_kept(tmp_path: Path) -> None:
    export(tiny(tmp_path, "llama", width=32), tmp_path / "onnx", int8=True)
    assert choose(tmp_path / "onnx", "int8").use == "int8"
    drop(tmp_path / "onnx", "int8")
    report = choose(tmp_path / "onnx", "fp32")
    assert list(report.size_bytes) == ["fp32"]
    assert json.loads((tmp_path / "onnx" / "export.json").read_text())["use"] == "fp32"


@pytest.mark.slow
def test_other_architectures_are_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(tmp_path, "opt")
    assert can_build(model)
    monkeypatch.setattr(export_module, "can_build", lambda _: False)
    report = export(model, tmp_path / "onnx", int8=True)
    assert list(report.size_bytes) == ["fp32"]
    assert check_agreement(model, tmp_path / "onnx", windows=3, threads=1).max_error < 2e-4
