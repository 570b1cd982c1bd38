"""A run of the kernels suite: every comparison, its floor, how it grows, and the section of the page of performance.

Knows the order of things and the words; the measurements are `kernels`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ssd_bench import kernels as suite
from ssd_bench.ceilings import Ceilings, measured
from ssd_bench.console import progress
from ssd_bench.kernels import Embedding, Size
from ssd_bench.performance import FOLDER, Section, publish
from ssd_bench.report import table
from ssd_bench.results import Row
from ssd_bench.runs import Outcome
from ssd_bench.versus import Rounds, together

SUITE = "kernels"
GRID = (1.0, 0.6, 0.5, 0.4, 0.3, 0.2)
"""The step grid of the model that ships."""
HEADLINE = Size()
VOCABS, BLOCKS = (8_192, 16_384, 32_768, 65_536, 131_072), (1, 4, 8, 16, 32, 64)
EMBED_TARGET, DRAW_TARGET = 3.0, 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to run, and where the report goes.

    Attributes:
        size: of the headline comparisons.
        rounds: of each comparison.
        vocabs, blocks: sizes at which growth is measured; empty leaves it out.
        seed: of tables, rows and noise.
        out: folder for the report.
        results: file of all suites' ratios.
    """

    size: Size = HEADLINE
    rounds: int = 11
    vocabs: Sequence[int] = VOCABS
    blocks: Sequence[int] = BLOCKS
    seed: int = 0
    out: Path
    results: Path


@dataclass(frozen=True, slots=True)
class _Found:
    """All that was measured."""

    ceilings: Ceilings
    embedding: Mapping[float, Rounds]
    errors: Mapping[float, float]
    draws: Mapping[str, tuple[Rounds, float]]
    joining: Rounds
    sending: Rounds
    growth: Mapping[str, list[tuple[Size, Rounds, Rounds]]]


def run(options: Options) -> Outcome:
    """Measure, and write the section, its plot and the suite's ratios.

    Raises:
        ValueError: too few rounds.
    """
    started = time.monotonic()
    work = Embedding(options.size, options.seed)
    found = _measured(work, options)
    plot = options.out / FOLDER / "kernels-growth.png"
    drawn = _plot(found.growth, plot) if any(found.growth.values()) else False
    text = _text(found, work, options, f"![Times by size]({FOLDER}/{plot.name})" if drawn else "")
    section = Section(SUITE, "Kernels", text, time.monotonic() - started)
    rows = _rows(found, options.size)
    shown = publish(section, rows, out=options.out, results=options.results)
    return Outcome({"suite": SUITE, "rows": [{"name": r.name, "ratio": r.ratio} for r in rows]}, shown)


def _measured(work: Embedding, options: Options) -> _Found:
    size, rounds, seed = options.size, options.rounds, options.seed
    by_size = {"V": suite.sizes_by_vocab(options.vocabs), "B": suite.sizes_by_block(options.blocks)}
    with progress(SUITE, len(GRID) + len(suite.KINDS) + 3 + sum(map(len, by_size.values()))) as advance:
        ceilings = measured()
        advance()
        embedding, errors = {}, {}
        for u in GRID:
            (embedding[u],) = suite.embedding(work, [u], rounds)
            errors[u] = work.error(u)
            advance()
        draws = {}
        for kind in suite.KINDS:
            draws[kind] = suite.projection(kind, size, rounds, seed)
            advance()
        joining = suite.joining(size, rounds, seed)
        advance()
        sending = suite.sending(size, rounds, seed)
        advance()
        growth: dict[str, list[tuple[Size, Rounds, Rounds]]] = {name: [] for name in by_size}
        for name, sizes in by_size.items():
            for one in suite.growth(sizes, rounds, seed):
                growth[name].append(one)
                advance()
    return _Found(ceilings, embedding, errors, draws, joining, sending, growth)


