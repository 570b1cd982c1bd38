"""Where words go: results to stdout, everything on the way to stderr. One console for each.

Names of files, documents, answers and what a node says are shown and never obeyed. Knows nothing about commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from ssd_diffusion.terminal import printable


class Screen(Console):
    """A console that passes its own control sequences to the terminal and nobody else's."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The parts of a renderable, as `Console.render`, their text without what a terminal obeys."""
        for part in super().render(renderable, options):
            yield part if part.control else Segment(printable(part.text), part.style)


OUT = Screen(highlight=False)
ERR = Screen(stderr=True, highlight=False)


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    plain = (sys.stdout.encoding or "utf-8").lower() in ("utf-8", "utf8")
    sys.stdout.write(json.dumps(value, ensure_ascii=not plain, indent=None) + "\n")
    sys.stdout.flush()


def facts(rows: Sequence[tuple[str, str | Text]]) -> Table:
    """A compact table of names and values; strings are shown as they are, never read as markup."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value) if isinstance(value, str) else value)
    return table


def bytes_text(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")


def say(sentence: str) -> None:
    """One line on stderr, unwrapped so that it can be searched."""
    ERR.print(f"ssd-client: {sentence}", markup=False, soft_wrap=True)
