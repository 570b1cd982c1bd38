"""Sessions of the node: one slot, one decode state, one owner each; counted, bounded, and released when forgotten.

A session's state moves by the same `advance` as the device's. Knows the engine's slots by number only; it does not
compute, and does not know gRPC.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from dataclasses import dataclass, field
from typing import Protocol, Self

from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import DiffusionError
from ssd_diffusion.lookahead import LookaheadState
from ssd_diffusion.ssdlm import BlockState
from ssd_diffusion.window import StepRecord, Window, WindowState
from ssd_kernels.types import I32
from ssd_protos.limits import Limits

from ssd_cloud.errors import BadRequest, Draining, NodeFull, UnknownSession
from ssd_cloud.requests import OpenInput, StepInput, read_record
from ssd_cloud.scheduler import Pending, Scheduler

_log = logging.getLogger("ssd_cloud.sessions")

RELEASE_WAIT_S = 5.0
"""How long a new session waits for a slot that is being given back: a few passes of a large model."""


class DecodeState(Protocol):
    """What `WindowState` and `BlockState` have in common."""

    @property
    def step(self) -> int:
        """Number of the next pass."""
        ...

    @property
    def done(self) -> bool:
        """True when every position up to the limit is committed."""
        ...

    def window(self) -> Window:
        """What members see in the next pass."""
        ...

    def advance(self, record: StepRecord) -> tuple[Self, I32]:
        """The state after a pass, and the token ids committed by it."""
        ...


@dataclass(eq=False, slots=True)
class Session:
    """One answer in the making. Used from the event loop's thread only.

    Attributes:
        id: unguessable name.
        owner: id of the token it belongs to.
        slot: the engine's slot.
        request: what was opened.
        state: the window before the pass numbered `index`.
        index: number of the last pass that was taken; -1 before the first.
        pending: committed tokens that the engine does not have yet.
        lock: held while a call works on the session.
        touched: monotonic time of the last use.
        reserved_bytes: share of the cache bound.
        cache_bytes: what the slot held after the last pass.
    """

    id: str
    owner: str
    slot: int
    request: OpenInput
    state: DecodeState
    reserved_bytes: int
    touched: float
    index: int = -1
    last: StepInput | None = None
    cache_bytes: int = 0
    closed: bool = False
    pending: Pending = field(default_factory=Pending)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def window(self) -> Window:
        """What the engine sees in the next pass."""
        window = self.state.window()
        return window.exact_only() if self.request.exact_only else window

    def take(self, step: StepInput, spec: ModelSpec, limits: Limits) -> None:
        """Move to the pass that a step asks for; asking for the last one again changes nothing.

        Raises:
            BadRequest: the wrong pass, or a decision that breaks the window's rules; the session stays as it was.
        """
        if step.index == self.index and self.last is not None:
            if not step.same_decision(self.last):
                raise BadRequest(f"pass {step.index} was already taken with another estimate")
        elif step.index == self.index + 1:
            if step.index >= limits.max_passes:
                raise BadRequest(f"a session may take at most {limits.max_passes} passes")
            self._move(step, spec, limits)
        else:
            raise BadRequest(f"pass {step.index} is out of order; the next one is {self.index + 1}")
        self.index, self.last = step.index, step

    def _move(self, step: StepInput, spec: ModelSpec, limits: Limits) -> None:
        if step.index == 0:
            if step.w_hat or step.counts or step.accepted:
                raise BadRequest("the first pass has no estimate before it; send none")
            return
        record = read_record(
            step, len(self.state.window().u), decoder=self.request.decoder,
            multi_hot=self.request.params.projection == "multi-hot", vocab=spec.vocab, limits=limits,
        )  # fmt: skip
        self.advance(record)

    def advance(self, record: StepRecord) -> I32:
        """Apply a decision; returns the tokens it commits.

        Raises:
            BadRequest: it breaks the window's rules, or leaves nothing to denoise.
        """
        try:
            state, committed = self.state.advance(record)
        except DiffusionError as error:
            raise BadRequest(str(error)) from error
        if state.done:
            raise BadRequest("the answer is complete with this step; there is no further pass to ask for")
        self.state = state
        self.pending.add(committed)
        return committed


class SessionStore:
    """All sessions of one node.

    Args:
        spec: the model.
        limits: bounds of the wire.
        scheduler: frees the engine's slots.
        slots: how many slots the engine has.
        max_sessions: most sessions at once.
        cache_bytes: most bytes that all sessions may reserve.
        idle_timeout_s: a session unused for so long is released.
    """

    def __init__(
        self,
        spec: ModelSpec,
        limits: Limits,
        scheduler: Scheduler,
        *,
        slots: int,
        max_sessions: int,
        cache_bytes: int,
        idle_timeout_s: float,
    ) -> None:
        self._spec, self._limits, self._scheduler = spec, limits, scheduler
        self.max_sessions = min(max_sessions, slots)
        self.idle_timeout_s = idle_timeout_s
        self._cache_bytes = cache_bytes
        self._free = list(range(self.max_sessions))[::-1]
        self._sessions: dict[str, Session] = {}
        self.created = 0
        self.released = 0
        self.reserved_bytes = 0
        self.draining = False
        self._given_back = asyncio.Event()

    @property
    def active(self) -> int:
        """Sessions that hold a slot now, those being released included."""
        return self.created - self.released

    async def open(self, owner: str, request: OpenInput, *, deadline: float | None) -> Session:
        """As `create`, but waits, not for long, where what is missing is already being given back.

        A caller whose answer is complete may ask for the next at once; its slot is free only when the engine is.

        Args:
            owner: id of the caller's token.
            request: what to open.
            deadline: event-loop time after which nobody wants the session; None for no bound.

        Raises:
            Draining, NodeFull: as `create`.
        """
        until = asyncio.get_running_loop().time() + RELEASE_WAIT_S
        until = until if deadline is None else min(until, deadline)
        while True:
            given_back = self._given_back
            try:
                return self.create(owner, request)
            except NodeFull as full:
                if full.retry_after_s is None or self.active == len(self._sessions):
                    raise
                try:
                    async with asyncio.timeout_at(until):
                        await given_back.wait()
                except TimeoutError:
                    raise full from None

    def create(self, owner: str, request: OpenInput) -> Session:
        """A new session with a slot of its own.

        Raises:
            Draining: the node is shutting down.
            NodeFull: no slot or no bytes are left.
        """
        if self.draining:
            raise Draining
        need = self._need(request)
        if need > self._cache_bytes:
            raise NodeFull(
                f"the session needs {need:,} bytes of cache and the node has {self._cache_bytes:,} in all; "
                "ask for fewer tokens", None,
            )  # fmt: skip
        if not self._free:
            raise NodeFull(f"all {self.max_sessions} sessions of the node are in use; try again later", 1.0)
        if self.reserved_bytes + need > self._cache_bytes:
            raise NodeFull("the node's cache is full; try again later", 1.0)
        session = Session(
            id=secrets.token_urlsafe(24), owner=owner, slot=self._free.pop(), request=request,
            state=_first_state(request), reserved_bytes=need, touched=time.monotonic(),
        )  # fmt: skip
        self._sessions[session.id] = session
        self.created += 1
        self.reserved_bytes += need
        return session

    def get(self, session_id: str, owner: str) -> Session:
        """A caller's own session.

        Raises:
            UnknownSession: there is none of this name, or it belongs to another.
        """
        session = self._sessions.get(session_id)
        if session is None or not secrets.compare_digest(session.owner.encode(), owner.encode()):
            raise UnknownSession
        return session

    def take(self, session: Session, step: StepInput) -> None:
        """`Session.take` with this node's model and bounds; marks the session as used."""
        if session.closed:
            raise UnknownSession
        session.touched = time.monotonic()
        session.take(step, self._spec, self._limits)

    def release(self, session: Session) -> None:
        """Give a session's slot back. Safe to call twice; never waits."""
        if session.closed:
            return
        session.closed = True
        self._sessions.pop(session.id, None)
        self._scheduler.release(session.slot, lambda: self._released(session))

    def release_idle(self) -> int:
        """Release what nobody has used for the idle timeout; returns how many."""
        oldest = time.monotonic() - self.idle_timeout_s
        idle = [s for s in self._sessions.values() if s.touched < oldest and not s.lock.locked()]
        for session in idle:
            self.release(session)
        if idle:
            _log.info("idle sessions released", extra={"count": len(idle)})
        return len(idle)

    def release_all(self) -> None:
        """Release every session."""
        for session in list(self._sessions.values()):
            self.release(session)

    def _released(self, session: Session) -> None:
        self._free.append(session.slot)
        self.reserved_bytes -= session.reserved_bytes
        self.released += 1
        self._given_back.set()
        self._given_back = asyncio.Event()

    def _need(self, request: OpenInput) -> int:
        """Upper bound of a session's cache: keys and values in float32 for its longest context, and its state."""
        spec = self._spec
        tokens = len(request.prompt) + request.params.max_tokens
        a_token = 2 * spec.layers * spec.kv_heads * spec.head_dim * 4
        return tokens * (a_token + 4) + request.params.block * spec.hidden * 4


def _first_state(request: OpenInput) -> DecodeState:
    params = request.params
    if request.decoder == "lookahead":
        return LookaheadState.begin(
            noise_key=request.noise_key, width=params.drafts, depth=params.depth, limit=params.max_tokens
        )  # fmt: skip
    make = BlockState.begin if request.decoder == "ssdlm" else WindowState.begin
    try:
        state: DecodeState = make(
            grid=params.grid, noise_key=request.noise_key, block=params.block, limit=params.max_tokens
        )
    except DiffusionError as error:
        raise BadRequest(str(error)) from error
    return state
