"""The engine of a CPU, on device and node: numbered slots over an exported graph, with numpy and onnxruntime only.

A pass reads [pending clean tokens | anchor | window] by the rules of `ssd_diffusion.layout`; the graph gives back the
keys and values of the new tokens, which go into arrays allocated ahead. Every slot is a run of its own, so no row's
bits depend on its companions, but for slots that a caller joins (`step_joined`). Knows nothing about sessions, text,
sampling, or how the graph was made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnxruntime
from ssd_kernels.simplex import softmax_embed
from ssd_kernels.types import F32, I32, I64

from ssd_diffusion.drafting import HEAD_FILE, TRANSITION_FILE, TransitionMaps
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.layout import InputMaps, PassLayout, joined_layout, lookahead_layout, pass_layout
from ssd_diffusion.slots import PREFILL_CHUNK, Slot, SlotEngine, cache_length
from ssd_diffusion.spec_file import read_spec
from ssd_diffusion.window import Window

ONNX_DIR = "onnx"
GRAPHS = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
FORMAT = 1
_ROOM = 128
_NONE = np.zeros(0, np.float32)
_NO_PARENTS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What one slot brings into a pass that looks ahead: its inputs, who reads whom, queries whose logits it wants."""

    slot: Slot[F32]
    embeds: F32
    layout: PassLayout
    rows: I64


