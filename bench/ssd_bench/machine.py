"""What a benchmark ran on: processor, cores, memory, versions. No names of machines or people."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

_PLACES = ("--home", "--out", "--results", "--records")
_PACKAGES = ("numpy", "numba", "onnxruntime", "torch", "transformers", "grpcio")


def describe() -> dict[str, str]:
    """Words for the machine and the versions that matter."""
    found = {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else str(os.cpu_count()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def one_line(machine: dict[str, str]) -> str:
    """The description as one sentence for a report."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", *_PACKAGES) if name in machine)
    return f"{machine['processor']}, {machine['cores']} cores, {machine['memory']}, {machine['system']}; {versions}"


def command() -> str:
    """The command line of this run, as it can be typed again elsewhere: without folders of this machine."""
    kept: list[str] = []
    arguments = iter(sys.argv[1:])
    for argument in arguments:
        if argument in _PLACES:
            next(arguments, None)
        elif not argument.startswith(tuple(f"{place}=" for place in _PLACES)):
            kept.append(_plain(argument))
    return shlex.join(["python", "-m", "ssd_bench", *kept])


def _plain(argument: str) -> str:
    """An argument with the name alone of a path from the root, also behind NAME=."""
    name, equals, value = argument.rpartition("=")
    return f"{name}{equals}{Path(value).name}" if value.startswith("/") else argument


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    extra = ", AVX-512" if "avx512f" in flags else ", AVX2" if "avx2" in flags else ""
    return (names[0] if names else platform.machine()) + extra


def _memory() -> str:
    try:
        line = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()[0]
        return f"{int(line.split()[1]) / 2**20:.0f} GiB"
    except (OSError, IndexError, ValueError):
        return "memory unknown"
