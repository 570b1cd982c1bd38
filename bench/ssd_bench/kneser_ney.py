"""A modified Kneser-Ney n-gram model over token ids: the floor that a neural model has to beat.

Interpolated, with three discounts for each order (Chen and Goodman, 1999): raw counts at the highest order, numbers of
different left neighbours below it, a uniform distribution over the vocabulary at the bottom. The n-grams of every order
are one sorted array of (row of the n-gram without its last token) * V + (last token). Knows nothing about text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ssd_kernels.types import F64, I64, Bool

_NONE = -1


@dataclass(frozen=True, slots=True, eq=False)
class _Order:
    """The n-grams of one order. Rows are n-grams; `parent` means the order below.

    Attributes:
        keys: row of the prefix * V + last token, ascending [rows].
        count: count of each n-gram (at the highest order) or its number of different left neighbours [rows].
        discounts: what is taken off counts 0, 1, 2 and 3 or more [4].
        total: sum of the counts of all n-grams with the same prefix [rows of parent].
        left: mass left for the lower order, as a share of `total` [rows of parent].
    """

    keys: I64
    count: I64
    discounts: F64
    total: F64
    left: F64


class KneserNey:
    """The model.

    Args:
        tokens: training ids in order [n]; where documents meet, the caller puts a separating id.
        vocab: V; ids are below it.
        order: longest n-gram.

    Raises:
        ValueError: fewer tokens than the order, an order below 1, or an id outside the vocabulary.
    """

    def __init__(self, tokens: I64, *, vocab: int, order: int = 5) -> None:
        tokens = np.asarray(tokens, dtype=np.int64)
        if order < 1 or len(tokens) < order:
            raise ValueError(f"a {order}-gram model needs an order of 1 or more and at least that many tokens")
        if int(tokens.min()) < 0 or int(tokens.max()) >= vocab:
            raise ValueError(f"a training token lies outside the vocabulary of {vocab}")
        self.vocab, self.order = vocab, order
        self._orders = _orders(tokens, vocab, order)

    def logp(self, tokens: I64, *, context: I64 | None = None) -> F64:
        """Log-probability of each token given the ones before it, nats. [n]

        Args:
            tokens: ids to score.
            context: ids before the first of them; not scored.

        Raises:
            ValueError: an id outside the vocabulary.
        """
        before = np.zeros(0, np.int64) if context is None else np.asarray(context, dtype=np.int64)[-(self.order - 1) :]
        before = before if self.order > 1 else before[:0]
        stream = np.concatenate([before, np.asarray(tokens, dtype=np.int64)])
        if len(stream) and (int(stream.min()) < 0 or int(stream.max()) >= self.vocab):
            raise ValueError(f"a token lies outside the vocabulary of {self.vocab}")
        p = np.full(len(stream), 1.0 / self.vocab)
        rows = np.zeros(len(stream), np.int64)  # row of the context of k - 1 tokens before each position
        for k in range(self.order):
            p = self._mix(k, rows, stream, p)
            if k + 1 < self.order:
                rows = self._extend(k, stream)
        return np.asarray(np.log(p)[len(before) :])

    def _mix(self, k: int, rows: I64, stream: I64, lower: F64) -> F64:
        """Probabilities with contexts of k tokens from those with k - 1."""
        level = self._orders[k]
        known = rows >= 0
        at = np.where(known, rows, 0)
        known = known & (level.total[at] > 0)
        row = _find(level.keys, at, stream, self.vocab, known)
        count = np.where(row >= 0, level.count[row], 0)
        own = (count - level.discounts[np.minimum(count, 3)]) / np.where(known, level.total[at], 1.0)
        return np.where(known, own + level.left[at] * lower, lower)

    def _extend(self, k: int, stream: I64) -> I64:
        """Row, in the order of k + 1 tokens, of the k + 1 tokens before each position; -1 where unseen or too early."""
        rows = np.zeros(len(stream), np.int64)
        for j in range(k + 1):
            shift = k + 1 - j  # the j-th token of the context stands so far before the position
            token = np.concatenate([np.zeros(shift, np.int64), stream[:-shift]])[: len(stream)]
            inside = np.arange(len(stream)) >= k + 1
            rows = _find(self._orders[j].keys, np.maximum(rows, 0), token, self.vocab, inside & (rows >= 0))
        return rows


def _find(keys: I64, parents: I64, tokens: I64, vocab: int, valid: Bool) -> I64:
    """Rows of (parent, token), -1 where there is none or `valid` is False."""
    wanted = parents * vocab + tokens
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(valid & (keys[at] == wanted), at, _NONE)


def _orders(tokens: I64, vocab: int, order: int) -> list[_Order]:
    n = len(tokens)
    keys, raw, suffix = [], [], []  # per order: sorted keys, counts, row of the n-gram without its first token
    rows = np.zeros(n, np.int64)  # row of the n-gram that ends at each position, of the order before
    for k in range(order):
        inside = np.arange(n) >= k
        prefix = np.concatenate([np.zeros(1, np.int64), rows[:-1]]) if k else np.zeros(n, np.int64)
        found, first, inverse, count = np.unique(
            (prefix * vocab + tokens)[inside], return_index=True, return_inverse=True, return_counts=True
        )
        ends = np.flatnonzero(inside)[first]
        suffix.append(rows[ends] if k else np.zeros(len(found), np.int64))
        rows = np.full(n, _NONE)
        rows[inside] = inverse
        keys.append(found)
        raw.append(count.astype(np.int64))
    levels = []
    for k in range(order):
        count = raw[k]
        if k + 1 < order:  # different left neighbours; the n-gram that opens the text may have none, and counts as one
            count = np.maximum(np.bincount(suffix[k + 1], minlength=len(keys[k])), 1)
        levels.append(_level(keys[k], count, vocab, parents=len(keys[k - 1]) if k else 1))
    return levels


def _level(keys: I64, count: I64, vocab: int, *, parents: int) -> _Order:
    discounts = _discounts(count)
    parent = keys // vocab
    total: F64 = np.bincount(parent, weights=count, minlength=parents).astype(np.float64)
    taken = np.bincount(parent, weights=discounts[np.minimum(count, 3)], minlength=parents)
    left = np.divide(taken, total, out=np.ones(parents), where=total > 0)
    return _Order(keys, count, discounts, total, left)


def _discounts(count: I64) -> F64:
    """D1, D2 and D3+ from the numbers of n-grams seen once to four times; half a count each where these say nothing."""
    n1, n2, n3, n4 = (float((count == c).sum()) for c in (1, 2, 3, 4))
    fallback = np.array([0.0, 0.5, 0.5, 0.5])
    if min(n1, n2, n3, n4) == 0:
        return fallback
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.where((found > 0) & (found < [1, 1, 2, 3]), found, fallback)
