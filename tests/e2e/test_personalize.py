"""`ssd-client personalize` as a process, on a tiny base: from a folder to an answer, again, stopped, refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from answering_support import client, environment

pytestmark = pytest.mark.slow

WORDS = "The workshop opens at {0}:40 and Ilse hangs key number {0} on hook {1}; the glue pot stays on shelf {1}. "


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "documents"
    folder.mkdir()
    for i in range(1, 9):
        (folder / f"note{i}.md").write_text(f"# Note {i}\n\n" + "".join(WORDS.format(i, i * j) for j in range(1, 9)))
    (folder / "blob.bin").write_bytes(bytes(range(256)) * 8)
    return folder


def arguments(documents: Path, base: Path, *more: str) -> list[str]:
    return ["personalize", str(documents), "--name", "notes", "--base", str(base), "--max-minutes", "0.1", *more]


def test_a_folder_becomes_an_expert_and_only_what_changed_is_read_again(bare, documents, models):
    done = client(bare, *arguments(documents, models["core"], "--json"), timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    card = json.loads(done.stdout)
    assert card["run"]["ingest"]["parsed"] >= 8
    assert card["run"]["ingest"]["skipped"][0][0] == "blob.bin"
    assert card["run"]["sample"] == card["calibration"]["sample"]
    assert {"after", "reason"} & card["run"]["sample"].keys()  # six seconds may be too few
    listed = json.loads(client(bare, "list", "--json").stdout)
    assert [set(one) for one in listed] == [
        {"name", "base", "created", "documents", "size_bytes", "heldout_before", "heldout_after"}
    ]
    answered = client(bare, "generate", "Where is key 3?", "--offline", "--max-tokens", "5", "--json")
    assert answered.returncode == 0, answered.stderr
    assert json.loads(answered.stdout)["passages"]

    (documents / "note3.md").write_text("# Note 3\n\nKey number three is lost. " + WORDS.format(3, 3) * 8)
    again = client(bare, *arguments(documents, models["core"]), timeout=300)
    assert again.returncode == 0, again.stderr
    assert "only 1 new or changed files were read" in again.stderr
    assert "left out blob.bin: binary file" in again.stderr
    assert "held-out loss" in again.stdout
    assert "it goes on" in again.stdout or "No held-out text" in again.stdout
    shown = client(bare, "show", "notes")
    assert shown.returncode == 0, shown.stderr
    assert "lambda (rows)" in shown.stdout
    assert "{" not in shown.stdout


def test_ctrl_c_says_how_to_go_on_and_keeps_what_was_done(bare, documents, models):
    process = subprocess.Popen(
        [sys.executable, "-m", "ssd_client.cli.main", *arguments(documents, models["core"])], env=environment(bare),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("learning:"):
            break
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    assert (process.returncode, out) == (130, "")
    assert "--resume" in err
    assert "Traceback" not in err
    assert json.loads(client(bare, "list", "--json").stdout) == []
    resumed = client(bare, *arguments(documents, models["core"], "--resume"), timeout=300)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "is empty"),
        (lambda folder: (folder.mkdir(), (folder / "a.bin").write_bytes(bytes(range(256)))), "a.bin: binary file"),
        (lambda folder: folder.write_text("a file"), "is not a folder"),
    ],
)
def test_folders_that_cannot_be_learned_are_refused(bare, tmp_path, models, make, words):
    make(tmp_path / "odd")
    done = client(bare, *arguments(tmp_path / "odd", models["core"], "--json"))
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("more", [("--name", "a/b"), ("--max-minutes", "0"), ("--base", "/no/such/model")])
def test_flags_that_cannot_be_meant(bare, documents, models, more):
    done = client(bare, *arguments(documents, models["core"], "--json", *more))
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("ssd-client: ")
    assert done.stderr.count("\n") == 1
