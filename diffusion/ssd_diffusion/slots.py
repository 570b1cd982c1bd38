"""The numbered slots of an SSD-2 engine: clean tokens, what of them is cached, and the self-conditioning between steps.

Committed tokens wait in their slot until the next pass computes them. The same step asked for again starts from where
it started the first time. Whatever runs the network (torch, onnxruntime) brings its own arrays; this module only
keeps them, so it imports neither. Knows nothing about networks, sessions, text or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ssd_kernels.types import I32

from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import ContextOverflow, InvalidStep
from ssd_diffusion.window import Window

PREFILL_CHUNK = 256
"""Most tokens of a context that one pass of the prefill reads."""


class Rows(Protocol):
    """An array of numpy or torch, as far as a slot must know it."""

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: slice, /) -> Any: ...
    def __setitem__(self, index: slice, value: Any, /) -> None: ...


R = TypeVar("R", bound=Rows)


@dataclass(slots=True, eq=False)
class Slot(Generic[R]):
    """What a slot holds.

    Attributes:
        tokens: the clean context; the last token is the anchor, which is never cached.
        cached: how many of the tokens the cache holds.
        cache: keys and values, as the engine lays them out; empty before there are any.
        passes: forward passes since the prefill.
        last_step: number of the last step, -1 before the first.
        cached_before: `cached` at the beginning of the last step.
        sc_in: self-conditioning that the last step read, softmax(logits) E of the step before. [B, H]
        sc_in_start: position of its first row.
        sc_out: self-conditioning that the last step left. [B, H]
        sc_out_start: position of its first row.
    """

    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    cache: list[R] = field(default_factory=list)
    passes: int = 0
    last_step: int = -1
    cached_before: int = 0
    sc_in: R | None = None
    sc_in_start: int = 0
    sc_out: R | None = None
    sc_out_start: int = 0

    @property
    def pending(self) -> int:
        """Clean tokens before the anchor that are not cached yet."""
        return len(self.tokens) - 1 - self.cached

    @property
    def nbytes(self) -> int:
        """Bytes of cache, self-conditioning and tokens."""
        arrays = [*self.cache, *(rows for rows in (self.sc_in, self.sc_out) if rows is not None)]
        return sum(rows.nbytes for rows in arrays) + 8 * len(self.tokens)

    def begin(self, window: Window) -> None:
        """Take the last step's outcome as this one's input, or go back when the same step is asked for again."""
        if window.step == self.last_step:
            self.cached = self.cached_before
            return
        self.sc_in, self.sc_in_start = (self.sc_out, self.sc_out_start) if window.step else (None, 0)
        self.last_step, self.cached_before = window.step, self.cached

    def conditioning(self, means: R, start: int) -> R:
        """Incoming self-conditioning, moved to where the window is now. [B, H]

        Args:
            means: the mean of E at every position; written over where the pass before had the position. [B, H]
            start: first position of the window.
        """
        if self.sc_in is not None:
            kept = self.sc_in[max(start - self.sc_in_start, 0) :][: len(means)]
            means[: len(kept)] = kept
        return means


class SlotEngine(Generic[R]):
    """The part of `ssd_diffusion.engine.Engine` that keeps slots; prefill, step and next_logits run the network.

    Args:
        spec: what the model is.
        slots: how many slots there are.
    """

    def __init__(self, spec: ModelSpec, slots: int) -> None:
        self._spec = spec
        self._slots: list[Slot[R]] = [Slot() for _ in range(slots)]

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self._spec

    @property
    def slots(self) -> int:
        """How many slots there are."""
        return len(self._slots)

    def commit(self, slots: Sequence[int], tokens: Sequence[I32]) -> None:
        """Append clean tokens to the contexts; they are computed in the next pass."""
        for number, ids in zip(slots, tokens, strict=True):
            self._slots[number].tokens.extend(int(t) for t in ids)

    def release(self, slots: Sequence[int]) -> None:
        """Forget the slots' contexts and state."""
        for number in slots:
            self._slots[number] = Slot()

    def slot_bytes(self, slot: int) -> int:
        """Bytes of cache and self-conditioning that the slot holds now."""
        return self._slots[slot].nbytes

    def forward_passes(self, slot: int) -> int:
        """Forward passes since the slot's prefill, its own passes included."""
        return self._slots[slot].passes

    def _reset(self, slots: Sequence[int], contexts: Sequence[I32]) -> list[Slot[R]]:
        """Fresh slots that hold these contexts, nothing of them cached yet.

        Raises:
            ContextOverflow: a context is longer than the spec allows, or empty; no slot has changed then.
        """
        for context in contexts:
            if not 1 <= len(context) <= self._spec.max_context:
                raise ContextOverflow(
                    f"the context has {len(context)} tokens; this model takes 1 to {self._spec.max_context}"
                )
        for number, context in zip(slots, contexts, strict=True):
            self._slots[number] = Slot(tokens=[int(t) for t in context])
        return [self._slots[number] for number in slots]

    def _ready(self, number: int, block: int) -> Slot[R]:
        """The slot, if it can take a window of `block` positions after its context.

        Raises:
            ContextOverflow: context and window exceed the spec.
            InvalidStep: it holds no context.
        """
        slot = self._slots[number]
        if not slot.tokens:
            raise InvalidStep("the slot holds no context; prefill it first")
        if len(slot.tokens) + block > self._spec.max_context:
            raise ContextOverflow(
                f"context and window come to {len(slot.tokens) + block} tokens; this model takes "
                f"{self._spec.max_context}"
            )
        return slot


def cache_length(need: int, room: int, bucket: int) -> int:
    """Tokens to make room for when `need` no longer fit in `room`: half as much again at least, in whole buckets."""
    return -(-max(need, room + room // 2, 1) // bucket) * bucket
