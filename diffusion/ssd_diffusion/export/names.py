"""Names and shapes of the exported graph, shared by whoever writes or reads it.

Knows nothing about how the graph is made or run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ssd_diffusion.models.ssd2 import Ssd2Model

Precision = Literal["fp32", "int8"]

GRAPHS: dict[Precision, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx"}


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


def input_names(layers: int) -> list[str]:
    """Names of the graph's inputs, in order."""
    past = [f"past_{kind}_{i}" for i in range(layers) for kind in ("key", "value")]
    return ["inputs_embeds", "position_ids", "attention_bias", "rows", *past]


def output_names(layers: int) -> list[str]:
    """Names of the graph's outputs, in order."""
    return ["logits", *(f"new_{kind}_{i}" for i in range(layers) for kind in ("key", "value"))]
