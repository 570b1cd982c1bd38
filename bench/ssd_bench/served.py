"""A real node as a process of its own, on loopback, for as long as a block runs. Knows nothing of what it is asked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from ssd_client.node import Address

START_S, STOP_S = 300.0, 20.0


@dataclass(frozen=True, slots=True)
class Served:
    """A node that is ready.

    Attributes:
        address: where it listens.
        pid: its process.
    """

    address: Address
    pid: int

    @property
    def resident(self) -> int:
        """Bytes of memory that it holds now."""
        return int(psutil.Process(self.pid).memory_info().rss)


@contextmanager
def served(model: Path, home: Path, *, sessions: int, flags: tuple[str, ...] = ()) -> Iterator[Served]:
    """Start a node without tokens, and stop it at the end.

    Args:
        model: the core's folder.
        home: folder of models; the core's graph is written under it.
        sessions: most at once.
        flags: more of `ssd-cloud serve`.

    Raises:
        ValueError: it does not get ready; the sentence is its own.
    """
    command = [
        sys.executable, "-m", "ssd_cloud.cli.main", "serve", "--model", str(model), "--listen", "127.0.0.1:0",
        "--no-token", "--json", "--log-level", "error", "--max-sessions", str(sessions), *flags,
    ]  # fmt: skip
    env = os.environ | {"SSD_HOME": str(home)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as node:
        late = threading.Timer(START_S, node.kill)
        late.start()
        try:
            assert node.stdout is not None
            line = node.stdout.readline()
            late.cancel()
            if not line:
                raise ValueError(f"the node did not start: {_last_words(node)}")
            yield Served(Address.parse(json.loads(line)["listen"]), node.pid)
        finally:
            late.cancel()
            node.terminate()
            try:
                node.wait(STOP_S)
            except subprocess.TimeoutExpired:
                node.kill()


def _last_words(node: subprocess.Popen[str]) -> str:
    node.kill()
    _, said = node.communicate(timeout=STOP_S)
    return (said.strip().splitlines() or ["it said nothing"])[-1]
