"""The sample folder's questions. Knows the layout of their file; the documents lie in a folder beside it."""

from __future__ import annotations

import json
from pathlib import Path

from ssd_bench.items import Question


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
