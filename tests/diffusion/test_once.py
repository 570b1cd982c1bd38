"""A folder is made once, whole or not at all, and nobody waits for ever."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest
from ssd_diffusion import once
from ssd_diffusion.errors import InvalidModel


def make(target: Path, word: str, calls: list[str]) -> None:
    def build(scratch: Path) -> None:
        calls.append(word)
        (scratch / "word").write_text(word)
        if word == "broken":
            raise OSError("no")

    def current() -> bool:
        return (target / "word").is_file() and (target / "word").read_text() == word

    once.make_once(target, current=current, build=build, what="a word")


def test_it_is_made_once_and_replaced_when_stale(tmp_path: Path) -> None:
    target, calls = tmp_path / "deep" / "folder", []
    for word in ("one", "one", "two"):
        make(target, word, calls)
    assert calls == ["one", "two"]
    assert (target / "word").read_text() == "two"


def test_what_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target, calls = tmp_path / "folder", []
    make(target, "one", calls)
    with pytest.raises(OSError, match="no"):
        make(target, "broken", calls)
    assert (target / "word").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == ["folder"]


def test_waiting_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(once, "_WAIT_S", 0.3)
    with (tmp_path / ".folder.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(InvalidModel, match="still making a word"):
            make(tmp_path / "folder", "one", [])
