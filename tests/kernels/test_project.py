"""Projections: the nucleus by its definition, draws by their frequencies, ties, and equal sets on every backend."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ssd_kernels.combine import log_softmax
from ssd_kernels.errors import InvalidInput
from ssd_kernels.noise import gumbels_f64
from ssd_kernels.project import greedy, multi_hot, nucleus_mask, sample
from ssd_kernels.types import Purpose

SMOOTH = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.floats(-30, 5, width=32))
TIED = hnp.arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.integers(-3, 2)).map(
    lambda a: a.astype(np.float32)
)
KEY = 424242


def pos(b):
    return np.arange(b, dtype=np.int32)


def slow_nucleus(row, top_p, temperature):
    """The definition in float64, and how close the sum came to the limit."""
    x = row.astype(np.float64) / temperature
    p = np.exp(x - x.max())
    p /= p.sum()
    inside, before, margin = set(), 0.0, 1.0
    for i in sorted(range(len(row)), key=lambda i: (-row[i], i)):
        margin = min(margin, abs(before - top_p))
        if before < top_p:
            inside.add(i)
        before += p[i]
    return inside, margin


@given(rows=st.one_of(SMOOTH, TIED), top_p=st.floats(0.01, 0.999), temperature=st.sampled_from([0.3, 1.0, 2.5]))
@settings(max_examples=150)
def test_nucleus_by_definition_and_equal_on_backends(rows, top_p, temperature):
    masks = [nucleus_mask(rows, top_p, temperature=temperature, backend=b) for b in ("numpy", "numba")]
    np.testing.assert_array_equal(*masks)
    assert masks[0].any(axis=1).all()
    for row, mask in zip(rows, masks[0], strict=True):
        inside, margin = slow_nucleus(row, top_p, temperature)
        if margin > 1e-9:
            assert set(np.flatnonzero(mask)) == inside


@pytest.mark.parametrize("vocab", [1021, 49_152])
@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 4.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_nucleus_equal_on_backends_at_size(vocab, scale, top_p):
    rows = (np.random.default_rng(3).normal(size=(2, vocab)) * scale).astype(np.float32)
    a, b = (nucleus_mask(rows, top_p, backend=name) for name in ("numpy", "numba"))
    np.testing.assert_array_equal(a, b)


def test_nucleus_of_ties_takes_the_lower_ids(backend):
    mask = nucleus_mask(np.zeros((1, 10), np.float32), 0.5, backend=backend)
    assert np.flatnonzero(mask[0]).tolist() == [0, 1, 2, 3, 4]
    mask = nucleus_mask(np.array([[-1.0, 0.0, -0.0, -1.0]], np.float32), 0.6, backend=backend)
    assert np.flatnonzero(mask[0]).tolist() == [1, 2]


def test_whole_mass_keeps_all_but_the_impossible(backend):
    rows = np.array([[0.0, -np.inf, -80.0, -1.0]], np.float32)
    assert nucleus_mask(rows, 1.0, backend=backend).tolist() == [[True, False, True, True]]
    assert nucleus_mask(rows, 0.9999, backend=backend).tolist() == [[True, False, False, True]]


def test_nucleus_is_never_empty(backend):
    mask = nucleus_mask(np.array([[0.0, 5.0, 1.0]], np.float32), 1e-9, backend=backend)
    assert mask.tolist() == [[False, True, False]]


def test_greedy_and_multi_hot(backend):
    rows = np.array([[1.0, 3.0, 3.0], [2.0, 0.0, 1.9]], np.float32)
    assert greedy(rows, backend=backend).rows() == [[1], [0]]
    assert multi_hot(rows, top_p=0.6, backend=backend).rows() == [[1, 2], [0, 2]]
    assert multi_hot(rows, top_p=0.6, temperature=0.1, backend=backend).rows() == [[1, 2], [0]]
    assert multi_hot(rows, top_p=0.6, temperature=0.0, backend=backend).rows() == [[1], [0]]


def test_sample_is_gumbel_max_over_the_nucleus(backend):
    rng = np.random.default_rng(5)
    rows = log_softmax(rng.normal(size=(6, 301)).astype(np.float32) * 2)
    got = sample(rows, top_p=0.8, temperature=0.7, draw_key=KEY, positions=pos(6), step=9, block=3, backend=backend)
    g = gumbels_f64(KEY, pos(6), step=9, block=3, vocab=301, purpose=Purpose.DRAW)
    scores = np.where(nucleus_mask(rows, 0.8, temperature=0.7), rows.astype(np.float64) / 0.7 + g, -np.inf)
    assert got.ids.tolist() == scores.argmax(axis=1).tolist()
    other = sample(
        rows, top_p=0.8, temperature=0.7, draw_key=KEY, positions=pos(6), step=9, block=3, purpose=Purpose.CORE_DRAW
    )
    assert other.ids.tolist() != got.ids.tolist()


@given(
    rows=st.one_of(SMOOTH, TIED), top_p=st.floats(0.01, 1.0), temperature=st.sampled_from([0.1, 0.7, 2.5]),
    key=st.integers(0, 2**64 - 1), step=st.integers(0, 2**32 - 1),
)  # fmt: skip
@settings(max_examples=100)
def test_draws_equal_on_backends(rows, top_p, temperature, key, step):
    args = dict(top_p=top_p, temperature=temperature, draw_key=key, positions=pos(len(rows)), step=step, block=5)
    a, b = (sample(rows, backend=name, **args) for name in ("numpy", "numba"))
    assert a.ids.tolist() == b.ids.tolist()


@pytest.mark.parametrize("scale", [0.5, 2.5, 5.0])
def test_draws_equal_on_backends_at_size(scale):
    rows = log_softmax((np.random.default_rng(2).normal(size=(8, 49_152)) * scale).astype(np.float32))
    args = dict(top_p=0.95, temperature=0.8, draw_key=KEY, positions=pos(8), block=1)
    for step in range(5):
        a, b = (sample(rows, step=step, backend=name, **args) for name in ("numpy", "numba"))
        assert a.ids.tolist() == b.ids.tolist()


def test_draws_follow_the_probabilities(backend):
    """4,000 draws of one row: chi-square against the renormalised nucleus."""
    n, temperature = 4000, 1.3
    logp = log_softmax(np.array([[2.0, 1.0, 0.5, 0.0, -1.0, -9.0]], np.float32))
    rows = np.repeat(logp, n, axis=0)
    args = dict(top_p=0.95, temperature=temperature, draw_key=KEY, positions=pos(n), step=0, block=0)
    ids = sample(rows, backend=backend, **args).ids
    p = np.where(nucleus_mask(logp, 0.95, temperature=temperature)[0], np.exp(logp[0].astype(float) / temperature), 0)
    p /= p.sum()
    count = np.bincount(ids, minlength=6)
    assert count[p == 0].sum() == 0
    keep = p > 0
    chi2 = ((count[keep] - n * p[keep]) ** 2 / (n * p[keep])).sum()
    assert chi2 < 20  # 99.9% point of 4 degrees of freedom is 18.5


def test_draw_survives_small_differences():
    """Rows that differ by 1e-6, as between two backends, draw the same tokens."""
    rng = np.random.default_rng(8)
    rows = log_softmax((rng.normal(size=(64, 2003)) * 2).astype(np.float32))
    near = rows + rng.normal(size=rows.shape).astype(np.float32) * 1e-6
    args = dict(top_p=0.9, temperature=1.0, draw_key=KEY, positions=pos(64), block=0)
    for step in range(4):
        assert sample(rows, step=step, **args).same(sample(near, step=step, **args))


def test_a_draw_does_not_depend_on_companions(backend):
    rows = log_softmax(np.random.default_rng(9).normal(size=(5, 77)).astype(np.float32))
    args = dict(top_p=0.9, temperature=1.0, draw_key=KEY, step=2, block=0, backend=backend)
    together = sample(rows, positions=pos(5), **args).ids
    assert together[3] == sample(rows[3:4], positions=pos(5)[3:4], **args).ids[0]


def test_temperature_zero_is_greedy(backend):
    rows = np.array([[0.0, 2.0, 2.0]], np.float32)
    got = sample(rows, top_p=0.9, temperature=0.0, draw_key=KEY, positions=pos(1), step=0, block=0, backend=backend)
    assert got.rows() == [[1]]


@pytest.mark.parametrize("bad", [[np.nan, 0.0], [np.inf, 0.0], [-np.inf, -np.inf]])
def test_rows_that_say_nothing(bad, backend):
    rows = np.array([[0.0, 0.0], bad], np.float32)
    draw = dict(draw_key=KEY, positions=pos(2), step=0, block=0, backend=backend)
    calls = [
        lambda: greedy(rows, backend=backend),
        lambda: multi_hot(rows, top_p=0.9, backend=backend),
        lambda: nucleus_mask(rows, 0.9, backend=backend),
        lambda: sample(rows, top_p=0.9, temperature=1.0, **draw),
        lambda: sample(rows, top_p=0.9, temperature=0.0, **draw),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="Row 1 of the log-probabilities"):
            call()


@pytest.mark.parametrize(
    "change",
    [
        dict(top_p=0.0),
        dict(top_p=np.nan),
        dict(temperature=-1.0),
        dict(temperature=np.nan),
        dict(positions=pos(2)),
        dict(draw_key=-1),
        dict(block=1 << 24),
        dict(logp=np.zeros(3, np.float32)),
        dict(logp=np.zeros((1, 0), np.float32)),
    ],
)
def test_settings_out_of_range(change):
    args = {
        "logp": np.zeros((1, 3), np.float32),
        "top_p": 0.9,
        "temperature": 1.0,
        "draw_key": KEY,
        "positions": pos(1),
        "step": 0,
        "block": 0,
        **change,
    }
    with pytest.raises(InvalidInput):
        sample(args.pop("logp"), **args)


def test_nucleus_refuses_temperature_zero():
    with pytest.raises(InvalidInput, match="greedy"):
        nucleus_mask(np.zeros((1, 3), np.float32), 0.9, temperature=0.0)


def test_runs_uncompiled(uncompiled):
    rows = (np.random.default_rng(1).normal(size=(3, 60)) * 2).astype(np.float32)
    for top_p in (0.2, 0.9):
        np.testing.assert_array_equal(
            nucleus_mask(rows, top_p, backend="numba"), nucleus_mask(rows, top_p, backend="numpy")
        )
