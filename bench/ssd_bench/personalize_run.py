"""A run of the personalize suite: opens the base, makes rows of the sample folder, writes the report.

Knows files and the order of things; the measurements are `personalize`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from ssd_cloud.models import resolve
from ssd_diffusion.models import folder
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training import data, lora

from ssd_bench import machine
from ssd_bench import personalize as suite
from ssd_bench.console import progress
from ssd_bench.report import origin
from ssd_bench.runs import Outcome, publish

LENGTH, BLOCK, RANK = 256, 8, 16
"""Of a training row and of the adapter, as `personalize` has them by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the report goes.

    Attributes:
        home: folder of models.
        core: model folder or name.
        examples: folder whose Markdown is learned from.
        steps: timed steps.
        out: folder for the report.
        results: file of all suites' ratios.
    """

    home: Path
    core: str
    examples: Path
    steps: int
    out: Path
    results: Path


def run(options: Options) -> Outcome:
    """Measure, and write training-speed.md and the suite's ratio.

    Raises:
        NodeError, DiffusionError: the base cannot be opened, or the folder holds too little text.
    """
    started = time.monotonic()
    path = resolve(options.core, options.home)
    tokenizer = Tokenizer.load(path)
    texts = [p.read_text(encoding="utf-8") for p in sorted(options.examples.rglob("*.md"))]
    stream = data.pack([tokenizer.encode(text).tolist() for text in texts], 0)
    rows = data.PackedRows(stream, length=LENGTH, block=BLOCK, rows=1, seed=0, offsets=1)
    model, spec = folder.load(path)
    lora.attach(model, lora.LoraOptions(rank=RANK, alpha=2 * RANK))
    with progress("personalize", options.steps + 1) as advance:
        steps = suite.measure(model, rows, steps=options.steps, advance=advance)
    seconds = time.monotonic() - started
    note = f"Model {spec.model_id}, rows of {LENGTH} tokens, LoRA of rank {RANK}."
    head = "# The speed of training\n\n" + origin(machine.command(), machine.describe(), seconds=seconds, note=note)
    content = {
        "suite": suite.SUITE, "command": machine.command(), "machine": machine.describe(),
        "steps": suite.as_json(steps),
    }  # fmt: skip
    outcome = Outcome(content, suite.markdown(steps, head))
    return publish(outcome, options.out / "training-speed.md", rows=suite.result_rows(steps), results=options.results)
