"""Adding the members on a card; see `ssd_kernels.combine`. Knows nothing about where the rows come from."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.errors import InvalidInput
from ssd_kernels.gpu._nucleus import edge_of, largest, members, weigh

_BLOCK = 1024


@triton.jit
def _log_sum(row, vocab, BLOCK: tl.constexpr):
    """ln of the sum of exp over a row, in float64."""
    peak = largest(row, vocab, BLOCK)
    total = tl.zeros((), tl.float64)
    for first in range(0, vocab, BLOCK):
        v = first + tl.arange(0, BLOCK)
        x = tl.load(row + v, mask=v < vocab, other=-float("inf"))
        total += tl.sum(tl.exp(x.to(tl.float64) - peak.to(tl.float64)))
    return peak.to(tl.float64) + tl.log(total)


@triton.jit
def _shift(row, out, by, vocab, BLOCK: tl.constexpr):
    """row - by into out."""
    for first in range(0, vocab, BLOCK):
        v = first + tl.arange(0, BLOCK)
        x = tl.load(row + v, mask=v < vocab, other=0.0)
        tl.store(out + v, (x.to(tl.float64) - by).to(tl.float32), mask=v < vocab)


@triton.jit
def _log_softmax(logits, out, vocab, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * vocab
    _shift(logits + at, out + at, _log_sum(logits + at, vocab, BLOCK), vocab, BLOCK)


@triton.jit
def _fuse(
    core, private, public, weights, out, vocab, lam, alpha, top_p,
    HAS_CORE: tl.constexpr, HAS_PUBLIC: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * vocab
    private, out, own = private + at, out + at, weights + at
    one = tl.full((), 1.0, tl.float64)
    core_sum, public_sum, private_sum = one, one, _log_sum(private, vocab, BLOCK)
    edge, above, limit = tl.zeros((), tl.int64), tl.zeros((), tl.int64), one
    if HAS_CORE:
        core_sum = _log_sum(core + at, vocab, BLOCK)
    if HAS_PUBLIC:
        public_sum = _log_sum(public + at, vocab, BLOCK)
        limit = tl.load(top_p) * weigh(private, own, vocab, one, BLOCK).to(tl.float64)
        tl.debug_barrier()  # weights that one thread wrote are read by others
        edge, above = edge_of(own, vocab, limit, BLOCK)
    share, contrast = tl.load(lam), tl.load(alpha)
    seen = tl.zeros((), tl.int64)
    for first in range(0, vocab, BLOCK):
        v = first + tl.arange(0, BLOCK)
        live = v < vocab
        p = tl.load(private + v, mask=live, other=0.0).to(tl.float64) - private_sum
        total = p
        if HAS_PUBLIC:
            ratio = p - (tl.load(public + at + v, mask=live, other=0.0).to(tl.float64) - public_sum)
            inside, seen = members(tl.load(own + v, mask=live, other=-2), edge, above, seen, limit)
            inside = inside & (tl.abs(ratio) < float("inf"))
            total = p + tl.where(inside, contrast * tl.where(inside, ratio, 0.0), 0.0)
        if HAS_CORE:
            c = tl.load(core + at + v, mask=live, other=0.0).to(tl.float64) - core_sum
            total = (1.0 - share) * c + share * total
        tl.store(out + v, total.to(tl.float32), mask=live)
    tl.debug_barrier()
    _shift(out, out, _log_sum(out, vocab, BLOCK), vocab, BLOCK)


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities of every row, summed in float64. [R, V] to [R, V], float32"""
    logits = logits.to(torch.float32).contiguous()
    out = torch.empty_like(logits)
    if len(logits):
        _log_softmax[(len(logits),)](logits, out, logits.shape[1], BLOCK=_BLOCK)
    return out


def fuse(
    core: Tensor | None,
    private: Tensor,
    public: Tensor | None,
    *,
    lam: float,
    alpha: float,
    contrast_top_p: float = 0.95,
) -> Tensor:
    """(1 - lam) core + lam [private + alpha (private - public)], normalised; see `ssd_kernels.combine.fuse`.

    Args:
        core: logits or log-probabilities; None: the expert alone. [R, V]
        private: the expert with private context. [R, V]
        public: the expert without; None: no contrast. [R, V]
        lam: the expert's share, above 0 and at most 1.
        alpha: weight of the contrast, >= 0.
        contrast_top_p: mass of the private row's nucleus on which the contrast acts, below 1.

    Returns:
        [R, V], float32.

    Raises:
        InvalidInput: a setting out of range, or shapes that differ.
    """
    rows = [x for x in (core, private, public) if x is not None]
    if any(x.shape != private.shape for x in rows):
        raise InvalidInput(f"The members' rows must share one shape; these came: {[tuple(x.shape) for x in rows]}.")
    if not 0.0 < lam <= 1.0 or not alpha >= 0.0 or not 0.0 < contrast_top_p < 1.0:
        raise InvalidInput("lambda must lie in (0, 1], alpha be 0 or more, and the nucleus of the contrast in (0, 1).")
    core = None if lam == 1.0 else core
    public = None if alpha == 0.0 else public
    plain = private.to(torch.float32).contiguous()
    others = [plain if x is None else x.to(torch.float32).contiguous() for x in (core, public)]
    out = torch.empty_like(plain)
    if not len(plain):
        return out
    settings = torch.tensor([lam, alpha, contrast_top_p], dtype=torch.float64, device=plain.device)
    size = plain.shape if public is not None else (1,)
    weights = torch.empty(size, dtype=torch.int64, device=plain.device)
    _fuse[(len(plain),)](
        others[0], plain, others[1], weights, out, plain.shape[1], settings[0:], settings[1:], settings[2:],
        HAS_CORE=core is not None, HAS_PUBLIC=public is not None, BLOCK=_BLOCK,
    )  # fmt: skip
    return out
