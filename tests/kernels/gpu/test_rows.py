"""Draws and the ensemble's sum on a card against the reference backend."""

import numpy as np
import pytest
import torch
from ssd_kernels import combine, gpu, project
from ssd_kernels.errors import InvalidInput
from ssd_kernels.types import Purpose


def made(rows, vocab, seed, scale=2.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, vocab)) * scale).astype(np.float32)


def drawn(put, logp, top_p, temperature, key=99, step=4, block=1):
    count = len(logp)
    counters = put(gpu.counters(key, np.arange(count, dtype=np.int32), step=step, block=block, purpose=Purpose.DRAW))
    settings = {
        "top_p": put(np.full(count, top_p, np.float64)), "temperature": put(np.full(count, temperature, np.float64)),
    }  # fmt: skip
    return gpu.sample(put(logp), counters, **settings).cpu().numpy()


def reference(logp, top_p, temperature, key=99, step=4, block=1):
    positions = np.arange(len(logp), dtype=np.int32)
    return project.sample(
        logp, top_p=top_p, temperature=temperature, draw_key=key, positions=positions, step=step, block=block,
        backend="numpy",
    ).ids  # fmt: skip


@pytest.mark.parametrize(("top_p", "temperature"), [(0.9, 0.7), (0.5, 1.0), (0.999, 1.7), (1.0, 1.0), (1e-6, 0.3)])
@pytest.mark.parametrize("vocab", [1, 7, 1024, 2311])
def test_draws_are_the_reference_s(put, vocab, top_p, temperature):
    logp = combine.log_softmax(made(6, vocab, vocab))
    np.testing.assert_array_equal(drawn(put, logp, top_p, temperature), reference(logp, top_p, temperature))


def test_tokens_that_tie_at_the_edge_are_in_by_their_ids(put):
    """Ten equal tokens, half the mass: the five with the lowest ids, whatever the key."""
    logp = np.full((24, 10), np.log(0.1), np.float32)
    found = drawn(put, logp, 0.5, 1.0)
    np.testing.assert_array_equal(found, reference(logp, 0.5, 1.0))
    assert set(found) == {0, 1, 2, 3, 4}


def test_impossible_tokens_are_never_drawn(put):
    logp = np.full((12, 50), -np.inf, np.float32)
    logp[:, [3, 41]] = np.log(0.5)
    assert set(drawn(put, logp, 1.0, 1.0)) == {3, 41}
    np.testing.assert_array_equal(drawn(put, logp, 0.9, 1.0), reference(logp, 0.9, 1.0))


def test_every_row_has_its_own_settings(put):
    logp = combine.log_softmax(made(4, 300, 5))
    counters = gpu.counters(99, np.arange(4, dtype=np.int32), step=4, block=1, purpose=Purpose.DRAW)
    mass, heat = np.array([0.3, 0.9, 1.0, 0.6]), np.array([1.0, 0.5, 2.0, 0.7])
    found = gpu.sample(put(logp), put(counters), top_p=put(mass), temperature=put(heat)).cpu().numpy()
    for i in range(4):
        assert found[i] == reference(logp, mass[i], heat[i])[i]


@pytest.mark.parametrize("core", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.parametrize("lam", [0.3, 1.0])
def test_the_members_are_added(put, core, alpha, lam):
    members = [made(3, 1300, seed) for seed in range(3)]
    members[1][0, 5] = members[2][0, 9] = members[2][1, int(members[1][1].argmax())] = -np.inf
    args = {"lam": lam, "alpha": alpha}
    want = combine.fuse(members[0] if core else None, *members[1:], backend="numpy", **args)
    got = gpu.fuse(put(members[0]) if core else None, *(put(m) for m in members[1:]), **args).cpu().numpy()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_log_softmax(put):
    x = made(3, 2500, 8, scale=30.0)
    x[0, :7] = -np.inf
    np.testing.assert_allclose(gpu.log_softmax(put(x)).cpu().numpy(), combine.log_softmax_f64(x), rtol=1e-6, atol=1e-5)


def test_what_is_refused(put):
    logp = put(made(2, 9, 0))
    rows = put(gpu.counters(0, np.arange(2, dtype=np.int32), step=0, block=0))
    good = torch.ones(2, dtype=torch.float64, device=logp.device)
    with pytest.raises(InvalidInput, match="temperature for each, in float64"):
        gpu.sample(logp, rows, top_p=good, temperature=good.float())
    with pytest.raises(InvalidInput, match="share one shape"):
        gpu.fuse(logp[:1], logp, None, lam=0.5, alpha=0.0)
    with pytest.raises(InvalidInput, match="lambda"):
        gpu.fuse(logp, logp, None, lam=0.0, alpha=0.0)
    assert gpu.sample(logp[:0], rows[:0], top_p=good[:0], temperature=good[:0]).shape == (0,)
    assert gpu.fuse(None, logp[:0], None, lam=1.0, alpha=0.0).shape == (0, 9)
