"""How a personalization looks: a bar for each stage with the time left, remarks as they come, a table at the end.

Knows nothing about how an expert is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.text import Text
from ssd_diffusion.terminal import stop_if_interrupted

from ssd_client.cli.personalize_card import STAGE_TITLES, plain, sample_panel
from ssd_client.cli.screen import ERR, OUT, bytes_text, facts

if TYPE_CHECKING:
    from ssd_client.personalize.options import Event
    from ssd_client.store import ExpertCard

_MOST_SKIPPED = 50


class View:
    """Progress on stderr: bars on a terminal, lines elsewhere. A context manager.

    Args:
        quiet: print nothing where stderr is no terminal.
        console: where it goes.
    """

    def __init__(self, *, quiet: bool, console: Console = ERR) -> None:
        self._console = console
        self._lines = not console.is_terminal and not quiet
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: set[str] = set()
        self.details: dict[str, Any] = {}
        if console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[note]}", style="dim"),
                console=console,
            )

    def __enter__(self) -> View:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def waiting(self, word: str) -> None:
        """Say what is being waited for before the first stage."""
        self._bar("start", word, 0.0, "")
        if self._lines:
            self._print(f"{word} ...")

    def event(self, event: Event) -> None:
        """Take one step of progress."""
        stop_if_interrupted()
        if "start" in self._tasks and self._progress is not None:
            self._progress.remove_task(self._tasks.pop("start"))
        if event.detail and "s1" not in event.detail:
            self.details[event.stage] = dict(event.detail)
        title = STAGE_TITLES.get(event.stage, event.stage)
        if event.stage != "done":
            self._bar(event.stage, title, event.fraction, _note(event))
        if event.message and event.message not in self._said:
            self._said.add(event.message)
            self._print(f"{title}: {event.message}")
            if event.stage == "ingest":
                self._skipped(event.detail)

    def result(self, card: ExpertCard) -> None:
        """The table at the end, and a held-out text as base and expert continue it."""
        before, after = card.heldout_before, card.heldout_after
        rows: list[tuple[str, str | Text]] = [("expert", card.name), ("made from", f"{card.documents} documents")]
        if before is not None and after is not None:
            change = f"   ({(after - before) / before:+.1%})" if before else ""
            rows.append(("held-out loss", f"{before:.3f} before, {after:.3f} after{change}   (S1, nats a token)"))
        rows.append(("its share", f"lambda {card.lam:g}, alpha {card.alpha:g}"))
        if card.calibration.get("alone"):
            rows.append(("", "on what was held out it writes as well without a core of its own size (--offline)"))
        rows.append(("base", card.base_model_id))
        rows.append(("size", bytes_text(card.size_bytes)))
        seconds = self.details.get("done", {}).get("seconds", {})
        if "all" in seconds:
            rows.append(("time", f"{seconds['all']:.0f} s"))
        rows.append(("ask it", f'ssd-client generate --expert {card.name} "..."'))
        OUT.print(facts(rows))
        shown = sample_panel(card)
        if shown is not None:
            OUT.print()
            OUT.print(shown)

    def _bar(self, key: str, title: str, fraction: float, note: str) -> None:
        if self._progress is None:
            return
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(title, total=1.0, note="")
        task = self._tasks[key]
        done = max(fraction, self._progress.tasks[self._progress.task_ids.index(task)].completed)
        if note or fraction >= 1.0:
            self._progress.update(task, note=note)
        self._progress.update(task, completed=done)

    def _print(self, line: str) -> None:
        if self._progress is not None:
            self._progress.console.print(Text(line, style="dim"), soft_wrap=True)
        elif self._lines:
            self._console.print(Text(line), soft_wrap=True)

    def _skipped(self, detail: Mapping[str, Any]) -> None:
        left_out = detail.get("skipped", [])
        for path, reason in left_out[:_MOST_SKIPPED]:
            self._print(f"  left out {plain(str(path))}: {plain(str(reason))}")
        if len(left_out) > _MOST_SKIPPED:
            self._print(f"  and {len(left_out) - _MOST_SKIPPED} more (--json names them all)")


def _note(event: Event) -> str:
    parts = []
    if event.loss is not None:
        parts.append(f"loss {event.loss:.2f}")
    if event.seconds_left is not None:
        minutes, seconds = divmod(int(event.seconds_left), 60)
        parts.append(f"{minutes}:{seconds:02d} left")
    return " · ".join(parts)
