"""Traces a decoder of any architecture into the same graph that `graph` builds, by torch's exporter.

Minutes instead of seconds, float32 only. Knows nothing about folders beside the graph's two files.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.export.shape import CacheShape, cache_shape
from ssd_diffusion.graph_names import input_names, output_names
from ssd_diffusion.models.ssd2 import Ssd2Model


class _Cache:
    """What the backbones take for a cache: the past joined with the new keys and values, which are kept apart.

    Past and new are a token a row, [P, kv heads * head dim].
    """

    def __init__(self, past: list[Tensor], shape: CacheShape) -> None:
        self.past = [one.view(-1, shape.kv_heads, shape.head_dim).transpose(0, 1)[None] for one in past]
        self.new: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.new += [one[0].transpose(0, 1).flatten(1) for one in (keys, values)]
        key, value = self.past[2 * layer_idx : 2 * layer_idx + 2]
        return torch.cat([key, keys], dim=2), torch.cat([value, values], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.past[2 * layer_idx].shape[2])


class _Pass(nn.Module):
    """The graph's own function, in torch."""

    def __init__(self, model: Ssd2Model) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, attention_bias: Tensor, rows: Tensor, past: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """One pass."""
        cache = _Cache(past, cache_shape(self.model))
        decoder: Any = self.model.causal.get_decoder()  # type: ignore[operator]
        hidden: Tensor = decoder(
            inputs_embeds=inputs_embeds, attention_mask=attention_bias, position_ids=position_ids,
            past_key_values=cache, use_cache=False,
        ).last_hidden_state  # fmt: skip
        return (self.model.logits(hidden[0].index_select(0, rows)), *cache.new)


def trace(model: Ssd2Model, path: Path) -> None:
    """Write the graph and its weights (path and path + ".data").

    Args:
        model: float32 weights on the CPU; its attention implementation is set to "eager".
        path: the .onnx file.

    Raises:
        InvalidModel: torch cannot write this architecture.
        OSError: the files cannot be written.
    """
    shape = cache_shape(model)
    past = [torch.zeros(5, shape.kv_heads * shape.head_dim) for _ in range(2 * shape.layers)]
    bias, rows = torch.zeros(1, 1, 7, 12), torch.arange(3)
    example = (torch.zeros(1, 7, model.hidden_size), torch.arange(5, 12)[None], bias, rows, past)
    free = torch.export.Dim.DYNAMIC
    shapes = ({1: free}, {1: free}, {2: free, 3: free}, {0: free}, [{0: free}] * len(past))
    model.causal.set_attn_implementation("eager")  # type: ignore[operator]
    with _quiet(), torch.inference_mode():
        try:
            program = torch.onnx.export(
                _Pass(model).eval(), example, dynamo=True, verbose=False, optimize=False, dynamic_shapes=shapes,
                input_names=input_names(shape.layers), output_names=output_names(shape.layers),
            )  # fmt: skip
        except torch.onnx.errors.OnnxExporterError as error:
            raise InvalidModel(f"this architecture cannot be exported to ONNX ({error})") from error
    if program is None:
        raise InvalidModel("this architecture cannot be exported to ONNX")
    path.with_name(path.name + ".data").unlink(missing_ok=True)
    program.save(path, external_data=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own chatter (deprecations inside it, missing optional packages) from the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
