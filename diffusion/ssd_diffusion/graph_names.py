"""Names of the exported graph's files, inputs and outputs, shared by whoever writes or reads it.

Knows nothing about how the graph is made or run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

Precision = Literal["fp32", "int8"]

ONNX_DIR = "onnx"
GRAPHS: dict[Precision, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx"}


def lanes_path(path: Path) -> Path:
    """Where the graph of several lanes lies beside a graph; both have the same weights."""
    return path.with_name(path.name.removesuffix(".onnx") + ".lanes.onnx")


def lane_name(name: str, lane: int | None) -> str:
    """What is called `name` in a graph of one lane, in a graph of several."""
    return name if lane is None else f"{name}_lane_{lane}"


def input_names(layers: int, lanes: int = 1) -> list[str]:
    """Names of the graph's inputs, in order; with several lanes, biases and pasts go lane by lane."""
    past = [f"past_{kind}_{i}" for i in range(layers) for kind in ("key", "value")]
    if lanes == 1:
        return ["inputs_embeds", "position_ids", "attention_bias", "rows", *past]
    each = [lane_name(name, lane) for lane in range(lanes) for name in ("attention_bias", *past)]
    return ["inputs_embeds", "position_ids", "rows", "queries", *each]


def output_names(layers: int) -> list[str]:
    """Names of the graph's outputs, in order."""
    return ["logits", *(f"new_{kind}_{i}" for i in range(layers) for kind in ("key", "value"))]
