"""In which arithmetic training runs: bfloat16 products where the hardware has them, float32 elsewhere.

Weights, optimizer and sums stay in float32 (torch.autocast); only matrix products are rounded. Knows nothing about
models.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]
_CPU_INFO = Path("/proc/cpuinfo")
_NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 names, and the name that ARM uses


@functools.cache
def cpu_has_bf16(info: Path = _CPU_INFO) -> bool:
    """True where this processor multiplies bfloat16 itself; emulated products would be slower than float32."""
    try:
        lines = info.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux: float32 is always right
        return False
    words = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return bool(_NATIVE & set(words))


def resolve(precision: Precision, device: torch.device) -> Literal["fp32", "bf16"]:
    """The arithmetic to use on a device; "auto" takes bf16 on GPUs and on CPUs that have it."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" or (device.type == "cpu" and cpu_has_bf16()) else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """The context that forward passes of training run in."""
    return torch.autocast(device.type, torch.bfloat16) if resolve(precision, device) == "bf16" else nullcontext()
