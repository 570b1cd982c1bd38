"""The one place that imports numba: a typed decorator for the compiled kernels.

Imported by the `_numba_*` modules only, and those only when a kernel first runs on the numba backend.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def kernel(function: F) -> F:
    """Compile for one core, without the interpreter's lock, cached on disk; arithmetic as numpy's (no exceptions).

    A product and the sum it goes into may round once (fused multiply-add), in no other order than written.
    """
    return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})(function))


def inline(function: F) -> F:
    """A helper that is always merged into its callers, so that their loops can be vectorised."""
    return cast(F, numba.njit(inline="always", error_model="numpy")(function))
