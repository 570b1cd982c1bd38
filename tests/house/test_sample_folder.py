"""The sample folder and its questions: large enough, readable, and every reference answer stands in its document."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from ssd_client.documents.extract import Limits, extract

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDER = EXAMPLES / "harbour-and-pine"
FILES = sorted(p for p in FOLDER.rglob("*") if p.is_file())
QUESTIONS = [json.loads(line) for line in (EXAMPLES / "questions.jsonl").read_text("utf-8").splitlines()]


def text_of(path: Path) -> str:
    """The text as ingestion reads it, in one line, capitals flattened."""
    extracted = extract(path.name, path.read_bytes(), Limits())
    return " ".join(" ".join(part.text for part in extracted.parts).split())


def test_the_folder_is_as_large_and_as_varied_as_promised():
    kinds = Counter(p.suffix for p in FILES)
    assert len(FILES) >= 45
    assert sum(len(text_of(p)) for p in FILES) >= 100_000
    assert {".md", ".txt", ".rst", ".html", ".eml", ".mbox", ".docx", ".pdf", ".py", ".toml"} <= set(kinds)


def test_no_document_is_a_list_of_questions():
    for path in FILES:
        lines = text_of(path).casefold()
        assert "q:" not in lines.split(), path.name
        assert lines.count("?") <= 5, path.name


def test_there_are_enough_questions_and_each_is_complete():
    assert len(QUESTIONS) >= 100
    assert len({q["id"] for q in QUESTIONS}) == len({q["question"] for q in QUESTIONS}) == len(QUESTIONS)
    for q in QUESTIONS:
        assert set(q) == {"id", "question", "answer", "accept", "document"}
        assert q["question"].endswith("?")
        assert 0 < len(q["answer"]) <= 40
        assert q["answer"] not in q["accept"]


def test_questions_cover_the_folder():
    asked = {q["document"] for q in QUESTIONS}
    assert len(asked) >= 45


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q["id"])
def test_the_answer_stands_in_its_document_and_not_in_the_question(question: dict[str, str]):
    text = text_of(EXAMPLES / question["document"])
    assert question["answer"] in text
    assert question["answer"].casefold() not in question["question"].casefold()


def test_settings_and_program_of_the_sample_company_are_real():
    settings = tomllib.loads((FOLDER / "systems" / "halyard.toml").read_text("utf-8"))
    assert settings["prices"]["sandpiper_hour"] == 18
    check = "import hire_price as h, datetime as d; t = d.datetime(2026, 5, 4, 9); r = h.Rates(18, 62); "
    check += "print(h.hire_price(r, t, t + d.timedelta(hours=2, minutes=10)), h.cancel_fee(64, 20))"
    done = subprocess.run(
        [sys.executable, "-c", check], cwd=FOLDER / "systems", capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == ["36.0", "32.0"]


def test_office_documents_hold_what_their_script_says():
    text = text_of(FOLDER / "reports" / "insurance-survey-2025.pdf")
    assert "it was not filled in afterwards" in text
    assert "draughty barn the best" in text_of(FOLDER / "products" / "warranty-and-care.docx")
