"""What the suites' runs share: the time they have, the files they leave and what they hand back.

Knows nothing about options or about what is measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_bench.results import Row, merge, write_json


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run found: everything as JSON, and the report in Markdown."""

    content: Mapping[str, Any]
    text: str


def deadline(started: float, max_minutes: float | None) -> float:
    """When nothing new may begin any more, on the clock of `started` (seconds); infinity without a limit."""
    return float("inf") if max_minutes is None else started + 60 * max_minutes


def publish(outcome: Outcome, report: Path, *, rows: Sequence[Row], results: Path, with_json: bool = False) -> Outcome:
    """Write the report, with its JSON beside it if asked, and put the rows into the file of results.

    Args:
        outcome: what was found; given back.
        report: the Markdown file; its folder is made.
        rows: the suite's ratios.
        results: the file of results.
        with_json: also write the report's name with .json.

    Raises:
        ValueError: `results` is there and is not a file of results.
    """
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(outcome.text, encoding="utf-8")
    if with_json:
        write_json(report.with_suffix(".json"), outcome.content)
    merge(results, rows)
    return outcome
