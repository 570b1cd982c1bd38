import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from ssd_diffusion import packaged
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.models import folder
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.spec_file import read_spec
from ssd_diffusion.window import WindowState

WEIGHTS = packaged.WEIGHTS


@pytest.fixture(params=["llama", "opt"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny", family=request.param, learned=0.3)


def logits(path: Path) -> np.ndarray:
    model, spec = folder.load(path)
    engine = TorchEngine(model, spec, slots=1)
    engine.prefill([0], [np.array([5, 6, 7], np.int32)])
    window = WindowState.begin(grid=(1.0,), noise_key=3, block=4, limit=4).window()
    return engine.step([0], [window])[0]


def test_saved_folder_loads_to_the_same_logits(tiny: Path, tmp_path: Path) -> None:
    model, spec = folder.load(tiny)
    other = tmp_path / "copy"
    written = folder.save(model, other, name="copy", tokenizer=tiny, card={"name": "copy"}, grid=(1.0, 0.5))
    assert np.array_equal(logits(other), logits(tiny))
    assert read_spec(other) == written
    assert (written.vocab, written.tokenizer_fingerprint) == (spec.vocab, spec.tokenizer_fingerprint)
    assert (written.layers, written.kv_heads, written.head_dim) == (spec.layers, spec.kv_heads, spec.head_dim)
    assert written.model_id.startswith("copy@")
    again = folder.save(model, tmp_path / "again", name="copy", tokenizer=tiny, card={}, grid=(1.0, 0.5))
    assert again.model_id == written.model_id


def test_a_plain_decoder_has_learned_nothing(tiny: Path) -> None:
    model = folder.from_pretrained(tiny)
    assert torch.equal(model.w_diff.weight, torch.eye(16))
    assert not model.w_time.weight.any()


def spoil_truncate(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def spoil_nan(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    next(iter(state.values())).view(-1)[0] = float("nan")
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def spoil_missing_tensor(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    state.pop(sorted(state)[0])
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})


def spoil_diffusion(path: Path) -> None:
    save_file({"w_diff.weight": torch.eye(3)}, path / "diffusion.safetensors")


def spoil_spec(path: Path) -> None:
    (path / "model.json").write_text("{")


def spoil_version(path: Path) -> None:
    card = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(card | {"format": 99}))


def spoil_family(path: Path) -> None:
    card = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(card | {"family": "ssdlm"}))


def spoil_vocab(path: Path) -> None:
    card = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(card | {"hidden": 99}))


def spoil_foreign(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"\x80\x04pickle of somebody")


@pytest.mark.parametrize(
    "spoil",
    [spoil_truncate, spoil_nan, spoil_missing_tensor, spoil_diffusion, spoil_spec, spoil_version, spoil_family,
     spoil_vocab, spoil_foreign],
)  # fmt: skip
def test_damaged_folders_are_refused_in_one_sentence(tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    path = write_tiny(tmp_path / "tiny")
    spoil(path)
    with pytest.raises(InvalidModel) as caught:
        folder.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab", 0), ("vocab", True), ("hidden", 1 << 40), ("layers", -1), ("max_block", "32"), ("simplex_k", 0),
        ("schedule_s", float("nan")), ("grid", []), ("grid", [1.0, 0.5, 0.5]), ("grid", [0.9, 0.5]), ("grid", "10"),
        ("eos_ids", [-1]), ("eos_ids", [1 << 20]), ("family", "gpt"), ("output_shift", 1), ("model_id", None),
    ],
)  # fmt: skip
def test_a_value_that_no_model_can_have_is_named(tmp_path: Path, field: str, value: object) -> None:
    path = write_tiny(tmp_path / "tiny") / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(InvalidModel, match=f"impossible {field}"):
        read_spec(path.parent)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=r"model\.json"):
        folder.load(tmp_path)


def test_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "PACKAGE", "no_such_package_here")
    with pytest.raises(InvalidModel, match="pip install"):
        packaged.ensure(tmp_path)
    assert not (tmp_path / "models" / packaged.NAME).exists()


@pytest.mark.parametrize("fault", ["changed", "missing", "no card", "no folder"])
def test_an_adapter_that_is_not_whole_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    weights = tmp_path / "weights"
    monkeypatch.setattr(packaged, "WEIGHTS", weights)
    monkeypatch.setattr(packaged, "package_folder", lambda: tmp_path)
    if fault != "no folder":
        shutil.copytree(WEIGHTS, weights)
    if fault == "changed":
        data = bytearray((weights / "adapter.safetensors").read_bytes())
        data[-1] ^= 1
        (weights / "adapter.safetensors").write_bytes(data)
    elif fault == "missing":
        (weights / "diffusion.safetensors").unlink()
    elif fault == "no card":
        (weights / "card.json").unlink()
    with pytest.raises(InvalidModel, match="install ssd2 again"):
        packaged.ensure(tmp_path / "home", weights=weights)
    assert not (tmp_path / "home" / "models" / packaged.NAME).exists()


def test_files_other_than_those_of_the_spec_are_refused(tiny: Path) -> None:
    state = load_file(tiny / "model.safetensors")
    next(iter(state.values())).view(-1)[0] += 1.0
    save_file(state, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidModel, match="other files"):
        folder.load(tiny)


@pytest.mark.slow
def test_packaged_model_is_converted_once(tmp_path: Path) -> None:
    path = packaged.ensure(tmp_path)
    made = (path / "model.safetensors").stat()
    assert packaged.ensure(tmp_path) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == made.st_mtime_ns
    model, spec = folder.load(path)
    assert (spec.vocab, spec.hidden, spec.layers) == (49152, 576, 30)
    engine = TorchEngine(model, spec, slots=1)
    from ssd_diffusion.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(path)
    engine.prefill([0], [tokenizer.encode("The capital of France is")])
    window = WindowState.begin(grid=(1.0,), noise_key=3, block=2, limit=2).window()
    assert tokenizer.decode([int(np.argmax(engine.step([0], [window])[0][0]))]) == " Paris"
    assert not [p for p in path.parent.iterdir() if p.name.endswith((".tmp", ".old"))]
