"""The report of the personal suite: conclusions, tables by set, rows of results, everything as JSON.

Knows the figures' names and what they mean in words; nothing about how they were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ssd_client.personalize.weights import ALPHAS

from ssd_bench import machine
from ssd_bench.personal import answers
from ssd_bench.personal.conclusions import LEAST_UNITS, sentences
from ssd_bench.personal.figures import Figures
from ssd_bench.personal.heldout import CORE, EXPERT, GRID, NOTES, name_of
from ssd_bench.personal.reading import LEVELS
from ssd_bench.personal.recall import FORMS
from ssd_bench.personal.results import Result
from ssd_bench.report import origin, table
from ssd_bench.results import Row
from ssd_bench.stats import Interval

SUITE = "personal"
_WHO = {
    "core": "core alone", "before": "base, passages", "before, no passages": "base, no passages",
    "after": "expert alone, passages", "after, no passages": "expert alone, no passages",
    "ensemble": "expert + core", "ensemble, card": "expert + core, the card's weights",
}  # fmt: skip
_MEASURES = {"s1": "S1", "next": "autoregressive twin", "s2": "S2"}
_FORMS = {"both": "both sides", "left": "left side alone", "next": "autoregressive twin"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found.

    Attributes:
        about: models and settings in a sentence or two.
        seconds: how long the run took.
        results: set by set.
        pooled: what diffusion adds beyond the twin over all sets.
        plots: file names by kind.
    """

    about: str
    seconds: float
    results: Sequence[Result]
    pooled: Interval | None
    plots: dict[str, str]


