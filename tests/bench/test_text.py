"""Text scores against values worked out by hand."""

from __future__ import annotations

import math

import pytest
from ssd_bench.text import contains, distinct_n, normalise, token_f1, unigram_entropy


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("The  Answer, is: 42!", "answer is 42"),
        ("£1,250.50 per month.", "1250.50 per month"),
        ("at 9:30, not 10", "at 9:30 not 10"),
        ("An apple; a pear", "apple pear"),
        ("Marta's", "martas"),
        ("Zoë\u00a0Brandt", "zoë brandt"),
        ("...", ""),
    ],
)
def test_normalise(raw, clean):
    assert normalise(raw) == clean


def test_contains_whole_words():
    assert contains("It is kept in Room 14, upstairs.", ["room 14"])
    assert not contains("It is kept in Room 142.", ["room 14"])
    assert not contains("anything", ["..."])


def test_token_f1():
    assert token_f1("the red door", ["red gate"]) == pytest.approx(0.5)
    assert token_f1("red door", ["blue", "a red door"]) == 1.0
    assert token_f1("", ["x"]) == 0.0
    assert token_f1("x x x", ["x"]) == pytest.approx(0.5)
    assert token_f1("x", []) == 0.0


def test_distinct_and_entropy():
    assert distinct_n([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)
    assert distinct_n([[1], [2]], 2) == 0.0
    assert unigram_entropy([[1, 2], [3, 4]]) == pytest.approx(math.log(4))
    assert unigram_entropy([]) == 0.0
