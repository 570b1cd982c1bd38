"""Pictures of the quality suite: perplexity against passes a token, and against diversity.

Knows figures by name; what they mean is `summary`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_bench.quality.settings import HUMAN
from ssd_bench.quality.summary import Figures

_JUDGES = {"perplexity ar": "perplexity, judged by the base", "perplexity ngram": "perplexity, judged by the 5-gram"}


def generation(found: Mapping[str, Figures], curve: Sequence[str], path: Path) -> None:
    """Left: perplexity against passes a token. Right: against unigram entropy, the base's temperatures as a line.

    Args:
        found: figures by setting.
        curve: the base's settings, in the order of their temperatures.
        path: the PNG file.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 2, figsize=(13, 10))
    for row, (key, label) in zip(axes, _JUDGES.items(), strict=True):
        _against_passes(row[0], found, curve, key, label)
        _against_entropy(row[1], found, curve, key, label)
    _legend(figure, axes[0][0], found)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)


def few_steps(found: Mapping[str, Figures], path: Path) -> None:
    """Perplexity and distinct-2 against passes a token, for every judge and every chain of settings."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 3, figsize=(17, 5))
    for axis, (key, label) in zip(axes, {**_JUDGES, "distinct-2": "distinct-2"}.items(), strict=True):
        _against_passes(axis, found, (), key, label, log=key != "distinct-2")
    _legend(figure, axes[0], found)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _against_passes(
    axis: Any, found: Mapping[str, Figures], curve: Sequence[str], key: str, label: str, *, log: bool = True
) -> None:
    for i, (name, figures) in enumerate(found.items()):
        value = figures.get(key)
        if value is None:
            continue
        if name == HUMAN or name in curve:
            style = "-" if name == HUMAN else ":"
            axis.axhline(value.value, color="black" if name == HUMAN else "grey", linestyle=style, linewidth=1)
            axis.annotate(name, (1.0, value.value), xycoords=("axes fraction", "data"), fontsize=7, va="bottom",
                          ha="right")  # fmt: skip
            continue
        if "tokens a pass" in figures:
            _point(axis, i, 1 / figures["tokens a pass"].value, value)
    axis.set_xscale("log")
    axis.set_yscale("log" if log else "linear")
    axis.set_xlabel("forward passes a token")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3, which="both")


def _against_entropy(axis: Any, found: Mapping[str, Figures], curve: Sequence[str], key: str, label: str) -> None:
    drawn = [found[name] for name in curve if name in found and "entropy" in found[name]]
    axis.plot([f["entropy"].value for f in drawn], [f[key].value for f in drawn], color="grey", linestyle=":")
    for i, (name, figures) in enumerate(found.items()):
        if "entropy" in figures and key in figures:
            _point(axis, i, figures["entropy"].value, figures[key], black=name == HUMAN, grey=name in curve)
            if name == HUMAN or name in curve:
                axis.annotate(name, (figures["entropy"].value, figures[key].value), fontsize=7, va="bottom")
    axis.set_yscale("log")
    axis.set_xlabel("unigram entropy, nats")
    axis.set_ylabel(label)
    axis.grid(alpha=0.3, which="both")


_MARKERS = "osD^v<>PX*"


def _point(axis: Any, number: int, x: float, value: Any, *, black: bool = False, grey: bool = False) -> None:
    color = "black" if black else "grey" if grey else f"C{number % 10}"
    ends = [[max(value.value - value.low, 0.0)], [max(value.high - value.value, 0.0)]]
    axis.errorbar([x], [value.value], yerr=ends, color=color, marker=_MARKERS[number // 10 % len(_MARKERS)],
                  capsize=2, markersize=6)  # fmt: skip


def _legend(figure: Any, axis: Any, found: Mapping[str, Figures]) -> None:
    """One legend under all panels: colour and marker by the setting's place."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=f"C{i % 10}", marker=_MARKERS[i // 10 % len(_MARKERS)], linestyle="", label=name)
        for i, (name, figures) in enumerate(found.items())
        if "tokens a pass" in figures
    ]
    figure.legend(handles=handles, loc="lower center", ncols=4, fontsize=8, bbox_to_anchor=(0.5, -0.06))
    del axis
