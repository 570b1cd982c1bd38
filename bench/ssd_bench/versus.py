"""Two things timed by turns in one process, so that what slows the machine slows both. Knows nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

LEAST = 7
"""Rounds at least."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """Seconds of every round.

    Attributes:
        plain: what is to be beaten.
        ours: what beats it.
    """

    plain: tuple[float, ...]
    ours: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """How many times as fast ours is, round by round."""
        return tuple(a / b for a, b in zip(self.plain, self.ours, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the ratios."""
        return median(self.ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio."""
        return min(self.ratios), max(self.ratios)

    def __str__(self) -> str:
        ratio, low, high = (f"{x:.2f}" if x < 10 else f"{x:.0f}" for x in (self.ratio, *self.spread))
        return f"{ratio} ({low} to {high})"


def by_turns(plain: Callable[[], object], ours: Callable[[], object], rounds: int) -> Rounds:
    """Time both in every round, which comes first turning each time, after a round that only warms up.

    Raises:
        ValueError: fewer rounds than a median of them would mean something.
    """
    if rounds < LEAST:
        raise ValueError(f"a comparison needs {LEAST} rounds at least, not {rounds}")
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            started = time.perf_counter()
            (plain, ours)[which]()
            if number:
                seconds[which].append(time.perf_counter() - started)
    return Rounds(tuple(seconds[0]), tuple(seconds[1]))


def together(parts: Sequence[Rounds]) -> Rounds:
    """Several comparisons as one: the seconds of each round added up."""
    return Rounds(
        tuple(sum(one) for one in zip(*(part.plain for part in parts), strict=True)),
        tuple(sum(one) for one in zip(*(part.ours for part in parts), strict=True)),
    )
