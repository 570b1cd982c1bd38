"""The index: passages in SQLite with full-text search (BM25), their vectors in a memory-mapped array.

    index.sqlite      documents, passages, the full-text table, vectors as computed, and which array is current
    vectors-N.npy     float32 [rows, D], unit rows; `passages.row` says which row is whose

A search asks both retrievers for candidates and joins their ranks: score = sum of 1 / (60 + rank). Without an encoder
BM25 answers alone and the result says so. Updates touch changed documents only, one transaction each; the array is
written anew under a new name and made current by one transaction, so after a kill the index can be searched, and
updated from where it was.

Knows nothing about prompts, members or where documents come from.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from ssd_kernels.types import F32

from ssd_client.documents.ingest import Document
from ssd_client.documents.passages import Passage, place, split
from ssd_client.errors import IndexFault

FORMAT = 1
INDEX_FILE, VECTORS_FILE = "index.sqlite", "vectors.npy"
Retriever = Literal["bm25", "vectors"]

_RRF_K = 60
_CANDIDATES = 50
_MAX_TERMS = 64
_GROUP = 64  # passages embedded at once
_WAIT_S = 10.0
_WORD = re.compile(r"\w+")
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE documents (id TEXT PRIMARY KEY, path TEXT NOT NULL, title TEXT NOT NULL);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY AUTOINCREMENT, document TEXT NOT NULL REFERENCES documents ON DELETE CASCADE,
    heading TEXT NOT NULL, text TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, row INTEGER);
CREATE INDEX passages_by_document ON passages (document);
CREATE INDEX passages_by_row ON passages (row);
CREATE TABLE computed (passage INTEGER PRIMARY KEY REFERENCES passages ON DELETE CASCADE, vector BLOB NOT NULL);
CREATE VIRTUAL TABLE words USING fts5 (title, heading, text, tokenize = 'porter unicode61 remove_diacritics 2');
CREATE TRIGGER forget_words AFTER DELETE ON passages BEGIN DELETE FROM words WHERE rowid = old.id; END;
PRAGMA user_version = 1;
"""


