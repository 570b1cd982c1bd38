"""Cleaning, near-duplicates, held-out text and splitting: what stays, what goes, and why."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_cloud.corpus import clean, dedupe, split
from ssd_cloud.corpus.ids import write_ids
from ssd_cloud.corpus.model import Document
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.tokenizer import Tokenizer

PROSE = (
    "The harbour of the old town was built by the monks who had the right to all of the fish in it. When they left, "
    "the people of the town kept the wall, and it is still there for those who will look for it at low water."
)
STORIES = [
    f"{PROSE} In the year {year} it was the {name} who had to pay for the repair of the {part}, as he had been told."
    for year, name, part in ((1410, "mayor", "gate"), (1533, "baker", "stairs"), (1688, "bishop", "lamp"))
]


def test_prose_stays_and_the_rest_says_why_it_goes() -> None:
    rng = np.random.default_rng(0)
    documents = [
        Document("prose", PROSE),
        Document("short", "The end."),
        Document(
            "other", "Der Hafen wurde von Mönchen gebaut und später verlassen, doch die Mauer steht noch heute. " * 4
        ),
        Document("code", " ".join(f"the {{x{i}}} := {rng.integers(1e9)} [{i}];" for i in range(60))),
        Document("again", "\n".join(["It is the same line that was written before this one."] * 9)),
    ]
    found = clean.clean(documents, least_chars=100)
    assert [one.name for one in found.documents] == ["prose"]
    assert found.dropped == {
        "mostly code or tables": 1, "not English prose": 1, "repeats itself": 1, "too short": 1,
    }  # fmt: skip


def test_lines_that_all_documents_share_are_cut_out() -> None:
    texts = [Document(str(i), f"Skip to the main content of it\n\n{PROSE} Number {i}.") for i in range(30)]
    found = clean.clean(texts, least_chars=20)
    assert len(found.documents) == 30
    assert all("Skip to" not in one.text for one in found.documents)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_normalizing_twice_changes_nothing_more(text: str) -> None:
    once = clean.normalize(text)
    assert clean.normalize(once) == once
    assert "\n\n\n" not in once
    assert not set(once) & set("\x00\u200b\ufeff\t")


def test_equal_and_nearly_equal_texts_are_left_out() -> None:
    long = " ".join(f"word{i}" for i in range(400))
    texts = [long, long.upper() + "!", long.replace("word7 ", "other "), " ".join(f"else{i}" for i in range(400))]
    found = dedupe.distinct(texts)
    assert (found.kept, found.equal, found.near) == ((0, 3), 1, 1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("abcdefghij"), max_size=40), st.integers(1, 9))
def test_runs_are_those_of_the_words(letters: list[str], length: int) -> None:
    wanted = {tuple(letters[i : i + length]) for i in range(len(letters) - length + 1)}
    assert len(dedupe.runs(" ".join(letters), length)) == len(wanted)


def test_text_that_gives_held_out_text_away_is_found() -> None:
    held = dedupe.HeldOut([STORIES[0], "too short to look for"])
    assert held.leaks("Somebody wrote this once: " + STORIES[0])
    assert held.leaks(PROSE)
    assert not held.leaks("Another text about the sea, which has nothing of the one that was held out, as one can see.")
    assert not dedupe.HeldOut([]).leaks(PROSE)


def test_a_split_does_not_depend_on_the_others() -> None:
    documents = [Document(str(i), f"{PROSE} {i}") for i in range(3000)]
    train, held = split.split(documents, seed=1)
    assert len(train) + len(held) == 3000
    assert 10 <= len(held) <= 60
    assert all(split.is_held_out(one.text, 1) for one in held)
    fewer = split.split(documents[::2], seed=1)[1]
    assert set(fewer) == {one for one in held if int(one.name) % 2 == 0}
    some = split.at_most(documents, 50_000, seed=1)
    assert 45_000 < sum(len(one.text.encode()) for one in some) <= 50_000
    assert [int(one.name) for one in some] == sorted(int(one.name) for one in some)


def test_ids_are_the_texts_ended_by_eos(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_tiny(tmp_path / "tiny", family="llama"))
    counts: list[int] = []
    texts = [f"{one} {i}" for i in range(7) for one in STORIES]
    index = write_ids(
        tmp_path / "ids", {"train": texts, "heldout": STORIES[:1]}, tokenizer, shard_bytes=2048,
        on_count=lambda _text, tokens: counts.append(tokens),
    )  # fmt: skip
    shards = index["parts"]["train"]
    assert len(shards) > 1
    assert json.loads((tmp_path / "ids" / "index.json").read_text()) == index
    data = [(tmp_path / "ids" / one["file"]).read_bytes() for one in shards]
    assert all(len(part) <= 2048 for part in data)
    assert [hashlib.sha256(part).hexdigest() for part in data] == [one["sha256"] for one in shards]
    ids = np.frombuffer(b"".join(data), index["dtype"]).tolist()
    wanted = [int(t) for text in texts for t in [*tokenizer.encode(text), tokenizer.eos_ids[0]]]
    assert ids == wanted
    assert sum(counts[: len(texts)]) == len(wanted)
    with pytest.raises(FileNotFoundError):
        (tmp_path / "ids" / "heldout-001.bin").read_bytes()
