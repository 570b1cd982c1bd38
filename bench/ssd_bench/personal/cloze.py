"""Facts of the documents that were learned from, hidden again: numbers, dates, times, names and phrases.

A rule finds spans that bear a fact, a seed chooses among them, and both sides stay visible. A span has up to
MOST_TOKENS tokens; the right side is the start of what follows. Knows text and ids; nothing about models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ssd_client.personalize.corpus import Unit
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I32

from ssd_bench.quality.denoising import BLOCK, LEFT

MOST_TOKENS = 6
RIGHT = BLOCK - MOST_TOKENS
LEAST_LEFT = 16
_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_RULES = {
    "date": rf"\b\d{{1,2}} (?:{_MONTH})\b(?: \d{{4}})?|\b(?:{_MONTH}) \d{{1,2}}\b|\b\d{{4}}-\d\d-\d\d\b",
    "amount": r"[$£€] ?\d[\d,]*(?:\.\d+)?|\b\d+(?:\.\d+)? ?%"
    r"|\b\d[\d,]*(?:\.\d+)? (?:days|months|minutes|hours|kg|km|m)\b",
    "time": r"\b\d{1,2}[:.]\d\d\b",
    "number": r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?![\w-])",
    "name": r"(?<=[a-z,;] )[A-Z][a-z'’]+(?: (?:of |the )?[A-Z][a-z'’]+){0,3}",
}
_FOUND = {kind: re.compile(rule) for kind, rule in _RULES.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Span:
    """A hidden fact.

    Attributes:
        id: "PATH@PLACE", PLACE in characters.
        document: path.
        kind: by which rule.
        text: the fact.
        left: ids before it, LEFT at most.
        tokens: its ids, MOST_TOKENS at most.
        right: ids after it, RIGHT.
    """

    id: str
    document: str
    kind: str
    text: str
    left: I32
    tokens: I32
    right: I32


def spans(tokenizer: Tokenizer, units: Sequence[Unit], *, limit: int, seed: int) -> list[Span]:
    """Hidden facts, one of each document and then a second one, until there are enough; fewer are the first of more."""
    order = np.random.default_rng([seed, 1]).permutation(len(units)).tolist()
    waiting = [_of_unit(tokenizer, units[number], [seed, 2, number]) for number in order]
    found: list[Span] = []
    while waiting and len(found) < limit:
        turn = [(one, next(one, None)) for one in waiting]
        found += [span for _, span in turn if span is not None]
        waiting = [one for one, span in turn if span is not None]
    return found[:limit]


def _of_unit(tokenizer: Tokenizer, unit: Unit, seed: Sequence[int]) -> Iterator[Span]:
    """The facts of a text that can be hidden, in an order that follows from the seed."""
    places = _places(unit.text)
    for i in np.random.default_rng(list(seed)).permutation(len(places)).tolist():
        span = _span(tokenizer, unit, *places[i])
        if span is not None:
            yield span


def _places(text: str) -> list[tuple[str, int, int]]:
    """(kind, start, end) of every fact; where two overlap, the one of the earlier rule."""
    taken: list[tuple[str, int, int]] = []
    for kind, rule in _FOUND.items():
        for match in rule.finditer(text):
            if all(match.end() <= start or match.start() >= end for _, start, end in taken):
                taken.append((kind, match.start(), match.end()))
    return sorted(taken, key=lambda place: place[1])


def _span(tokenizer: Tokenizer, unit: Unit, kind: str, start: int, end: int) -> Span | None:
    """The fact in tokens; None where it does not end with a token or too little stands around it.

    A space before the fact belongs to its first token, as the tokenizer has it in running text.
    """
    opens = start - 1 if unit.text[start - 1 : start] == " " else start
    left, tokens = tokenizer.encode(unit.text[:opens]), tokenizer.encode(unit.text[opens:end])
    right = tokenizer.encode(unit.text[end:])[:RIGHT]
    whole = unit.ids
    at = slice(len(left), len(left) + len(tokens))
    if not np.array_equal(whole[at], tokens) or not np.array_equal(whole[at.stop : at.stop + RIGHT], right):
        return None
    if not 1 <= len(tokens) <= MOST_TOKENS or len(left) < LEAST_LEFT or len(right) < RIGHT:
        return None
    return Span(f"{unit.path}@{start}", unit.path, kind, unit.text[start:end], whole[: at.start][-LEFT:], tokens, right)
