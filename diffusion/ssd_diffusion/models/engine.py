"""The torch engine of the SSD-2 family: numbered slots with a key/value cache, stepped in batches of fixed shapes.

Committed tokens wait until the next pass and are computed in it. Calls are cut into groups whose padded shape follows
from each slot's own lengths alone, and every group is padded to exactly `batch_width` rows, so no row's bits depend on
its companions (diffusion.md 4, trap 7). Knows nothing about sessions, requests, text or sampling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from ssd_kernels.tables import WholeTable
from ssd_kernels.types import F32, I32
from torch import Tensor

from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.layout import embed_noised, tree_path
from ssd_diffusion.models.ssd2 import PassLayout, Ssd2Model, lookahead_layout, pass_layout
from ssd_diffusion.slots import PREFILL_CHUNK, Slot, SlotEngine, cache_length
from ssd_diffusion.window import Window

_KEY_BUCKET = 64


@dataclass(frozen=True, slots=True)
class _Shape:
    """Padded sizes of a group: of the past and of the pending tokens, positions of the window, drafts among them."""

    past: int
    pending: int
    block: int
    drafts: int | None


@dataclass(frozen=True, slots=True)
class _Row:
    """One row of a group: a slot with its window, and the padded shape that follows from them."""

    index: int
    slot: Slot[Tensor]
    window: Window | None
    shape: _Shape


class TorchEngine(SlotEngine[Tensor]):
    """`ssd_diffusion.engine.Engine` over an `Ssd2Model`.

    Attributes:
        model: the network.
        batch_width: rows of every forward pass.
        on_card: whether states are noised and embedded by the kernels for a card.
    """

    def __init__(self, model: Ssd2Model, spec: ModelSpec, *, slots: int = 8, batch_width: int = 1) -> None:
        """Take a model that is already on its device and in its dtype.

        Args:
            model: the model; put into evaluation mode.
            spec: what the model is.
            slots: how many slots there are.
            batch_width: rows of every forward pass; fewer are padded, more are cut into groups.
        """
        super().__init__(spec, slots)
        self.model = model.eval()
        self.batch_width = batch_width
        self._device = model.w_diff.weight.device
        self._dtype = model.w_diff.weight.dtype
        self.on_card = self._device.type == "cuda"

    @cached_property
    def _table(self) -> WholeTable:
        """Embeds distributions; made for the first window with a level between 0 and 1."""
        return WholeTable(self.model.table.detach().float().cpu().contiguous().numpy())

    def prefill(self, slots: Sequence[int], contexts: Sequence[I32]) -> None:
        """Reset the slots and read their contexts, all but the last token.

        Raises:
            ContextOverflow: a context is longer than the spec allows, or empty.
        """
        waiting = self._reset(slots, contexts)
        while waiting:
            self._run([self._row(i, slot, None, limit=PREFILL_CHUNK) for i, slot in enumerate(waiting)])
            waiting = [slot for slot in waiting if slot.pending > 0]

    def step(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        """Denoise one window per slot; see `ssd_diffusion.engine.Engine.step`.

        Raises:
            ContextOverflow: context and window exceed the spec.
            InvalidStep: a slot without a context.
        """
        rows = []
        for i, (number, window) in enumerate(zip(slots, windows, strict=True)):
            slot = self._ready(number, len(window.u))
            slot.begin(window)
            rows.append(self._row(i, slot, window))
        found = self._run(rows)
        return [found[i] for i in range(len(rows))]

    def next_logits(self, slots: Sequence[int]) -> list[F32]:
        """Raw next-token logits [V] after each slot's context, by a plain causal pass.

        Raises:
            ContextOverflow: the context is full.
            InvalidStep: a slot without a context.
        """
        rows = [self._row(i, self._ready(number, 0), None) for i, number in enumerate(slots)]
        found = self._run(rows, want_next=True)
        return [found[i] for i in range(len(rows))]

    def _row(self, index: int, slot: Slot[Tensor], window: Window | None, limit: int | None = None) -> _Row:
        pending = slot.pending if limit is None else min(slot.pending, limit)
        past = -(-slot.cached // _KEY_BUCKET) * _KEY_BUCKET
        padded = 1 << (pending - 1).bit_length() if pending > 0 else 0
        block, drafts = (0, None) if window is None else (len(window.u), window.drafts)
        return _Row(index, slot, window, _Shape(past, padded, block, drafts))

    @torch.inference_mode()
    def _run(self, rows: list[_Row], *, want_next: bool = False) -> dict[int, F32]:
        groups: dict[_Shape, list[_Row]] = defaultdict(list)
        for row in rows:
            groups[row.shape].append(row)
        found: dict[int, F32] = {}
        for shape, members in groups.items():
            for first in range(0, len(members), self.batch_width):
                found.update(self._pass(members[first : first + self.batch_width], shape, want_next))
        return found

    def _pass(self, rows: list[_Row], shape: _Shape, want_next: bool) -> dict[int, F32]:
        looks = shape.drafts is not None
        if shape.block == 0 and shape.pending == 0 and not want_next and not looks:
            return {}
        filled = rows + [rows[0]] * (self.batch_width - len(rows))
        counts = [min(r.slot.pending, shape.pending) for r in filled]
        inputs, layout = (self._ahead_inputs if looks else self._inputs)(filled, counts, shape)
        hidden, new = self.model.forward_pass(
            inputs, layout.position_ids, layout.allowed, self._past(filled, shape.past)
        )
        if want_next:
            hidden = hidden[:, shape.pending]
        elif looks:
            hidden = hidden[:, shape.pending + (shape.drafts or 0) :]
        else:
            hidden = hidden[:, shape.pending : shape.pending + shape.block]
        logits = self.model.logits(hidden).float()
        conditioning = self.model.read(logits) if shape.block and not looks else None
        found: dict[int, F32] = {}
        for i, row in enumerate(rows):
            assert new is not None
            self._absorb(row.slot, new[:, :, i, :, : counts[i]])
            row.slot.passes += 1
            if row.window is not None:
                row.slot.sc_out = None if conditioning is None else conditioning[i].clone()
                row.slot.sc_out_start = row.window.start
            if row.window is not None or want_next:
                found[row.index] = logits[i].cpu().numpy()
        return found

    def _clean(self, rows: list[_Row], counts: list[int], pending_length: int) -> Tensor:
        """Pending tokens, padded, and the one after them. [R, P + 1]"""
        clean = torch.zeros(len(rows), pending_length + 1, dtype=torch.long)
        for i, (row, count) in enumerate(zip(rows, counts, strict=True)):
            waiting = row.slot.tokens[row.slot.cached : row.slot.cached + count]
            clean[i, : len(waiting)] = torch.tensor(waiting)
            clean[i, -1] = row.slot.tokens[row.slot.cached + count]
        return clean.to(self._device)

    def _lengths(self, rows: list[_Row], counts: list[int]) -> tuple[Tensor, Tensor]:
        return torch.tensor([r.slot.cached for r in rows], device=self._device), torch.tensor(
            counts, device=self._device
        )

    def _inputs(self, rows: list[_Row], counts: list[int], shape: _Shape) -> tuple[Tensor, PassLayout]:
        """Inputs and layout of windows whose positions read one another, and of causal passes."""
        model, block = self.model, shape.block
        clean = self._clean(rows, counts, shape.pending)
        parts = [model.embed(clean[:, :-1])]
        # A causal pass (the autoregressive twin) reads its last token as the base does; a window's anchor is at u = 0.
        parts.append(model.embed_clean(clean[:, -1:]) if block else model.embed(clean[:, -1:]))
        u = torch.zeros(len(rows), block)
        if block:
            tokens = torch.zeros(len(rows), block, dtype=torch.long)
            for i, row in enumerate(rows):
                assert row.window is not None
                u[i] = torch.from_numpy(row.window.u)
                tokens[i] = torch.from_numpy(_accepted_ids(row.window))
            conditioning = torch.stack([self._conditioning(row) for row in rows])
            noised = self._noised([row.window for row in rows if row.window is not None]).to(self._dtype)
            parts.append(model.embed_window(tokens.to(self._device), u.to(self._device), noised, conditioning))
        cached, pending = self._lengths(rows, counts)
        layout = pass_layout(cached, pending, u.to(self._device), past_length=shape.past, pending_length=shape.pending)
        return torch.cat(parts, dim=1), layout

    def _ahead_inputs(self, rows: list[_Row], counts: list[int], shape: _Shape) -> tuple[Tensor, PassLayout]:
        """Inputs and layout of passes that look ahead, see `lookahead_layout`."""
        model, drafts = self.model, shape.drafts or 0
        ahead = shape.block - drafts
        clean = self._clean(rows, counts, shape.pending)
        drafted = torch.tensor([r.window.w_hat.ids.tolist() for r in rows if r.window is not None], dtype=torch.long)
        tokens = torch.cat([clean[:, -1:], drafted.view(len(rows), drafts).to(self._device)], dim=1)
        nothing = torch.zeros(
            len(rows), (drafts + 1) * ahead, model.hidden_size, device=self._device, dtype=self._dtype
        )
        noise = torch.ones(nothing.shape[:2], device=self._device)
        parts = [model.embed(clean[:, :-1]), model.embed(tokens[:, :-1]), model.embed_clean(tokens)]
        parts.append(model.embed_window(torch.zeros_like(noise, dtype=torch.long), noise, nothing, nothing))
        cached, pending = self._lengths(rows, counts)
        trees = [tree_path(r.window.parents) for r in rows if r.window is not None and r.window.parents is not None]
        path = torch.from_numpy(np.stack(trees)).to(self._device)
        layout = lookahead_layout(cached, pending, path, ahead, past_length=shape.past, pending_length=shape.pending)
        return torch.cat(parts, dim=1), layout

    def _noised(self, windows: Sequence[Window]) -> Tensor:
        """softmax(x_t) E at the open positions with 0 < u < 1, zero elsewhere. [R, B, H]"""
        k, s = self._spec.simplex_k, self._spec.schedule_s
        if self.on_card:
            from ssd_diffusion.models import noised

            return noised.embed_noised(windows, self.model.table.detach(), simplex_k=k, schedule_s=s)
        out = np.zeros((len(windows), len(windows[0].u), self.model.hidden_size), np.float32)
        for rows, window in zip(out, windows, strict=True):
            pick = np.flatnonzero((window.u > 0) & (window.u < 1))
            if len(pick):
                rows[pick] = embed_noised(window, pick, self._table, simplex_k=k, schedule_s=s)
        return torch.from_numpy(out).to(self._device)

    def _conditioning(self, row: _Row) -> Tensor:
        """Incoming self-conditioning of the row's window. [B, H]"""
        assert row.window is not None
        means = self.model.mean_embedding.expand(len(row.window.u), -1).clone()
        return row.slot.conditioning(means, row.window.start)

    def _past(self, rows: list[_Row], length: int) -> Tensor | None:
        if length == 0:
            return None
        held = [row.slot.cache[0][:, :, :, :length] for row in rows]
        return held[0].unsqueeze(2) if len(held) == 1 else torch.stack(held, dim=2)

    def _absorb(self, slot: Slot[Tensor], new: Tensor) -> None:
        """Put keys and values after those that the slot's cache holds. [layers, 2, heads, tokens, width]"""
        count = new.shape[-2]
        if count == 0:
            return
        need = slot.cached + count
        room = slot.cache[0].shape[-2] if slot.cache else 0
        if need > room:
            length = cache_length(need, room, _KEY_BUCKET)
            grown = torch.zeros(*new.shape[:3], length, new.shape[-1], dtype=new.dtype, device=new.device)
            for held in slot.cache:
                grown[:, :, :, : slot.cached] = held[:, :, :, : slot.cached]
            slot.cache = [grown]
        slot.cache[0][:, :, :, slot.cached : need] = new
        slot.cached = need


def _accepted_ids(window: Window) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The token at every accepted position, 0 elsewhere. [B]"""
    out = np.zeros(len(window.u), np.int64)
    first = window.w_hat.offsets[:-1]
    for i in np.flatnonzero(window.accepted):
        out[i] = window.w_hat.ids[first[i]]
    return out
