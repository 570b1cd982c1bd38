"""From the ensemble suite's records to numbers, a table, a plot and rows of results."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssd_bench import machine, stats
from ssd_bench.pair import DECODERS, SYSTEMS, DecoderKind, System
from ssd_bench.records import Answer, ItemKind, Record
from ssd_bench.report import origin, table
from ssd_bench.results import Row
from ssd_bench.stats import Interval, bootstrap, paired_bootstrap
from ssd_bench.text import contains, exact_match, token_f1

SUITE = "ensemble"
_NAMES = {"core": "core alone", "expert": "expert alone", "ensemble": "ensemble"}
_DECODER_NAMES = {"diffusion": "diffusion", "ar": "autoregressive twin"}

Score = Callable[[Record, System], float]


def _answer_score(judge: Callable[[str, tuple[str, ...]], float]) -> Score:
    return lambda record, system: float(judge(record.answers[system].text, record.accepted))


ANSWER_SCORES: dict[str, Score] = {
    "exact match": _answer_score(exact_match),
    "reference in the answer": _answer_score(contains),
    "token F1": _answer_score(token_f1),
}


@dataclass(frozen=True, slots=True)
class Line:
    """One measured quantity: which metric, under which decoder, of which system or difference."""

    metric: str
    decoder: str
    what: str
    interval: Interval


@dataclass(frozen=True, slots=True)
class Summary:
    """All numbers of a run."""

    lines: tuple[Line, ...]

    def get(self, metric: str, decoder: str, what: str) -> Interval | None:
        """One of them, or None."""
        for line in self.lines:
            if (line.metric, line.decoder, line.what) == (metric, decoder, what):
                return line.interval
        return None


def summarise(records: Sequence[Record], *, resamples: int = stats.RESAMPLES) -> Summary:
    """Values of each system and paired differences (ensemble less core, ensemble less expert), and between decoders."""
    lines: list[Line] = []
    for metric, kind, score, weighted in _metrics():
        for decoder in DECODERS:
            rows = [r for r in records if r.kind == kind and r.decoder == decoder]
            if rows:
                lines += _compare(metric, decoder, rows, score, weighted, resamples)
        lines += _between_decoders(metric, records, kind, score, weighted, resamples)
    return Summary(tuple(lines))


def _metrics() -> list[tuple[str, ItemKind, Score, bool]]:
    """(name, items, score, whether it is a total over tokens)."""

    def nats(record: Record, system: System) -> float:
        return record.nats[system]

    found: list[tuple[str, ItemKind, Score, bool]] = [
        ("S1 of reference answers, nats a token", "question", nats, True),
        ("S1 of held-out documents, nats a token", "document", nats, True),
    ]
    return [*found, *((name, "question", score, False) for name, score in ANSWER_SCORES.items())]


def _compare(
    metric: str, decoder: str, rows: Sequence[Record], score: Score, weighted: bool, resamples: int
) -> list[Line]:
    weights = [r.tokens for r in rows] if weighted else None
    values = {system: np.array([score(r, system) for r in rows]) for system in SYSTEMS}
    lines = [Line(metric, decoder, s, bootstrap(values[s], weights, resamples=resamples)) for s in SYSTEMS]
    for other in SYSTEMS[:2]:
        gap = paired_bootstrap(values["ensemble"], values[other], weights, resamples=resamples)
        lines.append(Line(metric, decoder, f"ensemble - {other}", gap))
    return lines


def _between_decoders(
    metric: str, records: Sequence[Record], kind: ItemKind, score: Score, weighted: bool, resamples: int
) -> list[Line]:
    """What the ensemble gains over the core by diffusion, less what it gains by the autoregressive twin."""
    by = {d: {r.item: r for r in records if r.kind == kind and r.decoder == d} for d in DECODERS}
    items = [i for i in by["diffusion"] if i in by["ar"]]
    if not items:
        return []
    weights = [by["diffusion"][i].tokens for i in items] if weighted else None

    def gains(decoder: DecoderKind, other: System) -> list[float]:
        return [score(by[decoder][i], "ensemble") - score(by[decoder][i], other) for i in items]

    return [
        Line(
            metric, "diffusion - autoregressive", f"ensemble - {other}",
            paired_bootstrap(gains("diffusion", other), gains("ar", other), weights, resamples=resamples),
        )
        for other in SYSTEMS[:2]
    ]  # fmt: skip


def result_rows(records: Sequence[Record], *, resamples: int = stats.RESAMPLES) -> list[Row]:
    """Ratios for the file of results: nats of a member over nats of the ensemble on the same references."""
    rows = []
    for kind, what in (("question", "reference answers"), ("document", "held-out documents")):
        for decoder in DECODERS:
            chosen = [r for r in records if r.kind == kind and r.decoder == decoder]
            for other in SYSTEMS[:2]:
                if chosen:
                    ours = [max(r.nats["ensemble"], 1e-9) for r in chosen]
                    ratio = bootstrap([r.nats[other] for r in chosen], ours, resamples=resamples)
                    rows.append(Row(
                        suite=SUITE, name=f"S1 of {what}, {_DECODER_NAMES[decoder]}: {_NAMES[other]} / ensemble",
                        ratio=ratio.value, target=1.0, low=ratio.low, high=ratio.high, n=ratio.n,
                        note="nats over nats; above 1 the ensemble is better; 95% bootstrap interval",
                    ))  # fmt: skip
    return rows


def markdown(summary: Summary, records: Sequence[Record], *, about: str, seconds: float, plot: str) -> str:
    """The report."""
    head = "# Does the ensemble help?\n\n" + origin(machine.command(), machine.describe(), seconds=seconds, note=about)
    counts = {kind: len({r.item for r in records if r.kind == kind}) for kind in ("question", "document")}
    intro = (
        f"{counts['question']} questions about the sample folder and {counts['document']} stretches of held-out "
        "documents. Lower is better for S1, higher for the others. Intervals are 95%, paired bootstrap over items, "
        "10,000 resamples, fixed seeds. Answers are greedy. The expert alone has its private context, the core never "
        "has; the ensemble is both."
    )
    parts = [head, intro, f"![Values and intervals]({plot})"]
    for metric in dict.fromkeys(line.metric for line in summary.lines):
        parts.append(f"## {metric}\n\n{_metric_table(summary, metric)}")
    parts.append("## Speed of the greedy answers\n\n" + _speed(records))
    examples = _examples(records)
    if examples:
        parts.append("## Some answers\n\n" + examples)
    return "\n\n".join(parts) + "\n"


def _metric_table(summary: Summary, metric: str) -> str:
    columns = [*SYSTEMS, "ensemble - core", "ensemble - expert"]
    rows = []
    for decoder in (*DECODERS, "diffusion - autoregressive"):
        cells = [summary.get(metric, decoder, what) for what in columns]
        if any(cell is not None for cell in cells):
            name = _DECODER_NAMES.get(decoder, "what diffusion gains beyond the twin")
            rows.append([name, *("" if cell is None else str(cell) for cell in cells)])
    n = next(line.interval.n for line in summary.lines if line.metric == metric)
    return table([f"n = {n}", *(_NAMES.get(c, c) for c in columns)], rows)


def _speed(records: Sequence[Record]) -> str:
    rows = []
    for decoder in DECODERS:
        for system in SYSTEMS:
            found: list[Answer] = [r.answers[system] for r in records if r.decoder == decoder and system in r.answers]
            if found:
                tokens, passes = sum(a.tokens for a in found), sum(a.passes for a in found)
                seconds = sum(a.seconds for a in found)
                rows.append([
                    f"{_NAMES[system]}, {_DECODER_NAMES[decoder]}", f"{tokens / passes:.2f}", f"{tokens / seconds:.1f}",
                ])  # fmt: skip
    return table(["", "tokens a pass", "tokens a second"], rows)


def _examples(records: Sequence[Record], count: int = 6) -> str:
    rows = []
    chosen = [r for r in records if r.kind == "question" and r.decoder == "diffusion"]
    for record in chosen[:: max(1, len(chosen) // count)][:count]:
        rows.append([record.item, record.accepted[0], *(record.answers[s].text[:120] for s in SYSTEMS)])
    return table(["question", "reference", *(_NAMES[s] for s in SYSTEMS)], rows) if rows else ""


def to_json(summary: Summary, records: Sequence[Record], *, about: str, seconds: float, seed: int) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        "suite": SUITE, "command": machine.command(), "machine": machine.describe(), "seconds": round(seconds, 1),
        "seed": seed, "about": about,
        "counts": {kind: len({r.item for r in records if r.kind == kind}) for kind in ("question", "document")},
        "lines": [asdict(line) for line in summary.lines],
        "records": [json.loads(json.dumps(asdict(r))) for r in records],
    }  # fmt: skip


def plot(summary: Summary, path: Path) -> None:
    """Bars with intervals: one panel a metric that is not zero for all, systems side by side, one colour a decoder."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = list(dict.fromkeys(line.metric for line in summary.lines))
    telling = [m for m in metrics if any(x.value for d in DECODERS for s in SYSTEMS if (x := summary.get(m, d, s)))]
    metrics = telling or metrics
    figure, axes = pyplot.subplots(1, len(metrics), figsize=(3.6 * len(metrics), 3.8), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for shift, decoder in enumerate(DECODERS):
            found = [(i, summary.get(metric, decoder, s)) for i, s in enumerate(SYSTEMS)]
            known = [(i, x) for i, x in found if x is not None]
            at = [i + 0.38 * shift - 0.19 for i, _ in known]
            values = [x.value for _, x in known]
            ends = [[x.value - x.low for _, x in known], [x.high - x.value for _, x in known]]
            axis.bar(at, values, 0.36, yerr=np.maximum(ends, 0), capsize=3, label=_DECODER_NAMES[decoder])
        axis.set_xticks(range(len(SYSTEMS)), [_NAMES[s].replace(" ", "\n") for s in SYSTEMS])
        axis.set_title(metric, fontsize=9, wrap=True)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
