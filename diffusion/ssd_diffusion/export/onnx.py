"""Writes a model of the SSD-2 family as one ONNX graph, with what the device needs beside it.

One graph plays both roles, prefill and step: the number of queries, of cached tokens and of rows whose logits are
wanted are free, so a prefill asks for no logits and a step brings its cache. Two graphs would hold the weights twice in
memory.

    inputs    inputs_embeds [1, Q, H], position_ids [1, Q], attention_bias [1, 1, Q, P + Q] (additive),
              rows [R] (queries whose logits are wanted; R may be 0),
              past_key_i, past_value_i [P, kv heads * head dim] for every layer i (P may be 0)
    outputs   logits [R, V] (true vocabulary), new_key_i, new_value_i [Q, kv heads * head dim]

The graph gives back the keys and values of the new tokens only; the host keeps the cache, a token a row, so that what
is cached of a context is one piece of memory, which no pass copies. Files of the folder:

    model.onnx, model.onnx.data             float32
    model.int8.onnx, model.int8.onnx.data   weights in 8 bits (where asked for)
    model.lanes.onnx                        several slots at once, on the weights of model.onnx (where asked for)
    embed.npy                               input embeddings E of the true vocabulary, float32 [V, H]
    diffusion.npz                           w_diff [H, H], w_time [H], w_time_bias [H], mean [H]
    transition.npz                          inner [W, 2 H], inner_bias [W], outer [H, W] (models that draft so)
    head.npy                                rows of the head, float32 [V, H] (beside transition.npz, where not tied)
    export.json                             format, which graph to use, sizes in bytes

Knows nothing about experts, adapters or where the folder goes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from ssd_diffusion.drafting import HEAD_FILE, TRANSITION_FILE, TransitionMaps
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.export.graph import build, can_build
from ssd_diffusion.export.trace import trace
from ssd_diffusion.graph_names import GRAPHS, Precision
from ssd_diffusion.models.ssd2 import Ssd2Model

FORMAT = 2


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    Attributes:
        use: the graph that a device runs.
        size_bytes: size of every graph with its weights, by precision.
    """

    use: Precision
    size_bytes: dict[str, int]


def export(model: Ssd2Model, folder: Path, *, int8: bool = False, lanes: int = 1) -> ExportReport:
    """Write graph, embeddings and diffusion maps into a folder; a device will use the float32 graph.

    Args:
        model: the model, adapters merged, on the CPU; turned into float32 and evaluation mode in place.
        folder: where the files go; made when missing.
        int8: also write the graph with weights in 8 bits (architectures that `graph` builds).
        lanes: above 1, also write graphs that take so many slots at once (the same architectures).

    Raises:
        InvalidModel: the weights are not finite, or the architecture cannot be exported.
        OSError: the files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model.float().eval()
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise InvalidModel("the model holds weights that are not finite numbers; train it again")
    _write_maps(model, folder)
    wanted: list[Precision] = ["fp32", "int8"] if int8 and can_build(model) else ["fp32"]
    for precision in wanted:
        if can_build(model):
            build(model, folder / GRAPHS[precision], precision, lanes=lanes)
        else:
            trace(model, folder / GRAPHS[precision])
    return choose(folder, "fp32")


def choose(folder: Path, use: Precision) -> ExportReport:
    """Say which of the graphs in a folder a device runs; rewrites export.json."""
    sizes = {str(name): _graph_bytes(folder / path) for name, path in GRAPHS.items() if (folder / path).exists()}
    report = ExportReport(use, sizes)
    (folder / "export.json").write_text(json.dumps({"format": FORMAT, **asdict(report)}, indent=1) + "\n")
    return report


def drop(folder: Path, precision: Precision) -> None:
    """Delete one graph and its weights."""
    path = folder / GRAPHS[precision]
    for part in (path, path.with_name(path.name + ".data")):
        part.unlink(missing_ok=True)


def _write_maps(model: Ssd2Model, folder: Path) -> None:
    np.save(folder / "embed.npy", np.ascontiguousarray(model.table.detach().numpy()))
    np.savez(
        folder / "diffusion.npz",
        w_diff=model.w_diff.weight.detach().numpy(),
        w_time=model.w_time.weight.detach().numpy()[:, 0],
        w_time_bias=model.w_time.bias.detach().numpy(),
        mean=model.mean_embedding.detach().numpy(),
    )
    if model.transition is None:
        return
    maps = TransitionMaps.of(model)
    np.savez(folder / TRANSITION_FILE, inner=maps.inner, inner_bias=maps.inner_bias, outer=maps.outer)
    if not np.array_equal(maps.head, maps.table):
        np.save(folder / HEAD_FILE, np.ascontiguousarray(maps.head))


def _graph_bytes(path: Path) -> int:
    data = path.with_name(path.name + ".data")
    return path.stat().st_size + (data.stat().st_size if data.exists() else 0)
