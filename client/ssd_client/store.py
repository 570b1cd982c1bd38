"""The store of experts: content-addressed folders, one pointer per name, a model card in each.

    HOME/objects/ID/         an expert's files and card.json; ID is the SHA-256 of card.json, which holds the hash of
                             every other file
    HOME/experts/NAME.json   {"format": 1, "object": ID}: written whole or not at all
    HOME/work/NAME/          what a personalization keeps between runs: documents.sqlite, the index, checkpoints
    HOME/staging/            folders being built; what a killed run left there is swept later
    HOME/store.lock          a SQLite file used as a lock between processes; a killed holder frees it

Folders have mode 0700, files 0600. Knows nothing about what the files of an expert mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ssd_client.errors import BadInput, ExpertNotFound, StoreError

CARD_FILE = "card.json"
FORMAT = 1
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?", re.IGNORECASE | re.ASCII)
_RESERVED = {"con", "prn", "aux", "nul", *(f"{one}{i}" for one in ("com", "lpt") for i in range(1, 10))}
_ID = re.compile(r"[0-9a-f]{64}")
_LOCK_WAIT_S = 30.0
_STALE_S = 24 * 3600.0
_SMALL_BYTES = 1 << 20  # files up to this size are hashed at every load, larger ones measured only
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ExpertCard:
    """What an expert is and how it came about.

    Attributes:
        name: the user's name for it.
        base: the base model's name.
        base_model_id: "NAME@HASH" of the base.
        created: ISO 8601, UTC.
        documents: how many documents it learned from.
        data_fingerprint: SHA-256 (hex) over the documents' hashes.
        hyperparameters: everything that went into training.
        heldout_before, heldout_after: S1 in nats a token on the held-out half that is reported; None if there is none.
        lam, alpha: weights of the ensemble.
        calibration: how lam and alpha were chosen, and any confidence scaling.
        sizes: bytes of each file, by path within the expert's folder.
        hashes: SHA-256 (hex) of each file.
        format: version of this card.
    """

    name: str
    base: str
    base_model_id: str
    created: str
    documents: int
    data_fingerprint: str
    lam: float
    alpha: float
    heldout_before: float | None = None
    heldout_after: float | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def summary(self) -> dict[str, Any]:
        """The line of `list --json`."""
        return {
            "name": self.name,
            "base": self.base,
            "created": self.created,
            "documents": self.documents,
            "size_bytes": self.size_bytes,
            "heldout_before": self.heldout_before,
            "heldout_after": self.heldout_after,
        }

    def to_json(self) -> str:
        """The card as JSON.

        Raises:
            StoreError: a number is not finite.
        """
        try:
            return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        except ValueError as error:
            raise StoreError(f"the card of {self.name!r} holds a value that is no number; personalize again") from error

    @staticmethod
    def from_json(text: str) -> ExpertCard:
        """A card from JSON.

        Raises:
            StoreError: not JSON, of another version, or with missing, unknown or mistyped fields.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise StoreError(f"the model card is not JSON ({error}); personalize again") from error
        if not isinstance(data, dict):
            raise StoreError("the model card is not a JSON object; personalize again")
        if data.get("format") != FORMAT:
            raise StoreError(
                f"the model card has format {data.get('format')!r} and this program reads {FORMAT}; "
                "update ssd2, or personalize again"
            )
        known = {one.name for one in fields(ExpertCard)}
        if unknown := sorted(data.keys() - known):
            raise StoreError(f"the model card has an unknown field {unknown[0]!r}; update ssd2, or personalize again")
        for one in fields(ExpertCard):
            if one.name not in data:
                raise StoreError(f"the model card has no field {one.name!r}; personalize again")
            if not _fits(data[one.name], str(one.type)):
                raise StoreError(f"the model card's field {one.name!r} is not a {one.type}; personalize again")
        return ExpertCard(**data)


