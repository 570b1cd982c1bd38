"""Embedding by whole numbers: softmax weights in 16 bits times a table in 8, with the heavy tokens added exactly.

A product of whole numbers is exact, so a row's bits depend on nothing but the row: not on its companions, not on the
order of sums, not on the machine's arithmetic. It also needs a quarter of the memory traffic of float32.

Of a row of weights p (sum 1), the tokens above 1 / HEAVY are heavy, fewer than HEAVY: they are added in float32. The
others are rounded to multiples of 1 / (HEAVY LEVELS) and sent through the table's whole numbers q, E = m + s q + r with
a mean m and a step s for each column. So with V tokens the error of a column is at most s (1 / 2 + 127 V / (2 HEAVY
LEVELS)), and where many tokens share the light mass, as in noise, the r of different tokens cancel: the error that is
seen lies far below. Knows nothing about noise or
models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from ssd_kernels.errors import InvalidInput
from ssd_kernels.types import F32, F64, I32, I64

U8: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
I8: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int8]]
HEAVY = 64
LEVELS = 65535
_MOST = 127
_PART = 65_536
"""Tokens of a product whose sums fit into 32 bits whatever the bytes are."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Softmax weights of B rows, up to a factor of each row.

    Attributes:
        whole: high and low bytes of the light tokens' whole numbers. [2, B, V]
        heavy: ids of the heavy tokens; the first `sums[:, 2]` count. [B, HEAVY]
        weights: of the heavy tokens. [B, HEAVY]
        sums: the row's total, the weight of one whole number, how many tokens are heavy. [B, 3]
    """

    whole: U8
    heavy: I32
    weights: F32
    sums: F64

    @staticmethod
    def empty(rows: int, vocab: int) -> Weights:
        """Room for the weights of so many rows."""
        return Weights(
            whole=np.empty((2, rows, vocab), np.uint8), heavy=np.zeros((rows, HEAVY), np.int32),
            weights=np.zeros((rows, HEAVY), np.float32), sums=np.zeros((rows, 3), np.float64),
        )  # fmt: skip

    @staticmethod
    def of(p: F64) -> Weights:
        """The reference in float64: weights of any total. Args: p [B, V]."""
        out = Weights.empty(*p.shape)
        for b, row in enumerate(p):
            total = float(row.sum())
            light, found = row.copy(), np.flatnonzero(row > total / HEAVY)
            light[found] = 0.0
            step = total / HEAVY / LEVELS
            q = np.floor(light / step + 0.5).astype(np.int64)
            out.whole[0, b], out.whole[1, b] = q >> 8, q & 255
            out.heavy[b, : len(found)], out.weights[b, : len(found)] = found, row[found]
            out.sums[b] = total, step, len(found)
        return out


class WholeTable:
    """An embedding table, as it is and in whole numbers.

    Args:
        rows: the table E; may be mapped from a file. [V, H]
        threads: of the product; 0 leaves the choice to onnxruntime.

    Raises:
        InvalidInput: the table is no matrix, or holds values that are not finite.
    """

    def __init__(self, rows: F32, *, threads: int = 0) -> None:
        if rows.ndim != 2 or not rows.size:
            raise InvalidInput(f"An embedding table has the shape [V, H], not {rows.shape}.")
        self.rows, self._threads = rows, threads
        self.mean: F32 = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        if not np.isfinite(self.mean).all():
            raise InvalidInput("The embedding table holds values that are not finite: check the model's weights.")
        centred = rows - self.mean
        peak = np.abs(centred).max(axis=0)
        self.step: F32 = np.where(peak > 0, peak / _MOST, 1.0).astype(np.float32)
        self.whole: I8 = np.rint(centred / self.step).astype(np.int8)

    @property
    def shape(self) -> tuple[int, int]:
        """[V, H]."""
        return self.rows.shape[0], self.rows.shape[1]

    @cached_property
    def _products(self) -> list[tuple[slice, Callable[[U8], I32]]]:
        from ssd_kernels._integer_product import IntegerProduct

        vocab = len(self.rows)
        parts = [slice(first, min(first + _PART, vocab)) for first in range(0, vocab, _PART)]
        return [(part, IntegerProduct(self.whole[part], self._threads)) for part in parts]

    def embed(self, weights: Weights, *, exact: bool = False) -> F32:
        """The mean embedding of every row. [B, H]

        Args:
            weights: of B rows.
            exact: multiply the same whole numbers in float64, which holds them all: the judge of the product.
        """
        high_low = weights.whole.reshape(-1, weights.whole.shape[2])
        if exact:
            product = (high_low.astype(np.float64) @ self.whole.astype(np.float64)).astype(np.int64)
        else:
            product = np.zeros((len(high_low), self.rows.shape[1]), np.int64)
            for part, multiply in self._products:
                product += multiply(high_low if len(self._products) == 1 else np.ascontiguousarray(high_low[:, part]))
        return self._sum(weights, product)

    def _sum(self, weights: Weights, product: I64) -> F32:
        rows = weights.whole.shape[1]
        out = (product[:rows] * 256 + product[rows:]) * (weights.sums[:, 1:2] * self.step)
        for b, (total, _, count) in enumerate(weights.sums):
            count = 0.0 if np.isnan(count) else count
            ids, heavy = weights.heavy[b, : int(count)], weights.weights[b, : int(count)]
            out[b] = (out[b] + heavy @ (self.rows[ids] - self.mean)) / total + self.mean
        return np.asarray(out, dtype=np.float32)
