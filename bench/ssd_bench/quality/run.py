"""A run of the quality suite: opens models and data, measures what the records lack, writes report and plots.

Knows files and the order of things; the measurements are its neighbours in this package.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssd_client.index.encoder import Encoder
from ssd_client.personalize.encoder_export import ensure_encoder
from ssd_cloud.models import resolve
from ssd_diffusion.packaged import ensure

from ssd_bench import corpora
from ssd_bench.console import console, progress
from ssd_bench.quality import answers, calibration, likelihoods, plots, report, texts
from ssd_bench.quality.answers import Pair
from ssd_bench.quality.likelihoods import Held
from ssd_bench.quality.models import Opened, open_pair
from ssd_bench.quality.report import Report
from ssd_bench.quality.settings import (
    AHEAD,
    CORE,
    HUMAN,
    ONE_A_PASS,
    REFERENCE,
    SAME_TEMPERATURE,
    SETTINGS,
    THOUSAND,
    few_steps,
)
from ssd_bench.quality.summary import Figures
from ssd_bench.quality.texts import Lengths
from ssd_bench.runs import Outcome, publish
from ssd_bench.stats import bootstrap, paired_bootstrap

PARTS = ("denoising", "calibration", "likelihood", "infill", "generation", "answers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the reports go.

    Attributes:
        data: folder that `ssd-cloud data build` made.
        home: folder of models.
        core: model folder or name.
        base: folder of the decoder that the core came from; None for the packaged one without its adapter.
        pairs: files of held-out conversations; those of the data folder where none is given.
        parts: which of PARTS; empty for all.
        few_steps: also the table of quality against passes.
        thousand: also the settings with 1000 steps a block, minutes a text.
        limit: documents, prefixes and pairs at most.
        limit_read: documents of the parts that write nothing at most; None for `limit`.
        prefix: tokens of a prefix.
        tokens: tokens of a continuation.
        seed: of every choice, noise and draw.
        records: folder of single measurements; None for one in `home`.
        out: folder for the reports.
        results: file of all suites' ratios.
    """

    data: Path
    home: Path
    core: str
    base: str | None
    pairs: Sequence[Path]
    parts: Sequence[str]
    few_steps: bool
    thousand: bool
    limit: int
    limit_read: int | None
    prefix: int
    tokens: int
    seed: int
    records: Path | None
    out: Path
    results: Path


def run(options: Options) -> Outcome:
    """Measure, and write quality.md, quality.json, the plots and the suite's ratios.

    Raises:
        NodeError, DiffusionError: core or base cannot be opened.
        ValueError: no such part, no data, or data that cannot be read.
    """
    started = time.monotonic()
    options = replace(options, pairs=options.pairs or corpora.pairs(options.data))
    unknown = sorted(set(options.parts) - set(PARTS))
    if unknown:
        raise ValueError(f"there is no part {unknown[0]!r}; choose of {', '.join(PARTS)}")
    if "answers" in options.parts and not options.pairs:
        raise ValueError("the part answers needs conversations; give --pairs a file of them")
    held = _open(options)
    found = _measured(held, options)
    pair = held.core.spec.model_id, held.base.spec.model_id
    about = f"Core {pair[0]}, base {pair[1]}, seed {options.seed}, at most {options.limit} documents"
    about += "." if options.limit_read is None else f", {options.limit_read} where nothing is written."
    if found.answers:
        about += f" Requests from {', '.join(path.name for path in options.pairs)}."
    found = replace(found, about=about, seconds=time.monotonic() - started)
    return publish(
        Outcome(report.to_json(found, seed=options.seed), report.markdown(found)), options.out / "quality.md",
        rows=report.result_rows(found), results=options.results, with_json=True,
    )  # fmt: skip


def _open(options: Options) -> Held:
    corpora.digests(options.data, "train")  # the n-gram judge reads them last; what is missing shows now
    core = resolve(options.core, options.home)
    base = (
        ensure(options.home / "bench", weights=options.home / "bench" / "no-adapter")
        if options.base is None
        else resolve(options.base, options.home)
    )
    opened, plain = open_pair(core, base)
    about = {
        "core": opened.spec.model_id, "base": plain.spec.model_id, "seed": options.seed,
        "data": corpora.digests(options.data, "heldout"),
    }  # fmt: skip
    return Held(
        core=opened, base=plain, data=options.data, limit=options.limit, seed=options.seed,
        records=options.records or options.home / "bench" / "quality", about=about,
    )  # fmt: skip


