"""Pictures of the quality suite: perplexity against passes a token and against diversity, certainty against hits.

Knows figures by name; what they mean is `summary`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ssd_bench.quality.settings import HUMAN
from ssd_bench.quality.summary import Figures
from ssd_bench.stats import Interval

_JUDGES = {"perplexity ar": "perplexity, judged by the base", "perplexity ngram": "perplexity, judged by the 5-gram"}
_MARKERS = "osD^v<>PX*"
LEAST_POSITIONS = 10


class Look(NamedTuple):
    """How the points of a setting are drawn."""

    color: str
    marker: str


def generation(found: Mapping[str, Figures], curve: Sequence[str], path: Path) -> None:
    """Left: perplexity against passes a token. Right: against unigram entropy, the base's temperatures as a line.

    Args:
        found: figures by setting.
        curve: the base's settings, in the order of their temperatures.
        path: the PNG file.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 2, figsize=(13, 10))
    looks = _looks(found, curve)
    for row, (key, label) in zip(axes, _JUDGES.items(), strict=True):
        _against_passes(row[0], found, looks, curve, key)
        _against_entropy(row[1], found, looks, curve, key)
        row[0].set_ylabel(label)
    _finish(figure, axes, looks, path)


def few_steps(found: Mapping[str, Figures], curve: Sequence[str], path: Path) -> None:
    """Perplexity under both judges and distinct-2 against passes a token; arguments as of `generation`."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 3, figsize=(17, 5))
    looks = _looks(found, curve)
    for axis, (key, label) in zip(axes, {**_JUDGES, "distinct-2": "distinct-2"}.items(), strict=True):
        _against_passes(axis, found, looks, curve, key)
        axis.set_ylabel(label)
    axes[2].set_yscale("linear")
    _finish(figure, axes, looks, path)


def calibration(found: Mapping[str, Sequence[tuple[float, float, int]]], path: Path) -> None:
    """How often the most probable token is right, over its probability; the larger a point, the more positions.

    Bins of fewer than LEAST_POSITIONS are left out: their hit rate is chance.

    Args:
        found: (mean certainty, hit rate, positions) of every bin, by place.
        path: the PNG file.
    """
    pyplot = _pyplot()
    figure, axis = pyplot.subplots(figsize=(7, 6))
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":")
    for i, (place, bins) in enumerate(found.items()):
        shown = [one for one in bins if one[2] >= LEAST_POSITIONS]
        x, y = [one[0] for one in shown], [one[1] for one in shown]
        sizes = [max(8.0, 300.0 * one[2] / sum(n for _, _, n in bins)) for one in shown]
        axis.plot(x, y, color=f"C{i}", linewidth=1, alpha=0.6)
        axis.scatter(x, y, s=sizes, color=f"C{i}", marker=_MARKERS[i % len(_MARKERS)], label=place)
    axis.set(xlabel="certainty", ylabel="right", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    for handle in axis.legend(fontsize=8, loc="upper left").legend_handles:
        handle.set_sizes([30])
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _looks(found: Mapping[str, Figures], curve: Sequence[str]) -> dict[str, Look]:
    """Colour and marker of every setting that a model wrote and that is not on the base's curve."""
    shown = [name for name, figures in found.items() if "tokens a pass" in figures and name not in curve]
    return {name: Look(f"C{i % 10}", _MARKERS[i // 10 % len(_MARKERS)]) for i, name in enumerate(shown)}


def _against_passes(
    axis: Any, found: Mapping[str, Figures], looks: Mapping[str, Look], curve: Sequence[str], key: str
) -> None:
    for name, figures in found.items():
        if key not in figures:
            continue
        if name in looks:
            _point(axis, 1 / figures["tokens a pass"].value, figures[key], looks[name])
        elif name == HUMAN or name in curve:
            line = "-" if name == HUMAN else ":"
            axis.axhline(figures[key].value, color="black" if name == HUMAN else "grey", linestyle=line, linewidth=1)
            axis.annotate(
                name, (1.0, figures[key].value), xycoords=("axes fraction", "data"), fontsize=7, va="bottom", ha="right"
            )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("forward passes a token")


def _against_entropy(
    axis: Any, found: Mapping[str, Figures], looks: Mapping[str, Look], curve: Sequence[str], key: str
) -> None:
    drawn = sorted((found[name]["entropy"].value, found[name][key].value) for name in curve if name in found)
    axis.plot([x for x, _ in drawn], [y for _, y in drawn], color="grey", linestyle=":")
    for name, figures in found.items():
        if "entropy" not in figures or not (name in looks or name == HUMAN or name in curve):
            continue
        look = looks.get(name, Look("black" if name == HUMAN else "grey", "o"))
        _point(axis, figures["entropy"].value, figures[key], look)
        if name not in looks:
            axis.annotate(name, (figures["entropy"].value, figures[key].value), fontsize=7, va="bottom")
    axis.set_yscale("log")
    axis.set_xlabel("unigram entropy, nats")


def _point(axis: Any, x: float, value: Interval, look: Look) -> None:
    ends = [[max(value.value - value.low, 0.0)], [max(value.high - value.value, 0.0)]]
    axis.errorbar([x], [value.value], yerr=ends, color=look.color, marker=look.marker, capsize=2, markersize=6)


def _finish(figure: Any, axes: Any, looks: Mapping[str, Look], path: Path) -> None:
    """Plain numbers on the axes, one legend under all panels, the file."""
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in axes.flat:
        for scale in (axis.xaxis, axis.yaxis):
            if scale.get_scale() == "log":
                scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                scale.set_major_formatter(StrMethodFormatter("{x:g}"))
                scale.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    handles = [
        Line2D([], [], color=look.color, marker=look.marker, linestyle="", label=name) for name, look in looks.items()
    ]
    figure.tight_layout()
    figure.legend(handles=handles, loc="upper center", ncols=4, fontsize=8, bbox_to_anchor=(0.5, 0.0))
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)
