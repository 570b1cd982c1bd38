"""The ledger: totals by hand, two processes at once, consent, and refusal instead of silence."""

from __future__ import annotations

import hashlib
import sqlite3
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ssd_client.errors import LedgerError
from ssd_client.ledger import Ledger

DIGEST = hashlib.sha256(b"content").hexdigest()


def test_entries_and_totals(tmp_path: Path) -> None:
    moment = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    with Ledger(tmp_path / "a" / "ledger.sqlite", clock=lambda: moment) as ledger:
        note = ledger.sink("s1")
        note(to="h:1", kind="open", size_bytes=120, sha256=DIGEST)
        note(to="h:1", kind="step", size_bytes=40, sha256=DIGEST)
        note(to="h:1", kind="step", size_bytes=42, sha256=DIGEST)
        ledger.record(to="h:2", kind="describe", size_bytes=3, sha256=DIGEST)
        newest = ledger.entries(limit=1)[0]
        assert (newest.at, newest.node, newest.session, newest.kind) == (
            "2026-01-02T03:04:05.678+00:00", "h:2", "", "describe",
        )  # fmt: skip
        assert [one.size_bytes for one in ledger.entries(session="s1")] == [42, 40, 120]
        totals = ledger.totals("s1")
        assert (totals.messages, totals.size_bytes) == (3, 202)
        assert totals.by_kind == {"open": (1, 120), "step": (2, 82)}
        assert ledger.totals().size_bytes == 205
        assert ledger.totals("other").messages == 0
    for file in (tmp_path / "a").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert b"content" not in file.read_bytes()


def test_consent_is_for_one_node_and_mode(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.consented(node="h", privacy="open") is None
        ledger.consent(node="h", privacy="open", shown="the prompt and every step's estimate")
        found = ledger.consented(node="h", privacy="open")
        assert found is not None
        assert found.shown == "the prompt and every step's estimate"
        assert ledger.consented(node="h", privacy="one-way") is None
        assert ledger.consented(node="g", privacy="open") is None
        assert ledger.withdraw("h") == 1
        assert ledger.consented(node="h", privacy="open") is None


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ssd_client.ledger import Ledger\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for i in range(60): ledger.record(to='h', kind='step', size_bytes=i, sha256='0', session=sys.argv[2])\n"
    )
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "l"), name]) for name in "ab"]
    assert [run.wait(timeout=60) for run in runs] == [0, 0]
    with Ledger(tmp_path / "l") as ledger:
        assert ledger.totals().messages == 120
        assert ledger.totals("a").size_bytes == ledger.totals("b").size_bytes == sum(range(60))


def test_a_locked_ledger_refuses(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l", wait_s=0.05) as ledger:
        other = sqlite3.connect(tmp_path / "l", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="nothing is sent; wait for the other"):
            ledger.record(to="h", kind="step", size_bytes=1, sha256="0")
        other.close()
        ledger.record(to="h", kind="step", size_bytes=1, sha256="0")


def test_a_foreign_file_or_folder_refuses(tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(b"not a database at all, but long enough to look like one" * 10)
    with pytest.raises(LedgerError, match="move it away"):
        Ledger(tmp_path / "l")
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError):
        Ledger(tmp_path / "file" / "l")
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("PRAGMA user_version = 7")
    other.close()
    with pytest.raises(LedgerError):
        Ledger(tmp_path / "other")
