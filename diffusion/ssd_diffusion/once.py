"""A folder that is made once, whole or not at all, by one process while others wait. Knows nothing of what is in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ssd_diffusion.errors import InvalidModel

_WAIT_S = 600.0


def make_once(target: Path, *, current: Callable[[], bool], build: Callable[[Path], None], what: str) -> None:
    """Make a folder where it is not there, or no longer what it should be.

    Args:
        target: the folder; its parent is made when missing.
        current: whether it is there as it should be.
        build: fills an empty folder, which then takes the target's place.
        what: what it is, for a message.

    Raises:
        InvalidModel: another process is making it, and is not done for ten minutes.
    """
    if current():
        return
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(target.with_name(f".{target.name}.lock"), what):
        if not current():
            _replace(target, build)


def _replace(target: Path, build: Callable[[Path], None]) -> None:
    scratch = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(mode=0o700)
    try:
        build(scratch)
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        scratch.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, what: str) -> Iterator[None]:
    """Hold a file lock, waiting for another process with a deadline."""
    with path.open("w") as file:
        end = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise InvalidModel(f"another process is still making {what}; try again") from None
                time.sleep(0.2)
        yield
