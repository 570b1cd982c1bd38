"""Runs of words as numbers, and what they tell: near-duplicates, and what gives held-out text away.

Near-duplicates are found by MinHash and then compared exactly. A document leaks when it holds much of a held-out one,
or is itself made of held-out runs. A word's number is a hash of its letters, so results are the same in every process.
Knows nothing about files.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

SHINGLE, LEAK_RUN = 5, 8  # words
SAME = 0.8  # Jaccard similarity of word 5-grams from which two documents are the same
_BANDS, _ROWS = 24, 4  # finds pairs of similarity .8 with probability 1 - (1 - .8^4)^24 > .99999
_CHUNK = 1 << 14
LEAK_OF_HELD, LEAK_OF_OWN = 0.2, 0.05
_WORD = re.compile(r"\w+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=1 << 20)
def _number(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")


def runs(text: str, length: int) -> U64:
    """Distinct hashes of the runs of `length` words, ascending; case and punctuation do not count. [n]"""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).lower())
    if len(words) < length:
        return np.zeros(0, np.uint64)
    numbers = np.fromiter((_number(word) for word in words), np.uint64, len(words))
    total = np.zeros(len(words) - length + 1, np.uint64)
    for i in range(length):
        total = (total ^ numbers[i : i + len(total)]) * _FACTOR
        total ^= total >> np.uint64(29)
    return np.unique(total)


@dataclass(frozen=True, slots=True)
class Near:
    """Which texts stay: `kept` are their places, ascending; how many left were equal, and how many nearly so."""

    kept: tuple[int, ...]
    equal: int
    near: int


def distinct(texts: Sequence[str], *, on_progress: Callable[[float], None] = lambda _: None) -> Near:
    """Leave out texts that are equal or nearly equal to one before them.

    Args:
        texts: in order of preference.
        on_progress: called with the fraction that is done.
    """
    rng = np.random.default_rng(17)
    factors = rng.integers(1, 1 << 63, _BANDS * _ROWS, dtype=np.uint64) | np.uint64(1)
    exact: set[bytes] = set()
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    grams: dict[int, U64] = {}
    kept: list[int] = []
    equal = near = 0
    for place, text in enumerate(texts):
        digest = hashlib.sha256(" ".join(_WORD.findall(text.lower())).encode()).digest()
        if digest in exact:
            equal += 1
            continue
        exact.add(digest)
        own = runs(text, SHINGLE)
        keys = list(enumerate(_bands(own, factors))) if len(own) else []
        candidates = {other for key in keys for other in buckets.get(key, ())}
        if any(_similarity(own, grams[other]) >= SAME for other in sorted(candidates)):
            near += 1
            continue
        for key in keys:
            buckets[key].append(place)
        grams[place] = own
        kept.append(place)
        if place % 500 == 0:
            on_progress(place / len(texts))
    return Near(tuple(kept), equal, near)


def _bands(own: U64, factors: U64) -> list[bytes]:
    least = np.full(len(factors), np.iinfo(np.uint64).max, np.uint64)
    for at in range(0, len(own), _CHUNK):
        mixed = own[None, at : at + _CHUNK] * factors[:, None]
        mixed ^= mixed >> np.uint64(31)
        np.minimum(least, mixed.min(axis=1), out=least)
    return [row.tobytes() for row in least.reshape(_BANDS, _ROWS)]


def _similarity(a: U64, b: U64) -> float:
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


class HeldOut:
    """The eight-word runs of texts that training must not hold."""

    def __init__(self, texts: Sequence[str]) -> None:
        """Args: texts, each a held-out document or question; those under eight words cannot be looked for."""
        parts = [runs(text, LEAK_RUN) for text in texts]
        self._sizes = np.array([len(part) for part in parts], np.int64)
        joined = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
        owners = np.repeat(np.arange(len(parts)), self._sizes)
        order = np.argsort(joined, kind="stable")
        self._runs, self._owners = joined[order], owners[order]

    def leaks(self, text: str) -> bool:
        """Whether a text holds a fifth of a held-out one, or a twentieth of it is held out."""
        own = runs(text, LEAK_RUN)
        if not len(own) or not len(self._runs):
            return False
        low, high = np.searchsorted(self._runs, own, "left"), np.searchsorted(self._runs, own, "right")
        found = high > low
        if not found.any():
            return False
        if found.sum() >= max(2, LEAK_OF_OWN * len(own)):
            return True
        owners = np.concatenate([self._owners[a:b] for a, b in zip(low[found], high[found], strict=True)])
        hits = np.bincount(owners, minlength=len(self._sizes))
        return bool((hits >= np.maximum(2, LEAK_OF_HELD * self._sizes))[self._sizes > 0].any())
