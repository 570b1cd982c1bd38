"""Nodes in a thread or a process, a recording gRPC proxy and a breakable TCP proxy, for the tests of the device."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
from ssd_cloud.auth import Authenticator
from ssd_cloud.server import Address, Node, Settings

TOKEN = "ssd_token-of-the-tests"


def torch_engine(folder: Path, slots: int = 8) -> Any:
    from ssd_diffusion.models.engine import TorchEngine
    from ssd_diffusion.models.folder import load

    model, spec = load(folder)
    return TorchEngine(model, spec, slots=slots)


class ThreadedNode:
    """A real node on a free port, in a thread with its own event loop. A context manager."""

    def __init__(self, engine: Any, *, port: int = 0, token: str | None = TOKEN, **settings: Any) -> None:
        self._engine, self._token = engine, token
        self._settings = Settings(listen=Address("127.0.0.1", port), **{"drain_s": 0.0, **settings})
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._error: BaseException | None = None
        self.node: Any = None
        self.target = ""
        self._thread = threading.Thread(target=self._run, name="node")

    def __enter__(self) -> ThreadedNode:
        self._thread.start()
        assert self._ready.wait(30)
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive() and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(30)
        assert not self._thread.is_alive()
        if self.node is not None:
            assert self.node.store.created == self.node.store.released

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        try:
            self._stop = asyncio.Event()
            self.node = Node(self._engine, self._settings, Authenticator(None, given=self._token))
            self.target = str(await self.node.start())
        except Exception as error:  # noqa: BLE001 - raised again in the test's thread
            self._error = error
            return
        finally:
            self._ready.set()
        await self._stop.wait()
        await self.node.drain()


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SSD_")}
    return {
        **kept, "SSD_HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "OMP_NUM_THREADS": "1",
        "COLUMNS": "120", "NO_COLOR": "1", **more,
    }  # fmt: skip


class NodeProcess:
    """`ssd-cloud serve` as a real process that can be killed and started again on the same port."""

    def __init__(self, home: Path, model: Path, *flags: str) -> None:
        self._home, self._model, self._flags = home, model, flags
        home.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process: subprocess.Popen[str] | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self, model: Path | None = None) -> dict[str, Any]:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ssd_cloud.cli.main", "serve", "--listen", self.target, "--token", TOKEN, "--json",
             "--model", str(model or self._model), *self._flags],
            env=environment(self._home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        watchdog = threading.Timer(90, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if not line:
            raise AssertionError(f"the node ended: {self.process.communicate()[1]}")
        return json.loads(line)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.communicate()
            self.process = None

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class RecordingProxy:
    """A gRPC proxy that forwards raw bytes and keeps every message and header that went up, in order."""

    def __init__(self, upstream: str) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.headers: list[tuple[str, tuple[tuple[str, str | bytes], ...]]] = []
        self._channel = grpc.insecure_channel(upstream, options=[("grpc.max_receive_message_length", 1 << 28)])
        self._server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_send_message_length", 1 << 28)])
        self._server.add_generic_rpc_handlers((_Forward(self),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.target = f"127.0.0.1:{port}"

    def messages(self, method: str) -> list[bytes]:
        return [data for name, data in self.sent if name.endswith("/" + method)]

    def __enter__(self) -> RecordingProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait(10)
        self._channel.close()

    def forward(self, method: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        metadata = tuple(context.invocation_metadata())
        self.headers.append((method, metadata))

        def keeping() -> Iterator[bytes]:
            for data in requests:
                self.sent.append((method, data))
                yield data

        passed = [(k, v) for k, v in metadata if k == "authorization"]
        call = self._channel.stream_stream(method)(keeping(), metadata=passed, timeout=context.time_remaining())
        context.add_callback(call.cancel)
        try:
            yield from call
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())


class _Forward(grpc.GenericRpcHandler):
    def __init__(self, proxy: RecordingProxy) -> None:
        self._proxy = proxy

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.stream_stream_rpc_method_handler(
            lambda requests, context: self._proxy.forward(details.method, requests, context)
        )


class TcpProxy:
    """A TCP relay that can be cut, closed for a while, or made silent."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.partition(":")
        self._upstream = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._open = True
        self.refusing = False
        self.down_bytes = 0
        self.cut_after_bytes: int | None = None
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection."""
        self.cuts += 1
        self._shut()

    def _shut(self) -> None:
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for side in pair:
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._listener.close()
        self._shut()

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                near.close()
                continue
            try:
                far = socket.create_connection(self._upstream, timeout=5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            self._pairs.append((near, far))
            threading.Thread(target=self._pump, args=(near, far), daemon=True).start()

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        """Relay both ways; only then close, so that no thread reads a number that means another socket by now."""
        up = threading.Thread(target=self._relay, args=(near, far, False), daemon=True)
        up.start()
        self._relay(far, near, True)
        up.join()
        near.close()
        far.close()

    def _relay(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        try:
            while data := source.recv(65_536):
                if down:
                    self.down_bytes += len(data)
                    if self.cut_after_bytes is not None and self.down_bytes >= self.cut_after_bytes:
                        self.cut_after_bytes = None
                        self.cut()
                        return
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for side in (source, sink):
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)


def client(home: Path, *arguments: str, timeout: float = 120, stdin: str | None = None, **more: str) -> Any:
    """`ssd-client` as a process; its result."""
    return subprocess.run(
        [sys.executable, "-m", "ssd_client.cli.main", *arguments], env=environment(home, **more), timeout=timeout,
        capture_output=True, text=True, input=stdin or "",
    )  # fmt: skip


def export_expert(model_folder: Path, target: Path) -> Path:
    """An expert's files from a tiny model, by the real export: onnx/, model.json, tokenizer."""
    from ssd_diffusion.export.onnx import export
    from ssd_diffusion.models.folder import load
    from ssd_diffusion.tokenizer import copy_tokenizer

    target.mkdir(parents=True)
    model, _ = load(model_folder)
    export(model, target / "onnx")
    shutil.copyfile(model_folder / "model.json", target / "model.json")
    copy_tokenizer(model_folder, target)
    return target


def register_expert(home: Path, name: str, exported: Path, documents: dict[str, str], **card: Any) -> None:
    """Put an exported expert with an index of some documents (BM25 alone) into a home's store."""
    from ssd_client.documents import ingest
    from ssd_client.index import Index
    from ssd_client.store import ExpertCard, Store

    store = Store(home)
    folder = home.parent / f"documents-{name}"
    for path, text in documents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    staged = store.staging()
    shutil.copytree(exported, staged, dirs_exist_ok=True)
    if documents:
        work = store.work_dir(name)
        found = ingest(folder, work / "documents.sqlite", workers=1)
        with Index.create(work / "index", None) as index:
            index.update(found.documents)
            index.export(staged)
    fields: dict[str, Any] = {
        "name": name, "base": "tiny", "base_model_id": "tiny@0", "created": "2026-01-01T00:00:00+00:00",
        "documents": len(documents), "data_fingerprint": "0" * 64, "lam": 0.6, "alpha": 0.5,
    }  # fmt: skip
    store.register(staged, name, ExpertCard(**{**fields, **card}))
