"""Intervals for what the benchmarks report: paired bootstrap, jackknife, Wilson. Knows numbers only; seeds are fixed.

A value is a pair (total, weight) of one independent unit, such as the nats of one answer and its number of tokens; the
estimate is sum(total) / sum(weight). Weight 1 gives the plain mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from ssd_kernels.types import F64, I64

RESAMPLES = 10_000
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with a 95% interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
        n: independent units behind it.
    """

    value: float
    low: float
    high: float
    n: int

    @property
    def clear_of_zero(self) -> bool:
        """True when the interval does not hold 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    totals: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile bootstrap of sum(totals) / sum(weights) over units.

    Args:
        totals: one number for each unit [n].
        weights: weight of each unit [n], all above 0; None is 1.
        resamples: how often units are drawn anew, with replacement.
        seed: of the draws.
        level: coverage.

    Raises:
        ValueError: no units, or lengths that differ.
    """
    x = np.asarray(totals, dtype=np.float64)
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or x.shape != w.shape or not (w > 0).all():
        raise ValueError("an interval needs at least one unit, and one weight above 0 for each")
    drawn = _resampled(x, w, resamples, seed)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(float(x.sum() / w.sum()), float(low), float(high), len(x))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    weights: ArrayLike | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of the difference a - b over the same units; see `bootstrap`.

    Raises:
        ValueError: lengths that differ.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise ValueError("a paired difference needs the same units on both sides")
    return bootstrap(x - y, weights, resamples=resamples, seed=seed, level=level)


def _resampled(x: F64, w: F64, resamples: int, seed: int) -> F64:
    rng = np.random.default_rng(seed)
    out = np.empty(resamples)
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        picks = rng.integers(0, len(x), (size, len(x)))
        out[start : start + size] = x[picks].sum(axis=1) / w[picks].sum(axis=1)
    return out


def jackknife(statistic: Callable[[I64], float], n: int) -> Interval:
    """Interval of a statistic of n units as a whole, from its values with one unit left out (J. W. Tukey, 1958).

    For what counts differences between units, such as distinct n-grams or entropy: a bootstrap's samples hold units
    twice, which such a statistic takes for repetition.

    Args:
        statistic: of the units with the given numbers.
        n: how many units there are.

    Raises:
        ValueError: fewer than two units.
    """
    if n < 2:
        raise ValueError("an interval of a statistic needs at least two units")
    every = np.arange(n)
    value = statistic(every)
    without = np.array([statistic(np.delete(every, i)) for i in range(n)])
    half = 1.959963984540054 * math.sqrt((n - 1) / n * float(((without - without.mean()) ** 2).sum()))
    return Interval(value, value - half, value + half, n)


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """p-value of two paired yes-or-no results being equally often right: exact, two-sided (Q. McNemar, 1947).

    Raises:
        ValueError: lengths that differ.
    """
    gained = sum(x and not y for x, y in zip(a, b, strict=True))
    lost = sum(y and not x for x, y in zip(a, b, strict=True))
    n = gained + lost
    return min(1.0, sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) * 0.5 ** (n - 1))


def wilson(successes: int, n: int, *, z: float = 1.959963984540054) -> Interval:
    """Wilson's score interval of a share (E. B. Wilson, 1927).

    Raises:
        ValueError: no trials, or more successes than trials.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is no share")
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n)
