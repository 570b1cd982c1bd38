"""Instruction pairs as chat messages: questions, and questions with notes in the very form that the device asks in.

Most notes hold the answer among others that do not; in a small share none does, and the answer says so. Pairs made
by rule are marked `"made": "rule"`, those whose question and answer come from a data set with its name. Knows
nothing about files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ssd_diffusion.training.reading import content_words, sentences

from ssd_cloud.corpus import facts
from ssd_cloud.corpus.model import Document, Question

NOTES_HEADING = "Answer with the help of these notes."  # as the device writes it; a test holds both equal
UNKNOWN = "The notes do not say."
UNKNOWN_SHARE = 0.01
"""Of questions with notes, those that none answers. With one in twelve a core of 135M gave up on what it could read."""
ABOUT_SHARE = 0.35  # of the articles whose questions are also asked without notes
_FEW_CHARS, _MANY_CHARS = 1100, 2400  # of all notes; most rows of training are short
_NOTE_CHARS = 620

_HEADWORD = re.compile(r"(?=.{2,40}$)\w[\w'+/#-]*(?: [\w'+/#-]+){0,3}")
_ASIDE = re.compile(
    r"\A(?:\s*(?:\[[^\]]*\]|\([^()]*\)|<[^<>]*>|\d+\.(?=\s)))+\s*"
)  # origin, field, number of a meaning
_STATEMENT = re.compile(r"(?!See )[A-Z\"“].*[.]", re.DOTALL)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A note as the device shows one: document or headings, and the words."""

    place: str
    text: str


def notes_message(notes: Sequence[Labelled]) -> dict[str, str]:
    """The notes as the system's words."""
    numbered = [f"[{i}] {note.place}: {note.text.strip()}" for i, note in enumerate(notes, 1)]
    return {"role": "system", "content": "\n\n".join([NOTES_HEADING, *numbered])}


def with_notes(notes: Sequence[Labelled], question: str, answer: str) -> list[dict[str, str]]:
    """A conversation of one question about notes."""
    return [notes_message(notes), *plain(question, answer)]


def plain(question: str, answer: str) -> list[dict[str, str]]:
    """A conversation without notes."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def from_articles(articles: Sequence[Document], origin: tuple[str, str], seed: int) -> Iterator[Row]:
    """Pairs by rule about encyclopaedia articles: with notes, some without the one that answers, some without notes.

    Args:
        articles: their names are their titles.
        origin: source and licence.
        seed: of every choice.
    """
    rng = np.random.default_rng([seed, 1])
    for article in articles:
        found = list(facts.about(article.name, article.text))
        for i in rng.permutation(len(found))[:2]:
            asked = found[int(i)]
            own = Labelled(article.name, window(asked))
            yield _noted(rng, own, asked.question, asked.answer, _others(rng, articles, asked), origin, "rule")
        if found and rng.random() < ABOUT_SHARE:
            yield row_of(plain(found[0].question, found[0].answer), origin, "rule")


def from_questions(
    asked: Sequence[Question], others: Sequence[Document], origin: tuple[str, str], dataset: str, seed: int
) -> Iterator[Row]:
    """Pairs of a data set with passages.

    Args:
        asked: questions with their passages.
        others: passages to put beside.
        origin: source and licence.
        dataset: what the pairs are marked with.
        seed: of every choice.
    """
    rng = np.random.default_rng([seed, 3])
    for one in asked:
        question, answer = sentence_case(one.question, "?"), sentence_case(one.answer, ".")
        evidence = window(one)
        if one.answer in ("yes", "no"):
            best = _evidence(one)
            if best is None:
                continue
            answer = f"{answer[:-1]}. {best}"
        own = Labelled(one.title or place_of(rng, "Summary"), evidence)
        yield _noted(rng, own, question, answer, _others(rng, others, one), origin, dataset)


def short_answers(asked: Iterable[Question], origin: tuple[str, str], dataset: str) -> Iterator[Row]:
    """Pairs of a data set without passages."""
    for one in asked:
        yield row_of(plain(sentence_case(one.question, "?"), sentence_case(one.answer, ".")), origin, dataset)


def definitions(pages: Sequence[Document], origin: tuple[str, str], seed: int) -> Iterator[Row]:
    """Pairs by rule from dictionary pages: what a word means, answered by its entry's first sentence."""
    rng = np.random.default_rng([seed, 4])
    for page in pages:
        entries = [e.split("\n", 1) for e in page.text.split("\n\n") if "\n" in e]
        for i in rng.permutation(len(entries))[:1]:
            word, body = entries[int(i)]
            answer = next(iter(sentences(_ASIDE.sub("", body))), "")
            asked = ("What does {w} mean?", "What is meant by {w}?", "Explain {w}.")[int(rng.integers(3))]
            if _HEADWORD.fullmatch(word) and 40 <= len(answer) <= 300 and _STATEMENT.fullmatch(answer):
                yield row_of(plain(asked.format(w=word), answer), origin, "rule")


