"""The nucleus of one row inside a Triton kernel, without a sort: the rules of `ssd_kernels.project`.

Weights are whole numbers, so sums are exact in any order. With S(w) the sum of all weights above w, the edge is the
least weight w with S(w) below the limit, found by halving; whatever weighs more is in, and of those at the edge as
many, in the order of ids, as still find S below the limit. Knows nothing about draws.
"""

from __future__ import annotations

import triton
import triton.language as tl

_SCALE = tl.constexpr(2.0**45)
_TOP = tl.constexpr(2**45)
_HALVINGS = tl.constexpr(46)


@triton.jit
def largest(row, vocab, BLOCK: tl.constexpr):
    """The largest value of a row."""
    peak = tl.full((), -float("inf"), tl.float32)
    for first in range(0, vocab, BLOCK):
        v = first + tl.arange(0, BLOCK)
        peak = tl.maximum(peak, tl.max(tl.load(row + v, mask=v < vocab, other=-float("inf"))))
    return peak


@triton.jit
def weigh(row, weights, vocab, temperature, BLOCK: tl.constexpr):
    """Put the weights of a row into scratch and return their sum. Args: pointers to float32 [V] and int64 [V]."""
    peak = largest(row, vocab, BLOCK)
    total = tl.zeros((), tl.int64)
    for first in range(0, vocab, BLOCK):
        v = first + tl.arange(0, BLOCK)
        x = tl.load(row + v, mask=v < vocab, other=-float("inf"))
        w = tl.floor(tl.exp((x.to(tl.float64) - peak.to(tl.float64)) / temperature) * _SCALE + 0.5).to(tl.int64)
        tl.store(weights + v, w, mask=v < vocab)
        total += tl.sum(w)
    return total


@triton.jit
def sum_above(weights, vocab, least, BLOCK: tl.constexpr):
    """The sum of the weights above one."""
    total = tl.zeros((), tl.int64)
    for first in range(0, vocab, BLOCK):
        v = first + tl.arange(0, BLOCK)
        w = tl.load(weights + v, mask=v < vocab, other=0)
        total += tl.sum(tl.where(w > least, w, 0))
    return total


@triton.jit
def edge_of(weights, vocab, limit, BLOCK: tl.constexpr):
    """The edge, and the sum of the weights above it."""
    low, high = tl.full((), -1, tl.int64), tl.full((), _TOP, tl.int64)
    for _ in range(_HALVINGS):
        middle = (low + high) // 2
        inside = sum_above(weights, vocab, middle, BLOCK).to(tl.float64) < limit
        high = tl.where(inside, middle, high)
        low = tl.where(inside, low, middle)
    return high, sum_above(weights, vocab, high, BLOCK)


@triton.jit
def members(w, edge, above, seen, limit):
    """Which of a tile's tokens are in, and how many at the edge were seen by its end."""
    tied = w == edge
    rank = seen + tl.cumsum(tied.to(tl.int64)) - tied.to(tl.int64)
    inside = (w > edge) | (tied & ((above + rank * edge).to(tl.float64) < limit))
    return inside, seen + tl.sum(tied.to(tl.int64))
