"""Intervals against known values and against their own coverage."""

from __future__ import annotations

import numpy as np
import pytest
from ssd_bench.stats import bootstrap, mcnemar, paired_bootstrap, wilson


def test_wilson_known_values():
    """Values of Newcombe (1998), table I, method 3, and the textbook 0 of 10."""
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        got = wilson(successes, n)
        assert (got.low, got.high) == pytest.approx((low, high), abs=6e-5)
    assert wilson(20, 20).high == 1.0
    with pytest.raises(ValueError):
        wilson(3, 2)


def test_bootstrap_of_a_mean_matches_the_normal_interval():
    x = np.random.default_rng(0).normal(2.0, 3.0, 400)
    got = bootstrap(x)
    half = 1.96 * x.std() / 20
    assert got.value == pytest.approx(x.mean())
    assert (got.low, got.high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.06)
    assert bootstrap(x) == got  # the seed is fixed
    assert bootstrap(x, seed=1) != got


def test_bootstrap_by_brute_force():
    """Three units: the 27 equally likely resamples give the exact distribution of the weighted mean."""
    x, w = np.array([1.0, 4.0, 9.0]), np.array([1.0, 2.0, 2.0])
    exact = sorted((x[[i, j, k]].sum() / w[[i, j, k]].sum()) for i in range(3) for j in range(3) for k in range(3))
    got = bootstrap(x, w, resamples=20_000, level=0.8)
    assert got.value == pytest.approx(14 / 5)
    assert (got.low, got.high) == pytest.approx(np.quantile(exact, [0.1, 0.9], method="inverted_cdf"))


def test_coverage_is_about_its_level():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        a, b = rng.normal(0.3, 1.0, 60), rng.normal(0.0, 1.0, 60)
        got = paired_bootstrap(a, b, resamples=400)
        held += got.low <= 0.3 <= got.high
    assert 0.89 <= held / 200 <= 0.99


def test_pairing_takes_out_what_units_share():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 10, 100)
    a, b = hard + 0.5 + rng.normal(0, 0.1, 100), hard + rng.normal(0, 0.1, 100)
    assert paired_bootstrap(a, b).clear_of_zero
    assert not paired_bootstrap(a, rng.permutation(b)).clear_of_zero


def test_bad_input():
    for call in (lambda: bootstrap([]), lambda: bootstrap([1.0], [0.0]), lambda: paired_bootstrap([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError):
            call()


def test_mcnemar_counts_the_pairs_that_differ():
    ours = [True] * 8 + [False] + [True] * 5 + [False] * 5
    theirs = [False] * 8 + [True] + [True] * 5 + [False] * 5
    assert mcnemar(ours, theirs) == pytest.approx(2 * (1 + 9) / 2**9)
    assert mcnemar(theirs, ours) == mcnemar(ours, theirs)
    assert mcnemar(ours, ours) == 1.0
    with pytest.raises(ValueError, match="shorter"):
        mcnemar(ours, theirs[:-1])
