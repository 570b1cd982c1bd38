"""The ledger: which messages left this device, when and to whom, and what the user agreed to. Never their content.

One SQLite file (write-ahead log, mode 0600) that several processes may write at once. Knows nothing about the wire.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from ssd_client.errors import LedgerError

_WAIT_S = 10.0
_RETRY_S = 0.02
_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, node TEXT NOT NULL, session TEXT NOT NULL, kind TEXT NOT NULL,
    bytes INTEGER NOT NULL, sha256 TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS messages_by_session ON messages (session);
CREATE TABLE IF NOT EXISTS consents (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, node TEXT NOT NULL, privacy TEXT NOT NULL, shown TEXT NOT NULL);
PRAGMA user_version = 1;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One message that was sent.

    Attributes:
        at: ISO 8601, UTC.
        node: "HOST:PORT" it went to.
        session: this device's own name for the answer it belongs to ("" outside an answer).
        kind: "describe", "open", "step", "close", ...
        size_bytes: length of the serialised message.
        sha256: hex digest of the serialised message.
    """

    id: int
    at: str
    node: str
    session: str
    kind: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Messages and bytes sent, in all and by kind."""

    messages: int
    size_bytes: int
    by_kind: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """What a user agreed to send to a node: `shown` names the kinds of data that leave, not the data."""

    at: str
    node: str
    privacy: str
    shown: str


class Sink(Protocol):
    """Takes note of a message before it is sent."""

    def __call__(self, *, to: str, kind: str, size_bytes: int, sha256: str) -> None:
        """Write one entry. Raises LedgerError: the message is then not sent."""
        ...


class Ledger:
    """The ledger in one file; safe from several threads and several processes.

    Raises (all methods):
        LedgerError: the file cannot be read or written; what it should note must not be sent.
    """

    def __init__(self, path: Path, *, wait_s: float = _WAIT_S, clock: Callable[[], datetime] | None = None) -> None:
        self._path = path
        self._clock = clock or (lambda: datetime.now(UTC))
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, timeout=wait_s, check_same_thread=False, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise self._fault(error) from error
        try:
            with self._guard():
                self._prepare(time.monotonic() + wait_s)
        except LedgerError:
            self._db.close()
            raise

    def _prepare(self, until_s: float) -> None:
        self._switch_to_wal(until_s)
        self._db.execute("PRAGMA synchronous = FULL")
        if self._db.execute("PRAGMA user_version").fetchone()[0] == 0:
            self._db.executescript("BEGIN IMMEDIATE;" + _SCHEMA + "COMMIT;")
        self._db.execute("SELECT id, at, node, session, kind, bytes, sha256 FROM messages LIMIT 1").fetchone()

    def _switch_to_wal(self, until_s: float) -> None:
        """Set the journal mode of a new file, for which SQLite itself does not wait on another process."""
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until_s:
                    raise
                time.sleep(_RETRY_S)

    def record(self, *, to: str, kind: str, size_bytes: int, sha256: str, session: str = "") -> None:
        """Note one message; on disk when this returns."""
        row = (self._now(), to, session, kind, size_bytes, sha256)
        with self._guard():
            self._db.execute(
                "INSERT INTO messages (at, node, session, kind, bytes, sha256) VALUES (?, ?, ?, ?, ?, ?)", row
            )

    def sink(self, session: str) -> Sink:
        """`record` bound to one session."""

        def note(*, to: str, kind: str, size_bytes: int, sha256: str) -> None:
            self.record(to=to, kind=kind, size_bytes=size_bytes, sha256=sha256, session=session)

        return note

    def entries(self, limit: int = 100, session: str | None = None) -> list[Entry]:
        """The latest entries, newest first."""
        where, values = _session_filter(session)
        with self._guard():
            rows = self._db.execute(
                f"SELECT id, at, node, session, kind, bytes, sha256 FROM messages{where} ORDER BY id DESC LIMIT ?",
                (*values, limit),
            ).fetchall()
        return [
            Entry(id=i, at=at, node=node, session=one, kind=kind, size_bytes=size, sha256=digest)
            for i, at, node, one, kind, size, digest in rows
        ]

    def totals(self, session: str | None = None) -> Totals:
        """Messages and bytes, of one session or of all."""
        where, values = _session_filter(session)
        with self._guard():
            rows = self._db.execute(
                f"SELECT kind, COUNT(*), SUM(bytes) FROM messages{where} GROUP BY kind ORDER BY kind",
                values,
            ).fetchall()
        by_kind = {str(kind): (int(count), int(size)) for kind, count, size in rows}
        return Totals(
            messages=sum(count for count, _ in by_kind.values()),
            size_bytes=sum(size for _, size in by_kind.values()),
            by_kind=by_kind,
        )

    def consent(self, *, node: str, privacy: str, shown: str) -> None:
        """Note that the user agreed.

        Args:
            node: the node's identity: address and certificate or model, as the caller tells nodes apart.
            privacy: the mode that was agreed to.
            shown: which kinds of data leave the device, in the words that were shown.
        """
        with self._guard():
            self._db.execute(
                "INSERT INTO consents (at, node, privacy, shown) VALUES (?, ?, ?, ?)",
                (self._now(), node, privacy, shown),
            )

    def consented(self, *, node: str, privacy: str) -> Consent | None:
        """The latest consent for this node and mode."""
        with self._guard():
            row = self._db.execute(
                "SELECT at, node, privacy, shown FROM consents WHERE node = ? AND privacy = ? ORDER BY id DESC LIMIT 1",
                (node, privacy),
            ).fetchone()
        return None if row is None else Consent(at=row[0], node=row[1], privacy=row[2], shown=row[3])

    def withdraw(self, node: str) -> int:
        """Forget the consents for a node; returns how many there were."""
        with self._guard():
            return self._db.execute("DELETE FROM consents WHERE node = ?", (node,)).rowcount

    def close(self) -> None:
        """Close the file. Safe to call twice, and while another thread is noting a message: that one ends first."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _now(self) -> str:
        return self._clock().astimezone(UTC).isoformat(timespec="milliseconds")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OverflowError) as error:
                raise self._fault(error) from error

    def _fault(self, error: Exception) -> LedgerError:
        text = f"the ledger {self._path} cannot be used ({error}), so nothing is sent; "
        if "locked" in str(error):
            return LedgerError(text + "wait for the other ssd-client to finish")
        if "full" in str(error):
            return LedgerError(text + "free some disk space")
        return LedgerError(text + "make it writable, or move it away and a new one is made")


def _session_filter(session: str | None) -> tuple[str, tuple[str, ...]]:
    return ("", ()) if session is None else (" WHERE session = ?", (session,))
