"""Document sets: a folder of any kind, read as the device reads it, cut by seed into what is learned and what is kept.

    train        copied into a folder of its own, which is personalized on as a person's folder would be
    validation   chooses lambda and alpha
    test         is reported and chooses nothing

Near-duplicates are taken out first, and files stay whole, so nothing of a kept document stands in the trained folder.
Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ssd_client.documents import Document, dedupe, ingest
from ssd_client.store import check_name

HELD_SHARE = 0.25
"""Share of the chosen files that is kept out of training; a third of them validates, the others are the test."""
LEAST_FILES = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A set as it was asked for.

    Attributes:
        name: in reports.
        folder: its documents.
        questions: JSON lines with questions about them; None for questions by rule.
    """

    name: str
    folder: Path
    questions: Path | None = None


@dataclass(frozen=True, slots=True)
class Split:
    """A set, cut.

    Attributes:
        name: of the set.
        folder: the files that are learned from, copied.
        train, validation, test: documents by path and place.
        digest: stands for the split and the words of all its documents.
        left_out: files of the set that took no part, because enough had been chosen.
    """

    name: str
    folder: Path
    train: tuple[Document, ...]
    validation: tuple[Document, ...]
    test: tuple[Document, ...]
    digest: str
    left_out: int


def sources(sets: Sequence[str], questions: Sequence[str]) -> list[Source]:
    """Sets from NAME=FOLDER and their questions from NAME=FILE.

    Raises:
        ValueError: a form that is not NAME=PATH, a name twice or unknown, or a folder or file that is not there.
        BadInput: a name that cannot be an expert's.
    """
    asked = _by_name(questions, "--questions", "NAME=FILE")
    found = []
    for name, folder in _by_name(sets, "--set", "NAME=FOLDER").items():
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give --set {name}= the folder of its documents")
        file = asked.pop(name, None)
        if file is not None and not file.is_file():
            raise ValueError(f"{file} is not a file; give --questions {name}= a file of questions")
        found.append(Source(check_name(name), folder, file))
    if asked:
        raise ValueError(f"--questions names the set {next(iter(asked))!r}, which no --set gives")
    if not found:
        raise ValueError("there is no set to measure; give --set NAME=FOLDER, once for each set")
    return found


def _by_name(values: Sequence[str], flag: str, form: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            raise ValueError(f"{flag} {value!r} is not of the form {form}")
        if name in found:
            raise ValueError(f"{flag} names the set {name!r} twice; give every set a name of its own")
        found[name] = Path(path)
    return found


def split(source: Source, work: Path, *, kilobytes: int, seed: int) -> Split:
    """Read a set, choose files by seed until they hold so much text, and cut them.

    Args:
        source: the set.
        work: folder for what was read and for the copy of the files to learn from; made when missing.
        kilobytes: text of the chosen files, at most (one file more where it crosses the line).
        seed: of order and choice.

    Raises:
        ValueError: too few files.
        ClientError: the folder cannot be read.
    """
    work.mkdir(parents=True, exist_ok=True)
    documents = dedupe(ingest(source.folder, work / "documents.sqlite").documents).documents
    by_file: dict[str, list[Document]] = {}
    for document in documents:
        by_file.setdefault(document.path.split("#")[0], []).append(document)
    chosen = _chosen(by_file, kilobytes, seed)
    if len(chosen) < LEAST_FILES:
        raise ValueError(
            f"the set {source.name!r} has {len(chosen)} files that can be read; "
            f"give a folder of at least {LEAST_FILES}, or more --kilobytes"
        )
    held = max(2, round(HELD_SHARE * len(chosen)))
    validating = max(1, held // 3)
    kinds = [chosen[held:], chosen[:validating], chosen[validating:held]]
    train, validation, test = (tuple(d for name in names for d in by_file[name]) for names in kinds)
    digest = _digest(train, validation, test)
    folder = _copied(source.folder, work / f"train-{digest}", kinds[0])
    return Split(source.name, folder, train, validation, test, digest, len(by_file) - len(chosen))


def _chosen(by_file: dict[str, list[Document]], kilobytes: int, seed: int) -> list[str]:
    names, size = sorted(by_file), 0
    chosen: list[str] = []
    for i in np.random.default_rng(seed).permutation(len(names)).tolist():
        if size >= 1000 * kilobytes:
            break
        chosen.append(names[i])
        size += sum(len(d.text.encode()) for d in by_file[names[i]])
    return chosen


def _digest(*parts: Sequence[Document]) -> str:
    hashed = hashlib.sha256()
    for number, part in enumerate(parts):
        for document in sorted(part, key=lambda d: d.path):
            hashed.update(f"{number}\0{document.path}\0{document.sha256}\n".encode("utf-8", "replace"))
    return hashed.hexdigest()[:12]


def _copied(source: Path, target: Path, names: Sequence[str]) -> Path:
    """A folder with these files alone; one that is there was made for the same split."""
    if target.is_dir():
        return target
    scratch = target.with_name(f".{target.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    for name in names:
        place = scratch / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, place)
    scratch.rename(target)
    return target


def spread(seed: int, count: int, limit: int) -> list[int]:
    """At most `limit` of `count` places in an order that follows from the seed, fewer being the first of more."""
    return [int(i) for i in np.random.default_rng(seed).permutation(count)[: min(limit, count)]]


def share_of(limit: int, share: float) -> int:
    """A share of a limit, at least one."""
    return max(1, math.ceil(share * limit))
