"""Document sets: a folder of any kind, read as the device reads it, cut by seed into what is learned and what is kept.

    train        copied into a folder of its own, which is personalized on as a person's folder would be
    validation   chooses lambda and alpha
    test         is reported and chooses nothing

Near-duplicates are taken out first, and files stay whole, so nothing of a kept document stands in the trained folder.
Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ssd_client.documents import Document, dedupe, ingest
from ssd_client.store import check_name

HELD_SHARE, MOST_HELD = 0.25, 36
"""Share and number of the files that are kept out of training; a third validates, the others are the test."""
LEAST_FILES = 8


@dataclass(frozen=True, slots=True)
class Source:
    """A set as it was asked for.

    Attributes:
        name: in reports.
        folder: its documents.
        questions: JSON lines with questions about them; None for questions by rule.
        whole: nothing is kept out.
    """

    name: str
    folder: Path
    questions: Path | None = None
    whole: bool = False


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


def sources(sets: Sequence[str], questions: Sequence[str], whole: Sequence[str] = ()) -> list[Source]:
    """Sets from NAME=FOLDER, their questions from NAME=FILE, and the names of those that are learned whole.

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
        found.append(Source(check_name(name), folder, file, name in whole))
    unknown = sorted(set(whole) - {one.name for one in found})
    if unknown:
        raise ValueError(f"--whole names the set {unknown[0]!r}, which no --set gives")
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
    """Read a set, keep some files out of it by seed, none of a whole set, and take of the others what is learned from.

    Args:
        source: the set.
        work: folder for what was read and for the copy of the files to learn from; made when missing.
        kilobytes: text to learn from, at most (one file more where it crosses the line).
        seed: of the choice.

    Raises:
        ValueError: too few files.
        ClientError: the folder cannot be read.
    """
    work.mkdir(parents=True, exist_ok=True)
    documents = dedupe(ingest(source.folder, work / "documents.sqlite").documents).documents
    by_file: dict[str, list[Document]] = {}
    for document in documents:
        by_file.setdefault(document.path.split("#")[0], []).append(document)
    if len(by_file) < LEAST_FILES:
        raise ValueError(
            f"the set {source.name!r} has {len(by_file)} files that can be read; give at least {LEAST_FILES}"
        )
    held = 0 if source.whole else max(2, min(MOST_HELD, round(HELD_SHARE * len(by_file))))
    validating = max(1, held // 3) if held else 0
    names = [sorted(by_file)[i] for i in np.random.default_rng(seed).permutation(len(by_file)).tolist()]
    sizes = [sum(len(d.text.encode()) for d in by_file[name]) for name in names[held:]]
    before = np.cumsum([0, *sizes])[:-1]
    learned = [name for name, size in zip(names[held:], before.tolist(), strict=True) if size < 1000 * kilobytes]
    kinds = [learned, names[:validating], names[validating:held]]
    train, validation, test = (tuple(d for name in kind for d in by_file[name]) for kind in kinds)
    digest = _digest(train, validation, test)
    folder = _copied(source.folder, work / f"train-{digest}", kinds[0])
    return Split(source.name, folder, train, validation, test, digest, len(by_file) - held - len(learned))


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
