"""A run of the ablation suite: trains every variant from the same decoder on the same text, measures, reports.

Each variant is a record, so a run that was stopped goes on with the next one. Knows files and the order of things; the
changes are `variants`, the measures `measure`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ssd_cloud.adapt import base_folder, open_base
from ssd_cloud.training_text import Texts, read_sources
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training import data, loop, lora
from ssd_diffusion.training.data import Batch

from ssd_bench import machine
from ssd_bench.ablation import measure
from ssd_bench.ablation.variants import BLOCK, LENGTH, USUAL, VARIANTS, Variant, batches
from ssd_bench.console import console, progress
from ssd_bench.lines import LineFile, digest
from ssd_bench.report import origin, table
from ssd_bench.results import Row
from ssd_bench.runs import Outcome, deadline, publish
from ssd_bench.stats import Interval, bootstrap, paired_bootstrap

SUITE = "ablation"
TITLE = "# What each part of the training is worth"
_HIGHER = ("tokens a pass", "right side")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the report goes.

    Attributes:
        data: folder with train/text and heldout/text, see `ssd-cloud data build`.
        home: folder of models, for the packaged base.
        base: decoder that every variant starts from, without an adapter.
        batches: of the usual variant; the others get as many as cost the same.
        limit: held-out rows.
        names: variants; all when empty. The usual one is always among them.
        seed: of order, noise and starts.
        max_minutes: begin no further variant after so many.
        records: folder of single measurements.
        out: folder for the report.
        results: file of all suites' ratios.
    """

    data: Path
    home: Path
    base: str
    batches: int
    limit: int
    names: Sequence[str]
    seed: int
    max_minutes: float | None
    records: Path | None
    out: Path
    results: Path


def run(options: Options) -> Outcome:
    """Train and measure, and write ablation.md and .json.

    Raises:
        ValueError: no such variant, or a folder that holds no such text.
        InvalidModel: the base cannot be read.
        TrainingError: too little text, or a loss that is not finite.
    """
    started = time.monotonic()
    wanted = _chosen(options.names)
    source = base_folder(options.base, options.home, options.records or options.home / "ablation")
    tokenizer = Tokenizer.load(source)
    train, held = (_texts(options.data / part / "text", tokenizer) for part in ("train", "heldout"))
    rows = _held_rows(held, tokenizer, options)
    settings = {
        "base": source.name, "batches": options.batches, "seed": options.seed,
        "train": digest([sum(map(len, texts.documents)) for texts in train]),
        "heldout": digest([row.tokens.tolist() for row in rows]),
    }  # fmt: skip
    records = LineFile(options.records or options.home / "bench" / SUITE, "variants", settings, ("how",))
    end = deadline(started, options.max_minutes)
    with progress(SUITE, len(wanted)) as advance:
        for variant in wanted:
            if records.get(repr(variant)) is None and time.monotonic() < end:
                console.print(f"{variant.name}: {batches(variant, options.batches)} batches")
                found = _trained(variant, source, train, rows, tokenizer, options)
                records.add([{"how": repr(variant), "name": variant.name, **found}])
            advance()
    done = {v.name: r for v in wanted if (r := records.get(repr(v))) is not None}
    return _publish(done, options, time.monotonic() - started)


def _chosen(names: Sequence[str]) -> list[Variant]:
    known = {variant.name: variant for variant in VARIANTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"there is no variant {unknown[0]!r}; the variants are: {'; '.join(known)}")
    return [variant for name, variant in known.items() if not names or name in (USUAL, *names)]


def _texts(folder: Path, tokenizer: Tokenizer) -> list[Texts]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not there; make it with: ssd-cloud data build")
    return read_sources([folder], tokenizer)


