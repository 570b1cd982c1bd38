"""Does the exported graph say what the torch model says? Windows at mixed noise levels through both, prefill and step.

Both sides get the same inputs by the numpy rules of `layout`; the torch side keeps its own cache. Knows nothing about
which models are asked, or what happens when they disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ssd_kernels.types import F32, I32, TokenSets

from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.export.shape import cache_shape
from ssd_diffusion.graph_names import GRAPHS, Precision, input_names
from ssd_diffusion.layout import InputMaps, PassLayout, pass_layout
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.window import Window

BOUNDS: dict[Precision, tuple[float, float]] = {"fp32": (2e-3, 0.99), "int8": (0.15, 0.90)}
"""Largest root-mean-square error of the log-probabilities (nats) and smallest share of equal argmaxes that pass."""

_LEVELS = np.array([0.0, 0.2, 0.3, 0.4, 0.6, 1.0], np.float32)
_NONE = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an exported graph is from its torch model.

    Attributes:
        precision: which graph.
        windows: how many random windows were read.
        max_error: largest difference of logits.
        rms_error: root mean square of the difference of log-probabilities, weighted by probability (nats).
        greedy: share of positions with the same most probable token.
    """

    precision: Precision
    windows: int
    max_error: float
    rms_error: float
    greedy: float

    @property
    def ok(self) -> bool:
        """True when within `BOUNDS`."""
        error, greedy = BOUNDS[self.precision]
        return self.rms_error <= error and self.greedy >= greedy


def check_agreement(
    model: Ssd2Model,
    folder: Path,
    precision: Precision = "fp32",
    *,
    texts: Sequence[I32] = (),
    windows: int = 4,
    seed: int = 0,
    threads: int = 0,
) -> Agreement:
    """Compare an exported graph with the model it was made from.

    Args:
        model: the torch model, adapters merged, on the CPU.
        folder: what `export` wrote.
        precision: which graph.
        texts: token ids to read windows from; random tokens where there are none or they are short.
        windows: how many.
        seed: of places, levels and noise.
        threads: of onnxruntime; 0 leaves the choice to it.

    Raises:
        InvalidModel: the graph cannot be loaded or run.
    """
    session = _session(folder / GRAPHS[precision], threads)
    maps = _maps(folder)
    rng = np.random.default_rng(seed)
    worst, squares, same = 0.0, [], []
    for i in range(windows):
        text = texts[i % len(texts)] if texts else _NONE
        context, window = _window(rng, text, model.vocab)
        ours, theirs = _both(model, session, maps, context, window)
        worst = max(worst, float(np.abs(ours - theirs).max()))
        a, b = _log_softmax(theirs), _log_softmax(ours)
        squares.append((np.exp(a) * (a - b) ** 2).sum(-1))
        same.append(ours.argmax(-1) == theirs.argmax(-1))
    return Agreement(
        precision, windows, worst, float(np.sqrt(np.mean(np.concatenate(squares)))), float(np.concatenate(same).mean())
    )


def _both(model: Ssd2Model, session: Any, maps: InputMaps, context: I32, window: Window) -> tuple[F32, F32]:
    """Logits [B, V] of the graph and of torch for one window: a prefill of half the context, then the fused pass."""
    cached = len(context) // 2
    block = len(window.u)
    prefill = pass_layout(0, cached - 1, np.zeros(0, np.float32))
    first = maps.embed(context[:cached])
    pending = len(context) - 1 - cached
    step = pass_layout(cached, pending, window.u)
    second = np.concatenate([
        maps.embed(context[cached:-1]), maps.embed_clean(context[-1:]),
        maps.embed_window(window, maps.means(block)),
    ])  # fmt: skip
    rows = np.arange(pending, pending + block)
    shape = cache_shape(model)
    empty = [np.zeros((0, shape.kv_heads * shape.head_dim), np.float32)] * (2 * shape.layers)
    _, *past = _run(session, shape.layers, first, prefill, rows[:0], empty)
    ours, *_ = _run(session, shape.layers, second, step, rows, past)
    with torch.inference_mode():
        dtype = model.w_diff.weight.dtype
        _, kept = model.forward_pass(*_torch_inputs(first, prefill, dtype))
        hidden, _ = model.forward_pass(*_torch_inputs(second, step, dtype), kept, keep=False)
        theirs: F32 = model.logits(hidden[0, rows]).float().numpy()
    return ours, theirs


def _torch_inputs(
    embeds: F32, layout: PassLayout, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.from_numpy(embeds)[None].to(dtype), torch.from_numpy(layout.position_ids)[None],
        torch.from_numpy(layout.allowed)[None],
    )  # fmt: skip


def _run(session: Any, layers: int, embeds: F32, layout: PassLayout, rows: Any, past: list[F32]) -> list[F32]:
    values = [embeds[None], layout.position_ids[None], layout.bias, rows.astype(np.int64), *past]
    found: list[F32] = session.run(None, dict(zip(input_names(layers), values, strict=True)))
    return found


def _session(path: Path, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no public base
        raise InvalidModel(f"{path.name} cannot be loaded by onnxruntime ({error}); export it again") from error


def _maps(folder: Path) -> InputMaps:
    with np.load(folder / "diffusion.npz") as saved:
        parts = {name: saved[name] for name in ("mean", "w_diff", "w_time", "w_time_bias")}
    return InputMaps(table=np.load(folder / "embed.npy", mmap_mode="r"), **parts)


def _window(rng: np.random.Generator, text: I32, vocab: int, block: int = 8) -> tuple[I32, Window]:
    """A context of 6 to 64 tokens and the window after it, levels drawn per position."""
    length = int(rng.integers(6, 65))
    if len(text) < length + block:
        text = rng.integers(0, vocab, length + block).astype(np.int32)
    start = int(rng.integers(0, len(text) - length - block + 1))
    context, answer = text[start : start + length], text[start + length : start + length + block]
    u = rng.choice(_LEVELS, block).astype(np.float32)
    sets = TokenSets.of([[int(token)] if level < 1 else [] for token, level in zip(answer, u, strict=True)])
    return context, Window(0, 1, 0, u, sets, int(rng.integers(0, 2**63)))


def _log_softmax(x: F32) -> F32:
    shifted = x - x.max(-1, keepdims=True)
    out: F32 = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return out
