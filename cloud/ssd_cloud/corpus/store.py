"""Cleaned documents of a source, kept in the cache under a hash of its archive and of the code that made them.

A build that was killed finds them again; a change of the code makes them anew. Knows nothing about fetching.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from ssd_cloud.corpus.clean import clean, normalize
from ssd_cloud.corpus.extract import extract
from ssd_cloud.corpus.fetch import Fetched
from ssd_cloud.corpus.model import Document, Question, Source

_CODE = ("archive.py", "clean.py", "extract.py", "extract_data.py", "extract_html.py", "extract_text.py", "store.py")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A source's cleaned documents and its questions, and how many documents were left out for which reason."""

    documents: tuple[Document, ...]
    questions: tuple[Question, ...]
    dropped: dict[str, int]


def prepare(source: Source, fetched: Fetched, cache_folder: Path) -> Prepared:
    """Extract and clean a source, or take what was kept.

    Raises:
        DataError: the archive is damaged or does not hold what it should.
    """
    path = cache_folder / "cleaned" / f"{source.name}-{_key(source, fetched)}.json.gz"
    kept = _read(path)
    if kept is not None:
        return kept
    found = extract(source, fetched.path)
    cleaned = clean(found.documents, least_chars=source.least_chars)
    questions = tuple(Question(q.question, q.answer, q.title, normalize(q.passage)) for q in found.questions)
    made = Prepared(cleaned.documents, questions, cleaned.dropped)
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f"{source.name}-*.json.gz"):
        old.unlink(missing_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_bytes(gzip.compress(json.dumps(asdict(made)).encode(), compresslevel=1, mtime=0))
    partial.replace(path)
    return made


def _read(path: Path) -> Prepared | None:
    try:
        stored = json.loads(gzip.decompress(path.read_bytes()))
        return Prepared(
            tuple(Document(**one) for one in stored["documents"]),
            tuple(Question(**one) for one in stored["questions"]), dict(stored["dropped"]),
        )  # fmt: skip
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _key(source: Source, fetched: Fetched) -> str:
    text = json.dumps([asdict(source), fetched.sha256, _code()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()