def markdown(report: Report) -> str:
    """The page."""
    head = "# Personalization that shows\n\n" + origin(
        machine.command(), machine.describe(), seconds=report.seconds, note=report.about
    )
    told = "\n".join(f"- {line}" for line in sentences(report.results, report.pooled))
    parts = [head, _intro(), f"## Conclusions\n\n{told}" if told else ""]
    parts += [_overview(report.results), _sweeps(report), _curves(report)]
    for result in report.results:
        parts += [f"## {result.name}", _counts(result), _heldout(result), _cloze(result), _answers(result)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _intro() -> str:
    return (
        "Every set is cut by seed: files that are personalized on with `ssd-client personalize`, and files that are "
        "kept out of it, a third of them to choose lambda and alpha, the others for the figures. Intervals are 95%: "
        "paired bootstrap over documents, Wilson for shares. Nats are lower for the better. Each decoder has the "
        "weights that are best for it on the validation part. Answers are written with those of the expert's card, "
        "which the device chose by questions about what it had held out itself. **S1** is the chain rule at the first "
        "open position, the **twin** the same models' next-token likelihood, combined likewise; both are normalised "
        "over texts and may be compared. **S2** is the denoising loss of blocks at "
        f"u = {', '.join(f'{u:g}' for u in LEVELS)}; compare it with itself alone. On kept documents expert and base "
        f"read up to {NOTES} passages of the documents that were learned from, found as `generate` finds them; the "
        "core never reads one. Texts are read in float32 and answers written in bfloat16 where the processor has it. "
        "A run goes on from the records of earlier ones with the same "
        "settings; its time is then not that of the whole. A conclusion is *not shown* where the interval holds zero, "
        f"where fewer than {LEAST_UNITS} units stand behind it, and for shares where McNemar's p is .05 or more."
    )


def _overview(results: Sequence[Result]) -> str:
    rows = []
    for one in results:
        chosen = one.choice.pairs["s1"]
        figures = [one.heldout.get(f"s1 {who}") for who in ("core", "before", "after", "ensemble")]
        cells = ["–" if x is None else f"{x.value:.3f}" for x in figures]
        filled = [one.cloze.get(f"both {who} filled") for who in ("before", "after")]
        right = [one.answers.get(name) for name in (answers.ENSEMBLE, answers.EXPERT, answers.SENTENCE)]
        shares = ["–" if x is None else f"{x.value:.0%}" for x in (*filled, *right)]
        rows.append([one.name, *cells, f"{chosen[0]:g}, {chosen[1]:g}", *shares])
    header = [
        "S1 on kept documents; shares", "core", "base", "expert", "both", "lambda, alpha", "facts filled, base",
        "facts filled, expert", "right, both", "right, expert", "right, best sentence",
    ]  # fmt: skip
    return "## At a glance\n\n" + table(header, rows)


def _sweeps(report: Report) -> str:
    drawn = [one for one in report.results if one.choice.table]
    if not drawn:
        return ""
    parts = [
        "## Lambda and alpha", "S1 of the validation part, nats a token; the star, and bold, is what is chosen there.",
    ]  # fmt: skip
    if "sweeps" in report.plots:
        parts.append(f"![S1 by lambda and alpha]({report.plots['sweeps']})")
    return "\n\n".join([*parts, *(f"### {one.name}\n\n{_sweep(one)}" for one in drawn)])


def _sweep(one: Result) -> str:
    chosen, rows = one.choice.pairs["s1"], []
    for lam in dict.fromkeys(lam for lam, _ in GRID):
        values = [(pair, one.choice.table[name_of(pair)]) for pair in GRID if pair[0] == lam]
        cells = [f"**{value:.4f}**" if pair == chosen else f"{value:.4f}" for pair, value in values]
        rows.append([f"lambda {lam:g}", *cells])
    core, expert = (one.choice.table[name_of(pair)] for pair in (CORE, EXPERT))
    lam, alpha = one.choice.pairs["next"]
    below = (
        f"Core alone {core:.4f}, expert alone {expert:.4f}. The twin's own choice is lambda {lam:g}, alpha {alpha:g}."
    )
    return "\n\n".join([table(["", *(f"alpha {a:g}" for a in ALPHAS)], rows), below])


def _curves(report: Report) -> str:
    if "curves" not in report.plots:
        return ""
    rows = [
        [f"{one.name}, {minutes:g} min", *(_cell(point.get(name)) for name in ("heldout", "cloze", "filled"))]
        for one in report.results
        for minutes, point in one.curve.items()
    ]  # fmt: skip
    return "\n\n".join([
        "## Learning curve",
        "Weights of one training, kept on its way; read alone, without passages. The last point is the expert as it is "
        "used, the best weights by its own held-out loss.",
        f"![Kept documents and hidden facts by minutes]({report.plots['curves']})",
        table(["", "S1, kept documents", "hidden facts, nats a token", "filled"], rows),
    ])  # fmt: skip


def _cell(value: Interval | None) -> str:
    return "–" if value is None else str(value)


def _counts(one: Result) -> str:
    names = {"train": "learned from", "validation": "to choose", "test": "to test", "left out": "left out"}
    told = ", ".join(f"{one.documents[key]} {words}" for key, words in names.items())
    measured = "; ".join(f"{part}: {done} of {asked}" for part, (done, asked) in one.counts.items())
    weights = "chosen on the validation part" if one.choice.measured else "of the expert's card"
    lam, alpha = one.choice.pairs["s1"]
    return (
        f"Documents: {told}. Trained for {one.minutes:.1f} minutes. Lambda {lam:g} and alpha {alpha:g}, {weights}; the "
        f"card has {one.card[0]:g} and {one.card[1]:g}. Measured: {measured}."
    )


def _heldout(one: Result) -> str:
    if not one.heldout:
        return ""
    rows = [
        [words, *(one.heldout[f"{m} {who}"] for m in _MEASURES), one.heldout_bytes[f"s1 {who}"]]
        for who, words in _WHO.items()
    ]
    gaps = [name.removeprefix("s1 ") for name in one.heldout if name.startswith("s1 ") and " - " in name]
    rows += [
        [_said(gap), *(one.heldout[f"{m} {gap}"] for m in _MEASURES), one.heldout_bytes[f"s1 {gap}"]] for gap in gaps
    ]
    beyond = [[_said(name), value] for name, value in one.heldout.items() if name.startswith("diffusion - twin")]
    n = one.heldout["s1 core"].n
    return "\n\n".join([
        "### Kept documents", f"Nats a token over {n} documents, and S1 a byte.",
        table(["", *_MEASURES.values(), "S1 a byte"], rows),
        "What diffusion costs beyond its twin, nats a token; below zero diffusion is better.",
        table(["S1 less the twin", "nats a token"], beyond),
    ])  # fmt: skip


def _said(name: str) -> str:
    """A difference in the report's words."""
    bare = name.removeprefix("diffusion - twin ")
    return " less ".join(_WHO.get(part, part) for part in bare.split(" - "))


def _cloze(one: Result) -> str:
    found = one.cloze
    if not found:
        return ""
    whos = [who for who in ("core", "before", "after", "ensemble") if f"both {who}" in found]
    names = {"core": "core", "before": "base", "after": "expert", "ensemble": "expert + core"}
    rows = [
        [f"{names[who]}, {_FORMS[form]}", found[f"{form} {who}"], found[f"{form} {who} filled"]]
        for who in whos
        for form in FORMS
    ]
    gaps = [
        [_cloze_said(name, names), found[name], found[f"{name} filled"], f"{one.p_values[f'cloze {name}']:.3g}"]
        for name in found
        if " - " in name and not name.endswith(" filled")
    ]
    kinds = [[kind, *values] for kind, values in one.kinds.items()]
    return "\n\n".join([
        "### Hidden facts",
        f"{found['both after filled'].n} facts of the documents that were learned from, hidden, the model reading what "
        "stands around them and no passages. Nats a token of the true fact, and the share that greedy writing fills "
        "exactly.",
        table(["", "nats a token", "filled"], rows),
        table(["difference", "nats a token", "filled", "McNemar's p"], gaps),
        table(["kind", "facts", "filled by the base", "filled by the expert"], kinds),
    ])  # fmt: skip


def _cloze_said(name: str, names: dict[str, str]) -> str:
    sides = [part.split() for part in name.split(" - ")]
    return " less ".join(f"{names[who]}, {_FORMS[form]}" for form, who in sides)


def _answers(one: Result) -> str:
    if not one.answers:
        return ""
    rows = []
    for name in answers.SYSTEMS:
        ahead = one.answers.get(f"ahead of {name}")
        p = one.p_values.get(f"answers {name}")
        rows.append([name, one.answers[name], "" if ahead is None else ahead, "" if p is None else f"{p:.3g}"])
    shown = (answers.ENSEMBLE, answers.CORE, answers.EXPERT, answers.SENTENCE)
    examples = [[one["question"], one["reference"], *(one[name][:120] for name in shown)] for one in one.examples]
    return "\n\n".join([
        "### Answers",
        f"{one.answers[answers.ENSEMBLE].n} questions, greedy answers; right when an accepted answer stands in it as "
        "whole words. How far expert + core is ahead of each other system, in shares. `in the passages shown`: how "
        "often an accepted answer stands in the passages that the readers are shown.",
        table(["", "right", "expert + core ahead by", "McNemar's p"], rows),
        table(["question", "reference", *shown], examples),
    ])  # fmt: skip


def result_rows(results: Sequence[Result], ratios: Sequence[tuple[str, str, Interval]]) -> list[Row]:
    """Ratios for the file of results: nats of one over nats of the other on the same kept documents.

    Args:
        results: their names alone decide the order.
        ratios: (set, "A / B", ratio).
    """
    order = {one.name: number for number, one in enumerate(results)}
    return [
        Row(
            suite=SUITE, name=f"S1 of kept documents, {name}: {what}", ratio=ratio.value, target=1.0, low=ratio.low,
            high=ratio.high, n=ratio.n, note="nats over nats; above 1 the second is better; 95% bootstrap interval",
        )
        for name, what, ratio in sorted(ratios, key=lambda one: order[one[0]])
    ]  # fmt: skip


def to_json(report: Report, *, seed: int) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        "suite": SUITE, "command": machine.command(), "machine": machine.describe(),
        "seconds": round(report.seconds, 1), "seed": seed, "about": report.about,
        "conclusions": sentences(report.results, report.pooled),
        "pooled": None if report.pooled is None else asdict(report.pooled),
        "sets": {one.name: _json_of(one) for one in report.results},
    }  # fmt: skip


def _json_of(one: Result) -> dict[str, Any]:
    def plain(found: Figures) -> dict[str, Any]:
        return {name: asdict(value) for name, value in found.items()}

    return {
        "documents": dict(one.documents), "train_minutes": one.minutes, "card": list(one.card),
        "choice": {measure: list(pair) for measure, pair in one.choice.pairs.items()},
        "better_member": one.choice.better, "measured_choice": one.choice.measured, "sweep": dict(one.choice.table),
        "counts": {part: list(pair) for part, pair in one.counts.items()},
        "heldout": plain(one.heldout), "heldout_bytes": plain(one.heldout_bytes), "cloze": plain(one.cloze),
        "answers": plain(one.answers), "p_values": dict(one.p_values),
        "curve": {f"{minutes:g}": plain(point) for minutes, point in one.curve.items()},
        "kinds": {kind: list(values) for kind, values in one.kinds.items()},
        "examples": [dict(example) for example in one.examples],
    }  # fmt: skip
