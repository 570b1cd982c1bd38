"""The page of performance: every suite leaves a section as JSON, and the page is written anew from all of them.

Knows sections; nothing about what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ssd_bench import machine
from ssd_bench.report import origin, table
from ssd_bench.results import Row, load, merge, write_json

FOLDER, PAGE = "performance", "performance.md"
ORDER = ("kernels", "wire", "step", "decode", "node", "personalize")
_INTRO = """# Performance

What is quick here, held against what it beats. Both are run by turns in one process, so figures are ratios, medians of
rounds with the smallest and the largest in brackets; seconds depend on the machine and on what else runs on it. All
ratios lie in `bench/results.json`."""


@dataclass(frozen=True, slots=True)
class Section:
    """What a suite says.

    Attributes:
        suite: its name.
        title: heading.
        text: Markdown; links to pictures are relative to the page's folder.
        seconds: how long it took.
    """

    suite: str
    title: str
    text: str
    seconds: float


def publish(section: Section, rows: Sequence[Row], *, out: Path, results: Path) -> str:
    """Keep the section, write the page anew, and put the rows into the file of results; returns the section's text.

    Raises:
        ValueError: a file that is there was not written by this function.
    """
    content = asdict(section) | {"command": machine.command(), "machine": machine.describe()}
    write_json(out / FOLDER / f"{section.suite}.json", content)
    kept = [_read(out / FOLDER / f"{suite}.json") for suite in ORDER if (out / FOLDER / f"{suite}.json").is_file()]
    merge(results, rows)
    (out / PAGE).write_text("\n\n".join([_INTRO, _glance(results), *kept]) + "\n", encoding="utf-8")
    return _read(out / FOLDER / f"{section.suite}.json") + "\n"


def _glance(results: Path) -> str:
    """What was aimed at and what was seen, of all suites of the page, from the file of results."""
    rows = [row for row in load(results)["rows"] if row["suite"] in ORDER and row["target"] is not None]
    lines = [
        [row["suite"], row["name"], f"{row['ratio']:,.2f}", f"{row['target']:g}",
         "yes" if row["ratio"] >= row["target"] else "no"]
        for suite in ORDER for row in rows if row["suite"] == suite
    ]  # fmt: skip
    header = ["suite", "what, against what", "seen", "at least wanted", "reached"]
    return "## At a glance\n\n" + table(header, lines)


def _read(path: Path) -> str:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        head = origin(found["command"], found["machine"], seconds=found["seconds"])
        return f"## {found['title']}\n\n{head}\n\n{found['text']}"
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no section of the page of performance ({error}); move it away") from error
