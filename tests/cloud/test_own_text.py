"""Text of a model's own: written, gone on with, refused, and trained on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ssd_cloud.adapt import adapt
from ssd_cloud.adapt_options import AdaptOptions, train_options
from ssd_cloud.cli.main import main
from ssd_cloud.own_text import Nucleus, OwnTextOptions, read_own, write_own
from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.models.folder import load
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training import lora
from ssd_diffusion.training.objective import LOOK_AHEAD


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    rows = [{"text": f"the cat number {i} sat on the mat and looked at the dog. " * 4} for i in range(12)]
    (folder / "plain.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chats = [{"instruction": f"what is {i}?", "context": "", "response": f"it is {i}."} for i in range(6)]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    return folder


def options(tmp_path: Path, text: Path, **changed: Any) -> OwnTextOptions:
    model = tmp_path / "model"
    if not model.exists():
        write_tiny(model)
    given: dict[str, Any] = {
        "model": model, "data": (text,), "out": tmp_path / "own.jsonl", "tokens": 60, "length": 9, "batch": 4,
    }  # fmt: skip
    return OwnTextOptions(**{**given, **changed})


def test_written_and_read(tmp_path: Path, text: Path) -> None:
    asked = options(tmp_path, text)
    done: list[float] = []
    held = write_own(asked, done.append)
    assert held >= 60
    assert done[-1] == 1.0
    tokenizer = Tokenizer.load(asked.model)
    found = read_own([asked.out], tokenizer)
    lines = [json.loads(line) for line in asked.out.read_text().splitlines()]
    assert lines[0]["model"].startswith("tiny-llama@")
    assert [len(row["prompt"]) + len(row["ids"]) for row in lines[1:]] == [len(ids) for ids in found]
    assert sum(len(row["ids"]) for row in lines[1:]) == held
    assert all(0 < len(row["ids"]) <= 9 for row in lines[1:])


def test_a_killed_run_goes_on_to_the_same_file(tmp_path: Path, text: Path) -> None:
    whole = options(tmp_path, text, tokens=100)
    write_own(whole)
    killed = options(tmp_path, text, tokens=40, out=tmp_path / "killed.jsonl")
    write_own(killed)
    with killed.out.open("a") as file:
        file.write('{"prompt": [1, 2], "i')
    write_own(options(tmp_path, text, tokens=100, out=killed.out))
    assert killed.out.read_text() == whole.out.read_text()


def test_refusals(tmp_path: Path, text: Path) -> None:
    asked = options(tmp_path, text)
    write_own(asked)
    with pytest.raises(TrainingError, match="another way"):
        write_own(options(tmp_path, text, temperature=0.3))
    tokenizer = Tokenizer.load(asked.model)
    lines = asked.out.read_text().splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join([json.dumps({**json.loads(lines[0]), "tokenizer": "x"}), *lines[1:]]))
    with pytest.raises(TrainingError, match="another vocabulary"):
        read_own([other], tokenizer)
    for wrong in ("", "[]", "no json", lines[1], "\n".join([lines[0], "{}", lines[1]])):
        other.write_text(wrong)
        with pytest.raises(TrainingError, match="own-text"):
            read_own([other], tokenizer)
    with pytest.raises(TrainingError, match="own-text"):
        read_own([tmp_path / "none.jsonl"], tokenizer)


def test_nucleus_keeps_the_smallest_set() -> None:
    p = np.array([0.5, 0.25, 0.15, 0.1])
    kept = Nucleus(1.0, 0.7)(torch.zeros(1, 1, dtype=torch.long), torch.tensor(np.log(p))[None])
    assert torch.isfinite(kept)[0].tolist() == [True, True, False, False]
    only = Nucleus(1.0, 0.01)(torch.zeros(1, 1, dtype=torch.long), torch.tensor(np.log(p))[None])
    assert torch.isfinite(only)[0].tolist() == [True, False, False, False]


def test_adapt_learns_drafts_from_it_and_goes_on_from_an_adapter(tmp_path: Path, text: Path) -> None:
    asked = options(tmp_path, text)
    write_own(asked)
    given: dict[str, Any] = {
        "base": str(asked.model), "data": (text,), "own": (asked.out,), "look_ahead": True, "kept": 0.5, "steps": 8,
        "length": 40, "block": 6, "evaluation_rows": 0, "own_share": 0.5, "chat_share": 0.5,
        "right_side": 0.3,
    }  # fmt: skip
    first = adapt(AdaptOptions(out=tmp_path / "first", **given), tmp_path)
    assert first.report.steps == 8
    model, spec = load(first.folder)
    assert model.transition is not None
    assert spec.model_id.startswith("first@")
    before = lora.read_tensors(first.folder / "adapter" / "adapter_model.safetensors")
    more = {**given, "adapter": str(first.folder / "adapter"), "steps": 3, "rank": 64}
    second = adapt(AdaptOptions(out=tmp_path / "second", **more), tmp_path)
    after = lora.read_tensors(second.folder / "adapter" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    assert all(before[name].shape == after[name].shape for name in before)
    apart = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 0 < apart < 0.02  # three steps from there, not from nothing
    card = json.loads((second.folder / "card.json").read_text())
    assert card["rank"] == 16
    assert (card["look_ahead"], card["right_side"]) == (True, 0.3)
    with pytest.raises(InvalidModel, match="no adapter"):
        adapt(AdaptOptions(out=tmp_path / "third", **{**more, "adapter": str(text)}), tmp_path)


def test_the_right_side_takes_its_share_of_the_windows_from_all_patterns_alike(tmp_path: Path) -> None:
    given = AdaptOptions(base="packaged", data=(), out=tmp_path, look_ahead=True, right_side=0.4)
    mix, usual = train_options(given).objective.levels, LOOK_AHEAD.levels
    assert mix.between == 0.4
    for name in ("hidden", "accepted", "decoding", "uniform"):
        assert getattr(mix, name) == pytest.approx(0.6 * getattr(usual, name))
    assert train_options(replace(given, right_side=0.0)).objective.levels == usual


def test_command_line(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSD_HOME", str(tmp_path / "home"))
    asked = options(tmp_path, text)
    arguments = ["own-text", str(asked.out), "--model", str(asked.model), "--data", str(text), "--tokens", "20"]
    for flag in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--length", "8", "--batch", "4", *flag])
        assert ended.value.code in (0, None)
        out = capsys.readouterr().out
        assert "own.jsonl" in out
    assert json.loads(out)["tokens"] >= 20
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--temperature", "0.9"])
    assert ended.value.code == 1
    assert "another way" in capsys.readouterr().err
