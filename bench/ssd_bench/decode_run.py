"""A run of the decode suite: opens pair, base and torch models, times texts, and writes a section of the page.

Knows the order of things and the words; the measurements are `decode`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from ssd_cloud.adapt import base_folder, open_base
from ssd_cloud.models import load_quickest, resolve
from ssd_diffusion.models import folder
from ssd_diffusion.onnx_engine import OnnxEngine, load_transition
from ssd_diffusion.tokenizer import Tokenizer

from ssd_bench import decode as suite
from ssd_bench import first
from ssd_bench.console import progress
from ssd_bench.decode import Timed
from ssd_bench.first import Waits
from ssd_bench.folder import read_questions
from ssd_bench.pair import open_pair
from ssd_bench.performance import Section, publish
from ssd_bench.report import table
from ssd_bench.results import Row
from ssd_bench.runs import Outcome
from ssd_bench.versus import LEAST, Rounds

SUITE = "decode"
CORE_TARGET, ENSEMBLE_TARGET = 1.5, 100.0
WARM_S, COLD_S = 0.5, 3.0
"""Until the first estimate, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run on, how much of it, and where the report goes.

    Attributes:
        home: folder of experts and models.
        expert: registered expert; None where there is only one.
        core: model folder or name.
        base: the decoder that the core came from.
        examples: the sample folder.
        limit: prompts and questions.
        tokens: of a text.
        seed: of noise and draws.
        out: folder for the report.
        results: file of all suites' ratios.
    """

    home: Path
    expert: str | None
    core: str
    base: str = "packaged"
    examples: Path
    limit: int = 12
    tokens: int = 48
    seed: int = 0
    out: Path
    results: Path


def run(options: Options) -> Outcome:
    """Measure, and write the section and the suite's ratios.

    Raises:
        ClientError, NodeError, DiffusionError: core, base or expert cannot be opened.
        ValueError: too few texts for a median.
    """
    if options.limit < LEAST:
        raise ValueError(f"a comparison needs {LEAST} texts at least, not {options.limit}")
    started = time.monotonic()
    questions = read_questions(options.examples / "questions.jsonl")[: options.limit]
    if len(questions) < LEAST:
        raise ValueError(f"{options.examples} holds {len(questions)} questions; a comparison needs {LEAST} at least")
    with progress(SUITE, options.limit + len(questions) + 1 + 2 * (LEAST + 1)) as advance:
        alone, model_id = _core(options, advance)
        both, about = _ensemble(options, [q.question for q in questions], advance)
        core = resolve(options.core, options.home)
        waits = first.measure(options.home, options.expert, core, rounds=LEAST, advance=advance)
    text = "\n\n".join([_text(options, model_id, alone, about, both), _waits(waits)])
    section = Section(SUITE, "Tokens a second", text, time.monotonic() - started)
    rows = [
        *_limits(waits),
        _row("tokens a second, core alone with drafts / its base token by token in transformers", alone, CORE_TARGET),
        _row("tokens a second, ensemble / SSD-LM's procedure at 1,000 steps (one step timed)", both, ENSEMBLE_TARGET),
    ]
    shown = publish(section, rows, out=options.out, results=options.results)
    return Outcome({"suite": SUITE, "rows": [{"name": r.name, "ratio": r.ratio} for r in rows]}, shown)


def _core(options: Options, advance: Callable[[], None]) -> tuple[list[Timed], str]:
    path = resolve(options.core, options.home)
    engine = load_quickest(path, options.home, slots=1, batch_width=1, threads=None)
    drafter = load_transition(engine.folder) if isinstance(engine, OnnxEngine) else None
    base = open_base(base_folder(options.base, options.home, options.home)).causal.eval()
    tokenizer = Tokenizer.load(path)
    found = []
    for number in range(options.limit + 1):
        prompt = suite.PROMPTS[number % len(suite.PROMPTS)]
        context = tokenizer.chat([{"role": "user", "content": prompt}])
        timed = suite.core_alone(
            engine, drafter, base, context, tokens=options.tokens, seed=options.seed + number,
            ours_first=bool(number % 2),
        )  # fmt: skip
        if number:  # the first only warms up
            found.append(timed)
        advance()
    return found, engine.spec.model_id


def _ensemble(options: Options, questions: Sequence[str], advance: Callable[[], None]) -> tuple[list[Timed], str]:
    pair = open_pair(options.home, expert=options.expert, core=options.core)
    model, _ = folder.load(resolve(options.core, options.home))
    models = [model] * (3 if pair.weights.alpha > 0 else 2)
    found = []
    for number, question in enumerate(questions):
        found.append(suite.ensemble(pair, models, question, tokens=options.tokens, seed=options.seed + number))
        advance()
    return found, pair.about


def _text(options: Options, model_id: str, alone: Sequence[Timed], about: str, both: Sequence[Timed]) -> str:
    return "\n\n".join([
        f"{model_id}. Texts of {options.tokens} tokens at the client's temperature and nucleus, {len(alone)} prompts: "
        "the core alone with the client's drafts, against the decoder that it came from, token by token in "
        "transformers with its cache. The core's text is the one that it writes one token a pass; how good that is "
        "beside its base's, the page on [quality](quality.md) says.",
        f"Answers to {len(both)} questions about the sample folder, by core and expert in one process, against "
        "SSD-LM's procedure with the same members: 1,000 steps for a block of 25, each with dense noise and the whole "
        "context read again. One step of it is timed beside every answer and multiplied; a step's time does not depend "
        f"on the weights, so the core's stand for the expert's. {about}",
        table(
            ["", "times the tokens a second", "tokens a pass"],
            [
                [name, str(_rounds(found)), f"{mean(t.tokens_a_pass for t in found):.2f}"]
                for name, found in (
                    ("core alone / its base in transformers", alone), ("ensemble / SSD-LM's procedure", both)
                )
            ],
        ),
    ])  # fmt: skip


def _waits(waits: Waits) -> str:
    lines = []
    for name, seconds, limit in (
        ("node ready, expert open", waits.warm, WARM_S),
        ("node ready, from the start of the command", waits.cold, COLD_S),
    ):
        lines.append([name, f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})", f"{limit:g}"])
    return "\n\n".join([
        "### The first words",
        "Seconds until a user sees the first estimate of an answer, node and device on the same cores, a prompt of "
        f"about 64 tokens and the passages found for it, {len(waits.warm)} answers each. A device process held "
        f"{waits.resident / 2**20:,.0f} MB at most.",
        table(["", "seconds", "at most wanted"], lines),
    ])  # fmt: skip


def _limits(waits: Waits) -> list[Row]:
    """What was allowed over what was seen, so that more is better here too."""
    found = []
    for name, limit, seen in (
        ("seconds to the first estimate, node and expert ready: 0.5 / seen", WARM_S, waits.warm),
        ("seconds to the first estimate, cold command line: 3 / seen", COLD_S, waits.cold),
        ("bytes of a device process: 1 GB / seen", 1e9, (float(waits.resident),)),
    ):
        ratios = sorted(limit / one for one in seen)
        found.append(Row(
            suite=SUITE, name=name, ratio=median(ratios), target=1.0, low=ratios[0], high=ratios[-1], n=len(ratios),
            note="median of answers; low and high are the extremes",
        ))  # fmt: skip
    return found


def _rounds(found: Sequence[Timed]) -> Rounds:
    return Rounds(tuple(t.plain for t in found), tuple(t.ours for t in found))


def _row(name: str, found: Sequence[Timed], target: float) -> Row:
    ratios = [t.ratio for t in found]
    return Row(
        suite=SUITE, name=name, ratio=median(ratios), target=target, low=min(ratios), high=max(ratios), n=len(ratios),
        note="median of texts; low and high are the extremes",
    )  # fmt: skip
