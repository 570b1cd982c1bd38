"""A small deterministic engine, a node around it, and a device that drives it: what the node's tests share."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from ssd_cloud.auth import Authenticator
from ssd_cloud.server import Address, Node, Settings
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import ContextOverflow
from ssd_diffusion.sampler import DecodeParams, decide
from ssd_diffusion.ssdlm import BlockState, decide_block
from ssd_diffusion.window import Window, WindowState
from ssd_kernels import codec
from ssd_kernels.combine import log_softmax
from ssd_kernels.types import F32, I32
from ssd_protos.limits import channel_options
from ssd_protos.packing import pack_counts, pack_flags, pack_ids
from ssd_protos.ssd.v1 import ssd_pb2 as pb
from ssd_protos.ssd.v1 import ssd_pb2_grpc

TOKEN = "ssd_token-of-the-tests"
GRID = (1.0, 0.5, 0.25)
V, H = 256, 8


@dataclass
class _Slot:
    tokens: list[int] = field(default_factory=list)
    last_step: int = -1
    sc_in: dict[int, Any] = field(default_factory=dict)
    sc_out: dict[int, Any] = field(default_factory=dict)
    passes: int = 0


class FakeEngine:
    """Logits depend on the context, the window with its noise, and the self-conditioning; nothing else."""

    def __init__(self, *, slots: int = 8, family: str = "ssd2", delay_s: float = 0.0) -> None:
        rng = np.random.default_rng(7)
        self.embed = rng.normal(size=(V, H))
        self._slots = {i: _Slot() for i in range(slots)}
        self.slots = slots
        self.delay_s = delay_s
        self.fail: set[str] = set()
        self.fail_slots: set[int] = set()
        self.nan = False
        self.batches: list[int] = []
        self.threads: set[int] = set()
        self.spec = ModelSpec(
            model_id="fake@0123456789abcdef", family=family, vocab=V, hidden=H, max_block=8, max_context=128,
            grid=GRID, tokenizer_fingerprint="f" * 64, eos_ids=(2,), layers=2, kv_heads=1, head_dim=4,
        )  # fmt: skip

    def _enter(self, what: str, slots: Sequence[int]) -> None:
        self.threads.add(threading.get_ident())
        if self.delay_s:
            time.sleep(self.delay_s)
        if what in self.fail or self.fail_slots & set(slots) & ({*slots} if what != "release" else set()):
            raise RuntimeError("secret detail of the engine")

    def prefill(self, slots: Sequence[int], contexts: Sequence[I32]) -> None:
        self._enter("prefill", slots)
        for slot, context in zip(slots, contexts, strict=True):
            self._slots[slot] = _Slot(tokens=context.tolist(), passes=1)

    def commit(self, slots: Sequence[int], tokens: Sequence[I32]) -> None:
        self._enter("commit", [])
        for slot, new in zip(slots, tokens, strict=True):
            self._slots[slot].tokens += new.tolist()

    def step(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        self._enter("step", slots)
        self.batches.append(len(slots))
        return [self._row(self._slots[s], w) for s, w in zip(slots, windows, strict=True)]

    def next_logits(self, slots: Sequence[int]) -> list[F32]:
        self._enter("next", slots)
        self.batches.append(len(slots))
        return [(np.tanh(self._context(self._slots[s])) @ self.embed.T * 0.8).astype(np.float32) for s in slots]

    def release(self, slots: Sequence[int]) -> None:
        self._enter("release", slots)
        for slot in slots:
            self._slots[slot] = _Slot()

    def slot_bytes(self, slot: int) -> int:
        return 64 * len(self._slots[slot].tokens)

    def forward_passes(self, slot: int) -> int:
        return self._slots[slot].passes

    def _context(self, slot: _Slot) -> Any:
        state = np.zeros(H)
        for token in slot.tokens:
            state = 0.8 * state + self.embed[token]
        return state

    def _ahead(self, slot: _Slot, window: Window) -> F32:
        state = self._context(slot)
        states = [state]
        for token, parent in zip(window.w_hat.ids, window.parents, strict=True):
            states.append(0.8 * states[parent + 1] + self.embed[token])
        states += [one + 0.1 * (j + 1) for one in states for j in range(window.ahead)]
        return (np.tanh(np.stack(states)) @ self.embed.T * 0.8).astype(np.float32)

    def _row(self, slot: _Slot, window: Window) -> F32:
        if len(slot.tokens) + len(window.u) > self.spec.max_context:
            raise ContextOverflow("too long")
        if window.step == 0:
            slot.sc_in = {}
        elif window.step != slot.last_step:
            slot.sc_in = slot.sc_out
        slot.last_step = window.step
        slot.passes += 1
        if window.drafts is not None:
            return self._ahead(slot, window)
        rows = []
        for i, position in enumerate(window.positions.tolist()):
            noise = np.random.default_rng([window.noise_key % 2**32, window.step, position]).normal(size=H)
            ids = window.w_hat.row(i)
            seen = self.embed[ids].mean(axis=0) if len(ids) else np.zeros(H)
            u = float(window.u[i])
            rows.append((1 - u) * seen + 0.3 * u * noise + 0.5 * slot.sc_in.get(position, 0.0))
        mixed = np.stack(rows) + self._context(slot) + np.mean(rows, axis=0)
        logits = np.tanh(mixed) @ self.embed.T * 0.8
        p = np.exp(logits - logits.max(axis=-1, keepdims=True))
        soft = (p / p.sum(axis=-1, keepdims=True)) @ self.embed
        slot.sc_out = dict(zip(window.positions.tolist(), soft, strict=True))
        return np.full_like(logits, np.nan, dtype=np.float32) if self.nan else logits.astype(np.float32)


@dataclass
class Device:
    """Drives one answer: the device's half, without any expert."""

    spec: ModelSpec
    params: DecodeParams
    prompt: list[int] = field(default_factory=lambda: [5, 6, 7, 40])
    noise_key: int = 99
    decoder: int = pb.DECODER_WINDOW
    mode: int = pb.MODE_OPEN
    codec: codec.CodecSpec = field(default_factory=lambda: codec.CodecSpec(kind="dense-f32"))
    state: Any = None
    steps: list[pb.Step] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)
    text: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        begin = BlockState.begin if self.decoder == pb.DECODER_SSDLM else WindowState.begin
        grid, block = (self.params.grid, self.params.block)
        if self.decoder == pb.DECODER_AUTOREGRESSIVE:
            grid, block = (1.0,), 1
        self.state = begin(grid=grid, noise_key=self.noise_key, block=block, limit=self.params.max_tokens)
        self.steps, self.data, self.text = [pb.Step(index=0)], [], []

    def open(self, history: Sequence[pb.Step] = ()) -> pb.Open:
        projections = {
            "sample": pb.PROJECTION_SAMPLE,
            "greedy": pb.PROJECTION_GREEDY,
            "multi-hot": pb.PROJECTION_MULTI_HOT,
        }
        kinds = {
            "dense-f32": pb.CODEC_KIND_DENSE_F32,
            "dense-f16": pb.CODEC_KIND_DENSE_F16,
            "top-k": pb.CODEC_KIND_TOP_K,
        }
        p = self.params
        return pb.Open(
            protocol="1", model_id=self.spec.model_id, tokenizer_fingerprint=self.spec.tokenizer_fingerprint,
            prompt_ids=pack_ids(self.prompt, self.spec.vocab), noise_key=self.noise_key, decoder=self.decoder,
            mode=self.mode, history=history,
            params=pb.DecodeParams(
                block=p.block, grid=p.grid, max_tokens=p.max_tokens, projection=projections[p.projection],
                temperature=p.temperature, top_p=p.top_p, entropy_budget=p.entropy_budget, core_draw_key=11,
            ),
            codec=pb.Codec(kind=kinds[self.codec.kind], k=self.codec.k if self.codec.kind == "top-k" else 0,
                           residual=self.codec.residual if self.codec.kind == "top-k" else 0),
        )  # fmt: skip

    @property
    def step(self) -> pb.Step:
        """The next step to send."""
        return self.steps[-1]

    def take(self, result: pb.StepResult) -> bool:
        """Decide about a result; True when the answer is complete."""
        assert result.index == self.step.index
        rows, vocab = result.logits.shape
        self.data.append(result.logits.data)
        logp = log_softmax(codec.decode_full(result.logits.data, rows=rows, vocab=vocab, spec=self.codec).logp)
        if self.decoder == pb.DECODER_SSDLM:
            record = decide_block(logp, self.state, self.params, draw_key=3).record
        else:
            record = decide(logp, self.state, self.params, draw_key=3).record
        self.state, committed = self.state.advance(record)
        self.text += committed.tolist()
        self.steps.append(pb.Step(
            index=self.step.index + 1, w_hat=pack_ids(record.w_hat.ids, self.spec.vocab),
            w_hat_counts=pack_counts(np.diff(record.w_hat.offsets)),
            accepted=b"" if self.decoder == pb.DECODER_AUTOREGRESSIVE else pack_flags(record.accepted),
        ))  # fmt: skip
        return bool(self.state.done)

    async def stream(self, stub: Any, *, passes: int | None = None, history: Sequence[pb.Step] = ()) -> None:
        """Run over the stream from where the device is, at most so many passes."""
        call = stub.Denoise()
        await call.write(pb.DenoiseRequest(open=self.open(history)))
        assert (await call.read()).WhichOneof("kind") == "opened"
        done = False
        while not done and passes != 0:
            passes = None if passes is None else passes - 1
            await call.write(pb.DenoiseRequest(step=self.step))
            done = self.take((await call.read()).result)
        await call.write(pb.DenoiseRequest(close=pb.Close()))
        assert await call.read() is grpc.aio.EOF

    async def unary(self, stub: Any, *, passes: int | None = None, last: bool = True) -> str:
        """Run over unary calls; returns the session id."""
        session, done = "", False
        while not done and passes != 0:
            passes = None if passes is None else passes - 1
            request = pb.DenoiseStepRequest(session_id=session, step=self.step)
            if not session:
                request.open.CopyFrom(self.open(self.steps[:-1]))
            answer = await stub.DenoiseStep(request)
            session = answer.session_id
            done = self.take(answer.result)
        if last:
            await stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, last=True))
        return session


