"""Passages of an expert's documents in the form in which the expert is shown them: those that fit a text, or all.

One form for answers, for what an expert learns to read, and for what its weights are chosen by. Knows where an
expert's index lies; nothing about models, contexts or the wire.
"""

from __future__ import annotations

from pathlib import Path

from ssd_client.documents.passages import place
from ssd_client.index import Index, find_encoder
from ssd_client.index.search import INDEX_FILE
from ssd_client.prompt import Passage


def find_passages(folder: Path, home: Path, query: str, limit: int) -> list[Passage]:
    """The passages of the expert's documents that fit the query best, best first; none where it has no index.

    Raises:
        IndexFault: the index or the encoder is damaged.
    """
    if limit == 0 or not (folder / INDEX_FILE).exists():
        return []
    with Index.open(folder, find_encoder(home)) as index:
        return found_in(index, query, limit)


def found_in(index: Index, query: str, limit: int) -> list[Passage]:
    """The passages of an open index that fit the query best, best first.

    Raises:
        IndexFault: the index is damaged.
    """
    found = index.search(query, limit).passages
    return [Passage(one.path, place(one.title, one.heading), one.text, round(one.score, 6)) for one in found]


def all_in(index: Index) -> list[Passage]:
    """All passages of an open index, by document and place; their score says nothing."""
    return [Passage(one.path, place(one.title, one.heading), one.text, 0.0) for one in index.passages()]
