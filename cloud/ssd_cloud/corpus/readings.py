"""Conversations about parts of real documents: every question is answered by one sentence of one note.

Chooses documents, cuts notes and puts them together; what is asked, `ssd_diffusion.training.reading` decides. Knows
nothing about files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
from ssd_diffusion.training.reading import Part, in_stretches, is_common, sentences_of_lines, turns

from ssd_cloud.corpus.model import Document
from ssd_cloud.corpus.pairs import Labelled, Row, notes_message, place_of, row_of

READINGS = 5000
_TRIES = 8  # for notes that can be asked about
MOST_TURNS = 6
_PART_CHARS = 500  # as long as the device's passages
_ONE_DOCUMENT_SHARE = 0.5
"""Of conversations, those whose notes are all parts of one document, where it is long enough."""
_FILE = re.compile(r"\.\w+(?:#\d+)?$|/|^\d|_")


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
            asked = turns(rng, parts, MOST_TURNS)
            if any(not is_common(one) for one in asked):
                break
        if asked:
            messages = [notes_message([Labelled(part.place, part.text) for part in parts])]
            for one in asked:
                messages += [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]
            yield row_of(messages, origin, "rule")


def _notes(rng: np.random.Generator, documents: Sequence[Document]) -> list[Part]:
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
            found += [part] if all(part.text != other.text for other in found) else []
    return [found[int(i)] for i in rng.permutation(len(found))]


def _parts(rng: np.random.Generator, document: Document) -> list[Part]:
    """The document in stretches of whole sentences."""
    place = place_of(rng, _head(document.name))
    found = in_stretches(sentences_of_lines(document.text), _PART_CHARS)
    title = "" if _FILE.search(document.name) else re.sub(r"\s*\([^)]*\)$", "", document.name)
    return [Part(place, tuple(part), title) for part in found]


def _head(name: str) -> str:
    """A heading from what a document is called: a title, or the stem of a file's name in words."""
    stem = re.sub(r"(?:\.(?:html?|txt|rst|md|gz|pod))+(?=#|$)|#\d+$", "", name.rsplit("/", 1)[-1])
    text = " ".join(re.split(r"[^\w'()]+|_", stem)).strip()
    return text[:1].upper() + text[1:] or "Notes"
