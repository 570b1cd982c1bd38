"""Several answers decoded at once on one engine: the product's own decoders, their passes gathered into batches.

Every answer runs its decoder in a thread of its own, on a member that asks for a pass and waits. When all answers that
are still open have asked, the calling thread runs their passes in one call of the engine. So any decoder that takes an
`Ensemble` can be measured at the speed of a batch. Knows nothing about which decoder that is, or about text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition
from typing import TypeAlias

import numpy as np
from ssd_diffusion.engine import Engine, ModelSpec
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.errors import MemberLost
from ssd_diffusion.sampler import StepEvent
from ssd_diffusion.window import Window
from ssd_kernels.types import F32, I32

Decode: TypeAlias = Callable[[Ensemble, int], Iterator[StepEvent]]
"""(ensemble, number of the answer) -> its passes."""


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """One text: its ids, and the forward passes that it took, the pass over the prompt included."""

    ids: I32
    passes: int


def decode_together(
    engine: Engine, contexts: Sequence[I32], decode: Decode, *, banned: Sequence[int] = ()
) -> list[Written]:
    """Decode one answer for each context, as many at once as there are contexts.

    Args:
        engine: with at least as many slots.
        contexts: clean tokens before each answer.
        decode: the decoder.
        banned: ids that no answer may hold.

    Raises:
        ContextOverflow: a context does not fit.
        ValueError: fewer slots than contexts.
    """
    if len(contexts) > engine.slots:
        raise ValueError(f"{len(contexts)} answers at once need as many slots; the engine has {engine.slots}")
    if not contexts:
        return []
    slots = list(range(len(contexts)))
    engine.prefill(slots, contexts)
    gather = _Gather(engine, len(contexts), np.asarray(banned, np.int64))
    with ThreadPoolExecutor(len(contexts), thread_name_prefix="answer") as pool:
        answers = [pool.submit(_answer, gather, slot, decode) for slot in slots]
        gather.serve()
    engine.release(slots)
    return [answer.result() for answer in answers]


def _answer(gather: _Gather, slot: int, decode: Decode) -> Written:
    member = GatheredMember(gather, slot)
    try:
        with Ensemble(core=member, private=None, public=None, weights=Weights(lam=0.0)) as ensemble:
            committed = [event.committed for event in decode(ensemble, slot)]
            return Written(np.concatenate(committed).astype(np.int32), member.forward_passes)
    finally:
        gather.leave()


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """A pass that a member waits for; `window` is None for the autoregressive twin."""

    slot: int
    window: Window | None
    committed: I32
    result: Future[F32] = field(default_factory=Future)


class GatheredMember:
    """One slot of a shared engine as a `Member`."""

    def __init__(self, gather: _Gather, slot: int) -> None:
        self._gather, self._slot = gather, slot

    @property
    def name(self) -> str:
        """Short name for reports."""
        return "core"

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        return self._gather.engine.spec

    @property
    def forward_passes(self) -> int:
        """Forward passes of the network so far."""
        return self._gather.engine.forward_passes(self._slot)

    def step(self, window: Window, committed: I32) -> F32:
        """Logits [B, V] for the window, once the others have asked too."""
        return self._gather.ask(_Call(self._slot, window, committed))

    def skip(self, window: Window, committed: I32) -> None:  # noqa: ARG002 - the slot needs the tokens alone
        """Append the committed tokens without a pass."""
        if len(committed):
            self._gather.engine.commit([self._slot], [committed])

    def next(self, committed: I32) -> F32:
        """Next-token logits [V] of the autoregressive twin, once the others have asked too."""
        return self._gather.ask(_Call(self._slot, None, committed))

    def close(self) -> None:
        """The slots are released together, by who opened them."""


class _Gather:
    """The passes that answers wait for, run together once every open answer has asked."""

    def __init__(self, engine: Engine, answers: int, banned: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
        self.engine = engine
        self._open, self._banned = answers, banned
        self._calls: list[_Call] = []
        self._changed = Condition()
        self._ended = False

    def ask(self, call: _Call) -> F32:
        with self._changed:
            if self._ended:
                raise MemberLost("the batch that this answer belongs to was stopped")
            self._calls.append(call)
            self._changed.notify_all()
        return call.result.result()

    def leave(self) -> None:
        with self._changed:
            self._open -= 1
            self._changed.notify_all()

    def serve(self) -> None:
        """Run passes until all answers have left; if one fails, no answer is left waiting."""
        calls: list[_Call] = []
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: len(self._calls) >= self._open)
                    calls, self._calls = sorted(self._calls, key=lambda call: call.slot), []
                if not calls:
                    return
                self._run(calls)
        finally:
            with self._changed:
                self._ended = True
                for call in (*calls, *self._calls):
                    if not call.result.done():
                        call.result.set_exception(MemberLost("the batch that this answer belongs to was stopped"))

    def _run(self, calls: Sequence[_Call]) -> None:
        waiting = [call for call in calls if len(call.committed)]
        self.engine.commit([call.slot for call in waiting], [call.committed for call in waiting])
        windows = [(call, call.window) for call in calls if call.window is not None]
        found: list[tuple[_Call, F32]] = []
        if windows:
            rows = self.engine.step([call.slot for call, _ in windows], [window for _, window in windows])
            found += zip((call for call, _ in windows), rows, strict=True)
        plain = [call for call in calls if call.window is None]
        if plain:
            found += zip(plain, self.engine.next_logits([call.slot for call in plain]), strict=True)
        for call, logits in found:
            allowed = logits.copy()
            allowed[..., self._banned] = -np.inf
            call.result.set_result(allowed)
