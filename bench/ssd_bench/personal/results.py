"""What was found on a set, ready to be told. Values alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssd_bench.personal.figures import Choice, Figures, Pair
from ssd_bench.stats import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A set's figures; parts that were not measured are empty.

    Attributes:
        name: of the set.
        documents: how many by part: train, validation, test, left out.
        minutes: of training.
        card: lambda and alpha that the device chose by itself.
        choice: of the suite, on the validation part.
        counts: what was measured, of what was asked: (measured, asked) by part.
        heldout, heldout_bytes: nats a token and a byte, see `figures.heldout`.
        cloze: see `figures.cloze`.
        answers: see `figures.answered`.
        p_values: McNemar's, by "cloze NAME" and "answers NAME".
        curve: by minute.
        examples: some questions: question, reference, and what systems said.
        kinds: hidden facts by kind: (measured, filled before, filled after).
    """

    name: str
    documents: Mapping[str, int]
    minutes: float
    card: Pair
    choice: Choice
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    heldout: Figures = field(default_factory=dict)
    heldout_bytes: Figures = field(default_factory=dict)
    cloze: Figures = field(default_factory=dict)
    answers: Figures = field(default_factory=dict)
    p_values: Mapping[str, float] = field(default_factory=dict)
    curve: Mapping[float, Figures] = field(default_factory=dict)
    examples: Sequence[Mapping[str, Any]] = ()
    kinds: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def beyond(self) -> Interval | None:
        """What the ensemble adds to its better member by diffusion, less by the twin; below 0 diffusion is better."""
        return self.heldout.get(f"diffusion - twin ensemble - {self.choice.better}")
