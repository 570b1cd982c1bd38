"""What `make setup` says when it cannot work, and that its settings agree with the project's."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SETUP = ROOT / ".ci" / "setup"


def setup_with(python: str) -> subprocess.CompletedProcess[str]:
    """`make setup`'s script with another interpreter; it stops before it touches anything."""
    environment = {**os.environ, "PYTHON": python}
    return subprocess.run([str(SETUP)], env=environment, capture_output=True, text=True, timeout=30, check=False)


def test_an_old_python_is_one_sentence(tmp_path: Path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\nif [ "$1" = -V ]; then echo "Python 3.9.2"; exit 0; fi\nexit 1\n')
    old.chmod(0o755)
    done = setup_with(str(old))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "needs Python 3.11 or newer" in done.stderr
    assert "is Python 3.9.2" in done.stderr


def test_a_missing_python_is_one_sentence(tmp_path: Path):
    done = setup_with(str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "was not found" in done.stderr


def test_torch_of_a_machine_without_gpu_is_within_the_range():
    text = SETUP.read_text("utf-8")
    pinned = re.search(r"torch_cpu='torch==(\d+)\.(\d+)", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    least = {re.search(r"(\d+)\.(\d+)", d).groups() for d in project["optional-dependencies"]["cloud"] if "torch" in d}
    assert {tuple(map(int, pinned.groups())) >= tuple(map(int, one)) for one in least} == {True}
    assert "torch==" not in (ROOT / "constraints.txt").read_text("utf-8")


def test_no_index_or_host_is_named():
    for name in ("Makefile", ".ci/setup", ".ci/run", "constraints.txt", "pyproject.toml"):
        assert not re.search(r"https?://|--(extra-)?index-url|find-links", (ROOT / name).read_text("utf-8")), name
