"""The engine of a CPU, on device and node: numbered slots over an exported graph, with numpy and onnxruntime only.

A pass reads [pending clean tokens | anchor | window] by the rules of `ssd_diffusion.layout`; the graph gives back the
keys and values of the new tokens, which go into arrays allocated ahead. Several slots go through a graph of lanes,
where there is one: the products of all queries at once, attention lane by lane, so that no row's bits depend on its
companions. Slots that a caller joins (`step_joined`) share one lane. Knows nothing about sessions, text, sampling, or
how the graph was made.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnxruntime
from ssd_kernels.simplex import softmax_embed
from ssd_kernels.threads import cores
from ssd_kernels.types import F32, I32, I64

from ssd_diffusion.drafting import HEAD_FILE, TRANSITION_FILE, TransitionMaps
from ssd_diffusion.errors import InvalidModel
from ssd_diffusion.graph_names import GRAPHS, ONNX_DIR, input_names, lanes_path
from ssd_diffusion.layout import InputMaps, PassLayout, joined_layout, lookahead_layout, pass_layout
from ssd_diffusion.slots import PREFILL_CHUNK, Slot, SlotEngine, cache_length
from ssd_diffusion.spec_file import read_spec
from ssd_diffusion.window import Window

FORMAT = 2
_ROOM = 128
_SMALL = 200_000_000
"""Bytes of weights up to which two runs at once are better than one."""
_NONE = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What one slot brings into a pass.

    Attributes:
        slot: the slot.
        window: what it denoises; None for a causal pass.
        embeds: its inputs. [Q, H]
        layout: who reads whom.
        kept: how many of its inputs go into the cache.
        rows: queries whose logits it wants.
    """

    slot: Slot[F32]
    window: Window | None
    embeds: F32
    layout: PassLayout
    kept: int
    rows: I64

    @property
    def past(self) -> list[F32]:
        """What the slot's cache holds, as the graph takes it."""
        return [array[: self.slot.cached] for array in self.slot.cache]


@dataclass(frozen=True, slots=True, eq=False)
class _Lanes:
    """A session over a graph of several lanes, and how many."""

    session: Any
    count: int


