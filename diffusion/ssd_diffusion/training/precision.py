"""In which arithmetic training runs: bfloat16 products where the hardware has them, float32 elsewhere.

Trained weights and the optimizer stay in float32 (torch.autocast). Frozen weights that are bfloat16 numbers anyway, as
those of most published models are, are held as such while training runs, so that no pass rounds them anew and what
flows between layers is half as large. Knows nothing about the model's parts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

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


@contextmanager
def frozen_in_half(model: nn.Module, precision: Precision, device: torch.device) -> Iterator[None]:
    """Hold frozen float32 weights in bfloat16 where they lose nothing, for as long as the block runs in bf16.

    Inside, passes need `autocast`. Afterwards every weight is what it was, to the bit.
    """
    if resolve(precision, device) != "bf16":
        yield
        return
    # peft would round what enters an adapter up to its float32, and autocast down again.
    casting = [part for part in model.modules() if getattr(part, "cast_input_dtype_enabled", False)]
    # A layer norm takes bfloat16 with float32 weights, and not the other way round.
    norms = {p for part in model.modules() if isinstance(part, nn.LayerNorm) for p in part.parameters()}
    frozen = [p for p in model.parameters() if not p.requires_grad and p.dtype == torch.float32 and p not in norms]
    halved = [p for p in frozen if _is_half(p)]
    for parameter in halved:
        parameter.data = parameter.data.to(torch.bfloat16)
    for part in casting:
        part.cast_input_dtype_enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for parameter in halved:
            parameter.data = parameter.data.float()
        for part in casting:
            part.cast_input_dtype_enabled = True  # type: ignore[assignment]


def _is_half(parameter: nn.Parameter) -> bool:
    return bool(torch.equal(parameter.data.to(torch.bfloat16).float(), parameter.data))
