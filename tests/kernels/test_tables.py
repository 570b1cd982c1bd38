"""Embedding by whole numbers: against float64, within its stated bound, and to the bit whatever runs beside it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_kernels import tables
from ssd_kernels.errors import InvalidInput
from ssd_kernels.simplex import renoise, renoise_embed, softmax_embed
from ssd_kernels.tables import HEAVY, LEVELS, Weights, WholeTable
from ssd_kernels.types import TokenSets


def bound(table: WholeTable) -> np.ndarray:
    """The module's bound on the error of every column."""
    return table.step * (0.5 + 127 * table.shape[0] / (2 * HEAVY * LEVELS))


def softmax(x):
    p = np.exp(x.astype(np.float64) - x.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@st.composite
def cases(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    vocab, hidden, rows = draw(st.integers(1, 700)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    table = (rng.normal(size=(vocab, hidden)) * rng.uniform(0.01, 9, hidden) + rng.normal(size=hidden)).astype(
        np.float32
    )
    if draw(st.booleans()):
        table[:, 0] = 0.0
    return table, (rng.normal(size=(rows, vocab)) * draw(st.sampled_from([0.0, 0.5, 3.0, 30.0]))).astype(np.float32)


@given(case=cases())
@settings(max_examples=60)
def test_softmax_embed_stays_within_the_bound(case):
    rows, logits = case
    table = WholeTable(rows)
    want = softmax(logits) @ rows.astype(np.float64)
    reference = softmax_embed(logits, table, backend="numpy")
    got = softmax_embed(logits, table, backend="numba")
    for found in (reference, got):
        assert (np.abs(found - want) <= bound(table) + 1e-5 * np.abs(rows).max()).all()
    np.testing.assert_allclose(got, reference, atol=float(np.abs(rows).max()) * 4e-3)


def test_noise_cancels_what_single_tokens_lose():
    """At the size of a real pass the error is a hundredth at most of what the noise itself makes of the embedding."""
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=(49_152, 24)) + rng.normal(size=24)).astype(np.float32)
    w_hat, table = TokenSets.single(np.arange(4, dtype=np.int32)), WholeTable(rows)
    for alpha_bar in (0.0, 0.345, 0.5, 0.79, 0.905):
        args = dict(noise_key=9, positions=np.arange(4, dtype=np.int32), step=2, block=1)
        shares = np.full(4, alpha_bar, np.float32)
        want = renoise_embed(w_hat, shares, rows, backend="numpy", **args)
        got = renoise_embed(w_hat, shares, table, backend="numba", **args)
        assert np.sqrt(((got - want) ** 2).mean()) < 1.2e-2 * np.sqrt(((want - rows.mean(axis=0)) ** 2).mean())


def test_renoise_embed_is_renoise_then_embed(backend):
    rng = np.random.default_rng(2)
    b, vocab = 19, 101
    table = WholeTable(rng.normal(size=(vocab, 8)).astype(np.float32))
    w_hat = TokenSets.of([[i, i + 1] if i % 3 else [] for i in range(b)])
    alpha_bar = rng.uniform(0, 1, b).astype(np.float32)
    args = dict(noise_key=77, positions=np.arange(40, 40 + b, dtype=np.int32), step=4, block=2)
    x_t = renoise(w_hat, alpha_bar, vocab=vocab, backend=backend, **args)
    got = renoise_embed(w_hat, alpha_bar, table, backend=backend, **args)
    np.testing.assert_allclose(got, softmax_embed(x_t, table, backend=backend), atol=2e-3)


def test_bits_do_not_depend_on_companions_or_threads(monkeypatch):
    rng = np.random.default_rng(1)
    logits, table = (
        rng.normal(size=(21, 1021)).astype(np.float32) * 3,
        WholeTable(rng.normal(size=(1021, 24)).astype(np.float32)),
    )
    together = softmax_embed(logits, table, backend="numba")
    for threads in ("1", "3", "40"):
        monkeypatch.setenv("SSD_KERNELS_THREADS", threads)
        np.testing.assert_array_equal(softmax_embed(logits, table, backend="numba"), together)
        for i in (0, 7, 20):
            np.testing.assert_array_equal(softmax_embed(logits[i : i + 1], table, backend="numba")[0], together[i])
    for wrong in ("0", "-1", "many", ""):
        monkeypatch.setenv("SSD_KERNELS_THREADS", wrong)
        with pytest.raises(InvalidInput, match="SSD_KERNELS_THREADS"):
            softmax_embed(logits, table, backend="numba")


def test_the_product_is_exact(monkeypatch):
    """The largest bytes in every place, a vocabulary of several products, and the judge in float64."""
    monkeypatch.setattr(tables, "_PART", 1000)
    rng = np.random.default_rng(4)
    table, worst = (WholeTable(rng.normal(size=(2500, 7)).astype(np.float32)) for _ in range(2))
    weights = Weights.of(softmax(rng.normal(size=(3, 2500)).astype(np.float32)))
    np.testing.assert_array_equal(table.embed(weights), table.embed(weights, exact=True))
    weights.whole[:] = 255
    worst.whole[:] = -127
    np.testing.assert_array_equal(worst.embed(weights), worst.embed(weights, exact=True))
    np.testing.assert_array_equal(table.embed(weights), table.embed(weights, exact=True))


def test_the_largest_sums_fit():
    table = WholeTable(np.ones((tables._PART, 2), np.float32))
    table.whole[:] = 127
    weights = Weights.of(np.ones((1, tables._PART)))
    weights.whole[:] = 255
    np.testing.assert_array_equal(table.embed(weights), table.embed(weights, exact=True))
    assert 255 * 127 * tables._PART < 2**31


def test_heavy_tokens_are_exact():
    rows = np.random.default_rng(5).normal(size=(400, 6)).astype(np.float32)
    logits = np.full((2, 400), -30.0, np.float32)
    logits[0, 7] = 10.0
    logits[1, 100 : 100 + HEAVY - 1] = 10.0
    for backend in ("numpy", "numba"):
        got = softmax_embed(logits, WholeTable(rows), backend=backend)
        np.testing.assert_allclose(got[0], rows[7], rtol=1e-6)
        np.testing.assert_allclose(got[1], rows[100 : 100 + HEAVY - 1].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_a_row_without_sense_stays_visible():
    logits = np.zeros((2, 50), np.float32)
    logits[0, 3] = np.nan
    got = softmax_embed(logits, WholeTable(np.eye(50, 4, dtype=np.float32)), backend="numba")
    assert np.isnan(got[0]).all()
    assert np.isfinite(got[1]).all()


def test_runs_uncompiled(uncompiled):
    args = dict(noise_key=1, positions=np.arange(2, dtype=np.int32), step=1, block=0)
    w_hat, alpha_bar = TokenSets.of([[3], [1, 5]]), np.array([0.25, 0.5], np.float32)
    table = WholeTable(np.eye(9, dtype=np.float32))
    want = renoise_embed(w_hat, alpha_bar, table, backend="numpy", **args)
    np.testing.assert_allclose(renoise_embed(w_hat, alpha_bar, table, backend="numba", **args), want, atol=1e-4)
    logits = np.random.default_rng(0).normal(size=(3, 9)).astype(np.float32)
    want = softmax_embed(logits, table, backend="numpy")
    np.testing.assert_allclose(softmax_embed(logits, table, backend="numba"), want, atol=1e-4)


@pytest.mark.parametrize("rows", [np.zeros(3, np.float32), np.zeros((0, 4), np.float32)])
def test_no_matrix(rows):
    with pytest.raises(InvalidInput, match="shape"):
        WholeTable(rows)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(value):
    rows = np.ones((3, 2), np.float32)
    rows[1, 1] = value
    with pytest.raises(InvalidInput, match="not finite"):
        WholeTable(rows)


def test_wrong_height(backend):
    with pytest.raises(InvalidInput, match="table"):
        softmax_embed(np.zeros((1, 4), np.float32), WholeTable(np.ones((5, 2), np.float32)), backend=backend)
