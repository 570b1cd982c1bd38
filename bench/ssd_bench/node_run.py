"""A run of the node suite: serves a small core and the packaged one, and writes a section of the page.

Knows the order of things and the words; the measurements are `node`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from ssd_client.node import NodeChannel
from ssd_cloud.models import resolve

from ssd_bench import node as suite
from ssd_bench.console import progress
from ssd_bench.node import Load, Pass
from ssd_bench.performance import FOLDER, Section, publish
from ssd_bench.report import table
from ssd_bench.results import Row
from ssd_bench.runs import Outcome
from ssd_bench.served import served
from ssd_bench.versus import LEAST

SUITE = "node"
TARGET = 2.0
COUNTS = (1, 2, 4, 8, 16)
_DESCRIBE_S = 20.0
_PARTS: dict[str, Callable[[Pass], float]] = {
    "the core": lambda one: one.computed,
    "waiting for a place": lambda one: one.queued,
    "codec, gRPC, both sides": lambda one: max(0.0, one.seen - one.computed - one.queued),
}
"""Parts of a pass's time, in the order in which they are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to serve, how much of it, and where the report goes.

    Attributes:
        home: folder of models; graphs are written under it.
        core: model folder or name of the larger core, whose tokenizer the small one takes.
        sessions: with the small core; the larger one has half as many.
        passes: of every session.
        longest: tokens of the longest prompt.
        counts: sessions at once, for how it grows; empty leaves it out.
        rounds: of every comparison.
        seed: of the small core, prompts and tokens.
        out: folder for the report.
        results: file of all suites' ratios.
    """

    home: Path
    core: str
    sessions: int = 16
    passes: int = 24
    longest: int = 320
    counts: Sequence[int] = COUNTS
    rounds: int = LEAST
    seed: int = 0
    out: Path
    results: Path


def run(options: Options) -> Outcome:
    """Measure, and write the section, its plots and the suite's ratios.

    Raises:
        NodeError, DiffusionError, ClientError: the core cannot be opened or served.
        ValueError: a node that does not start, or too few rounds.
    """
    started = time.monotonic()
    larger = resolve(options.core, options.home)
    with TemporaryDirectory(prefix="ssd-bench-") as scratch, progress(SUITE, 3 if options.counts else 2) as advance:
        small = Path(scratch) / "small"
        parameters = suite.small_core(small, larger, options.seed)
        loads = {f"small, {parameters / 1e6:.0f}M": _load(small, Path(scratch), options, options.sessions)}
        advance()
        loads[larger.name] = _load(larger, options.home, options, max(2, options.sessions // 2))
        advance()
        growth = _growth(small, Path(scratch), options)
        if options.counts:
            advance()
    plots = options.out / FOLDER
    _plot(loads, growth, plots / "node.png")
    rows = _rows(loads)
    section = Section(SUITE, "Sessions on a node", _text(options, loads), time.monotonic() - started)
    shown = publish(section, rows, out=options.out, results=options.results)
    return Outcome({"suite": SUITE, "rows": [{"name": r.name, "ratio": r.ratio} for r in rows]}, shown)


def _load(model: Path, home: Path, options: Options, sessions: int) -> tuple[int, Load]:
    with served(model, home, sessions=sessions):
        pass  # the first start writes the graph, with torch in memory; later ones do not need it
    with served(model, home, sessions=sessions) as node, NodeChannel(node.address) as channel:
        info = channel.describe(_DESCRIBE_S)
        several = suite.visits(info, sessions, passes=options.passes, longest=options.longest, seed=options.seed)
        return sessions, suite.measure(node, channel, several, options.rounds)


def _growth(model: Path, home: Path, options: Options) -> dict[int, list[float]]:
    """Tokens a second by sessions at once, of the small core."""
    if not options.counts:
        return {}
    most = max(options.counts)
    with served(model, home, sessions=most) as node, NodeChannel(node.address) as channel:
        info = channel.describe(_DESCRIBE_S)
        several = suite.visits(info, most, passes=options.passes, longest=options.longest, seed=options.seed)
        return {n: suite.tokens_a_second(channel, several[-n:], 3) for n in options.counts}


def _text(options: Options, loads: Mapping[str, tuple[int, Load]]) -> str:
    lines = []
    for name, (sessions, load) in loads.items():
        alone, together = ([one.seen for one in passes] for passes in (load.alone, load.together))
        lines.append([
            name, str(sessions), str(load.rounds), _milliseconds(alone), _milliseconds(together),
            f"{load.resident / 2**20:,.0f} MB",
        ])  # fmt: skip
    return "\n\n".join([
        "A node as `ssd-cloud serve` starts it (not for the first time), and sessions over loopback that send what a "
        f"device sends by default: {options.passes} passes of seven exact rows with six drafts, answers in the default "
        f"codec, prompts of up to {options.longest} tokens, every session with one of its own length. All of them one "
        f"after the other, and all at once, {options.rounds} rounds. The small core has random weights. What comes "
        "back is dropped: the devices' own work is not in these figures, but their side of gRPC is, on the same cores.",
        table(
            ["core", "sessions", "times the tokens a second", "a pass alone, ms (p50, p99)", "a pass among all, ms",
             "memory of the node"],
            lines,
        ),
        "A pass of one session does not keep two cores busy: its products have few rows, and each reads all weights. "
        "Sessions that wait at the same time share a run, in which each keeps its bits "
        "(`exported.company_leaves_bits`, asked at the first start, and tests).",
        f"![Where a pass's time goes, and tokens a second by sessions]({FOLDER}/node.png)",
    ])  # fmt: skip


def _milliseconds(seconds: Sequence[float]) -> str:
    low, high = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return f"{low:.0f}, {high:.0f}"


def _rows(loads: Mapping[str, tuple[int, Load]]) -> list[Row]:
    return [
        Row(suite=SUITE, name=f"{sessions} sessions of a core ({name}): one after the other / at once",
            ratio=load.rounds.ratio, target=TARGET if number == 0 else None, low=load.rounds.spread[0],
            high=load.rounds.spread[1], n=len(load.rounds.ours), note="median of rounds; low and high are the extremes")
        for number, (name, (sessions, load)) in enumerate(loads.items())
    ]  # fmt: skip


def _plot(loads: Mapping[str, tuple[int, Load]], growth: Mapping[int, list[float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(1, 2 if growth else 1, figsize=(9, 3.4), layout="constrained", squeeze=False)
    bars = {
        f"{name}\n{word}": passes
        for name, (_, load) in loads.items()
        for word, passes in (("alone", load.alone), ("among all", load.together))
    }
    left = np.zeros(len(bars))
    for label, of in _PARTS.items():
        widths = np.array([1e3 * float(np.mean([of(one) for one in passes])) for passes in bars.values()])
        axes[0, 0].barh(list(bars), widths, left=left, label=label)
        left += widths
    axes[0, 0].invert_yaxis()
    axes[0, 0].set(xlabel="ms a pass, mean", title="where a pass's time goes")
    axes[0, 0].legend(fontsize="small")
    if growth:
        counts = list(growth)
        axes[0, 1].plot(counts, [median(found) for found in growth.values()], "-o", ms=4)
        axes[0, 1].set(xscale="log", xlabel="sessions at once", ylabel="tokens a second, all", ylim=(0, None),
                       title="small core")  # fmt: skip
        axes[0, 1].set_xticks(counts, [str(count) for count in counts])
        axes[0, 1].minorticks_off()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
