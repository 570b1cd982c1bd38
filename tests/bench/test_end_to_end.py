"""The suites on a registered expert: a folder is personalized on a tiny base, then measured as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOPICS = ("boats", "keys", "invoices", "pumps", "gardens", "letters", "engines", "stores")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_folders) -> tuple[Path, Path, Path]:
    """HOME with an expert, a folder of examples, and the core."""
    from ssd_client.personalize import PersonalizeOptions, personalize

    root = tmp_path_factory.mktemp("made")
    documents = root / "examples" / "company"
    documents.mkdir(parents=True)
    for i, topic in enumerate(TOPICS):
        lines = [f"The {topic} of house {i} are counted on day {d}, and Ms {topic.title()} signs." for d in range(9)]
        (documents / f"{topic}.md").write_text(f"# About {topic}\n\n" + "\n\n".join(lines))
    rows = [
        {"id": t, "question": f"Who signs for the {t}?", "answer": f"Ms {t.title()}", "accept": [t.title()],
         "document": f"company/{t}.md"}
        for t in TOPICS
    ]  # fmt: skip
    (root / "examples" / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    core, _ = tiny_folders
    options = PersonalizeOptions(
        folder=documents, name="mine", base=core, train_minutes=0.02, length=64, block=4, rank=2, select_tokens=60,
        retrieve=False,
    )  # fmt: skip
    card = personalize(options, home=root / "home", progress=lambda _: None)
    assert card.hyperparameters["heldout_documents"]
    return root / "home", root / "examples", core


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssd_bench", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_wire_on_a_registered_expert(made, tmp_path):
    home, examples, core = made
    shared = ("--home", home, "--examples", examples, "--core", core, "--out", tmp_path, "--json")
    done = run("wire", *shared, "--limit", 1, "--max-tokens", 6, "--passes", 0, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [p["name"] for p in json.loads(done.stdout)["parts"]] == ["Default decode"]
    rows = json.loads((tmp_path / "bench" / "results.json").read_text())["rows"]
    assert {row["suite"] for row in rows} == {"wire"}


@pytest.mark.slow
def test_decode_on_a_registered_expert(made, tmp_path):
    home, examples, core = made
    shared = ("--home", home, "--examples", examples, "--core", core, "--base", core, "--out", tmp_path, "--json")
    done = run("decode", *shared, "--limit", 7, "--tokens", 6, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["ratio"] > 0 for row in json.loads(done.stdout)["rows"]] == [True] * 5
    page = (tmp_path / "performance.md").read_text()
    assert "## Tokens a second" in page
    assert "core alone / its base in transformers" in page
    rows = json.loads((tmp_path / "bench" / "results.json").read_text())["rows"]
    assert [(row["n"], row["target"]) for row in rows] == [(7, 1.0), (7, 1.0), (1, 1.0), (7, 1.5), (7, 100.0)]
    assert "### The first words" in page


@pytest.mark.slow
def test_no_expert_is_one_sentence(tmp_path, made):
    _, examples, core = made
    done = run("wire", "--home", tmp_path, "--examples", examples, "--core", core, folder=tmp_path)
    assert done.returncode == 2
    assert "there is no expert yet" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
