"""What fits on an accelerator and how fast it can be at best, from a model's shapes alone.

Memory: weights + for every session its cache, its logits and its state. Time of a pass: the longer of reading all
that from memory once and of the arithmetic at full rate. Both are floors: real kernels reach a part of them. Nothing is
loaded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_cloud.errors import UsageError

DTYPE_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
_RESERVE = 0.06
_MOST_BYTES = 10**18
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        layers, hidden, ffn, heads, kv_heads, vocab: as in its configuration; vocab with padded rows.
        gated: the feed-forward part has three matrices (Llama) instead of two (OPT).
        tied: head and embedding are one matrix.
        positions: rows of a learned position table; 0 without one.
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    gated: bool = True
    tied: bool = True
    positions: int = 0

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def block_parameters(self) -> int:
        """Parameters of all layers: what every token is multiplied with."""
        kv = self.kv_heads * self.head_dim
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * kv
        return self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.ffn)

    @property
    def parameters(self) -> int:
        """All parameters, W_diff of the diffusion part included (norms and biases left out)."""
        tables = (1 if self.tied else 2) * self.vocab * self.hidden + self.positions * self.hidden
        return self.block_parameters + tables + self.hidden * self.hidden

    def cache_bytes_a_token(self, dtype_bytes: int) -> int:
        """Keys and values of one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype_bytes


def _opt(layers: int, hidden: int, heads: int) -> Shape:
    return Shape(layers, hidden, 4 * hidden, heads, heads, 50_272, gated=False, positions=2050)


SHAPES: dict[str, Shape] = {
    "opt-125m": _opt(12, 768, 12),
    "opt-350m": _opt(24, 1024, 16),
    "opt-1.3b": _opt(24, 2048, 32),
    "opt-2.7b": _opt(32, 2560, 32),
    "opt-6.7b": _opt(32, 4096, 32),
    "opt-13b": _opt(40, 5120, 40),
    "opt-30b": _opt(48, 7168, 56),
    "opt-66b": _opt(64, 9216, 72),
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 49_152),
    "smollm2-360m": Shape(32, 960, 2560, 15, 5, 49_152),
    "smollm2-1.7b": Shape(24, 2048, 8192, 32, 32, 49_152),
    "llama-2-7b": Shape(32, 4096, 11_008, 32, 32, 32_000, tied=False),
    "llama-2-13b": Shape(40, 5120, 13_824, 40, 40, 32_000, tied=False),
    "llama-3-8b": Shape(32, 4096, 14_336, 32, 8, 128_256, tied=False),
    "llama-3-70b": Shape(80, 8192, 28_672, 64, 8, 128_256, tied=False),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """An accelerator.

    Attributes:
        name: what is assumed.
        memory_bytes: its memory.
        bandwidth: bytes a second from memory.
        flops: multiply-adds counted as two, a second, dense bf16.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    flops: float


GPUS: tuple[Gpu, ...] = (
    Gpu("RTX 4090", 24 * 10**9, 1.01e12, 165e12),
    Gpu("A100 40GB", 40 * 10**9, 1.56e12, 312e12),
    Gpu("L40S", 48 * 10**9, 0.86e12, 362e12),
    Gpu("H100 80GB", 80 * 10**9, 3.35e12, 989e12),
    Gpu("H200", 141 * 10**9, 4.8e12, 989e12),
    Gpu("B200", 180 * 10**9, 7.7e12, 2250e12),
)


@dataclass(frozen=True, slots=True)
class Load:
    """Speed with so many sessions at once, at best."""

    sessions: int
    pass_ms: float
    bound_by: str
    passes_a_second: float
    tokens_a_second: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What fits and how fast it can be."""

    model: str
    gpu: str
    dtype: str
    context: int
    block: int
    accepted: float
    parameters: int
    weights_bytes: int
    cache_bytes_a_token: int
    session_bytes: int
    memory_bytes: int
    reserve_bytes: int
    sessions: int
    loads: tuple[Load, ...]


