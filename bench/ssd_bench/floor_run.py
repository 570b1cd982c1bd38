"""A run of the floor suite: counts the n-grams, opens base and model, scores the held-out spans, writes the report.

Knows files and the order of things; the measurements are `floor`, their summary is `floor_report`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ssd_cloud.models import load, resolve
from ssd_diffusion.tokenizer import Tokenizer

from ssd_bench import corpora
from ssd_bench import floor as suite
from ssd_bench import floor_report as report
from ssd_bench.console import console, progress
from ssd_bench.kneser_ney import KneserNey
from ssd_bench.runs import Outcome, publish


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the reports go.

    Attributes:
        data: folder that `ssd-cloud data build` made.
        home: folder of models.
        core: model folder or name.
        documents: held-out documents of each source.
        order: longest n-gram.
        seed: of the choice of spans.
        out: folder for the reports.
        results: file of all suites' ratios.
    """

    data: Path
    home: Path
    core: str
    documents: int
    order: int
    seed: int
    out: Path
    results: Path


def run(options: Options) -> Outcome:
    """Measure, and write floor.md, floor.json and the suite's ratios.

    Raises:
        NodeError, DiffusionError: the core cannot be opened.
        ValueError: no data, or data that cannot be read.
    """
    started = time.monotonic()
    corpora.digests(options.data, "train")  # what is missing shows now
    folder = resolve(options.core, options.home)
    tokenizer = Tokenizer.load(folder)
    console.print("counting n-grams ...")
    train = corpora.training_stream(tokenizer, options.data)
    chosen = _spans(tokenizer, options)
    ngram = KneserNey(train, vocab=tokenizer.vocab, order=options.order)
    base = suite.base_scorer(options.home)
    engine = load(folder, slots=1, batch_width=1, threads=None)
    with progress("floor", len(chosen)) as advance:
        scores = suite.measure(chosen, ngram=ngram, base=base, adapted=engine, advance=advance)
    seconds, about = time.monotonic() - started, f"Model {engine.spec.model_id}."
    content = report.to_json(scores, about=about, seconds=seconds, seed=options.seed, train_tokens=len(train))
    text = report.markdown(scores, about=about, seconds=seconds, train_tokens=len(train))
    return publish(
        Outcome(content, text), options.out / "floor.md",
        rows=report.result_rows(scores), results=options.results, with_json=True,
    )  # fmt: skip


def _spans(tokenizer: Tokenizer, options: Options) -> list[suite.Span]:
    """The spans to score, of every source as many."""
    return [
        span
        for name in corpora.names(options.data)
        for span in suite.spans(
            tokenizer, name, corpora.texts(options.data, "heldout", name), count=options.documents, seed=options.seed
        )
    ]
