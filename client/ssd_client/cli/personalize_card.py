"""How an expert's card looks: what was chosen and how it scores, how it was trained, what was learned, for people.

Reads cards of earlier versions too: what a card does not say is left out, and a plain value that no line here knows is
still shown. Knows nothing about the store, and needs no torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ssd_client.cli.screen import facts

if TYPE_CHECKING:
    from ssd_client.store import ExpertCard

Row = tuple[str, str | Text]

_ESCAPES = re.compile(
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # strings: titles, links
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, cursor
    r"|\x1b[ -/]*[0-~]"
)
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_STOPPED = {"time": "time was up", "early": "held-out loss no longer fell", "steps": "all steps done"}
STAGE_TITLES = {
    "base": "base model",
    "ingest": "documents",
    "index": "index",
    "train": "learning",
    "sample": "trying",
    "select": "weighing",
    "export": "writing",
    "register": "storing",
    "done": "done",
}
"""The stages of a personalization, in order, as people read them."""

_ROWS = {
    "next_token_share": "next token", "noisy_share": "noisy blocks", "reading_share": "reading passages",
    "asked_share": "questions",
}  # fmt: skip
_TRAINING = frozenset({
    *_ROWS, "kept", "rank", "learning_rate", "length", "block", "patience", "seed", "steps", "targets", "stopped",
    "best_step", "train_seconds", "warm_start", "seconds", "heldout_documents",
})  # fmt: skip
_CALIBRATION = frozenset({
    "how", "by", "lam", "alpha", "selected", "table", "alone", "reported", "tokens", "heldout_before", "heldout_after",
    "sample", "precision", "agreement",
})  # fmt: skip


def plain(text: str) -> str:
    """Text of a document or a model as one line that a terminal only shows: no escape codes, no control characters.

    Marks that turn the direction of what follows go too; whitespace becomes single spaces.
    """
    shown = "".join(
        " " if c.isspace() else c
        for c in _ESCAPES.sub("", text)
        if c.isspace() or not (c in _TURNING or unicodedata.category(c) in ("Cc", "Cs"))
    )
    return " ".join(shown.split())


def sample_panel(card: ExpertCard) -> Panel | Text | None:
    """The held-out text as base and expert continue it, or one line why there is none; None for a card without it."""
    shown = _mapping(card.calibration, "sample")
    if "reason" in shown:
        return Text(f"No held-out text was continued for you to look at: {plain(str(shown['reason']))}.", style="dim")
    if not {"document", "opening", "goes_on", "before", "after"} <= shown.keys():
        return None
    said = {key: plain(str(shown[key])) for key in shown}
    before, after = (f"... {said[key]}" if said[key] else "(it ends the text here)" for key in ("before", "after"))
    rows: list[Row] = [
        ("it begins", said["opening"]),
        ("it goes on", f"... {said['goes_on']}"),
        ("before", before),
        ("after", Text("the same", style="dim") if after == before else Text(after, style="bold")),
    ]
    return Panel(
        facts(rows), title=Text(f"A text it has not seen: {said['document']}"), title_align="left",
        subtitle=Text("before: by the base; after: by the expert"),
        subtitle_align="left", border_style="dim",
    )  # fmt: skip


def calibration_rows(card: ExpertCard) -> list[Row]:
    """Lambda and alpha, how core, expert and ensemble score, and how far the graph is from torch."""
    found = card.calibration
    counts = _mapping(found, "tokens")
    rows: list[Row] = [("lambda, alpha", f"{card.lam:g}, {card.alpha:g}" + _chosen(found, counts))]
    reported = _mapping(found, "reported")
    if reported:
        names = {"core": "core", "expert": "expert alone", "ensemble": "both"}
        scores = ", ".join(f"{label} {_score(reported[key])}" for key, label in names.items() if key in reported)
        rows.append(("S1, reported", f"{scores}   (nats a token{_on(counts, 'report')}; higher is better)"))
    if "alone" in found:
        rows.append(("without a core", _alone(bool(found["alone"]), asked=found.get("by") == "questions")))
    for one in _agreements(found):
        rows.append(("torch and ONNX", one))
    rows += _rest(found, _CALIBRATION)
    return rows


def training_rows(card: ExpertCard) -> list[Row]:
    """How it was trained, on what, and how long each stage took."""
    given = card.hyperparameters
    rows = [(label, ", ".join(parts)) for label, parts in _training(given) if parts]
    held = given.get("heldout_documents")
    if isinstance(held, Sequence) and not isinstance(held, str) and held:
        rows.append(("held out", ", ".join(plain(str(one)) for one in held)))
    if seconds := _mapping(given, "seconds"):
        stages = [stage for stage in STAGE_TITLES if stage in seconds]
        rows.append(("time", ", ".join(f"{STAGE_TITLES[stage]} {_seconds(seconds[stage])}" for stage in stages)))
    return rows + _rest(given, _TRAINING)


def score_grid(card: ExpertCard) -> Table | None:
    """S1 by (lambda, alpha) on the half that selects, the chosen cell marked; None for a card without it."""
    cells: dict[tuple[float, float], float] = {}
    for key, value in _mapping(card.calibration, "table").items():
        try:
            lam, alpha = map(float, key.split(","))
            cells[lam, alpha] = float(value)
        except (TypeError, ValueError):
            continue
    if not cells:
        return None
    alphas = sorted({alpha for _, alpha in cells})
    table = Table(
        title="S1 by lambda (rows) and alpha (columns), nats a token, higher is better",
        box=box.SIMPLE_HEAD, header_style="bold", title_justify="left", title_style="",
    )  # fmt: skip
    table.add_column("lambda", justify="right", style="bold")
    for alpha in alphas:
        table.add_column(f"{alpha:g}", justify="right")
    for lam in sorted({lam for lam, _ in cells}):
        name = "alone" if lam == 1.0 else f"{lam:g}"
        row = (_cell(cells.get((lam, alpha)), chosen=(lam, alpha) == (card.lam, card.alpha)) for alpha in alphas)
        table.add_row(name, *row)
    return table


def _cell(value: float | None, *, chosen: bool) -> Text:
    if value is None:
        return Text("")
    return Text(f"*{value:.3f}" if chosen else f"{value:.3f}", style="bold" if chosen else "")  # the mark: for pipes


def _chosen(found: Mapping[str, Any], counts: Mapping[str, Any]) -> str:
    score = _number(found.get("selected"))
    scored = "answers about the half" if found.get("by") == "questions" else "the half"
    return "" if score is None else f"   (S1 {score:.3f}{_on(counts, 'select')} of {scored} that selects)"


def _alone(alone: bool, *, asked: bool) -> str:
    what, be = ("answers about held-out text", "are") if asked else ("held-out text", "is")
    if alone:
        return f"{what} {be} no less likely to the expert alone than to it with a core of the base's size"
    return f"{what} {be} less likely to the expert alone than to it with a core"


def _agreements(found: Mapping[str, Any]) -> Iterator[str]:
    for one in found.get("agreement") or ():
        if not isinstance(one, Mapping):
            continue
        parts = []
        if (error := _number(one.get("rms_error_nats"))) is not None:
            parts.append(f"differ by {error:.1e} nats (root mean square)")
        if (greedy := _number(one.get("greedy"))) is not None:
            parts.append(f"the same most probable token at {greedy:.1%}")
        precision = str(one.get("precision", "?"))
        fate = "used" if precision == found.get("precision") else "kept" if one.get("kept") else "dropped"
        yield f"{precision}, {fate}: {', '.join(parts)}"


def _training(given: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    steps = []
    if "rank" in given:
        steps.append(f"LoRA of rank {given['rank']}")
    if "warm_start" in given:
        steps.append("from the earlier expert of this name" if given["warm_start"] else "from the base")
    if "steps" in given:
        best = given.get("best_step")
        steps.append(f"{given['steps']} steps" + (f", those of step {best} kept" if best is not None else ""))
    if (took := _number(given.get("train_seconds"))) is not None:
        steps.append(f"{_seconds(took)}, until {_STOPPED.get(str(given.get('stopped')), given.get('stopped', '?'))}")
    yield "training", steps
    shares = {label: _number(given.get(key)) or 0.0 for key, label in _ROWS.items() if key in given}
    total = sum(shares.values()) or 1.0
    rows = [f"{label} {share / total:.0%}" for label, share in shares.items()]
    named = (("length", "{} tokens each"), ("block", "blocks of {}"), ("targets", "{} tokens supervised"))
    yield "rows", rows + [words.format(given[key]) for key, words in named if key in given]
    settings = (
        ("learning_rate", "learning rate {}"), ("kept", "{} of the targets the base's own"),
        ("patience", "patience {}"), ("seed", "seed {}"),
    )  # fmt: skip
    yield "settings", [words.format(given[key]) for key, words in settings if key in given]


def _rest(found: Mapping[str, Any], known: frozenset[str]) -> list[Row]:
    """Plain values that no other line shows."""
    return [
        (plain(key), plain(str(value)))
        for key, value in found.items()
        if key not in known and isinstance(value, str | int | float)
    ]


def _mapping(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = found.get(key)
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _score(value: object) -> str:
    number = _number(value)
    return "-" if number is None else f"{number:.3f}"


def _on(counts: Mapping[str, Any], half: str) -> str:
    return f" on {counts[half]} tokens" if half in counts else ""


def _seconds(value: object) -> str:
    number = _number(value)
    if number is None:
        return "-"
    if number < 60:
        return f"{number:.1f} s"
    minutes, seconds = divmod(round(number), 60)
    return f"{minutes} min {seconds} s"
