"""From texts and judgements to figures with intervals, and perplexity at equal diversity.

Perplexity falls when a text repeats itself or a temperature is lowered, so it never stands alone here: diversity is
beside it, and `matched` compares a setting with another decoder at the temperature where that is as diverse. Knows
arrays and records; nothing about models or files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from ssd_kernels.types import F32, F64, I64

from ssd_bench.quality.mauve import LEAST_TEXTS, quantise
from ssd_bench.stats import RESAMPLES, Interval, bootstrap, jackknife, paired_bootstrap
from ssd_bench.text import distinct_n, repeated_n, unigram_entropy, zipf_coefficient

Figures: TypeAlias = dict[str, Interval]
Corpus: TypeAlias = Callable[["Sample", I64], float]
LEAST = 2
"""Texts that an interval needs."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """The texts of one setting, prompt by prompt.

    Attributes:
        name: the setting's.
        prompts: ids of the prompts. [n]
        texts: ids of the tokens. [n][tokens]
        passes: forward passes of each text; zero for human text. [n]
        nats: each text's cost by judge. [n]
        vectors: unit vectors of the texts, or None without an encoder. [n, D]
    """

    name: str
    prompts: Sequence[str]
    texts: Sequence[Sequence[int]]
    passes: F64
    nats: Mapping[str, F64]
    vectors: F32 | None = field(default=None)

    @property
    def tokens(self) -> F64:
        """Tokens of each text. [n]"""
        return np.array([float(len(text)) for text in self.texts])

    def of(self, prompts: Sequence[str]) -> Sample:
        """The texts of these prompts alone, in their order."""
        rows = [self.prompts.index(prompt) for prompt in prompts]
        return replace(
            self, prompts=list(prompts), texts=[self.texts[i] for i in rows], passes=self.passes[rows],
            nats={judge: nats[rows] for judge, nats in self.nats.items()},
            vectors=None if self.vectors is None else self.vectors[rows],
        )  # fmt: skip


def _entropy(sample: Sample, rows: I64) -> float:
    return unigram_entropy([sample.texts[i] for i in rows])


def _distinct(n: int) -> Corpus:
    return lambda sample, rows: distinct_n([sample.texts[i] for i in rows], n)


def _zipf(sample: Sample, rows: I64) -> float:
    return zipf_coefficient([sample.texts[i] for i in rows])


CORPUS: dict[str, Corpus] = {
    "entropy": _entropy, "distinct-1": _distinct(1), "distinct-2": _distinct(2), "distinct-3": _distinct(3),
    "zipf": _zipf,
}  # fmt: skip
MATCHED = ("entropy", "distinct-2")


def figures(sample: Sample, human: Sample, *, resamples: int = RESAMPLES) -> Figures:
    """Everything about one sample; `human` are the true continuations of at least the same prompts."""
    found = {
        f"perplexity {judge}": _exp(bootstrap(nats, sample.tokens, resamples=resamples))
        for judge, nats in sample.nats.items()
    }
    found["repeated-4"] = bootstrap([repeated_n(text, 4) for text in sample.texts], resamples=resamples)
    if sample.passes.all():
        found["tokens a pass"] = bootstrap(sample.tokens, sample.passes, resamples=resamples)
    if len(sample.texts) < LEAST:
        return found
    for name, statistic in CORPUS.items():
        found[name] = jackknife(partial(statistic, sample), len(sample.texts))
        if name.startswith("distinct"):
            found[name] = _share(found[name])
    true = human.of(sample.prompts)
    if sample.vectors is not None and true.vectors is not None and len(sample.texts) >= LEAST_TEXTS:
        sets = quantise(true.vectors, sample.vectors)
        found["mauve"] = _share(jackknife(sets.score, len(sample.texts)))
    return found


def ratio(sample: Sample, other: Sample, judge: str, *, resamples: int = RESAMPLES) -> Interval:
    """Perplexity of a sample over that of another on the sample's prompts, paired."""
    against = other.of(sample.prompts)
    a, b = sample.nats[judge] / sample.tokens, against.nats[judge] / against.tokens
    return _exp(paired_bootstrap(a, b, resamples=resamples))


def difference(sample: Sample, other: Sample, measure: str) -> Interval | None:
    """A figure of diversity of a sample less that of another on the sample's prompts; None for a single text."""
    if len(sample.texts) < LEAST:
        return None
    against, statistic = other.of(sample.prompts), CORPUS[measure]
    return jackknife(lambda rows: statistic(sample, rows) - statistic(against, rows), len(sample.texts))


def matched(sample: Sample, curve: Sequence[Sample], judge: str, measure: str) -> Interval | None:
    """Perplexity of a sample over that of a curve's decoder where that is as diverse, on the same prompts.

    The log-perplexity of the curve is read between two neighbouring temperatures by straight lines. The interval is the
    jackknife's over prompts, both sides together.

    Returns:
        None where the curve is never as diverse, or the sample is a single text.
    """
    against = [one.of(sample.prompts) for one in curve]
    statistic = CORPUS[measure]
    every = np.arange(len(sample.texts))
    reached = [statistic(one, every) for one in against]
    here = statistic(sample, every)
    if len(every) < LEAST or not min(reached) <= here <= max(reached):
        return None

    def log_ratio(rows: I64) -> float:
        points = sorted((statistic(one, rows), _log_perplexity(one, judge, rows)) for one in against)
        return _log_perplexity(sample, judge, rows) - on_line(points, statistic(sample, rows))

    return _exp(jackknife(log_ratio, len(every)))


def on_line(points: Sequence[tuple[float, float]], x: float) -> float:
    """y at x on straight lines through points of rising x; beyond the ends the last line goes on."""
    (x0, y0), (x1, y1) = next((pair for pair in pairwise(points) if x <= pair[1][0]), (points[-2], points[-1]))
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else (y0 + y1) / 2


def _log_perplexity(sample: Sample, judge: str, rows: I64) -> float:
    return float(sample.nats[judge][rows].sum() / sample.tokens[rows].sum())


def _share(value: Interval) -> Interval:
    """An interval of what lies between 0 and 1."""
    return replace(value, low=max(value.low, 0.0), high=min(value.high, 1.0))


def _exp(nats: Interval) -> Interval:
    return Interval(math.exp(nats.value), math.exp(nats.low), math.exp(nats.high), nats.n)
