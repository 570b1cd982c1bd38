"""The node as a running server: sockets, TLS, health, reflection, the idle sweep, and an orderly end.

Knows nothing about models' files or the command line.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from ssd_diffusion.engine import Engine
from ssd_protos.limits import Limits, channel_options
from ssd_protos.ssd.v1 import ssd_pb2, ssd_pb2_grpc

from ssd_cloud.auth import Authenticator, TokenInterceptor
from ssd_cloud.decoding import DecodingInterceptor
from ssd_cloud.errors import StartError, UsageError
from ssd_cloud.scheduler import Scheduler
from ssd_cloud.service import SsdService
from ssd_cloud.sessions import SessionStore

_log = logging.getLogger("ssd_cloud.server")

DEFAULT_LISTEN = "127.0.0.1:7337"
SERVICE_NAME = ssd_pb2.DESCRIPTOR.services_by_name["Ssd"].full_name


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node listens. Port 0 takes a free one."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> Address:
        """From "HOST:PORT" or "[V6]:PORT".

        Raises:
            UsageError: anything else.
        """
        host, _, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise UsageError(f"{text!r} is no address; write HOST:PORT, such as {DEFAULT_LISTEN}")
        return Address(host, int(port))

    @property
    def loopback(self) -> bool:
        """True when only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a node runs.

    Attributes:
        listen: where.
        tls_cert, tls_key: PEM files; both or none.
        max_sessions: most sessions at once.
        cache_bytes: most bytes of cache that sessions may reserve.
        batch_width: most sessions that compute together.
        idle_timeout_s: a session unused for so long is released.
        drain_s: how long answers may go on after the order to stop.
        reflection: answer gRPC reflection (to callers with a token).
    """

    listen: Address = Address("127.0.0.1", 7337)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_sessions: int = 8
    cache_bytes: int = 4 << 30
    batch_width: int = 1
    idle_timeout_s: float = 120.0
    drain_s: float = 10.0
    reflection: bool = True


class Node:
    """One model behind one listening socket. Make it and use it inside a running event loop.

    Args:
        engine: the model, with at least `settings.max_sessions` slots.
        settings: how to run.
        authenticator: who may call.
    """

    def __init__(self, engine: Engine, settings: Settings, authenticator: Authenticator) -> None:
        spec = engine.spec
        self.settings = settings
        self.limits = Limits.of(vocab=spec.vocab, max_block=spec.max_block, max_context=spec.max_context)
        self.scheduler = Scheduler(engine, batch_width=settings.batch_width)
        self.store = SessionStore(
            spec, self.limits, self.scheduler, slots=engine.slots, max_sessions=settings.max_sessions,
            cache_bytes=settings.cache_bytes, idle_timeout_s=settings.idle_timeout_s,
        )  # fmt: skip
        self.service = SsdService(spec, self.limits, self.store, self.scheduler, authenticator)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[TokenInterceptor(authenticator), DecodingInterceptor(SERVICE_NAME)],
            options=_server_options(self.limits),
            maximum_concurrent_rpcs=4 * settings.max_sessions + 64,
        )
        self._sweeper: asyncio.Task[None] | None = None
        self._hurried = False
        self.address = settings.listen

    async def start(self) -> Address:
        """Listen and serve; returns the real address.

        Raises:
            StartError: the port is taken, the address is not this machine's, or the certificate cannot be used.
        """
        port = self._bind()
        self.address = Address(self.settings.listen.host, port)
        ssd_pb2_grpc.add_SsdServicer_to_server(self.service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if self.settings.reflection:
            reflection.enable_server_reflection(
                (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
            )
        self.scheduler.start()
        await self._server.start()
        self._sweeper = asyncio.create_task(self._sweep(), name="idle-sweep")
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self.address

    async def drain(self) -> None:
        """Refuse new sessions, let open answers finish within `drain_s`, then end everything and release all slots."""
        await self._health.enter_graceful_shutdown()
        self.store.draining = True
        loop = asyncio.get_running_loop()
        until = loop.time() + self.settings.drain_s
        while self.service.busy and loop.time() < until and not self._hurried:
            await asyncio.sleep(0.02)
        self.service.end_calls()
        await self._server.stop(grace=1.0)
        self.store.release_all()
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
        await self.scheduler.close()
        _log.info("drained", extra={"sessions": self.store.created, "released": self.store.released})

    def hurry(self) -> None:
        """End a drain now instead of waiting for open answers."""
        self._hurried = True

    async def _sweep(self) -> None:
        pause = min(1.0, self.settings.idle_timeout_s / 4)
        while True:
            await asyncio.sleep(pause)
            self.store.release_idle()

    def _bind(self) -> int:
        credentials = _credentials(self.settings)
        listen = self.settings.listen
        _check_free(listen)
        try:
            if credentials is None:
                return int(self._server.add_insecure_port(str(listen)))
            return int(self._server.add_secure_port(str(listen), credentials))
        except RuntimeError as error:
            raise StartError(f"the node cannot listen on {listen}; choose another address with --listen") from error


def preflight(settings: Settings) -> None:
    """Find out what would keep a node from listening before its model is loaded.

    Raises:
        UsageError, StartError: as `Node.start`.
    """
    _credentials(settings)
    _check_free(settings.listen)


async def run(node: Node, ready: Callable[[Address], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the drain at once.

    Args:
        node: not started yet.
        ready: called once with the real address when the node answers.

    Raises:
        StartError: see `Node.start`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        if stop.is_set():
            node.hurry()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop)
    try:
        ready(await node.start())
        await stop.wait()
        await node.drain()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def _server_options(limits: Limits) -> list[tuple[str, int]]:
    return [
        *channel_options(max_send_bytes=limits.max_response_bytes, max_receive_bytes=limits.max_request_bytes),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.max_connection_idle_ms", 15 * 60 * 1000),
    ]


def _credentials(settings: Settings) -> grpc.ServerCredentials | None:
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise UsageError("TLS needs both --tls-cert and --tls-key")
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            settings.tls_cert, settings.tls_key, password=_no_password
        )
        pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise StartError(
            f"the certificate {settings.tls_cert} with the key {settings.tls_key} cannot be used ({why}); "
            "give a matching pair of PEM files"
        ) from error
    return grpc.ssl_server_credentials([pair])


def _no_password() -> str:
    raise ValueError("the key is encrypted")


def _check_free(listen: Address) -> None:
    """Bind once with the operating system, whose errors say what is wrong; gRPC's do not."""
    try:
        found = socket.getaddrinfo(listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, target = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        raise StartError(
            f"the node cannot listen on {listen} ({error.strerror}); choose another with --listen"
        ) from error
