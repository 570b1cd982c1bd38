"""The file of results, tables and the machine's description."""

from __future__ import annotations

import json

import pytest
from ssd_bench import machine
from ssd_bench.report import origin, table
from ssd_bench.results import Row, load, merge


def test_merge_replaces_a_suite_as_a_whole(tmp_path):
    path = tmp_path / "bench" / "results.json"
    merge(path, [Row(suite="a", name="x", ratio=2.0, n=1), Row(suite="a", name="y", ratio=3.0, n=1)])
    merge(path, [Row(suite="b", name="z", ratio=1.5, target=1.0, low=1.1, high=1.9, n=7, note="median")])
    merge(path, [Row(suite="a", name="x", ratio=4.0, n=1)])
    content = json.loads(path.read_text())
    assert [(r["suite"], r["name"], r["ratio"]) for r in content["rows"]] == [("b", "z", 1.5), ("a", "x", 4.0)]
    assert set(content["rows"][0]) == {"suite", "name", "ratio", "target", "low", "high", "n", "note"}
    assert "processor" in content["machine"]
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    path.write_text("[]")
    with pytest.raises(ValueError):
        load(path)


def test_table_and_origin():
    assert table(["a", "b"], [["x|y", 1]]) == "| a | b |\n|---|---:|\n| x\\|y | 1 |"
    text = origin("python -m ssd_bench x", machine.describe(), seconds=120)
    assert "`python -m ssd_bench x` in 2 minutes" in text
    assert "cores" in text


def test_command_names_no_folder_of_this_machine(monkeypatch):
    given = ["x", "floor", "--home", "/a/b", "--out=/c", "--data", "/d/data", "--documents", "10", "--out", "e"]
    monkeypatch.setattr("sys.argv", given)
    assert machine.command() == "python -m ssd_bench floor --data data --documents 10"
