"""Conversations about parts of real documents: every question is answered by one sentence of one note.

The questions are made by rule from the notes' own sentences; one that another sentence might answer as well is not
asked. So a model learns to find a sentence among others and to repeat it. Knows nothing about files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ssd_cloud.corpus import asking, facts
from ssd_cloud.corpus.model import Document
from ssd_cloud.corpus.pairs import Labelled, Row, content_words, notes_message, place_of, row_of

READINGS = 5000
_TRIES = 8  # for notes that can be asked about
MOST_TURNS = 6
_PART_CHARS = 500  # as long as the device's passages
_COMMON_FORMS = ("what is", "what are", "what was", "what happens")
_ONE_DOCUMENT_SHARE = 0.5
"""Of conversations, those whose notes are all parts of one document, where it is long enough."""
_FILE = re.compile(r"\.\w+(?:#\d+)?$|/|^\d|_")
_PRONOUN = re.compile(r"\A(?:He|She|It)\b(?= [a-z])")
_PERSON = re.compile(r"\b(?:he|she|his|her|him)\b")


@dataclass(frozen=True, slots=True)
class _Part:
    """A stretch of a document in whole sentences: the note, its sentences, and the document's title, if it has one."""

    note: Labelled
    sentences: tuple[str, ...]
    title: str


def of_documents(sources: Sequence[tuple[tuple[str, str], Sequence[Document]]], count: int, seed: int) -> Iterator[Row]:
    """Conversations by rule about documents of several sources, each source as often as the square root of its size.

    Args:
        sources: (source and licence, its documents); sources without documents are passed over.
        count: conversations that are tried; those without a question are left out.
        seed: of every choice.
    """
    rng = np.random.default_rng([seed, 8])
    given = [(origin, documents) for origin, documents in sources if documents]
    if not given:
        return
    sizes = np.sqrt([sum(len(d.text) for d in documents) for _, documents in given])
    for number in rng.choice(len(given), size=count, p=sizes / sizes.sum()).tolist():
        origin, documents = given[number]
        for _ in range(_TRIES):
            parts = _notes(rng, documents)
            turns = _turns(rng, parts)
            if any(not _common(one) for one in turns):
                break
        if turns:
            messages = [notes_message([part.note for part in parts])]
            for one in turns:
                messages += [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]
            yield row_of(messages, origin, "rule")


def _notes(rng: np.random.Generator, documents: Sequence[Document]) -> list[_Part]:
    """Two to four parts: of one document, or each of another."""
    wanted = int(rng.integers(2, 5))
    own = _parts(rng, documents[int(rng.integers(len(documents)))])
    if len(own) >= wanted and rng.random() < _ONE_DOCUMENT_SHARE:
        return [own[int(i)] for i in rng.permutation(len(own))[:wanted]]
    found = own[:1]
    for i in rng.integers(0, len(documents), wanted - 1).tolist():
        parts = _parts(rng, documents[i])
        if parts:
            part = parts[int(rng.integers(len(parts)))]
            found += [part] if all(part.note.text != other.note.text for other in found) else []
    return [found[int(i)] for i in rng.permutation(len(found))]


def _parts(rng: np.random.Generator, document: Document) -> list[_Part]:
    """The document in stretches of whole sentences; lines of tables, headings and lists end a sentence."""
    place = place_of(rng, _head(document.name))
    found: list[list[str]] = []
    room = 0
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#]|\d+\.) ?)", document.text):
        for sentence in facts.sentences(paragraph):
            if not found or room + len(sentence) > _PART_CHARS:
                found.append([])
                room = 0
            found[-1].append(sentence[:_PART_CHARS])
            room += len(sentence) + 1
    title = "" if _FILE.search(document.name) else re.sub(r"\s*\([^)]*\)$", "", document.name)
    return [_Part(Labelled(place, " ".join(part)), tuple(part), title) for part in found]


def _head(name: str) -> str:
    """A heading from what a document is called: a title, or the stem of a file's name in words."""
    stem = re.sub(r"(?:\.(?:html?|txt|rst|md|gz|pod))+(?=#|$)|#\d+$", "", name.rsplit("/", 1)[-1])
    text = " ".join(re.split(r"[^\w'()]+|_", stem)).strip()
    return text[:1].upper() + text[1:] or "Notes"


def _turns(rng: np.random.Generator, parts: Sequence[_Part]) -> list[asking.Asked]:
    """Questions in any order, the rarer forms first to be taken, one of each sentence."""
    sentences = [(sentence, content_words(_named(sentence, part))) for part in parts for sentence in part.sentences]
    places = [content_words(part.note.place) for part in parts]
    found: list[asking.Asked] = []
    for part, place in zip(parts, places, strict=True):
        person = bool(_PERSON.search(part.note.text))
        for sentence in part.sentences:
            asked = asking.about(_named(sentence, part), person=person)
            made = [one for one in asked if _plainly(one, sentence, sentences, place)]
            if made:
                found.append(min(made, key=lambda one: (_common(one), rng.random())))
    order = sorted(range(len(found)), key=lambda i: (_common(found[i]), rng.random()))
    kept = order[:MOST_TURNS]
    common = [i for i in kept if _common(found[i])]
    kept = [i for i in kept if i not in common[2:]]
    return [found[int(kept[int(i)])] for i in rng.permutation(len(kept))]


def _common(asked: asking.Asked) -> bool:
    return asked.question.lower().startswith(_COMMON_FORMS)


def _named(sentence: str, part: _Part) -> str:
    """The sentence with the name of what the document is about, where it begins with a pronoun."""
    return _PRONOUN.sub(lambda _: part.title, sentence) if part.title else sentence


def _plainly(asked: asking.Asked, sentence: str, sentences: Sequence[tuple[str, set[str]]], place: set[str]) -> bool:
    """Whether the sentence shares more of the question's words than any other one, and they say more than the place."""
    wanted = content_words(asked.question)
    shared = len(wanted & content_words(asked.answer))
    others = [len(wanted & held) for other, held in sentences if other != sentence]
    return (
        len(wanted) >= 2
        and len(others) == len(sentences) - 1
        and shared > max(others, default=0)
        and bool(wanted - place)
    )
