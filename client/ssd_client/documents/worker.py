"""Reads fragile formats in a process of its own: a crash, a hang or a memory bomb costs one file, not the run.

`python -m ssd_client.documents.worker` is the process: one JSON request a line on stdin, one JSON answer a line on
stdout. `Worker` is the other end. Knows nothing about databases.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssd_client.documents.extract import Extracted, Limits, Part, Skip, extract

_MODULE = "ssd_client.documents.worker"


class Worker:
    """One process, started when first needed and again after it died. For one thread at a time, `stop` for any."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def read(self, path: Path, name: str) -> tuple[str, Extracted]:
        """(SHA-256 of the bytes read, documents) of one file.

        Raises:
            Skip: there is no text to be had, the time was up, or the process died on it.
        """
        process = self._started()
        if process.stdin is None or process.stdout is None:
            raise AssertionError("the process was started with pipes")
        expired = threading.Event()

        def kill() -> None:
            expired.set()
            process.kill()

        watch = threading.Timer(self.limits.seconds, kill)
        watch.start()
        try:
            request = {"path": os.fsencode(path).hex(), "name": name}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):  # it died, or `stop` closed its pipes
            line = ""
        finally:
            watch.cancel()
        if not line.endswith("\n"):
            self._discard()
            if expired.is_set():
                raise Skip(f"took longer than {self.limits.seconds:g} s to read")
            raise Skip("could not be read: the reader crashed on it")
        return _answer(json.loads(line))

    def stop(self) -> None:
        """End the process for good. Safe to call twice, from any thread."""
        self._stopped = True
        self._discard()

    def _started(self) -> subprocess.Popen[str]:
        if self._stopped:
            raise Skip("stopped")
        if self._process is None:
            command = [sys.executable, "-P", "-m", _MODULE, json.dumps(asdict(self.limits))]
            # -P: never import from the folder the user happens to stand in
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
            )
        return self._process

    def _discard(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(timeout=10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()


def read_here(path: Path, name: str, limits: Limits) -> tuple[str, Extracted]:
    """As `Worker.read`, in this process. Raises Skip."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Skip(f"cannot be read ({error.strerror})") from error
    return hashlib.sha256(data).hexdigest(), extract(name, data, limits)


def _answer(answer: dict[str, Any]) -> tuple[str, Extracted]:
    if "skip" in answer:
        raise Skip(answer["skip"])
    parts = tuple(Part(**part) for part in answer["parts"])
    return answer["sha256"], Extracted(parts, tuple((one, reason) for one, reason in answer["skipped"]))


def _serve(request: dict[str, Any], limits: Limits) -> dict[str, Any]:
    try:
        digest, found = read_here(Path(os.fsdecode(bytes.fromhex(request["path"]))), request["name"], limits)
    except Skip as reason:
        return {"skip": str(reason)}
    except MemoryError:
        return {"skip": f"needs more than {limits.memory_bytes >> 20} MB of memory to read"}
    except RecursionError:
        return {"skip": "damaged: nested too deeply"}
    except Exception as error:  # noqa: BLE001 - whatever a parser raises on a broken file costs that file only
        return {"skip": f"damaged: {type(error).__name__} while reading it"}
    return {"sha256": digest, "parts": [asdict(part) for part in found.parts], "skipped": found.skipped}


def main() -> None:
    """Serve requests until stdin ends."""
    limits = Limits(**json.loads(sys.argv[1]))
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        _alarm(int(limits.seconds) + 10)  # for the case that whoever watches the time was killed
        answer = json.dumps(_serve(json.loads(line), limits))
        _alarm(0)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _alarm(seconds: int) -> None:
    """Die after that time, where the system can; 0: not any more."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


if __name__ == "__main__":
    main()
