"""The core behind the wire as a member of the ensemble: steps over a stream or unary calls, replayed after a loss.

Keeps every step it sent. When the connection or the node is lost it opens again with that history, on any node with the
same core, and goes on with the same text; when that does not succeed within its deadline the member is lost. Knows
nothing about the expert, sampling or text.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

import grpc
import numpy as np
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import MemberLost
from ssd_diffusion.window import Window
from ssd_kernels.errors import KernelError
from ssd_kernels.types import F32, I32, TokenSets
from ssd_protos import packing
from ssd_protos.ssd.v1 import ssd_pb2

from ssd_client.errors import LedgerError, NodeUnreachable
from ssd_client.node import Call, NodeChannel, status_of

Wire = Literal["stream", "unary"]
_Result = TypeVar("_Result")

_CALL_LIMIT_S = 3600.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_FOR_GOOD = frozenset({
    grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.UNIMPLEMENTED,
})  # fmt: skip


class Lost(Exception):
    """A session is gone; `for_good` says that trying again cannot help. Never leaves this package."""

    def __init__(self, reason: str, *, for_good: bool = False) -> None:
        super().__init__(reason)
        self.for_good = for_good


class LogitReader(Protocol):
    """Turns a message of logits into an array."""

    def read(self, logits: ssd_pb2.Logits, rows: int, k: int) -> F32:
        """The rows that tokens are chosen from, float32 [rows, V], given the entries asked for (0: as opened).

        Raises:
            KernelError: not what the codec writes, or another shape.
        """
        ...

    def read_ahead(self, logits: ssd_pb2.Logits, rows: int) -> F32:
        """The rows that only draft, float32 [rows, V]. Raises as `read`."""
        ...


class Session(Protocol):
    """One session on a node, whichever way it is spoken to."""

    def ask(self, step: ssd_pb2.Step, timeout_s: float) -> ssd_pb2.StepResult:
        """Send a step and wait for its result; a step that skips the core has an empty one. Raises Lost."""
        ...

    def close(self) -> None:
        """End the session politely."""
        ...

    def abort(self) -> None:
        """Cancel whatever is under way, from any thread."""
        ...


class StreamSession:
    """A session over the bidirectional stream.

    Args:
        channel: a described channel.
        opening: Open with the history so far.
        timeout_s: longest wait for the node to be ready.

    Raises:
        Lost: the node did not open the session.
    """

    def __init__(self, channel: NodeChannel, opening: ssd_pb2.Open, timeout_s: float) -> None:
        self._channel = channel
        self._out: queue.SimpleQueue[ssd_pb2.DenoiseRequest | None] = queue.SimpleQueue()
        self._in: queue.SimpleQueue[ssd_pb2.DenoiseResponse | Lost] = queue.SimpleQueue()
        self._call: Call = channel.denoise(iter(self._out.get, None), _CALL_LIMIT_S)
        threading.Thread(target=self._read, name="node-stream", daemon=True).start()
        self._out.put(ssd_pb2.DenoiseRequest(open=opening))
        try:
            if self._next(timeout_s).WhichOneof("kind") != "opened":
                raise Lost("the node answered out of turn")
        except BaseException:
            self.abort()
            raise

    def ask(self, step: ssd_pb2.Step, timeout_s: float) -> ssd_pb2.StepResult:
        """Send a step and wait for its result."""
        self._out.put(ssd_pb2.DenoiseRequest(step=step))
        answer = self._next(timeout_s)
        if answer.WhichOneof("kind") != "result" or answer.result.index != step.index:
            raise Lost("the node answered out of turn")
        return answer.result

    def close(self) -> None:
        """Say goodbye, and give the node a moment to hear it."""
        self._out.put(ssd_pb2.DenoiseRequest(close=ssd_pb2.Close()))
        self._out.put(None)
        try:
            while True:
                self._next(1.0)
        except Lost:
            self._call.cancel()

    def abort(self) -> None:
        """Cancel the stream."""
        self._out.put(None)
        self._call.cancel()

    def _next(self, timeout_s: float) -> ssd_pb2.DenoiseResponse:
        try:
            answer = self._in.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            raise Lost(f"the node was silent for {timeout_s:.0f} s") from None
        if isinstance(answer, Lost):
            raise answer
        return answer

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._in.put(answer)
            self._in.put(Lost("the node ended the session"))
        except grpc.RpcError as error:
            self._in.put(lost(self._channel, error))


class UnarySession:
    """A session over unary calls; the first one opens it, together with its first step.

    Args:
        channel: a described channel.
        opening: Open with the history so far.
        session_id: a session that may still be there: then the node goes on with it instead of opening another.
    """

    def __init__(self, channel: NodeChannel, opening: ssd_pb2.Open, session_id: str) -> None:
        self._channel = channel
        self._opening: ssd_pb2.Open | None = opening
        self._id = session_id
        self._call: Call = None

    @property
    def session_id(self) -> str:
        """The node's name for the session, "" before the first answer."""
        return self._id

    def ask(self, step: ssd_pb2.Step, timeout_s: float) -> ssd_pb2.StepResult:
        """Send a step and wait for its result."""
        answer = self._send(ssd_pb2.DenoiseStepRequest(session_id=self._id, open=self._opening, step=step), timeout_s)
        self._id, self._opening = answer.session_id, None
        if answer.result.index != step.index:
            raise Lost("the node answered out of turn")
        return answer.result

    def close(self) -> None:
        """Release the session; a node that does not hear it releases it when idle."""
        if self._id:
            try:
                self._send(ssd_pb2.DenoiseStepRequest(session_id=self._id, last=True), 1.0)
            except Lost:
                return

    def abort(self) -> None:
        """Cancel the call under way."""
        call = self._call
        if call is not None:
            call.cancel()

    def _send(self, request: ssd_pb2.DenoiseStepRequest, timeout_s: float) -> ssd_pb2.DenoiseStepResponse:
        self._call = self._channel.denoise_step(request, max(0.001, timeout_s))
        try:
            answer: ssd_pb2.DenoiseStepResponse = self._call.result()
        except grpc.FutureCancelledError:
            raise Lost("cancelled", for_good=True) from None
        except grpc.RpcError as error:
            raise lost(self._channel, error) from error
        return answer