def _held_rows(held: Sequence[Texts], tokenizer: Tokenizer, options: Options) -> list[Batch]:
    """Rows of held-out text, one source after the other. Each with blocks from its start to its end."""
    eos = tokenizer.eos_ids[0] if tokenizer.eos_ids else 0
    streams = [data.pack(texts.documents, eos) for texts in held]
    long = [stream for stream in streams if len(stream) >= LENGTH]
    if not long:
        raise ValueError(f"the held-out text has no {LENGTH} tokens in one file; build the data with more sources")
    rows = []
    for number in range(options.limit):
        stream = long[number % len(long)]
        packed = data.PackedRows(stream, length=LENGTH, block=BLOCK, rows=1, seed=options.seed)
        rows.append(packed.batch(number // len(long)))
    return rows


def _trained(
    variant: Variant, source: Path, train: Sequence[Texts], rows: Sequence[Batch], tokenizer: Tokenizer,
    options: Options,
) -> dict[str, Any]:  # fmt: skip
    """Train one variant and measure it."""
    torch.manual_seed(options.seed)
    model = open_base(source)
    if variant.transition:
        model.add_transition()
    lora.attach(model, lora.LoraOptions(rank=variant.rank, alpha=2 * variant.rank), seed=options.seed)
    eos = tokenizer.eos_ids[0] if tokenizer.eos_ids else 0
    steps = batches(variant, options.batches)
    trained = loop.train(
        model,
        _mixed(train, variant, eos, options.seed),
        loop.TrainOptions(
            steps=steps, learning_rate=6e-4, warmup_steps=max(1, steps // 10), objective=variant.objective,
            seed=options.seed,
        ),
    )  # fmt: skip
    measured = [measured_row(model, row, variant, number) for number, row in enumerate(rows)]
    return {"batches": steps, "targets": trained.targets, "seconds": round(trained.elapsed_s, 1), "rows": measured}


def measured_row(model: Ssd2Model, row: Batch, variant: Variant, number: int) -> dict[str, float]:
    """All measures of one row; the noise is the same for every variant."""
    return measure.of_row(model, row, shift=variant.objective.shift, seed=number)


def _mixed(train: Sequence[Texts], variant: Variant, eos: int, seed: int) -> data.Rows:
    """Files by the square root of their size, as the core is trained."""
    sources: list[tuple[float, data.Rows]] = []
    for number, texts in enumerate(train):
        stream = data.pack(texts.documents, eos)
        if len(stream) > 2 * BLOCK:
            packed = data.PackedRows(
                stream, length=LENGTH, block=BLOCK, rows=1, seed=seed + 1000 * number, offsets=variant.offsets
            )
            sources.append((math.sqrt(len(stream)), packed))
    return data.MixedRows(sources, seed)


def _publish(done: Mapping[str, Mapping[str, Any]], options: Options, seconds: float) -> Outcome:
    if USUAL not in done:
        raise ValueError("there was no time for the usual variant; give --max-minutes more")
    table_of = {name: _against(record["rows"], done[USUAL]["rows"]) for name, record in done.items()}
    note = (
        f"Every variant starts from the decoder without an adapter and sees rows of {LENGTH} tokens, B {BLOCK}, in the "
        f"same order, until as many positions have passed through the network as in {options.batches} batches of the "
        f"usual one; one run each, so the intervals (95%, paired bootstrap over {options.limit} held-out rows) hold "
        "no difference between runs. This is the beginning of training: what pays late does not show."
    )
    head = f"{TITLE}\n\n{origin(machine.command(), machine.describe(), seconds=seconds)}\n\n{note}\n"
    content = {
        "suite": SUITE, "command": machine.command(), "machine": machine.describe(),
        "variants": {name: _as_json(done[name], row) for name, row in table_of.items()},
    }  # fmt: skip
    text = f"{head}\n{_table(done, table_of)}\n\n{_words()}\n\n{_summary(table_of)}\n"
    rows = [_row(name, found["drafts"]) for name, found in table_of.items() if name != USUAL]
    return publish(
        Outcome(content, text), options.out / "ablation.md", rows=rows, results=options.results, with_json=True
    )


def _against(rows: Sequence[Mapping[str, float]], usual: Sequence[Mapping[str, float]]) -> dict[str, Interval]:
    """A variant's difference from the usual one by measure; the usual one's own values where they are the same."""
    if rows is usual:
        return {name: bootstrap(measure.rows_of(rows, name)) for name in measure.MEASURES}
    return {
        name: paired_bootstrap(measure.rows_of(rows, name), measure.rows_of(usual, name)) for name in measure.MEASURES
    }


def _table(done: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Interval]]) -> str:
    lines = [
        [name, done[name]["batches"], f"{done[name]['targets']:,}", *(_cell(row[m], m, name) for m in measure.MEASURES)]
        for name, row in found.items()
    ]
    return table(["", "batches", "targets", *measure.MEASURES.values()], lines)


def _cell(interval: Interval, name: str, variant: str) -> str:
    if variant == USUAL:
        return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"
    shown = f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"**{shown}**" if interval.clear_of_zero and _is_better(interval, name) else shown


def _words() -> str:
    return (
        "The first line is the usual variant's own values; the others are differences from it, bold where one is "
        "better and its interval clear of zero. Losses are better when lower, tokens a pass and the right side's gain "
        f"when higher. Tokens a pass are expected ones of a chain of {BLOCK - 1} drafts, one guess a position, with "
        "true text before each, for texts of people, whose next word is harder to foresee than a model's own."
    )


def _summary(found: Mapping[str, Mapping[str, Interval]]) -> str:
    """A line for every variant: on which measures it is shown to be better, on which worse."""
    lines = []
    for name, row in found.items():
        if name == USUAL:
            continue
        sides: dict[bool, list[str]] = {True: [], False: []}
        for measured, interval in row.items():
            if interval.clear_of_zero:
                sides[_is_better(interval, measured)].append(measured)
        better, worse = (", ".join(sides[side]) or "nothing" for side in (True, False))
        lines.append([name, better, worse])
    return f"Clear of zero:\n\n{table(['', 'better in', 'worse in'], lines)}"


def _is_better(interval: Interval, measured: str) -> bool:
    return (interval.value > 0) == (measured in _HIGHER)


def _as_json(record: Mapping[str, Any], found: Mapping[str, Interval]) -> dict[str, Any]:
    kept = {name: record[name] for name in ("batches", "targets", "seconds")}
    return kept | {name: [i.value, i.low, i.high] for name, i in found.items()}


def _row(name: str, difference: Interval) -> Row:
    return Row(
        suite=SUITE, name=f"{name}: loss of drafts over that as trained", ratio=float(np.exp(difference.value)),
        low=float(np.exp(difference.low)), high=float(np.exp(difference.high)), n=difference.n,
        note="ratio of perplexities at equal compute; above 1 the change is worse",
    )  # fmt: skip
