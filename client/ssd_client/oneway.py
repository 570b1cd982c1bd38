"""One-way: the node writes its own complete text, and the device reads its answer out beside it.

The node streams its estimate, what it accepted and its logits; nothing goes up after Open. The expert conditions on the
node's window; wherever the node accepts a position, the fused distribution is read out with the device's own draw, and
that token is delivered and enters the expert's context. What is sent, when, how often and how long the stream is read
depends on public settings and on the node alone: the reader runs apart from the answer and always to the node's end.
When the node's text ends first, the expert writes the rest alone. Knows nothing about text.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import grpc
import numpy as np
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.ensemble import Ensemble, EnsembleStep
from ssd_diffusion.errors import InvalidStep, MemberLost
from ssd_diffusion.sampler import Decision, DecodeParams, StepEvent, cut_at_end, decide, event, project
from ssd_diffusion.ssdlm import BlockState, decide_block
from ssd_diffusion.window import StepRecord, Window, WindowState
from ssd_kernels.combine import entropy
from ssd_kernels.errors import KernelError
from ssd_kernels.types import F32, I32, Purpose, TokenSets
from ssd_protos import packing
from ssd_protos.ssd.v1 import ssd_pb2

from ssd_client.node import Call, NodeChannel
from ssd_client.remote import LogitReader, Lost, Retry, lost

_CALL_LIMIT_S = 3600.0
State = WindowState | BlockState


@dataclass(frozen=True, slots=True)
class _Ended:
    """The last item of the queue: None when the node finished, else why it was lost."""

    lost: str | None


class OneWaySource:
    """The node's own chain as a member: every `step` returns the next logits of the stream, whatever it is asked.

    Args:
        channel: a described channel; closed by whoever made it.
        spec: the core.
        opening: the only message that goes up.
        reader: turns a result's logits into float32.
        deadline_s: longest silence, lost connections included, before the node counts as lost.
    """

    def __init__(
        self, channel: NodeChannel, spec: ModelSpec, opening: ssd_pb2.Open, *, reader: LogitReader, deadline_s: float
    ) -> None:
        self._channel, self._spec, self._opening = channel, spec, opening
        self._reader, self._deadline_s = reader, deadline_s
        self._items: queue.SimpleQueue[ssd_pb2.StepResult | _Ended] = queue.SimpleQueue()
        self._next: ssd_pb2.StepResult | _Ended | None = None
        self._taken: ssd_pb2.StepResult | None = None
        self._aborted = threading.Event()
        self._call: Call = None
        self._passes = 0
        self._seen: list[tuple[bytes, bytes]] = []
        self._thread = threading.Thread(target=self._receive, name="one-way", daemon=True)
        self._thread.start()

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
        """Passes of the core that arrived so far, and the prompt's own."""
        return self._passes

    def ready(self) -> bool:
        """Wait for the next pass; False when the node's text is complete.

        Raises:
            MemberLost: the node is gone.
        """
        if self._next is None:
            self._next = self._items.get()
        if isinstance(self._next, _Ended):
            if self._next.lost is not None:
                raise MemberLost(self._next.lost)
            return False
        return True

    def step(self, window: Window, committed: I32) -> F32:  # noqa: ARG002 - the node does not listen
        """The next logits of the stream, [B, V]."""
        return self._take(len(window.u))

    def next(self, committed: I32) -> F32:  # noqa: ARG002 - the node does not listen
        """The next logits of the stream, [V]."""
        logits: F32 = self._take(1)[0]
        return logits

    def skip(self, window: Window, committed: I32) -> None:
        """Let one pass of the stream go by."""
        self.step(window, committed)

    def record(self, positions: int, max_set_ids: int) -> StepRecord:
        """What the node decided in the pass that `step` returned.

        Raises:
            MemberLost: it makes no sense.
        """
        result = self._taken
        if result is None:
            raise MemberLost("the node has not answered yet")
        try:
            ids, offsets = packing.unpack_sets(
                result.w_hat_core, result.w_hat_core_counts, positions=positions, vocab=self._spec.vocab,
                max_set_ids=max_set_ids,
            )  # fmt: skip
            return StepRecord(TokenSets(ids, offsets), packing.unpack_flags(result.accepted, positions))
        except packing.PackingError as error:
            raise MemberLost(f"the node sent an estimate that makes no sense: {error}") from error

    def finish(self) -> None:
        """Read the stream to the node's end, whatever became of the answer."""
        while self._thread.is_alive():
            self._thread.join(0.2)

    def abort(self) -> None:
        """Stop at once (the user's own ctrl-C)."""
        self._aborted.set()
        call = self._call
        if call is not None:
            call.cancel()

    def close(self) -> None:
        """Nothing to give back: the reader ends with the node's text."""

    def _take(self, rows: int) -> F32:
        if not self.ready():
            raise MemberLost("the node's text is complete")
        self._taken = self._next if isinstance(self._next, ssd_pb2.StepResult) else None
        self._next = None
        if self._taken is None:
            raise MemberLost("the node's text is complete")
        try:
            return self._reader.read(self._taken.logits, rows, 0)
        except KernelError as error:
            raise MemberLost(f"the node sent logits that make no sense: {error}") from error

    # ---- the reader's own thread ----

    def _receive(self) -> None:
        retry = Retry(self._deadline_s, self._aborted)
        while True:
            before = len(self._seen)
            try:
                self._stream()
                self._items.put(_Ended(None))
                return
            except Lost as error:
                if len(self._seen) > before:  # it moved: the deadline starts anew
                    retry = Retry(self._deadline_s, self._aborted)
                try:
                    retry.pause(error)
                except Lost:
                    self._items.put(_Ended(str(error)))
                    return

    def _stream(self) -> None:
        """One attempt: open, and take what is new. A node that starts over must write the same text again."""
        over = threading.Event()
        arrivals: queue.SimpleQueue[ssd_pb2.DenoiseResponse | Lost] = queue.SimpleQueue()
        self._call = self._channel.denoise(_upload(self._opening, over), _CALL_LIMIT_S)
        if self._aborted.is_set():
            self._call.cancel()
        threading.Thread(target=self._arrive, args=(self._call, arrivals), name="one-way-stream", daemon=True).start()
        try:
            index = 0
            while True:
                answer = _arrival(arrivals, self._deadline_s)
                kind = answer.WhichOneof("kind")
                if kind == "done":
                    return
                if kind == "result":
                    self._note(answer.result, index)
                    index += 1
                elif kind == "opened":
                    self._passes += 1
        finally:
            over.set()
            self._call.cancel()

    def _arrive(self, call: Call, arrivals: queue.SimpleQueue[ssd_pb2.DenoiseResponse | Lost]) -> None:
        try:
            for answer in call:
                arrivals.put(answer)
            arrivals.put(Lost("the node ended the stream before its text"))
        except grpc.RpcError as error:
            arrivals.put(lost(self._channel, error))

    def _note(self, result: ssd_pb2.StepResult, index: int) -> None:
        if result.index != index or index > 2 * self._opening.params.max_tokens * max(
            1, len(self._opening.params.grid)
        ):
            raise Lost("the node answered out of turn", for_good=True)
        self._passes += 1
        decided = (result.w_hat_core, result.accepted)
        if index < len(self._seen):
            if self._seen[index] != decided:
                raise Lost("the node came back with another text", for_good=True)
            return
        self._seen.append(decided)
        self._items.put(result)