def lost(channel: NodeChannel, error: grpc.RpcError) -> Lost:
    """A gRPC error as Lost, with one sentence for the user."""
    ours = channel.explain(error)
    code, _ = status_of(error)
    return Lost(str(ours), for_good=code in _FOR_GOOD or isinstance(ours, LedgerError))


class Retry:
    """Full-jitter pauses between attempts, until a deadline or an abort.

    Args:
        deadline_s: seconds from now after which no attempt starts.
        aborted: set by another thread to stop at once.
    """

    def __init__(self, deadline_s: float, aborted: threading.Event) -> None:
        self._end = time.monotonic() + deadline_s
        self._aborted = aborted
        self._attempt = 0
        self._random = random.Random()

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def pause(self, error: Lost) -> None:
        """Wait before the next attempt.

        Raises:
            Lost: trying again makes no sense, or the deadline is near.
        """
        pause_s = self._random.uniform(0.0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**self._attempt))
        self._attempt += 1
        if error.for_good or pause_s >= self.left_s or self._aborted.wait(pause_s):
            raise error


class RemoteMember:
    """The core on a node, as a `Member`.

    Args:
        channel: a described channel; closed by whoever made it.
        spec: the core, from `describe`.
        opening: Open without history; sent whenever a session starts.
        reader: turns a result's logits into arrays.
        deadline_s: longest time one step may take, lost connections and replay included.
        wire: how to speak to the node.
    """

    def __init__(
        self,
        channel: NodeChannel,
        spec: ModelSpec,
        opening: ssd_pb2.Open,
        *,
        reader: LogitReader,
        deadline_s: float,
        wire: Wire = "stream",
    ) -> None:
        self._channel, self._spec, self._opening = channel, spec, opening
        self._reader, self._deadline_s, self._wire = reader, deadline_s, wire
        self._history: list[ssd_pb2.Step] = []
        self._session: Session | None = None
        self._session_id = ""
        self._aborted = threading.Event()
        self._open_positions, self._exact, self._ahead = 0, 0, 0
        self._drafted = False
        self._passes = 0
        self.reconnects = 0

    @property
    def name(self) -> str:
        """Short name for reports."""
        return "core"

    @property
    def spec(self) -> ModelSpec:
        """What the core is."""
        return self._spec

    @property
    def forward_passes(self) -> int:
        """Passes of the core for this answer, the prompt's own and replayed ones included."""
        return self._passes

    def step(self, window: Window, committed: I32) -> F32:
        """Logits [window.rows, V]; sends the estimate and the accepted positions of the pass before."""
        return self._ask(self._message(window, committed))

    def skip(self, window: Window, committed: I32) -> None:
        """Tell the core of a pass that it does not compute."""
        message = self._message(window, committed)
        message.skip = True
        self._exchange(lambda session, left_s: session.ask(message, left_s))
        self._history.append(message)

    def next(self, committed: I32) -> F32:
        """Next-token logits [V] of the autoregressive twin."""
        message = ssd_pb2.Step(index=len(self._history))
        if self._history:
            message.w_hat = packing.pack_ids(committed, self._spec.vocab)
            message.accepted = packing.pack_flags([True])
        self._open_positions, self._exact, self._ahead = 1, 1, 0
        logits: F32 = self._ask(message)[0]
        return logits

    def again(self, k: int) -> F32:
        """The rows of the last pass once more, with k entries each; looking ahead, the first row alone. [n, V]"""
        message = ssd_pb2.Step()
        message.CopyFrom(self._history[-1])
        message.k = k
        return self._results(message)

    def close(self) -> None:
        """End the session. Safe to call twice."""
        session, self._session = self._session, None
        if session is not None:
            if self._aborted.is_set():
                session.abort()
            else:
                session.close()

    def abort(self) -> None:
        """Stop every wait at once, from any thread; the member is lost."""
        self._aborted.set()
        session = self._session
        if session is not None:
            session.abort()

    def _message(self, window: Window, committed: I32) -> ssd_pb2.Step:
        """The step that leads to this window: the record of the pass before, read off what it left behind."""
        message = ssd_pb2.Step(index=len(self._history))
        if self._history:
            sets, accepted = (
                previous_record(window, committed, self._open_positions)
                if window.drafts is None
                else drafted_record(window, committed)
            )
            message.w_hat = packing.pack_ids(sets.ids, self._spec.vocab)
            message.w_hat_counts = packing.pack_counts(np.diff(sets.offsets))
            message.accepted = packing.pack_flags(accepted)
            if window.parents is not None:
                message.parents = (window.parents + 1).astype(np.uint8).tobytes()
        self._open_positions, self._exact, self._ahead = len(window.u), window.exact, window.rows - window.exact
        self._drafted = window.drafts is not None
        return message

    def _ask(self, message: ssd_pb2.Step) -> F32:
        logits = self._results(message)
        self._history.append(message)
        return logits

    def _results(self, message: ssd_pb2.Step) -> F32:
        result = self._exchange(lambda session, left_s: session.ask(message, left_s))
        self._passes += 1
        try:
            exact = self._reader.read(result.logits, 1 if message.k and self._drafted else self._exact, message.k)
            if not self._ahead or message.k:
                return exact
            return np.concatenate([exact, self._reader.read_ahead(result.ahead, self._ahead)])
        except KernelError as error:
            raise MemberLost(f"the node sent logits that make no sense: {error}") from error

    def _exchange(self, call: Callable[[Session, float], _Result]) -> _Result:
        retry = Retry(self._deadline_s, self._aborted)
        while True:
            try:
                return call(self._ensure(retry), retry.left_s)
            except Lost as error:
                self._drop()
                try:
                    retry.pause(error)
                except Lost:
                    raise MemberLost(str(error)) from error

    def _ensure(self, retry: Retry) -> Session:
        if self._aborted.is_set():
            raise Lost("interrupted", for_good=True)
        if self._session is None:
            opening = ssd_pb2.Open()
            opening.CopyFrom(self._opening)
            opening.history.extend(self._history)
            try:
                self._session = (
                    StreamSession(self._channel, opening, retry.left_s)
                    if self._wire == "stream"
                    else UnarySession(self._channel, opening, self._session_id)
                )
            except NodeUnreachable as error:
                raise Lost(str(error), for_good=True) from error
            self.reconnects += bool(self._passes)
            self._passes += 1 + sum(not step.skip for step in self._history)
        return self._session

    def _drop(self) -> None:
        session, self._session = self._session, None
        if isinstance(session, UnarySession):
            self._session_id = session.session_id
        if session is not None:
            session.abort()


def previous_record(window: Window, committed: I32, size: int) -> tuple[TokenSets, list[bool]]:
    """Estimates and accepted flags of the pass that led to `window`, for its `size` open positions.

    The committed tokens were the accepted prefix; the rest still stands in the window. A position whose estimate was
    not kept (a grid of one level shows nothing of it) gets token 0, which the other side drops as well.
    """
    rows = [[int(token)] for token in committed]
    kept = size - len(rows)
    rows += [window.w_hat.row(i).tolist() or [0] for i in range(kept)]
    accepted = [True] * len(committed) + window.accepted[:kept].tolist()
    return TokenSets.of(rows), accepted


def drafted_record(window: Window, committed: I32) -> tuple[TokenSets, list[bool]]:
    """The same for a window that looks ahead: what was committed, and behind it the drafts of the next pass."""
    drafts = window.w_hat.ids
    ids = np.concatenate([committed, drafts]).astype(np.int32)
    return TokenSets.single(ids), [True] * len(committed) + [False] * len(drafts)
