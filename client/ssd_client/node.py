"""The connection to a node: where it is, what it serves, and every byte that goes either way.

All messages pass one serialiser, which writes them to the ledger and counts them before gRPC may send them: nothing can
leave the device beside the ledger. Knows nothing about windows, members or answers.
"""

from __future__ import annotations

import hashlib
import ipaddress
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from ssd_diffusion.engine import ModelSpec
from ssd_kernels.types import F32
from ssd_protos import limits
from ssd_protos.ssd.v1 import ssd_pb2

from ssd_client.errors import LedgerError, NodeMismatch, NodeRefused, NodeUnreachable, UsageError

DEFAULT_PORT = 7337
_DESCRIBE_BYTES = 4 * 1024 * 1024
_SERVICE = "/ssd.v1.Ssd/"
_RETRY_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_retries", 0),
]

_Response = TypeVar("_Response", bound=Message)
Call = Any  # grpc's call objects: an iterator of responses with cancel()


class Sink(Protocol):
    """Takes note of a message before it is sent."""

    def __call__(self, *, to: str, kind: str, size_bytes: int, sha256: str) -> None:
        """Write one entry.

        Raises:
            ClientError: the entry could not be written; the message is then not sent.
        """
        ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node is and how to reach it.

    Attributes:
        target: "HOST:PORT".
        tls: whether the connection is encrypted.
        root_ca: PEM certificates to trust, or None for the system's own.
    """

    target: str
    tls: bool
    root_ca: bytes | None = None

    @staticmethod
    def parse(text: str, *, ca: Path | None = None, insecure: bool = False) -> Address:
        """From "HOST[:PORT]": plaintext to this machine, or with `insecure`; TLS everywhere else.

        Raises:
            UsageError: not an address, or certificates that cannot be read.
        """
        host, port = _split(text.strip())
        if ca is not None and insecure:
            raise UsageError("--ca and --insecure exclude each other; leave --insecure out to use TLS")
        root = None
        if ca is not None:
            try:
                root = ca.read_bytes()
            except OSError as error:
                raise UsageError(f"cannot read the certificates in {ca}: {error.strerror}") from error
            if b"-----BEGIN CERTIFICATE-----" not in root:
                raise UsageError(f"{ca} holds no PEM certificate; pass the node's CA or certificate file to --ca")
        plain = insecure or (ca is None and is_loopback(host))
        shown = f"[{host}]" if ":" in host else host
        return Address(f"{shown}:{port}", tls=not plain, root_ca=root)


def is_loopback(host: str) -> bool:
    """True for names and addresses of this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a node said it serves, checked for sense.

    Attributes:
        spec: the core.
        server_version: version of the node's software.
        codecs: names of codecs it writes, see `CODECS`.
        decoders: values of ssd.v1.Decoder.
        bounds: message limits derived from V, B and the context length.
        tail: the codec's tail shape: log-probabilities of a shared unigram [V], or None for uniform.
    """

    spec: ModelSpec
    server_version: str
    codecs: tuple[int, ...]
    decoders: tuple[int, ...]
    bounds: limits.Limits
    tail: F32 | None


class Meter:
    """Counts messages and their bytes, and tells the ledger of each before it is sent. Safe from many threads."""

    def __init__(self, to: str, sink: Sink | None) -> None:
        self._to, self._sink = to, sink
        self._lock = threading.Lock()
        self.bytes_up = 0
        self.bytes_down = 0
        self.messages_up: dict[str, int] = {}
        self.refusal: LedgerError | None = None

    def serialise(self, message: Message) -> bytes:
        """The message's bytes, counted and ledgered."""
        data = message.SerializeToString(deterministic=True)
        kind = _kind(message)
        with self._lock:
            if self._sink is not None:
                try:
                    self._sink(to=self._to, kind=kind, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
                except LedgerError as error:
                    self.refusal = error
                    raise
            self.bytes_up += len(data)
            self.messages_up[kind] = self.messages_up.get(kind, 0) + 1
        return data

    def parser(self, kind: type[_Response]) -> Callable[[bytes], _Response]:
        """A deserialiser of one kind of message that counts bytes."""

        def parse(data: bytes) -> _Response:
            with self._lock:
                self.bytes_down += len(data)
            return kind.FromString(data)

        return parse


@dataclass(slots=True)
class NodeChannel:
    """An open channel to a node. A context manager.

    Args:
        address: where the node is.
        token: bearer token, or None.
        sink: the ledger, or None (tests).

    Raises:
        UsageError: a token that no node can have made.
    """

    address: Address
    token: str | None = None
    sink: Sink | None = None
    meter: Meter = field(init=False)
    _channel: grpc.Channel | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise UsageError("a token is printable ASCII; pass with --token the one that the node printed")
        self.meter = Meter(self.address.target, self.sink)

    def __enter__(self) -> NodeChannel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def describe(self, timeout_s: float) -> NodeInfo:
        """Ask what the node serves, and set the channel's message limits by it.

        Raises:
            NodeUnreachable: no answer in time.
            NodeRefused: the token is missing or wrong.
            NodeMismatch: another version of the wire, or an answer that makes no sense.
        """
        with self._dial(_DESCRIBE_BYTES, _DESCRIBE_BYTES) as channel:
            call = channel.unary_unary(
                f"{_SERVICE}Describe",
                request_serializer=self.meter.serialise,
                response_deserializer=self.meter.parser(ssd_pb2.DescribeResponse),
            )
            request = ssd_pb2.DescribeRequest(protocol=limits.PROTOCOL)
            try:
                answer = call(request, timeout=timeout_s, metadata=self._metadata(), wait_for_ready=False)
            except grpc.RpcError as error:
                raise self.explain(error) from error
        info = _checked(answer, self.address.target)
        self.close()
        self._channel = self._dial(info.bounds.max_request_bytes, info.bounds.max_response_bytes)
        return info

    def denoise(self, requests: Iterator[ssd_pb2.DenoiseRequest], timeout_s: float) -> Call:
        """Open the bidirectional stream."""
        method = self._ready().stream_stream(
            f"{_SERVICE}Denoise",
            request_serializer=self.meter.serialise,
            response_deserializer=self.meter.parser(ssd_pb2.DenoiseResponse),
        )
        return method(requests, timeout=timeout_s, metadata=self._metadata())

    def denoise_step(self, request: ssd_pb2.DenoiseStepRequest, timeout_s: float) -> Call:
        """Start one unary step; the result is `call.result()`, cancellable."""
        method = self._ready().unary_unary(
            f"{_SERVICE}DenoiseStep",
            request_serializer=self.meter.serialise,
            response_deserializer=self.meter.parser(ssd_pb2.DenoiseStepResponse),
        )
        return method.future(request, timeout=timeout_s, metadata=self._metadata())

    def close(self) -> None:
        """Close the channel. Safe to call twice."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def explain(self, error: grpc.RpcError) -> NodeUnreachable | NodeRefused | NodeMismatch | LedgerError:
        """A gRPC error as one of ours, in one sentence."""
        if self.meter.refusal is not None:
            return self.meter.refusal
        code, details = status_of(error)
        where = f"the node at {self.address.target}"
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return NodeRefused(f"{where} refused the token; pass the one it printed at its first start with --token")
        if code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED):
            return NodeMismatch(f"{where} does not fit this device: {details or 'it speaks another protocol'}")
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE):
            return NodeMismatch(f"{where} refused the request: {details}")
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            return NodeUnreachable(f"{where} is full ({details}); try again later")
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return NodeUnreachable(f"{where} did not answer in time")
        hint = "" if self.address.tls else " (does it want TLS? then pass --ca)"
        return NodeUnreachable(f"{where} cannot be reached{hint}: {_short(details)}")

    def _dial(self, send_bytes: int, receive_bytes: int) -> grpc.Channel:
        options = limits.channel_options(max_send_bytes=send_bytes, max_receive_bytes=receive_bytes) + _RETRY_OPTIONS
        if not self.address.tls:
            return grpc.insecure_channel(self.address.target, options=options)
        credentials = grpc.ssl_channel_credentials(root_certificates=self.address.root_ca)
        return grpc.secure_channel(self.address.target, credentials, options=options)

    def _ready(self) -> grpc.Channel:
        if self._channel is None:
            raise NodeUnreachable("the node was not asked what it serves; call describe first")
        return self._channel

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def check_tokenizer(info: NodeInfo, *, fingerprint: str, vocab: int, whose: str) -> None:
    """Refuse a core whose token ids mean something else.

    Raises:
        NodeMismatch: fingerprints or vocabularies differ; the message holds both.
    """
    theirs = info.spec.tokenizer_fingerprint
    if theirs != fingerprint:
        raise NodeMismatch(
            f"the node's tokenizer ({theirs or 'unknown'}) is not the one of {whose} ({fingerprint}); "
            "use a node with the same vocabulary, or --offline"
        )
    if info.spec.vocab != vocab:
        raise NodeMismatch(f"the node has {info.spec.vocab} tokens and {whose} {vocab}; use another node, or --offline")


def status_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Code and details of a gRPC error."""
    code = getattr(error, "code", lambda: grpc.StatusCode.UNKNOWN)()
    details = getattr(error, "details", lambda: "")()
    return code or grpc.StatusCode.UNKNOWN, str(details or "")


def _checked(answer: ssd_pb2.DescribeResponse, target: str) -> NodeInfo:
    if answer.protocol != limits.PROTOCOL:
        raise NodeMismatch(
            f"the node at {target} speaks version {answer.protocol or 'unknown'} of the wire and this device "
            f"{limits.PROTOCOL}; update the older one, or use --offline"
        )
    grid = tuple(float(u) for u in answer.grid)
    if (
        answer.family not in ("ssd2", "ssdlm")
        or not grid
        or min(answer.vocab, answer.max_block, answer.max_context) < 1
    ):
        raise NodeMismatch(f"the node at {target} describes no usable model; update it, or use --offline")
    stated = answer.tail_log_unigram
    tail = np.frombuffer(stated[: len(stated) // 2 * 2], "<f2").astype(np.float32) * np.float32(np.log(2.0))
    if len(stated) not in (0, 2 * answer.vocab) or not np.isfinite(tail).all():
        raise NodeMismatch(f"the node at {target} describes a broken codec; update it, or use --offline")
    spec = ModelSpec(
        model_id=answer.model_id, family="ssd2" if answer.family == "ssd2" else "ssdlm", vocab=answer.vocab,
        hidden=answer.hidden, max_block=answer.max_block, max_context=answer.max_context, simplex_k=answer.simplex_k,
        schedule_s=answer.schedule_s, output_shift=answer.output_shift, grid=grid,
        tokenizer_fingerprint=answer.tokenizer_fingerprint, eos_ids=tuple(answer.eos_ids),
    )  # fmt: skip
    bounds = limits.Limits.of(vocab=spec.vocab, max_block=spec.max_block, max_context=spec.max_context)
    return NodeInfo(
        spec, answer.server_version, tuple(answer.codecs), tuple(answer.decoders), bounds, tail if len(tail) else None
    )


def _split(text: str) -> tuple[str, int]:
    host, port = text, str(DEFAULT_PORT)
    if text.startswith("[") and "]" in text:
        host, _, rest = text[1:].partition("]")
        port = rest.lstrip(":") or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not host or "/" in host or " " in host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise UsageError(f"{text!r} is not an address; write --node HOST:PORT, for example localhost:{DEFAULT_PORT}")
    return host, int(port)


def _kind(message: Message) -> str:
    if isinstance(message, ssd_pb2.DenoiseRequest):
        return message.WhichOneof("kind") or "empty"
    if isinstance(message, ssd_pb2.DenoiseStepRequest):
        return "open" if message.HasField("open") else "step" if message.HasField("step") else "close"
    return "describe"


def _short(details: str) -> str:
    first = details.strip().splitlines()[0] if details.strip() else "no answer"
    return first if len(first) <= 160 else first[:157] + "..."
