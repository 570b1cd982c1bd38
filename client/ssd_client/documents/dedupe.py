"""Near-duplicate documents: equal after normalising, or alike in their word 5-grams.

Candidates come from MinHash bands, and are then compared exactly, so that nothing is removed on a hash's word alone.
The first document by path stays. Knows nothing about files.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssd_client.documents.ingest import Document

_SHINGLE = 5
_BANDS, _ROWS = 32, 4  # finds pairs of similarity .8 with probability 1 - (1 - .8^4)^32 = .9999999
_PRIME = (1 << 61) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """A document that was left out: `path` is like `kept`; `similarity` is 1.0 for the same words."""

    path: str
    kept: str
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduplicated:
    """The documents that stay, by path, and the report of those that do not."""

    documents: tuple[Document, ...]
    duplicates: tuple[Duplicate, ...]


def dedupe(documents: Sequence[Document], *, threshold: float = 0.8) -> Deduplicated:
    """Leave out documents that are equal or nearly equal to one that stays.

    Args:
        documents: any number.
        threshold: Jaccard similarity of word 5-grams from which two are the same.
    """
    kept: list[Document] = []
    report: list[Duplicate] = []
    shingles: list[frozenset[int]] = []
    exact: dict[str, int] = {}
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for document in sorted(documents, key=lambda one: one.path):
        words = _words(document.text)
        digest = hashlib.sha256(" ".join(words).encode()).hexdigest()
        if digest in exact:
            report.append(Duplicate(path=document.path, kept=kept[exact[digest]].path, similarity=1.0))
            continue
        own = _shingles(words)
        keys = _bands(own)
        like = _most_alike(own, sorted({i for key in keys for i in buckets[key]}), shingles)
        if like is not None and like[1] >= threshold:
            report.append(Duplicate(path=document.path, kept=kept[like[0]].path, similarity=like[1]))
            continue
        exact[digest] = len(kept)
        for key in keys:
            buckets[key].append(len(kept))
        kept.append(document)
        shingles.append(own)
    return Deduplicated(documents=tuple(kept), duplicates=tuple(report))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold())


def _shingles(words: list[str]) -> frozenset[int]:
    """61-bit hashes of the word 5-grams; none for a text too short to be told from others that way."""
    if len(words) < 2 * _SHINGLE:
        return frozenset()
    grams = {" ".join(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)}
    return frozenset(
        int.from_bytes(hashlib.blake2b(one.encode(), digest_size=8).digest(), "little") % _PRIME for one in grams
    )


def _bands(shingles: frozenset[int]) -> list[tuple[int, bytes]]:
    if not shingles:
        return []
    values = np.fromiter(shingles, np.uint64, len(shingles))
    signature = np.array([_mix(values, seed).min() for seed in range(_BANDS * _ROWS)], np.uint64)
    return [(i, band.tobytes()) for i, band in enumerate(signature.reshape(_BANDS, _ROWS))]


def _mix(values: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """A keyed 64-bit mixer (splitmix64's finaliser): one random permutation per seed."""
    with np.errstate(over="ignore"):
        x = values + np.uint64(0x9E3779B97F4A7C15 * (seed + 1) & 0xFFFFFFFFFFFFFFFF)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def _most_alike(own: frozenset[int], candidates: list[int], others: list[frozenset[int]]) -> tuple[int, float] | None:
    scored = [(i, len(own & others[i]) / len(own | others[i])) for i in candidates]
    return max(scored, key=lambda one: (one[1], -one[0]), default=None)
