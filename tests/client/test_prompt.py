"""What is public and what is private in a prompt, and what fits into whose context."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ssd_client.errors import BadInput, UsageError
from ssd_client.prompt import Passage, Prompt, build_contexts, parse_prompt, read_private
from ssd_diffusion.errors import ContextOverflow
from ssd_diffusion.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_core: Path) -> Tokenizer:
    return Tokenizer.load(tiny_core)


@pytest.mark.parametrize(
    ("text", "public", "full", "hidden"),
    [
        ("plain", "plain", "plain", ()),
        ("Is [[Anna]] well?", "Is well?", "Is Anna well?", ("Anna",)),
        ("[[A]] and [[B]] met", "and met", "A and B met", ("A", "B")),
        (r"a \[[link]] here", "a [[link]] here", "a [[link]] here", ()),
        (r"x[[ \[[y ]]z", "xz", "x [[y z", (" [[y ",)),
        ("if a[0]] then", "if a[0]] then", "if a[0]] then", ()),
        ("keep  two  spaces", "keep  two  spaces", "keep  two  spaces", ()),
        ("line\n[[secret]]\nline", "line\n\nline", "line\nsecret\nline", ("secret",)),
    ],
)
def test_marks(text: str, public: str, full: str, hidden: tuple[str, ...]) -> None:
    assert parse_prompt(text) == Prompt(public, full, hidden)


def test_bytes_that_are_no_text_become_question_marks() -> None:
    assert parse_prompt("caf\udce9 [[\udcff]]!") == Prompt("caf? !", "caf? ?!", ("?",))
    assert read_private("\udcff") == "?"


@pytest.mark.parametrize(
    "text", ["", "  \n", "\x00\x1b \x07", "a [[b", "[[a [[b]] c]]", "[[everything]]", " [[a]] [[b]] "]
)
def test_prompts_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(UsageError):
        parse_prompt(text)


def test_the_core_sees_the_public_prompt_alone(tokenizer: Tokenizer) -> None:
    prompt = parse_prompt("Is [[Anna]] well?")
    passage = Passage("a.md", "Staff > Anna", "Anna has a cold.", 1.0)
    made = build_contexts(
        tokenizer, prompt, private=["My code is 4711."], passages=[passage], expert_room=900, core_room=900
    )
    assert made.core_text == "<|im_start|>user\nIs well?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(made.core_ids, special=True) == made.core_text
    assert tokenizer.decode(made.expert_ids, special=True) == made.expert_text
    for word in ("4711", "Staff > Anna: Anna has a cold.", "Is Anna well?"):
        assert word in made.expert_text
    assert made.passages == (passage,)


def test_passages_fill_the_room_and_no_more(tokenizer: Tokenizer) -> None:
    prompt = parse_prompt("Hello")
    passages = [Passage("a", "", "x" * n, 1.0) for n in (50, 500, 50)]
    made = build_contexts(tokenizer, prompt, private=[], passages=passages, expert_room=300, core_room=None)
    assert made.passages == (passages[0], passages[2])
    assert made.left_out == 1
    assert len(made.expert_ids) <= 300
    least = len(tokenizer.chat([{"role": "user", "content": "Hello"}]))
    build_contexts(tokenizer, prompt, private=[], passages=[], expert_room=least, core_room=least)
    with pytest.raises(ContextOverflow, match="the expert has room"):
        build_contexts(tokenizer, prompt, private=[], passages=[], expert_room=least - 1, core_room=least)
    with pytest.raises(ContextOverflow, match="the core has room"):
        build_contexts(tokenizer, prompt, private=[], passages=[], expert_room=least, core_room=least - 1)


def test_private_text_from_a_file(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("grüße", encoding="utf-8")
    assert read_private(f"@{note}") == "grüße"
    assert read_private("plain @home") == "plain @home"
    note.write_bytes(b"\xff\xfe\x00")
    large = tmp_path / "large.txt"
    large.write_bytes(b"a" * (1024 * 1024 + 1))
    for bad in (note, large, tmp_path / "none", tmp_path):
        with pytest.raises(BadInput):
            read_private(f"@{bad}")


def test_private_text_is_not_awaited_from_pipes_and_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(BadInput, match="not a plain file"):
            read_private(f"@{path}")
    for path in ("~nobody-of-that-name/x", "a\0b", str(tmp_path)):
        with pytest.raises(BadInput, match="cannot read"):
            read_private(f"@{path}")