@dataclass
class Running:
    """A node under test and a stub with a valid token."""

    node: Node
    engine: Any
    address: Address
    stub: Any
    channel: grpc.aio.Channel

    async def settled(self) -> None:
        """Wait until every session is released; fails when one never is."""
        for _ in range(300):
            if self.node.store.active == 0 and not self.node.service.busy:
                break
            await asyncio.sleep(0.01)
        store = self.node.store
        assert (store.created, store.reserved_bytes, self.node.service.counters.streams) == (store.released, 0, 0)

    def device(self, **changes: Any) -> Device:
        params = DecodeParams(block=4, grid=GRID, max_tokens=10, entropy_budget=2.0, top_p=0.9)
        fields = {k: changes.pop(k) for k in list(changes) if k in Device.__dataclass_fields__}
        return Device(self.engine.spec, replace(params, **changes), **fields)


class _Stub:
    """A stub whose calls carry a token; plain metadata, so that streams keep their read and write."""

    def __init__(self, channel: grpc.aio.Channel, token: str | None) -> None:
        self._stub = ssd_pb2_grpc.SsdStub(channel)
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def Describe(self, request: pb.DescribeRequest, **more: Any) -> Any:
        return self._stub.Describe(request, metadata=self._metadata, timeout=more.pop("timeout", 10), **more)

    def DenoiseStep(self, request: pb.DenoiseStepRequest, **more: Any) -> Any:
        return self._stub.DenoiseStep(request, metadata=self._metadata, timeout=more.pop("timeout", 10), **more)

    def Denoise(self, **more: Any) -> Any:
        return self._stub.Denoise(metadata=self._metadata, timeout=more.pop("timeout", 10), **more)


