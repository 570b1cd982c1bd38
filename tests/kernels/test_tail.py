"""The compiled tail and bound against the plain ones, on rows as a codec leaves them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_kernels.codec import CodecSpec, decode_full, encode
from ssd_kernels.tail import reshape_tail, total_variation_bound


@st.composite
def received(draw):
    """Rows through the codec, and the rows of two local members for the same positions."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows, vocab = draw(st.integers(1, 4)), draw(st.integers(2, 900))
    spread = draw(st.sampled_from([0.1, 2.0, 8.0]))
    core, private, public = ((rng.normal(size=(rows, vocab)) * spread).astype(np.float32) for _ in range(3))
    if draw(st.booleans()):
        private[0, rng.integers(vocab, size=vocab // 2)] = -np.inf
    if draw(st.booleans()):
        public[0, rng.integers(vocab)] = -np.inf
    spec = CodecSpec(kind="top-k", k=draw(st.integers(1, vocab)), residual=draw(st.sampled_from([0.0, 1e-4, 0.2])))
    return decode_full(encode(core, spec), rows=rows, vocab=vocab, spec=spec), private, public


@given(case=received(), shared=st.booleans())
@settings(max_examples=80)
def test_tail_equal_on_backends(case, shared):
    seen, private, _ = case
    if np.isneginf(private).all(axis=1).any():
        return
    tail = np.linspace(-9, -1, private.shape[1], dtype=np.float32) if shared else None
    a, b = (reshape_tail(seen, private, tail_logp=tail, backend=name) for name in ("numpy", "numba"))
    np.testing.assert_allclose(a.logp, b.logp, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(b.logp[seen.head], seen.logp[seen.head])


@given(case=received(), lam=st.sampled_from([0.0, 0.1, 0.7, 1.0]), alpha=st.sampled_from([0.0, 0.5, 2.0]))
@settings(max_examples=80)
def test_bound_equal_on_backends(case, lam, alpha):
    seen, private, public = case
    for other in (public, None):
        a, b = (
            total_variation_bound(seen, private, other, lam=lam, alpha=alpha, backend=name)
            for name in ("numpy", "numba")
        )
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_local_rows_without_sense_shape_nothing(backend, value):
    core = np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32)
    spec = CodecSpec(kind="top-k", k=5, residual=0.0)
    seen = decode_full(encode(core, spec), rows=2, vocab=50, spec=spec)
    local = np.full((2, 50), value, np.float32)
    tail = reshape_tail(seen, local, backend=backend).logp[~seen.head].reshape(2, -1)
    np.testing.assert_allclose(tail, np.repeat(tail[:, :1], tail.shape[1], axis=1), atol=1e-6)
    assert np.isfinite(tail).all()


@pytest.mark.parametrize("shared", [False, True])
def test_at_size(zipf_rows, shared):
    core, private, unigram = zipf_rows([0.2, 2.0, 5.0], 49_152, 1)
    spec = CodecSpec()
    tail = unigram if shared else None
    seen = decode_full(encode(core, spec), rows=3, vocab=49_152, spec=spec, tail_logp=tail)
    a, b = (reshape_tail(seen, private, tail_logp=tail, backend=name) for name in ("numpy", "numba"))
    np.testing.assert_allclose(a.logp, b.logp, rtol=1e-5, atol=1e-5)
    c, d = (
        total_variation_bound(x, private, None, lam=0.5, alpha=0.0, backend=n) for x, n in ((a, "numpy"), (b, "numba"))
    )
    np.testing.assert_allclose(c, d, rtol=1e-4, atol=1e-6)


def test_runs_uncompiled(uncompiled):
    rng = np.random.default_rng(3)
    core, private, public = (rng.normal(size=(2, 40)).astype(np.float32) * 3 for _ in range(3))
    spec = CodecSpec(kind="top-k", k=9)
    seen = decode_full(encode(core, spec), rows=2, vocab=40, spec=spec)
    a, b = (reshape_tail(seen, public, backend=name) for name in ("numpy", "numba"))
    np.testing.assert_allclose(a.logp, b.logp, rtol=1e-5)
    c, d = (total_variation_bound(a, private, public, lam=0.6, alpha=0.5, backend=n) for n in ("numpy", "numba"))
    np.testing.assert_allclose(c, d, rtol=1e-5)
