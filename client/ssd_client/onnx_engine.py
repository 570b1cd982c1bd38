"""The device's engine: numbered slots over an exported graph, with numpy and onnxruntime only.

A pass reads [pending clean tokens | anchor | window] by the rules of `ssd_diffusion.layout`; the graph gives back the
keys and values of the new tokens, which go into arrays allocated ahead. Every slot is a run of its own, so no row's
bits depend on its companions. Knows nothing about sessions, text, sampling, or how the graph was made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnxruntime
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import ContextOverflow, InvalidModel, InvalidStep
from ssd_diffusion.layout import InputMaps, pass_layout, shift_conditioning
from ssd_diffusion.spec_file import read_spec
from ssd_diffusion.window import Window
from ssd_kernels.simplex import softmax_embed
from ssd_kernels.types import F32, I32

ONNX_DIR = "onnx"
GRAPHS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
FORMAT = 1
_ROOM = 128
_PREFILL_CHUNK = 256
_NONE = np.zeros(0, np.float32)


@dataclass(slots=True, eq=False)
class _Slot:
    """What a slot holds: tokens, cached keys and values per layer, self-conditioning before and after the last step."""

    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    cache: list[F32] = field(default_factory=list)
    passes: int = 0
    last_step: int = -1
    cached_before: int = 0
    sc_in: F32 | None = None
    sc_in_start: int = 0
    sc_out: F32 | None = None
    sc_out_start: int = 0


class OnnxEngine:
    """`ssd_diffusion.engine.Engine` over an exported graph.

    Args:
        folder: an expert's folder: model.json and onnx/.
        slots: how many slots there are.
        threads: of onnxruntime within an operation; 0 leaves the choice to it.
        precision: "fp32" or "int8"; by default what the export says.

    Raises:
        InvalidModel: a file is missing, truncated, foreign, or does not fit the others.
    """

    def __init__(self, folder: Path, *, slots: int = 2, threads: int = 0, precision: str | None = None) -> None:
        self._spec = read_spec(folder)
        if self._spec.family != "ssd2":
            raise InvalidModel(
                f"{folder} holds a model of the {self._spec.family} family, which this device cannot run"
            )
        chosen = precision or _chosen(folder / ONNX_DIR)
        if chosen not in GRAPHS:
            raise InvalidModel(f"there is no precision {chosen!r}; use {' or '.join(GRAPHS)}")
        self.precision = chosen
        self._maps = load_maps(folder / ONNX_DIR)
        self._session = open_session(folder / ONNX_DIR / GRAPHS[chosen], threads)
        self._names = [one.name for one in self._session.get_inputs()]
        self._slots = [_Slot() for _ in range(slots)]
        layers = (len(self._names) - 4) // 2
        if self._maps.table.shape != (self._spec.vocab, self._spec.hidden) or layers != self._spec.layers:
            raise InvalidModel(f"the files of {folder} do not belong together; personalize again")

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self._spec

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self._slots)

    def prefill(self, slots: Sequence[int], contexts: Sequence[I32]) -> None:
        """Reset the slots and read their contexts, all but the last token.

        Raises:
            ContextOverflow: a context is longer than the spec allows, or empty.
        """
        for context in contexts:
            if not 1 <= len(context) <= self._spec.max_context:
                raise ContextOverflow(
                    f"the context has {len(context)} tokens; this model takes 1 to {self._spec.max_context}"
                )
        for number, context in zip(slots, contexts, strict=True):
            slot = self._slots[number] = _Slot(tokens=[int(t) for t in context])
            while slot.cached < len(slot.tokens) - 1:
                self._read(slot, min(len(slot.tokens) - 1, slot.cached + _PREFILL_CHUNK))

    def commit(self, slots: Sequence[int], tokens: Sequence[I32]) -> None:
        """Append clean tokens to the contexts; they are computed in the next pass."""
        for number, ids in zip(slots, tokens, strict=True):
            self._slots[number].tokens.extend(int(t) for t in ids)

    def step(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        """Denoise one window per slot; see `ssd_diffusion.engine.Engine.step`.

        Raises:
            ContextOverflow: context and window exceed the spec.
            InvalidStep: a slot without a context.
        """
        return [self._step(self._slots[n], window) for n, window in zip(slots, windows, strict=True)]

    def next_logits(self, slots: Sequence[int]) -> list[F32]:
        """Raw next-token logits [V] after each slot's context, by a plain causal pass.

        Raises:
            ContextOverflow: the context is full.
            InvalidStep: a slot without a context.
        """
        out = []
        for number in slots:
            slot = self._slots[number]
            self._check(slot, 0)
            embeds = self._maps.embed(_ids(slot.tokens[slot.cached :]))
            pending = len(embeds) - 1
            out.append(self._run(slot, embeds, pending, _NONE, 1)[0])
        return out

    def release(self, slots: Sequence[int]) -> None:
        """Forget the slots' contexts and state."""
        for number in slots:
            self._slots[number] = _Slot()

    def slot_bytes(self, slot: int) -> int:
        """Bytes of cache and self-conditioning that the slot holds now."""
        held = self._slots[slot]
        arrays = [*held.cache, *(a for a in (held.sc_in, held.sc_out) if a is not None)]
        return sum(a.nbytes for a in arrays) + 8 * len(held.tokens)

    def forward_passes(self, slot: int) -> int:
        """Forward passes since the slot's prefill, its own passes included."""
        return self._slots[slot].passes

    def _check(self, slot: _Slot, block: int) -> None:
        if not slot.tokens:
            raise InvalidStep("the slot holds no context; prefill it first")
        if len(slot.tokens) + block > self._spec.max_context:
            raise ContextOverflow(
                f"context and window come to {len(slot.tokens) + block} tokens; this model takes "
                f"{self._spec.max_context}"
            )

    def _step(self, slot: _Slot, window: Window) -> F32:
        block = len(window.u)
        self._check(slot, block)
        _begin_step(slot, window)
        maps, spec = self._maps, self._spec
        conditioning = shift_conditioning(slot.sc_in, window.start - slot.sc_in_start, block, maps.mean)
        tokens = _ids(slot.tokens[slot.cached :])
        embeds = np.concatenate([
            maps.embed(tokens[:-1]), maps.embed_clean(tokens[-1:]),
            maps.embed_window(window, conditioning, simplex_k=spec.simplex_k, schedule_s=spec.schedule_s),
        ])  # fmt: skip
        logits = self._run(slot, embeds, len(tokens) - 1, window.u, block)
        slot.sc_out, slot.sc_out_start = softmax_embed(logits, maps.table), window.start
        return logits

    def _read(self, slot: _Slot, end: int) -> None:
        """Compute tokens up to `end` into the cache; the graph's last query is a token of the cache here."""
        embeds = self._maps.embed(_ids(slot.tokens[slot.cached : end]))
        self._run(slot, embeds, len(embeds), _NONE, 0)

    def _run(self, slot: _Slot, embeds: F32, pending: int, u: F32, wanted: int) -> F32:
        """One pass; the first `pending` inputs go into the cache, the next `wanted` queries give logits. [wanted, V]"""
        layout = pass_layout(slot.cached, len(embeds) - 1 - len(u), u)
        past = [array[:, :, : slot.cached] for array in slot.cache] if slot.cache else self._empty()
        rows = np.arange(pending, pending + wanted, dtype=np.int64)
        values = [embeds[None], layout.position_ids[None], layout.bias, rows, *past]
        logits, *new = self._session.run(None, dict(zip(self._names, values, strict=True)))
        self._absorb(slot, new, pending)
        slot.passes += 1
        found: F32 = logits
        return found

    def _empty(self) -> list[F32]:
        spec = self._spec
        return [np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)] * (2 * spec.layers)

    def _absorb(self, slot: _Slot, new: list[F32], count: int) -> None:
        need = slot.cached + count
        room = slot.cache[0].shape[2] if slot.cache else 0
        if need > room or not slot.cache:
            room = -(-max(need, room + room // 2, 1) // _ROOM) * _ROOM
            slot.cache = [self._grown(slot, i, room) for i in range(len(new))]
        for held, fresh in zip(slot.cache, new, strict=True):
            held[:, :, slot.cached : need] = fresh[:, :, :count]
        slot.cached = need

    def _grown(self, slot: _Slot, index: int, room: int) -> F32:
        out = np.zeros((1, self._spec.kv_heads, room, self._spec.head_dim), np.float32)
        if slot.cache:
            out[:, :, : slot.cached] = slot.cache[index][:, :, : slot.cached]
        return out


def load_maps(folder: Path) -> InputMaps:
    """Embeddings (memory-mapped) and diffusion maps of an export.

    Raises:
        InvalidModel: a file is missing or damaged.
    """
    try:
        with (folder / "diffusion.npz").open("rb") as file, np.load(file) as saved:
            parts = {name: saved[name] for name in ("mean", "w_diff", "w_time", "w_time_bias")}
        return InputMaps(table=np.load(folder / "embed.npy", mmap_mode="r"), **parts)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InvalidModel(f"the embeddings in {folder} cannot be read ({error}); personalize again") from error


def open_session(path: Path, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU.

    Raises:
        InvalidModel: the graph is missing, truncated or foreign.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    # Idle threads sleep: core and expert often share the device's few cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no public base
        first = (str(error).splitlines() or [""])[0][:160]
        raise InvalidModel(f"{path} is not a graph that can be run ({first}); personalize again") from error


def _chosen(folder: Path) -> str:
    path = folder / "export.json"
    try:
        card = json.loads(path.read_text())
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']}")
        return str(card["use"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidModel(f"{path} is not an export of this version ({error}); personalize again") from error


def _ids(tokens: list[int]) -> I32:
    return np.asarray(tokens, dtype=np.int32)


def _begin_step(slot: _Slot, window: Window) -> None:
    """Take the last step's outcome as this one's input, or go back when the same step is asked for again."""
    if window.step == slot.last_step:
        slot.cached = slot.cached_before
        return
    slot.sc_in, slot.sc_in_start = slot.sc_out, slot.sc_out_start
    if window.step == 0:
        slot.sc_in = None
    slot.last_step, slot.cached_before = window.step, slot.cached
