"""Log-softmax, entropy and the fused log-probabilities against float64 written from the formula."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ssd_kernels.combine import entropy, fuse, log_softmax
from ssd_kernels.errors import InvalidInput

LOGITS = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 23)), elements=st.floats(-60, 60, width=32))


def slow_lsm(row):
    row = [float(x) for x in row]
    top = max(row)
    return np.array(row) - top - np.log(sum(np.exp(x - top) for x in row))


def slow_nucleus(logp, top_p):
    """Token by token, from the definition."""
    order = sorted(range(len(logp)), key=lambda i: (-logp[i], i))
    inside, before = set(), 0.0
    for i in order:
        if before < top_p:
            inside.add(i)
        before += np.exp(logp[i])
    return inside


def slow_fuse(core, private, public, lam, alpha, top_p):
    out = []
    for c, e, q in zip(core, private, public, strict=True):
        c, e, q = slow_lsm(c), slow_lsm(e), slow_lsm(q)
        inside = slow_nucleus(e, top_p)
        ratio = np.array([e[i] - q[i] if i in inside else 0.0 for i in range(len(e))])
        out.append(slow_lsm((1 - lam) * c + lam * (e + alpha * ratio)))
    return np.array(out)


@given(logits=LOGITS)
@settings(max_examples=60)
def test_log_softmax_and_entropy(logits):
    want = np.array([slow_lsm(r) for r in logits])
    for backend in ("numpy", "numba"):
        got = log_softmax(logits, backend=backend)
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
        h = entropy(got, backend=backend)
        assert h.dtype == np.float32
        np.testing.assert_allclose(h, -(np.exp(want) * want).sum(axis=1), rtol=1e-4, atol=1e-5)


def test_impossible_tokens(backend):
    logp = log_softmax(np.array([[0.0, -np.inf, 0.0]], np.float32), backend=backend)
    np.testing.assert_allclose(np.exp(logp), [[0.5, 0.0, 0.5]])
    np.testing.assert_allclose(entropy(logp, backend=backend), [np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("bad", [[np.nan, 0, 0], [np.inf, 0, 0], [-np.inf] * 3])
def test_rows_that_say_nothing_become_nan(bad, backend):
    logp = log_softmax(np.array([[1, 2, 3], bad], np.float32), backend=backend)
    assert np.isfinite(logp[0]).all()
    assert np.isnan(logp[1]).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_contrast_with_rows_that_say_nothing_is_refused(bad, backend):
    core, private, public = three(np.random.default_rng(1), v=700)
    private[1] = bad
    with pytest.raises(InvalidInput, match="Row 1"):
        fuse(core, private, public, lam=0.5, alpha=0.5, backend=backend)
    alone = fuse(core, private, None, lam=0.5, alpha=0.5, backend=backend)
    assert np.isfinite(alone[[0, 2]]).all()
    assert np.isnan(alone[1]).any()


def test_one_dimension(backend):
    row = np.array([1.0, 2.0, 4.0], np.float32)
    np.testing.assert_allclose(log_softmax(row, backend=backend), slow_lsm(row), rtol=1e-6)


def three(rng, b=3, v=50, scale=2.0):
    return [(rng.normal(size=(b, v)) * scale).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("top_p", [0.5, 0.95])
def test_fuse_is_the_formula(lam, alpha, top_p, backend):
    core, private, public = three(np.random.default_rng(4))
    got = fuse(core, private, public, lam=lam, alpha=alpha, contrast_top_p=top_p, backend=backend)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_fuse(core, private, public, lam, alpha, top_p), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(np.exp(got.astype(float)).sum(axis=1), 1.0, rtol=1e-5)


def test_missing_members(backend):
    core, private, public = three(np.random.default_rng(5))
    lsm = np.array([slow_lsm(r) for r in core])
    np.testing.assert_allclose(fuse(core, None, None, lam=0.7, alpha=1, backend=backend), lsm, rtol=1e-5, atol=1e-5)
    alone = fuse(None, private, None, lam=0.2, alpha=3.0, backend=backend)
    np.testing.assert_allclose(alone, [slow_lsm(r) for r in private], rtol=1e-5, atol=1e-5)
    both = fuse(None, private, public, lam=0.2, alpha=0.5, backend=backend)
    np.testing.assert_allclose(both, slow_fuse(core, private, public, 1.0, 0.5, 0.95), rtol=2e-5, atol=2e-5)
    plain = fuse(core, private, None, lam=0.2, alpha=9.0, backend=backend)
    np.testing.assert_allclose(plain, slow_fuse(core, private, public, 0.2, 0.0, 0.95), rtol=2e-5, atol=2e-5)


def test_normalised_inputs_change_nothing(backend):
    core, private, public = three(np.random.default_rng(6))
    args = dict(lam=0.4, alpha=0.8, backend=backend)
    once = fuse(core, private, public, **args)
    shifted = fuse(core + 7, log_softmax(private), public - 3, **args)
    np.testing.assert_allclose(shifted, once, atol=1e-5)


def test_raw_logits_switch(backend):
    """Without normalising, the ratio's constant is not removed, so the nucleus' tokens gain it."""
    core, private, public = three(np.random.default_rng(7), v=9)
    raw = fuse(core, private, public + 4, lam=0.5, alpha=1.0, contrast_top_p=0.5, normalise=False, backend=backend)
    want = []
    for c, e, q in zip(core.astype(float), private.astype(float), public.astype(float) + 4, strict=True):
        inside = slow_nucleus(slow_lsm(e), 0.5)
        ratio = np.array([e[i] - q[i] if i in inside else 0.0 for i in range(9)])
        want.append(slow_lsm(0.5 * c + 0.5 * (e + ratio)))
    np.testing.assert_allclose(raw, want, rtol=2e-5, atol=2e-5)


def test_infinite_values_do_not_poison(backend):
    """A token that one member rules out is ruled out; 0 times infinity and an infinite ratio are not NaN."""
    core = np.array([[0, 0, -np.inf, 0]], np.float32)
    private = np.array([[1, -np.inf, 0, 0]], np.float32)
    public = np.array([[-np.inf, 0, 0, 0]], np.float32)
    got = np.exp(fuse(core, private, public, lam=0.5, alpha=1.0, backend=backend))
    assert got[0, 1] == 0
    assert got[0, 2] == 0
    assert np.isfinite(got).all()
    for lam, row in ((0.0, core), (1.0, private)):
        edge = fuse(core, private, None, lam=lam, alpha=0.0, backend=backend)
        np.testing.assert_allclose(np.exp(edge), np.exp([slow_lsm(row[0])]), rtol=1e-5)


@pytest.mark.parametrize(("lam", "alpha"), [(-0.1, 0), (1.1, 0), (np.nan, 0), (0.5, -1), (0.5, np.nan), (0.5, np.inf)])
def test_weights_out_of_range(lam, alpha):
    rows = np.zeros((1, 3), np.float32)
    with pytest.raises(InvalidInput, match="lambda" if alpha == 0 else "alpha"):
        fuse(rows, rows, rows, lam=lam, alpha=alpha)


def test_nobody_and_shapes():
    rows = np.zeros((1, 3), np.float32)
    with pytest.raises(InvalidInput, match="nothing to combine"):
        fuse(None, None, rows, lam=0.5, alpha=0)
    with pytest.raises(InvalidInput, match="share one shape"):
        fuse(rows, np.zeros((1, 4), np.float32), None, lam=0.5, alpha=0)


def test_runs_uncompiled(uncompiled):
    core, private, public = three(np.random.default_rng(8), b=2, v=11)
    got = fuse(core, private, public, lam=0.3, alpha=0.5, backend="numba")
    np.testing.assert_allclose(got, slow_fuse(core, private, public, 0.3, 0.5, 0.95), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(entropy(got, backend="numba"), entropy(got, backend="numpy"), rtol=1e-5)
    assert (
        np.isnan(log_softmax(np.array([[np.nan, 0], [-np.inf, -np.inf]], np.float32), backend="numba"))
        .all(axis=1)
        .all()
    )
