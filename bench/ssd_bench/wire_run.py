"""A run of the wire suite: a decode of the sample folder's questions, made-up logits, one report of both.

Knows files and the order of things; the measurements are `wire`, their summary is `wire_report`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ssd_diffusion.ensemble import Weights
from ssd_diffusion.home import home as default_home

from ssd_bench import wire as suite
from ssd_bench import wire_report as report
from ssd_bench.console import progress
from ssd_bench.folder import read_questions
from ssd_bench.pair import open_pair
from ssd_bench.runs import Outcome, deadline, publish
from ssd_bench.wire_report import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the report goes.

    Attributes:
        home: folder of experts and models; None for the user's, which made-up logits alone neither need nor make.
        expert: registered expert; None where there is only one.
        core: model folder or name.
        examples: the sample folder.
        limit: questions at most; None for all.
        codec: the sparse codec; None for the client's.
        max_tokens: longest answer.
        passes: synthetic passes; 0 leaves them out.
        seed: of noise, draws and synthetic logits.
        synthetic_only: leave the models out.
        max_minutes: begin no question after that; None without a limit.
        out: folder for the report.
        results: file of all suites' ratios.
    """

    home: Path | None
    expert: str | None
    core: str
    examples: Path
    limit: int | None
    codec: str | None
    max_tokens: int
    passes: int
    seed: int
    synthetic_only: bool
    max_minutes: float | None
    out: Path
    results: Path


def run(options: Options) -> Outcome:
    """Measure, and write wire-bytes.md and the suite's ratios.

    Raises:
        ClientError, NodeError, DiffusionError: core or expert cannot be opened.
        ValueError: nothing to measure, or an unknown codec.
    """
    started = time.monotonic()
    if options.synthetic_only and not options.passes:
        raise ValueError("nothing is left to measure; raise --passes or leave --synthetic-only out")
    parts = []
    if not options.synthetic_only:
        parts.append(_decode(options, until=deadline(started, options.max_minutes)))
    if options.passes:
        parts.append(_synthetic(options))
    seconds = time.monotonic() - started
    content = report.to_json(parts, seconds=seconds, seed=options.seed)
    outcome = Outcome(content, report.markdown(parts, seconds=seconds))
    return publish(outcome, options.out / "wire-bytes.md", rows=report.result_rows(parts), results=options.results)


def _decode(options: Options, *, until: float) -> Part:
    """The default decode of the sample folder's questions on the default pair."""
    pair = open_pair(options.home or default_home(), expert=options.expert, core=options.core)
    spec, most = pair.core.spec, options.max_tokens
    chans = suite.channels(pair.weights, spec.vocab, default=options.codec)
    questions, tokens, asked = read_questions(options.examples / "questions.jsonl")[: options.limit], 0, 0
    with progress("decode", len(questions)) as advance:
        for i, question in enumerate(questions):
            if asked and time.monotonic() >= until:
                break
            contexts = pair.contexts(question.question, answer_room=most)
            ids = (contexts.core_ids, contexts.expert_ids)
            tokens += suite.decode_once(pair, *ids, chans, seed=options.seed + i, max_tokens=most)
            suite.reference_change(pair, *ids, pair.tokenizer.encode(question.answer), chans)
            asked += 1
            advance()
    about = f"{asked} questions about the sample folder, client defaults, {tokens} tokens in all. {pair.about}"
    return Part("Default decode", about, spec.vocab, chans)


def _synthetic(options: Options) -> Part:
    """Made-up logits at the sizes of the OPT vocabulary."""
    weights, sizes = Weights(lam=0.5), {"block": suite.SYNTHETIC_BLOCK, "vocab": suite.SYNTHETIC_VOCAB}
    chans = suite.channels(weights, suite.SYNTHETIC_VOCAB, default=options.codec)
    with progress("synthetic", options.passes) as advance:
        nats = suite.synthetic(
            chans, weights=weights, passes=options.passes, seed=options.seed, advance=advance, **sizes
        )
    about = f"Made-up logits of core and expert, lambda .5; the fused rows have {nats:.2f} nats of entropy on average."
    return Part("Synthetic logits", about, suite.SYNTHETIC_VOCAB, chans)
