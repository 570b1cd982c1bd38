"""The best sentence for a question by BM25: what retrieval gives with no model at all.

Sentences of the documents in a full-text table in memory, ranked as the device's own index ranks passages. Knows text
alone.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable

from ssd_client.documents import Document

_END = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"\w+")


class Sentences:
    """All sentences of some documents, to be searched.

    Args:
        documents: their text; a line's end ends a sentence.
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        self._db = sqlite3.connect(":memory:")
        self._db.execute(
            "CREATE VIRTUAL TABLE words USING fts5 (text, tokenize = 'porter unicode61 remove_diacritics 2')"
        )
        found = (part.strip() for document in documents for part in _END.split(document.text))
        self._db.executemany("INSERT INTO words (text) VALUES (?)", ((part,) for part in found if part))

    def best(self, question: str) -> str:
        """The sentence that fits the question best; empty where no word of it occurs."""
        terms = dict.fromkeys(_WORD.findall(question.lower()))
        query = " OR ".join(f'"{term}"' for term in terms)
        if not query:
            return ""
        row = self._db.execute(
            "SELECT text FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid LIMIT 1", (query,)
        ).fetchone()
        return str(row[0]) if row else ""