@asynccontextmanager
async def running(
    engine: Any | None = None, *, authenticator: Authenticator | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """A node on a free port of this machine; drained at the end, and every session must then be released."""
    engine = engine or FakeEngine()
    chosen = Settings(listen=Address("127.0.0.1", 0), **{"drain_s": 0.0, **settings})
    node = Node(engine, chosen, authenticator or Authenticator(None, given=TOKEN))
    address = await node.start()
    limits = node.limits
    options = channel_options(max_send_bytes=limits.max_request_bytes, max_receive_bytes=limits.max_response_bytes)
    try:
        async with grpc.aio.insecure_channel(str(address), options=options) as channel:
            yield Running(node, engine, address, _Stub(channel, TOKEN), channel)
    finally:
        await node.drain()
    assert node.store.created == node.store.released


@pytest.fixture
def start_node() -> Callable[..., Any]:
    return running


@pytest.fixture
def fake_engine() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture
def stub_with() -> Callable[[grpc.aio.Channel, str | None], Any]:
    return _Stub


@pytest.fixture
def status_of() -> Callable[[Awaitable[Any]], Awaitable[tuple[grpc.StatusCode, str]]]:
    """Await a call that must fail; its status and message."""

    async def run(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        return caught.value.code(), caught.value.details() or ""

    return run


@pytest.fixture
def device_open(fake_engine: type[FakeEngine]) -> Callable[..., pb.Open]:
    """A right Open for the fake engine."""

    def build(*, one_way: bool = False, decoder: int = pb.DECODER_WINDOW) -> pb.Open:
        params = DecodeParams(block=4, grid=GRID, max_tokens=10, top_p=0.9)
        mode = pb.MODE_ONE_WAY if one_way else pb.MODE_OPEN
        return Device(fake_engine().spec, params, mode=mode, decoder=decoder).open()

    return build


@pytest.fixture
def certificate() -> Callable[[Path], tuple[Path, Path]]:
    """Makes a self-signed certificate for this machine and its key, as PEM files."""

    def make(folder: Path) -> tuple[Path, Path]:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        made = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(key, hashes.SHA256())
        )  # fmt: skip
        cert, secret = folder / "cert.pem", folder / "key.pem"
        cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        secret.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                             serialization.NoEncryption()))  # fmt: skip
        return cert, secret

    return make
