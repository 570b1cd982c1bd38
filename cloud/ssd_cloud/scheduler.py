"""Batches passes of whatever slots are waiting, and runs the engine in worker threads, as many as it takes calls.

While batches compute, the next gathers; the oldest work goes first, and a slot has one piece of work at a time, so
no slot can starve another. Work whose caller has gone or whose deadline has passed is dropped before it costs a pass.
Knows slots and tensors; never sessions, messages or sampling.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, cast

import numpy as np
from ssd_diffusion.engine import Engine
from ssd_diffusion.window import Window
from ssd_kernels.types import F32, I32

from ssd_cloud.errors import Draining, EngineFailed, Expired, RequestError

_log = logging.getLogger("ssd_cloud.scheduler")

Kind = Literal["prefill", "step", "next"]
_Release = tuple[int, Callable[[], None]]


class Pending:
    """Tokens that are committed but not yet with the engine. Used from the event loop's thread only."""

    def __init__(self) -> None:
        self._tokens: list[I32] = []

    def add(self, tokens: I32) -> None:
        """Append tokens for the next pass."""
        if len(tokens):
            self._tokens.append(tokens)

    def take(self) -> I32:
        """All tokens so far, handed over once."""
        tokens = np.concatenate([*self._tokens, np.zeros(0, np.int32)]).astype(np.int32)
        self._tokens.clear()
        return tokens


@dataclass(frozen=True, slots=True)
class Computed:
    """What a piece of work gave.

    Attributes:
        logits: [B, V] of a step, [1, V] of a next-token pass, empty for a prefill.
        queue_us: microseconds of waiting for a place in a batch.
        compute_us: microseconds the batch computed.
        cache_bytes: bytes the slot holds afterwards.
        batch: how many slots computed together.
    """

    logits: F32
    queue_us: int
    compute_us: int
    cache_bytes: int
    batch: int


@dataclass(eq=False, slots=True)
class _Work:
    kind: Kind
    slot: int
    future: asyncio.Future[Computed]
    deadline: float | None
    queued: float
    context: I32
    window: Window | None
    pending: Pending | None
    tokens: I32 = field(default_factory=lambda: np.zeros(0, np.int32))
    logits: F32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    cache_bytes: int = 0
    error: RequestError | None = None

    @property
    def wanted(self) -> bool:
        return not self.future.done()


