"""A folder into documents, remembering what was read: only new and changed files are read again.

Every file is one SQLite transaction, so a run killed at any moment goes on where it was. Files are compared by content
hash. Reading is parallel; PDF, Word, HTML and mail are read by other processes (`worker`). Knows nothing about
passages, vectors or models.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ssd_client.documents.extract import Extracted, Limits, Skip, needs_worker
from ssd_client.documents.walk import Found, walk
from ssd_client.documents.worker import Worker, read_here
from ssd_client.errors import BadInput, StoreError
from ssd_client.store import file_sha256

READER_VERSION = 1  # raise it when extraction changes: every file is then read again
_LOCK_WAIT_S = 10.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, sha256 TEXT NOT NULL, reader TEXT NOT NULL, mtime_ns INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    id TEXT PRIMARY KEY, file TEXT NOT NULL REFERENCES files ON DELETE CASCADE, number INTEGER NOT NULL,
    path TEXT NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL, sha256 TEXT NOT NULL, format TEXT NOT NULL,
    encoding TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS documents_by_file ON documents (file);
CREATE TABLE IF NOT EXISTS skipped (
    file TEXT NOT NULL REFERENCES files ON DELETE CASCADE, path TEXT NOT NULL, reason TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS skipped_by_file ON skipped (file);
PRAGMA user_version = 1;
"""

