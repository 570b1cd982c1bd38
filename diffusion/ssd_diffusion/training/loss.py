"""Cross-entropy over a large vocabulary for the supervised rows only, in chunks.

With a frozen head (LoRA) the gradient of the hidden states is computed in the forward pass, so that no [rows, V] tensor
outlives its chunk. Knows nothing about layouts or noise.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 256


class _FrozenHeadLoss(torch.autograd.Function):
    """Per-row cross-entropy of hidden @ weight.T, the gradient of `hidden` made on the way."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(hidden)
        for first in range(0, len(hidden), CHUNK):
            part = slice(first, first + CHUNK)
            logits = torch.nn.functional.linear(hidden[part], weight, bias).float()
            top = torch.logsumexp(logits, dim=-1)
            picked = logits.gather(1, targets[part, None])[:, 0]
            losses[part] = top - picked
            p = logits.sub_(top[:, None]).exp_()
            p[torch.arange(len(p), device=p.device), targets[part]] -= 1.0
            slope[part] = p.to(weight.dtype) @ weight
        ctx.save_for_backward(slope)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0][:, None].to(slope.dtype), None, None, None


def token_losses(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of every row. Args: hidden [N, H], weight [V, H], targets [N]. Returns [N], float32."""
    if not weight.requires_grad and (bias is None or not bias.requires_grad):
        # Under autocast the head runs in the dtype of its weights; a custom function is not cast by itself.
        found: Tensor = _FrozenHeadLoss.apply(hidden.to(weight.dtype), weight, bias, targets)  # type: ignore[no-untyped-call]
        return found
    parts = []
    for first in range(0, len(hidden), CHUNK):
        part = slice(first, first + CHUNK)
        parts.append(
            torch.utils.checkpoint.checkpoint(
                _chunk_loss, hidden[part], weight, bias, targets[part], use_reentrant=False
            )
        )
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def _chunk_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