class Scheduler:
    """Runs an engine for many slots.

    Args:
        engine: the model; called from one thread at a time, or from as many as its `parallel` says, each with slots of
            its own.
        batch_width: most slots that compute together.
    """

    def __init__(self, engine: Engine, *, batch_width: int) -> None:
        self._engine = engine
        self._width = max(1, batch_width)
        self._queue: deque[_Work] = deque()
        self._releases: list[_Release] = []
        self._wake = asyncio.Event()
        # A pool each, the first free one first: one session alone stays with one thread and what is near to it.
        self._idle = [
            ThreadPoolExecutor(1, thread_name_prefix=f"engine-{n}") for n in range(getattr(engine, "parallel", 1))
        ]
        self._pools = tuple(self._idle)
        self._running: set[asyncio.Task[None]] = set()
        self._computing: set[int] = set()
        self._loop_task: asyncio.Task[None] | None = None
        self._closed = False
        self.batches = 0
        self.batched = 0
        self.dropped = 0

    def start(self) -> None:
        """Begin to take work; call it inside the running event loop."""
        self._loop_task = asyncio.create_task(self._run(), name="scheduler")

    async def prefill(self, slot: int, context: I32, *, deadline: float | None) -> Computed:
        """Read a context into a slot. Raises as `step`."""
        return await self._submit("prefill", slot, deadline, context=context)

    async def step(self, slot: int, window: Window, pending: Pending, *, deadline: float | None) -> Computed:
        """Commit what is pending and denoise one window.

        Args:
            slot: a slot that was prefilled.
            window: what the engine sees.
            pending: committed tokens the engine does not have yet; taken when the pass begins.
            deadline: event-loop time after which nobody wants the result; None for no bound.

        Raises:
            Expired: the deadline passed before the pass began.
            EngineFailed: the engine could not compute.
            Draining: the scheduler was closed.
        """
        return await self._submit("step", slot, deadline, window=window, pending=pending)

    async def next(self, slot: int, pending: Pending, *, deadline: float | None) -> Computed:
        """Commit what is pending and give next-token logits [1, V]. Raises as `step`."""
        return await self._submit("next", slot, deadline, pending=pending)

    def release(self, slot: int, done: Callable[[], None]) -> None:
        """Forget a slot once the engine is free; `done` runs in the event loop afterwards. Waiting work is dropped."""
        for work in self._queue:
            if work.slot == slot:
                work.future.cancel()
        self._releases.append((slot, done))
        self._wake.set()

    async def close(self) -> None:
        """Stop: work that is waiting gets `Draining`; what computes now is finished."""
        self._closed = True
        self._wake.set()
        if self._loop_task is not None:
            await self._loop_task
        for pool in self._pools:
            pool.shutdown(wait=True)

    async def _submit(
        self,
        kind: Kind,
        slot: int,
        deadline: float | None,
        *,
        context: I32 | None = None,
        window: Window | None = None,
        pending: Pending | None = None,
    ) -> Computed:
        if self._closed:
            raise Draining
        loop = asyncio.get_running_loop()
        tokens = np.zeros(0, np.int32) if context is None else context
        work = _Work(kind, slot, loop.create_future(), deadline, time.perf_counter(), tokens, window, pending)
        self._queue.append(work)
        self._wake.set()
        return await work.future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._closed or self._releases or self._running:
            await self._wake.wait()
            await asyncio.sleep(0)  # let callers that are ready in this turn of the loop join the batch
            self._wake.clear()
            while self._idle:
                releases, batch = self._free(), self._gather(loop.time())
                if not releases and not batch:
                    break
                self._computing |= {work.slot for work in batch} | {slot for slot, _ in releases}
                task = asyncio.create_task(self._call(loop, self._idle.pop(0), releases, batch))
                self._running.add(task)
        for work in self._queue:
            if work.wanted:
                work.future.set_exception(Draining())
        self._queue.clear()

    async def _call(
        self,
        loop: asyncio.AbstractEventLoop,
        pool: ThreadPoolExecutor,
        releases: Sequence[_Release],
        batch: Sequence[_Work],
    ) -> None:
        """One call of a worker thread, from its slots' being taken to their being free again."""
        started = time.perf_counter()
        try:
            await loop.run_in_executor(pool, self._compute, loop, releases, batch)
        finally:
            self._computing -= {work.slot for work in batch} | {slot for slot, _ in releases}
            self._running.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            self._idle.append(pool)
            self._idle.sort(key=self._pools.index)
            self._wake.set()
        self._answer(batch, started, time.perf_counter())

    def _free(self) -> list[_Release]:
        """The slots to be released that no call works on, taken off the list."""
        free = [one for one in self._releases if one[0] not in self._computing]
        self._releases = [one for one in self._releases if one[0] in self._computing]
        return free

    def _gather(self, now: float) -> list[_Work]:
        """The oldest work, one piece a slot; what waits for its own slot stays where it is."""
        batch: list[_Work] = []
        taken, later = set(self._computing), list[_Work]()
        while self._queue and len(batch) < self._width and not self._closed:
            work = self._queue.popleft()
            if not work.wanted:
                self.dropped += 1
            elif work.deadline is not None and now >= work.deadline:
                self.dropped += 1
                work.future.set_exception(Expired("the deadline passed while the pass was waiting; give it more time"))
            elif work.slot in taken:
                later.append(work)
            else:
                work.tokens = work.pending.take() if work.pending is not None else work.tokens
                taken.add(work.slot)
                batch.append(work)
        self._queue.extendleft(reversed(later))
        return batch

    def _answer(self, batch: Sequence[_Work], started: float, ended: float) -> None:
        self.batches += bool(batch)
        self.batched += len(batch)
        for work in batch:
            if not work.wanted:
                continue
            if work.error is not None:
                work.future.set_exception(work.error)
                continue
            queue_us, compute_us = int((started - work.queued) * 1e6), int((ended - started) * 1e6)
            work.future.set_result(Computed(work.logits, queue_us, compute_us, work.cache_bytes, len(batch)))

    # ---- in the worker thread ----

    def _compute(self, loop: asyncio.AbstractEventLoop, releases: Sequence[_Release], batch: Sequence[_Work]) -> None:
        if releases:
            self._guarded([], lambda: self._engine.release([slot for slot, _ in releases]))
            for _, done in releases:
                loop.call_soon_threadsafe(done)  # at once: others may be waiting for the slot
        prefills = [w for w in batch if w.kind == "prefill"]
        if prefills:
            self._alone_if_failing(
                prefills, lambda ws: self._engine.prefill([w.slot for w in ws], [w.context for w in ws])
            )
        committing = [w for w in batch if len(w.tokens)]
        if committing:
            slots, tokens = [w.slot for w in committing], [w.tokens for w in committing]
            self._guarded(committing, lambda: self._engine.commit(slots, tokens))
        self._alone_if_failing([w for w in batch if w.kind == "step" and w.error is None], self._step)
        self._alone_if_failing([w for w in batch if w.kind == "next" and w.error is None], self._next)
        for work in batch:
            if work.error is None:
                self._guarded([work], lambda work=work: self._measure(work))  # type: ignore[misc]

    def _step(self, works: Sequence[_Work]) -> None:
        windows = [w.window for w in works if w.window is not None]
        for work, logits in zip(works, self._engine.step([w.slot for w in works], windows), strict=True):
            work.logits = logits

    def _next(self, works: Sequence[_Work]) -> None:
        for work, logits in zip(works, self._engine.next_logits([w.slot for w in works]), strict=True):
            work.logits = logits[None, :]

    def _measure(self, work: _Work) -> None:
        work.cache_bytes = self._engine.slot_bytes(work.slot)

    def _alone_if_failing(self, works: Sequence[_Work], call: Callable[[Sequence[_Work]], None]) -> None:
        """Run a batch; when it fails, run each alone, so that one slot's trouble stays its own."""
        if not works:
            return
        if self._guarded(works, lambda: call(works)) or len(works) == 1:
            return
        for work in works:
            work.error = None
            self._guarded([work], lambda work=work: call([work]))  # type: ignore[misc]

    def _guarded(self, works: Sequence[_Work], call: Callable[[], None]) -> bool:
        """Run an engine call; on any failure mark the works. The engine is foreign code: every exception counts."""
        try:
            call()
        except Exception as error:  # noqa: BLE001
            _log.error("engine call failed", extra={"error": type(error).__name__, "works": len(works)})
            for work in works:
                work.error = EngineFailed()
            return False
        return True
