"""Tables and headers of the Markdown reports. Knows nothing about what is measured."""

from __future__ import annotations

from collections.abc import Sequence

from ssd_bench.machine import one_line


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [_line(header), "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"]
    return "\n".join([*lines, *(_line(row) for row in rows)])


def origin(command: str, machine: dict[str, str], *, seconds: float, note: str = "") -> str:
    """Where a report comes from: command, machine, time."""
    took = f"{seconds:.0f} seconds" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    lines = [f"Made by `{command}` in {took}.", f"Machine: {one_line(machine)}.", note]
    return "\n".join(line for line in lines if line)


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
