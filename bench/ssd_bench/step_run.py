"""A run of the step suite: opens the model in both engines, times its passes, and writes a section of the page.

Knows the order of things and the words; the measurements are `step`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ssd_cloud import exported
from ssd_cloud.models import resolve
from ssd_diffusion.models import folder
from ssd_diffusion.models.engine import TorchEngine
from ssd_diffusion.onnx_engine import OnnxEngine

from ssd_bench import step as suite
from ssd_bench.console import progress
from ssd_bench.performance import FOLDER, Section, publish
from ssd_bench.report import table
from ssd_bench.results import Row
from ssd_bench.runs import Outcome
from ssd_bench.step import Engines
from ssd_bench.versus import Rounds

SUITE = "step"
CONTEXT, TARGET = 256, 2.5
LENGTHS = (64, 128, 256, 512, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the report goes.

    Attributes:
        home: folder of models; the graph is written under it.
        core: model folder or name.
        context: cached tokens.
        lengths: contexts at which growth is measured; empty leaves it out.
        rounds: of every comparison.
        seed: of the context.
        out: folder for the report.
        results: file of all suites' ratios.
    """

    home: Path
    core: str
    context: int = CONTEXT
    lengths: Sequence[int] = LENGTHS
    rounds: int = 11
    seed: int = 0
    out: Path
    results: Path


def run(options: Options) -> Outcome:
    """Measure, and write the section, its plot and the suite's ratios.

    Raises:
        NodeError, DiffusionError: the model cannot be opened.
        ValueError: its architecture has no graph, or there are too few rounds.
    """
    started = time.monotonic()
    engines = _opened(options)
    spec = engines.ours.spec
    context = suite.context_of(options.context, spec.vocab, options.seed)
    with progress(SUITE, 2 + bool(options.lengths)) as advance:
        found = suite.measure(engines, context, options.rounds)
        advance()
        pair = suite.joined(engines, context, options.rounds)
        advance()
        growth = suite.growth(engines, options.lengths, options.rounds, options.seed)
        if options.lengths:
            advance()
    plot = options.out / FOLDER / "step-context.png"
    if growth:
        _plot(growth, plot)
    text = _text(spec.model_id, options, found, pair, f"![By context]({FOLDER}/{plot.name})" if growth else "")
    rows = _rows(options.context, found, pair)
    section = Section(SUITE, "One pass of the expert", text, time.monotonic() - started)
    shown = publish(section, rows, out=options.out, results=options.results)
    return Outcome({"suite": SUITE, "rows": [{"name": r.name, "ratio": r.ratio} for r in rows]}, shown)


def _opened(options: Options) -> Engines:
    model, spec = folder.load(resolve(options.core, options.home))
    try:
        target = exported.ensure(model, spec, options.home)
    except exported.NotExported as error:
        raise ValueError(f"{spec.model_id} has no graph to compare ({error})") from error
    return Engines(plain=TorchEngine(model, spec, slots=2), ours=OnnxEngine(target, slots=2))


def _text(model: str, options: Options, found: Mapping[str, Rounds], pair: Rounds, plot: str) -> str:
    parts = [
        f"{model}, float32, {options.context} cached tokens, {options.rounds} rounds. The same pass on the same "
        "inputs: the graph that an expert is exported to, on onnxruntime as the device has it, against the model in "
        "eager torch (transformers' backbone), each with its cache.",
        table(["", "times as fast"], [[name, str(rounds)] for name, rounds in found.items()]),
        "A step takes two passes of the expert, with its private context and without, the latter for its exact rows "
        f"alone. Both as one run, side by side under one mask, against one after the other: {pair} times as fast.",
    ]
    return "\n\n".join([*parts, plot] if plot else parts)


def _rows(context: int, found: Mapping[str, Rounds], pair: Rounds) -> list[Row]:
    targets = {"a pass with six drafts": TARGET, "a window of 8": TARGET}
    named = {f"{name}, {context} cached: torch / device": (r, targets.get(name)) for name, r in found.items()}
    named["the expert's two passes: apart / as one"] = (pair, None)
    return [
        Row(suite=SUITE, name=name, ratio=r.ratio, target=target, low=r.spread[0], high=r.spread[1], n=len(r.ours),
            note="median of rounds; low and high are the extremes")
        for name, (r, target) in named.items()
    ]  # fmt: skip


def _plot(growth: Mapping[int, Rounds], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axis = pyplot.subplots(figsize=(5.5, 3.4), layout="constrained")
    lengths = list(growth)
    for label, side in (("eager torch", "plain"), ("device", "ours")):
        axis.plot(lengths, [1e3 * median(getattr(one, side)) for one in growth.values()], "-o", label=label, ms=4)
    axis.set(xscale="log", xlabel="cached tokens", ylabel="ms, median", ylim=(0, None), title="a pass with six drafts")
    axis.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axis.minorticks_off()
    axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
