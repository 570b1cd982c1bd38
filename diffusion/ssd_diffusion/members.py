"""A member that runs on an engine in this process.

Knows one slot of one engine; the same engine may hold several members (the expert with and without private context).
"""

from __future__ import annotations

import numpy as np
from ssd_kernels.types import F32, I32

from ssd_diffusion.engine import Engine, JoinedEngine, Member, ModelSpec
from ssd_diffusion.window import Window


class EngineMember:
    """One slot of an engine as a `Member`.

    Args:
        engine: where it runs; used by one thread at a time.
        slot: a free slot.
        context: clean token ids before the answer, at least one.
        name: short name for reports.

    Raises:
        ContextOverflow: the context does not fit the engine.
    """

    def __init__(self, engine: Engine, slot: int, context: I32, *, name: str) -> None:
        self._engine, self._slot, self._name = engine, slot, name
        self._open = True
        engine.prefill([slot], [np.asarray(context, dtype=np.int32)])

    @property
    def name(self) -> str:
        """Short name for reports."""
        return self._name

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self._engine.spec

    @property
    def forward_passes(self) -> int:
        """Forward passes of the network so far."""
        return self._engine.forward_passes(self._slot)

    def step(self, window: Window, committed: I32) -> F32:
        """Logits [B, V] for the window, after appending the committed tokens."""
        self._append(committed)
        return self._engine.step([self._slot], [window])[0]

    def joined(self, other: Member) -> JoinedEngine | None:
        """The engine of both, where it can run them in one pass."""
        if isinstance(other, EngineMember) and other._engine is self._engine and isinstance(self._engine, JoinedEngine):
            return self._engine
        return None

    def skip(self, window: Window, committed: I32) -> None:  # noqa: ARG002 - the slot needs the tokens alone
        """Append the committed tokens without a pass."""
        self._append(committed)

    def next(self, committed: I32) -> F32:
        """Next-token logits [V] of the autoregressive twin."""
        self._append(committed)
        return self._engine.next_logits([self._slot])[0]

    def close(self) -> None:
        """Release the slot. Safe to call twice."""
        if self._open:
            self._open = False
            self._engine.release([self._slot])

    def _append(self, committed: I32) -> None:
        if len(committed):
            self._engine.commit([self._slot], [committed])


def step_together(first: Member, second: Member, windows: tuple[Window, Window], committed: I32) -> tuple[F32, F32]:
    """Both members' logits for their windows; in one pass where they share an engine that can."""
    engine = first.joined(second) if isinstance(first, EngineMember) else None
    if engine is None or not isinstance(first, EngineMember) or not isinstance(second, EngineMember):
        return first.step(windows[0], committed), second.step(windows[1], committed)
    first._append(committed)
    second._append(committed)
    ours, theirs = engine.step_joined((first._slot, second._slot), windows)
    return ours, theirs