class Embedder(Protocol):
    """What the index needs of `encoder.Encoder`."""

    @property
    def id(self) -> str:
        """Which encoder it is."""
        ...

    @property
    def dimensions(self) -> int:
        """D."""
        ...

    def embed(self, texts: Sequence[str]) -> F32:
        """Unit vectors [n, D]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A passage that speaks to the query.

    Attributes:
        score: sum over retrievers of 1 / (60 + rank); larger is better.
        text, heading, title, path: of the passage and its document.
        start, end: character offsets in the document.
        ranks: the passage's rank (from 1) with each retriever that found it.
    """

    score: float
    text: str
    heading: str
    title: str
    path: str
    start: int
    end: int
    ranks: dict[Retriever, int]

    @property
    def full_text(self) -> str:
        """ "title > heading: text", as it goes into the expert's context."""
        return f"{place(self.title, self.heading)}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """Passages, best first, and the retrievers that were asked ("bm25" alone where there is no encoder)."""

    passages: tuple[Found, ...]
    retrievers: tuple[Retriever, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """What an update did: documents added and removed (a changed one counts in both), passages in all and embedded."""

    added: int
    removed: int
    passages: int
    embedded: int


class Index:
    """An index in a folder. For one thread at a time; `close` it.

    Raises (all methods):
        IndexFault: the files are missing, damaged, of another version, in use or the disk is full.
    """

    def __init__(self, folder: Path, db: sqlite3.Connection, encoder: Embedder | None) -> None:
        self._folder, self._db, self._encoder = folder, db, encoder
        self._vectors: F32 | None = None  # memory-mapped

    @staticmethod
    def create(folder: Path, encoder: Embedder | None) -> Index:
        """The index in a folder, to be updated; made where there is none.

        Args:
            folder: made with mode 0700 when missing.
            encoder: what makes the vectors; None for BM25 alone.
        """
        path = folder / INDEX_FILE
        with _faults(path):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            db = sqlite3.connect(path, timeout=_WAIT_S, check_same_thread=False)
            index = Index(folder, db, encoder)
            try:
                db.execute("PRAGMA foreign_keys = ON")
                if db.execute("PRAGMA user_version").fetchone()[0] == 0:
                    db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
                _check_version(db, path)
                with suppress(IndexFault):  # a lost array is written anew by `update`
                    index._map_vectors()
            except BaseException:
                db.close()
                raise
            return index

    @staticmethod
    def open(folder: Path, encoder: Embedder | None) -> Index:
        """The finished index in a folder, for searching; never written to.

        Args:
            folder: an expert's folder, or one that `update` has finished.
            encoder: what embeds queries; None for BM25 alone. Vectors of another encoder are not used.
        """
        path = folder / INDEX_FILE
        if not path.is_file():
            raise IndexFault(f"there is no document index in {folder}; personalize again")
        with _faults(path):
            uri = path.resolve().as_uri() + "?mode=ro" + ("" if _has_log(path) else "&immutable=1")
            db = sqlite3.connect(uri, uri=True, timeout=_WAIT_S, check_same_thread=False)
            index = Index(folder, db, encoder)
            try:
                _check_version(db, path)
                index._map_vectors()
            except BaseException:
                db.close()
                raise
            return index

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. Safe to call twice."""
        self._vectors = None
        self._db.close()

    def __len__(self) -> int:
        with _faults(self._folder / INDEX_FILE):
            return int(self._db.execute("SELECT COUNT(*) FROM passages").fetchone()[0])

    def update(
        self,
        documents: Iterable[Document],
        *,
        max_chars: int = 500,
        progress: Callable[[int, int], None] | None = None,
    ) -> Updated:
        """Make the index hold these documents and no others; only new and changed ones are split and embedded.

        Args:
            documents: all documents of the expert.
            max_chars: longest passage.
            progress: called with (passages embedded, passages to embed).
        """
        wanted = {one.id: one for one in documents}
        with _faults(self._folder / INDEX_FILE):
            known = {str(one) for (one,) in self._db.execute("SELECT id FROM documents")}
            gone, new = known - wanted.keys(), wanted.keys() - known
            with self._db:
                self._db.executemany("DELETE FROM documents WHERE id = ?", [(one,) for one in gone])
            for identity in sorted(new, key=lambda one: wanted[one].path):
                self._insert(wanted[identity], max_chars)
            embedded = self._embed(progress or (lambda _, __: None))
            self._write_vectors()
            self._map_vectors()
            return Updated(added=len(new), removed=len(gone), passages=len(self), embedded=embedded)

    def search(self, query: str, limit: int = 8) -> Searched:
        """The passages that speak to a query, best first; any text is a query.

        Args:
            query: words or a question.
            limit: most passages.
        """
        with _faults(self._folder / INDEX_FILE):
            rankings: dict[Retriever, list[int]] = {"bm25": self._by_words(query, max(limit, _CANDIDATES))}
            if self._encoder is not None and self._vectors is not None:
                rankings["vectors"] = self._by_vectors(query, max(limit, _CANDIDATES))
            ranks: dict[int, dict[Retriever, int]] = {}
            for retriever, ids in rankings.items():
                for rank, identity in enumerate(ids, start=1):
                    ranks.setdefault(identity, {})[retriever] = rank
            scored = sorted((-sum(1 / (_RRF_K + rank) for rank in one.values()), i) for i, one in ranks.items())
            passages = tuple(self._found(i, -score, ranks[i]) for score, i in scored[: max(limit, 0)])
            return Searched(passages=passages, retrievers=tuple(rankings))

    def passages(self) -> Iterator[Passage]:
        """All passages, by document path and place."""
        rows = self._db.execute(
            "SELECT d.id, d.path, d.title, p.heading, p.text, p.start, p.stop FROM passages p "
            "JOIN documents d ON d.id = p.document ORDER BY d.path, p.start"
        )
        for identity, path, title, heading, text, start, stop in rows:
            yield Passage(
                document_id=identity, path=path, title=title, heading=heading, text=text, start=start, end=stop
            )

    def export(self, folder: Path) -> None:
        """Write a compact copy for an expert's folder: index.sqlite and, where there are vectors, vectors.npy."""
        target = folder / INDEX_FILE
        with _faults(target):
            target.unlink(missing_ok=True)
            self._db.execute("VACUUM INTO ?", (str(target),))
            target.chmod(0o600)
            with closing(sqlite3.connect(target)) as copy:
                with copy:
                    copy.execute("DELETE FROM computed")
                    copy.execute("UPDATE meta SET value = ? WHERE key = 'vectors'", (VECTORS_FILE,))
                copy.execute("VACUUM")
            if self._vectors is not None:
                _save_array(folder / VECTORS_FILE, np.asarray(self._vectors))

    def _insert(self, document: Document, max_chars: int) -> None:
        with self._db:
            self._db.execute(
                "INSERT INTO documents (id, path, title) VALUES (?, ?, ?)", (document.id, document.path, document.title)
            )
            for one in split(document, max_chars=max_chars):
                cursor = self._db.execute(
                    "INSERT INTO passages (document, heading, text, start, stop) VALUES (?, ?, ?, ?, ?)",
                    (document.id, one.heading, one.text, one.start, one.end),
                )
                self._db.execute(
                    "INSERT INTO words (rowid, title, heading, text) VALUES (?, ?, ?, ?)",
                    (cursor.lastrowid, one.title, one.heading, one.text),
                )

    def _embed(self, progress: Callable[[int, int], None]) -> int:
        """Compute the vectors that are missing; all of them where another encoder made those there are."""
        if self._encoder is None:
            return 0
        if self._meta("encoder") != self._encoder.id:
            with self._db:
                self._db.execute("DELETE FROM computed")
                self._set_meta("encoder", self._encoder.id)
        missing = self._db.execute(
            "SELECT p.id, d.title, p.heading, p.text FROM passages p JOIN documents d ON d.id = p.document "
            "WHERE p.id NOT IN (SELECT passage FROM computed) ORDER BY p.id"
        ).fetchall()
        for start in range(0, len(missing), _GROUP):
            group = missing[start : start + _GROUP]
            vectors = self._encoder.embed([f"{place(title, heading)}: {text}" for _, title, heading, text in group])
            rows = [(one[0], vector.astype("<f4").tobytes()) for one, vector in zip(group, vectors, strict=True)]
            with self._db:
                self._db.executemany("INSERT INTO computed (passage, vector) VALUES (?, ?)", rows)
            progress(start + len(group), len(missing))
        return len(missing)

    def _write_vectors(self) -> None:
        """Write the array anew and make it current; without an encoder there is none."""
        rows = self._db.execute("SELECT passage FROM computed ORDER BY passage").fetchall()
        old = self._meta("vectors")
        name = ""
        if self._encoder is not None and rows:
            number = int(self._meta("generation") or "0") + 1
            name = f"vectors-{number}.npy"
            array = np.zeros((len(rows), self._encoder.dimensions), np.float32)
            for i, (blob,) in enumerate(self._db.execute("SELECT vector FROM computed ORDER BY passage")):
                array[i] = np.frombuffer(blob, "<f4")
            _save_array(self._folder / name, array)
            with self._db:
                self._db.execute("UPDATE passages SET row = NULL")
                self._db.executemany(
                    "UPDATE passages SET row = ? WHERE id = ?", [(i, one) for i, (one,) in enumerate(rows)]
                )
                self._set_meta("generation", str(number))
                self._set_meta("rows", str(len(rows)))
                self._set_meta("vectors", name)
        else:
            with self._db:
                self._db.execute("UPDATE passages SET row = NULL")
                self._set_meta("vectors", "")
        self._vectors = None
        for stale in self._folder.glob("vectors-*.npy"):
            if stale.name != name:
                stale.unlink(missing_ok=True)
        if old and old != name:
            (self._folder / old).unlink(missing_ok=True)

    def _map_vectors(self) -> None:
        """Map the current array, when it was made by the encoder at hand."""
        name = self._meta("vectors")
        if self._encoder is None or not name or self._meta("encoder") != self._encoder.id:
            return
        path = self._folder / name
        rows = int(self._meta("rows"))
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise IndexFault(f"the vectors {path} are missing or damaged ({error}); personalize again") from error
        if array.dtype != np.float32 or array.ndim != 2 or array.shape != (rows, self._encoder.dimensions):
            raise IndexFault(f"the vectors {path} do not belong to their index; personalize again")
        self._vectors = array

    def _by_words(self, query: str, limit: int) -> list[int]:
        match = fts_query(query)
        if not match:
            return []
        rows = self._db.execute(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY bm25(words, 2.0, 1.5, 1.0), rowid LIMIT ?",
            (match, limit),
        )
        return [int(one) for (one,) in rows]

    def _by_vectors(self, query: str, limit: int) -> list[int]:
        if self._encoder is None or self._vectors is None or not query.strip():
            return []
        scores = np.asarray(self._vectors @ self._encoder.embed([query])[0])
        rows = np.lexsort((np.arange(len(scores)), -scores))[:limit]
        ids = []
        for row in rows:
            found = self._db.execute("SELECT id FROM passages WHERE row = ?", (int(row),)).fetchone()
            if found is not None:
                ids.append(int(found[0]))
        return ids

    def _found(self, identity: int, score: float, ranks: dict[Retriever, int]) -> Found:
        path, title, heading, text, start, stop = self._db.execute(
            "SELECT d.path, d.title, p.heading, p.text, p.start, p.stop FROM passages p "
            "JOIN documents d ON d.id = p.document WHERE p.id = ?",
            (identity,),
        ).fetchone()
        return Found(
            score=score, text=text, heading=heading, title=title, path=path, start=start, end=stop, ranks=ranks
        )

    def _meta(self, key: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return "" if row is None else str(row[0])

    def _set_meta(self, key: str, value: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))


def fts_query(text: str) -> str:
    """An FTS5 query for any text: its words, each quoted, any of them; "" where it has none."""
    clean = text.encode("utf-8", "replace").decode("utf-8")
    words = list(dict.fromkeys(word.casefold() for word in _WORD.findall(clean) if word.strip("_")))
    return " OR ".join(f'"{word}"' for word in words[:_MAX_TERMS])


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != FORMAT:
        raise IndexFault(
            f"the document index {path} has format {version} and this program reads {FORMAT}; personalize again"
        )
    db.execute("SELECT COUNT(*) FROM passages").fetchone()


def _has_log(path: Path) -> bool:
    return any(path.with_name(path.name + suffix).exists() for suffix in ("-wal", "-journal"))


def _save_array(path: Path, array: F32) -> None:
    temporary = path.with_name(path.name + ".part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            np.save(file, np.ascontiguousarray(array, np.float32), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if "full" in str(error) or "No space" in str(error):
            raise IndexFault("the disk is full; free some space and run the same command again") from error
        if "locked" in str(error):
            raise IndexFault(f"the document index {path} is in use; wait for the other ssd-client to finish") from error
        raise IndexFault(f"the document index {path} is damaged ({error}); personalize again") from error
