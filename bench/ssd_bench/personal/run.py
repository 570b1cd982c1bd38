"""A run of the personal suite: set by set an expert is made and measured, then report, plots and results are written.

Knows files and the order of things; what is measured of a set is `one_set`. Everything measured is a record, so the
same command goes on where a run was stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from ssd_client.store import Store
from ssd_cloud.models import resolve

from ssd_bench.console import console
from ssd_bench.personal import experts, figures, one_set, plots, report, sets
from ssd_bench.personal.experts import Training, Trio
from ssd_bench.personal.one_set import PARTS, Found, Plan
from ssd_bench.personal.report import Report
from ssd_bench.personal.sets import Source, Split
from ssd_bench.runs import Outcome, deadline, publish
from ssd_bench.stats import RESAMPLES


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the reports go.

    Attributes:
        sets: NAME=FOLDER of every set.
        questions: NAME=FILE of sets that have their own.
        whole: names of the sets of which nothing is kept out.
        home: folder of models.
        core: model folder or name of the core.
        base: model folder or name that experts start from.
        kilobytes: text of a set to learn from, at most.
        train_minutes: of each expert.
        parts: which of PARTS; empty for all.
        limit: items of each part, at most.
        limit_questions: questions made by rule at most; None for `limit`.
        tokens: longest answer.
        passages: most passages of an answer.
        seed: of every choice and of the noise.
        max_minutes: begin nothing new after that; None without a limit.
        records: folder of experts and single measurements; None for one in `home`.
        out: folder for the reports.
        results: file of all suites' ratios.
        training: other fields of `PersonalizeOptions` that differ from the client's defaults.
        marks: minutes of training that the learning curve shows.
        resamples: of the bootstrap.
    """

    sets: Sequence[str]
    questions: Sequence[str]
    whole: Sequence[str]
    home: Path
    core: str
    base: str
    kilobytes: int
    train_minutes: float
    parts: Sequence[str]
    limit: int
    limit_questions: int | None
    tokens: int
    passages: int
    seed: int
    max_minutes: float | None
    records: Path | None
    out: Path
    results: Path
    training: Mapping[str, Any] = field(default_factory=dict)
    marks: tuple[float, ...] = experts.MARKS
    resamples: int = RESAMPLES


def run(options: Options) -> Outcome:
    """Measure, and write personal.md, personal.json, the plots and the suite's ratios.

    Raises:
        ClientError, NodeError, DiffusionError: an expert cannot be made, or a model cannot be opened.
        ValueError: no such part, no sets, sets or questions that cannot be used, or no time for anything.
    """
    started = time.monotonic()
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}; choose of {', '.join(PARTS)}")
    sources = sets.sources(options.sets, options.questions, options.whole)
    transformers.utils.logging.disable_progress_bar()
    until = deadline(started, options.max_minutes)
    about, found = _measured(options, sources, until)
    if not found:
        raise ValueError("nothing was measured in the time given; raise --max-minutes")
    told = _report(options, found, about, time.monotonic() - started)
    ratios = [(one.result.name, name, ratio) for one in found for name, ratio in one.ratios.items()]
    return publish(
        Outcome(report.to_json(told, seed=options.seed), report.markdown(told)), options.out / "personal.md",
        rows=report.result_rows(told.results, ratios), results=options.results, with_json=True,
    )  # fmt: skip


def _measured(options: Options, sources: Sequence[Source], until: float) -> tuple[str, list[Found]]:
    """What is run on in a sentence, and the sets for which there was time."""
    records = options.records or options.home / "bench" / "personal"
    splits = [
        sets.split(one, records / "sets" / one.name, kilobytes=options.kilobytes, seed=options.seed) for one in sources
    ]
    folders = resolve(options.core, options.home), resolve(options.base, options.home)
    core, base, tokenizer = experts.open_base(*folders)
    training = Training(
        home=records / "experts", base=folders[1], minutes=options.train_minutes, seed=options.seed,
        marks=options.marks, changes=options.training,
    )  # fmt: skip
    plan = Plan(
        parts=options.parts or PARTS, limit=options.limit, questions=options.limit_questions or options.limit,
        tokens=options.tokens, passages=options.passages, seed=options.seed, until=until,
        records=records / "records", resamples=options.resamples,
    )  # fmt: skip
    found = []
    for source, split in zip(sources, splits, strict=True):
        if time.monotonic() >= until and not _there(split, training, base.spec.model_id):
            console.print(f"no time is left for the set {split.name}; the same command goes on with it")
            continue
        made = experts.make(split, training, base.spec.model_id)
        trio = Trio(core, base, experts.open_expert(made), tokenizer, made)
        found.append(one_set.measure(source, split, trio, plan, records / "sets" / source.name))
    about = (
        f"Core {core.spec.model_id}, experts on {base.spec.model_id}, {options.train_minutes:g} minutes of training "
        f"at most, {options.kilobytes} kB of text to learn from a set at most, seed {options.seed}."
    )
    return about, [one for one in found if any(done for done, _ in one.result.counts.values())]


def _there(split: Split, training: Training, base_id: str) -> bool:
    """Whether the set's expert was made before."""
    name = experts.name_of(split, training, base_id)
    return any(card.name == name for card in Store(training.home).list())


def _report(options: Options, found: Sequence[Found], about: str, seconds: float) -> Report:
    results = [one.result for one in found]
    pooled = figures.pooled([(one.test, one.result.choice) for one in found if one.test], resamples=options.resamples)
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = {}
    for kind, draw in (("sweeps", plots.sweeps), ("curves", plots.curves)):
        name = f"personal-{kind}.png"
        if draw(results, options.out / name):
            drawn[kind] = name
    return Report(about=about, seconds=seconds, results=results, pooled=pooled, plots=drawn)
