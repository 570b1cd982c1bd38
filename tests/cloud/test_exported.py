"""The node's graph for onnxruntime: written once, checked, kept, replaced; and torch where there is none."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ssd_cloud import exported, models
from ssd_cloud.errors import StartError
from ssd_diffusion.export import agreement
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.folder import load
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.onnx_engine import OnnxEngine
from ssd_diffusion.spec_file import read_spec
from ssd_diffusion.window import WindowState

CONTEXT = np.arange(40, 60, dtype=np.int32)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny", learned=0.4)


def opened(path: Path, root: Path, runtime: models.Runtime = "auto") -> object:
    return models.load_quickest(path, root, slots=2, batch_width=1, threads=1, runtime=runtime)


def test_the_graph_says_what_torch_says(tiny: Path, tmp_path: Path) -> None:
    ours, theirs = opened(tiny, tmp_path), opened(tiny, tmp_path, "torch")
    assert isinstance(ours, OnnxEngine)
    assert isinstance(theirs, TorchEngine)
    assert ours.spec == theirs.spec
    window = WindowState.begin(grid=(1.0, 0.5), noise_key=3, block=4, limit=8).window()
    found = []
    for engine in (ours, theirs):
        engine.prefill([1], [CONTEXT])
        found.append(engine.step([1], [window])[0])
    np.testing.assert_allclose(*found, atol=3e-4)


def test_it_is_written_once_and_again_where_it_is_stale_or_damaged(tiny: Path, tmp_path: Path) -> None:
    opened(tiny, tmp_path)
    folder = exported.folder_of(read_spec(tiny), tmp_path)
    graph = folder / "onnx" / "model.onnx"
    first = graph.stat().st_mtime_ns
    opened(tiny, tmp_path)
    assert graph.stat().st_mtime_ns == first
    (folder / "export.json").write_text(json.dumps({"version": exported.VERSION - 1}))
    opened(tiny, tmp_path)
    second = graph.stat().st_mtime_ns
    assert second != first
    graph.write_bytes(b"not a graph")
    assert isinstance(opened(tiny, tmp_path), OnnxEngine)
    assert graph.stat().st_size > 100
    assert sorted(p.name for p in folder.parent.iterdir() if not p.name.startswith(".")) == [folder.name]


def test_graphs_of_older_weights_go(tiny: Path, tmp_path: Path) -> None:
    model, spec = load(tiny)
    name = spec.model_id.split("@")[0]
    old = exported.ensure(model, replace(spec, model_id=f"{name}@old"), tmp_path)
    other = exported.ensure(model, replace(spec, model_id="another@1"), tmp_path)
    new = exported.ensure(model, spec, tmp_path)
    assert not old.exists()
    assert exported.is_current(other)
    assert exported.is_current(new)


def test_a_graph_that_disagrees_is_not_kept(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(agreement.BOUNDS, "fp32", (-1.0, 0.99))
    with caplog.at_level(logging.WARNING, "ssd_cloud.models"):
        assert isinstance(opened(tiny, tmp_path), TorchEngine)
    assert "nats off the model" in caplog.text
    assert list((tmp_path / "exports").glob("[!.]*")) == []
    with pytest.raises(StartError, match="--engine auto"):
        opened(tiny, tmp_path, "onnx")


def test_no_room_for_the_graph(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exported, "_build", full)
    with caplog.at_level(logging.WARNING, "ssd_cloud.models"):
        assert isinstance(opened(tiny, tmp_path), TorchEngine)
    assert "No space left" in caplog.text


def test_a_family_without_a_graph(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from ssd_diffusion.export import graph

    monkeypatch.setattr(graph, "can_build", lambda _: False)
    with caplog.at_level(logging.WARNING, "ssd_cloud.models"):
        assert isinstance(opened(tiny, tmp_path), TorchEngine)
    assert "no graph for onnxruntime" in caplog.text


def test_names_stay_inside_the_folder(tiny: Path, tmp_path: Path) -> None:
    spec = replace(read_spec(tiny), model_id="../../etc/x@1")
    assert exported.folder_of(spec, tmp_path).parent == tmp_path / "exports"


def test_sessions_share_runs_and_leave_one_another_s_bits(tiny: Path, tmp_path: Path) -> None:
    engine = models.load_quickest(tiny, tmp_path, slots=5, batch_width=None, threads=2)
    assert isinstance(engine, OnnxEngine)
    assert models.usual_batch_width(engine) == 5
    assert exported.company_leaves_bits(engine.folder)


def test_where_company_changes_bits_every_session_computes_alone(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = OnnxEngine._run_lanes
    monkeypatch.setattr(
        OnnxEngine, "_run_lanes", lambda self, *given: [np.nextafter(x, 1) for x in plain(self, *given)]
    )
    with caplog.at_level(logging.WARNING, "ssd_cloud.exported"):
        opened(tiny, tmp_path)
    assert "one by one" in caplog.text
    folder = exported.folder_of(read_spec(tiny), tmp_path)
    assert not (folder / "onnx" / "model.lanes.onnx").exists()
    engine = models.load_quickest(tiny, tmp_path, slots=2, batch_width=2, threads=1)
    engine.prefill([0, 1], [CONTEXT, CONTEXT])
    window = WindowState.begin(grid=(1.0, 0.5), noise_key=3, block=4, limit=8).window()
    first, second = engine.step([0, 1], [window, window])
    np.testing.assert_array_equal(first, second)
