"""A whole build on small archives: what it writes, that it writes it again, and what it keeps out of training."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ssd_cloud.corpus import build as building
from ssd_cloud.corpus import sets
from ssd_cloud.corpus import split as splitting
from ssd_cloud.corpus.build import BuildOptions, build
from ssd_cloud.errors import DataError, UsageError
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training.data import read_items

Build = Callable[..., dict[str, Any]]


@pytest.fixture
def run_build(tmp_path: Path, shop, tokenizer: Tokenizer) -> Build:
    def run(name: str = "out", *, held: tuple[Path, ...] = (), on_progress=lambda _w, _d: None, **options: Any):
        chosen = {"out": tmp_path / name, "cache": tmp_path / "cache"} | options
        return build(
            BuildOptions(**chosen), lambda: tokenizer, held_out_files=held, on_progress=on_progress, run=shop.run
        )

    return run


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def texts(folder: Path, half: str) -> list[str]:
    return [row["text"] for path in sorted((folder / half / "text").glob("*.jsonl")) for row in rows(path)]


def pair_texts(folder: Path, half: str) -> list[str]:
    paths = sorted((folder / half / "pairs").glob("*.jsonl"))
    return ["\n".join(m["content"] for m in row["messages"]) for path in paths for row in rows(path)]


def test_the_same_build_writes_the_same_bytes(tmp_path: Path, run_build: Build):
    first = run_build("one", cache=tmp_path / "cache-1")
    again = run_build("two/deep", cache=tmp_path / "cache-2")
    assert again == first
    written = hashes(tmp_path / "one")
    assert hashes(tmp_path / "two" / "deep") == written
    assert {name: written[name] for name in first["files"]} == first["files"]
    assert set(written) == {*first["files"], "card.json", "card.md"}
    other = run_build("three", seed=1)
    assert other["files"]["ids/train-000.bin"] != first["files"]["ids/train-000.bin"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "cache-1", "cache-2", "one", "three", "two"]


def test_what_a_build_writes(tmp_path: Path, run_build: Build, tokenizer: Tokenizer):
    stages: list[tuple[str, float]] = []
    card = run_build(on_progress=lambda words, done: stages.append((words, done)))
    out = tmp_path / "out"
    assert json.loads((out / "card.json").read_text("utf-8")) == card
    for source in card["sources"]:
        found = rows(out / "train" / "text" / f"{source['name']}.jsonl")
        assert len(found) == source["documents"]
        assert sum(len(row["text"].encode()) for row in found) == source["bytes"]
        assert {(row["source"], row["licence"]) for row in found} == {(source["name"], source["licence"])}
        assert sum(len(tokenizer.encode(row["text"])) + 1 for row in found) == source["tokens"]
        assert (len(source["sha256"]), bool(source["version"])) == (64, True)
    index = json.loads((out / "ids" / "index.json").read_text())
    for half in ("train", "heldout"):
        shards = index["parts"][half]
        ids = np.concatenate([np.fromfile(out / "ids" / one["file"], index["dtype"]) for one in shards])
        ends = np.flatnonzero(ids == index["eos"])
        documents = [tokenizer.decode(part[:-1].tolist()) for part in np.split(ids, ends + 1)[:-1]]
        assert sorted(documents) == sorted(texts(out, half))
        assert card["tokens"][half] == len(ids)
    assert card["tokens"]["train"] == sum(source["tokens"] for source in card["sources"])
    for name, one in card["pairs"].items():
        half, file = name.split("/")
        assert len(rows(out / half / "pairs" / f"{file}.jsonl")) == one["rows"]
    assert {"train/articles", "train/boolq", "train/inventions", "heldout/inventions"} <= set(card["pairs"])
    page = (out / "card.md").read_text("utf-8")
    assert all(f"| {source['name']} | {source['what']} |" in page for source in card["sources"])
    assert [done for _, done in stages] == sorted(done for _, done in stages)
    assert 0 <= stages[0][1] <= stages[-1][1] <= 1


def test_no_kind_of_pairs_outweighs_the_others(tmp_path: Path, run_build: Build, monkeypatch: pytest.MonkeyPatch):
    run_build("all")
    monkeypatch.setattr(building, "_MOST_ROWS", {"boolq": 3})
    card = run_build("few")
    every, few = (rows(tmp_path / name / "train" / "pairs" / "boolq.jsonl") for name in ("all", "few"))
    assert few == every[:3]
    assert card["pairs"]["train/boolq"]["rows"] == 3 < len(every)


def test_training_reads_what_a_build_writes(tmp_path: Path, run_build: Build):
    card = run_build()
    items = list(read_items((tmp_path / "out" / "train",)))
    assert sorted(one for one in items if isinstance(one, str)) == sorted(texts(tmp_path / "out", "train"))
    chats = ["\n".join(m["content"] for m in one) for one in items if not isinstance(one, str)]
    assert sorted(chats) == sorted(pair_texts(tmp_path / "out", "train"))
    assert len(chats) == sum(one["rows"] for name, one in card["pairs"].items() if name.startswith("train/"))


@pytest.mark.parametrize("share", [splitting.HELD_OUT_SHARE, 0.3])
def test_held_out_text_is_not_trained_on(
    tmp_path: Path, run_build: Build, monkeypatch: pytest.MonkeyPatch, share: float
):
    monkeypatch.setattr(splitting, "HELD_OUT_SHARE", share)
    card = run_build()
    held, trained = texts(tmp_path / "out", "heldout"), texts(tmp_path / "out", "train")
    assert held
    inside = building.HeldOut(held)
    assert not any(inside.leaks(text) for text in trained)
    chats = pair_texts(tmp_path / "out", "train")
    assert not any(inside.leaks(text) for text in chats)
    assert not set(chats) & set(pair_texts(tmp_path / "out", "heldout"))
    if share > 0.1:  # of two passages with half of their text in common, one is often held out
        (boolq,) = (one for one in card["sources"] if one["name"] == "boolq")
        assert boolq["dropped"]["in the held-out split"] >= 5
        assert boolq["documents"] >= 20
        assert sum("mole" in chat for chat in chats) >= 5


def faq(make, pages: list[str]) -> bytes:
    return make["debian"](
        {f"usr/share/doc/debian/FAQ/{i}.en.html": make["page"](f"Question {i}", text) for i, text in enumerate(pages)}
    )


def test_test_sets_and_duplicates_and_examples_are_kept_out(
    tmp_path: Path, run_build: Build, shop, make, english, archives: dict[str, bytes]
):
    example = tmp_path / "examples" / "a.md"
    example.parent.mkdir()
    example.write_text(english(77, 30))
    (tmp_path / "examples" / "questions.jsonl").write_text(json.dumps({"question": english(88, 3), "n": 1}) + "\n\n")
    bank, mail, manual, book = english(5000, 6), english(7001, 3), english(8002), english(9003)
    leaks = [f"{english(40 + i)} {text} {english(60 + i)}" for i, text in enumerate((bank, mail, manual, book))]
    leaks += [f"{english(50)} {english(77, 30)[:600]}", f"{english(51, 3)} {english(88, 3)}"]
    fresh = [english(600 + i, 20) for i in range(4)]
    shop.archives["debian-faq"] = faq(make, [*fresh, *leaks, fresh[0].upper(), fresh[1] + " One more sentence of it."])
    card = run_build(sources=("faq",), held=(tmp_path / "examples",))
    (source,) = card["sources"]
    assert source["dropped"] == {"duplicate or nearly so": 2, "in a test set": 6}
    kept = texts(tmp_path / "out", "train") + texts(tmp_path / "out", "heldout")
    assert sorted(text.split("\n\n")[1] for text in kept) == sorted(fresh)
    assert card["checked_against"] == ["bank", "code-docs", "encyclopaedia", "mails", "manual", "examples"]


def test_the_encyclopaedia_set_is_kept_from_training_for_every_seed(tmp_path: Path, run_build: Build, shop):
    kept = {one.text for one in sets.documents("encyclopaedia", tmp_path / "cache", shop.run)}
    assert 2 <= len(kept) <= 15
    for seed in (0, 1):
        card = run_build(f"seed-{seed}", seed=seed, sources=("leads",))
        (source,) = card["sources"]
        assert source["dropped"]["kept for a test set"] == len(kept)
        written = texts(tmp_path / f"seed-{seed}", "train") + texts(tmp_path / f"seed-{seed}", "heldout")
        assert len(written) == 120 - len(kept)
        assert not kept & set(written)
        answers = "\n".join(pair_texts(tmp_path / f"seed-{seed}", "train"))
        assert not any(text.split(". ")[2] in answers for text in kept)


def test_a_limit_is_shared_out_by_size(tmp_path: Path, run_build: Build):
    whole = {one["name"]: one["bytes"] for one in run_build("whole")["sources"]}
    card = run_build("less", max_mb=0.05)
    less = {one["name"]: one["bytes"] for one in card["sources"]}
    assert 40_000 < sum(less.values()) <= 50_000
    share = 50_000 / sum(whole.values())
    assert all(less[name] <= 1.25 * share * whole[name] for name in ("speeches", "leads", "boolq"))
    assert less["speeches"] > less["leads"]
    assert any("over the source's share" in one["dropped"] for one in card["sources"])


def test_a_build_that_was_stopped_fetches_nothing_twice(tmp_path: Path, run_build: Build, shop):
    def stop(words: str, _done: float) -> None:
        if words == "splitting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_build("stopped", on_progress=stop)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache"]
    asked = len(shop.asked)
    assert asked == len(set(shop.asked)) == 8
    run_build("stopped")
    assert len(shop.asked) == asked
    run_build("straight", cache=tmp_path / "other")
    assert hashes(tmp_path / "stopped") == hashes(tmp_path / "straight")


def cached(cache: Path, package: str, data: bytes) -> None:
    """A Debian package that was fetched before."""
    folder = cache / "packages" / f"apt-{package}"
    folder.mkdir(parents=True)
    (folder / f"{package}_1_all.deb").write_bytes(data)
    record = {"file": f"{package}_1_all.deb", "version": "1", "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "fetched.json").write_text(json.dumps(record))


@pytest.mark.slow
def test_a_killed_process_leaves_nothing_in_the_way(
    tmp_path: Path, dpkg: None, archives: dict[str, bytes], tokenizer_folder: Path
):
    for package in ("debian-faq", "git-doc", "rust-doc"):
        cached(tmp_path / "cache", package, archives[package])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SSD_")}
    # No client finds anything: pip has no index, and npm is not on the path.
    environment |= {"PIP_NO_INDEX": "1", "SSD_HOME": str(tmp_path / "home"), "PATH": only_dpkg(tmp_path)}
    command = [str(Path(sys.executable).with_name("ssd-cloud")), "data", "build", "out", "--source", "faq", "--json",
               "--skip-missing", "--cache", "cache", "--tokenizer", str(tokenizer_folder)]  # fmt: skip
    partial, out = tmp_path / ".out.partial", tmp_path / "out"
    killed = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    began = time.monotonic()
    while not partial.exists() and killed.poll() is None and time.monotonic() - began < 60:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait(60) == -signal.SIGKILL
    assert partial.exists()
    assert not out.exists()
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["missing"]) == {"bank", "mails", "encyclopaedia"}
    assert not partial.exists()
    assert len(texts(out, "train")) + len(texts(out, "heldout")) == 12


def only_dpkg(tmp_path: Path) -> str:
    """A path on which dpkg-deb and what it calls are the only programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("dpkg-deb", "tar", "gzip", "xz", "zstd", "sh"):
        found = next((Path(p) / name for p in os.environ["PATH"].split(":") if (Path(p) / name).exists()), None)
        if found is not None:
            (folder / name).symlink_to(found)
    return str(folder)