def _text(found: _Found, work: Embedding, options: Options, plot: str) -> str:
    size = options.size
    floor = found.ceilings.floor_s(size_bytes=work.table_bytes, bytes_multiplied=work.operations)
    ours = median(together(list(found.embedding.values())).ours) / len(found.embedding)
    parts = [
        f"V {size.vocab:,}, B {size.block}, H {size.hidden}, {options.rounds} rounds. Threads of torch wait without "
        "spinning (`OMP_WAIT_POLICY=passive`): a spinning one would be on the clock of what runs next.",
        "### Renoise, softmax, embed",
        "From estimate and noise key to the embedding of the block: Philox and Box-Muller in vectorised loops, weights "
        "in 16 bits, one exact product of bytes with the table in 8 bits, and the heaviest tokens added in float32. "
        "Against `torch.randn`, `softmax` and the float32 product, which make another noise. The error is the root "
        "mean square of the difference from float64, over that of the embedding's distance from the mean embedding.",
        table(
            ["u", "times as fast", "error"],
            [[f"{u:g}", str(found.embedding[u]), f"{found.errors[u]:.2%}"] for u in found.embedding]
            + [["mean over the step grid", str(together(list(found.embedding.values()))), ""]],
        ),
        f"Its floor on this machine, the bytes of the table and the product: {floor * 1e3:.1f} ms a pass at "
        f"{found.ceilings.copy_bytes / 1e9:.0f} GB/s and {found.ceilings.byte_operations / 1e9:,.0f} billion "
        f"operations on bytes a second ({found.ceilings.float_operations / 1e9:,.0f} on float32); a pass takes "
        f"{ours / floor:.1f} times the floor, the rest being noise, weights and the heavy tokens.",
        "### Draw from the nucleus",
        "Gumbel-max over the nucleus, which is found without a sort of the row, against `torch`'s `sort`, `cumsum`, "
        f"`gather` and `multinomial`. Made-up rows at temperature {suite.TEMPERATURE:g} and top-p {suite.TOP_P:g}.",
        table(
            ["rows", "tokens in the nucleus, mean", "times as fast"],
            [[kind, f"{held:,.0f}", str(rounds)] for kind, (rounds, held) in found.draws.items()],
        ),
        "### Join the members",
        "What the device does with a pass: the tail of the core's sparse rows shaped after the expert, the bound on "
        "the error of that, and the ensemble's sum with the contrast; compiled, against the same in numpy: "
        f"{found.joining} times as fast.",
        "### Write the rows",
        "What the node does with a pass: log-softmax of every row, its most probable tokens without a sort of the row, "
        f"their ids and values in bits; compiled, against the same in numpy: {found.sending} times as fast.",
    ]
    if plot:
        parts += ["### How it grows", plot]
    return "\n\n".join(parts)


def _rows(found: _Found, size: Size) -> list[Row]:
    shape = f"V {size.vocab:,}, B {size.block}"
    usual = {"usual": DRAW_TARGET}
    return [
        _row(f"renoise + softmax + embed, {shape}, H {size.hidden}, mean over the step grid: torch / kernel",
             together(list(found.embedding.values())), EMBED_TARGET),
        *(
            _row(f"nucleus draw, {shape}, {kind} rows: torch / kernel", rounds, usual.get(kind))
            for kind, (rounds, _) in found.draws.items()
        ),
        _row(f"shape, bound and fuse, {shape}: numpy / compiled", found.joining, None),
        _row(f"rows of the default codec, {shape}: numpy / compiled", found.sending, None),
    ]  # fmt: skip


def _row(name: str, rounds: Rounds, target: float | None) -> Row:
    low, high = rounds.spread
    return Row(
        suite=SUITE, name=name, ratio=rounds.ratio, target=target, low=low, high=high, n=len(rounds.ours),
        note="median of rounds; low and high are the extremes",
    )  # fmt: skip


def _plot(growth: Mapping[str, list[tuple[Size, Rounds, Rounds]]], path: Path) -> bool:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, (name, found) in zip(axes, growth.items(), strict=True):
        across = [size.vocab if name == "V" else size.block for size, _, _ in found]
        for which, label, color in ((1, "embed", "tab:blue"), (2, "draw", "tab:orange")):
            _lines(axis, across, [one[which] for one in found], label, color)
        axis.set(xscale="log", yscale="log", xlabel=name, ylabel="ms, median", title=f"by {name}")
        axis.set_xticks(across, [f"{value:,}" for value in across])
        axis.minorticks_off()
    axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _lines(axis: Any, across: list[int], rounds: list[Any], label: str, color: str) -> None:
    axis.plot(across, [1e3 * median(one.plain) for one in rounds], "--o", color=color, label=f"{label}, torch", ms=4)
    axis.plot(across, [1e3 * median(one.ours) for one in rounds], "-o", color=color, label=f"{label}, kernel", ms=4)
