"""Conversations of several questions about one set of notes, so that one reading of the notes serves them all.

Invented workplaces, whose notes are mixed with sentences of real text; stories, whose questions are sorted to the part
that answers them; and dialogues, whose questions lean on one another and stay in order. A question that no note answers
is told so. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from ssd_diffusion.training.reading import content_words, in_stretches, sentences

from ssd_cloud.corpus import facts, pairs
from ssd_cloud.corpus.model import Document, Question
from ssd_cloud.corpus.pairs import UNKNOWN, Labelled, Row, notes_message, place_of, row_of, sentence_case

INVENTED = 1200
MOST_TURNS = 8
_CHUNK_CHARS, _NOTES_CHARS = 1400, 2400
_PROSE_SHARE = 0.4
"""Of invented notes, those whose facts stand among sentences of real text."""
_ANSWER_CHARS = 300
_OPEN_KEPT = 0.06
"""Share of a dialogue's open questions that stay: about one turn in a hundred."""
_IN_CHUNK = 0.5
"""Share of an answer's words that the part of a story must hold."""

Turn = tuple[str, str]


def invented(count: int, prose: Sequence[Document], seed: int) -> Iterator[Row]:
    """Conversations by rule about invented workplaces.

    Args:
        count: how many.
        prose: real text to hide facts in.
        seed: of every choice.
    """
    rng = np.random.default_rng([seed, 5])
    for _ in range(count):
        notes = [facts.invented_note(rng) for _ in range(int(rng.integers(2, 6)))]
        stranger = facts.invented_note(rng)
        turns = _of_notes(rng, notes, stranger)
        shown = [Labelled(place_of(rng, note.head), _among(rng, note.text, prose)) for note in notes]
        if turns and sum(len(note.text) for note in shown) <= _NOTES_CHARS:
            yield row_of(_messages(shown, turns), ("inventions", "this project's own, Apache-2.0"), "rule")


def of_stories(
    asked: Sequence[Question], others: Sequence[Document], origin: tuple[str, str], dataset: str, seed: int
) -> Iterator[Row]:
    """Conversations about parts of passages, each of the questions that this part answers.

    Args:
        asked: questions with their passages.
        others: passages to put beside.
        origin: source and licence.
        dataset: what the rows are marked with.
        seed: of every choice.
    """
    rng = np.random.default_rng([seed, 6])
    for passage, questions in _by_passage(asked):
        chunks = _chunks(passage)
        sorted_: dict[int, list[Turn]] = {}
        for one in questions:
            at = _best(chunks, one)
            if at is not None:
                turn = sentence_case(one.question, "?"), sentence_case(one.answer, ".")
                sorted_.setdefault(at, []).append(turn)
        for at, turns in sorted(sorted_.items()):
            for first in range(0, len(turns), MOST_TURNS):
                some = turns[first : first + MOST_TURNS]
                beside = _beside(rng, others, passage, _NOTES_CHARS - len(chunks[at]))
                shown = [Labelled(place_of(rng, "Summary"), text) for text in (chunks[at], *beside)]
                shown = [shown[int(i)] for i in rng.permutation(len(shown))]
                some = _with_stranger(rng, some, _stranger(rng, asked, passage))
                yield row_of(_messages(shown, some), origin, dataset)


def of_dialogues(asked: Sequence[Question], origin: tuple[str, str], dataset: str, seed: int) -> Iterator[Row]:
    """Conversations in the order in which people had them, without most of those that the notes leave open.

    Args:
        asked: questions with their passages, in order.
        origin: source and licence.
        dataset: what the rows are marked with.
        seed: of every choice.
    """
    rng = np.random.default_rng([seed, 7])
    for passage, questions in _by_passage(asked):
        turns = [
            (sentence_case(one.question, "?"), sentence_case(one.answer, ".") if one.answer else UNKNOWN)
            for one in questions
            if len(one.answer) <= _ANSWER_CHARS and (one.answer or rng.random() < _OPEN_KEPT)
        ]
        if turns and len(passage) <= _NOTES_CHARS:
            yield row_of(_messages([Labelled("Article", passage)], turns[:MOST_TURNS]), origin, dataset)


