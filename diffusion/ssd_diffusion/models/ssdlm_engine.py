"""The engine of the SSD-LM family: numbered slots that hold a context; every step recomputes [context ; block].

Nothing is cached, because a bidirectional context changes with the block. Noise is in the state at every level, u = 1
included, and comes from the shared counter. There is no self-conditioning and no next-token head. Every slot is a
forward pass of its own, so no slot's bits depend on its companions. Knows nothing about sessions, text or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from ssd_kernels.simplex import renoise_embed
from ssd_kernels.tables import WholeTable
from ssd_kernels.types import F32, I32

from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import ContextOverflow, InvalidModel
from ssd_diffusion.models.ssdlm import Guidance, SsdlmModel, guide
from ssd_diffusion.schedule import alpha_bar
from ssd_diffusion.window import Window


@dataclass(slots=True)
class _Slot:
    tokens: list[int] = field(default_factory=list)
    passes: int = 0


class SsdlmEngine:
    """`ssd_diffusion.engine.Engine` over an SSD-LM model.

    Args:
        model: the network; put into evaluation mode.
        spec: what it is; family "ssdlm".
        slots: how many slots.
        guidance: control by a classifier, applied to every step's logits before they leave the engine.

    Raises:
        InvalidModel: a spec of another family or of other sizes than the network.
    """

    def __init__(self, model: SsdlmModel, spec: ModelSpec, *, slots: int = 4, guidance: Guidance | None = None) -> None:
        if spec.family != "ssdlm" or spec.hidden != model.hidden or spec.vocab > model.vocab:
            raise InvalidModel("the model's card does not describe these weights; fetch the model again")
        self._model = model.eval()
        self._spec = spec
        self._guidance = guidance
        self._table = WholeTable(np.ascontiguousarray(model.w_diff.detach()[: spec.vocab].float().cpu().numpy()))
        self._slots: list[_Slot | None] = [None] * slots

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self._spec

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self._slots)

    def prefill(self, slots: Sequence[int], contexts: Sequence[I32]) -> None:
        """Reset the slots and take their contexts; nothing is computed yet.

        Raises:
            ContextOverflow: a context is empty or longer than the model takes.
        """
        most = self._limit
        for context in contexts:
            if not 1 <= len(context) <= most:
                raise ContextOverflow(f"the prompt has {len(context)} tokens and this model takes from 1 to {most}")
        for slot, context in zip(slots, contexts, strict=True):
            self._slots[slot] = _Slot([int(t) for t in context])

    def commit(self, slots: Sequence[int], tokens: Sequence[I32]) -> None:
        """Append clean tokens to the contexts."""
        for slot, new in zip(slots, tokens, strict=True):
            self._held(slot).tokens.extend(int(t) for t in new)

    def step(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        """Logits [B, V] of each window.

        Raises:
            ContextOverflow: context and window exceed the model's positions.
        """
        return [self._denoise(self._held(slot), window) for slot, window in zip(slots, windows, strict=True)]

    def next_logits(self, slots: Sequence[int]) -> list[F32]:  # noqa: ARG002 - the protocol's signature
        """There is no next-token head in this family.

        Raises:
            InvalidModel: always.
        """
        raise InvalidModel("this model cannot write one token after the other; use the diffusion decoder")

    def release(self, slots: Sequence[int]) -> None:
        """Forget the slots' contexts."""
        for slot in slots:
            self._slots[slot] = None

    def slot_bytes(self, slot: int) -> int:
        """Bytes that the slot holds: its token ids."""
        held = self._slots[slot]
        return 0 if held is None else 4 * len(held.tokens)

    def forward_passes(self, slot: int) -> int:
        """Forward passes since the slot's prefill, which itself computes nothing."""
        held = self._slots[slot]
        return 0 if held is None else held.passes

    @property
    def _limit(self) -> int:
        return min(self._spec.max_context, self._model.max_positions)

    def _held(self, slot: int) -> _Slot:
        held = self._slots[slot]
        if held is None:
            raise InvalidModel(f"slot {slot} has no context yet; prefill it first")
        return held

    def _denoise(self, slot: _Slot, window: Window) -> F32:
        length = len(slot.tokens) + len(window.u)
        if length > self._limit:
            raise ContextOverflow(
                f"context and answer reach {length} tokens and this model takes {self._limit}; shorten the prompt"
            )
        model, spec = self._model, self._spec
        block = renoise_embed(
            window.w_hat,
            alpha_bar(window.u, spec.schedule_s).astype(np.float32),
            self._table,
            noise_key=window.noise_key,
            positions=window.positions,
            step=window.step,
            block=window.block,
            k=spec.simplex_k,
        )
        weight = model.w_diff
        context = torch.tensor([slot.tokens], device=weight.device)
        with torch.inference_mode():
            noisy = torch.from_numpy(block)[None].to(weight)
            logits = model(context, noisy, torch.from_numpy(window.u.copy())[None].to(weight))[
                ..., : spec.vocab
            ].float()
        slot.passes += 1
        if self._guidance is not None:
            logits = guide(logits.clone(), self._guidance, context)
        return np.ascontiguousarray(logits[0].detach().cpu().numpy(), dtype=np.float32)
