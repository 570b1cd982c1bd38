"""Pictures of the suite: likelihood by lambda and alpha as a heat map of every set, and the learning curves.

Knows results; what they mean is `figures`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ssd_client.personalize.weights import ALPHAS

from ssd_bench.personal.heldout import GRID, name_of
from ssd_bench.personal.results import Result

LAMBDAS = tuple(dict.fromkeys(lam for lam, _ in GRID))


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def sweeps(results: Sequence[Result], path: Path) -> bool:
    """S1 of the validation part by lambda and alpha, a panel a set; False where there is none to draw."""
    drawn = [one for one in results if one.choice.table]
    if not drawn:
        return False
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(drawn), figsize=(3.1 * len(drawn) + 0.6, 4.4), squeeze=False)
    for axis, one in zip(axes[0], drawn, strict=True):
        table = np.array([[one.choice.table[name_of((lam, alpha))] for alpha in ALPHAS] for lam in LAMBDAS])
        image = axis.imshow(table, aspect="auto", cmap="viridis_r", origin="lower")
        lam, alpha = one.choice.pairs["s1"]
        axis.plot([ALPHAS.index(alpha)], [LAMBDAS.index(lam)], marker="*", color="red", markersize=14)
        axis.set_xticks(range(len(ALPHAS)), [f"{alpha:g}" for alpha in ALPHAS])
        axis.set_yticks(range(len(LAMBDAS)), [f"{lam:g}" for lam in LAMBDAS])
        axis.set_title(one.name, fontsize=10)
        axis.set_xlabel("alpha")
        figure.colorbar(image, ax=axis, shrink=0.8)
    axes[0][0].set_ylabel("lambda")
    _finish(figure, path)
    return True


def curves(results: Sequence[Result], path: Path) -> bool:
    """S1 of kept documents and the share of hidden facts that is filled, by minutes; False where there is no curve."""
    drawn = [one for one in results if len(one.curve) > 1]
    if not drawn:
        return False
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    labels = {"heldout": "S1 of kept documents, nats a token", "filled": "share of hidden facts filled"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for number, one in enumerate(drawn):
            known = [(minutes, point[key]) for minutes, point in one.curve.items() if key in point]
            values = [x.value for _, x in known]
            ends = [[max(0.0, x.value - x.low) for _, x in known], [max(0.0, x.high - x.value) for _, x in known]]
            at = [minutes + 0.03 * number for minutes, _ in known]  # beside one another, so that intervals can be seen
            axis.errorbar(at, values, yerr=ends, marker="o", capsize=2, label=one.name)
        axis.set_xlabel("minutes of training")
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    _finish(figure, path)
    return True


def _finish(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
