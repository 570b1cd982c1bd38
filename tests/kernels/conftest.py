"""Fixtures of the kernel tests: both backends, and the numba kernels run as plain Python."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import ssd_kernels

KERNEL_MODULES = ("_jit", "_numba_noise", "_numba_rows")


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
        fresh = importlib.import_module(f"ssd_kernels.{name}")
        monkeypatch.setattr(ssd_kernels, name, fresh)
    yield
    for name, module in saved.items():
        sys.modules.pop(f"ssd_kernels.{name}", None)
        if module is not None:
            sys.modules[f"ssd_kernels.{name}"] = module


@pytest.fixture
def zipf_rows():
    """Logits [n, V] like a language model's: shared unigram, own content, entropies over the range `entropies`."""

    def make(n: int, vocab: int, seed: int, entropies=(0.1, 7.0)):
        rng = np.random.default_rng(seed)
        unigram = -1.05 * np.log(np.arange(vocab) + 2.7)
        unigram = unigram[rng.permutation(vocab)]
        content = rng.gumbel(size=(n, vocab)) * 0.6 + rng.normal(size=(n, vocab))
        rows = 0.6 * unigram + 1.3 * content
        targets = rng.uniform(*entropies, n)
        return np.stack([_to_entropy(r, h) for r, h in zip(rows, targets, strict=True)]).astype(np.float32), unigram

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
