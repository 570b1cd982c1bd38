"""A linear layer with its LoRA as one step of the way back, for as long as training runs.

y = x W^T + s (x A^T) B^T with W frozen. peft computes it as six operations with casts and a copy of the result;
here the two small products are added into the large one, both ways. Layers of a form that is not known here stay with
peft. Knows peft's layers; nothing about models or losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_ADAPTER = "default"


class _LoraLinear(torch.autograd.Function):
    """x W^T + b + s (x A^T) B^T; gradients for x, A and B."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        down, up = a.to(x.dtype), (scale * b).to(x.dtype)
        inner = flat @ down.t()
        out = torch.nn.functional.linear(flat, weight, bias).addmm_(inner, up.t())
        ctx.save_for_backward(flat, weight, down, up, inner)
        ctx.scale, ctx.types = scale, (a.dtype, b.dtype)
        return out.view(*x.shape[:-1], out.shape[-1])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        flat, weight, down, up, inner = ctx.saved_tensors
        slope = grads[0].reshape(-1, grads[0].shape[-1])
        through = slope @ up
        x = None
        if ctx.needs_input_grad[0]:
            x = (slope @ weight).addmm_(through, down).view(*grads[0].shape[:-1], flat.shape[-1])
        a = (through.t() @ flat).to(ctx.types[0])
        b = (slope.t() @ inner).to(ctx.types[1]).mul_(ctx.scale)
        return x, None, None, a, b, None


def _forward(layer: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    base = layer.base_layer
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    weight, bias = base.weight.to(x.dtype), None if base.bias is None else base.bias.to(x.dtype)
    if layer.disable_adapters:
        return nn.functional.linear(x, weight, bias)
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    found: Tensor = _LoraLinear.apply(x, weight, bias, a, b, layer.scaling[_ADAPTER])  # type: ignore[no-untyped-call]
    return found


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Run the model's LoRA layers in one step each; afterwards they are peft's again."""
    layers: list[Any] = [part for part in model.modules() if _is_known(part)]
    for layer in layers:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_known(part: Any) -> bool:
    from peft.tuners.lora.layer import Linear

    return (
        type(part) is Linear
        and type(part.base_layer) is nn.Linear
        and list(part.lora_A) == [_ADAPTER] == list(part.active_adapters)
        and not part.merged
        and not part.base_layer.weight.requires_grad
        and (part.base_layer.bias is None or not part.base_layer.bias.requires_grad)
        and isinstance(part.lora_dropout[_ADAPTER], nn.Identity)
        and not part.lora_bias[_ADAPTER]
        and _ADAPTER not in getattr(part, "lora_variant", {})
    )
