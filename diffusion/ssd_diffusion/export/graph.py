"""Builds the ONNX graph of a Llama-like or OPT decoder by hand, from its weights.

Tracing 30 layers takes minutes on two cores; writing the same graph node by node takes seconds, needs no torch tracing
machinery, and lets grouped queries share their keys without copies. What it computes is held against the torch model by
`agreement` each time. Architectures that are not known here are traced (`trace`).

Nodes are standard ONNX; the exceptions are onnxruntime's RotaryEmbedding and, for 8-bit weights, MatMulNBits. Weights
go straight into the external data file, aligned for memory mapping. Knows nothing about folders beside that file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from ssd_diffusion.export.shape import CacheShape, cache_shape
from ssd_diffusion.graph_names import Precision, input_names, lane_name, lanes_path, output_names
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


def build(model: Ssd2Model, path: Path, precision: Precision, *, lanes: int = 1) -> None:
    """Write the graph and its weights (path and path + ".data").

    Args:
        model: float32 weights on the CPU, of an architecture for which `can_build` is true.
        path: the .onnx file.
        precision: "int8" stores every matrix but the head in 8 bits.
        lanes: above 1, also write a graph of so many lanes beside it, on the same weights (`names.lanes_path`).

    Raises:
        OSError: the files cannot be written.
    """
    shape = cache_shape(model)
    config: Any = model.causal.config
    with _Weights(path.with_name(path.name + ".data")) as weights:
        for count, target in {1: path, lanes: path if lanes == 1 else lanes_path(path)}.items():
            graph = _Graph(target, shape, precision, weights, count)
            (_llama if config.model_type in _LLAMA_LIKE else _opt)(graph, model)
            graph.save(model)


class _Weights:
    """Constants as they are added, each once; big ones go to disk at once."""

    def __init__(self, path: Path) -> None:
        self.held: dict[str, Any] = {}
        self._path = path
        self._data: BinaryIO = path.open("wb")

    def __enter__(self) -> _Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._data.close()

    def add(self, name: str, value: Tensor | NDArray[Any]) -> str:
        """Add a constant, or do nothing where the name is there."""
        if name not in self.held:
            self.held[name] = self._written(name, value)
        return name

    def _written(self, name: str, value: Tensor | NDArray[Any]) -> Any:
        array = np.ascontiguousarray(value.detach().numpy() if isinstance(value, Tensor) else value)
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape)
        raw = array.tobytes()
        if len(raw) < _INLINE_BYTES:
            tensor.raw_data = raw
        else:
            self._data.seek(-(-self._data.tell() // _ALIGN) * _ALIGN)
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": self._path.name, "offset": self._data.tell(), "length": len(raw)}
            for key, setting in place.items():
                tensor.external_data.add(key=key, value=str(setting))
            self._data.write(raw)
        return tensor


class _Graph:
    """Nodes as they are added.

    A lane is a sequence of its own: products with weights run over the queries of all lanes at once, which stand one
    behind the other, attention over each lane's queries and past alone, in the shapes that it has by itself.
    """

    def __init__(self, path: Path, shape: CacheShape, precision: Precision, weights: _Weights, lanes: int) -> None:
        self.path, self.shape, self.precision, self.lanes = path, shape, precision, lanes
        self.nodes: list[Any] = []
        self._count = 0
        self._weights, self._used = weights, set[str]()

    def op(self, kind: str, *inputs: str, name: str | None = None, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output and return that output's name."""
        self._count += 1
        name = name or f"{kind}_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def weight(self, name: str, value: Tensor | NDArray[Any]) -> str:
        """Add a constant."""
        self._used.add(name)
        return self._weights.add(name, value)

    def ints(self, *values: int) -> str:
        """A small constant of whole numbers, as Reshape and Concat take it."""
        name = "ints_" + "_".join(str(v).replace("-", "m") for v in values)
        return self.weight(name, np.array(values, np.int64))

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
        width = self.shape.kv_heads * self.shape.head_dim
        new = [
            self.op("Reshape", x, self.ints(-1, width), name=f"new_{kind}_{layer}")
            for kind, x in (("key", k), ("value", v))
        ]
        split = [self._by_lane(q, axis=1), *(self._by_lane(x, axis=0) for x in new)]
        mixed = [self._lane(layer, lane, *parts) for lane, parts in enumerate(zip(*split, strict=True))]
        return mixed[0] if self.lanes == 1 else self.op("Concat", *mixed, axis=1)

    def _lane(self, layer: int, lane: int, q: str, k: str, v: str) -> str:
        """Attention of one lane; of several, those that are empty cost a branch and no more."""
        if self.lanes == 1:
            return self._attend(layer, lane, q, k, v)
        branches = {"then_branch": lambda: self._attend(layer, lane, q, k, v), "else_branch": lambda: self._nothing()}
        return self.op("If", lane_name("filled", lane), **{name: self._branch(of) for name, of in branches.items()})

    def _branch(self, build: Callable[[], str]) -> Any:
        """What `build` adds, as a graph of its own with one output."""
        held, self.nodes = self.nodes, []
        out = build()
        body, self.nodes = self.nodes, held
        return helper.make_graph(body, out, [], [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)])

    def _nothing(self) -> str:
        empty = np.zeros((1, 0, self.shape.heads * self.shape.head_dim), np.float32)
        return self.op("Identity", self.weight("nothing", empty))

    def _attend(self, layer: int, lane: int, q: str, k: str, v: str) -> str:
        kv, d = self.shape.kv_heads, self.shape.head_dim
        groups = self.shape.heads // kv
        bias, grouped, stacked = (self._of(name, lane) for name in ("attention_bias", "grouped", "stacked"))
        keys, values = (
            self.reshape(self.op("Concat", self._of(f"past_{kind}_{layer}", lane), x, axis=0), -1, kv, d)
            for kind, x in (("key", k), ("value", v))
        )
        keys, values = self.op("Transpose", keys, perm=[1, 2, 0]), self.op("Transpose", values, perm=[1, 0, 2])
        # The queries of a group stand one under the other, so that they share their keys in one product.
        q = self.op("Transpose", self.reshape(q, -1, kv, groups, d), perm=[1, 2, 0, 3])
        q = self.op("Reshape", q, self.ints(kv, -1, d))
        scores = self.op("MatMul", q, keys)
        scores = self.op("Reshape", scores, grouped)
        scores = self.op("Softmax", self.op("Add", scores, bias), axis=-1)
        mixed = self.op("MatMul", self.op("Reshape", scores, stacked), values)
        mixed = self.op("Transpose", self.op("Reshape", mixed, self.ints(kv, groups, -1, d)), perm=[2, 0, 1, 3])
        return self.reshape(mixed, 1, -1, self.shape.heads * d)

    def score_shapes(self) -> None:
        """Shapes [kv, groups, Q, P + Q] and [kv, groups * Q, P + Q] of every lane, made once from its bias."""
        kv, groups = self.shape.kv_heads, self.shape.heads // self.shape.kv_heads
        if self.lanes > 1:
            filled = self.op("Greater", "queries", self.ints(0))
            names = [lane_name("filled", lane) for lane in range(self.lanes)]
            self.nodes.append(helper.make_node("Split", [filled], names, axis=0, num_outputs=self.lanes))
        for lane in range(self.lanes):
            bias, grouped, stacked = (self._of(name, lane) for name in ("attention_bias", "grouped", "stacked"))
            sizes = self.op("Shape", bias, start=2, end=4)
            self.op("Concat", self.ints(kv, groups), sizes, axis=0, name=grouped)
            self.op("Concat", self.ints(kv), self.op("Mul", sizes, self.ints(groups, 1)), axis=0, name=stacked)

    def _of(self, name: str, lane: int) -> str:
        return lane_name(name, None if self.lanes == 1 else lane)

    def _by_lane(self, x: str, axis: int) -> list[str]:
        """The parts of all lanes' queries along an axis."""
        if self.lanes == 1:
            return [x]
        names = [lane_name(x, lane) for lane in range(self.lanes)]
        self.nodes.append(helper.make_node("Split", [x, "queries"], names, name=f"Split_{x}", axis=axis))
        return names

    def save(self, model: Ssd2Model) -> None:
        """Write the .onnx file."""
        shape, width = self.shape, model.hidden_size
        named: dict[str, tuple[int, list[Any]]] = {
            "inputs_embeds": (TensorProto.FLOAT, [1, "Q", width]), "position_ids": (TensorProto.INT64, [1, "Q"]),
            "rows": (TensorProto.INT64, ["R"]), "queries": (TensorProto.INT64, [self.lanes]),
        }  # fmt: skip
        inputs = [self._input(name, named) for name in input_names(shape.layers, self.lanes)]
        outs = output_names(shape.layers)
        new: list[str | int] = ["Q", shape.kv_heads * shape.head_dim]
        head: list[str | int] = ["R", model.vocab]
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, dim)
            for name, dim in zip(outs, [head] + [new] * (len(outs) - 1), strict=True)
        ]
        weights = [tensor for name, tensor in self._weights.held.items() if name in self._used]
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, initializer=weights)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
        proto = helper.make_model(graph, opset_imports=opsets, producer_name="ssd2", ir_version=10)
        onnx.save_model(proto, str(self.path))

    def _input(self, name: str, named: dict[str, tuple[int, list[Any]]]) -> Any:
        if name in named:
            return helper.make_tensor_value_info(name, *named[name])
        lane = name.rpartition("_lane_")[2] if self.lanes > 1 else ""
        if name.startswith("attention_bias"):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, f"Q{lane}", f"T{lane}"])
        dims = [f"P{lane}", self.shape.kv_heads * self.shape.head_dim]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

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
