"""Compiled kernels of the projection: the nucleus without a sort of the row, and Gumbel-max draws from it.

The rules of `project`. A token that lies outside whatever the order may be is left out first: with S the sum of all
weights, those below (1 - top_p) S / V sum to less than (1 - top_p) S. Of the rest, weights are summed in buckets by
their distance from the peak, and only the bucket in which the sum reaches the limit is sorted.
"""

from __future__ import annotations

import math

import numpy as np

from ssd_kernels._jit import kernel
from ssd_kernels._numba_math import exp64, log32, minus_log
from ssd_kernels._numba_noise import philox
from ssd_kernels.philox import U32
from ssd_kernels.types import F32, F64, I32, I64, Bool

_SCALE = 2.0**45
_BUCKETS = 4096
_PER_NAT = 64.0
_PART = 512
_UNIT = 2.0**-32
_NEAR = 1e-4
"""Nats that a draw's first, quick score can be wrong by: thirty times what its logarithms' ulps come to."""


@kernel
def nucleus_rows(first: int, last: int, logp: F32, peak: F32, top_p: float, temperature: float, mask: Bool) -> None:
    """The nucleus of the rows first .. last - 1, whose largest values are known; the mask [B, V] comes as zeros."""
    weights, ids = np.empty(logp.shape[1], np.int64), np.empty(logp.shape[1], np.int32)
    for b in range(first, last):
        count = nucleus(logp[b], float(peak[b]), top_p, temperature, weights, ids)
        for n in range(count):
            mask[b, ids[n]] = True


@kernel
def sample_rows(
    first: int,
    last: int,
    logp: F32,
    peak: F32,
    top_p: float,
    temperature: float,
    k0: np.uint64,
    k1: np.uint64,
    positions: U32,
    step: np.uint64,
    word: np.uint64,
    chosen: I32,
) -> None:
    """One draw for each of the rows first .. last - 1, whose largest values are known. [B, V] to [B]"""
    vocab = logp.shape[1]
    weights, ids, scores = np.empty(vocab, np.int64), np.empty(vocab, np.int32), np.empty(vocab, np.float64)
    words = np.empty(vocab, np.uint32)
    for b in range(first, last):
        count = nucleus(logp[b], float(peak[b]), top_p, temperature, weights, ids)
        _words_at(ids[:count], k0, k1, np.uint64(positions[b]), step, word, words)
        chosen[b] = _highest(logp[b], temperature, ids[:count], words, scores)


@kernel
def nucleus(row: F32, peak: float, top_p: float, temperature: float, weights: I64, ids: I32) -> int:
    """Puts the ids of the nucleus of one row to the front of `ids` and returns how many there are."""
    if top_p >= 1.0:
        return _possible(row, ids)
    total = _weigh(row, peak, temperature, weights)
    limit = top_p * float(total)
    least = np.int64((1.0 - top_p) * float(total) / row.shape[0] * (1.0 - 1e-9))
    return _within(row, peak, limit, weights, ids, _candidates(weights, least, ids))


@kernel
def _possible(row: F32, ids: I32) -> int:
    count = 0
    for v in range(row.shape[0]):
        if row[v] != -math.inf:
            ids[count] = v
            count += 1
    return count


@kernel
def _weigh(row: F32, peak: float, temperature: float, weights: I64) -> np.int64:
    """Whole-number weights of one row, and their sum."""
    for v in range(row.shape[0]):
        weights[v] = np.int64(np.rint(exp64((float(row[v]) - peak) / temperature) * _SCALE))
    total = np.int64(0)
    for v in range(row.shape[0]):
        total += weights[v]
    return total


@kernel
def _candidates(weights: I64, least: np.int64, ids: I32) -> int:
    """Ids with at least this weight, in order."""
    count = 0
    for start in range(0, weights.shape[0], _PART):
        part = weights[start : start + _PART]
        most = np.int64(0)
        for v in range(part.shape[0]):
            most = max(most, part[v])
        if most >= least:
            for v in range(part.shape[0]):
                ids[count] = start + v
                count += int(part[v] >= least)
    return count


@kernel
def _within(row: F32, peak: float, limit: float, weights: I64, ids: I32, count: int) -> int:
    """Of the candidates, those whose preceding mass lies below the limit; moved to the front of `ids`."""
    sums = np.zeros(_BUCKETS, np.int64)
    for n in range(count):
        sums[_bucket(row[ids[n]], peak)] += weights[ids[n]]
    edge, before = 0, np.int64(0)
    while edge < _BUCKETS - 1 and float(before + sums[edge]) < limit:
        before += sums[edge]
        edge += 1
    kept, at_edge, last = 0, np.empty(count, np.int32), 0
    for n in range(count):
        bucket = _bucket(row[ids[n]], peak)
        if bucket == edge:
            at_edge[last] = ids[n]
            last += 1
        elif bucket < edge:
            ids[kept] = ids[n]
            kept += 1
    at_edge = at_edge[:last]
    for n in np.argsort(-row[at_edge], kind="mergesort"):
        if not float(before) < limit:
            break
        before += weights[at_edge[n]]
        ids[kept] = at_edge[n]
        kept += 1
    return kept


@kernel
def _bucket(value: np.float32, peak: float) -> int:
    """Buckets of 1/64 nat below the peak; a monotone map, so that they keep the order."""
    return int(min((peak - float(value)) * _PER_NAT, _BUCKETS - 1.0))


@kernel
def _words_at(
    ids: I32, k0: np.uint64, k1: np.uint64, position: np.uint64, step: np.uint64, word: np.uint64, out: U32
) -> None:
    """The random word of each token id at one position."""
    for n in range(ids.shape[0]):
        lane = ids[n] & 3
        x0, x1, x2, x3 = philox(np.uint64(ids[n] >> 2), position, step, word, k0, k1)
        low, high = (x1 if lane == 1 else x0), (x3 if lane == 3 else x2)
        out[n] = np.uint32(high if lane >= 2 else low)


@kernel
def _highest(row: F32, temperature: float, ids: I32, words: U32, scores: F64) -> int:
    """The id with the highest value / temperature + Gumbel; of equal ones the lowest.

    Every score in float32 logarithms first, then those that may be the highest in float64.
    """
    top = -math.inf
    for n in range(ids.shape[0]):
        scores[n] = float(row[ids[n]]) / temperature - float(log32(minus_log(words[n])))
    for n in range(ids.shape[0]):
        top = max(top, scores[n])
    best, highest = -1, -math.inf
    for n in range(ids.shape[0]):
        if scores[n] >= top - _NEAR:
            score = float(row[ids[n]]) / temperature - math.log(-math.log((float(words[n]) + 0.5) * _UNIT))
            if score > highest or (score == highest and ids[n] < best):
                best, highest = int(ids[n]), score
    return best
