"""How long until a user sees the first estimate: with node and expert ready, and from a cold command line.

Node and device are processes of their own on the same cores. Knows answers; nothing about reports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import psutil
from ssd_client.answer import generate, open_expert
from ssd_client.options import GenerateOptions
from ssd_client.store import Store

from ssd_bench.served import served

PROMPT = (
    "I have been asked to look after the harbour office for a few weeks this summer while the others are away, and I "
    "want to be sure that I understand how things are usually done here before they leave. Could you tell me, in a few "
    "short sentences, what the person in charge would want me to check every morning and why it matters?"
)
"""Of about 64 tokens."""
_ANSWER_S = 120.0


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds until the first estimate, answer by answer.

    Attributes:
        warm: from the call, with the expert open and the node ready.
        cold: from the start of the command, with the node ready.
        resident: most memory that a device process held, bytes.
    """

    warm: tuple[float, ...]
    cold: tuple[float, ...]
    resident: int


def measure(home: Path, expert: str | None, core: Path, *, rounds: int, advance: Callable[[], None]) -> Waits:
    """Answers of a few tokens to one prompt; the first of each kind only warms up.

    Args:
        home: folder of experts and models; its ledger gets the answers' entries.
        expert: registered expert; None where there is only one.
        core: folder of the core.
        rounds: answers of each kind.
        advance: called after every answer.

    Raises:
        ClientError, ValueError: the expert cannot be opened, the node not started, or an answer not written.
    """
    warm, cold, most = list[float](), list[float](), 0
    with served(core, home, sessions=2) as node:
        opened = open_expert(Store(home), expert)
        for number in range(rounds + 1):
            options = GenerateOptions(
                prompt=PROMPT, expert=expert, node=node.address.target, max_tokens=8, seed=number, yes=True
            )
            warm.append(generate(options, home=home, opened=opened).first_seconds)
            advance()
        for number in range(rounds + 1):
            seconds, resident = _command(home, expert, node.address.target, number)
            cold.append(seconds)
            most = max(most, resident)
            advance()
    return Waits(tuple(warm[1:]), tuple(cold[1:]), most)


def _command(home: Path, expert: str | None, node: str, seed: int) -> tuple[float, int]:
    """Seconds from the start of `ssd-client generate` to its first estimate, and its memory."""
    chosen = [] if expert is None else ["--expert", expert]
    command = [
        sys.executable, "-m", "ssd_client.cli.main", "generate", PROMPT, "--node", node, "--max-tokens", "8", "--seed",
        str(seed), "--yes", "--json", *chosen,
    ]  # fmt: skip
    env = os.environ | {"SSD_HOME": str(home)}
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        started = time.monotonic()
        with subprocess.Popen(command, stdout=out, stderr=err, env=env) as process:
            most = 0
            while process.poll() is None:
                most = max(most, _resident(process.pid))
                if time.monotonic() - started > _ANSWER_S:
                    process.kill()
                time.sleep(0.01)
            seconds = time.monotonic() - started
        if process.returncode:
            err.seek(0)
            raise ValueError(f"an answer failed: {(err.read().strip().splitlines() or ['it said nothing'])[-1]}")
        out.seek(0)
        found = json.load(out)
    # What the process did before and after the answer counts as before: a little too much, and never too little.
    return seconds - found["seconds"] + found["first_seconds"], most


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds; 0 where it has just ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
