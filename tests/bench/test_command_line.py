"""The command line: real runs on synthetic logits, and what goes wrong in one sentence."""

from __future__ import annotations

import json

import pytest
from ssd_bench import __main__ as cli
from ssd_bench import machine


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["ssd_bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr()


def test_wire_on_synthetic_logits(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("ssd_bench.wire.SYNTHETIC_VOCAB", 2000)
    monkeypatch.setattr("ssd_bench.wire.SYNTHETIC_BLOCK", 4)
    results = tmp_path / "bench" / "results.json"
    options = ("--passes", 2, "--json", "--out", tmp_path, "--results", results)
    code, said = run(monkeypatch, capsys, "wire", "--synthetic-only", *options)
    assert code == 0
    content = json.loads(said.out)
    assert content["parts"][0]["codecs"]["dense-f32"]["same"] == 1.0
    assert "# Bytes on the wire" in (tmp_path / "wire-bytes.md").read_text()
    assert {row["suite"] for row in json.loads(results.read_text())["rows"]} == {"wire"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("floor", "--data", "nowhere"), 2, "data build"),
        (("kernels", "--rounds", "3"), 2, "rounds"),
        (("wire", "--synthetic-only", "--codec", "morse"), 2, "morse"),
        (("wire", "--synthetic-only", "--passes", "0"), 2, "nothing is left"),
        (("wire", "--passes", "-1"), 2, "passes"),
        (("personal",), 2, "give --set"),
        (("personal", "--set", "docs=nowhere"), 2, "nowhere is not a folder"),
        (("personal", "--set", "docs=.", "--part", "recall"), 2, "choose of heldout"),
        (("personal", "--set", "docs=.", "--train-minutes", "0"), 2, "train-minutes"),
        (("personal", "--set", "docs=.", "--limit", "1"), 2, "limit"),
    ],
)
def test_bad_input_is_one_sentence(monkeypatch, capsys, tmp_path, arguments, code, words):
    monkeypatch.setenv("SSD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    got, said = run(monkeypatch, capsys, *arguments)
    assert got == code
    assert words in said.err + said.out
    assert "Traceback" not in said.err


def test_no_suite_runs_them_in_turn(monkeypatch, capsys):
    called = []
    for name in ("kernels", "wire", "step", "decode"):
        monkeypatch.setattr(cli, name, lambda *, _name=name, **options: called.append((_name, options)))
    code, _ = run(monkeypatch, capsys)
    assert code == 0
    assert called == [("kernels", {}), ("wire", {}), ("step", {}), ("decode", {})]


def test_a_reports_command_names_no_folder_of_this_machine(monkeypatch):
    said = ("ssd_bench", "personal", "--set", "bank=/data/sets/bank", "--core", "/data/models/big", "--out=/data/docs")
    monkeypatch.setattr("sys.argv", list(said))
    assert machine.command() == "python -m ssd_bench personal --set bank=bank --core big"
