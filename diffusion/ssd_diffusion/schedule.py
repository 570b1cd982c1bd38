"""The noise schedule and step grids.

The cosine schedule of SSD-LM (Han, Kumar, Tsvetkov, ACL 2023, section 3): alpha_bar(u) = r(u) / r(0),
r(u) = cos^2(((u + s) / (1 + s)) pi / 2), with u = t / T in [0, 1]. Knows nothing about models or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from ssd_kernels.types import F32, F64

from ssd_diffusion.errors import InvalidStep

SCHEDULE_S = 1e-4
SIMPLEX_K = 5.0


def alpha_bar(u: F32 | F64 | float, s: float = SCHEDULE_S) -> F64:
    """Share of signal at noise level u: 1 at u = 0, 0 at u = 1. Any shape; float64."""
    u64 = np.asarray(u, dtype=np.float64)
    r = np.cos((u64 + s) / (1 + s) * np.pi / 2) ** 2
    r0 = np.cos(s / (1 + s) * np.pi / 2) ** 2
    return np.where(u64 >= 1.0, 0.0, r / r0)


def uniform_grid(steps: int) -> tuple[float, ...]:
    """The reference grid of SSD-LM: u = T/T, (T-1)/T, ..., 1/T.

    Raises:
        InvalidStep: steps is below 1.
    """
    if steps < 1:
        raise InvalidStep(f"the number of steps must be at least 1, not {steps}")
    return tuple((steps - i) / steps for i in range(steps))


def information_grid(levels: Sequence[float], cross_entropy: Sequence[float], steps: int) -> tuple[float, ...]:
    """Grid with equal drops of held-out cross-entropy between neighbouring steps (diffusion.md, section 1).

    Args:
        levels: noise levels at which cross-entropy was measured, in any order; must include 1.
        cross_entropy: nats a token at those levels.
        steps: number of grid points, the first at u = 1.

    Raises:
        InvalidStep: fewer than two levels, no level at 1, sizes differ, or steps is below 1.
    """
    if steps < 1:
        raise InvalidStep(f"the number of steps must be at least 1, not {steps}")
    order = np.argsort(levels)
    u = np.asarray(levels, dtype=np.float64)[order]
    ce = np.asarray(cross_entropy, dtype=np.float64)[order]
    if len(u) < 2 or len(u) != len(ce) or abs(u[-1] - 1.0) > 1e-9:
        raise InvalidStep("the information grid needs cross-entropy at two noise levels or more, u = 1 among them")
    # Cross-entropy rises with u; measured values may wiggle, so the running maximum is what is inverted.
    ce = np.maximum.accumulate(ce) + np.arange(len(ce)) * 1e-9
    targets = ce[-1] - (ce[-1] - ce[0]) * np.arange(steps) / steps
    grid = np.interp(targets, ce, u)
    return (1.0, *(float(x) for x in grid[1:]))


def thin_grid(grid: Sequence[float], steps: int) -> tuple[float, ...]:
    """At most `steps` points of a grid, evenly by rank, the first kept.

    Raises:
        InvalidStep: steps is below 1.
    """
    if steps < 1:
        raise InvalidStep(f"the number of steps must be at least 1, not {steps}")
    if steps >= len(grid):
        return tuple(grid)
    picks = np.unique(np.round(np.linspace(0, len(grid) - 1, steps)).astype(int)) if steps > 1 else np.array([0])
    return tuple(float(grid[i]) for i in picks)
