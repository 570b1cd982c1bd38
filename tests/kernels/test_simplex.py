"""Renoise and embed against float64 loops written from the equations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_kernels.errors import InvalidInput
from ssd_kernels.noise import normals_f64
from ssd_kernels.simplex import ROW_BLOCK, renoise, renoise_embed, renoise_f64, softmax_embed
from ssd_kernels.types import TokenSets


def slow_renoise(rows, alpha_bar, key, positions, step, block, vocab, k):
    """x_t value by value."""
    x = np.zeros((len(rows), vocab))
    for b, ids in enumerate(rows):
        z = normals_f64(key, np.array([positions[b]], np.int32), step=step, block=block, vocab=vocab)[0]
        for v in range(vocab):
            w = k if v in ids else -k
            x[b, v] = math.sqrt(alpha_bar[b]) * w + math.sqrt(1 - alpha_bar[b]) * k * z[v]
    return x


@st.composite
def states(draw):
    vocab = draw(st.integers(1, 30))
    b = draw(st.integers(1, 5))
    rows = [sorted(draw(st.sets(st.integers(0, vocab - 1), max_size=4))) for _ in range(b)]
    alpha_bar = np.array([draw(st.floats(0, 1, width=32)) for _ in range(b)], np.float32)
    positions = np.array([draw(st.integers(0, 2**20)) for _ in range(b)], np.int32)
    return vocab, rows, alpha_bar, positions


@given(state=states(), key=st.integers(0, 2**64 - 1), step=st.integers(0, 50), k=st.sampled_from([5.0, 1.5]))
@settings(max_examples=60)
def test_renoise_is_the_equation(state, key, step, k):
    vocab, rows, alpha_bar, positions = state
    args = dict(noise_key=key, positions=positions, step=step, block=1, vocab=vocab, k=k)
    want = slow_renoise(rows, alpha_bar.astype(float), key, positions, step, 1, vocab, k)
    np.testing.assert_allclose(renoise_f64(TokenSets.of(rows), alpha_bar, **args), want, rtol=1e-12, atol=1e-12)
    for backend in ("numpy", "numba"):
        got = renoise(TokenSets.of(rows), alpha_bar, backend=backend, **args)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-5)


def test_renoise_ends(backend):
    """alpha_bar 1 is the clean simplex; alpha_bar 0 is K times the noise, whatever the estimate."""
    args = dict(noise_key=9, positions=np.arange(2, dtype=np.int32), step=0, block=0, vocab=7, backend=backend)
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    clean = renoise(TokenSets.of([[2], [0, 6]]), ones, **args)
    np.testing.assert_array_equal(clean, [[-5, -5, 5, -5, -5, -5, -5], [5, -5, -5, -5, -5, -5, 5]])
    np.testing.assert_array_equal(
        renoise(TokenSets.of([[2], [0]]), zeros, **args), renoise(TokenSets.empty(2), zeros, **args)
    )


def slow_embed(x, table):
    p = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return (p / p.sum(axis=1, keepdims=True)) @ table.astype(np.float64)


@pytest.mark.parametrize("b", [1, 3, ROW_BLOCK, ROW_BLOCK + 1])
def test_softmax_embed(b, backend):
    rng = np.random.default_rng(b)
    x, table = rng.normal(size=(b, 259)).astype(np.float32) * 5, rng.normal(size=(259, 16)).astype(np.float32)
    np.testing.assert_allclose(softmax_embed(x, table, backend=backend), slow_embed(x, table), rtol=1e-5, atol=1e-5)


def test_embedding_bits_do_not_depend_on_companions(backend):
    rng = np.random.default_rng(1)
    x, table = rng.normal(size=(ROW_BLOCK + 5, 1021)).astype(np.float32), rng.normal(size=(1021, 24)).astype(np.float32)
    together = softmax_embed(x, table, backend=backend)
    for i in range(len(x)):
        others = rng.normal(size=x.shape).astype(np.float32)
        others[i] = x[i]
        np.testing.assert_array_equal(together[i], softmax_embed(others, table, backend=backend)[i])
        np.testing.assert_array_equal(together[i], softmax_embed(x[: i + 1], table, backend=backend)[i])


def test_renoise_embed_is_renoise_then_embed(backend):
    rng = np.random.default_rng(2)
    b, vocab = ROW_BLOCK + 3, 101
    table = rng.normal(size=(vocab, 8)).astype(np.float32)
    w_hat = TokenSets.of([[i, i + 1] if i % 3 else [] for i in range(b)])
    alpha_bar = rng.uniform(0, 1, b).astype(np.float32)
    args = dict(noise_key=77, positions=np.arange(40, 40 + b, dtype=np.int32), step=4, block=2)
    x_t = renoise(w_hat, alpha_bar, vocab=vocab, backend=backend, **args)
    got = renoise_embed(w_hat, alpha_bar, table, backend=backend, **args)
    np.testing.assert_array_equal(got, softmax_embed(x_t, table, backend=backend))
    np.testing.assert_allclose(got, slow_embed(x_t, table), rtol=1e-5, atol=1e-5)


def test_runs_uncompiled(uncompiled):
    args = dict(noise_key=1, positions=np.arange(2, dtype=np.int32), step=1, block=0)
    w_hat, alpha_bar = TokenSets.of([[3], [1, 5]]), np.array([0.25, 0.5], np.float32)
    table = np.eye(9, dtype=np.float32)
    np.testing.assert_allclose(
        renoise_embed(w_hat, alpha_bar, table, backend="numba", **args),
        renoise_embed(w_hat, alpha_bar, table, backend="numpy", **args),
        rtol=1e-5,
    )


@pytest.mark.parametrize(
    "change",
    [
        dict(alpha_bar=np.array([1.5], np.float32)),
        dict(alpha_bar=np.array([np.nan], np.float32)),
        dict(alpha_bar=np.zeros(2, np.float32)),
        dict(positions=np.zeros(2, np.int32)),
        dict(w_hat=TokenSets.of([[8]])),
        dict(w_hat=TokenSets.of([[-1]])),
        dict(k=0.0),
        dict(k=math.inf),
    ],
)
def test_bad_state(change, backend):
    args = {
        "w_hat": TokenSets.of([[1]]),
        "alpha_bar": np.zeros(1, np.float32),
        "noise_key": 1,
        "positions": np.zeros(1, np.int32),
        "step": 0,
        "block": 0,
        "vocab": 8,
        "k": 5.0,
        **change,
    }
    with pytest.raises(InvalidInput):
        renoise(args.pop("w_hat"), args.pop("alpha_bar"), backend=backend, **args)


def test_table_of_wrong_height(backend):
    with pytest.raises(InvalidInput, match="table"):
        softmax_embed(np.zeros((1, 4), np.float32), np.zeros((5, 2), np.float32), backend=backend)
