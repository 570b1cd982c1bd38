"""The gRPC service `ssd.v1.Ssd`: messages in, sessions and scheduler behind, messages out.

Every call that ends, however it ends, frees what it held. Errors become a status with one sentence. Knows nothing about
sockets, tokens' storage or how the engine computes.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

import grpc
import numpy as np
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from ssd_diffusion.draft_tree import DraftTree
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.lookahead import LookaheadState, worth
from ssd_diffusion.sampler import Decision, cut_at_end, decide
from ssd_diffusion.ssdlm import BlockState, decide_block
from ssd_diffusion.window import WindowState
from ssd_kernels import codec
from ssd_kernels.combine import log_softmax
from ssd_kernels.errors import KernelError
from ssd_kernels.types import F32, Purpose
from ssd_protos.limits import AHEAD_K, PROTOCOL, Limits
from ssd_protos.packing import pack_counts, pack_flags, pack_ids
from ssd_protos.ssd.v1 import ssd_pb2, ssd_pb2_grpc

from ssd_cloud import __version__
from ssd_cloud.auth import Authenticator
from ssd_cloud.decoding import Undecodable
from ssd_cloud.errors import BadRequest, Draining, EngineFailed, Expired, RequestError
from ssd_cloud.requests import StepInput, check_protocol, read_open, read_step
from ssd_cloud.scheduler import Computed, Scheduler
from ssd_cloud.sessions import Session, SessionStore

_log = logging.getLogger("ssd_cloud.service")

AHEAD_CODEC = codec.CodecSpec(kind="top-k", k=AHEAD_K)
_Context = grpc.aio.ServicerContext[Any, Any]
_T = TypeVar("_T")
_WIRE_CODECS: dict[codec.CodecKindName, tuple[ssd_pb2.CodecKind.ValueType, str]] = {
    "dense-f32": (ssd_pb2.CODEC_KIND_DENSE_F32, "float32"),
    "dense-f16": (ssd_pb2.CODEC_KIND_DENSE_F16, "float16"),
    "top-k": (ssd_pb2.CODEC_KIND_TOP_K, "topk"),
}


@dataclass(slots=True)
class Counters:
    """What the service has done; read by tests and reports.

    Attributes:
        requests: calls that began.
        failed: calls that ended with an error status.
        cancelled: calls whose caller went away or ran out of time.
        passes: forward passes for callers, replayed ones included.
        streams: streams open now.
    """

    requests: int = 0
    failed: int = 0
    cancelled: int = 0
    passes: int = 0
    streams: int = 0


class SsdService(ssd_pb2_grpc.SsdServicer):
    """The service over one model.

    Args:
        spec: the model.
        limits: bounds of the wire.
        store: sessions.
        scheduler: computes.
        authenticator: whose call it is; sessions belong to callers.
    """

    def __init__(
        self, spec: ModelSpec, limits: Limits, store: SessionStore, scheduler: Scheduler, authenticator: Authenticator
    ) -> None:
        self._spec, self._limits, self._store, self._scheduler = spec, limits, store, scheduler
        self._authenticator = authenticator
        self.counters = Counters()
        self._over = False
        self._calls: set[asyncio.Task[Any]] = set()

    @property
    def busy(self) -> bool:
        """True while a call is open."""
        return bool(self._calls)

    def end_calls(self) -> None:
        """Shutting down for good: answer every call that is still open with UNAVAILABLE."""
        self._over = True
        for task in self._calls:
            task.cancel()

    # ---- the three methods ----

    async def Describe(self, request: ssd_pb2.DescribeRequest, context: _Context) -> ssd_pb2.DescribeResponse:
        """What this node serves."""
        return await self._answer(context, self._describe(request))

    async def DenoiseStep(self, request: ssd_pb2.DenoiseStepRequest, context: _Context) -> ssd_pb2.DenoiseStepResponse:
        """One pass of a session."""
        return await self._answer(context, self._unary(request, context))

    async def Denoise(self, request_iterator: object, context: _Context) -> None:  # type: ignore[override] # noqa: ARG002
        """A whole session."""
        self.counters.streams += 1
        try:
            await self._answer(context, self._stream(context))
        finally:
            self.counters.streams -= 1

    # ---- their bodies ----

    async def _describe(self, request: ssd_pb2.DescribeRequest) -> ssd_pb2.DescribeResponse:
        _check_readable(request)
        check_protocol(request.protocol)
        spec, limits = self._spec, self._limits
        decoders = [ssd_pb2.DECODER_SSDLM]
        if spec.family == "ssd2":  # per-position noise levels and a causal side: all of them
            decoders = [ssd_pb2.DECODER_WINDOW, ssd_pb2.DECODER_AUTOREGRESSIVE, ssd_pb2.DECODER_LOOKAHEAD, *decoders]
        return ssd_pb2.DescribeResponse(
            protocol=PROTOCOL, model_id=spec.model_id, family=spec.family,
            tokenizer_fingerprint=spec.tokenizer_fingerprint, vocab=spec.vocab, max_block=spec.max_block,
            simplex_k=spec.simplex_k, schedule_s=spec.schedule_s, time_convention="u=t/T in (0,1]", grid=spec.grid,
            codecs=[wire for wire, _ in _WIRE_CODECS.values()], max_context=spec.max_context,
            max_sessions=self._store.max_sessions, max_request_bytes=limits.max_request_bytes,
            max_response_bytes=limits.max_response_bytes, idle_timeout_s=self._store.idle_timeout_s,
            server_version=__version__, decoders=decoders, eos_ids=spec.eos_ids, output_shift=spec.output_shift,
            hidden=spec.hidden, max_passes=limits.max_passes, max_set_ids=limits.max_set_ids,
        )  # fmt: skip

    async def _unary(self, request: ssd_pb2.DenoiseStepRequest, context: _Context) -> ssd_pb2.DenoiseStepResponse:
        _check_readable(request)
        owner, deadline = self._owner(context), _deadline(context)
        if not request.HasField("step") and not request.last:
            raise BadRequest("the message holds no pass; set step")
        session, fresh = await self._find_or_open(request, owner, deadline)
        try:
            async with session.lock:
                replayed = await self._restore(session, deadline) if fresh else 0
                response = ssd_pb2.DenoiseStepResponse(session_id=session.id, replayed=replayed)
                if request.HasField("step"):
                    step = read_step(request.step, self._spec)
                    response.result.CopyFrom(await self._pass(session, step, deadline))
        except BadRequest:
            if fresh:  # its id was never told, so nobody could go on with it
                self._store.release(session)
            raise
        except BaseException:
            self._store.release(session)
            raise
        if request.last:
            self._store.release(session)
        return response

    async def _find_or_open(
        self, request: ssd_pb2.DenoiseStepRequest, owner: str, deadline: float | None
    ) -> tuple[Session, bool]:
        if request.session_id:
            try:
                session = self._store.get(request.session_id, owner)
                if session.request.one_way:
                    raise BadRequest("a one-way session runs on its stream; it takes no steps")
                return session, False
            except RequestError:
                if not request.HasField("open"):
                    raise
        if not request.HasField("open"):
            raise BadRequest("the message names no session and opens none; set session_id or open")
        opened = read_open(request.open, self._spec, self._limits)
        if opened.one_way:
            raise BadRequest("one-way needs the stream Denoise")
        return await self._store.open(owner, opened, deadline=deadline), True

    async def _stream(self, context: _Context) -> None:
        owner, deadline = self._owner(context), _deadline(context)
        first = await self._read(context)
        if first is None:
            return
        if first.WhichOneof("kind") != "open":
            raise BadRequest("the first message of a stream must be open")
        request = read_open(first.open, self._spec, self._limits)
        session = await self._store.open(owner, request, deadline=deadline)
        try:
            async with session.lock:
                replayed = await self._restore(session, deadline)
            opened = ssd_pb2.Opened(session_id=session.id, replayed=replayed, cache_bytes=session.cache_bytes)
            await self._write(context, ssd_pb2.DenoiseResponse(opened=opened))
            if session.request.one_way:
                await self._one_way(session, context, deadline)
            else:
                await self._open_mode(session, context, deadline)
        finally:
            self._store.release(session)

    async def _open_mode(self, session: Session, context: _Context, deadline: float | None) -> None:
        while True:
            message = await self._read(context)
            kind = message.WhichOneof("kind") if message is not None else "close"
            if message is None or kind == "close":
                return
            if kind != "step":
                raise BadRequest("after open a stream carries steps and close")
            async with session.lock:
                result = await self._pass(session, read_step(message.step, self._spec), deadline)
            await self._write(context, ssd_pb2.DenoiseResponse(result=result))

    async def _one_way(self, session: Session, context: _Context, deadline: float | None) -> None:
        """The node's own chain. After a history its last pass is answered again, and the chain goes on from there."""
        session.index = max(session.index, 0)
        finish = None
        while finish is None:
            if session.index >= self._limits.max_passes:
                raise BadRequest(f"the answer needs more than {self._limits.max_passes} passes; ask for a shorter one")
            async with session.lock:
                result, finish = await self._own_pass(session, deadline)
            await self._write(context, ssd_pb2.DenoiseResponse(result=result))
        await self._write(context, ssd_pb2.DenoiseResponse(done=ssd_pb2.Done(finish_reason=finish)))

    # ---- pieces ----

    async def _restore(self, session: Session, deadline: float | None) -> int:
        """Read the prompt and run the history again, pass by pass as it was; returns how many passes."""
        request = session.request
        session.cache_bytes = (
            await self._scheduler.prefill(session.slot, request.prompt, deadline=deadline)
        ).cache_bytes
        for step in request.history:
            self._store.take(session, step)
            if not step.skip:
                await self._compute(session, deadline)
        return len(request.history)

    async def _compute(self, session: Session, deadline: float | None) -> Computed:
        if session.request.decoder == "ar":
            computed = await self._scheduler.next(session.slot, session.pending, deadline=deadline)
        else:
            computed = await self._scheduler.step(session.slot, session.window, session.pending, deadline=deadline)
        session.cache_bytes = computed.cache_bytes
        self.counters.passes += 1
        return computed

    async def _pass(self, session: Session, step: StepInput, deadline: float | None) -> ssd_pb2.StepResult:
        self._store.take(session, step)
        if step.skip:
            return ssd_pb2.StepResult(index=step.index)
        computed = await self._compute(session, deadline)
        return await self._result(session, computed, k=step.k)

    async def _own_pass(self, session: Session, deadline: float | None) -> tuple[ssd_pb2.StepResult, str | None]:
        """One pass of the node's own chain: its result, and why the answer ends with it, if it does."""
        request = session.request
        session.touched = time.monotonic()
        computed = await self._compute(session, deadline)
        result = await self._result(session, computed, k=0)
        record = (await asyncio.to_thread(_decide, computed.logits, session)).record
        result.w_hat_core = pack_ids(record.w_hat.ids, self._spec.vocab)
        result.w_hat_core_counts = pack_counts(np.diff(record.w_hat.offsets))
        result.accepted = pack_flags(record.accepted)
        state, committed = session.state.advance(record)
        committed, finish = cut_at_end(committed, request.params, done=state.done)
        if finish is None:
            session.state, session.index = state, session.index + 1
            session.pending.add(committed)
        return result, finish

    async def _result(self, session: Session, computed: Computed, *, k: int) -> ssd_pb2.StepResult:
        decoder, spec = session.request.decoder, session.request.codec
        exact = 1 if k and decoder == "lookahead" else session.window.exact
        leading = None if decoder in ("ar", "ssdlm") else 1  # what is decided in any case
        drafts = session.state.drafts if isinstance(session.state, LookaheadState) and not k else None
        result = ssd_pb2.StepResult(
            index=session.index, queue_us=computed.queue_us, compute_us=computed.compute_us,
            logits=await _encoded(computed.logits[:exact], spec, leading=leading, wider=k, drafts=drafts),
        )  # fmt: skip
        if decoder == "lookahead" and not session.request.exact_only and not k:
            result.ahead.CopyFrom(await _encoded(computed.logits[exact:], AHEAD_CODEC, leading=None, wider=0))
        return result

    def _owner(self, context: _Context) -> str:
        metadata = cast(Any, context.invocation_metadata())
        return self._authenticator.caller(metadata) or ""

    async def _read(self, context: _Context) -> ssd_pb2.DenoiseRequest | None:
        """The next message of a stream, or None after the last."""
        try:
            async with asyncio.timeout(self._store.idle_timeout_s):
                message = await context.read()
        except TimeoutError as error:
            raise self._idle() from error
        _check_readable(message)
        return None if message is grpc.aio.EOF else cast(ssd_pb2.DenoiseRequest, message)

    async def _write(self, context: _Context, message: ssd_pb2.DenoiseResponse) -> None:
        try:
            async with asyncio.timeout(self._store.idle_timeout_s):
                await context.write(message)
        except TimeoutError as error:
            raise self._idle() from error

    def _idle(self) -> Expired:
        return Expired(f"nothing moved for {self._store.idle_timeout_s:g} s; open the session again with its history")

    async def _answer(self, context: _Context, body: Coroutine[Any, Any, _T]) -> _T:
        """Run a call's body and turn whatever goes wrong into a status. What the body held is free by then."""
        self.counters.requests += 1
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._calls.add(task)
        try:
            return await body
        except RequestError as error:
            self.counters.failed += 1
            _log.info("call refused", extra={"code": error.code})
            return await _abort(context, error)
        except asyncio.CancelledError:
            self.counters.cancelled += 1
            if not self._over:
                raise
            task.uncancel()
            return await _abort(context, Draining())
        except grpc.aio.BaseError:
            self.counters.cancelled += 1  # the connection broke under a read or write
            raise
        except Exception as error:  # noqa: BLE001 - the last line: a caller never sees more than one sentence
            self.counters.failed += 1
            _log.error("call failed", extra={"error": type(error).__name__, "at": _where(error)})
            return await _abort(context, EngineFailed())
        finally:
            self._calls.discard(task)