def _measured(held: Held, options: Options) -> Report:
    wanted = options.parts or PARTS
    asked = _asked(held, options) if "answers" in wanted else []
    read = held if options.limit_read is None else replace(held, limit=options.limit_read)
    found = Report(about="", seconds=0.0)
    options.out.mkdir(parents=True, exist_ok=True)
    if "denoising" in wanted:
        found = replace(found, denoising=likelihoods.denoising_figures(read))
    if "calibration" in wanted:
        found = _calibrated(found, read, options)
    if "likelihood" in wanted:
        found = replace(found, likelihood=likelihoods.likelihood_figures(read))
    if "infill" in wanted:
        found = replace(found, infill=likelihoods.infill_figures(read))
    if asked:
        found = replace(found, answers=_answers(held, asked))
    if "generation" in wanted or options.few_steps:
        found = _generated(found, held, options, main="generation" in wanted)
    return found


def _calibrated(found: Report, held: Held, options: Options) -> Report:
    sums = likelihoods.calibration_sums(held)
    name = "quality-calibration.png"
    plots.calibration({place: calibration.curve(rows) for place, rows in sums.items()}, options.out / name)
    return replace(
        found, calibration={place: calibration.figures(rows) for place, rows in sums.items()},
        plots={**found.plots, "calibration": name},
    )  # fmt: skip


def _generated(found: Report, held: Held, options: Options, *, main: bool) -> Report:
    lengths, encoder = Lengths(prefix=options.prefix, tokens=options.tokens), _encoder(options.home)
    if main:
        settings = (*SETTINGS, THOUSAND) if options.thousand else SETTINGS
        samples = texts.samples(held, settings, lengths, encoder)
        figures = texts.figures(samples)
        plots.generation(figures, [setting.name for setting in REFERENCE], options.out / "quality.png")
        found = replace(
            found, generation=figures, ratios=texts.ratios(samples, settings),
            matched=texts.matched(samples, REFERENCE, [HUMAN, *(one.name for one in settings if not one.base)]),
            one_a_pass=texts.matched(samples, ONE_A_PASS, [one.name for one in AHEAD]),
            plots={**found.plots, "generation": "quality.png"},
        )  # fmt: skip
    if options.few_steps:
        steps = (CORE, SAME_TEMPERATURE, *few_steps(thousand=options.thousand))
        figures = texts.figures(texts.samples(held, steps, lengths, encoder))
        plots.few_steps(figures, [SAME_TEMPERATURE.name], options.out / "quality-few-steps.png")
        found = replace(found, few_steps=figures, plots={**found.plots, "few steps": "quality-few-steps.png"})
    return found


def _encoder(home: Path) -> Encoder | None:
    encoder = ensure_encoder(home)
    if encoder is None:
        console.print("no sentence encoder is installed, so the MAUVE-like score is left out; see docs/dependencies.md")
    return encoder


def _asked(held: Held, options: Options) -> list[Pair]:
    if not options.pairs:
        console.print("there are no held-out conversations, so the answers are left out")
    return answers.read_pairs(held.core.tokenizer, options.pairs, count=held.limit, seed=held.seed)


def _answers(held: Held, pairs: Sequence[Pair]) -> Figures:
    records = held.lines("answers", answers.KEY, how=answers.HOW)
    models: tuple[Opened, Opened] = held.core, held.base
    missing = sum(records.get(pair.id, writer) is None for pair in pairs for writer in answers.WRITERS)
    with progress("answers", missing) as advance:
        answers.measure(models, pairs, records, seed=held.seed, advance=advance)
    found = {w: [records.get(pair.id, w) or {} for pair in pairs] for w in answers.WRITERS}
    f1 = {w: [float(row["f1"]) for row in rows] for w, rows in found.items()}
    nats = {w: [float(row["nats"]) for row in rows] for w, rows in found.items()}
    tokens = [float(len(pair.reference)) for pair in pairs]
    return {
        "F1, core": bootstrap(f1["core"]), "F1, base": bootstrap(f1["base"]),
        "F1, core - base": paired_bootstrap(f1["core"], f1["base"]),
        "reference, core": bootstrap(nats["core"], tokens), "reference, base": bootstrap(nats["base"], tokens),
        "reference, core - base": paired_bootstrap(nats["core"], nats["base"], tokens),
    }  # fmt: skip
