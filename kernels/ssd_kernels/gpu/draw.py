"""One draw a row from the nucleus, on a card; see `ssd_kernels.project.sample`. Knows nothing about sessions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssd_kernels.errors import InvalidInput
from ssd_kernels.gpu._nucleus import edge_of, members, weigh
from ssd_kernels.gpu._words import interleave4, words
from ssd_kernels.gpu.noise import check_counters

_BLOCK = 1024
_UNIT = tl.constexpr(2.0**-32)


@triton.jit
def _sample(logp, counters, top_p, temperature, weights, chosen, vocab, BLOCK: tl.constexpr):
    number = tl.program_id(0).to(tl.int64)
    row, own = logp + number * vocab, weights + number * vocab
    heat, mass = tl.load(temperature + number), tl.load(top_p + number)
    limit = mass * weigh(row, own, vocab, heat, BLOCK).to(tl.float64)
    tl.debug_barrier()  # weights that one thread wrote are read by others
    edge, above = edge_of(own, vocab, limit, BLOCK)
    best, token, seen = tl.full((), -float("inf"), tl.float64), tl.full((), 0, tl.int64), tl.zeros((), tl.int64)
    for first in range(0, vocab, BLOCK):
        v = first + tl.arange(0, BLOCK)
        x = tl.load(row + v, mask=v < vocab, other=-float("inf"))
        inside, seen = members(tl.load(own + v, mask=v < vocab, other=-2), edge, above, seen, limit)
        inside = tl.where(mass >= 1.0, x > -float("inf"), inside)
        if tl.max(inside.to(tl.int32)) > 0:
            quad = first // 4 + tl.arange(0, BLOCK // 4)[None, :]
            a, b, c, d = words(counters + 4 * number + tl.zeros((1, 1), tl.int64), quad)
            u = (interleave4(a, b, c, d, BLOCK).to(tl.float64) + 0.5) * _UNIT
            score = tl.where(inside, x.to(tl.float64) / heat - tl.log(-tl.log(u)), -float("inf"))
            top = tl.max(score)
            if top > best:
                best = top
                token = tl.min(tl.where(score == top, v, vocab)).to(tl.int64)
    tl.store(chosen + number, token.to(tl.int32))


def sample(logp: Tensor, rows: Tensor, *, top_p: Tensor, temperature: Tensor) -> Tensor:
    """The argmax of logp / temperature + Gumbel over every row's nucleus; ties go to the lower id.

    Args:
        logp: log-probabilities, float32; rows without NaN and +inf, each with something finite (not checked). [R, V]
        rows: counters of the draws. [R, 4]
        top_p: mass of the nucleus per row, above 0, float64; from 1 on whatever is possible. [R]
        temperature: per row, above 0, float64. [R]

    Returns:
        Token ids, int32. [R]

    Raises:
        InvalidInput: shapes or types that do not fit together.
    """
    count, vocab = logp.shape
    for name, one in (("top_p", top_p), ("temperature", temperature)):
        if one.dtype != torch.float64 or one.shape != (count,):
            raise InvalidInput(f"{count} rows need {name} for each, in float64.")
    rows = check_counters(rows, count)
    chosen = torch.empty(count, dtype=torch.int32, device=logp.device)
    if count:
        weights = torch.empty(count, vocab, dtype=torch.int64, device=logp.device)
        _sample[(count,)](
            logp.to(torch.float32).contiguous(), rows, top_p, temperature, weights, chosen, vocab, BLOCK=_BLOCK
        )
    return chosen
