"""Prose in sentences and stretches, and content words."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from ssd_diffusion.training import reading


def test_sentences_end_with_their_paragraph_or_point():
    text = "One is here. Two is\nthere.\n\nA heading\n\n- a point\n- another point\n\n1. the first"
    assert reading.sentences_of_lines(text) == [
        "One is here.", "Two is there.", "A heading", "- a point", "- another point", "1. the first",
    ]  # fmt: skip


@given(st.lists(st.text("ab c", min_size=1, max_size=30), max_size=30), st.integers(1, 40))
def test_stretches_keep_every_sentence_in_order_and_their_bound(text: list[str], most: int):
    found = reading.in_stretches(text, most)
    assert [one for part in found for one in part] == [one[:most] for one in text]
    for part in found:
        assert part
        assert len(" ".join(part)) <= most
    for first, second in pairwise(found):
        assert len(" ".join([*first, second[0]])) >= most  # the next one would not have fitted


def test_content_words_say_what_a_text_is_about():
    assert reading.content_words("The Mill has 2 wheels, of oak") == {"mill", "2", "wheels", "oak"}