State = Literal["added", "changed", "unchanged", "skipped", "removed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document.

    Attributes:
        id: the same for the same path and text.
        path: within the folder, "/" between parts; "mails.mbox#3" for the third mail of a mailbox.
        title: its own title, else its file's name.
        text: clean text.
        sha256: hex digest of `text` in UTF-8.
        mtime: seconds since 1970 at which the file was changed.
        format: "text", "markdown", "rst", "source", "html", "pdf", "docx" or "mail".
        encoding: how the bytes were read, where that was a guess or not UTF-8; else "".
    """

    id: str
    path: str
    title: str
    text: str
    sha256: str
    mtime: float
    format: str
    encoding: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One file is done: `done` of `total`, and what came of it (`reason` where it was skipped)."""

    done: int
    total: int
    path: str
    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What a folder holds now.

    Attributes:
        documents: by path.
        skipped: (path, reason) of every file and folder that gave no document, by path.
        added, changed, unchanged, removed: files that gave documents, against the run before.
        parsed: files whose content was read for its text in this run.
    """

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...]
    added: int
    changed: int
    unchanged: int
    removed: int
    parsed: int

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the documents' paths and hashes, by path."""
        return data_fingerprint(self.documents)


def data_fingerprint(documents: tuple[Document, ...] | list[Document]) -> str:
    """SHA-256 (hex) over paths and hashes of documents, by path."""
    lines = sorted(f"{one.path}\0{one.sha256}\n" for one in documents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def ingest(
    root: Path,
    database: Path,
    *,
    limits: Limits | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Ingested:
    """Read a folder's new and changed files, forget its removed ones, and return what it holds now.

    Args:
        root: the folder.
        database: where what was read is kept between runs (made with mode 0600).
        limits: what is too much for one file.
        workers: files read at once; by default one per core, at most 8.
        progress: called in the caller's thread after every file.

    Raises:
        BadInput: the folder is missing, unreadable, or nothing in it can be read.
        StoreError: the database is damaged, in use, or the disk is full.
    """
    limits = limits or Limits()
    found, left_out = walk(root)
    with _database(database) as db:
        run = _Run(db, limits, progress or (lambda _: None), len(found))
        run.removed = _forget(db, {one.name for one in found})
        run.read_all(found, workers or min(8, os.cpu_count() or 1))
        result = _result(db, left_out + run.skipped_now, run)
    if not result.documents:
        raise BadInput(_nothing(root, result.skipped))
    return result


class _Run:
    """One pass over the files of a folder; writes in the caller's thread only."""

    def __init__(
        self, db: sqlite3.Connection, limits: Limits, progress: Callable[[Progress], None], total: int
    ) -> None:
        self._db, self._limits, self._progress, self._total = db, limits, progress, total
        self._reader = f"{READER_VERSION}:{limits.text_chars}:{limits.unpacked_bytes}"
        self._done = 0
        self.skipped_now: list[tuple[str, str]] = []  # reasons that may be gone next time: not remembered
        self.added = self.changed = self.unchanged = self.removed = self.parsed = 0

    def read_all(self, found: list[Found], workers: int) -> None:
        known = {
            path: (sha, reader) for path, sha, reader in self._db.execute("SELECT path, sha256, reader FROM files")
        }
        todo: list[tuple[Found, str]] = []
        for one in found:
            digest = self._digest(one)
            if digest is None:
                continue
            if known.get(one.name) == (digest, self._reader):
                self._keep(one)
            else:
                todo.append((one, digest))
        for one, digest, outcome in _read_parallel(todo, workers, self._limits):
            self.parsed += 1
            self._store(one, digest, outcome, new=one.name not in known)

    def _digest(self, one: Found) -> str | None:
        if one.size_bytes > self._limits.file_bytes:
            reason = f"{one.size_bytes:,} bytes (the limit is {self._limits.file_bytes:,})"
        else:
            try:
                return file_sha256(one.path)
            except OSError as error:
                reason = f"cannot be read ({error.strerror})"
        self._drop(one.name)
        self._skip_now(one.name, reason)
        return None

    def _keep(self, one: Found) -> None:
        with self._db:
            self._db.execute("UPDATE files SET mtime_ns = ? WHERE path = ?", (one.mtime_ns, one.name))
        (has,) = self._db.execute("SELECT COUNT(*) FROM documents WHERE file = ?", (one.name,)).fetchone()
        if has:
            self.unchanged += 1
            self._tell(one.name, "unchanged")
        else:
            (reason,) = self._db.execute("SELECT reason FROM skipped WHERE file = ?", (one.name,)).fetchone()
            self._tell(one.name, "skipped", reason)

    def _store(self, one: Found, digest: str, outcome: tuple[str, Extracted] | _Reason, *, new: bool) -> None:
        if isinstance(outcome, _Reason) and outcome.passing:
            self._drop(one.name)
            self._skip_now(one.name, outcome.text)
            return
        with self._db:
            self._db.execute("DELETE FROM files WHERE path = ?", (one.name,))
            row = (one.name, digest if isinstance(outcome, _Reason) else outcome[0], self._reader, one.mtime_ns)
            self._db.execute("INSERT INTO files (path, sha256, reader, mtime_ns) VALUES (?, ?, ?, ?)", row)
            if isinstance(outcome, _Reason):
                self._db.execute("INSERT INTO skipped VALUES (?, ?, ?)", (one.name, one.name, outcome.text))
            else:
                _insert(self._db, one.name, outcome[1])
        if isinstance(outcome, _Reason):
            self._tell(one.name, "skipped", outcome.text)
            return
        self.added += new
        self.changed += not new
        self._tell(one.name, "added" if new else "changed")

    def _drop(self, name: str) -> None:
        with self._db:
            self._db.execute("DELETE FROM files WHERE path = ?", (name,))

    def _skip_now(self, name: str, reason: str) -> None:
        self.skipped_now.append((name, reason))
        self._tell(name, "skipped", reason)

    def _tell(self, name: str, state: State, reason: str = "") -> None:
        self._done += 1
        self._progress(Progress(done=self._done, total=self._total, path=name, state=state, reason=reason))


@dataclass(frozen=True, slots=True)
class _Reason:
    """Why a file was left out; `passing` where another run may fare better with the same bytes."""

    text: str
    passing: bool


def _read_parallel(
    todo: list[tuple[Found, str]], workers: int, limits: Limits
) -> Iterator[tuple[Found, str, tuple[str, Extracted] | _Reason]]:
    """Read files in threads; each thread owns one worker process, started when it first meets a fragile format."""
    waiting: queue.SimpleQueue[tuple[Found, str]] = queue.SimpleQueue()
    finished: queue.Queue[tuple[Found, str, tuple[str, Extracted] | _Reason]] = queue.Queue(maxsize=4 * workers)
    stop = threading.Event()
    for item in todo:
        waiting.put(item)
    readers = [Worker(limits) for _ in range(min(workers, len(todo)))]

    def serve(worker: Worker) -> None:
        while not stop.is_set():
            try:
                one, digest = waiting.get_nowait()
            except queue.Empty:
                return
            outcome = _read_one(one, worker, limits)
            while not stop.is_set():
                try:
                    finished.put((one, digest, outcome), timeout=0.1)
                    break
                except queue.Full:
                    continue

    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in readers]
    for thread in threads:
        thread.start()
    try:
        for _ in todo:
            yield finished.get(timeout=2 * limits.seconds + 60)
    finally:
        stop.set()
        for worker in readers:
            worker.stop()
        for thread in threads:
            thread.join(timeout=10)


def _read_one(one: Found, worker: Worker, limits: Limits) -> tuple[str, Extracted] | _Reason:
    try:
        if needs_worker(one.name):
            return worker.read(one.path, one.name)
        return read_here(one.path, one.name, limits)
    except Skip as reason:
        text = str(reason)
        return _Reason(text, passing=text.startswith(("cannot be read", "took longer", "could not be read", "stopped")))
    except Exception as error:  # noqa: BLE001 - one file must never end the run
        return _Reason(f"could not be read: {type(error).__name__}", passing=True)


def _insert(db: sqlite3.Connection, name: str, found: Extracted) -> None:
    for number, part in enumerate(found.parts):
        path = f"{name}#{part.part}" if part.part else name
        digest = hashlib.sha256(part.text.encode()).hexdigest()
        identity = hashlib.sha256(f"{path}\0{digest}".encode()).hexdigest()[:32]
        title = " ".join(part.title.split()) or PurePosixPath(name).name
        db.execute(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (identity, name, number, path, title, part.text, digest, part.format, part.encoding),
        )
    for inner, reason in found.skipped:
        db.execute("INSERT INTO skipped VALUES (?, ?, ?)", (name, f"{name}#{inner}", reason))


def _forget(db: sqlite3.Connection, present: set[str]) -> int:
    """Drop files that are gone; returns how many of them had given documents."""
    had = {name for (name,) in db.execute("SELECT DISTINCT file FROM documents")}
    gone = [name for (name,) in db.execute("SELECT path FROM files") if name not in present]
    with db:
        db.executemany("DELETE FROM files WHERE path = ?", [(name,) for name in gone])
    return sum(name in had for name in gone)


def _result(db: sqlite3.Connection, skipped: list[tuple[str, str]], run: _Run) -> Ingested:
    rows = db.execute(
        "SELECT d.id, d.path, d.title, d.text, d.sha256, f.mtime_ns, d.format, d.encoding FROM documents d "
        "JOIN files f ON f.path = d.file ORDER BY d.file, d.number"
    )
    documents = tuple(
        Document(
            id=identity, path=path, title=title, text=text, sha256=digest, mtime=mtime / 1e9, format=form, encoding=enc
        )
        for identity, path, title, text, digest, mtime, form, enc in rows
    )
    kept = db.execute("SELECT path, reason FROM skipped").fetchall()
    return Ingested(
        documents=documents,
        skipped=tuple(sorted({*skipped, *((str(path), str(reason)) for path, reason in kept)})),
        added=run.added,
        changed=run.changed,
        unchanged=run.unchanged,
        removed=run.removed,
        parsed=run.parsed,
    )


def _nothing(root: Path, skipped: tuple[tuple[str, str], ...]) -> str:
    if not skipped:
        return f"{root} is empty; put documents into it or name another folder"
    path, reason = skipped[0]
    return (
        f"nothing in {root} can be read ({len(skipped)} left out, the first: {path}: {reason}); "
        "put text, HTML, PDF, Word or mail files into it"
    )


@contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    """The database, locked against a second run on it.

    Raises:
        StoreError: damaged, in use, or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise _fault(path, error) from error
    try:
        with closing(sqlite3.connect(path, timeout=_LOCK_WAIT_S)) as db:
            db.execute("PRAGMA foreign_keys = ON")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
            yield db
    except sqlite3.Error as error:
        raise _fault(path, error) from error


def _fault(path: Path, error: Exception) -> StoreError:
    text = f"the record of what was read, {path}, cannot be used ({error}); "
    if "locked" in str(error):
        return StoreError(text + "wait for the other ssd-client to finish")
    if "full" in str(error) or "No space" in str(error):
        return StoreError(text + "free some disk space and run the same command again")
    return StoreError(text + "remove it, and everything is read again")


def save_skipped(result: Ingested, path: Path) -> None:
    """Write the list of what was left out as JSON: [{"path": ..., "reason": ...}]."""
    rows = [{"path": name, "reason": reason} for name, reason in result.skipped]
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    path.chmod(0o600)