async def _encoded(
    logits: F32, spec: codec.CodecSpec, *, leading: int | None, wider: int, drafts: DraftTree | None = None
) -> ssd_pb2.Logits:
    """Rows as a message; with drafts, the rows behind them by the probability of the path to each."""

    def encode() -> bytes:
        if spec.kind != "top-k":
            return codec.encode(logits, spec)
        logp = log_softmax(logits)
        later = None if drafts is None else worth(logp, drafts, most=spec.k, least=AHEAD_K)
        return codec.encode(logp, spec, leading=leading, wider=wider, later=later, normalised=True)

    try:
        data = await asyncio.to_thread(encode)
    except KernelError as error:  # NaN or infinite logits
        _log.error("logits cannot be sent", extra={"error": type(error).__name__})
        raise EngineFailed from error
    wire, dtype = _WIRE_CODECS[spec.kind]
    return ssd_pb2.Logits(codec=wire, dtype=dtype, shape=logits.shape, data=data)


def _decide(logits: F32, session: Session) -> Decision:
    """The node's own decision about a pass (one-way); depends on public settings and its own logits only."""
    params, key, state = session.request.params, session.request.core_draw_key, session.state
    logp = log_softmax(logits)
    if isinstance(state, BlockState):
        return decide_block(logp, state, params, draw_key=key, purpose=Purpose.CORE_DRAW)
    return decide(logp, cast(WindowState, state), params, draw_key=key, purpose=Purpose.CORE_DRAW)


def _check_readable(message: object) -> None:
    if isinstance(message, Undecodable):
        raise BadRequest("the bytes are no message of ssd.v1; caller and node may be of different versions")


def _deadline(context: _Context) -> float | None:
    remaining = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining


def _where(error: BaseException) -> str:
    """File and line where an error was raised; never its message, which may hold a caller's data."""
    trace = traceback.extract_tb(error.__traceback__)
    return f"{trace[-1].filename.rsplit('/', 1)[-1]}:{trace[-1].lineno}" if trace else "?"


async def _abort(context: _Context, error: RequestError) -> NoReturn:
    details = []
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
        details.append(packed)
    rich = status_pb2.Status(code=grpc.StatusCode[error.code].value[0], message=str(error), details=details)
    status = rpc_status.to_status(rich)
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort always raises")
