"""The torch engine of the SSD-2 family: numbered slots with a key/value cache, stepped in batches of fixed shapes.

Committed tokens wait until the next pass and are computed in it. Calls are cut into groups whose padded shape follows
from each slot's own lengths alone, and every group is padded to exactly `batch_width` rows, so no row's bits depend on
its companions (diffusion.md 4, trap 7). Knows nothing about sessions, requests, text or sampling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from ssd_kernels.simplex import renoise_embed
from ssd_kernels.types import F32, I32, TokenSets
from torch import Tensor

from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import ContextOverflow, InvalidStep
from ssd_diffusion.models.ssd2 import Ssd2Model, pass_layout
from ssd_diffusion.schedule import alpha_bar
from ssd_diffusion.window import Window

_KEY_BUCKET = 64
_PREFILL_CHUNK = 256


@dataclass(slots=True)
class _Slot:
    """What a slot holds: tokens, cached keys and values, self-conditioning before and after the last step."""

    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    kv: Tensor | None = None
    passes: int = 0
    last_step: int = -1
    cached_before: int = 0
    sc_in: Tensor | None = None
    sc_in_start: int = 0
    sc_out: Tensor | None = None
    sc_out_start: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a group: a slot with its window, and the padded shape that follows from them."""

    index: int
    slot: _Slot
    window: Window | None
    shape: tuple[int, int, int]


