"""A run of the personalize suite: races the product's training against the Trainer's, and writes a section of the page.

Knows the order of things and the words; the measurements are `trainer` and `personalize`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from ssd_cloud.models import resolve
from ssd_diffusion.spec_file import read_spec

from ssd_bench import personalize as ways
from ssd_bench.console import progress
from ssd_bench.performance import FOLDER, Section, publish
from ssd_bench.personalize import Step
from ssd_bench.report import table
from ssd_bench.results import Row
from ssd_bench.runs import Outcome
from ssd_bench.trainer import Job, Raced, race

SUITE = "personalize"
TARGET = 2.5
RACES = {"as the Trainer comes (float32)": False, "with its bf16=True": True}
_PARTS = 5
"""Parts of a race, each of which gives a ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the report goes.

    Attributes:
        home: folder of models.
        core: model folder or name of the base.
        examples: folder whose documents are learned from.
        steps: of each race.
        timed: steps that are timed in every way.
        seed: of everything random.
        out: folder for the report.
        results: file of all suites' ratios.
    """

    home: Path
    core: str
    examples: Path
    steps: int
    timed: int
    seed: int = 0
    out: Path
    results: Path


def run(options: Options) -> Outcome:
    """Measure, and write the section, its picture and the suite's ratios.

    Raises:
        NodeError, DiffusionError: the base cannot be opened.
        ClientError: the folder holds too little text.
        RuntimeError: one side of a race failed.
    """
    started = time.monotonic()
    model = resolve(options.core, options.home)
    total = len(RACES) * 2 * (options.steps + 1) + options.timed + 1
    with TemporaryDirectory(prefix="ssd-bench-") as scratch, progress(SUITE, total) as advance:
        job = Job(model=model, examples=options.examples, cache=Path(scratch), steps=options.steps, seed=options.seed)
        races = {name: race(job, advance, bf16=bf16) for name, bf16 in RACES.items()}
        learner, rows, _ = job.learned()
        steps = ways.measure(learner, rows, job.options().objective, steps=options.timed, advance=advance)
    _plot(steps, options.out / FOLDER / "personalize.png")
    section = Section(
        SUITE, "Personalization", _text(read_spec(model).model_id, options, races, steps), time.monotonic() - started
    )
    found = _rows(races, steps)
    shown = publish(section, found, out=options.out, results=options.results)
    return Outcome({"suite": SUITE, "rows": [{"name": r.name, "ratio": r.ratio} for r in found]}, shown)


def ratios(raced: Raced) -> tuple[float, float, float]:
    """How many times the tokens a second over the whole race, and the least and the most of its parts."""
    plain, ours = np.array(raced.plain), np.array(raced.ours)
    parts = [a.sum() / b.sum() for a, b in zip(_cut(plain), _cut(ours), strict=True)]
    return float(plain.sum() / ours.sum()), float(min(parts)), float(max(parts))


def _cut(seconds: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    return np.array_split(seconds, min(_PARTS, len(seconds)))


def _text(model: str, options: Options, races: Mapping[str, Raced], steps: Sequence[Step]) -> str:
    lines = []
    for name, raced in races.items():
        ratio, low, high = ratios(raced)
        lines.append([
            name, f"{ratio:.2f} ({low:.2f} to {high:.2f})", f"{raced.plain_s1:.3f}", f"{raced.ours_s1:.3f}",
        ])  # fmt: skip
    ingredients = []
    for way in ways.WAYS[1:]:
        ratio, low, high = ways.ratios(steps, way)
        cosines = [step.cosine[way.name] for step in steps]
        ingredients.append([
            way.name, f"{ratio:.2f} ({low:.2f} to {high:.2f})", f"{median(s.off(way) for s in steps):.2%}",
            f"{median(cosines):.3f} (from {min(cosines):.3f})",
        ])  # fmt: skip
    return "\n\n".join([
        f"{model}, a LoRA of rank 16, rows as `personalize` makes them of the sample folder. The product's training "
        "against transformers' Trainer with peft: the same objective, rows, noise, rank, optimizer, rates and number "
        f"of steps ({options.steps}); the Trainer computes one mask over all pairs of positions and the logits of all "
        "targets at once. Each has a process of its own, and they step by turns. In brackets the least and the most "
        f"of {_PARTS} parts of the race. S1 afterwards on text that both held out, nats a token: what is quicker has "
        "learned as much.",
        table(["", "times the tokens a second", "S1, Trainer", "S1, product"], lines),
        "What each part brings: forwards and backwards, one batch in every way by turns; every line adds one thing to "
        "the line before it and is compared with the plain way in float32. Loss and gradients are held against that, "
        "too.",
        table(["", "times as fast", "loss off by, median", "cosine of gradients, median"], ingredients),
        "`personalize` and `adapt` take bfloat16 by themselves where the processor multiplies it natively "
        "(avx512_bf16, amx_bf16, ARM bf16) or there is a GPU; trained weights, sums and optimizer stay in float32, and "
        "frozen weights are held in bfloat16 only where they lose nothing by it. Torch's threads spin while it trains, "
        "which is worth another 1.4 here, for Trainer and product alike; everywhere else they sleep "
        "(`ssd_diffusion.openmp`).",
        f"![A step by way]({FOLDER}/personalize.png)",
    ])  # fmt: skip


def _rows(races: Mapping[str, Raced], steps: Sequence[Step]) -> list[Row]:
    found = []
    for number, (name, raced) in enumerate(races.items()):
        ratio, low, high = ratios(raced)
        found.append(Row(
            suite=SUITE, name=f"training, tokens a second: product / Trainer and peft, {name}", ratio=ratio,
            target=TARGET if number == 0 else None, low=low, high=high, n=len(raced.ours),
            note=f"of whole races; low and high are of {_PARTS} parts; held-out S1 {raced.ours_s1:.3f} against "
            f"{raced.plain_s1:.3f}",
        ))  # fmt: skip
    for way in ways.WAYS[1:]:
        ratio, low, high = ways.ratios(steps, way)
        found.append(Row(
            suite=SUITE, name=f"training step, {ways.PLAIN.name} / {way.name}", ratio=ratio, low=low, high=high,
            n=len(steps), note="median of steps; low and high are the extremes",
        ))  # fmt: skip
    return found


def _plot(steps: Sequence[Step], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axis = pyplot.subplots(figsize=(6.5, 2.4), layout="constrained")
    seconds = [median(step.seconds[way.name] for step in steps) for way in ways.WAYS]
    bars = axis.barh([way.name for way in ways.WAYS], seconds)
    axis.bar_label(bars, fmt="%.2f", padding=3, fontsize="small")
    axis.invert_yaxis()
    axis.set(xlabel="seconds a step, median", xlim=(0, 1.15 * max(seconds)))
    axis.tick_params(axis="y", labelsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
