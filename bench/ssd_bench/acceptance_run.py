"""A run of the acceptance suite: opens model and judge, decodes with every setting, writes the report.

Knows files and the order of things; the measurements and their summary are `acceptance`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_cloud.models import load, resolve
from ssd_diffusion.sampler import DecodeParams
from ssd_diffusion.tokenizer import Tokenizer

from ssd_bench import acceptance as suite
from ssd_bench.console import progress
from ssd_bench.floor import base_scorer
from ssd_bench.machine import describe
from ssd_bench.runs import Outcome, publish

BUDGETS = (0.05, 0.2, 0.5)
"""Nats that a pass may accept, where none are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the report goes.

    Attributes:
        home: folder of models.
        core: model folder or name.
        steps: points of the step grid; empty for one and all of the model's.
        budgets: nats a pass may accept; empty for `BUDGETS`.
        limit: prompts at most; None for all.
        max_tokens: longest text.
        block: open positions, at most the model's own.
        seed: of noise and draws.
        out: folder for the report.
        results: file of all suites' ratios.
    """

    home: Path
    core: str
    steps: Sequence[int]
    budgets: Sequence[float]
    limit: int | None
    max_tokens: int
    block: int
    seed: int
    out: Path
    results: Path


def run(options: Options) -> Outcome:
    """Measure, and write acceptance.md and the suite's ratios.

    Raises:
        NodeError, DiffusionError: the core cannot be opened.
    """
    started = time.monotonic()
    folder = resolve(options.core, options.home)
    engine = load(folder, slots=1, batch_width=1, threads=None)
    judge = base_scorer(options.home)
    spec = engine.spec
    params = DecodeParams(
        block=min(options.block, spec.max_block), grid=spec.grid, max_tokens=options.max_tokens, temperature=0.7,
        eos_ids=spec.eos_ids,
    )  # fmt: skip
    chosen = suite.settings(options.steps or (1, len(spec.grid)), options.budgets or BUDGETS)
    prompts = suite.PROMPTS[: options.limit]
    with progress("acceptance", len(prompts) * len(chosen)) as advance:
        samples = suite.measure(
            engine, Tokenizer.load(folder), judge, chosen,
            prompts=prompts, params=params, seed=options.seed, advance=advance,
        )  # fmt: skip
    rows, seconds, machine = suite.summary(samples), time.monotonic() - started, describe()
    about = f"Model {spec.model_id}, temperature 0.7, top-p 0.9, block {params.block}, seed {options.seed}."
    text = suite.markdown(rows, about=about, machine=machine, seconds=seconds)
    content = {"rows": rows, "about": about, "machine": machine, "seconds": seconds}
    return publish(
        Outcome(content, text), options.out / "acceptance.md", rows=suite.result_rows(rows), results=options.results
    )
