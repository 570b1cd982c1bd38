"""The cache's shape in an exported graph, from a model. Knows nothing about how the graph is made or run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ssd_diffusion.models.ssd2 import Ssd2Model


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Shape of the key/value cache of a decoder, and its query heads."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int


def cache_shape(model: Ssd2Model) -> CacheShape:
    """Layers, heads and head width, from the backbone's configuration."""
    config: Any = model.causal.config
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return CacheShape(int(config.num_hidden_layers), heads, kv_heads, head_dim)
