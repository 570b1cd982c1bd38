"""The terminal side of training commands: a progress bar with time left, and the result. Knows nothing about flags."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Bar:
    """What a training command tells while it runs, on stderr."""

    def __init__(self, bar: Progress, task: TaskID) -> None:
        self._bar, self._task, self._begun_s = bar, task, time.monotonic()

    def stage(self, words: str) -> None:
        """A stage begins."""
        self._begun_s = time.monotonic()
        self._bar.update(self._task, description=words, completed=0.0, left="")
        self._bar.console.print(words)

    def fraction(self, done: float) -> None:
        """So much of the stage is done."""
        left_s = (time.monotonic() - self._begun_s) * (1 - done) / done if done else 0.0
        self._bar.update(self._task, completed=done, left=f"{left_s:.0f} s left")

    def progress(self, state: Any) -> None:
        """A step of training is done."""
        left = f"{state.remaining_s / 60:.1f} min left, loss {state.loss:.3f}"
        self._bar.update(self._task, completed=state.fraction, left=left)


@contextmanager
def watching() -> Iterator[Bar]:
    """A progress bar on stderr for as long as a command runs."""
    from ssd_diffusion.openmp import wait_busily

    wait_busily()
    import transformers

    transformers.utils.logging.disable_progress_bar()
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield Bar(bar, bar.add_task("starting", total=1.0, left=""))


def run(command: Literal["adapt", "instruct"], as_json: bool, **options: Any) -> None:
    """Run a training command, showing progress on stderr and the result on stdout."""
    with watching() as bar:
        from ssd_diffusion.home import home

        from ssd_cloud.adapt import adapt
        from ssd_cloud.adapt_options import AdaptOptions
        from ssd_cloud.instruct import instruct

        work = adapt if command == "adapt" else instruct
        made = work(AdaptOptions(**options), home(), on_stage=bar.stage, on_progress=bar.progress)
    before, after = made.before and made.before.as_json(), made.after and made.after.as_json()
    found = {
        "folder": str(made.folder), "steps": made.report.steps, "seconds": round(made.report.elapsed_s, 1),
        "targets": made.report.targets, "stopped": made.report.stopped, "before": before, "after": after,
    }  # fmt: skip
    if as_json:
        print(json.dumps(found), flush=True)  # noqa: T201 - output for programs
        return
    Console(soft_wrap=True).print(f"{made.folder}: {made.report.steps} steps, {made.report.targets:,} targets")
    if made.before is not None and made.after is not None:
        line = "held out, nats a token: S1 {:.3f} -> {:.3f}, S2 {:.3f} -> {:.3f}"
        Console(soft_wrap=True).print(line.format(made.before.s1, made.after.s1, made.before.s2, made.after.s2))
