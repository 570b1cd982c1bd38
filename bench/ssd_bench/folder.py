"""The sample folder's questions and documents. Knows its layout: questions.jsonl beside one folder of documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ssd_bench.ensemble import Document, Question

_TEXT = frozenset({".md", ".txt", ".rst", ".html", ".eml", ".mbox"})


def read_questions(path: Path) -> list[Question]:
    """Questions from JSON lines {id, question, answer, accept, document}.

    Raises:
        ValueError: the file is missing or a line is not a question.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return [
            Question(str(r["id"]), str(r["question"]), str(r["answer"]), (str(r["answer"]), *map(str, r["accept"])))
            for r in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no questions ({error}); give --examples the sample folder") from error


def read_documents(folder: Path, paths: Sequence[str]) -> list[Document]:
    """The named text documents, wherever under the folder they lie; others are left out."""
    known = {p.as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix.lower() in _TEXT}
    found = []
    for wanted in paths:
        matches = [p for name, p in known.items() if name == wanted or name.endswith("/" + wanted.lstrip("/"))]
        if matches:
            found.append(Document(wanted, matches[0].read_text(encoding="utf-8", errors="replace")))
    return found