class TorchEngine:
    """`ssd_diffusion.engine.Engine` over an `Ssd2Model`."""

    def __init__(self, model: Ssd2Model, spec: ModelSpec, *, slots: int = 8, batch_width: int = 1) -> None:
        """Take a model that is already on its device and in its dtype.

        Args:
            model: the model; put into evaluation mode.
            spec: what the model is.
            slots: how many slots there are.
            batch_width: rows of every forward pass; fewer are padded, more are cut into groups.
        """
        self.model = model.eval()
        self._spec = spec
        self._slots = [_Slot() for _ in range(slots)]
        self.batch_width = batch_width
        self._device = model.w_diff.weight.device
        self._dtype = model.w_diff.weight.dtype
        self._table: F32 = model.table.detach().float().cpu().contiguous().numpy()

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
            self._slots[number] = _Slot(tokens=[int(t) for t in context])
        waiting = [self._slots[n] for n in slots]
        while waiting:
            self._run([self._row(i, slot, None, limit=_PREFILL_CHUNK) for i, slot in enumerate(waiting)])
            waiting = [slot for slot in waiting if len(slot.tokens) - 1 - slot.cached > 0]

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
        rows = []
        for i, (number, window) in enumerate(zip(slots, windows, strict=True)):
            slot = self._slots[number]
            self._check(slot, len(window.u))
            _begin_step(slot, window)
            rows.append(self._row(i, slot, window))
        found = self._run(rows)
        return [found[i] for i in range(len(rows))]

    def next_logits(self, slots: Sequence[int]) -> list[F32]:
        """Raw next-token logits [V] after each slot's context, by a plain causal pass.

        Raises:
            ContextOverflow: the context is full.
            InvalidStep: a slot without a context.
        """
        rows = []
        for i, number in enumerate(slots):
            slot = self._slots[number]
            self._check(slot, 0)
            rows.append(self._row(i, slot, None))
        found = self._run(rows, want_next=True)
        return [found[i] for i in range(len(rows))]

    def release(self, slots: Sequence[int]) -> None:
        """Forget the slots' contexts and state."""
        for number in slots:
            self._slots[number] = _Slot()

    def slot_bytes(self, slot: int) -> int:
        """Bytes of cache and self-conditioning that the slot holds now."""
        held = self._slots[slot]
        tensors = [t for t in (held.kv, held.sc_in, held.sc_out) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors) + 8 * len(held.tokens)

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

    def _row(self, index: int, slot: _Slot, window: Window | None, limit: int | None = None) -> _Row:
        pending = len(slot.tokens) - 1 - slot.cached
        if limit is not None:
            pending = min(pending, limit)
        past = -(-slot.cached // _KEY_BUCKET) * _KEY_BUCKET
        padded = 1 << (pending - 1).bit_length() if pending > 0 else 0
        return _Row(index, slot, window, (past, padded, 0 if window is None else len(window.u)))

    @torch.inference_mode()
    def _run(self, rows: list[_Row], *, want_next: bool = False) -> dict[int, F32]:
        groups: dict[tuple[int, int, int], list[_Row]] = defaultdict(list)
        for row in rows:
            groups[row.shape].append(row)
        found: dict[int, F32] = {}
        for shape, members in groups.items():
            for first in range(0, len(members), self.batch_width):
                found.update(self._pass(members[first : first + self.batch_width], shape, want_next))
        return found

    def _pass(self, rows: list[_Row], shape: tuple[int, int, int], want_next: bool) -> dict[int, F32]:
        past_length, pending_length, block = shape
        if block == 0 and pending_length == 0 and not want_next:
            return {}
        filled = rows + [rows[0]] * (self.batch_width - len(rows))
        counts = [min(len(r.slot.tokens) - 1 - r.slot.cached, pending_length) for r in filled]
        inputs, u = self._inputs(filled, counts, pending_length, block)
        layout = pass_layout(
            torch.tensor([r.slot.cached for r in filled], device=self._device),
            torch.tensor(counts, device=self._device),
            u, past_length=past_length, pending_length=pending_length,
        )  # fmt: skip
        hidden, new = self.model.forward_pass(
            inputs, layout.position_ids, layout.allowed, self._past(filled, past_length)
        )
        if block:
            logits = self.model.logits(hidden[:, pending_length : pending_length + block]).float()
            conditioning = self.model.read(logits)
        elif want_next:
            logits = self.model.logits(hidden[:, pending_length]).float()
        found: dict[int, F32] = {}
        for i, row in enumerate(rows):
            assert new is not None
            self._absorb(row.slot, new[:, :, i, :, : counts[i]])
            row.slot.passes += 1
            if row.window is not None:
                row.slot.sc_out, row.slot.sc_out_start = conditioning[i].clone(), row.window.start
            if block or want_next:
                found[row.index] = logits[i].cpu().numpy()
        return found

    def _inputs(self, rows: list[_Row], counts: list[int], pending_length: int, block: int) -> tuple[Tensor, Tensor]:
        model = self.model
        clean = torch.zeros(len(rows), pending_length + 1, dtype=torch.long)
        for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
            waiting = row.slot.tokens[row.slot.cached : row.slot.cached + count]
            clean[i, : len(waiting)] = torch.tensor(waiting)
            clean[i, -1] = row.slot.tokens[row.slot.cached + count]
        clean = clean.to(self._device)
        parts = [model.embed(clean[:, :-1])]
        # A causal pass (the autoregressive twin) reads its last token as the base does; a window's anchor is at u = 0.
        parts.append(model.embed_clean(clean[:, -1:]) if block else model.embed(clean[:, -1:]))
        u = torch.zeros(len(rows), block)
        if block:
            tokens = torch.zeros(len(rows), block, dtype=torch.long)
            noised = np.zeros((len(rows), block, model.hidden_size), np.float32)
            for i, row in enumerate(rows):
                assert row.window is not None
                u[i] = torch.from_numpy(row.window.u)
                tokens[i] = torch.from_numpy(_accepted_ids(row.window))
                noised[i] = self._noised(row.window)
            conditioning = torch.stack([self._conditioning(row) for row in rows])
            noise = torch.from_numpy(noised).to(self._device, self._dtype)
            parts.append(model.embed_window(tokens.to(self._device), u.to(self._device), noise, conditioning))
        return torch.cat(parts, dim=1), u.to(self._device)

    def _noised(self, window: Window) -> F32:
        """softmax(x_t) E at the open positions with 0 < u < 1, zero elsewhere. [B, H]"""
        out = np.zeros((len(window.u), self._table.shape[1]), np.float32)
        pick = np.flatnonzero((window.u > 0) & (window.u < 1))
        if len(pick):
            out[pick] = renoise_embed(
                TokenSets.of([window.w_hat.row(int(i)).tolist() for i in pick]),
                alpha_bar(window.u[pick], self._spec.schedule_s).astype(np.float32),
                self._table,
                noise_key=window.noise_key,
                positions=window.positions[pick],
                step=window.step,
                block=window.block,
                k=self._spec.simplex_k,
            )
        return out

    def _conditioning(self, row: _Row) -> Tensor:
        """Incoming self-conditioning, shifted by what was committed since; the mean of E past its end. [B, H]"""
        assert row.window is not None
        block = len(row.window.u)
        out = self.model.mean_embedding.expand(block, -1).clone()
        if row.slot.sc_in is not None:
            shift = row.window.start - row.slot.sc_in_start
            kept = row.slot.sc_in[max(shift, 0) :][:block]
            out[: len(kept)] = kept
        return out

    def _past(self, rows: list[_Row], length: int) -> Tensor | None:
        if length == 0:
            return None
        held = []
        for row in rows:
            assert row.slot.kv is not None
            held.append(row.slot.kv[:, :, :, :length])
        return held[0].unsqueeze(2) if len(held) == 1 else torch.stack(held, dim=2)

    def _absorb(self, slot: _Slot, new: Tensor) -> None:
        count = new.shape[-2]
        if count == 0:
            return
        need = slot.cached + count
        room = 0 if slot.kv is None else slot.kv.shape[-2]
        if need > room:
            grown = torch.zeros(*new.shape[:3], _room(need, room), new.shape[-1], dtype=new.dtype, device=new.device)
            if slot.kv is not None:
                grown[:, :, :, : slot.cached] = slot.kv[:, :, :, : slot.cached]
            slot.kv = grown
        assert slot.kv is not None
        slot.kv[:, :, :, slot.cached : need] = new
        slot.cached = need


def _room(need: int, room: int) -> int:
    """Cache length to make: at least half as much again, in whole buckets."""
    return -(-max(need, room + room // 2) // _KEY_BUCKET) * _KEY_BUCKET


def _begin_step(slot: _Slot, window: Window) -> None:
    """Take the last step's outcome as this one's input, or go back when the same step is asked for again."""
    if window.step == slot.last_step:
        slot.cached = slot.cached_before
        return
    slot.sc_in, slot.sc_in_start = (slot.sc_out, slot.sc_out_start) if window.step else (None, 0)
    slot.last_step, slot.cached_before = window.step, slot.cached


def _accepted_ids(window: Window) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The token at every accepted position, 0 elsewhere. [B]"""
    out = np.zeros(len(window.u), np.int64)
    first = window.w_hat.offsets[:-1]
    for i in np.flatnonzero(window.accepted):
        out[i] = window.w_hat.ids[first[i]]
    return out
