"""What the suites' runs share: the deadline and the files they leave."""

from __future__ import annotations

import json

import pytest
from ssd_bench.results import Row
from ssd_bench.runs import Outcome, deadline, publish

FOUND = Outcome({"suite": "a", "n": 3}, "# Found\n")
ROWS = [Row(suite="a", name="x / y", ratio=2.0, n=3)]


def test_a_deadline_is_minutes_after_the_start():
    assert deadline(100.0, 2.0) == 220.0
    assert deadline(100.0, 0.0) == 100.0
    assert deadline(100.0, None) == float("inf")


def test_report_and_ratios_are_written(tmp_path):
    report, results = tmp_path / "docs" / "found.md", tmp_path / "results.json"
    assert publish(FOUND, report, rows=ROWS, results=results) is FOUND
    assert report.read_text() == "# Found\n"
    assert json.loads(results.read_text())["rows"][0]["name"] == "x / y"
    assert not report.with_suffix(".json").exists()


def test_json_lies_beside_the_report_when_asked(tmp_path):
    publish(FOUND, tmp_path / "found.md", rows=ROWS, results=tmp_path / "results.json", with_json=True)
    assert json.loads((tmp_path / "found.json").read_text()) == {"suite": "a", "n": 3}


def test_a_foreign_file_of_results_is_not_replaced(tmp_path):
    results = tmp_path / "results.json"
    results.write_text("[]")
    with pytest.raises(ValueError, match="move it away"):
        publish(FOUND, tmp_path / "found.md", rows=ROWS, results=results)
    assert results.read_text() == "[]"
