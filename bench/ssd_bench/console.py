"""What a person sees while a benchmark runs: one line of progress with the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar; the function that it yields moves it by one."""
    with progress_by(title, total) as advance:
        yield lambda: advance(1)


@contextmanager
def progress_by(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over work of unequal parts; the function that it yields moves it by as much as it is told."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total)
        yield lambda amount: bar.advance(task, amount)
