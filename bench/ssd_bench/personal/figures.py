"""From records to numbers with intervals: members and ensemble on kept documents, hidden facts, answers, the curve.

What is drawn anew in a bootstrap is a document, since stretches of one document resemble one another. Lambda and alpha
are those that are best on the validation part, for each decoder its own; the test part chooses nothing. Knows records
by their fields; nothing about models, files or words of a report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from ssd_kernels.types import F64

from ssd_bench import stats
from ssd_bench.lines import JsonRecord
from ssd_bench.personal import answers
from ssd_bench.personal.heldout import CORE, EXPERT, GRID, name_of
from ssd_bench.personal.reading import MEASURES, Measure
from ssd_bench.personal.recall import FORMS
from ssd_bench.stats import Interval, bootstrap, mcnemar, paired_bootstrap, wilson

Figures: TypeAlias = dict[str, Interval]
Value: TypeAlias = Callable[[JsonRecord], float]
Pair: TypeAlias = tuple[float, float]
TOKEN, BYTE = "tokens", "bytes"
DECODER_OF: dict[Measure, Measure] = {"s1": "s1", "next": "next", "s2": "s1"}
"""By whose choice of weights a measure is told: the product chooses by S1, its twin by the twin's own likelihood."""
MEMBERS = {
    "core": name_of(CORE), "before": "before", "before, no passages": "before, no passages",
    "after": name_of(EXPERT), "after, no passages": "after, no passages",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """Lambda and alpha, by measure, and where they come from.

    Attributes:
        pairs: of S1 and of the twin.
        better: the member that costs less than the other on the same part, by S1: core or after.
        measured: whether a validation part was measured; otherwise the pairs are the expert's own card's.
        table: mean nats a token of the validation part by S1, by (lambda, alpha) as records name it.
    """

    pairs: Mapping[Measure, Pair]
    better: str
    measured: bool
    table: Mapping[str, float]


def choose(validation: Sequence[JsonRecord], card: Pair) -> Choice:
    """The best weights on the validation part, ties to the smaller; the card's where nothing was measured."""
    if not validation:
        return Choice(dict.fromkeys(("s1", "next"), card), "after", measured=False, table={})

    def mean(measure: str, name: str) -> float:
        total = sum(row["nats"][measure][name] for row in validation)
        return float(total / sum(row["tokens"] for row in validation))

    pairs: dict[Measure, Pair] = {
        measure: min(GRID, key=lambda pair: (mean(measure, name_of(pair)), pair)) for measure in ("s1", "next")
    }
    better = "core" if mean("s1", name_of(CORE)) < mean("s1", name_of(EXPERT)) else "after"
    return Choice(pairs, better, True, {name_of(p): mean("s1", name_of(p)) for p in (CORE, EXPERT, *GRID)})


def heldout(rows: Sequence[JsonRecord], choice: Choice, card: Pair, unit: str, *, resamples: int) -> Figures:
    """Of the test part, by "MEASURE WHO": what the members cost, what both cost together, and the differences.

    Args:
        rows: records of the test part; not empty.
        choice: of the validation part.
        card: lambda and alpha that the device itself chose.
        unit: TOKEN or BYTE.
        resamples: of the bootstrap.
    """
    found: Figures = {}
    for measure in MEASURES:
        own = {**MEMBERS, "ensemble": name_of(choice.pairs[DECODER_OF[measure]]), "ensemble, card": name_of(card)}
        for who, name in own.items():
            found[f"{measure} {who}"] = _mean(rows, _nats(measure, name), unit, resamples)
        for a, b in (
            ("after", "before"), ("after, no passages", "before, no passages"), ("ensemble", "core"),
            ("ensemble", "after"), ("ensemble", "before"),
        ):  # fmt: skip
            found[f"{measure} {a} - {b}"] = _gap(rows, _nats(measure, own[a]), _nats(measure, own[b]), unit, resamples)
    return found | _beyond(rows, choice, unit, resamples)


def _beyond(rows: Sequence[JsonRecord], choice: Choice, unit: str, resamples: int) -> Figures:
    """What diffusion gains beyond its twin: of each member, of the ensemble, and of what the ensemble adds to each."""
    ours, theirs = (name_of(choice.pairs[measure]) for measure in ("s1", "next"))
    found: Figures = {}
    for who, (a, b) in {"ensemble": (ours, theirs), **{k: (v, v) for k, v in MEMBERS.items()}}.items():
        found[f"diffusion - twin {who}"] = _gap(rows, _nats("s1", a), _nats("next", b), unit, resamples)
    for who in ("core", "after"):

        def added(row: JsonRecord, measure: str, name: str, who: str = who) -> float:
            return float(row["nats"][measure][name] - row["nats"][measure][MEMBERS[who]])

        found[f"diffusion - twin ensemble - {who}"] = _gap(
            rows, lambda row: added(row, "s1", ours), lambda row: added(row, "next", theirs), unit, resamples
        )
    return found


def pooled(sets: Sequence[tuple[Sequence[JsonRecord], Choice]], *, resamples: int) -> Interval | None:
    """Over the documents of all sets: what the ensemble adds to its better member by diffusion, less by the twin."""
    totals: list[float] = []
    weights: list[float] = []
    for rows, choice in sets:
        ours, theirs = (name_of(choice.pairs[measure]) for measure in ("s1", "next"))
        member = MEMBERS[choice.better]

        def beyond(row: JsonRecord, ours: str = ours, theirs: str = theirs, member: str = member) -> float:
            nats = row["nats"]
            return float(nats["s1"][ours] - nats["s1"][member] - nats["next"][theirs] + nats["next"][member])

        totals += _sums(rows, beyond).tolist()
        weights += _sums(rows, lambda row: float(row["tokens"])).tolist()
    return bootstrap(totals, weights, resamples=resamples) if totals else None


def ratios(rows: Sequence[JsonRecord], choice: Choice, *, resamples: int = stats.RESAMPLES) -> dict[str, Interval]:
    """S1 of one over S1 of another on the test part: "A / B", above 1 where B is better."""
    own = {**MEMBERS, "ensemble": name_of(choice.pairs["s1"])}
    pairs = (("before", "after"), ("core", "ensemble"), ("after", "ensemble"))
    sums = {who: np.maximum(_sums(rows, _nats("s1", own[who])), 1e-9) for pair in pairs for who in pair}
    return {f"{a} / {b}": bootstrap(sums[a], sums[b], resamples=resamples) for a, b in pairs}


def _nats(measure: str, name: str) -> Value:
    return lambda row: float(row["nats"][measure][name])


def _by_document(rows: Sequence[JsonRecord]) -> list[list[JsonRecord]]:
    found: dict[str, list[JsonRecord]] = {}
    for row in rows:
        found.setdefault(row["document"], []).append(row)
    return list(found.values())


def _sums(rows: Sequence[JsonRecord], value: Value) -> F64:
    return np.array([sum(value(row) for row in found) for found in _by_document(rows)])


def _mean(rows: Sequence[JsonRecord], value: Value, unit: str, resamples: int) -> Interval:
    return bootstrap(_sums(rows, value), _sums(rows, lambda row: float(row[unit])), resamples=resamples)


def _gap(rows: Sequence[JsonRecord], a: Value, b: Value, unit: str, resamples: int) -> Interval:
    weights = _sums(rows, lambda row: float(row[unit]))
    return paired_bootstrap(_sums(rows, a), _sums(rows, b), weights, resamples=resamples)


def cloze(rows: Sequence[JsonRecord], choice: Choice, *, resamples: int) -> tuple[Figures, dict[str, float]]:
    """Hidden facts: nats a token and shares filled by "FORM WHO", differences, and McNemar's p of those.

    The ensemble is told at the lambda of S1; there are no passages here, so alpha has nothing to act on.
    """
    found: Figures = {}
    p_values: dict[str, float] = {}
    lam = f"{choice.pairs['s1'][0]:g}"
    whos = {"core": "core", "before": "before", "after": "after"}
    whos |= {"ensemble": lam} if lam in rows[0]["nats"]["both"] else {}
    for form in FORMS:
        for who, name in whos.items():
            found[f"{form} {who}"] = _mean(rows, _of(form, name), TOKEN, resamples)
            found[f"{form} {who} filled"] = wilson(sum(row["filled"][form][name] for row in rows), len(rows))
    sides = [("both after", "both before"), ("both after", "next after"), ("both after", "left after")]
    sides += [("both ensemble", "both core"), ("both ensemble", "both after"), ("both ensemble", "next ensemble")]
    for a, b in sides:
        if a.split()[1] in whos:
            (fa, wa), (fb, wb) = a.split(), b.split()
            name = f"{a} - {b}"
            found[name] = _gap(rows, _of(fa, whos[wa]), _of(fb, whos[wb]), TOKEN, resamples)
            yes = [[bool(row["filled"][f][whos[w]]) for row in rows] for f, w in ((fa, wa), (fb, wb))]
            found[f"{name} filled"] = paired_bootstrap(yes[0], yes[1], resamples=resamples)
            p_values[name] = mcnemar(yes[0], yes[1])
    return found, p_values


def _of(form: str, name: str) -> Value:
    return lambda row: float(row["nats"][form][name])


def answered(rows: Sequence[Mapping[str, JsonRecord]], *, resamples: int) -> tuple[Figures, dict[str, float]]:
    """Shares of right answers by system, what expert + core is ahead of each other system, and McNemar's p of that."""
    right = {name: [bool(row[name]["right"]) for row in rows] for name in answers.SYSTEMS}
    found: Figures = {name: wilson(sum(yes), len(yes)) for name, yes in right.items()}
    p_values: dict[str, float] = {}
    ours = right[answers.ENSEMBLE]
    for name, yes in right.items():
        if name != answers.ENSEMBLE:
            found[f"ahead of {name}"] = paired_bootstrap(ours, yes, resamples=resamples)
            p_values[name] = mcnemar(ours, yes)
    return found, p_values


def curve(rows: Sequence[JsonRecord], *, resamples: int = stats.RESAMPLES) -> dict[float, Figures]:
    """By minute: S1 of kept documents, nats of hidden facts and the share that is filled.

    Only points at which every item was measured: others would compare different texts.
    """
    found: dict[float, Figures] = {}
    whole = len({(row["kind"], row["item"]) for row in rows})
    for minutes in sorted({row["minutes"] for row in rows}):
        here = [row for row in rows if row["minutes"] == minutes]
        if len(here) < whole:
            continue
        kept, facts = ([row for row in here if row["kind"] == kind] for kind in ("heldout", "cloze"))
        point: Figures = {}
        if kept:
            point["heldout"] = _mean(kept, lambda row: float(row["nats"]), TOKEN, resamples)
        if facts:
            point["cloze"] = _mean(facts, lambda row: float(row["nats"]), TOKEN, resamples)
            point["filled"] = wilson(sum(bool(row["filled"]) for row in facts), len(facts))
        found[minutes] = point
    return found
