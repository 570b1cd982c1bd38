"""The terminal side of training commands: a progress bar with time left, and the result. Knows nothing about flags."""

from __future__ import annotations

import json
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


def run(command: Literal["adapt", "instruct"], as_json: bool, **options: Any) -> None:
    """Run a training command, showing progress on stderr and the result on stdout."""
    import transformers
    from ssd_diffusion.home import home

    from ssd_cloud.adapt import AdaptOptions, adapt
    from ssd_cloud.instruct import instruct

    transformers.utils.logging.disable_progress_bar()
    work = adapt if command == "adapt" else instruct
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=1.0, left="")

        def stage(words: str) -> None:
            bar.update(task, description=words, left="")
            console.print(words)

        def progress(state: Any) -> None:
            left = f"{state.remaining_s / 60:.1f} min left, loss {state.loss:.3f}"
            bar.update(task, completed=state.fraction, left=left)

        made = work(AdaptOptions(**options), home(), on_stage=stage, on_progress=progress)
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