class Store:
    """The experts under one home folder. Reading takes no lock; changing does."""

    def __init__(self, home: Path, *, lock_wait_s: float = _LOCK_WAIT_S) -> None:
        self._home = home
        self._lock_wait_s = lock_wait_s

    @property
    def home(self) -> Path:
        """The home folder."""
        return self._home

    def list(self) -> list[ExpertCard]:
        """All experts whose card can be read, by name; `damaged` names the others."""
        return [card for _, card in self._cards() if isinstance(card, ExpertCard)]

    def damaged(self) -> Sequence[tuple[str, str]]:
        """(name, reason) of experts that `list` leaves out."""
        return [(name, str(card)) for name, card in self._cards() if not isinstance(card, ExpertCard)]

    def show(self, name: str) -> ExpertCard:
        """One expert's card.

        Raises:
            ExpertNotFound: no such expert.
            StoreError: its pointer or card is damaged.
        """
        return self._card(self._object(name))

    def open(self, name: str, *, full: bool = False) -> Path:
        """The folder of an expert, checked: the card's hash, every file's size, and the hash of every small file.

        Args:
            name: the expert.
            full: hash large files too.

        Raises:
            ExpertNotFound: no such expert.
            StoreError: a file is missing, truncated or foreign.
        """
        folder = self._object(name)
        card = self._card(folder)
        for path, digest in card.hashes.items():
            _check_file(folder, path, card.sizes.get(path, -1), digest, full=full, name=name)
        return folder

    def staging(self) -> Path:
        """A new empty folder on the store's own file system, for `register`."""
        path = self._dir("staging") / f"{os.getpid()}-{secrets.token_hex(8)}"
        with _plain_faults():
            path.mkdir(mode=0o700)
        return path

    def work_dir(self, name: str) -> Path:
        """The folder that a personalization of this name keeps between its runs."""
        work = self._dir("work") / check_name(name)
        with _plain_faults():
            work.mkdir(mode=0o700, exist_ok=True)
        return work

    def register(self, folder: Path, name: str, card: ExpertCard) -> ExpertCard:
        """Move a finished folder into the store under a name, in place of an expert of that name.

        Until the last rename the earlier expert stays; a run killed at any moment leaves one or the other.

        Args:
            folder: the expert's files, without card.json; gone afterwards. Best made by `staging`.
            name: the user's name for it.
            card: the card; its name, sizes and hashes are filled in here.

        Raises:
            BadInput: not a usable name.
            StoreError: the disk is full, the store locked, or the folder holds links or nothing.
        """
        check_name(name)
        with _plain_faults():
            staged = self._adopt(folder)
            try:
                sizes, hashes = _seal(staged)
                card = replace(card, name=name, sizes=sizes, hashes=hashes, format=FORMAT)
                text = card.to_json().encode()
                _write(staged / CARD_FILE, text)
                with self._locked():
                    self._place(staged, hashlib.sha256(text).hexdigest(), name)
                    self._collect()
            finally:
                shutil.rmtree(staged, ignore_errors=True)
        return card

    def remove(self, name: str) -> None:
        """Remove an expert, its files, its index and what its personalization kept.

        Raises:
            ExpertNotFound: no such expert.
            StoreError: the store is locked, or a file cannot be removed.
        """
        pointer = self._pointer(name)
        with _plain_faults(), self._locked():
            if not pointer.exists():
                raise self._missing(name)
            pointer.unlink()
            self._collect()
            shutil.rmtree(self._home / "work" / name, ignore_errors=True)

    def sweep(self) -> int:
        """Remove objects no name points to and staging folders older than a day; returns how many."""
        with _plain_faults(), self._locked():
            return self._collect()

    def _cards(self) -> Iterator[tuple[str, ExpertCard | StoreError]]:
        folder = self._home / "experts"
        for pointer in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            try:
                yield pointer.stem, self.show(pointer.stem)
            except (StoreError, BadInput) as error:
                yield pointer.stem, error if isinstance(error, StoreError) else StoreError(str(error))

    def _pointer(self, name: str) -> Path:
        return self._home / "experts" / f"{check_name(name)}.json"

    def _object(self, name: str) -> Path:
        pointer = self._pointer(name)
        try:
            data = json.loads(pointer.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise self._missing(name) from error
        except (OSError, ValueError) as error:
            raise StoreError(f"the entry of expert {name!r} cannot be read ({error}); {_again(name)}") from error
        identity = data.get("object") if isinstance(data, dict) else None
        if not isinstance(identity, str) or not _ID.fullmatch(identity):
            raise StoreError(f"the entry of expert {name!r} is damaged; {_again(name)}")
        return self._home / "objects" / identity

    def _card(self, folder: Path) -> ExpertCard:
        try:
            data = (folder / CARD_FILE).read_bytes()
        except OSError as error:
            raise StoreError(
                f"the expert's files are gone from {folder} ({error.strerror}); personalize again"
            ) from error
        if hashlib.sha256(data).hexdigest() != folder.name:
            raise StoreError(f"the model card in {folder} was changed or cut short; personalize again")
        return ExpertCard.from_json(data.decode("utf-8"))

    def _missing(self, name: str) -> ExpertNotFound:
        folder = self._home / "experts"
        known = sorted(one.stem for one in folder.glob("*.json")) if folder.is_dir() else []
        hint = f"known are: {', '.join(known)}" if known else "make one with: ssd-client personalize DIR --name NAME"
        return ExpertNotFound(f"there is no expert {name!r}; {hint}")

    def _adopt(self, folder: Path) -> Path:
        """The folder itself when it lies in staging, else a copy there (it may be on another file system)."""
        if folder.parent == self._dir("staging"):
            return folder
        staged = self._dir("staging") / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            shutil.copytree(folder, staged, symlinks=True)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return staged

    def _place(self, staged: Path, identity: str, name: str) -> None:
        target = self._dir("objects") / identity
        if target.exists():  # the same content, perhaps damaged since: the new copy is known to be whole
            shutil.rmtree(target)
        staged.rename(target)
        _sync(target.parent)
        pointer = self._dir("experts") / f"{name}.json"
        temporary = pointer.with_name(f".{name}-{secrets.token_hex(4)}.tmp")
        try:
            _write(temporary, json.dumps({"format": FORMAT, "object": identity}).encode())
            temporary.replace(pointer)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync(pointer.parent)

    def _collect(self) -> int:
        wanted = set()
        for pointer in (self._home / "experts").glob("*.json"):
            with suppress(OSError, ValueError, StoreError, BadInput, ExpertNotFound):
                wanted.add(self._object(pointer.stem).name)
        doomed = [one for one in (self._home / "objects").glob("*") if one.name not in wanted]
        old = time.time() - _STALE_S
        doomed += [one for one in (self._home / "staging").glob("*") if _newest(one) < old]
        for one in doomed:
            shutil.rmtree(one, ignore_errors=True)
        return len(doomed)

    def _dir(self, name: str) -> Path:
        path = self._home / name
        with _plain_faults():
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._dir(".") / "store.lock"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        lock = sqlite3.connect(path, timeout=self._lock_wait_s, isolation_level=None)
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            lock.close()
            raise StoreError(
                f"the store {self._home} is in use by another ssd-client ({error}); wait for it to finish and try again"
            ) from error
        try:
            yield
        finally:
            lock.close()


def check_name(name: str) -> str:
    """A usable expert name, as it is.

    Raises:
        BadInput: empty, too long, or with characters that a file name cannot have everywhere.
    """
    if not _NAME.fullmatch(name) or name.lower().split(".")[0] in _RESERVED or name.lower().endswith(".json"):
        raise BadInput(
            f"{name!r} cannot be an expert's name; use up to 64 letters, digits, '.', '_' and '-', "
            "beginning and ending with a letter or digit"
        )
    return name


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _fits(value: object, annotation: str) -> bool:
    if isinstance(value, bool):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if annotation.startswith("dict"):
        inner = {"dict[str, int]": int, "dict[str, str]": str}.get(annotation, object)
        return isinstance(value, dict) and all(isinstance(one, inner) for one in value.values())
    kinds: Mapping[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "float | None": (int, float, type(None)),
    }
    return isinstance(value, kinds[annotation])


def _seal(folder: Path) -> tuple[dict[str, int], dict[str, str]]:
    """Sizes and hashes of a folder's files, after setting their modes and pushing them to the disk."""
    (folder / CARD_FILE).unlink(missing_ok=True)
    folder.chmod(0o700)
    sizes, hashes = {}, {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise StoreError(f"{path} is a link or no plain file; an expert's folder holds plain files only")
        path.chmod(0o700 if path.is_dir() else 0o600)
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            sizes[name], hashes[name] = path.stat().st_size, file_sha256(path)
            _sync(path)
    if not sizes:
        raise StoreError(f"{folder} holds no files; personalize again")
    return sizes, hashes


def _check_file(folder: Path, path: str, size: int, digest: str, *, full: bool, name: str) -> None:
    target = folder / path
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise StoreError(f"the card of expert {name!r} names a file outside its folder; {_again(name)}")
    try:
        found = target.stat().st_size
        same = found == size and (not (full or size <= _SMALL_BYTES) or file_sha256(target) == digest)
    except OSError as error:
        raise StoreError(f"expert {name!r} lacks its file {path} ({error.strerror}); {_again(name)}") from error
    if not same:
        what = f"has {found} bytes in place of {size}" if found != size else "has other content than its card says"
        raise StoreError(f"the file {path} of expert {name!r} {what}; {_again(name)}")


def _again(name: str) -> str:
    return f"make it again with: ssd-client personalize DIR --name {name}"


def _newest(path: Path) -> float:
    try:
        return max((one.lstat().st_mtime for one in (path, *path.rglob("*"))), default=0.0)
    except OSError:
        return time.time()


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Push a file's or a folder's entries to the disk, where the system can."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _plain_faults() -> Iterator[None]:
    """Turn the system's errors into one sentence."""
    try:
        yield
    except (OSError, shutil.Error) as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise StoreError("the disk is full; free some space and run the same command again") from error
        raise StoreError(f"the store cannot be changed ({error}); make its folder writable and try again") from error
