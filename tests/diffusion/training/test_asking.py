"""Questions from plain sentences: what is asked for, what is not asked, and that the sentence is the answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ssd_diffusion.training import asking


@pytest.mark.parametrize(
    ("sentence", "questions"),
    [
        ("To draw a shape, choose an icon and drag in the document.", ["How do I draw a shape?"]),
        ("If the list is empty, the command does nothing at all.", ["What happens if the list is empty?"]),
        ("When the timer ends, the lamp above the door goes out.", ["What happens when the timer ends?"]),
        ("The old mill was built in 1887 by Ada Brown.",
         ["When was the old mill built?", "By whom was the old mill built in 1887?"]),
        ("The museum is open in Lisbon, and it has a garden.", ["Where is the museum open?"]),
        ("The comb filter is used to remove short waves.", ["What is the comb filter used to?"]),
        ("The young animal is called an eft.", ["What is the young animal called?"]),
        ("A newt is a salamander with a long tail.", ["What is a newt?", "How many"]),
        ("The kit contains fourteen panels, all of them cut.", []),
        ("The kit contains fifteen panels, all of them cut.", ["How many panels does the kit contain?"]),
        ("Anna Berg found the letter in Vienna.",
         ["Where did Anna Berg find the letter?", "Who found the letter in Vienna?"]),
        ("The van needs diesel because its engine is an old one.", ["Why does the van need diesel?"]),
        ("The harbour office opens at 08:30.", ["When does the harbour office open?"]),
    ],
)  # fmt: skip
def test_what_is_asked_about_a_sentence(sentence: str, questions: list[str]):
    asked = list(asking.about(sentence, person=True))
    assert all(one.answer == sentence for one in asked)
    assert {q for q in questions if q.endswith("?")} <= {one.question for one in asked}
    assert bool(questions) == bool(asked)


@pytest.mark.parametrize(
    "sentence",
    [
        "It was built in 1887 by a man of the town.",  # what was?
        "In most towns the mill was built in 1887.",
        "Days returned are read by the next command.",
        "The value (see below) is used to find the end.",
        "The mill was built in 1887",
        "If it is so, the command does nothing at all.",
        "Yes.",
    ],
)
def test_what_is_unclear_is_not_asked(sentence: str):
    assert list(asking.about(sentence, person=False)) == []


def test_names_are_asked_for_with_who_only_where_people_are():
    sentence = "Ada Brown wrote the first of the letters."
    assert "Who wrote the first of the letters?" in [one.question for one in asking.about(sentence, person=True)]
    assert "What wrote the first of the letters?" in [one.question for one in asking.about(sentence, person=False)]


@given(st.text(max_size=200), st.booleans())
def test_any_text_gives_proper_questions_or_none(text: str, person: bool):
    for one in asking.about(text, person=person):
        assert one.answer == text
        assert one.question.endswith("?")
        assert one.question[0] == one.question[0].upper()