class OnnxEngine(SlotEngine[F32]):
    """`ssd_diffusion.engine.Engine` over an exported graph.

    Attributes:
        folder: the expert's or core's folder.
        precision: which of its graphs runs.
        batch_width: most slots that share a run.
        parallel: calls that may run at once, each on slots of its own. With a small model two runs of several slots get
            more out of the same cores with half of the threads each, since much of a run is too small to be shared;
            with a larger one, whose runs are nearly all products, fuller runs are worth more.

    Args:
        folder: an expert's folder: model.json and onnx/.
        slots: how many slots there are.
        threads: of onnxruntime within an operation; 0 leaves the choice to it.
        batch_width: most slots that share a run; above 1 by the folder's graph of lanes, where it has one.
        precision: "fp32" or "int8"; by default what the export says.

    Raises:
        InvalidModel: a file is missing, truncated, foreign, or does not fit the others.
    """

    def __init__(
        self, folder: Path, *, slots: int = 2, threads: int = 0, batch_width: int = 1, precision: str | None = None
    ) -> None:
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
        self._layers = (len(self._session.get_inputs()) - 4) // 2
        self._threads, self.batch_width = threads, min(batch_width, slots)
        weights = folder / ONNX_DIR / f"{GRAPHS[chosen]}.data"
        small = weights.is_file() and weights.stat().st_size < _SMALL
        self.parallel = min(2, threads or cores()) if small and self.batch_width > 1 else 1
        self._opening = threading.Lock()
        if self._maps.table.shape != (self._spec.vocab, self._spec.hidden) or self._layers != self._spec.layers:
            raise InvalidModel(f"the files of {folder} do not belong together; personalize again")

    @cached_property
    def _together(self) -> _Lanes | None:
        """The graph of several lanes, which holds the weights once more; None where there is none.

        Opened when several slots first come at once: a node with one caller does not pay for it.
        """
        path = lanes_path(self.folder / ONNX_DIR / GRAPHS[self.precision])
        if self.batch_width == 1 or not path.is_file():
            return None
        session = open_session(path, max(1, (self._threads or cores()) // self.parallel))
        return _Lanes(session, next(int(one.shape[0]) for one in session.get_inputs() if one.name == "queries"))

    def prefill(self, slots: Sequence[int], contexts: Sequence[I32]) -> None:
        """Reset the slots and read their contexts, all but the last token.

        Raises:
            ContextOverflow: a context is longer than the spec allows, or empty.
        """
        for slot in self._reset(slots, contexts):
            while slot.pending > 0:
                self._run(self._reading(slot, min(slot.pending, PREFILL_CHUNK)))

    def step(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        """Denoise one window per slot; see `ssd_diffusion.engine.Engine.step`.

        Raises:
            ContextOverflow: context and window exceed the spec.
            InvalidStep: a slot without a context.
        """
        return self._run_all([self._part(n, window) for n, window in zip(slots, windows, strict=True)])

    def next_logits(self, slots: Sequence[int]) -> list[F32]:
        """Raw next-token logits [V] after each slot's context, by a plain causal pass.

        Raises:
            ContextOverflow: the context is full.
            InvalidStep: a slot without a context.
        """
        parts = []
        for number in slots:
            slot = self._ready(number, 0)
            embeds = self._maps.embed(_ids(slot.tokens[slot.cached :]))
            layout = pass_layout(slot.cached, slot.pending, _NONE)
            parts.append(_Part(slot, None, embeds, layout, slot.pending, np.array([slot.pending])))
        return [logits[0] for logits in self._run_all(parts)]

    def step_joined(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        """As `step`; windows that look ahead in one run, one behind the other, none reading another.

        Raises:
            ContextOverflow: context and window exceed the spec.
            InvalidStep: a slot without a context.
        """
        if any(window.parents is None for window in windows):
            return self.step(slots, windows)
        parts = [self._part(n, window) for n, window in zip(slots, windows, strict=True)]
        layout, past = joined_layout([part.layout for part in parts]), self._joined_past(parts)
        logits, *new = self._feed(np.concatenate([p.embeds for p in parts]), layout, _behind(parts), past)
        return self._shared_out(parts, logits, new)

    # ---- what a slot brings ----

    def _part(self, number: int, window: Window) -> _Part:
        slot = self._ready(number, len(window.u))
        slot.begin(window)
        tokens = _ids(slot.tokens[slot.cached :])
        if window.parents is not None:
            embeds = np.concatenate([self._maps.embed(tokens[:-1]), self._maps.embed_ahead(int(tokens[-1]), window)])
            layout = lookahead_layout(slot.cached, slot.pending, window.parents, window.ahead)
            first, wanted = slot.pending + len(window.parents), window.rows
        else:
            embeds = self._window_embeds(slot, tokens, window)
            layout = pass_layout(slot.cached, slot.pending, window.u)
            first, wanted = slot.pending, len(window.u)
        rows = np.arange(first, first + wanted, dtype=np.int64)
        return _Part(slot, window, embeds, layout, slot.pending, rows)

    def _window_embeds(self, slot: Slot[F32], tokens: I32, window: Window) -> F32:
        maps, spec = self._maps, self._spec
        conditioning = slot.conditioning(maps.means(len(window.u)), window.start)
        noised = maps.embed_window(window, conditioning, simplex_k=spec.simplex_k, schedule_s=spec.schedule_s)
        return np.concatenate([maps.embed(tokens[:-1]), maps.embed_clean(tokens[-1:]), noised])

    def _reading(self, slot: Slot[F32], count: int) -> _Part:
        """`count` waiting tokens for the cache; the graph's last query is one of them here."""
        embeds = self._maps.embed(_ids(slot.tokens[slot.cached : slot.cached + count]))
        layout = pass_layout(slot.cached, count - 1, _NONE)
        return _Part(slot, None, embeds, layout, count, np.zeros(0, np.int64))

    # ---- runs of the graph ----

    def _run_all(self, parts: list[_Part]) -> list[F32]:
        """The logits that each part wants. [rows, V] each"""
        with self._opening:
            lanes = self._together if len(parts) > 1 else None
        width = min(lanes.count, self.batch_width) if lanes is not None else 1
        found: list[F32] = []
        for first in range(0, len(parts), width):
            group = parts[first : first + width]
            found += self._run(group[0]) if lanes is None else self._run_lanes(lanes, group)
        return found

    def _run(self, part: _Part) -> list[F32]:
        logits, *new = self._feed(part.embeds, part.layout, part.rows, part.past or self._empty)
        return self._shared_out([part], logits, new)

    def _run_lanes(self, lanes: _Lanes, parts: list[_Part]) -> list[F32]:
        idle = lanes.count - len(parts)
        sizes = np.array([len(part.embeds) for part in parts] + [0] * idle, np.int64)
        embeds = np.concatenate([part.embeds for part in parts])[None]
        places = np.concatenate([part.layout.position_ids for part in parts])[None]
        each = [array for part in parts for array in (part.layout.bias, *(part.past or self._empty))]
        none = [np.zeros((1, 1, 0, 0), np.float32), *self._empty]
        values = [embeds, places, _behind(parts), sizes, *each, *none * idle]
        names = input_names(self._layers, lanes.count)
        logits, *new = lanes.session.run(None, dict(zip(names, values, strict=True)))
        return self._shared_out(parts, logits, new)

    def _feed(self, embeds: F32, layout: PassLayout, rows: I64, past: list[F32]) -> list[F32]:
        """Run the graph: logits, and keys and values of all queries."""
        values = [embeds[None], layout.position_ids[None], layout.bias, rows, *past]
        found: list[F32] = self._session.run(None, dict(zip(input_names(self._layers), values, strict=True)))
        return found

    def _shared_out(self, parts: list[_Part], logits: F32, new: list[F32]) -> list[F32]:
        """Every part's logits, its new keys and values put into its cache, its self-conditioning kept."""
        first, done, found = 0, 0, []
        for part in parts:
            slot, window, size = part.slot, part.window, len(part.embeds)
            self._absorb(slot, [one[first : first + size] for one in new], part.kept)
            slot.passes += 1
            own = logits[done : done + len(part.rows)]
            if window is not None:
                slot.sc_out = softmax_embed(own, self._maps.whole) if window.parents is None else None
                slot.sc_out_start = window.start
            found.append(own)
            first, done = first + size, done + len(part.rows)
        return found

    def _joined_past(self, parts: Sequence[_Part]) -> list[F32]:
        """The caches of several slots, one behind the other."""
        held = [part.past or self._empty for part in parts]
        return [np.concatenate(arrays) for arrays in zip(*held, strict=True)]

    @cached_property
    def _empty(self) -> list[F32]:
        """The past of a slot that has none."""
        spec = self._spec
        return [np.zeros((0, spec.kv_heads * spec.head_dim), np.float32)] * (2 * spec.layers)

    def _absorb(self, slot: Slot[F32], new: list[F32], count: int) -> None:
        need = slot.cached + count
        room = len(slot.cache[0]) if slot.cache else 0
        if need > room or not slot.cache:
            room = cache_length(need, room, _ROOM)
            slot.cache = [self._grown(slot, i, room) for i in range(len(new))]
        for held, fresh in zip(slot.cache, new, strict=True):
            held[slot.cached : need] = fresh[:count]
        slot.cached = need

    def _grown(self, slot: Slot[F32], index: int, room: int) -> F32:
        out = np.zeros((room, self._spec.kv_heads * self._spec.head_dim), np.float32)
        if slot.cache:
            out[: slot.cached] = slot.cache[index][: slot.cached]
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


def _behind(parts: Sequence[_Part]) -> I64:
    """The queries whose logits are wanted, where all parts' queries stand one behind the other."""
    ends = np.cumsum([len(part.embeds) for part in parts])
    return np.concatenate([part.rows + end - len(part.embeds) for part, end in zip(parts, ends, strict=True)])


def _ids(tokens: list[int]) -> I32:
    return np.asarray(tokens, dtype=np.int32)
