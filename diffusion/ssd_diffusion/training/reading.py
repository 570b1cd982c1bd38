"""Notes and questions that they answer, to learn reading from: English prose in sentences, asked about by rule.

The questions are made from the notes' own sentences (see `asking`); one that another sentence might answer as well is
not asked. So a model learns to find a sentence among others and to repeat it. Knows nothing about files or tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ssd_diffusion.training import asking
from ssd_diffusion.training.words import words

COMMON_WORDS = frozenset(
    words(
        "the of and to a in is that it for was on are as with be by at this from or an have not which you if can "
        "but will all they his has he when one more use used their we there any other than may i"
    )
)
_SENTENCE = re.compile(r"(?<=[a-z0-9\")][.!?])\s+(?=[A-Z\"])")
_PARAGRAPH = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*#]|\d+\.) ?)")
_PRONOUN = re.compile(r"\A(?:He|She|It)\b(?= [a-z])")
_PERSON = re.compile(r"\b(?:he|she|his|her|him)\b")
_COMMON_FORMS = ("what is", "what are", "what was", "what happens")
_MOST_COMMON = 2


class Rule(Protocol):
    """Questions that one sentence answers; `person` says whether names are likely those of people."""

    def __call__(self, sentence: str, *, person: bool) -> Iterable[asking.Asked]:
        """The questions."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """A note: where it stands, its sentences, and what its document is about, where that has a name ("" else)."""

    place: str
    sentences: tuple[str, ...]
    title: str = ""

    @property
    def text(self) -> str:
        """The sentences as one text."""
        return " ".join(self.sentences)


def sentences(text: str) -> list[str]:
    """The sentences of a text, line breaks taken as blanks."""
    return [part.strip() for part in _SENTENCE.split(text.replace("\n", " ")) if part.strip()]


def sentences_of_lines(text: str) -> list[str]:
    """The sentences of a text, none of them beyond its paragraph, heading or point of a list."""
    return [one for paragraph in _PARAGRAPH.split(text) for one in sentences(paragraph)]


def in_stretches(text: Iterable[str], most: int) -> list[list[str]]:
    """Sentences in stretches of up to `most` characters, in order; a longer sentence loses its end."""
    found: list[list[str]] = []
    length = 0
    for sentence in text:
        if not found or length + len(sentence) > most:
            found.append([])
            length = 0
        found[-1].append(sentence[:most])
        length += len(sentence[:most]) + 1
    return found


def content_words(text: str) -> set[str]:
    """The words of a text that say what it is about, in small letters."""
    return {w for w in re.findall(r"\w{3,}|\d+", text.lower()) if w not in COMMON_WORDS}


def turns(
    rng: np.random.Generator, parts: Sequence[Part], most: int, rules: Sequence[Rule] = (asking.about,)
) -> list[asking.Asked]:
    """Questions that the parts answer, in any order, one at most of each sentence, rare forms before common ones.

    Args:
        rng: of every choice.
        parts: the notes.
        most: questions.
        rules: what makes questions of a sentence.
    """
    held = [(sentence, content_words(_named(sentence, part))) for part in parts for sentence in part.sentences]
    found: list[asking.Asked] = []
    for part in parts:
        person, place = bool(_PERSON.search(part.text)), content_words(part.place)
        for sentence in part.sentences:
            asked = [one for rule in rules for one in rule(_named(sentence, part), person=person)]
            made = [one for one in asked if _plainly(one, sentence, held, place)]
            if made:
                found.append(min(made, key=lambda one: (is_common(one), rng.random())))
    kept = sorted(range(len(found)), key=lambda i: (is_common(found[i]), rng.random()))[:most]
    surplus = [i for i in kept if is_common(found[i])][_MOST_COMMON:]
    kept = [i for i in kept if i not in surplus]
    return [found[kept[int(i)]] for i in rng.permutation(len(kept))]


def is_common(asked: asking.Asked) -> bool:
    """Whether the question has a form that nearly every text gives cause for."""
    return asked.question.lower().startswith(_COMMON_FORMS)


def _named(sentence: str, part: Part) -> str:
    """The sentence with the name of what the document is about, where it begins with a pronoun."""
    return _PRONOUN.sub(lambda _: part.title, sentence) if part.title else sentence


def _plainly(asked: asking.Asked, sentence: str, held: Sequence[tuple[str, set[str]]], place: set[str]) -> bool:
    """Whether the sentence shares more of the question's words than any other one, and they say more than the place."""
    wanted = content_words(asked.question)
    shared = len(wanted & content_words(asked.answer))
    others = [len(wanted & theirs) for other, theirs in held if other != sentence]
    return (
        len(wanted) >= 2 and len(others) == len(held) - 1 and shared > max(others, default=0) and bool(wanted - place)
    )
