"""Normals on a card against the float64 formula."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_kernels import gpu
from ssd_kernels.errors import InvalidInput
from ssd_kernels.gpu._words import minus_log, turn
from ssd_kernels.noise import normals_f64
from ssd_kernels.types import Purpose


@given(
    key=st.integers(0, 2**64 - 1), step=st.integers(0, 2**32 - 1), block=st.integers(0, 2**24 - 1),
    vocab=st.integers(1, 2500), positions=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=3),
)  # fmt: skip
@settings(max_examples=12, deadline=None)
def test_normals_are_the_formula(key, step, block, vocab, positions):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    at = np.array(positions, np.int32)
    z = gpu.normals(torch.from_numpy(gpu.counters(key, at, step=step, block=block)).to(device), vocab)
    assert z.shape == (len(positions), vocab)
    assert z.dtype == torch.float32
    want = normals_f64(key, at, step=step, block=block, vocab=vocab)
    assert np.all(np.abs(z.cpu().numpy() - want) <= 6 * np.spacing(np.abs(want).astype(np.float32)))


@triton.jit
def _parts(x, radius, cosine, sine, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    word = tl.load(x + at).to(tl.uint32)
    c, s = turn(word)
    tl.store(radius + at, minus_log(word))
    tl.store(cosine + at, c)
    tl.store(sine + at, s)


def test_words_at_the_ends(put):
    """Uniforms next to 0, 1/2 and 1, and angles next to every quarter, where a careless formula loses its digits."""
    edges = [0, 2**29, 2**30, 2**31, 3 * 2**29, 3 * 2**30, 5 * 2**29, 7 * 2**29, 2**32]
    x = np.array(sorted({(e + d) % 2**32 for e in edges for d in (-9000, -70, -2, -1, 0, 1, 2, 70, 9000)}), np.int64)
    x = np.concatenate([x, np.random.default_rng(0).integers(0, 2**32, 1024 - len(x))])
    out = [put(np.zeros(1024, np.float32)) for _ in range(3)]
    _parts[(1,)](put(x), *out, SIZE=1024)
    u = (x.astype(np.longdouble) + 0.5) * 2.0**-32
    turns = 2 * np.pi * (x.astype(np.longdouble) + 0.5) * 2.0**-32
    quarters = np.longdouble("1.57079632679489661923132169163975144") * (4 * u)
    assert np.abs(turns - quarters).max() < 1e-14
    for got, want, ulps in zip(out, (-np.log1p(u - 1), np.cos(quarters), np.sin(quarters)), (3, 3, 3), strict=True):
        want = want.astype(np.float64)
        off = np.abs(got.cpu().numpy() - want) / np.spacing(np.abs(want).astype(np.float32))
        assert off.max() <= ulps


def test_rows_of_several_windows_in_one_call(put):
    a = gpu.counters(3, np.array([4, 9], np.int32), step=2, block=1)
    b = gpu.counters(2**64 - 7, np.array([0], np.int32), step=8, block=5, purpose=Purpose.TRAIN)
    both = gpu.normals(put(np.concatenate([a, b])), 77)
    for part, rows in ((a, slice(0, 2)), (b, slice(2, 3))):
        assert torch.equal(gpu.normals(put(part), 77), both[rows])


def test_what_is_refused(put):
    with pytest.raises(InvalidInput, match="one-dimensional"):
        gpu.counters(0, np.zeros((2, 2), np.int32), step=0, block=0)
    with pytest.raises(InvalidInput, match="key"):
        gpu.counters(2**64, np.zeros(1, np.int32), step=0, block=0)
    with pytest.raises(InvalidInput, match="at least one token"):
        gpu.normals(put(np.zeros((1, 4), np.int64)), 0)
    with pytest.raises(InvalidInput, match="counters of the shape"):
        gpu.normals(put(np.zeros((1, 3), np.int64)), 5)
    assert gpu.normals(put(np.zeros((0, 4), np.int64)), 5).shape == (0, 5)
