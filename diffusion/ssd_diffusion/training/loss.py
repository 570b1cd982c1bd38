"""Cross-entropy over a large vocabulary for the supervised rows only, in chunks.

With a frozen head (LoRA) the gradient of the hidden states is computed in the forward pass, so that no [rows, V] tensor
outlives its chunk. The targets may be a teacher's distribution in part. Knows nothing about layouts or noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssd_diffusion.models.ssd2 import Ssd2Model

CHUNK, GPU_CHUNK = 256, 4096
"""Rows whose logits exist at once."""


class _FrozenHeadLoss(torch.autograd.Function):
    """Per-row cross-entropy of hidden @ weight.T, the gradient of `hidden` made on the way."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, teaching: Teaching | None
    ) -> Tensor:
        losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        slope = torch.empty_like(hidden)
        chunk = _chunk(hidden)
        for first in range(0, len(hidden), chunk):
            part = slice(first, first + chunk)
            logits = torch.nn.functional.linear(hidden[part], weight, bias)
            logp = torch.log_softmax(logits, dim=-1, dtype=torch.float32)
            truth = targets[part, None]
            if teaching is None:
                losses[part] = -logp.gather(1, truth)[:, 0]
                p = logp.exp_()
                p.scatter_add_(1, truth, torch.full_like(p[:, :1], -1.0))
            else:
                wanted = teaching.targets(part, truth, weight, bias)
                losses[part] = -torch.linalg.vecdot(wanted, logp)
                p = logp.exp_().sub_(wanted)
            slope[part] = p.to(weight.dtype) @ weight
        ctx.save_for_backward(slope)
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * grads[0][:, None].to(slope.dtype), None, None, None, None


@dataclass(frozen=True, slots=True)
class Teaching:
    """Targets that are partly another distribution's: (1 - share) truth + share softmax(head(hidden)).

    Attributes:
        hidden: last hidden states of the teacher, which has the same head; no gradient reaches them. [N, H]
        share: weight of the teacher per row, in [0, 1]. [N]
    """

    hidden: Tensor
    share: Tensor

    def targets(self, part: slice, truth: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The target distributions of some rows. Args: truth [n, 1]. Returns [n, V]."""
        share = self.share[part, None].float()
        logits = torch.nn.functional.linear(self.hidden[part].detach().to(weight.dtype), weight.detach(), bias)
        return torch.softmax(logits, dim=-1, dtype=torch.float32).mul_(share).scatter_add_(1, truth, 1.0 - share)


def token_losses(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, teaching: Teaching | None = None
) -> Tensor:
    """Cross-entropy in nats of every row.

    Args:
        hidden: last hidden states. [N, H]
        weight: the head. [V, H]
        bias: of the head. [V]
        targets: true ids. [N]
        teaching: a teacher that the targets are mixed with.

    Returns:
        [N], float32
    """
    if not weight.requires_grad and (bias is None or not bias.requires_grad):
        # Under autocast the head runs in the dtype of its weights; a custom function is not cast by itself.
        found: Tensor = _FrozenHeadLoss.apply(hidden.to(weight.dtype), weight, bias, targets, teaching)  # type: ignore[no-untyped-call]
        return found
    parts = []
    chunk = _chunk(hidden)
    for first in range(0, len(hidden), chunk):
        part = slice(first, first + chunk)
        wanted = targets[part]
        if teaching is not None:
            with torch.no_grad():
                wanted = teaching.targets(part, targets[part, None], weight, bias)
        parts.append(
            torch.utils.checkpoint.checkpoint(_chunk_loss, hidden[part], weight, bias, wanted, use_reentrant=False)
        )
    return torch.cat(parts) if parts else hidden.new_zeros(0)


def head_losses(model: Ssd2Model, hidden: Tensor, targets: Tensor, teaching: Teaching | None = None) -> Tensor:
    """`token_losses` under a model's own head, over its true vocabulary. [N, width], [N] -> [N]"""
    # To the type checker an attribute of a module is a tensor or a module, and neither is called.
    head: Any = model.causal.get_output_embeddings()  # type: ignore[operator]
    bias = None if head.bias is None else head.bias[: model.vocab]
    return token_losses(hidden, head.weight[: model.vocab], bias, targets, teaching)


def _chunk(hidden: Tensor) -> int:
    return GPU_CHUNK if hidden.is_cuda else CHUNK


def _chunk_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
