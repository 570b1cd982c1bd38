"""Conversations about real documents: their questions have one answer among the notes, and it stands there."""

from __future__ import annotations

from ssd_cloud.corpus import pairs, readings
from ssd_cloud.corpus.model import Document

ORIGIN = ("handbook", "MIT")


def house(i: int) -> str:
    return (
        f"The red house number {i} was built in {1500 + i}. The roof of house {i} consists of {i + 20} plates. "
        f"To paint house {i}, call Mr Ekman{i} first. Some say that it is haunted."
    )


HOUSES = [Document(f"House {i}", house(i)) for i in range(40)]
PAGES = [Document(f"notes/page_{i}.html", "\n\n".join(house(10 * i + j) for j in range(9))) for i in range(8)]


def turns(row) -> list[tuple[str, str]]:
    said = [m["content"] for m in row["messages"][1:]]
    return list(zip(said[::2], said[1::2], strict=True))


def test_every_answer_stands_in_one_note():
    rows = list(readings.of_documents([(ORIGIN, HOUSES), (("other", "MIT"), PAGES)], 200, 0))
    assert rows == list(readings.of_documents([(ORIGIN, HOUSES), (("other", "MIT"), PAGES)], 200, 0))
    assert rows != list(readings.of_documents([(ORIGIN, HOUSES), (("other", "MIT"), PAGES)], 200, 1))
    assert len(rows) > 150
    assert {row["source"] for row in rows} == {"handbook", "other"}
    forms, several = set(), 0
    for row in rows:
        system = row["messages"][0]["content"]
        assert row["made"] == "rule"
        assert system.startswith(pairs.NOTES_HEADING)
        several += "[2]" in system
        assert 1 <= len(turns(row)) <= readings.MOST_TURNS
        for user, assistant in turns(row):
            assert system.count(assistant) == 1
            forms.add(user.split()[0])
    assert {"When", "How"} <= forms
    assert several > 0.6 * len(rows)


def test_a_pronoun_is_answered_with_the_title():
    text = "Ada Brown was a painter of the sea. She was born in 1887. He sold the boats."
    other = "Tim Reed was a sailor. He was born in 1899."
    rows = readings.of_documents(
        [(ORIGIN, [Document("Ada Brown (painter)", text), Document("Tim Reed", other)])], 40, 0
    )
    answers = {turn for row in rows for turn in turns(row)}
    assert ("When was Ada Brown born?", "Ada Brown was born in 1887.") in answers


def test_what_two_sentences_might_answer_is_not_asked():
    same = "The north gate was built in 1887. The north gate was built in 1901."
    assert list(readings.of_documents([(ORIGIN, [Document("a", same), Document("b", same)])], 40, 0)) == []


def test_without_documents_there_is_nothing():
    assert list(readings.of_documents([], 5, 0)) == []
    assert list(readings.of_documents([(ORIGIN, [])], 5, 0)) == []
    assert list(readings.of_documents([(ORIGIN, [Document("x", "Nothing here")])], 5, 0)) == []
