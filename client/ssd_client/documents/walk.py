"""Which files of a folder may be read, and why the others are not. Reads names and metadata, never content."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ssd_client.errors import BadInput

_SKIPPED_FOLDERS = {
    "node_modules": "folder of installed packages",
    "site-packages": "folder of installed packages",
    "__pycache__": "folder of compiled files",
    "CVS": "folder of a version control system",
    "_darcs": "folder of a version control system",
}
_VERSION_CONTROL = {".git", ".hg", ".svn", ".bzr", ".jj"}


@dataclass(frozen=True, slots=True)
class Found:
    """A plain file.

    Attributes:
        path: where it is.
        name: path within the folder, "/" between parts; bytes that are no UTF-8 as backslash escapes.
        size_bytes: its size.
        mtime_ns: when it was changed.
    """

    path: Path
    name: str
    size_bytes: int
    mtime_ns: int


def walk(root: Path) -> tuple[list[Found], list[tuple[str, str]]]:
    """All plain files under a folder, by name, and (path, reason) of what is left out.

    Symbolic links are never followed. A folder that is left out is one entry, its name ending in "/".

    Raises:
        BadInput: the folder is missing, is no folder, or cannot be read.
    """
    _check_root(root)
    found: list[Found] = []
    skipped: list[tuple[str, str]] = []
    pending = [root]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda one: one.name)
        except OSError as error:
            if folder == root:
                raise BadInput(f"cannot read {root} ({error.strerror}); give yourself access to it") from error
            skipped.append((_name(root, folder) + "/", f"folder cannot be read ({error.strerror})"))
            continue
        for entry in entries:
            _visit(root, Path(entry.path), found, skipped, pending)
    found.sort(key=lambda one: one.name)
    skipped.sort()
    return found, skipped


def _check_root(root: Path) -> None:
    try:
        mode = root.stat().st_mode
    except OSError as error:
        raise BadInput(f"cannot read {root} ({error.strerror}); name a folder with documents") from error
    if not stat.S_ISDIR(mode):
        raise BadInput(f"{root} is not a folder; name the folder that holds the documents")


def _visit(root: Path, path: Path, found: list[Found], skipped: list[tuple[str, str]], pending: list[Path]) -> None:
    name = _name(root, path)
    try:
        info = path.lstat()
    except OSError as error:
        skipped.append((name, f"cannot be read ({error.strerror})"))
        return
    if stat.S_ISLNK(info.st_mode):
        skipped.append((name, _link_reason(root, path)))
    elif stat.S_ISDIR(info.st_mode):
        reason = _folder_reason(path)
        if reason:
            skipped.append((name + "/", reason))
        else:
            pending.append(path)
    elif not stat.S_ISREG(info.st_mode):
        skipped.append((name, "not a plain file"))
    elif path.name.startswith((".", "~$")):
        skipped.append((name, "hidden file"))
    else:
        found.append(Found(path, name, info.st_size, info.st_mtime_ns))


def _folder_reason(path: Path) -> str | None:
    if path.name in _VERSION_CONTROL:
        return "folder of a version control system"
    if path.name.startswith("."):
        return "hidden folder"
    if path.name in _SKIPPED_FOLDERS:
        return _SKIPPED_FOLDERS[path.name]
    if (path / "pyvenv.cfg").is_file():
        return "Python environment"
    return None


def _link_reason(root: Path, path: Path) -> str:
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "symbolic link that leads nowhere"
    inside = target.is_relative_to(root.resolve())
    return "symbolic link within the folder" if inside else "symbolic link that leads out of the folder"


def _name(root: Path, path: Path) -> str:
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")