def _messages(notes: Sequence[Labelled], turns: Sequence[Turn]) -> list[dict[str, str]]:
    found = [notes_message(notes)]
    for question, answer in turns:
        found += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return found


def _of_notes(rng: np.random.Generator, notes: Sequence[facts.Note], stranger: facts.Note) -> list[Turn]:
    """A turn for every fact that only one note tells, in any order, and at times one for a fact that none does."""
    ways = [{way for theirs, _ in note.asked for way in theirs} for note in notes]
    turns = []
    for number, note in enumerate(notes):
        elsewhere = set().union(*(w for i, w in enumerate(ways) if i != number))
        for asked, answer in note.asked:
            if not elsewhere & set(asked):
                turns.append((asked[int(rng.integers(len(asked)))], answer))
    turns = [turns[int(i)] for i in rng.permutation(len(turns))][:MOST_TURNS]
    unknown = [asked[0] for asked, _ in stranger.asked if not set(asked) & set().union(*ways)]
    return _with_stranger(rng, turns, unknown[0] if unknown else None)


def _with_stranger(rng: np.random.Generator, turns: list[Turn], question: str | None) -> list[Turn]:
    """In some conversations one more question, whose answer no note holds."""
    if question is None or not turns or rng.random() >= 4 * pairs.UNKNOWN_SHARE:
        return turns
    at = int(rng.integers(0, len(turns) + 1))
    return [*turns[:at], (question, UNKNOWN), *turns[at:]][: MOST_TURNS + 1]


def _among(rng: np.random.Generator, text: str, prose: Sequence[Document]) -> str:
    """A note, at times with sentences of a real text before, between and behind its own."""
    if not prose or "\n" in text or rng.random() >= _PROSE_SHARE:
        return text
    other = sentences(prose[int(rng.integers(len(prose)))].text)[:4]
    lines = sentences(text)
    for sentence in other:
        if len(sentence) <= 220:
            lines.insert(int(rng.integers(0, len(lines) + 1)), sentence)
    return " ".join(lines)


def _by_passage(asked: Iterable[Question]) -> Iterator[tuple[str, list[Question]]]:
    groups: dict[str, list[Question]] = {}
    for one in asked:
        groups.setdefault(one.passage, []).append(one)
    yield from groups.items()


def _chunks(passage: str) -> list[str]:
    """The passage in parts of whole sentences."""
    return [" ".join(part) for part in in_stretches(sentences(passage), _CHUNK_CHARS)]


def _best(chunks: Sequence[str], asked: Question) -> int | None:
    """The part that answers a question: it shares most words with both, and holds half of the answer's at least."""
    wanted, answer = content_words(asked.question), content_words(asked.answer)
    if not answer:
        return None
    scores = [len((wanted | answer) & content_words(c)) + len(answer & content_words(c)) for c in chunks]
    at = int(np.argmax(scores)) if scores else None
    if at is None or len(answer & content_words(chunks[at])) < _IN_CHUNK * len(answer):
        return None
    return at


def _beside(rng: np.random.Generator, others: Sequence[Document], passage: str, room: int) -> list[str]:
    """Parts of other texts, as many as fit and up to two."""
    found: list[str] = []
    for i in rng.integers(0, len(others), int(rng.integers(0, 3))) if others else []:
        text = others[int(i)].text
        part = _chunks(text)[0] if _chunks(text) else ""
        if part and part not in passage and len(part) + sum(map(len, found)) <= room:
            found.append(part)
    return found


def _stranger(rng: np.random.Generator, asked: Sequence[Question], passage: str) -> str | None:
    other = asked[int(rng.integers(len(asked)))]
    return sentence_case(other.question, "?") if other.passage != passage else None
