"""Questions about typed parts: what they look like, and what holds for any text."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ssd_diffusion.training import asking, spans
from ssd_diffusion.training.reading import Part, turns


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        (
            "A set of ceiling filters costs £214, so do not change them.",
            "How much does a set of ceiling filters cost?",
            "A set of ceiling filters costs £214.",
        ),
        ("The deposit is £75 a boat, by card.", "How much is the deposit a boat?", "The deposit is £75 a boat."),
        (
            "On Fridays the machines go off at 14:30.",
            "At what time on Fridays the machines go off?",
            "On Fridays the machines go off at 14:30.",
        ),
        ("The loan runs until 30 September 2027.", "When the loan runs?", "The loan runs until 30 September 2027."),
        (
            "She came ashore for good in February 1991; the knee was bad.",
            "When she came ashore for good?",
            "She came ashore for good in February 1991.",
        ),
        (
            "Resin in the locker must not sink below 12%.",
            "What percentage must Resin in the locker not sink below?",
            "Resin in the locker must not sink below 12%.",
        ),
        (
            "The booth may not be sold for five years.",
            "How many years may the booth not be sold for?",
            "The booth may not be sold for five years.",
        ),
        (
            "The oak for stems comes from Havering Sawmill, air dried.",
            "What the oak for stems comes from?",
            "The oak for stems comes from Havering Sawmill.",
        ),
        (
            "The house is **closed** on Mondays, for cleaning.",
            "On which day is the house closed?",
            "The house is closed on Mondays.",
        ),
    ],
)
def test_the_part_goes_out_and_what_asks_for_it_goes_in_front(sentence: str, question: str, answer: str) -> None:
    made = {one.question: one.answer for one in spans.about(sentence, person=False)}
    assert question in made, made
    assert made[question] == answer


def test_names_of_people_are_asked_for_as_people() -> None:
    sentence = "The sails of that boat are sewn by Wren Harlow in the attic."
    asked = {person: [one.question for one in spans.about(sentence, person=person)] for person in (True, False)}
    assert asked[True] == ["Who are the sails of that boat sewn by in the attic?"]
    assert asked[False] == ["What are the sails of that boat sewn by in the attic?"]


@pytest.mark.parametrize(
    "sentence",
    [
        "Short: 5 m.",
        "| meals when travelling | £27 a day | and a hotel |",
        "From: Ines <ines@example.org> Date: Tue, 03 Jun 2025",
        "GRACE = timedelta(minutes=12) and 15 pounds of it",
        "Nothing in this sentence can be counted or named by anybody.",
        "£1,200.",
        "The limit (as agreed upon) is £3,000.",
    ],
)
def test_what_is_no_sentence_or_says_nothing_typed_is_not_asked_about(sentence: str) -> None:
    assert list(spans.about(sentence, person=True)) == []


_WORDS = st.sampled_from(
    [
        "the",
        "boat",
        "costs",
        "£3,000",
        "14:30",
        "Mr",
        "Pell",
        "is",
        "in",
        "May",
        "2026,",
        "six",
        "metres;",
        "(or)",
        "12%",
    ]
)


@given(st.lists(_WORDS, min_size=1, max_size=30, unique=True), st.booleans())
def test_any_text_gives_questions_that_do_not_hold_the_part_they_ask_for(found: list[str], person: bool) -> None:
    sentence = " ".join(found) + "."
    for one in spans.about(sentence, person=person):
        assert one.answer.rstrip(".").lower() in sentence.lower()
        assert one.question.endswith("?")
        assert one.question[0] == one.question[0].upper()
        assert "  " not in one.question
        assert len(one.question) <= 122
        asked_for = set(re.findall(r"[a-z0-9£%]+", one.answer.lower())) - set(re.findall(r"\w+", one.question.lower()))
        assert asked_for


def test_turns_take_more_rules_and_ask_a_sentence_once() -> None:
    parts = [
        Part("Shop", ("A bowl of soup costs £1.50, in the tin.", "The kettle was bought in 1998.")),
        Part("Yard", ("The padlock of the long gate opens at 6:45 for the postman.",)),
    ]
    plain = turns(np.random.default_rng(0), parts, 6)
    more = turns(np.random.default_rng(0), parts, 6, (asking.about, spans.about))
    assert {one.answer for one in plain} < {one.answer for one in more}
    assert len({one.answer for one in more}) == len(more) == 3
