"""`ssd-cloud adapt` and `instruct` on a tiny base: from text to a folder that the node's loader takes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ssd_cloud import adapt as adapting
from ssd_cloud.adapt import adapt, base_folder, open_base
from ssd_cloud.adapt_options import AdaptOptions
from ssd_cloud.cli.main import main
from ssd_cloud.instruct import instruct
from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.models.folder import load
from ssd_diffusion.models.tiny import write_tiny


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(24):
        (folder / f"{i:02}.txt").write_text(f"the cat number {i} sat on the mat and looked at the dog. " * 4)
    rows = [{"instruction": f"what is {i}?", "context": "", "response": f"it is {i}."} for i in range(6)]
    (folder / "chats.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def options(tmp_path: Path, text: Path, **changed: Any) -> AdaptOptions:
    base = tmp_path / "base"
    if not base.exists():
        write_tiny(base, family=changed.pop("family", "llama"))
    given: dict[str, Any] = {
        "base": str(base), "data": (text,), "out": tmp_path / "out", "steps": 3, "length": 48, "block": 8,
        "evaluation_rows": 1,
    }  # fmt: skip
    return AdaptOptions(**{**given, **changed})


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_adapted_folder_loads(tmp_path: Path, text: Path, family: str) -> None:
    stages: list[str] = []
    made = adapt(options(tmp_path, text, family=family), tmp_path, on_stage=stages.append)
    model, spec = load(made.folder)
    assert spec.model_id.startswith("out@")
    assert model.vocab == spec.vocab == 256
    assert made.before is not None
    assert made.after is not None
    card = json.loads((made.folder / "card.json").read_text())
    assert card["steps"] == 3
    assert card["heldout_after"]["s1"] == pytest.approx(made.after.s1, abs=1e-3)
    adapter = made.folder / "adapter"
    named = json.loads((adapter / "card.json").read_text())["files"]
    assert {"adapter_model.safetensors", "adapter_config.json", "diffusion.safetensors"} <= named.keys()
    assert named == {n: hashlib.sha256((adapter / n).read_bytes()).hexdigest() for n in named}
    assert (made.folder / "training" / "loss.csv").read_text().count("\n") == 4
    assert (made.folder / "loss.png").is_file()
    assert stages[0] == "reading the base"


def test_run_goes_on_where_it_was(tmp_path: Path, text: Path) -> None:
    first = options(tmp_path, text, evaluation_rows=0)
    assert adapt(first, tmp_path).report.steps == 3
    seen: list[int] = []
    more = options(tmp_path, text, evaluation_rows=0, steps=5)
    made = adapt(more, tmp_path, on_progress=lambda p: seen.append(p.step))
    assert seen == [4, 5]
    assert made.before is None


def test_instruct_on_an_adapted_folder(tmp_path: Path, text: Path) -> None:
    made = instruct(options(tmp_path, text / "chats.jsonl", evaluation_rows=0), tmp_path)
    assert load(made.folder)[1].vocab == 256
    with pytest.raises(TrainingError, match="no conversations"):
        instruct(options(tmp_path, text / "00.txt"), tmp_path)


def test_refusals(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="--steps or --max-minutes"):
        adapt(options(tmp_path, text, steps=None), tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TrainingError, match="no text"):
        adapt(options(tmp_path, empty), tmp_path)
    with pytest.raises(InvalidModel, match=r"not a decoder|holds no|lacks|no tokenizer"):
        adapt(options(tmp_path, text, base=str(empty)), tmp_path)

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(InvalidModel, match="hub gives no model"):
        base_folder("someone/some-model", tmp_path, tmp_path / "out")


def test_base_from_a_hub_without_tokenizer_json(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub snapshot of a plain decoder (no model.json), its tokenizer made into tokenizer.json."""
    snapshot = write_tiny(tmp_path / "snapshot")
    for name in ("model.json", "diffusion.safetensors", "card.json"):
        (snapshot / name).unlink()
    held = (snapshot / "tokenizer.json").read_bytes()
    (snapshot / "tokenizer.json").rename(tmp_path / "kept.json")

    class Slow:
        @staticmethod
        def save_pretrained(folder: Path) -> None:
            (Path(folder) / "tokenizer.json").write_bytes(held)

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(snapshot))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: Slow)
    made = adapt(options(tmp_path, text, base="someone/tiny", evaluation_rows=0, steps=1), tmp_path)
    assert load(made.folder)[1].hidden == 16


@pytest.mark.parametrize("learned", [0.0, 0.3])
def test_new_maps_start_legible_and_learned_ones_stay(tmp_path: Path, learned: float) -> None:
    """The packaged base is a model folder too, with maps that nothing was ever trained."""
    path = write_tiny(tmp_path / "base", learned=learned)
    stored, opened = load(path)[0], open_base(path)
    assert stored.maps_untouched == (learned == 0.0)
    assert torch.equal(opened.w_diff.weight, stored.w_diff.weight) == (learned > 0.0)
    mean = opened.mean_embedding
    assert (float(opened.w_diff(mean).detach().norm()) < 1e-4 * float(mean.norm())) == (learned == 0.0)


def test_packaged_means_the_plain_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, Path]] = []

    def ensure(home: Path, *, weights: Path) -> Path:
        asked.append((home, weights))
        return write_tiny(tmp_path / "packaged")

    monkeypatch.setattr(adapting.packaged, "ensure", ensure)
    assert base_folder("packaged", tmp_path, tmp_path / "out") == tmp_path / "packaged"
    assert asked[0][0] != tmp_path  # beside the served model, never in its place
    assert not asked[0][1].exists()


def test_command_line(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSD_HOME", str(tmp_path / "home"))
    base = write_tiny(tmp_path / "base")
    arguments = ["adapt", "--base", str(base), "--data", str(text), "--out", str(tmp_path / "made"), "--steps", "2"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--length", "48", "--block", "8", "--heldout-rows", "1", "--json"])
    assert ended.value.code in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2
    assert found["before"]["s1"] > 0
    with pytest.raises(SystemExit) as ended:
        main([*arguments[:5], "--out", str(tmp_path / "none")])
    assert ended.value.code == 1
    assert "--max-minutes" in capsys.readouterr().err