def decode_one_way(
    ensemble: Ensemble,
    alone: Ensemble,
    source: OneWaySource,
    params: DecodeParams,
    begin: State,
    *,
    autoregressive: bool,
    draw_key: int,
    max_set_ids: int,
) -> Iterator[StepEvent]:
    """Read an answer out beside the node's text, yielding every pass; the last event carries the reason it ends.

    Args:
        ensemble: core (`source`) and expert.
        alone: the same expert without the core, for what follows the node's end or loss.
        source: the node's chain.
        params: public settings; the same that the node was told.
        begin: the window before the first pass.
        autoregressive: token by token instead of windows.
        draw_key: the device's own key.
        max_set_ids: multi-hot: most ids at one position.
    """
    state, told = begin, np.zeros(0, np.int32)
    with_core = True
    while True:
        window = state.window()
        with_core = with_core and _still_there(ensemble, source)
        voices = ensemble if with_core else alone
        step = voices.next(told) if autoregressive else voices.step(window, told)
        with_core = with_core and ensemble.lost is None
        decision = None
        if with_core:
            try:
                decision = _read_out(step, window, source.record(len(window.u), max_set_ids), params, draw_key)
                state.advance(decision.record)
            except (MemberLost, InvalidStep) as error:
                ensemble.lost, with_core, decision = str(error), False, None
        if decision is None:
            decision = _decide(step, state, params, draw_key)
        state, told = state.advance(decision.record)
        told, finish = cut_at_end(told, params, done=state.done)
        yield event(voices, step, window, decision, told, finish)
        if finish is not None:
            return


