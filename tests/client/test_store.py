"""The store: what is registered comes back, what is damaged is refused, what fails leaves the earlier expert."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sqlite3
import stat
import string
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ssd_client.errors import BadInput, ExpertNotFound, StoreError
from ssd_client.store import ExpertCard, Store, check_name, file_sha256

CARD = ExpertCard(
    name="?", base="tiny", base_model_id="tiny@0", created="2026-01-01T00:00:00+00:00", documents=3,
    data_fingerprint="ab", lam=0.5, alpha=1, heldout_before=2.5, heldout_after=2.0, hyperparameters={"rank": 4},
)  # fmt: skip


def build(store: Store, content: str = "weights") -> Path:
    folder = store.staging()
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_text(content)
    (folder / "big.bin").write_bytes(b"\0" * (3 << 20))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home", lock_wait_s=0.2)


def test_register_show_list_open(store: Store) -> None:
    folder = build(store)
    card = store.register(folder, "notes", CARD)
    assert not folder.exists()
    assert card.name == "notes"
    assert card.sizes == {"big.bin": 3 << 20, "onnx/model.onnx": 7}
    assert card.hashes["onnx/model.onnx"] == hashlib.sha256(b"weights").hexdigest()
    assert store.show("notes") == card
    assert store.list() == [card]
    assert store.damaged() == []
    place = store.open("notes", full=True)
    assert (place / "onnx" / "model.onnx").read_text() == "weights"
    assert place.name == file_sha256(place / "card.json")
    assert card.summary() == {
        "name": "notes", "base": "tiny", "created": "2026-01-01T00:00:00+00:00", "documents": 3,
        "size_bytes": (3 << 20) + 7, "heldout_before": 2.5, "heldout_after": 2.0,
    }  # fmt: skip


def test_modes_are_private(store: Store) -> None:
    store.register(build(store), "notes", CARD)
    store.work_dir("notes")
    for path in store.home.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_a_new_expert_replaces_the_old_and_its_object(store: Store) -> None:
    store.register(build(store), "notes", CARD)
    first = store.open("notes")
    store.register(build(store, "better"), "notes", CARD)
    assert not first.exists()
    assert (store.open("notes") / "onnx" / "model.onnx").read_text() == "better"
    store.register(build(store, "better"), "notes", CARD)
    store.open("notes", full=True)
    assert len(list((store.home / "objects").iterdir())) == 1


def test_remove(store: Store) -> None:
    store.register(build(store), "a", CARD)
    store.register(build(store), "b", CARD)
    (store.work_dir("a") / "documents.sqlite").write_text("")
    store.remove("a")
    assert [card.name for card in store.list()] == ["b"]
    assert not (store.home / "work" / "a").exists()
    assert len(list((store.home / "objects").iterdir())) == 1
    for action in (store.remove, store.show, store.open):
        with pytest.raises(ExpertNotFound, match="known are: b"):
            action("a")
    store.remove("b")
    with pytest.raises(ExpertNotFound, match="make one with"):
        store.show("b")


def test_a_folder_from_elsewhere_is_copied(store: Store, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("x")
    store.register(tmp_path / "other", "notes", CARD)
    assert (store.open("notes") / "x").read_text() == "x"
    assert (tmp_path / "other" / "x").exists()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("file", "damage", "full"),
    [
        ("onnx/model.onnx", truncate, False),
        ("onnx/model.onnx", flip, False),
        ("onnx/model.onnx", Path.unlink, False),
        ("big.bin", truncate, False),
        ("big.bin", flip, True),
        ("card.json", flip, False),
        ("card.json", truncate, False),
        ("card.json", Path.unlink, False),
    ],
)
def test_damage_is_found(store: Store, file: str, damage: Callable[[Path], None], full: bool) -> None:
    store.register(build(store), "notes", CARD)
    damage(store.open("notes") / file)
    with pytest.raises(StoreError, match="again"):
        store.open("notes", full=full)
    if file == "card.json":
        assert store.list() == []
        assert store.damaged()[0][0] == "notes"
    store.register(build(store), "notes", CARD)
    store.open("notes", full=True)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"object": "../../etc"}', '{"object": 3}', "\0"])
def test_damaged_pointer(store: Store, text: str) -> None:
    store.register(build(store), "notes", CARD)
    (store.home / "experts" / "notes.json").write_text(text)
    with pytest.raises(StoreError, match="notes"):
        store.open("notes")
    assert store.list() == []
    store.remove("notes")
    assert not list((store.home / "objects").iterdir())


def test_a_card_cannot_name_files_outside(store: Store) -> None:
    card = store.register(build(store), "notes", CARD)
    evil = replace(card, sizes={"../../x": 1}, hashes={"../../x": "0"}).to_json().encode()
    place = store.home / "objects" / hashlib.sha256(evil).hexdigest()
    place.mkdir()
    (place / "card.json").write_bytes(evil)
    (store.home / "experts" / "notes.json").write_text(json.dumps({"format": 1, "object": place.name}))
    with pytest.raises(StoreError, match="outside its folder"):
        store.open("notes")


@pytest.mark.parametrize("where", ["rename", "replace", "fsync"])
def test_a_full_disk_leaves_the_earlier_expert(store: Store, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    store.register(build(store), "notes", CARD)
    folder = build(store, "better")

    def full(*_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os if where == "fsync" else Path, where, full)
        with pytest.raises(StoreError, match="the disk is full; free some space"):
            store.register(folder, "notes", CARD)
    assert (store.open("notes", full=True) / "onnx" / "model.onnx").read_text() == "weights"
    assert not list((store.home / "staging").iterdir())
    assert [one.name for one in (store.home / "experts").iterdir()] == ["notes.json"]
    store.sweep()
    assert len(list((store.home / "objects").iterdir())) == 1


def test_links_and_empty_folders_are_refused(store: Store, tmp_path: Path) -> None:
    folder = build(store)
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="plain files only"):
        store.register(folder, "notes", CARD)
    with pytest.raises(StoreError, match="holds no files"):
        store.register(store.staging(), "notes", CARD)
    with pytest.raises(StoreError):
        store.register(tmp_path / "absent", "notes", CARD)
    with pytest.raises(StoreError, match="no number"):
        store.register(build(store), "notes", replace(CARD, lam=float("nan")))
    assert store.list() == []


def test_the_lock_has_a_deadline_and_dies_with_its_holder(store: Store) -> None:
    store.register(build(store), "notes", CARD)
    code = (
        "import sys, time; from pathlib import Path; from ssd_client.store import Store\n"
        "with Store(Path(sys.argv[1]))._locked():\n    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(store.home)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout as out:
        assert out.readline() == "held\n"
        began = time.monotonic()
        with pytest.raises(StoreError, match="in use by another ssd-client"):
            store.remove("notes")
        assert time.monotonic() - began < 5
        assert store.open("notes").exists()
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=10)
    store.remove("notes")


def test_two_clients_register_at_once(store: Store) -> None:
    code = (
        "import sys; from pathlib import Path; from ssd_client.store import *\n"
        "store = Store(Path(sys.argv[1]))\n"
        "card = ExpertCard(name='', base='b', base_model_id='b', created='', documents=1, data_fingerprint='', lam=0, "
        "alpha=0)\n"
        "for i in range(8):\n"
        "    f = store.staging(); (f / 'x').write_text(sys.argv[2] + str(i)); store.register(f, 'same', card)\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(store.home), one]) for one in "ab"]
    assert [run.wait(timeout=60) for run in runs] == [0, 0]
    assert (store.open("same", full=True) / "x").read_text() in ("a7", "b7")
    assert len(list((store.home / "objects").iterdir())) == 1
    assert not list((store.home / "staging").iterdir())


def test_what_a_killed_run_left_is_swept_after_a_day(store: Store) -> None:
    young, old = build(store), build(store)
    for path in (old, *old.rglob("*")):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    assert store.sweep() == 1
    assert young.exists()
    assert not old.exists()


def test_card_json_round_trip_and_errors() -> None:
    assert ExpertCard.from_json(CARD.to_json()) == CARD
    good = json.loads(CARD.to_json())
    bad: list[tuple[dict[str, Any], str]] = [
        ({**good, "format": 9}, "format 9"),
        ({**good, "colour": 1}, "unknown field 'colour'"),
        ({one: good[one] for one in good if one != "lam"}, "no field 'lam'"),
        ({**good, "documents": "3"}, "'documents'"),
        ({**good, "lam": True}, "'lam'"),
        ({**good, "sizes": {"a": "b"}}, "'sizes'"),
        ({**good, "hyperparameters": []}, "'hyperparameters'"),
    ]
    for data, message in bad:
        with pytest.raises(StoreError, match=message):
            ExpertCard.from_json(json.dumps(data))
    for text in ("", "[]", json.dumps({**good, "lam": float("nan")})):
        with pytest.raises(StoreError):
            ExpertCard.from_json(text)


@pytest.mark.parametrize("name", ["notes", "a", "My.Notes_2-b", "x" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "a\\b", "-a", "a.", "con", "NUL.x", "x" * 65, "ü", "a\n"]
)
def test_bad_names(store: Store, name: str) -> None:
    for action in (check_name, store.show, store.open, store.remove, store.work_dir):
        with pytest.raises(BadInput, match="cannot be an expert's name"):
            action(name)


@given(st.text(max_size=70))
def test_a_name_that_passes_is_one_plain_path_component(name: str) -> None:
    try:
        check_name(name)
    except BadInput:
        return
    assert set(name) <= set(string.ascii_letters + string.digits + "._-")
    assert Path("/h", name + ".json").parent == Path("/h")
    assert not name.startswith(".")


def test_a_foreign_lock_file(store: Store) -> None:
    store.home.mkdir()
    (store.home / "store.lock").write_bytes(b"x" * 4096)
    with pytest.raises(StoreError):
        store.sweep()
    (store.home / "store.lock").unlink()
    sqlite3.connect(store.home / "store.lock").close()
    assert store.sweep() == 0
