"""What this machine can do at best, measured: bytes a second of a copy, operations a second of matrix products.

A kernel's floor is the larger of its bytes over the one and its operations over the other. Knows no kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from ssd_kernels._integer_product import IntegerProduct

_COPIED = 1 << 28
_SIDE = 2048
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates of this machine.

    Attributes:
        copy_bytes: bytes a second read and written by a copy of a quarter of a gigabyte on one core.
        float_operations: float32 additions and multiplications a second of a square product.
        byte_operations: the same of a product of bytes.
    """

    copy_bytes: float
    float_operations: float
    byte_operations: float

    def floor_s(self, *, size_bytes: float = 0.0, floats: float = 0.0, bytes_multiplied: float = 0.0) -> float:
        """The least seconds for so many bytes moved and operations done, if all of them overlap."""
        return max(
            size_bytes / self.copy_bytes,
            floats / self.float_operations + bytes_multiplied / self.byte_operations,
        )


def measured() -> Ceilings:
    """Measure all three; the best of a few tries, since a ceiling is not what a busy moment leaves of it."""
    source = np.ones(_COPIED, np.uint8)
    target = np.zeros_like(source)
    square = np.ones((_SIDE, _SIDE), np.float32)
    table = np.ones((_SIDE, _SIDE), np.int8)
    product, rows = IntegerProduct(table), np.ones((_SIDE, _SIDE), np.uint8)
    operations = 2.0 * _SIDE**3
    return Ceilings(
        copy_bytes=2.0 * _COPIED / _best(lambda: np.copyto(target, source)),
        float_operations=operations / _best(lambda: square @ square),
        byte_operations=operations / _best(lambda: product(rows)),
    )


def _best(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_TRIES):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
