"""The kernels against the plain compositions of numpy and torch that they stand for, on rows of the sizes in use.

Knows the work and its least bytes and operations; nothing about files or reports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from ssd_diffusion.schedule import alpha_bar
from ssd_kernels.backend import BackendName
from ssd_kernels.codec import CodecSpec, Decoded, decode_full, encode
from ssd_kernels.combine import fuse, log_softmax
from ssd_kernels.project import nucleus_mask, sample
from ssd_kernels.simplex import renoise_embed
from ssd_kernels.tables import WholeTable
from ssd_kernels.tail import reshape_tail, total_variation_bound
from ssd_kernels.types import F32, I32, TokenSets
from torch import Tensor

from ssd_bench.versus import Rounds, by_turns

SIMPLEX_K, TEMPERATURE, TOP_P, LAMBDA, ALPHA = 5.0, 0.7, 0.9, 0.7, 0.5
KINDS = {"sure": 5.0, "usual": 3.0, "unsure": 1.5}
"""Rows by the standard deviation of their logits, nats."""


@dataclass(frozen=True, slots=True)
class Size:
    """B positions over V tokens, embedded in H numbers."""

    vocab: int = 49_152
    block: int = 32
    hidden: int = 576


class Embedding:
    """Renoise, softmax and embed for one size.

    Args:
        size: V, B and H.
        seed: of table and estimate.
    """

    def __init__(self, size: Size, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.size = size
        self.rows = rng.standard_normal((size.vocab, size.hidden), dtype=np.float32)
        self.whole = WholeTable(self.rows)
        self.w_hat = TokenSets.single(rng.integers(size.vocab, size=size.block).astype(np.int32))
        self._table = torch.from_numpy(self.rows)
        self._clean = torch.full((size.block, size.vocab), -SIMPLEX_K)
        self._clean[torch.arange(size.block), torch.from_numpy(self.w_hat.ids).long()] = SIMPLEX_K

    def plain(self, u: float) -> Tensor:
        """The composition in torch, with its own noise."""
        share = float(alpha_bar(np.array([u]))[0])
        noise = torch.randn(self.size.block, self.size.vocab)
        x_t = share**0.5 * self._clean + (1 - share) ** 0.5 * SIMPLEX_K * noise
        return torch.softmax(x_t, dim=-1) @ self._table

    def ours(self, u: float, *, exact: bool = False) -> F32:
        """The kernel; exact: the plain one in float64 with the same noise."""
        share = alpha_bar(np.full(self.size.block, u)).astype(np.float32)
        return renoise_embed(
            self.w_hat, share, self.rows if exact else self.whole, noise_key=1, step=1, block=0, k=SIMPLEX_K,
            positions=np.arange(self.size.block, dtype=np.int32), backend="numpy" if exact else "numba",
        )  # fmt: skip

    def error(self, u: float) -> float:
        """Root mean square error over that of what the noise and the estimate make of the mean embedding."""
        found, want = self.ours(u), self.ours(u, exact=True)
        return float(np.sqrt(((found - want) ** 2).mean() / ((want - self.rows.mean(axis=0)) ** 2).mean()))

    @property
    def table_bytes(self) -> int:
        """Of the table in whole numbers, which a pass reads once."""
        return self.size.vocab * self.size.hidden

    @property
    def operations(self) -> float:
        """Of the product of bytes: high and low ones."""
        return 2.0 * 2 * self.size.block * self.size.vocab * self.size.hidden


def embedding(work: Embedding, grid: Sequence[float], rounds: int) -> list[Rounds]:
    """A comparison at every noise level."""
    return [by_turns(partial(work.plain, u), partial(work.ours, u), rounds) for u in grid]


def rows_of(kind: str, size: Size, seed: int) -> F32:
    """Log-probabilities of made-up rows. [B, V]"""
    rng = np.random.default_rng(seed)
    return log_softmax(rng.normal(scale=KINDS[kind], size=(size.block, size.vocab)).astype(np.float32))


def plain_draw(logp: Tensor) -> Tensor:
    """Sort, cumulative sum, gather and multinomial."""
    p, order = torch.softmax(logp / TEMPERATURE, dim=-1).sort(dim=-1, descending=True)
    kept = torch.where(p.cumsum(dim=-1) - p < TOP_P, p, torch.zeros(()))
    return order.gather(1, torch.multinomial(kept, 1))


def draw(logp: F32) -> I32:
    """The kernel."""
    positions = np.arange(len(logp), dtype=np.int32)
    return sample(
        logp, top_p=TOP_P, temperature=TEMPERATURE, draw_key=1, positions=positions, step=1, block=0, backend="numba"
    ).ids


def projection(kind: str, size: Size, rounds: int, seed: int) -> tuple[Rounds, float]:
    """A comparison of draws, and how many tokens the nucleus holds on average."""
    logp = rows_of(kind, size, seed)
    plain = torch.from_numpy(logp)
    held = float(nucleus_mask(logp, TOP_P, temperature=TEMPERATURE).sum(axis=1).mean())
    return by_turns(lambda: plain_draw(plain), lambda: draw(logp), rounds), held


@dataclass(frozen=True, slots=True)
class Joining:
    """A pass of the ensemble as the device has it: the core's rows off the wire, and the expert's two."""

    core: Decoded
    private: F32
    public: F32

    @staticmethod
    def of(size: Size, seed: int) -> Joining:
        """Rows of related members, the core's through the default codec."""
        core = rows_of("usual", size, seed)
        rng = np.random.default_rng(seed + 1)
        near = [(core + rng.normal(scale=0.7, size=core.shape)).astype(np.float32) for _ in range(2)]
        spec = CodecSpec()
        seen = decode_full(encode(core, spec), rows=size.block, vocab=size.vocab, spec=spec)
        return Joining(seen, *near)

    def join(self, backend: BackendName) -> F32:
        """The tail shaped, its bound, and the members added, on one of the backends."""
        shaped = reshape_tail(self.core, self.public, backend=backend)
        total_variation_bound(
            shaped, self.private, self.public, lam=LAMBDA, alpha=ALPHA, backend=backend
        )  # fmt: skip
        return fuse(shaped.logp, self.private, self.public, lam=LAMBDA, alpha=ALPHA, backend=backend)


def joining(size: Size, rounds: int, seed: int) -> Rounds:
    """A comparison of the compiled kernels with numpy, the reference."""
    work = Joining.of(size, seed)
    return by_turns(lambda: work.join("numpy"), lambda: work.join("numba"), rounds)


def sending(size: Size, rounds: int, seed: int) -> Rounds:
    """The default codec's rows, compiled against numpy, the reference."""
    logits, spec = rows_of("usual", size, seed), CodecSpec()
    return by_turns(
        lambda: encode(logits, spec, backend="numpy"), lambda: encode(logits, spec, backend="numba"), rounds
    )


def growth(sizes: Sequence[Size], rounds: int, seed: int) -> Iterator[tuple[Size, Rounds, Rounds]]:
    """Both headline comparisons at several sizes: the embedding at u = .5, the draw from usual rows."""
    for size in sizes:
        work = Embedding(size, seed)
        drawn, _ = projection("usual", size, rounds, seed)
        yield size, by_turns(partial(work.plain, 0.5), partial(work.ours, 0.5), rounds), drawn


def sizes_by_vocab(vocabs: Sequence[int]) -> list[Size]:
    """The usual block over other vocabularies."""
    return [Size(vocab=vocab) for vocab in vocabs]


def sizes_by_block(blocks: Sequence[int]) -> list[Size]:
    """The usual vocabulary under other blocks."""
    return [Size(block=block) for block in blocks]
