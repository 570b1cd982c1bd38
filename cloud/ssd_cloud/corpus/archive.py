"""Members of a fetched archive, read in memory one after the other: wheels, npm tarballs, Debian packages.

Nothing is written to disk and nothing is run, so no name in an archive can lead anywhere; links and devices are passed
over. What is too large is refused. Knows nothing about what the members hold.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import lzma
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from ssd_cloud.errors import DataError

MEMBER_BYTES = 128 << 20
TOTAL_BYTES = 2 << 30
_DEADLINE_S = 300.0
_DAMAGED = (  # RuntimeError: a zip archive's member is encrypted, or packed in a way that is not known
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, OSError, RuntimeError
)  # fmt: skip


def members(path: Path, files: Sequence[str], without: Sequence[str] = ()) -> Iterator[tuple[str, bytes]]:
    """Name and content of the plain members that match, ".gz" members unpacked and named without it.

    Args:
        path: a .whl, .zip, .tgz, .tar.gz or .deb file.
        files: patterns, of which one must match.
        without: patterns of which none may match.

    Raises:
        DataError: the archive is damaged, or a member or their sum is too large.
    """
    total = 0
    try:
        for name, data in _plain(path):
            wanted = any(fnmatch.fnmatchcase(name, p) for p in files)
            if not wanted or any(fnmatch.fnmatchcase(name, p) for p in without):
                continue
            with data as stream:
                content = _bounded(stream, path, name)
            if name.endswith((".gz", ".dz")):
                name, content = name[:-3], _bounded(gzip.GzipFile(fileobj=io.BytesIO(content)), path, name)
            total += len(content)
            if total > TOTAL_BYTES:
                raise DataError(f"{path} unpacks to more than {TOTAL_BYTES >> 20} MiB; remove it and fetch it again")
            yield name, content
    except _DAMAGED as error:
        raise DataError(f"{path} is damaged ({error}); remove it and fetch it again") from error


def _bounded(stream: IO[bytes] | gzip.GzipFile, path: Path, name: str) -> bytes:
    content = stream.read(MEMBER_BYTES + 1)
    if len(content) > MEMBER_BYTES:
        raise DataError(f"{name} in {path} is larger than {MEMBER_BYTES >> 20} MiB; remove the archive, fetch it again")
    return content


def _plain(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as archive:
            for one in sorted(archive.infolist(), key=lambda i: i.filename):
                if not one.is_dir():
                    yield one.filename, archive.open(one)
    elif path.suffix == ".deb":
        yield from _debian(path)
    else:
        with tarfile.open(path, "r:*") as archive:
            yield from _tar(archive)


def _tar(archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    for one in archive:
        stream = archive.extractfile(one) if one.isreg() else None
        if stream is not None:
            yield one.name.removeprefix("./"), stream


def _debian(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The data part of a Debian package, unpacked by dpkg-deb into a pipe."""
    try:
        process = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise DataError("dpkg-deb is not installed; use a Debian system, or pass --skip-missing") from error
    ended = False
    try:
        with process, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
            yield from _tar(archive)
            ended = True
            assert process.stdout is not None
            while process.stdout.read(1 << 16):  # padding after the archive's end
                pass
    finally:
        if not ended:
            process.kill()
        process.wait(_DEADLINE_S)
    if ended and process.returncode:
        raise DataError(f"{path} is damaged; remove it and fetch it again")
