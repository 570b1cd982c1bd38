"""A run of the ensemble suite: opens the pair, measures what is not measured yet, writes report, plot and results.

Knows files and the order of things; the measurements are `ensemble`, their summary is `ensemble_report`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ssd_bench import ensemble as suite
from ssd_bench import ensemble_report as report
from ssd_bench.console import progress
from ssd_bench.folder import read_documents, read_questions
from ssd_bench.pair import Pair, open_pair
from ssd_bench.records import Record, RecordFile
from ssd_bench.runs import Outcome, deadline, publish


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the reports go.

    Attributes:
        home: folder of experts and models.
        expert: registered expert; None where there is only one.
        core: model folder or name.
        examples: the sample folder.
        limit: questions at most; None for all.
        stretches: stretches of held-out documents at most.
        max_tokens: longest answer.
        seed: of the noise.
        max_minutes: begin nothing new after that; None without a limit.
        out: folder for the reports.
        results: file of all suites' ratios.
        records: file of single measurements; None for the expert's own in `home`.
    """

    home: Path
    expert: str | None
    core: str
    examples: Path
    limit: int | None
    stretches: int
    max_tokens: int
    seed: int
    max_minutes: float | None
    out: Path
    results: Path
    records: Path | None


def run(options: Options) -> Outcome:
    """Measure, and write ensemble.md, ensemble.json, ensemble.png and the suite's ratios.

    Raises:
        ClientError, NodeError, DiffusionError: core or expert cannot be opened.
        ValueError: nothing to measure, or no time for it.
    """
    started = time.monotonic()
    questions = read_questions(options.examples / "questions.jsonl")[: options.limit]
    pair = open_pair(options.home, expert=options.expert, core=options.core)
    found = _measured(pair, questions, options, until=deadline(started, options.max_minutes))
    if not found:
        raise ValueError("nothing was measured in the time given; raise --max-minutes")
    seconds = time.monotonic() - started
    summary = report.summarise(found)
    content = report.to_json(summary, found, about=pair.about, seconds=seconds, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    report.plot(summary, options.out / "ensemble.png")
    text = report.markdown(summary, found, about=pair.about, seconds=seconds, plot="ensemble.png")
    return publish(
        Outcome(content, text), options.out / "ensemble.md",
        rows=report.result_rows(found), results=options.results, with_json=True,
    )  # fmt: skip


def _measured(pair: Pair, questions: list[suite.Question], options: Options, *, until: float) -> list[Record]:
    """Records of all that was asked for, those of an earlier run with the same settings included."""
    held_out = suite.stretches_of(pair.tokenizer, read_documents(options.examples, pair.held_out))[: options.stretches]
    settings = suite.Settings(seed=options.seed, max_tokens=options.max_tokens)
    chosen = {"about": pair.about, "seed": options.seed, "max_tokens": options.max_tokens}
    kept = RecordFile(options.records or options.home / "bench" / f"ensemble-{pair.name}.jsonl", chosen)
    with progress("ensemble", 2 * (len(questions) + len(held_out))) as advance:
        suite.measure(pair, questions, held_out, settings, kept, advance=advance, until=until)
    wanted = {q.id for q in questions} | {s.id for s in held_out}
    return [r for r in kept.records if r.item in wanted]
