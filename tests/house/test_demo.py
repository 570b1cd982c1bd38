"""The demo against programs that stand in for the real ones: what it does when they fail, and that it stops the node.

The run with the real programs is `make demo`, which CI runs too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.py"

FAKE = """
import json, os, pathlib, signal, sys, time
name, verb, *rest = sys.argv[1:]
home = pathlib.Path(os.environ["SSD_HOME"]); home.mkdir(exist_ok=True)
assert "SSD_NODE" not in os.environ
fault = os.environ.get("FAULT", "")
if verb == "personalize":
    sys.exit(1 if fault == "personalize" else 0)
if verb == "list":
    print(json.dumps([{"name": "harbour-and-pine", "documents": 63}]))
if verb == "serve":
    (home / "pid").write_text(str(os.getpid()))
    if fault == "dies":
        sys.exit("no room")
    (home / "token").write_text(os.environ["SSD_TOKEN"])
    if fault == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(json.dumps({"listen": "127.0.0.1:1", "token": None, "model": "m", "v": 9, "b": 2}), flush=True)
    time.sleep(60)
if verb == "generate":
    token = (home.parent / "node" / "token").read_text()
    assert os.environ["SSD_TOKEN"] == token and token not in rest
    if fault == "generate":
        sys.exit("node gone")
    if fault == "slow":
        time.sleep(60)
    text = {"empty": " ", "wrong": "I do not know."}.get(fault, "35 days, I think.")
    passes = {"core": 0 if fault == "alone" else 4, "expert": 9}
    print(json.dumps({"text": text, "tokens": 4, "steps": 3, "forward_passes": passes, "bytes_up": 90,
        "bytes_down": 900, "members": ["core", "expert"], "shares": {"core": .5, "expert": .5}, "privacy": "open",
        "passages": [{"document": "a.md"}]}))
"""


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The demo's module, its programs replaced."""
    spec = importlib.util.spec_from_file_location("demo_under_test", DEMO)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo_under_test", module)
    spec.loader.exec_module(module)
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    monkeypatch.setattr(module, "command", lambda name, *rest: [sys.executable, str(fake), name, *rest])
    monkeypatch.setattr(module, "NODE_STOP_S", 0.3)
    monkeypatch.setenv("SSD_NODE", "elsewhere:1")
    return module


def run(demo: ModuleType, tmp_path: Path, *more: str) -> int:
    """One run in a folder of its own."""
    return demo.main(["--folder", str(tmp_path / "demo"), *more])


def node_is_gone(tmp_path: Path) -> bool:
    """True when the stand-in of the node has ended."""
    pid = int((tmp_path / "demo" / "node" / "pid").read_text())
    for _ in range(50):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def test_a_run_that_works(demo: ModuleType, tmp_path: Path, capsys):
    assert run(demo, tmp_path, "--check", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert [a["fact"] for a in summary["answers"]] == [True, False, False]
    assert summary == json.loads((tmp_path / "demo" / "summary.json").read_text("utf-8"))
    assert node_is_gone(tmp_path)


@pytest.mark.parametrize(
    ("fault", "flags", "sentence"),
    [
        ("personalize", [], "personalize ended with 1"),
        ("dies", [], "the node ended with 1: no room"),
        ("generate", [], "ended with 1"),
        ("empty", [], "the answer is empty"),
        ("wrong", ["--check"], "no answer told a fact"),
        ("alone", ["--check"], "not both members took part"),
    ],
)
def test_a_fault_is_one_sentence_and_exit_code_1(
    demo: ModuleType, tmp_path: Path, monkeypatch, capsys, fault: str, flags: list[str], sentence: str
):
    monkeypatch.setenv("FAULT", fault)
    assert run(demo, tmp_path, *flags) == 1
    assert sentence in capsys.readouterr().err.splitlines()[-1]
    if fault != "personalize":
        assert node_is_gone(tmp_path)


def test_a_node_that_does_not_stop_is_killed(demo: ModuleType, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("FAULT", "deaf")
    assert run(demo, tmp_path) == 0
    assert node_is_gone(tmp_path)


def test_an_answer_that_never_comes_is_given_up(demo: ModuleType, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setenv("FAULT", "slow")
    monkeypatch.setattr(demo, "ANSWER_S", 0.0)
    monkeypatch.setattr(demo, "SIGN_OF_LIFE_S", 0.5)
    assert run(demo, tmp_path) == 1
    assert "was still running after" in capsys.readouterr().err
    assert node_is_gone(tmp_path)


def test_own_questions_and_a_fresh_start(demo: ModuleType, tmp_path: Path, capsys):
    assert run(demo, tmp_path, "--ask", "Who?") == 0
    old = tmp_path / "demo" / "device" / "left-over"
    old.write_text("x")
    assert run(demo, tmp_path, "--fresh", "--ask", "Who?", "--json") == 0
    assert not old.exists()
    assert [a["question"] for a in json.loads(capsys.readouterr().out)["answers"]] == ["Who?"]


def test_the_questions_of_the_demo_exist(demo: ModuleType):
    asked = demo.questions([])
    assert len(asked) == 3
    assert all(one.accept for one in asked)
    assert asked[0].met_by("they are kept for 35 days.")
    assert not asked[0].met_by("they are kept for 350 days.")