def make(
    model: str, shape: Shape, gpu: Gpu, *, context: int, block: int, dtype: str = "bf16", accepted: float = 1.0
) -> Plan:
    """Plan a node.

    Args:
        model: name to show.
        shape: sizes of the model.
        gpu: where it runs.
        context: tokens a session holds, answer included.
        block: B.
        dtype: of weights and cache.
        accepted: tokens accepted in a pass; 1 is the floor of the decoder.
    """
    size = DTYPE_BYTES[dtype]
    weights = shape.parameters * size
    a_token = shape.cache_bytes_a_token(size)
    session = context * a_token + block * (shape.vocab + shape.hidden) * 4
    reserve = int(gpu.memory_bytes * _RESERVE)
    fit = max(0, (gpu.memory_bytes - reserve - weights) // session)
    counts = sorted({n for n in (1, 8, 64, fit) if 0 < n <= fit})
    loads = tuple(_load(shape, gpu, n, context, block, size, accepted) for n in counts)
    return Plan(
        model=model, gpu=gpu.name, dtype=dtype, context=context, block=block, accepted=accepted,
        parameters=shape.parameters, weights_bytes=weights, cache_bytes_a_token=a_token, session_bytes=session,
        memory_bytes=gpu.memory_bytes, reserve_bytes=reserve, sessions=fit, loads=loads,
    )  # fmt: skip


def _load(shape: Shape, gpu: Gpu, sessions: int, context: int, block: int, size: int, accepted: float) -> Load:
    queries = block + 1 + accepted
    read = shape.parameters * size + sessions * (context * shape.cache_bytes_a_token(size) + block * shape.vocab * 4)
    head = 3 * 2 * block * shape.vocab * shape.hidden  # the head, and softmax-embed of state and self-conditioning
    attention = 4 * shape.layers * shape.hidden * context * queries
    flops = sessions * (2 * shape.block_parameters * queries + attention + head)
    from_memory, from_arithmetic = read / gpu.bandwidth, flops / gpu.flops
    seconds = max(from_memory, from_arithmetic)
    return Load(
        sessions=sessions, pass_ms=seconds * 1e3, bound_by="memory" if from_memory >= from_arithmetic else "arithmetic",
        passes_a_second=sessions / seconds, tokens_a_second=sessions * accepted / seconds,
    )  # fmt: skip


def parse_bytes(text: str) -> int:
    """A size such as "80GB", "4GiB" or "1000000".

    Raises:
        UsageError: anything else.
    """
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in _UNITS:
        raise UsageError(f"{text!r} is no size; write it as 80GB or 4GiB")
    size = float(found[1]) * _UNITS[found[2].upper()]
    if not 1 <= size <= _MOST_BYTES:
        raise UsageError(f"{text!r} is not between 1 byte and {_MOST_BYTES:.0e} bytes; write it as 80GB or 4GiB")
    return int(size)


def find_gpu(text: str) -> Gpu:
    """A GPU by name ("h100") or by its memory ("80GB": speeds of the smallest known one with as much).

    Raises:
        UsageError: neither a known name nor a size.
    """
    plain = re.sub(r"[^a-z0-9]", "", text.lower())
    for gpu in GPUS:
        if plain and re.sub(r"[^a-z0-9]", "", gpu.name.lower()).startswith(plain):
            return gpu
    memory = parse_bytes(text)
    like = next((gpu for gpu in GPUS if gpu.memory_bytes >= memory), GPUS[-1])
    name = like.name if like.memory_bytes == memory else f"{text} (speeds of a {like.name})"
    return Gpu(name, memory, like.bandwidth, like.flops)


def find_shape(model: str) -> Shape:
    """A shape by name, or from the config.json of a model folder.

    Raises:
        UsageError: neither.
    """
    if model.lower() in SHAPES:
        return SHAPES[model.lower()]
    config = Path(model).expanduser() / "config.json"
    if not config.is_file():
        raise UsageError(f"no shapes are known for {model!r}; name a model folder or one of {', '.join(SHAPES)}")
    try:
        shape = _shape_of(json.loads(config.read_text()))
        if min(shape.layers, shape.hidden, shape.ffn, shape.kv_heads, shape.head_dim, shape.vocab) < 1:
            raise ValueError("a size below 1")
        return shape
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UsageError(f"{config} does not describe a decoder ({error}); name another model folder") from error


def _shape_of(config: dict[str, Any]) -> Shape:
    heads = int(config["num_attention_heads"])
    gated = "ffn_dim" not in config
    return Shape(
        layers=int(config["num_hidden_layers"]), hidden=int(config["hidden_size"]),
        ffn=int(config["intermediate_size"] if gated else config["ffn_dim"]), heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads), vocab=int(config["vocab_size"]), gated=gated,
        tied=bool(config.get("tie_word_embeddings", True)),
        positions=0 if gated else int(config["max_position_embeddings"]) + 2,
    )  # fmt: skip
