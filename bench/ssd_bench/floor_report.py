"""From the floor suite's scores to a table and rows of results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssd_bench import machine, stats
from ssd_bench.corpora import TRAINING_TOKENS
from ssd_bench.floor import ADAPTED, BASE, CONTEXT, MODELS, NGRAM, SPAN, SpanScore, per_byte
from ssd_bench.report import origin, table
from ssd_bench.results import Row
from ssd_bench.stats import Interval, bootstrap, paired_bootstrap

SUITE = "floor"
ALL = "all"
BASE_SHARE = 1.1


def values(scores: Sequence[SpanScore], *, resamples: int = stats.RESAMPLES) -> dict[str, dict[str, Interval]]:
    """Nats a byte by corpus and model."""
    out = {}
    for source in [*dict.fromkeys(s.source for s in scores), ALL]:
        rows = [s for s in scores if source in (ALL, s.source)]
        out[source] = {model: bootstrap(*per_byte(rows, model), resamples=resamples) for model in MODELS}
    return out


def markdown(scores: Sequence[SpanScore], *, about: str, seconds: float, train_tokens: int) -> str:
    """The report."""
    found = values(scores)
    head = "# Held-out cross-entropy per byte\n\n" + origin(
        machine.command(), machine.describe(), seconds=seconds, note=about
    )
    intro = (
        f"Nats a byte on held-out documents: spans of {SPAN} tokens after up to {CONTEXT} tokens of context. The "
        f"5-gram (modified Kneser-Ney, same tokenizer) is counted on {train_tokens:,} tokens of the training text, as "
        f"many of each source up to {TRAINING_TOKENS:,}; the base is the packaged decoder without the adapter. S1 "
        "reads the adapted model at the first open position with everything after it pure noise. Lower is better; 95% "
        "bootstrap over documents. `ssd-cloud data build data` makes the texts from public packages."
    )
    rows = [[source, *(str(found[source][m]) for m in MODELS), found[source][ADAPTED].n] for source in found]
    gaps = []
    for other in (NGRAM, BASE):
        ours, size = per_byte(scores, ADAPTED)
        gap = paired_bootstrap(ours, per_byte(scores, other)[0], size)
        gaps.append([f"S1 less {other}", str(gap), f"{found[ALL][ADAPTED].value / found[ALL][other].value:.3f}"])
    return "\n\n".join([
        head, intro, table(["source", *MODELS, "documents"], rows), table(["paired", "nats a byte", "ratio"], gaps),
    ]) + "\n"  # fmt: skip


def result_rows(scores: Sequence[SpanScore]) -> list[Row]:
    """Ratios for the file of results; above their target is good."""
    ours = per_byte(scores, ADAPTED)[0]
    rows = []
    for other, target in ((NGRAM, 1.0), (BASE, 1 / BASE_SHARE)):
        ratio = bootstrap(per_byte(scores, other)[0], ours)
        rows.append(Row(
            suite=SUITE, name=f"nats a byte, {other} / {ADAPTED}", ratio=ratio.value, target=round(target, 4),
            low=ratio.low, high=ratio.high, n=ratio.n, note="held-out documents; 95% bootstrap interval",
        ))  # fmt: skip
    return rows


def to_json(scores: Sequence[SpanScore], *, about: str, seconds: float, seed: int, train_tokens: int) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        "suite": SUITE, "command": machine.command(), "machine": machine.describe(), "seconds": round(seconds, 1),
        "seed": seed, "about": about, "train_tokens": train_tokens,
        "nats_a_byte": {
            source: {m: {"value": x.value, "low": x.low, "high": x.high, "n": x.n} for m, x in by.items()}
            for source, by in values(scores).items()
        },
        "spans": [{"source": s.source, "bytes": s.size_bytes, "nats": s.nats} for s in scores],
    }  # fmt: skip
