"""How an answer looks: the block resolving, what leaves the device, and the table of numbers.

Writes to stderr only. Knows nothing about how an answer is made.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live as RichLive
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from ssd_diffusion.terminal import stop_if_interrupted

from ssd_client.cli.screen import ERR, OUT, bytes_text, facts
from ssd_client.consent import Disclosure
from ssd_client.prompt import Contexts
from ssd_client.report import Answer, Progress


class Live:
    """The block resolving on the terminal; nothing where there is no terminal. A context manager."""

    def __init__(self, *, enabled: bool, console: Console = ERR) -> None:
        self._console = console
        self._live = RichLive(console=console, transient=True, refresh_per_second=12) if enabled else None

    def __enter__(self) -> Live:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(Text(""))
            self._live.stop()

    def stage(self, word: str) -> None:
        """Say what is being done before the first pass."""
        if self._live is not None:
            self._live.update(Spinner("dots", Text(f" {word} ...", style="dim")))

    def progress(self, progress: Progress) -> None:
        """Show the settled text, and the estimate behind it in dim letters."""
        stop_if_interrupted()
        if self._live is None:
            return
        text = Text(progress.settled.lstrip())
        text.append(progress.estimate if text else progress.estimate.lstrip(), style="dim italic")
        lines = text.wrap(self._console, self._console.width)
        shown = Text("\n").join(lines[-max(1, self._console.height - 3) :])
        state = f"step {progress.steps} · {progress.tokens} tokens"
        if progress.lost is not None:
            state += " · the core is lost, the expert goes on alone"
        elif progress.tokens and 0.0 < progress.core_share < 1.0:
            state += f" · core {progress.core_share:.0%}, expert {1 - progress.core_share:.0%}"
        self._live.update(Group(shown, Text(state, style="dim")))

    def pausing(self, ask: Callable[[Disclosure], bool]) -> Callable[[Disclosure], bool]:
        """`ask`, with the live view out of the way meanwhile."""

        def paused(disclosure: Disclosure) -> bool:
            if self._live is None:
                return ask(disclosure)
            self._live.update(Text(""))
            self._live.stop()
            agreed = ask(disclosure)
            self._live.start()
            return agreed

        return paused


def ask(disclosure: Disclosure) -> bool:
    """Show what would leave, and ask. No is the default."""
    ERR.print(_panel(disclosure))
    reply = ERR.input("Send this, now and for later answers on this node in this mode? [y/N] ", markup=False)
    return reply.strip().lower() in ("y", "yes")


def show_preview(disclosure: Disclosure | None, contexts: Contexts) -> None:
    """The dry run: what would leave, and what each member would see."""
    if disclosure is None:
        OUT.print("Nothing would leave this device: the expert writes alone.")
    else:
        OUT.print(_panel(disclosure))
    if contexts.expert_text != contexts.core_text:
        OUT.print(
            Panel(Text(contexts.expert_text.strip()), title="the expert sees, on this device", border_style="dim")
        )
    OUT.print("Nothing was sent.", style="dim")


def preview_json(disclosure: Disclosure | None, contexts: Contexts) -> dict[str, object]:
    """The dry run for programs."""
    return {
        "leaves": None if disclosure is None else disclosure.to_json(),
        "core_sees": None if disclosure is None else contexts.core_text,
        "expert_sees": contexts.expert_text,
        "passages": [{"document": p.document, "place": p.place, "score": p.score} for p in contexts.passages],
        "passages_left_out": contexts.left_out,
    }


def show_numbers(answer: Answer, *, show_context: bool) -> None:
    """The table under an answer."""
    ERR.print()
    ERR.print(facts(_rows(answer)))
    if not show_context:
        return
    for i, passage in enumerate(answer.passages, 1):
        ERR.print(
            Panel(
                Text(passage.text.strip()), title=Text(f"{i}. {passage.title}"), title_align="left", border_style="dim"
            )
        )
    if not answer.passages:
        ERR.print("No passage of the documents was given to the expert.", style="dim")


def _rows(answer: Answer) -> list[tuple[str, str | Text]]:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in answer.shares.items())
    rows: list[tuple[str, str | Text]] = [("written by", f"{shares}   (lambda {answer.lam:g}, alpha {answer.alpha:g})")]
    tokens = max(1, answer.tokens)
    passes = ", ".join(f"{name} {count / tokens:.2f}" for name, count in answer.forward_passes.items())
    end = "" if answer.finish_reason == "stop" else ", cut at --max-tokens"
    rows.append(("tokens", f"{answer.tokens} in {answer.steps} steps ({answer.decoder}){end}"))
    rows.append(("passes a token", passes))
    if answer.node is not None and answer.privacy != "offline":
        each = max(1, answer.core_steps)
        rows.append(
            (
                "sent, received",
                f"{bytes_text(answer.bytes_up)} up, {bytes_text(answer.bytes_down)} down   "
                f"({bytes_text(answer.bytes_up / each)} and {bytes_text(answer.bytes_down / each)} a core step)",
            )
        )
        bound = answer.tv_bound
        more = "" if bound is None else f"   (total variation at most {bound['mean']:.3f}, worst {bound['worst']:.3f})"
        rows.append(("codec", f"{answer.codec}{more}"))
        rows.append(("node", f"{answer.node}   {answer.model_id}"))
    rows.append(("privacy", answer.privacy))
    if answer.passages:
        titles = ", ".join(dict.fromkeys(passage.document for passage in answer.passages))
        rows.append(("passages", f"{len(answer.passages)} from {titles}"))
    speed = answer.tokens / max(answer.seconds, 1e-9)
    first = f"first words after {answer.first_seconds:.1f} s"
    rows.append(("time", f"{answer.seconds:.1f} s, {speed:.1f} tokens/s   ({first})"))
    rows.append(("seed", str(answer.seed)))
    return rows


def _panel(disclosure: Disclosure) -> Panel:
    body = Table.grid(padding=(0, 1))
    body.add_column(no_wrap=True, style="bold")
    body.add_column(overflow="fold")
    how = "encrypted" if disclosure.encrypted else "not encrypted"
    model = f", {disclosure.model}" if disclosure.model else ""
    body.add_row("to", Text(f"{disclosure.node}, {how}{model}"))
    body.add_row("mode", disclosure.privacy)
    for i, line in enumerate(disclosure.sent_once):
        body.add_row("once" if i == 0 else "", Text(line))
    each = disclosure.sent_each_step or ["nothing"]
    for i, line in enumerate(each):
        body.add_row("each step" if i == 0 else "", Text(line))
    for i, line in enumerate(disclosure.stays):
        body.add_row("stays here" if i == 0 else "", Text(line))
    body.add_row("so", Text(disclosure.consequence))
    prompt = Panel(Text(disclosure.public_text.strip()), title="the prompt, as the core sees it", border_style="dim")
    return Panel(Group(body, prompt), title="What leaves this device", title_align="left")
