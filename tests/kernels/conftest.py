"""Fixtures of the kernel tests: both backends, and the numba kernels run as plain Python."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import ssd_kernels

KERNEL_MODULES = (
    "_jit",
    "_numba_math",
    "_numba_noise",
    "_numba_embed",
    "_numba_nucleus",
    "_numba_rows",
    "_numba_fuse",
    "_numba_topk",
)


@pytest.fixture(params=["numpy", "numba"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The numba backend without compilation, so that a debugger and coverage see its lines."""
    import numba

    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    saved = {name: sys.modules.pop(f"ssd_kernels.{name}", None) for name in KERNEL_MODULES}
    for name in KERNEL_MODULES:
        importlib.import_module(f"ssd_kernels.{name}")
    yield
    for name, module in saved.items():
        sys.modules.pop(f"ssd_kernels.{name}", None)
        delattr(ssd_kernels, name)  # else every later test of this process would run uncompiled
        if module is not None:
            sys.modules[f"ssd_kernels.{name}"] = module
            setattr(ssd_kernels, name, module)


@pytest.fixture
def zipf_rows():
    """Rows like a window's: (core, expert, unigram) as logits; entropies given in nats; both members share content."""

    def make(entropies, vocab: int, seed: int):
        rng = np.random.default_rng(seed)
        unigram = (-1.05 * np.log(np.arange(vocab) + 2.7))[rng.permutation(vocab)]
        core, expert = [], []
        for target in entropies:
            row = unigram + 2.0 * rng.normal(size=vocab) + 0.5 * rng.gumbel(size=vocab)
            core.append(_to_entropy(row, target))
            expert.append(_to_entropy(row + rng.normal(size=vocab), target * rng.uniform(0.8, 1.3)))
        return np.array(core, np.float32), np.array(expert, np.float32), unigram.astype(np.float32)

    return make


def _to_entropy(row, target):
    """Scale a row of logits to a given entropy in nats by bisection."""
    low, high = 0.01, 100.0
    for _ in range(40):
        scale = np.sqrt(low * high)
        x = row * scale
        p = np.exp(x - x.max())
        p /= p.sum()
        h = -(p[p > 0] * np.log(p[p > 0])).sum()
        low, high = (scale, high) if h > target else (low, scale)
    return row * scale