def test_a_missing_package_is_an_error_or_a_note(tmp_path: Path, run_build: Build, shop):
    del shop.archives["debian-faq"], shop.archives["git-doc"]
    with pytest.raises(DataError, match=r"^debian-faq could not be fetched .*; run again, or pass --skip-missing$"):
        run_build(sources=("faq", "speeches"))
    assert not (tmp_path / "out").exists()
    card = run_build(sources=("faq", "speeches"), skip_missing=True)
    assert [one["name"] for one in card["sources"]] == ["speeches"]
    assert set(card["missing"]) == {"debian-faq", "manual"}
    assert "manual" not in card["checked_against"]
    assert "Missing: debian-faq (" in (tmp_path / "out" / "card.md").read_text("utf-8")
    with pytest.raises(DataError, match="nothing left to train on"):
        run_build("none", sources=("faq",), skip_missing=True)
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_built(tmp_path: Path, run_build: Build):
    with pytest.raises(UsageError, match="no source 'novel'"):
        run_build(sources=("novel",))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "link", "file"):
        with pytest.raises(UsageError, match="is there already"):
            run_build(name)
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    with (tmp_path / ".busy.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another command is making"):
            run_build("busy")


def test_an_empty_folder_may_be_there(tmp_path: Path, run_build: Build):
    (tmp_path / "out").mkdir()
    run_build(sources=("faq",))
    assert (tmp_path / "out" / "card.md").exists()


def test_sets_are_written_as_folders_of_plain_files(tmp_path: Path, shop):
    (tmp_path / "sets").mkdir()
    card = sets.write_sets(tmp_path / "sets", (), tmp_path / "cache", run=shop.run)
    assert list(card) == ["bank", "mails", "manual", "code-docs", "encyclopaedia"]
    for name, one in card.items():
        files = sorted((tmp_path / "sets" / name).iterdir())
        assert len(files) == one["documents"] > 0
        assert sum(len(path.read_bytes()) - 1 for path in files) == one["bytes"]
    assert (tmp_path / "sets" / "bank" / "0000-doc-0.md").read_text("utf-8").startswith("# Card 0\n\n")
    assert json.loads((tmp_path / "sets" / "card.json").read_text("utf-8")) == card
    with pytest.raises(UsageError, match="no set 'banks'; the sets are bank, mails"):
        sets.write_sets(tmp_path / "sets", ("banks",), tmp_path / "cache", run=shop.run)
