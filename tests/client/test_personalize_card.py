"""Cards for people: `show` and the end of a personalization, on narrow terminals, for old cards and hostile text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from ssd_client.cli import main, personalize_view, screen
from ssd_client.cli.personalize_card import plain, sample_panel, score_grid, training_rows
from ssd_client.personalize.options import STAGES, Event
from ssd_client.store import ExpertCard, Store

SAMPLE = {
    "document": "notes/[keys].md", "opening": "# Keys\n\nThe key\x1b[31m hangs", "goes_on": " behind the door",
    "before": " on\x1b]8;;http://x\x07 the wall\x9b2J", "after": "", "tokens": 24,
}  # fmt: skip
CALIBRATION: dict[str, Any] = {
    "by": "S1", "lam": 0.4, "alpha": 0.5, "selected": -3.25, "alone": True,
    "table": {"0,0": -4.0, "0.4,0": -3.5, "0.4,0.5": -3.25, "1,0": -3.2},
    "reported": {"core": -4.125, "expert": -3.5, "ensemble": -3.375}, "tokens": {"select": 320, "report": 300},
    "heldout_before": {"s2": 7.0}, "heldout_after": {"s2": 6.0}, "sample": SAMPLE, "precision": "fp32",
    "agreement": [
        {"precision": "fp32", "rms_error_nats": 5.5e-6, "max_error": 1e-4, "greedy": 1.0, "kept": True},
        {"precision": "int8", "rms_error_nats": 0.5, "max_error": 1.0, "greedy": 0.5, "kept": False},
    ],
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "rank": 16, "learning_rate": 4e-4, "length": 256, "block": 16, "next_token_share": 0.6, "noisy_share": 0.25,
    "reading_share": 0.15, "patience": 3, "seed": 0, "steps": 19, "targets": 4498, "stopped": "early", "best_step": 12,
    "train_seconds": 78.1, "warm_start": True, "seconds": {"train": 104.6, "base": 0.2},
    "heldout_documents": ["a\x1b[2J.md"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.toml").write_text("")
    monkeypatch.setenv("SSD_CONFIG", str(tmp_path / "config.toml"))


def card(**more: Any) -> ExpertCard:
    fields: dict[str, Any] = {
        "name": "anna", "base": "tiny", "base_model_id": "tiny@0", "created": "2026-01-01T00:00:00+00:00",
        "documents": 3, "data_fingerprint": "ab" * 32, "lam": 0.4, "alpha": 0.5, "heldout_before": 7.0,
        "heldout_after": 6.0, "hyperparameters": TRAINING, "calibration": CALIBRATION,
    }  # fmt: skip
    return ExpertCard(**{**fields, **more})


def printed(part: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def shown(monkeypatch: pytest.MonkeyPatch, home: Path, one: ExpertCard, width: int) -> str:
    store = Store(home)
    folder = store.staging()
    (folder / "file").write_text("x")
    store.register(folder, one.name, one)
    monkeypatch.setenv("SSD_HOME", str(home))
    out = Console(file=io.StringIO(), width=width, highlight=False)
    monkeypatch.setattr(screen, "OUT", out)
    with pytest.raises(SystemExit) as ended:
        main.main(["show", one.name])
    assert not ended.value.code
    return out.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("width", [60, 100])
def test_show_says_what_was_chosen_and_learned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int) -> None:
    text = shown(monkeypatch, tmp_path, card(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "{" not in text
    assert not any(c in text for c in "\x1b\x07\x9b")
    words = " ".join(text.replace("│", " ").split())
    for part in (
        "0.4, 0.5 (S1 -3.250 on 320 tokens of the half that selects)",
        "core -4.125, expert alone -3.500, both -3.375 (nats a token on 300 tokens; higher is better)",
        "no less likely to the expert alone",
        "fp32, used: differ by 5.5e-06 nats (root mean square), the same most probable token at 100.0%",
        "int8, dropped: differ by 5.0e-01 nats",
        "LoRA of rank 16, from the earlier expert of this name, 19 steps, those of step 12 kept, 1 min 18 s, "
        "until held-out loss no longer fell",
        "next token 60%, noisy blocks 25%, reading passages 15%, 256 tokens each, blocks of 16",
        "learning rate 0.0004, patience 3, seed 0",
        "base model 0.2 s, learning 1 min 45 s",
        "lambda 0 0.5",
        "0.4 -3.500 *-3.250",
        "alone -3.200",
        "it begins # Keys The key hangs",
        "it goes on ... behind the door",
        "before ... on the wall",
        "after (it ends the text here)",
        "[keys].md",
    ):
        assert part in words, part


def test_cards_that_say_less_or_other_things_are_shown_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = card(hyperparameters={}, calibration={}, heldout_before=None, heldout_after=None)
    assert "lambda, alpha" in shown(monkeypatch, tmp_path, bare, 80)
    assert (score_grid(bare), sample_panel(bare)) == (None, None)
    odd = card(
        hyperparameters={"rank": 4, "optimizer": "other\x1b[1m", "seconds": None, "heldout_documents": "x"},
        calibration={
            "temperature": 1.5, "table": {"x": 1, "0.5": 2, "1,0": None}, "reported": {"core": None},
            "agreement": [3, {"precision": "fp32"}], "sample": {"opening": "x"}, "tokens": [],
        },
    )  # fmt: skip
    text = shown(monkeypatch, tmp_path / "odd", odd, 80)
    assert "temperature" in text
    assert "core -   (nats a token" in text
    assert dict(training_rows(odd)) == {"training": "LoRA of rank 4", "optimizer": "other"}
    assert score_grid(odd) is None


def test_json_keeps_every_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(monkeypatch, tmp_path, card(), 80)
    with pytest.raises(SystemExit):
        main.main(["show", "anna", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["calibration"], found["hyperparameters"]) == (CALIBRATION, TRAINING)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\r\nlines\tand\u2028more", "two lines and more"),
        ("\x1b[1;31mred\x1b[0m \x1b]0;title\x1b\\x\x1bc", "red x"),
        ("\x9b31mred\x9dtitle\x9c\x90q\x9c", "red"),
        ("a\x00b\x08c\x7fd\x85e", "abcd e"),
        ("left\u202eright\u2066\ufeff", "leftright"),
        ("\x1b]0;never closed", "0;never closed"),
        ("[bold]é 漢 👩\u200d🚒[/]", "[bold]é 漢 👩\u200d🚒[/]"),
        ("", ""),
    ],
)
def test_text_of_documents_only_shows(text: str, line: str) -> None:
    assert plain(text) == line


@pytest.mark.parametrize("width", [30, 60, 120])
def test_the_result_ends_with_the_sample(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    monkeypatch.setattr(personalize_view, "OUT", out)
    progress = Console(file=io.StringIO(), width=width)
    with personalize_view.View(quiet=False, console=progress) as view:
        view.event(Event(stage="sample", fraction=1.0, message="nothing", detail={"reason": "no time"}))
    view.result(card())
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    assert "it begins" in text
    assert view.details["sample"] == {"reason": "no time"}
    assert "left out" not in progress.file.getvalue()  # type: ignore[attr-defined]


def test_a_text_that_nothing_was_learned_for_is_not_printed_twice() -> None:
    text = printed(sample_panel(card(calibration={"sample": SAMPLE | {"after": SAMPLE["before"]}})))
    assert "the same" in text
    assert text.count("the wall") == 1


def test_a_reason_stands_where_there_is_no_sample() -> None:
    text = printed(sample_panel(card(calibration={"sample": {"reason": "there was no\x1b[5m time"}})))
    assert text == "No held-out text was continued for you to look at: there was no time.\n"


def test_every_stage_has_words_for_people() -> None:
    assert tuple(personalize_view.STAGE_TITLES) == STAGES
