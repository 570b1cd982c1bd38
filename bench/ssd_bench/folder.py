"""The sample folder's questions and documents. Knows its layout: questions.jsonl beside one folder of documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ssd_client.documents.extract import Limits, Skip, extract

from ssd_bench.ensemble import Document, Question


def read_questions(path: Path) -> list[Question]:
    """Questions from JSON lines {id, question, answer, accept, document}; the last may be missing.

    Raises:
        ValueError: the file is missing or a line is not a question.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return [
            Question(
                str(r["id"]), str(r["question"]), str(r["answer"]), (str(r["answer"]), *map(str, r["accept"])),
                str(r.get("document", "")),
            )
            for r in rows
        ]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no questions ({error}); give --examples the sample folder") from error


def read_documents(folder: Path, paths: Sequence[str]) -> list[Document]:
    """The named documents, wherever under the folder their files lie, read as the device reads them.

    Args:
        folder: the sample folder.
        paths: as an expert's card names them; "FILE#PART" for a mail in a mailbox. Missing ones are left out.
    """
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    found = []
    for wanted in paths:
        name, _, part = wanted.partition("#")
        matches = [p for p in files if p.relative_to(folder).as_posix() == name or p.as_posix().endswith("/" + name)]
        text = _text(matches[0], part) if matches else None
        if text is not None:
            found.append(Document(wanted, text))
    return found


def _text(path: Path, part: str) -> str | None:
    try:
        parts = extract(path.name, path.read_bytes(), Limits()).parts
    except Skip:
        return None
    return next((one.text for one in parts if one.part == part), None)
