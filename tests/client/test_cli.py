"""The command line in this process: views, sentences and exit codes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from answering_support import TOKEN, ThreadedNode
from rich.console import Console
from ssd_client import answer
from ssd_client.cli import answer_view, main, personalize_view, screen
from ssd_client.consent import Disclosure
from ssd_client.ledger import Ledger
from ssd_client.prompt import Passage
from ssd_client.report import Progress
from ssd_client.store import ExpertCard, Store


@pytest.fixture(autouse=True)
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text("")
    monkeypatch.setenv("SSD_CONFIG", str(tmp_path / "config.toml"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command line; (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        for name in ("OUT", "ERR"):
            fresh = Console(stderr=name == "ERR", highlight=False, width=120)
            monkeypatch.setattr(screen, name, fresh)
            monkeypatch.setattr(answer_view, name, fresh)
        with pytest.raises(SystemExit) as ended:
            main.main(list(arguments))
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        return int(ended.value.code or 0), found.out, found.err

    return call


def terminal() -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=100, height=12, color_system=None, legacy_windows=False
    )


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def card(**more: Any) -> ExpertCard:
    fields: dict[str, Any] = {
        "name": "anna", "base": "tiny", "base_model_id": "tiny@0", "created": "2026-01-01T00:00:00+00:00",
        "documents": 3, "data_fingerprint": "ab" * 32, "lam": 0.6, "alpha": 0.5, "heldout_before": 4.0,
        "heldout_after": 3.0,
    }  # fmt: skip
    return ExpertCard(**{**fields, **more})


def stock(home: Path, name: str = "anna") -> Store:
    store = Store(home)
    folder = store.staging()
    (folder / "file").write_text("x")
    store.register(folder, name, card())
    return store


def test_generate_prints_the_answer_on_stdout_and_numbers_on_stderr(run, home, on_torch, core_engine, passages):
    passages.append(Passage("staff/keys.md", "Keys [1]", "Ilse has [the] key.", 1.0))
    with ThreadedNode(core_engine) as node:
        common = ("generate", "Who has the key?", "--node", node.target, "--token", TOKEN, "--max-tokens", "8", "--yes")
        code, out, err = run(*common, "--show-context", "--seed", "4")
        assert code == 0
        assert "written by" in err
        assert "staff/keys.md (Keys [1])" in err
        assert "Ilse has [the] key." in err
        assert "a core step" in err
        code, doc, err = run(*common, "--json", "--seed", "4")
        assert (code, err) == (0, "")
        assert json.loads(doc)["text"] == out.rstrip("\n")
        assert "text" not in json.loads(doc)["passages"][0]
        code, doc, _ = run(*common, "--json", "--show-context")
        assert json.loads(doc)["passages"][0]["text"] == "Ilse has [the] key."
    code, out, err = run("generate", "Who?", "--node", "127.0.0.1:9", "--max-tokens", "3")
    assert code == 0
    assert "the expert wrote this answer alone" in err


def test_dry_run_shows_what_leaves(run, home, on_torch, passages):
    passages.append(Passage("keys.md", "Keys", "Ilse has the key.", 1.0))
    code, out, _ = run(
        "generate", "Who has [[Ilse's]] key?", "--node", "gpu.example.org", "--dry-run", "--private", "x y"
    )
    assert code == 0
    for words in ("gpu.example.org:7337, encrypted", "keys.md (Keys)", "1 private part(s)", "1 private text(s)",
                  "Who has key?", "Nothing was sent."):  # fmt: skip
        assert words in out
    code, out, _ = run("generate", "Who?", "--dry-run", "--offline", "--json")
    assert json.loads(out)["leaves"] is None


def test_list_show_rm(run, home, monkeypatch):
    _, out, _ = run("list")
    assert "No expert yet" in out
    stock(home)
    assert json.loads(run("list", "--json")[1])[0]["documents"] == 3
    assert "anna" in run("list")[1]
    code, out, _ = run("show", "anna")
    assert "4.000 before, 3.000 after" in out
    assert json.loads(run("show", "anna", "--json")[1])["lam"] == 0.6
    code, _, err = run("rm", "anna")
    assert (code, "--yes" in err) == (2, True)
    assert json.loads(run("rm", "anna", "--yes", "--json")[1]) == {"removed": "anna"}
    assert run("show", "anna")[0] == 2


def test_a_damaged_expert_is_named(run, home):
    store = stock(home)
    (store.open("anna") / "card.json").write_text("{}")
    code, out, err = run("list", "--json")
    assert (code, json.loads(out)) == (0, [])
    assert "expert anna cannot be used" in err
    code, _, err = run("generate", "hi", "--offline")
    assert (code, "expert anna cannot be used" in err) == (1, True)
    assert run("doctor")[0] == 1


def test_ledger(run, home):
    assert "Nothing was ever sent" in run("ledger")[1]
    with Ledger(home / answer.LEDGER_FILE) as book:
        book.record(to="a:1", kind="open", size_bytes=70, sha256="ab" * 32, session="s1")
        book.record(to="a:1", kind="step", size_bytes=30, sha256="cd" * 32, session="s2")
        book.consent(node="plain://a:1", privacy="open", shown="x")
    _, out, _ = run("ledger")
    assert "2 messages, 100 B in all" in out
    assert json.loads(run("ledger", "--json", "--session", "s1")[1])["totals"]["size_bytes"] == 70
    assert json.loads(run("ledger", "--json", "--withdraw", "plain://a:1")[1]) == {"withdrawn": 1}
    (home / answer.LEDGER_FILE).write_bytes(b"not a database, certainly" * 100)
    code, _, err = run("ledger")
    assert code == 1
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device"), 1, "the disk is full"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x"),
        (ImportError("No module named 'onnxruntime'"), 1, "doctor"),
        (MemoryError(), 1, "memory"),
        (ZeroDivisionError("oops"), 1, "SSD_DEBUG"),
        (KeyboardInterrupt(), 130, "nothing was lost"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_whatever_goes_wrong_is_a_sentence(run, home, monkeypatch, error, code, words):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(answer, "generate", fail)
    monkeypatch.setattr(main, "_discard_stdout", lambda: None)
    got, out, err = run("generate", "hi")
    assert (got, out) == (code, "")
    assert words in err
    assert err.count("\n") == (1 if words else 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], "missing argument"),
        (["nonsense"], "no such command 'nonsense'; see ssd-client --help"),
        (["generate", "hi", "--steps", "many"], "--steps"),
        (["generate", "hi", "--bogus\x1b[2J\n"], "no such option"),
        (["generate", "hi", "--expert", "\x1b[2J\nx"], "cannot be an expert's name"),
        (["personalize", "/no/\x1b[2J\nsuch", "--name", "x"], "is not a folder"),
    ],
)
def test_what_cannot_be_meant_is_one_line_that_the_terminal_only_shows(run, home, arguments, words):
    code, out, err = run(*arguments)
    assert (code, out, words in err, err.count("\n")) == (2, "", True, 1), err
    assert "\x1b" not in err


def test_a_question_that_nobody_answers_is_a_no(run, home, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise EOFError

    monkeypatch.setattr(answer, "generate", fail)
    code, _, err = run("generate", "hi")
    assert (code, "nothing was done" in err) == (2, True)


def test_what_an_answer_says_to_the_terminal_is_shown_and_not_obeyed():
    for console in (screen.OUT, screen.ERR):
        assert isinstance(console, screen.Screen)
    console = screen.Screen(file=io.StringIO(), force_terminal=True, color_system=None, width=100)
    view = answer_view.Live(enabled=True, console=console)
    with view:
        view.progress(Progress("red \x1b[31m", "\x9b2J\x07", 1, 1, 0.5, None))
        view._live.refresh()
    console.print("\x1b]0;title\x07 [bold]x", markup=False, soft_wrap=True)
    console.print(screen.facts([("passage", "evil\x1b[2J.md")]))
    said = written(console)
    assert "[31m" in said
    assert "evil[2J.md" in said
    for obeyed in ("\x1b[31m", "\x9b", "\x07", "\x1b]", "\x1b[2J"):
        assert obeyed not in said


def test_json_is_json_on_a_narrow_stdout(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(screen.sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", errors="replace"))
    screen.print_json({"text": "caf\xe9"})
    assert json.loads(raw.getvalue()) == {"text": "caf\xe9"}


def test_usage(run, home):
    assert run("generate")[0] == 2
    assert run("nonsense")[0] == 2
    assert run("generate", "hi", "--steps", "many")[0] == 2
    assert run("--version")[1].startswith("ssd-client ")
    _, out, _ = run("--help")
    assert all(name in out for name in ("personalize", "generate", "list", "show", "rm", "ledger", "doctor"))
    assert run("personalize", "/no/such", "--name", "x")[0] == 2


def test_the_block_resolves_on_a_terminal():
    console = terminal()
    with answer_view.Live(enabled=True, console=console) as live:
        live.stage("loading the expert")
        live._live.refresh()
        live.progress(Progress(" The key hangs", " somewhere there", 4, 2, 0.25))
        live._live.refresh()
        live.progress(Progress(" The key hangs by the door.\n" * 30, "", 90, 40, 0.5, lost="gone"))
        live._live.refresh()
    for words in ("loading the expert", "The key hangs somewhere there", "step 2 · 4 tokens · core 25%, expert 75%",
                  "the core is lost"):  # fmt: skip
        assert words in written(console)
    quiet = terminal()
    with answer_view.Live(enabled=False, console=quiet) as live:
        live.stage("x")
        live.progress(Progress("a", "b", 1, 1, 0.0))
    assert written(quiet) == ""


def test_agreement_is_asked_for_and_no_is_the_default(monkeypatch):
    disclosure = Disclosure(
        node="a:1", encrypted=False, model="core@1", privacy="one-way", public_text="Who [x]?", prompt_tokens=3,
        settings={"block": "16"},
    )  # fmt: skip
    console = terminal()
    monkeypatch.setattr(answer_view, "ERR", console)
    with answer_view.Live(enabled=True, console=console) as live:
        ask = live.pausing(answer_view.ask)
        for reply, want in (("", False), ("n", False), ("y", True), ("YES", True)):
            monkeypatch.setattr(console, "input", lambda *_, reply=reply, **__: reply)
            assert ask(disclosure) is want
    shown = written(console)
    assert "not encrypted" in shown
    assert "Who [x]?" in shown
    assert "byte-identical" in " ".join(shown.replace("│", " ").split())


def test_personalization_shows_bars_remarks_and_a_table(monkeypatch, capsys):
    from ssd_client.personalize.options import Event

    events = [
        Event(stage="ingest", fraction=0.0, message="reading x"),
        Event(stage="ingest", fraction=1.0, message="2 documents", detail={"skipped": [["a.bin", "binary"]] * 60}),
        Event(stage="train", fraction=0.5, seconds_left=65.0, loss=3.25, samples=9),
        Event(stage="train", fraction=0.0, message="held-out loss 4.0", detail={"s1": 4.0}),
        Event(stage="done", fraction=1.0, message="ready", detail={"seconds": {"all": 12.0}}),
    ]
    out = Console(file=io.StringIO(), width=100, highlight=False)
    monkeypatch.setattr(personalize_view, "OUT", out)
    for console, quiet, words in (
        (terminal(), False, ("1:05 left", "loss 3.25", "held-out loss 4.0", "left out a.bin: binary")),
        (Console(file=io.StringIO(), width=100), False, ("documents: 2 documents", "and 10 more")),
        (Console(file=io.StringIO(), width=100), True, ()),
    ):
        with personalize_view.View(quiet=quiet, console=console) as view:
            view.waiting("loading PyTorch")
            for event in events:
                view.event(event)
        view.result(card())
        shown = " ".join(written(console).split())
        assert all(word in shown for word in words), shown
        assert bool(shown) != quiet
        assert view.details["done"] == {"seconds": {"all": 12.0}}
    assert "4.000 before, 3.000 after" in written(out)
    assert "-25.0%" in written(out)
