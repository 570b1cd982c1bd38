"""Measurements on disk as JSON lines, found again by key, so that a killed run goes on where it stopped.

The first line holds the settings that every record depends on; each further line is one record. Knows nothing about
what is measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

JsonRecord = dict[str, Any]


def digest(value: object) -> str:
    """Twelve hex digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


class LineFile:
    """Records of one kind.

    Args:
        folder: where the file lies; made when missing.
        kind: what the records are; opens the file's name.
        settings: what all records depend on. Other settings have another file, so nothing measured is lost.
        key: fields that tell the records apart.

    Raises:
        ValueError: the file is there and was not written by this class.
    """

    def __init__(self, folder: Path, kind: str, settings: Mapping[str, Any], key: Sequence[str]) -> None:
        self._settings: JsonRecord = json.loads(json.dumps(dict(settings)))
        self._key = tuple(key)
        self.path = folder / f"{kind}-{digest(self._settings)}.jsonl"
        self._found: dict[tuple[Any, ...], JsonRecord] = {}
        if self.path.exists():
            self._read()
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"settings": self._settings}) + "\n", encoding="utf-8")

    def get(self, *key: Any) -> JsonRecord | None:
        """The record with these values of the key's fields, if it was measured before."""
        return self._found.get(key)

    def add(self, records: Iterable[JsonRecord]) -> None:
        """Keep records, in memory and on disk."""
        kept: list[JsonRecord] = [json.loads(json.dumps(record)) for record in records]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        self._found |= {self._key_of(record): record for record in kept}

    def _key_of(self, record: JsonRecord) -> tuple[Any, ...]:
        return tuple(record[name] for name in self._key)

    def _read(self) -> None:
        lines = self.path.read_bytes().decode("utf-8", "replace").split("\n")
        whole = lines[:-1]  # what follows the last line break is what a killed run could not finish
        try:
            header, *records = [json.loads(line) for line in whole]
            self._found = {self._key_of(record): record for record in records}
            ours = header["settings"] == self._settings
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path} is not a file of records ({error}); move it away") from error
        if not ours:
            raise ValueError(f"{self.path} holds records of other settings; move it away")
        if lines[-1]:
            self.path.write_text("\n".join(whole) + "\n", encoding="utf-8")
