"""The engine behind a member: a model that denoises windows for numbered slots.

The node's torch engine and the device's ONNX engine both have this shape, so that schedulers, members and tests do not
care which one they hold. An engine never sees sessions, requests, text or sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from ssd_kernels.types import F32, I32

from ssd_diffusion.window import Window

Family = Literal["ssd2", "ssdlm"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model is, as far as the others in an ensemble and the wire must know.

    Attributes:
        model_id: "NAME@HASH"; the hash is over weights and configuration.
        family: "ssd2" (decoder backbone, cached clean context, output shift) or "ssdlm" (bidirectional encoder).
        vocab: true V; padded rows are never returned.
        hidden: H, width of the input embedding.
        max_block: largest B.
        max_context: most tokens a slot can hold, window included.
        simplex_k: K of the simplex.
        schedule_s: s of the cosine schedule.
        output_shift: True when the query at position i predicts position i + 1.
        grid: the core's own step grid (noise levels from 1.0 downwards).
        tokenizer_fingerprint: see `tokenizer.fingerprint`.
        eos_ids: tokens that end an answer.
        layers, kv_heads, head_dim: shape of the cache.
    """

    model_id: str
    family: Family
    vocab: int
    hidden: int
    max_block: int
    max_context: int
    simplex_k: float = 5.0
    schedule_s: float = 1e-4
    output_shift: bool = True
    grid: tuple[float, ...] = (1.0, 0.6, 0.5, 0.4, 0.3, 0.2)
    tokenizer_fingerprint: str = ""
    eos_ids: tuple[int, ...] = ()
    layers: int = 0
    kv_heads: int = 0
    head_dim: int = 0


class Engine(Protocol):
    """A model with numbered slots. Every call is blocking, and safe from one thread at a time.

    An engine may say more of itself: `batch_width`, how many slots it likes to get in a call, and `parallel`, how many
    calls it takes at once, each on slots of its own; without them both are 1.

    The context of a slot is its clean tokens. The last one is never cached: it is the anchor, the query whose output
    predicts the first open position (diffusion.md 2, output shift).
    """

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        ...

    @property
    def slots(self) -> int:
        """How many slots there are; ids are 0 .. slots - 1."""
        ...

    def prefill(self, slots: Sequence[int], contexts: Sequence[I32]) -> None:
        """Reset the slots and read their contexts (each at least one token).

        Raises:
            ContextOverflow: a context is longer than `spec.max_context`.
        """
        ...

    def commit(self, slots: Sequence[int], tokens: Sequence[I32]) -> None:
        """Append clean tokens to the contexts. They are computed with the next step, not by a pass of their own."""
        ...

    def step(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        """Denoise one window per slot; returns raw logits [window.rows, V] for each, and keeps the self-conditioning.

        A window that looks ahead gives first the exact rows, what follows the context and each of its drafts, and then,
        for each of these, what its open positions predict: the second token from there on, the third, and so on.

        Calling it again with the same `window.step` recomputes the same logits; at `window.step` 0 there are no
        previous logits to condition on, whatever came before. A row's bits do not depend on the other rows of the call.

        Raises:
            ContextOverflow: context and window exceed `spec.max_context`.
        """
        ...

    def next_logits(self, slots: Sequence[int]) -> list[F32]:
        """The autoregressive twin: raw next-token logits [V] after each slot's context (plain causal pass).

        Raises:
            InvalidModel: the family has no next-token head.
        """
        ...

    def release(self, slots: Sequence[int]) -> None:
        """Forget the slots' contexts and state."""
        ...

    def slot_bytes(self, slot: int) -> int:
        """Bytes of cache and state that the slot holds now."""
        ...

    def forward_passes(self, slot: int) -> int:
        """Forward passes of the network since the slot's prefill (prefill included)."""
        ...


@runtime_checkable
class JoinedEngine(Engine, Protocol):
    """An engine that can run several slots in one pass of the network."""

    def step_joined(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        """As `step`, reading the weights once. A row's last bits depend on which slots were joined.

        Raises:
            ContextOverflow: as `step`.
        """
        ...


class Member(Protocol):
    """One voice of the ensemble: a model with its own context, local or behind the wire."""

    @property
    def name(self) -> str:
        """Short name for reports: "core", "expert", "expert without context"."""
        ...

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        ...

    @property
    def forward_passes(self) -> int:
        """Forward passes of the network so far."""
        ...

    def step(self, window: Window, committed: I32) -> F32:
        """Logits [window.rows, V], after appending the tokens committed since the call before.

        Rows come back as logits or log-probabilities; callers normalise.

        Raises:
            MemberLost: the member cannot answer any more.
        """
        ...

    def skip(self, window: Window, committed: I32) -> None:
        """A pass that goes by without this member: it is only told the window and what was committed.

        Raises:
            MemberLost: the member cannot answer any more.
        """
        ...

    def next(self, committed: I32) -> F32:
        """The autoregressive twin's next-token logits [V].

        Raises:
            MemberLost: the member cannot answer any more.
        """
        ...

    def close(self) -> None:
        """Give back what the member holds. Safe to call twice."""
        ...
