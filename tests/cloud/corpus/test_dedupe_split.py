"""Near-duplicates, leaks, and the split by content."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_cloud.corpus import split
from ssd_cloud.corpus.dedupe import HeldOut, distinct, runs
from ssd_cloud.corpus.model import Document


def changed(text: str, every: int) -> str:
    words = text.split()
    return " ".join(f"new{i}" if i % every == 0 else w for i, w in enumerate(words, 1))


def test_equal_and_nearly_equal_texts_are_left_out(english):
    base = [english(i, 30) for i in range(20)]
    texts = [*base, base[3].upper() + "!", changed(base[4], 150), changed(base[5], 6)]
    found = distinct(texts)
    assert found.kept == (*range(20), 22)
    assert (found.equal, found.near) == (1, 1)


def test_a_text_leaks_when_it_holds_a_fifth_of_a_held_out_one_or_is_made_of_it(english):
    held = [english(i, 20) for i in range(5)]
    index = HeldOut(held)
    fifth = " ".join(held[2].split()[:60])
    assert index.leaks(f"{english(50, 60)} {fifth} {english(51, 60)}")
    assert index.leaks(" ".join(held[1].split()[10:24]))
    assert not index.leaks(english(70, 40))
    assert not index.leaks(" ".join(held[2].split()[:8]) + " " + english(71, 60))
    assert not HeldOut([]).leaks(held[0])


@given(st.text(max_size=200))
def test_runs_ignore_case_and_marks(text: str):
    plain = runs(text, 3)
    assert np.array_equal(runs(f"  {text} ...", 3), plain)
    assert np.all(plain[1:] > plain[:-1])


@settings(max_examples=40)
@given(st.lists(st.sampled_from("abcdefghij"), max_size=40), st.integers(1, 9))
def test_runs_are_those_of_the_words(letters: list[str], length: int):
    wanted = {tuple(letters[i : i + length]) for i in range(len(letters) - length + 1)}
    assert len(runs(" ".join(letters), length)) == len(wanted)


def test_runs_are_the_same_in_every_process(english):
    code = "import sys; from ssd_cloud.corpus.dedupe import runs; print(int(runs(sys.argv[1], 8).sum()))"
    text = english(1)
    said = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, timeout=60, check=True)
    assert int(said.stdout) == int(runs(text, 8).sum())


def test_the_split_follows_content_and_seed_alone(english):
    documents = [Document(str(i), english(i)) for i in range(600)]
    train, held = split.split(documents, 0)
    assert 1 <= len(held) <= 20
    assert len(train) + len(held) == 600
    assert split.split(documents[::-1], 0)[1] == held[::-1]
    assert split.split(documents, 1)[1] != held
    others = split.split([d for d in documents if int(d.name) % 3], 0)[1]
    assert set(others) == {d for d in held if int(d.name) % 3}
    assert all(split.is_held_out(d.text, 0) for d in held)


def test_held_out_text_is_bounded(monkeypatch: pytest.MonkeyPatch, english):
    monkeypatch.setattr(split, "HELD_OUT_SHARE", 1.0)
    monkeypatch.setattr(split, "HELD_OUT_BYTES", 2000)
    train, held = split.split([Document(str(i), english(i)) for i in range(10)], 0)
    assert 0 < sum(len(d.text) for d in held) <= 2000
    assert len(train) == 10 - len(held)


@given(st.floats(0, 5000), st.integers(0, 9))
def test_a_choice_stays_within_its_bytes(most: float, seed: int):
    documents = [Document(str(i), "x" * (i * 7 % 90 + 1) + str(i)) for i in range(60)]
    chosen = split.at_most(documents, most, seed)
    assert sum(len(d.text) for d in chosen) <= most
    assert [d for d in documents if d in chosen] == list(chosen)