class OnnxEngine(SlotEngine[F32]):
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
        super().__init__(read_spec(folder), slots)
        if self._spec.family != "ssd2":
            raise InvalidModel(
                f"{folder} holds a model of the {self._spec.family} family, which this device cannot run"
            )
        chosen = precision or _chosen(folder / ONNX_DIR)
        if chosen not in GRAPHS:
            raise InvalidModel(f"there is no precision {chosen!r}; use {' or '.join(GRAPHS)}")
        self.folder, self.precision = folder, chosen
        self._maps = load_maps(folder / ONNX_DIR)
        self._session = open_session(folder / ONNX_DIR / GRAPHS[chosen], threads)
        self._names = [one.name for one in self._session.get_inputs()]
        layers = (len(self._names) - 4) // 2
        if self._maps.table.shape != (self._spec.vocab, self._spec.hidden) or layers != self._spec.layers:
            raise InvalidModel(f"the files of {folder} do not belong together; personalize again")

    def prefill(self, slots: Sequence[int], contexts: Sequence[I32]) -> None:
        """Reset the slots and read their contexts, all but the last token.

        Raises:
            ContextOverflow: a context is longer than the spec allows, or empty.
        """
        for slot in self._reset(slots, contexts):
            while slot.pending > 0:
                self._read(slot, min(slot.pending, PREFILL_CHUNK))

    def step(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        """Denoise one window per slot; see `ssd_diffusion.engine.Engine.step`.

        Raises:
            ContextOverflow: context and window exceed the spec.
            InvalidStep: a slot without a context.
        """
        return [self._step(n, window) for n, window in zip(slots, windows, strict=True)]

    def next_logits(self, slots: Sequence[int]) -> list[F32]:
        """Raw next-token logits [V] after each slot's context, by a plain causal pass.

        Raises:
            ContextOverflow: the context is full.
            InvalidStep: a slot without a context.
        """
        out = []
        for number in slots:
            slot = self._ready(number, 0)
            embeds = self._maps.embed(_ids(slot.tokens[slot.cached :]))
            layout = pass_layout(slot.cached, slot.pending, _NONE)
            out.append(self._run(slot, embeds, layout, slot.pending, slot.pending, 1)[0])
        return out

    def _step(self, number: int, window: Window) -> F32:
        slot = self._ready(number, len(window.u))
        slot.begin(window)
        if window.parents is not None:
            return self._look_ahead(slot, window)
        block, maps, spec = len(window.u), self._maps, self._spec
        conditioning = slot.conditioning(maps.means(block), window.start)
        tokens = _ids(slot.tokens[slot.cached :])
        embeds = np.concatenate([
            maps.embed(tokens[:-1]), maps.embed_clean(tokens[-1:]),
            maps.embed_window(window, conditioning, simplex_k=spec.simplex_k, schedule_s=spec.schedule_s),
        ])  # fmt: skip
        layout = pass_layout(slot.cached, slot.pending, window.u)
        logits = self._run(slot, embeds, layout, slot.pending, slot.pending, block)
        slot.sc_out, slot.sc_out_start = softmax_embed(logits, maps.whole), window.start
        return logits

    def step_joined(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        """As `step`; windows that look ahead in one run, one behind the other, none reading another.

        Raises:
            ContextOverflow: context and window exceed the spec.
            InvalidStep: a slot without a context.
        """
        if any(window.parents is None for window in windows):
            return self.step(slots, windows)
        parts = []
        for number, window in zip(slots, windows, strict=True):
            slot = self._ready(number, len(window.u))
            slot.begin(window)
            parts.append(self._ahead_part(slot, window))
        embeds = np.concatenate([part.embeds for part in parts])
        first, queries = 0, []
        for part in parts:
            queries.append(first + part.rows)
            first += len(part.embeds)
        layout, past = joined_layout([part.layout for part in parts]), self._joined_past([p.slot for p in parts])
        logits, *new = self._feed(embeds, layout, np.concatenate(queries), past)
        first, found, done = 0, [], 0
        for part, window in zip(parts, windows, strict=True):
            self._absorb(part.slot, [one[:, :, first : first + len(part.embeds)] for one in new], part.slot.pending)
            part.slot.passes += 1
            part.slot.sc_out, part.slot.sc_out_start = None, window.start
            found.append(logits[done : done + len(part.rows)])
            first, done = first + len(part.embeds), done + len(part.rows)
        return found

    def _look_ahead(self, slot: Slot[F32], window: Window) -> F32:
        part = self._ahead_part(slot, window)
        logits = self._run(slot, part.embeds, part.layout, slot.pending, int(part.rows[0]), len(part.rows))
        slot.sc_out, slot.sc_out_start = None, window.start
        return logits

    def _ahead_part(self, slot: Slot[F32], window: Window) -> _Part:
        parents = _NO_PARENTS if window.parents is None else window.parents
        tokens = _ids(slot.tokens[slot.cached :])
        embeds = np.concatenate([self._maps.embed(tokens[:-1]), self._maps.embed_ahead(int(tokens[-1]), window)])
        layout = lookahead_layout(slot.cached, slot.pending, parents, window.ahead)
        first = slot.pending + len(parents)
        return _Part(slot, embeds, layout, np.arange(first, first + window.rows, dtype=np.int64))

    def _joined_past(self, slots: Sequence[Slot[F32]]) -> list[F32]:
        """The caches of several slots, one behind the other."""
        held = [[array[:, :, : slot.cached] for array in slot.cache] or self._empty() for slot in slots]
        return [np.concatenate(arrays, axis=2) for arrays in zip(*held, strict=True)]

    def _read(self, slot: Slot[F32], count: int) -> None:
        """Compute `count` waiting tokens into the cache; the graph's last query is a token of the cache here."""
        embeds = self._maps.embed(_ids(slot.tokens[slot.cached : slot.cached + count]))
        self._run(slot, embeds, pass_layout(slot.cached, count - 1, _NONE), count, count, 0)

    def _run(self, slot: Slot[F32], embeds: F32, layout: PassLayout, pending: int, first: int, wanted: int) -> F32:
        """One pass: `pending` inputs go into the cache, `wanted` queries from `first` on give logits [wanted, V]."""
        past = [array[:, :, : slot.cached] for array in slot.cache] if slot.cache else self._empty()
        logits, *new = self._feed(embeds, layout, np.arange(first, first + wanted, dtype=np.int64), past)
        self._absorb(slot, new, pending)
        slot.passes += 1
        return logits

    def _feed(self, embeds: F32, layout: PassLayout, rows: I64, past: list[F32]) -> list[F32]:
        """Run the graph: logits, and keys and values of all queries."""
        values = [embeds[None], layout.position_ids[None], layout.bias, rows, *past]
        found: list[F32] = self._session.run(None, dict(zip(self._names, values, strict=True)))
        return found

    def _empty(self) -> list[F32]:
        spec = self._spec
        return [np.zeros((1, spec.kv_heads, 0, spec.head_dim), np.float32)] * (2 * spec.layers)

    def _absorb(self, slot: Slot[F32], new: list[F32], count: int) -> None:
        need = slot.cached + count
        room = slot.cache[0].shape[2] if slot.cache else 0
        if need > room or not slot.cache:
            room = cache_length(need, room, _ROOM)
            slot.cache = [self._grown(slot, i, room) for i in range(len(new))]
        for held, fresh in zip(slot.cache, new, strict=True):
            held[:, :, slot.cached : need] = fresh[:, :, :count]
        slot.cached = need

    def _grown(self, slot: Slot[F32], index: int, room: int) -> F32:
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


def load_transition(folder: Path) -> TransitionMaps | None:
    """The transition of an exported expert, or None where its model has none.

    Raises:
        InvalidModel: a file is damaged, or does not fit the others.
    """
    onnx = folder / ONNX_DIR
    path = onnx / TRANSITION_FILE
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file) as saved:
            inner, bias, outer = (saved[name] for name in ("inner", "inner_bias", "outer"))
        table = np.load(onnx / "embed.npy", mmap_mode="r")
        head = np.load(onnx / HEAD_FILE, mmap_mode="r") if (onnx / HEAD_FILE).is_file() else table
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InvalidModel(f"{path} cannot be read ({error}); personalize again") from error
    hidden, width = table.shape[1], len(bias)
    if inner.shape != (width, 2 * hidden) or outer.shape != (hidden, width) or head.shape != table.shape:
        raise InvalidModel(f"the files of {folder} do not belong together; personalize again")
    return TransitionMaps(table=table, head=head, inner=inner, inner_bias=bias, outer=outer)


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
