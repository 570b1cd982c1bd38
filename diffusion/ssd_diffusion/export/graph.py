"""Builds the ONNX graph of a Llama-like or OPT decoder by hand, from its weights.

Tracing 30 layers takes minutes on two cores; writing the same graph node by node takes seconds, needs no torch tracing
machinery, and lets grouped queries share their keys without copies. What it computes is held against the torch model by
`agreement` each time. Architectures that are not known here are traced (`trace`).

Nodes are standard ONNX; the exceptions are onnxruntime's RotaryEmbedding and, for 8-bit weights, MatMulNBits. Weights
go straight into the external data file, aligned for memory mapping. Knows nothing about folders beside that file.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from ssd_diffusion.export.names import CacheShape, Precision, cache_shape, input_names, output_names
from ssd_diffusion.models.ssd2 import Ssd2Model

INT8_BLOCK = 32
_OPSET = 18
_ALIGN = 4096
_INLINE_BYTES = 1024
_COMPUTE_IN_INT8 = 4  # accuracy level of MatMulNBits: activations in 8 bits too, sums in 32
_LLAMA_LIKE = ("llama", "mistral")


def can_build(model: Ssd2Model) -> bool:
    """True for architectures that this module writes itself."""
    config: Any = model.causal.config
    if config.model_type in _LLAMA_LIKE:
        return config.hidden_act in ("silu", "swish")
    return bool(
        config.model_type == "opt"
        and config.do_layer_norm_before
        and config.activation_function == "relu"
        and config.word_embed_proj_dim == config.hidden_size
        and config.layer_norm_elementwise_affine
        and not getattr(config, "_remove_final_layer_norm", False)
    )


def build(model: Ssd2Model, path: Path, precision: Precision) -> None:
    """Write the graph and its weights (path and path + ".data").

    Args:
        model: float32 weights on the CPU, of an architecture for which `can_build` is true.
        path: the .onnx file.
        precision: "int8" stores every matrix but the head in 8 bits.

    Raises:
        OSError: the files cannot be written.
    """
    shape = cache_shape(model)
    with _Graph(path, shape, precision) as graph:
        config: Any = model.causal.config
        (_llama if config.model_type in _LLAMA_LIKE else _opt)(graph, model)
        graph.save(model)


class _Graph:
    """Nodes and weights as they are added; the weights go to disk at once."""

    def __init__(self, path: Path, shape: CacheShape, precision: Precision) -> None:
        self.path, self.shape, self.precision = path, shape, precision
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._data: BinaryIO = path.with_name(path.name + ".data").open("wb")

    def __enter__(self) -> _Graph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    def op(self, kind: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return that output's name."""
        name = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def weight(self, name: str, value: Tensor | NDArray[Any]) -> str:
        """Add a constant; big ones go to the data file."""
        array = np.ascontiguousarray(value.detach().numpy() if isinstance(value, Tensor) else value)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
        raw = array.tobytes()
        if len(raw) < _INLINE_BYTES:
            tensor.raw_data = raw
        else:
            self._data.seek(-(-self._data.tell() // _ALIGN) * _ALIGN)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": self.path.name + ".data", "offset": self._data.tell(), "length": len(raw)}
            for key, setting in place.items():
                tensor.external_data.add(key=key, value=str(setting))
            self._data.write(raw)
        self.weights.append(tensor)
        return name

    def ints(self, *values: int) -> str:
        """A small constant of whole numbers, as Reshape and Concat take it."""
        name = "ints_" + "_".join(str(v).replace("-", "m") for v in values)
        if all(w.name != name for w in self.weights):
            self.weight(name, np.array(values, np.int64))
        return name

    def linear(self, name: str, x: str, layer: Any, *, keep_float: bool = False) -> str:
        """x W^T (+ bias)."""
        matrix = layer.weight.detach()
        wide = matrix.shape[1] % INT8_BLOCK == 0
        if self.precision == "int8" and wide and not keep_float:
            out = self._linear_int8(name, x, matrix.numpy())
        else:
            out = self.op("MatMul", x, self.weight(name, matrix.t()))
        return out if layer.bias is None else self.op("Add", out, self.weight(f"{name}.bias", layer.bias))

    def reshape(self, x: str, *dims: int) -> str:
        """Reshape to fixed dims; 0 keeps a dimension, -1 is inferred."""
        return self.op("Reshape", x, self.ints(*dims))

    def attention(self, layer: int, q: str, k: str, v: str) -> str:
        """Scaled dot products over past and new keys, under the bias. [1, Q, heads * d] of each -> [1, Q, heads * d]"""
        kv, d = self.shape.kv_heads, self.shape.head_dim
        groups = self.shape.heads // kv
        keys, values = (self._with_past(layer, kind, x) for kind, x in (("key", k), ("value", v)))
        # The queries of a group stand one under the other, so that they share their keys in one product.
        q = self.op("Transpose", self.reshape(q, -1, kv, groups, d), perm=[1, 2, 0, 3])
        q = self.op("Reshape", q, self.ints(kv, -1, d))
        scores = self.op("MatMul", q, self.op("Transpose", keys, perm=[0, 2, 1]))
        scores = self.op("Reshape", scores, "grouped_scores")
        scores = self.op("Softmax", self.op("Add", scores, "attention_bias"), axis=-1)
        mixed = self.op("MatMul", self.op("Reshape", scores, "stacked_scores"), values)
        mixed = self.op("Transpose", self.op("Reshape", mixed, self.ints(kv, groups, -1, d)), perm=[2, 0, 1, 3])
        return self.reshape(mixed, 1, -1, self.shape.heads * d)

    def score_shapes(self) -> None:
        """Shapes [kv, groups, Q, P + Q] and [kv, groups * Q, P + Q], made once from the bias."""
        kv = self.shape.kv_heads
        sizes = self.op("Shape", "attention_bias", start=2, end=4)
        self.op("Concat", self.ints(kv, self.shape.heads // kv), sizes, axis=0, name="grouped_scores")
        keys = self.op("Shape", "attention_bias", start=3, end=4)
        self.op("Concat", self.ints(kv, -1), keys, axis=0, name="stacked_scores")

    def save(self, model: Ssd2Model) -> None:
        """Write the .onnx file."""
        shape, width = self.shape, model.hidden_size
        past: list[str | int] = [1, shape.kv_heads, "P", shape.head_dim]
        new: list[str | int] = [1, shape.kv_heads, "Q", shape.head_dim]
        dims: list[list[str | int]] = [[1, "Q", width], [1, "Q"], [1, 1, "Q", "T"], ["R"]]
        names, outs = input_names(shape.layers), output_names(shape.layers)
        kinds = [TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT, TensorProto.INT64]
        kinds += [TensorProto.FLOAT] * (len(names) - len(kinds))
        dims += [past] * (len(names) - len(dims))
        inputs = [helper.make_tensor_value_info(*x) for x in zip(names, kinds, dims, strict=True)]
        head: list[str | int] = ["R", model.vocab]
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dim)
            for name, dim in zip(outs, [head] + [new] * (len(outs) - 1), strict=True)
        ]
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, initializer=self.weights)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        proto = helper.make_model(graph, opset_imports=opsets, producer_name="ssd2", ir_version=10)
        onnx.save_model(proto, str(self.path))

    def _with_past(self, layer: int, kind: str, x: str) -> str:
        kv, d = self.shape.kv_heads, self.shape.head_dim
        new = self.op("Transpose", self.reshape(x, 1, -1, kv, d), perm=[0, 2, 1, 3], name=f"new_{kind}_{layer}")
        joined = self.op("Concat", f"past_{kind}_{layer}", new, axis=2)
        return self.reshape(joined, kv, -1, d)

    def _linear_int8(self, name: str, x: str, matrix: NDArray[np.float32]) -> str:
        out_width, in_width = matrix.shape
        blocks = matrix.reshape(out_width, -1, INT8_BLOCK)
        scale = np.maximum(np.abs(blocks).max(-1) / 127.0, np.finfo(np.float32).tiny)
        codes = np.clip(np.rint(blocks / scale[..., None]) + 128, 0, 255).astype(np.uint8)
        return self.op(
            "MatMulNBits", x, self.weight(f"{name}.codes", codes),
            self.weight(f"{name}.scale", scale.astype(np.float32)),
            domain="com.microsoft", K=in_width, N=out_width, bits=8, block_size=INT8_BLOCK,
            accuracy_level=_COMPUTE_IN_INT8,
        )  # fmt: skip


def _llama(graph: _Graph, model: Ssd2Model) -> None:
    causal: Any = model.causal
    decoder, config = causal.get_decoder(), causal.config
    graph.score_shapes()
    graph.weight("scale", np.array([graph.shape.head_dim**-0.5], np.float32))
    cos, sin = _rotary_tables(decoder, config)
    graph.weight("cos", cos)
    graph.weight("sin", sin)
    x = "inputs_embeds"
    for i, layer in enumerate(decoder.layers):
        h = _rms_norm(graph, f"{i}.norm1", x, layer.input_layernorm)
        attention = layer.self_attn
        q, k, v = (graph.linear(f"{i}.{n}", h, getattr(attention, f"{n}_proj")) for n in "qkv")
        q, k = (
            graph.op("RotaryEmbedding", y, "position_ids", "cos", "sin", domain="com.microsoft", num_heads=heads,
                     rotary_embedding_dim=0)
            for y, heads in ((q, graph.shape.heads), (k, graph.shape.kv_heads))
        )  # fmt: skip
        mixed = graph.attention(i, graph.op("Mul", q, "scale"), k, v)
        x = graph.op("Add", x, graph.linear(f"{i}.o", mixed, attention.o_proj))
        h = _rms_norm(graph, f"{i}.norm2", x, layer.post_attention_layernorm)
        gate, up = (graph.linear(f"{i}.{n}", h, getattr(layer.mlp, f"{n}_proj")) for n in ("gate", "up"))
        h = graph.op("Mul", graph.op("Mul", gate, graph.op("Sigmoid", gate)), up)
        x = graph.op("Add", x, graph.linear(f"{i}.down", h, layer.mlp.down_proj))
    rows = graph.op("Gather", x, "rows", axis=1)
    _head(graph, model, _rms_norm(graph, "norm", rows, decoder.norm))


def _opt(graph: _Graph, model: Ssd2Model) -> None:
    causal: Any = model.causal
    decoder = causal.get_decoder()
    graph.score_shapes()
    positions = decoder.embed_positions
    graph.weight("positions", positions.weight[positions.offset :])
    graph.weight("scale", np.array([graph.shape.head_dim**-0.5], np.float32))
    x = graph.op("Add", "inputs_embeds", graph.op("Gather", "positions", "position_ids", axis=0))
    for i, layer in enumerate(decoder.layers):
        h = _layer_norm(graph, f"{i}.norm1", x, layer.self_attn_layer_norm)
        attention = layer.self_attn
        q, k, v = (graph.linear(f"{i}.{n}", h, getattr(attention, f"{n}_proj")) for n in "qkv")
        mixed = graph.attention(i, graph.op("Mul", q, "scale"), k, v)
        x = graph.op("Add", x, graph.linear(f"{i}.o", mixed, attention.out_proj))
        h = graph.op(
            "Relu", graph.linear(f"{i}.fc1", _layer_norm(graph, f"{i}.norm2", x, layer.final_layer_norm), layer.fc1)
        )
        x = graph.op("Add", x, graph.linear(f"{i}.fc2", h, layer.fc2))
    rows = graph.op("Gather", x, "rows", axis=1)
    _head(graph, model, _layer_norm(graph, "norm", rows, decoder.final_layer_norm))


def _head(graph: _Graph, model: Ssd2Model, x: str) -> None:
    head: Any = model.causal.get_output_embeddings()  # type: ignore[operator]
    flat = graph.reshape(x, -1, head.weight.shape[1])
    table = graph.weight("head", head.weight.detach()[: model.vocab].t())
    if head.bias is None:
        graph.op("MatMul", flat, table, name="logits")
    else:
        graph.op(
            "Add", graph.op("MatMul", flat, table), graph.weight("head.bias", head.bias[: model.vocab]), name="logits"
        )


def _rms_norm(graph: _Graph, name: str, x: str, norm: Any) -> str:
    weight = graph.weight(name, norm.weight)
    return graph.op(
        "SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=float(norm.variance_epsilon), stash_type=1
    )


def _layer_norm(graph: _Graph, name: str, x: str, norm: Any) -> str:
    weight, bias = graph.weight(name, norm.weight), graph.weight(f"{name}.bias", norm.bias)
    return graph.op("LayerNormalization", x, weight, bias, axis=-1, epsilon=float(norm.eps))


def _rotary_tables(decoder: Any, config: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines for every position, from the backbone's own rotary embedding. [positions, d / 2] each"""
    positions = torch.arange(int(config.max_position_embeddings))[None]
    with torch.inference_mode():
        cos, sin = decoder.rotary_emb(torch.zeros(1), positions)
    half = cos.shape[-1] // 2
    return cos[0, :, :half].numpy(), sin[0, :, :half].numpy()
