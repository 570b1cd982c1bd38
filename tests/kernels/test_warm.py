"""Warming up leaves nothing to compile or to load for a step."""

from __future__ import annotations

import numpy as np
from ssd_kernels import _numba_fuse, _numba_nucleus, _numba_rows
from ssd_kernels.codec import CodecSpec, decode_full, encode
from ssd_kernels.combine import entropy, fuse
from ssd_kernels.project import nucleus_mask, sample
from ssd_kernels.tail import reshape_tail, total_variation_bound
from ssd_kernels.warm import warm_up

KERNELS = (
    _numba_fuse.fuse_rows, _numba_fuse.tail_rows, _numba_fuse.bound_rows, _numba_nucleus.nucleus_rows,
    _numba_nucleus.sample_rows, _numba_rows.log_softmax_rows, _numba_rows.entropy_rows,
)  # fmt: skip


def compiled() -> list[int]:
    return [len(kernel.signatures) for kernel in KERNELS]


def test_a_step_after_it_finds_every_kernel_ready() -> None:
    warm_up()
    before = compiled()
    assert min(before) >= 1
    core, private, public = (np.random.default_rng(i).normal(size=(7, 900)).astype(np.float32) for i in range(3))
    spec = CodecSpec(k=100)
    seen = reshape_tail(decode_full(encode(core, spec), rows=7, vocab=900, spec=spec), public)
    total_variation_bound(seen, private, public, lam=0.9, alpha=0.5)
    for members in ((seen.logp, private, public), (None, private, None), (core[2:5], private[2:5], None)):
        logp = fuse(*members, lam=0.9, alpha=0.5)
        entropy(logp)
        nucleus_mask(logp, 0.9, temperature=0.7)
        positions = np.arange(len(logp), dtype=np.int32)
        sample(logp, top_p=0.9, temperature=0.7, draw_key=3, positions=positions, step=2, block=0)
    assert compiled() == before


def test_the_numpy_backend_has_nothing_to_load(monkeypatch) -> None:
    monkeypatch.setenv("SSD_KERNELS_BACKEND", "numpy")
    monkeypatch.setattr("ssd_kernels.warm.fuse", None)
    warm_up()
