"""What the ensemble suite measured, item by item: kept on disk while it runs, so that a stopped run goes on.

A file of records is JSON lines; the first one holds the settings, and a file with other settings is not continued.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssd_bench.pair import DecoderKind, System

ItemKind = Literal["question", "document"]


@dataclass(frozen=True, slots=True)
class Answer:
    """One generated answer.

    Attributes:
        text: as a user reads it.
        tokens: how many, the end token included.
        passes: core or expert passes over the window (the larger of the two).
        seconds: wall time.
    """

    text: str
    tokens: int
    passes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Record:
    """One question or held-out passage under one decoder.

    Attributes:
        item: id of the question or document.
        kind: which of the two.
        decoder: diffusion or its autoregressive twin.
        tokens: tokens of the reference.
        nats: minus the reference's log-probability under each system.
        accepted: answers that count as right; none for a document.
        answers: generated answer of each system; none for a document.
    """

    item: str
    kind: ItemKind
    decoder: DecoderKind
    tokens: int
    nats: Mapping[System, float]
    accepted: tuple[str, ...] = ()
    answers: Mapping[System, Answer] = field(default_factory=dict)


class RecordFile:
    """Records on disk.

    Args:
        path: the file; one with other settings is replaced.
        settings: everything that decides what a record holds.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path, self._settings = path, json.loads(json.dumps(dict(settings)))
        self.records = self._read()
        if not self.records:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"settings": self._settings}) + "\n", encoding="utf-8")

    def has(self, item: str, kind: ItemKind, decoder: DecoderKind) -> bool:
        """True when this was measured before."""
        return any((r.item, r.kind, r.decoder) == (item, kind, decoder) for r in self.records)

    def add(self, record: Record) -> None:
        """Keep a record, in memory and on disk."""
        self.records.append(record)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record), ensure_ascii=False) + "\n")

    def _read(self) -> list[Record]:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
            if json.loads(lines[0]).get("settings") != self._settings:
                return []
        except (OSError, ValueError, IndexError, AttributeError):
            return []
        found = []
        for line in lines[1:]:
            try:
                found.append(_record(json.loads(line)))
            except (ValueError, KeyError, TypeError):  # the last line of a killed run
                break
        kept = "\n".join(lines[: 1 + len(found)]) + "\n"
        self.path.write_text(kept, encoding="utf-8")
        return found


def _record(raw: dict[str, Any]) -> Record:
    answers = {system: Answer(**answer) for system, answer in raw.pop("answers").items()}
    return Record(**{**raw, "accepted": tuple(raw["accepted"])}, answers=answers)
