"""The file of results: one row a measured ratio, the rows of a suite replaced as a whole.

{machine: {...}, rows: [{suite, name, ratio, target, low, high, n, note}]}
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssd_bench import machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One ratio of two things measured in the same run.

    Attributes:
        suite: who measured it.
        name: what is divided by what.
        ratio: the estimate.
        target: what it should reach at least, or None.
        low: lower end of its interval (or of its spread, see note).
        high: upper end.
        n: units behind it.
        note: unit, direction and whatever a reader must know.
    """

    suite: str
    name: str
    ratio: float
    target: float | None = None
    low: float | None = None
    high: float | None = None
    n: int
    note: str = ""


def merge(path: Path, rows: Sequence[Row]) -> None:
    """Put the rows into the file in place of the same suites' earlier ones; written whole or not at all.

    Raises:
        ValueError: the file there is not a file of results.
    """
    suites = {row.suite for row in rows}
    kept = [row for row in load(path)["rows"] if row["suite"] not in suites]
    content = {"machine": machine.describe(), "rows": [*kept, *(asdict(row) for row in rows)]}
    write_json(path, content)


def load(path: Path) -> dict[str, Any]:
    """The file's content; an empty one where there is none.

    Raises:
        ValueError: it is not a file of results.
    """
    if not path.exists():
        return {"machine": {}, "rows": []}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ValueError(f"{path} is not a file of results; move it away")
    return content


def write_json(path: Path, content: object) -> None:
    """Write JSON through a neighbouring file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    scratch.replace(path)
