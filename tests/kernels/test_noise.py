"""Normals and Gumbels: the counter's layout, the lanes, the distribution, the backends."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from ssd_kernels.errors import InvalidInput
from ssd_kernels.noise import gumbels, gumbels_at, gumbels_f64, normals, normals_f64
from ssd_kernels.philox import philox4x32
from ssd_kernels.types import Purpose

KEY = 0x0123456789ABCDEF
NORMAL_ULPS = 4.0
KEYS = st.integers(0, 2**64 - 1)
POSITIONS = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4)


def pos(*numbers):
    return np.array(numbers, np.int32)


def test_one_value_by_hand():
    """Vocabulary index 6 at position 9, step 3, block 2: lane 2 of counter (1, 9, 3, purpose << 24 | 2)."""
    counter = np.array([1, 9, 3, (1 << 24) | 2], np.uint32)
    x = philox4x32(counter, (KEY & 0xFFFFFFFF, KEY >> 32), backend="numpy")
    u = [(int(w) + 0.5) / 2**32 for w in x]
    z = normals_f64(KEY, pos(9), step=3, block=2, vocab=8, purpose=Purpose.DRAW)[0]
    r0, r2 = math.sqrt(-2 * math.log(u[0])), math.sqrt(-2 * math.log(u[2]))
    t1, t3 = 2 * math.pi * u[1], 2 * math.pi * u[3]
    want = [r0 * math.cos(t1), r0 * math.sin(t1), r2 * math.cos(t3), r2 * math.sin(t3)]
    np.testing.assert_allclose(z[4:], want, rtol=1e-14)
    g = gumbels_f64(KEY, pos(9), step=3, block=2, vocab=8, purpose=Purpose.DRAW)[0]
    np.testing.assert_allclose(g[4:], [-math.log(-math.log(v)) for v in u], rtol=1e-12)


def ulps(got, want):
    return np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32))


@given(key=KEYS, positions=POSITIONS, step=st.integers(0, 2**32 - 1), vocab=st.integers(1, 41))
@settings(max_examples=60)
def test_shapes_and_reference(key, positions, step, vocab):
    args = dict(step=step, block=7, vocab=vocab)
    z, g = normals_f64(key, pos(*positions), **args), gumbels_f64(key, pos(*positions), **args)
    for backend, limit in (("numpy", 0.51), ("numba", NORMAL_ULPS)):
        got = normals(key, pos(*positions), backend=backend, **args)
        assert got.dtype == np.float32
        assert got.shape == (len(positions), vocab)
        assert ulps(got, z).max() <= limit
        np.testing.assert_allclose(gumbels(key, pos(*positions), backend=backend, **args), g, rtol=3e-7, atol=3e-7)


def test_normals_stay_within_the_stated_ulps():
    """A million and a half draws, the size of one pass."""
    args = dict(step=1, block=0, vocab=49_152)
    want = normals_f64(KEY, pos(*range(32)), **args)
    error = ulps(normals(KEY, pos(*range(32)), backend="numba", **args), want)
    assert error.max() <= NORMAL_ULPS


@pytest.mark.parametrize("word", [0, 1, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30, 2**32 - 2, 2**32 - 1])
@pytest.mark.parametrize("other", [0, 2**29 - 1, 2**29, 2**31 + 5, 3 * 2**29, 2**32 - 1])
def test_pair_at_the_edges(word, other):
    """Largest and smallest radius, and every quadrant's border."""
    from ssd_kernels import _numba_noise

    got = np.empty((2, 1), np.float32)
    _numba_noise.box_muller(np.array([word], np.uint32), np.array([other], np.uint32), got)
    u, t = (word + 0.5) / 2**32, 2 * math.pi * ((other + 0.5) / 2**32)
    radius = math.sqrt(-2 * (math.log(u) if word < 2**31 else math.log1p(-(2**32 - word - 0.5) / 2**32)))
    np.testing.assert_allclose(got[:, 0], [radius * math.cos(t), radius * math.sin(t)], rtol=6e-7, atol=1e-9)


def test_counter_words_all_matter():
    base = dict(step=1, block=1, vocab=16)
    first = normals(KEY, pos(5), **base)
    others = [
        normals(KEY + 1, pos(5), **base),
        normals(KEY ^ (1 << 63), pos(5), **base),
        normals(KEY, pos(6), **base),
        normals(KEY, pos(5), **{**base, "step": 2}),
        normals(KEY, pos(5), **{**base, "block": 2}),
        normals(KEY, pos(5), purpose=Purpose.TRAIN, **base),
    ]
    for other in others:
        assert np.abs(other - first).min() > 0


def test_a_row_does_not_depend_on_its_companions_or_on_v(backend):
    many = normals(KEY, pos(3, 4, 5), step=0, block=0, vocab=37, backend=backend)
    one = normals(KEY, pos(4), step=0, block=0, vocab=23, backend=backend)
    np.testing.assert_array_equal(many[1, :23], one[0])


def test_distribution(backend):
    z = normals(KEY, pos(*range(8)), step=0, block=0, vocab=20_001, backend=backend).ravel().astype(np.float64)
    n = len(z)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / n)
    assert stats.kstest(z, "norm").pvalue > 1e-3
    even = z[: n // 2 * 2].reshape(-1, 2)
    assert abs(np.corrcoef(even.T)[0, 1]) < 4 / math.sqrt(n / 2)
    g = gumbels(KEY, pos(*range(8)), step=0, block=0, vocab=20_001, backend=backend).ravel()
    assert stats.kstest(g, "gumbel_r").pvalue > 1e-3


def test_gumbels_at_equals_the_row():
    ids = np.array([0, 3, 4, 17, 40], np.int32)
    row = gumbels_f64(KEY, pos(11), step=2, block=3, vocab=41, purpose=Purpose.DRAW)[0]
    got = gumbels_at(KEY, ids, 11, step=2, block=3, purpose=Purpose.DRAW)
    np.testing.assert_array_equal(got, row[ids])


def test_runs_uncompiled(uncompiled):
    args = dict(step=2, block=1, vocab=13)
    assert (
        ulps(normals(KEY, pos(1, 2), backend="numba", **args), normals_f64(KEY, pos(1, 2), **args)).max() < NORMAL_ULPS
    )
    np.testing.assert_allclose(
        gumbels(KEY, pos(1, 2), backend="numba", **args), gumbels_f64(KEY, pos(1, 2), **args), rtol=3e-7, atol=3e-7
    )


def test_no_rows(backend):
    assert normals(KEY, pos(), step=0, block=0, vocab=5, backend=backend).shape == (0, 5)


@pytest.mark.parametrize(
    "change",
    [
        dict(positions=pos(-1)),
        dict(positions=np.array([0.5])),
        dict(positions=np.zeros((1, 1), np.int32)),
        dict(step=-1),
        dict(step=2**32),
        dict(block=2**24),
        dict(block=-1),
        dict(vocab=0),
        dict(noise_key=2**64),
    ],
)
def test_out_of_range(change, backend):
    args = {"noise_key": KEY, "positions": pos(0), "step": 0, "block": 0, "vocab": 4, **change}
    for function in (normals, gumbels):
        with pytest.raises(InvalidInput):
            function(args.pop("noise_key", KEY), args.pop("positions", pos(0)), backend=backend, **args)
        args = {"noise_key": KEY, "positions": pos(0), "step": 0, "block": 0, "vocab": 4, **change}
