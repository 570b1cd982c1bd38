"""What the tokens just before a position say about it: an addition to its last hidden state, from their ids alone.

Positions at u = 1 are predicted side by side, each blind to what its neighbours will be, so their most probable tokens
need not fit together. Once the position before one is drawn, its draft is drawn from logits + head(transition). That
is a product of experts, a marginal of the diffusion model with a learned n-gram (compare the adaptive parallel
decoding of Israel et al., 2025, which takes a small autoregressive model for the second). As it depends on ids alone,
a device adds it to logits that came over the wire.

Knows nothing about backbones, windows or acceptance.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Transition(nn.Module):
    """Two layers over the embeddings of the two tokens before; zero before training.

    Args:
        hidden: width of the embedding.
        width: width of the hidden layer.
    """

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(2 * hidden, width)
        self.outer = nn.Linear(width, hidden, bias=False)
        with torch.no_grad():
            nn.init.normal_(self.inner.weight, std=(2 * hidden) ** -0.5)
            nn.init.zeros_(self.inner.bias)
            nn.init.zeros_(self.outer.weight)

    def forward(self, last: Tensor, before: Tensor) -> Tensor:
        """Args: embeddings of the token before the position and of the one before that. [..., H] -> [..., H]"""
        pair = torch.cat([_unit(last), _unit(before)], dim=-1)
        found: Tensor = self.outer(nn.functional.gelu(self.inner(pair)))
        return found


def _unit(x: Tensor) -> Tensor:
    """Scaled to a root mean square of 1: embeddings of different bases differ in size."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-12)
