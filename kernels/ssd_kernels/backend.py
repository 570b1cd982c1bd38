"""Which backend a kernel runs on: the argument, else SSD_KERNELS_BACKEND, else numba.

Knows nothing about the kernels themselves and imports no numba.
"""

from __future__ import annotations

import os
from typing import Literal, TypeAlias

from ssd_kernels.errors import InvalidInput

BackendName: TypeAlias = Literal["numpy", "numba"]
BACKENDS: tuple[BackendName, ...] = ("numpy", "numba")


def resolve(backend: BackendName | None = None) -> BackendName:
    """Name of the backend to use.

    Args:
        backend: the caller's wish; None reads the environment variable SSD_KERNELS_BACKEND, then takes "numba".

    Raises:
        InvalidInput: a name that is no backend.
    """
    name = backend or os.environ.get("SSD_KERNELS_BACKEND") or "numba"
    if name not in BACKENDS:
        raise InvalidInput(f'No kernel backend is called "{name}": set SSD_KERNELS_BACKEND to numpy or numba.')
    return name