def _still_there(ensemble: Ensemble, source: OneWaySource) -> bool:
    try:
        return source.ready()
    except MemberLost as error:
        ensemble.lost = str(error)
        return False


def _read_out(step: EnsembleStep, window: Window, node: StepRecord, params: DecodeParams, draw_key: int) -> Decision:
    """The node's record with the device's own tokens wherever a position is accepted."""
    before = window.accepted
    if (before & ~node.accepted).any():
        raise InvalidStep("the node gave an accepted position up")
    rows: list[list[int]] = [
        window.w_hat.row(i).tolist() if before[i] else node.w_hat.row(i).tolist() for i in range(len(before))
    ]
    new = np.flatnonzero(node.accepted & ~before).astype(np.int32)
    drawn = project(step.fused[new], _single(params), draw_key=draw_key, window=window, rows=new, purpose=Purpose.DRAW)
    for i, row in enumerate(new):
        rows[row] = drawn.row(i).tolist()
    estimate = np.argmax(step.fused, axis=-1).astype(np.int32)
    fixed = np.flatnonzero(node.accepted)
    estimate[fixed] = [rows[i][0] for i in fixed]
    nats = np.where(before, 0.0, entropy(step.fused).astype(np.float64))
    chosen = step.fused[np.arange(len(estimate)), estimate].astype(np.float64)
    return Decision(StepRecord(TokenSets.of(rows), node.accepted), estimate, nats, chosen)


def _decide(step: EnsembleStep, state: State, params: DecodeParams, draw_key: int) -> Decision:
    if isinstance(state, BlockState):
        return decide_block(step.fused, state, params, draw_key=draw_key)
    return decide(step.fused, state, params, draw_key=draw_key)


def _single(params: DecodeParams) -> DecodeParams:
    """An accepted position is one token: multi-hot reads out by a draw."""
    return replace(params, projection="sample") if params.projection == "multi-hot" else params


def _upload(opening: ssd_pb2.Open, over: threading.Event) -> Iterator[ssd_pb2.DenoiseRequest]:
    """Everything that goes up: Open, and then nothing until the node is done."""
    yield ssd_pb2.DenoiseRequest(open=opening)
    over.wait()


def _arrival(arrivals: queue.SimpleQueue[ssd_pb2.DenoiseResponse | Lost], deadline_s: float) -> ssd_pb2.DenoiseResponse:
    started = time.monotonic()
    try:
        answer = arrivals.get(timeout=deadline_s)
    except queue.Empty:
        raise Lost(f"the node was silent for {time.monotonic() - started:.0f} s") from None
    if isinstance(answer, Lost):
        raise answer
    return answer