def window(asked: Question) -> str:
    """The sentences of the passage that the question and its answer are about, up to 620 characters."""
    wanted = content_words(asked.question) | content_words(asked.answer)
    parts = sentences(asked.passage)
    if sum(map(len, parts)) <= _NOTE_CHARS or not parts:
        return asked.passage[:_NOTE_CHARS]
    best, best_score = "", -1
    for start in range(len(parts)):
        end, text = start, ""
        while end < len(parts) and len(text) + len(parts[end]) <= _NOTE_CHARS:
            text = f"{text} {parts[end]}".strip()
            end += 1
        score = len(wanted & content_words(text))
        if score > best_score:
            best, best_score = text or parts[start][:_NOTE_CHARS], score
    return best


def sentence_case(text: str, end: str) -> str:
    """A sentence with a capital at its beginning and a mark at its end."""
    text = " ".join(text.split()).rstrip(" ?" if end == "?" else " ")
    if not text.endswith((end, ".", "!", "?")):
        text += end
    return text[0].upper() + text[1:]


def _noted(
    rng: np.random.Generator,
    own: Labelled,
    question: str,
    answer: str,
    others: Sequence[Labelled],
    origin: tuple[str, str],
    made: str,
) -> Row:
    most = _FEW_CHARS if rng.random() < 0.6 else _MANY_CHARS
    known = rng.random() >= UNKNOWN_SHARE
    kept = [own] if known else []
    for other in others:
        if sum(len(n.text) + len(n.place) + 8 for n in kept) + len(other.text) <= most and not _overlaps(other, answer):
            kept.append(other)
    if not kept:
        kept, known = [own], True
    order = rng.permutation(len(kept))
    return row_of(with_notes([kept[int(i)] for i in order], question, answer if known else UNKNOWN), origin, made)


def row_of(messages: list[dict[str, str]], origin: tuple[str, str], made: str) -> Row:
    """A row of a file of pairs: the messages, and where they come from."""
    how: Row = {"made": "rule"} if made == "rule" else {"dataset": made}
    return {"source": origin[0], "licence": origin[1], **how, "messages": messages}


def _others(rng: np.random.Generator, documents: Sequence[Document], asked: Question) -> list[Labelled]:
    """Notes to put beside: from documents that are not what is asked about, nor a part of it."""
    found = []
    for i in rng.integers(0, len(documents), 4) if documents else []:
        other = documents[int(i)]
        if (not other.name or other.name != asked.title) and other.text[:_NOTE_CHARS] not in asked.passage:
            text = window(Question("", "", "", other.text))
            found.append(Labelled(other.name or place_of(rng, "Summary"), text))
    return found


def _overlaps(other: Labelled, answer: str) -> bool:
    """Whether another note might answer too: it holds most of the answer's words."""
    wanted = content_words(answer)
    return bool(wanted) and len(wanted & content_words(f"{other.place} {other.text}")) > 0.6 * len(wanted)


def _evidence(asked: Question) -> str | None:
    """The passage's sentence that shares most words with the question, where it shares enough to be a reason."""
    wanted = content_words(asked.question)
    best = max(sentences(asked.passage), key=lambda s: len(wanted & content_words(s)), default="")
    enough = wanted and len(wanted & content_words(best)) >= max(2, 0.5 * len(wanted)) and 40 <= len(best) <= 260
    return best if enough and best.endswith((".", "!")) else None


def place_of(rng: np.random.Generator, head: str) -> str:
    """Where a note stands: its heading, or a file and its heading, as the device labels passages."""
    if rng.random() < 0.5:
        return head
    stem = re.sub(r"[^a-z]+", "-", head.lower()).strip("-")
    folder = ("notes", "handbook", "mail", "docs", "minutes", "office")[int(rng.integers(6))]
    return f"{folder}/{stem}{('.md', '.txt', '.html')[int(rng.integers(3))]}"
