"""The elementary functions of compiled loops against extended precision, within the ulps that they state."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_kernels._jit import kernel
from ssd_kernels._numba_math import exp32, exp64, minus_log, turn

WORD = st.integers(0, 2**32 - 1)
EDGES = [
    0,
    1,
    2**24,
    2**29 - 1,
    2**29,
    2**30,
    2**31 - 1,
    2**31,
    0xB504F333,
    0xB504F334,
    3 * 2**30 - 1,
    2**32 - 2,
    2**32 - 1,
]
PI = np.longdouble("3.14159265358979323846264338327950288")


@kernel
def _logs(words, out):
    for i in range(words.shape[0]):
        out[i] = minus_log(words[i])


@kernel
def _turns(words, out):
    for i in range(words.shape[0]):
        out[0, i], out[1, i] = turn(words[i])


@kernel
def _exps(x, out):
    for i in range(x.shape[0]):
        out[i] = exp32(x[i])


@kernel
def _exps64(x, out):
    for i in range(x.shape[0]):
        out[i] = exp64(x[i])


def ulps(got, want):
    return float((np.abs(got - want) / np.spacing(np.abs(want).astype(got.dtype))).max())


def units(words):
    return (words.astype(np.longdouble) + np.longdouble(0.5)) / np.longdouble(2**32)


def check_words(words):
    words = np.asarray(words, np.uint32)
    logs, turns = np.empty(len(words), np.float32), np.empty((2, len(words)), np.float32)
    _logs(words, logs)
    _turns(words, turns)
    angle = 2 * PI * units(words)
    assert ulps(logs, -np.log(units(words))) <= 2.5
    assert ulps(turns, np.stack([np.cos(angle), np.sin(angle)])) <= 2.0


@given(words=st.lists(WORD, min_size=1, max_size=40))
@settings(max_examples=100)
def test_words(words):
    check_words(words)


@pytest.mark.parametrize("edge", EDGES)
def test_words_about_edges(edge):
    near = np.arange(edge - 2000, edge + 2000)
    check_words(near[(near >= 0) & (near < 2**32)])


def test_many_words():
    check_words(np.random.default_rng(0).integers(0, 2**32, 2_000_000, dtype=np.uint64).astype(np.uint32))


def test_exponentials():
    rng = np.random.default_rng(1)
    x = np.concatenate([-87 * rng.random(500_000), -rng.random(500_000), [0.0, -0.0, -87.0]]).astype(np.float32)
    out = np.empty_like(x)
    _exps(x, out)
    assert ulps(out, np.exp(x.astype(np.float64))) <= 2.0
    x = np.concatenate([-708 * rng.random(500_000), -rng.random(500_000), [0.0, -0.0, -708.0]])
    out = np.empty_like(x)
    _exps64(x, out)
    assert ulps(out, np.exp(x.astype(np.longdouble))) <= 2.0


def test_far_and_absent_exponents():
    out = np.empty(3, np.float32)
    _exps(np.array([-1e30, -np.inf, np.nan], np.float32), out)
    assert 0 < out[0] == out[1] < 1e-37
    assert np.isnan(out[2])
    far = np.empty(3)
    _exps64(np.array([-1e30, -np.inf, np.nan]), far)
    assert 0 < far[0] == far[1] < 1e-300
    assert np.isnan(far[2])
