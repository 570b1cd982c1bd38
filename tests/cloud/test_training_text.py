"""Text and chats as rows: turns of a conversation, and how sources are mixed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ssd_cloud.adapt_options import AdaptOptions
from ssd_cloud.training_text import Texts, read_sources, split_documents, training_rows
from ssd_diffusion.errors import TrainingError
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training.chats import conversation, end_of_answer
from ssd_diffusion.training.data import MixedRows

TURNS = [
    {"role": "system", "content": "notes"}, {"role": "user", "content": "who?"},
    {"role": "assistant", "content": "ann."}, {"role": "user", "content": "when?"},
    {"role": "assistant", "content": "at noon."},
]  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer.load(write_tiny(tmp_path / "tiny"))


def test_turns_join_to_the_text_of_the_template(tokenizer: Tokenizer) -> None:
    pair = conversation(TURNS, tokenizer)
    assert tokenizer.decode(list(pair.response)) == "ann."
    assert [tokenizer.decode(list(turn.response)) for turn in pair.later] == ["at noon."]
    joined: list[int] = []
    for turn in (pair, *pair.later):
        joined += [*turn.prompt, *turn.response, end_of_answer(tokenizer)]
    whole = tokenizer.chat(TURNS, add_generation_prompt=False).tolist()
    assert whole[: len(joined)] == joined


def test_a_template_that_rewrites_turns_leaves_the_last_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    write_tiny(folder)
    (folder / "chat_template.jinja").write_text(
        "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    )
    pair = conversation(TURNS, Tokenizer.load(folder))
    assert pair.later == ()
    assert tokenizer.decode(list(pair.response)) == "at noon."


def test_sources_are_drawn_by_the_root_of_their_size(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for name, count in (("large", 64), ("small", 4)):
        rows = [{"text": "the cat sat on the mat and looked. " * 4} for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "chats.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n")
    (folder / "a.txt").write_text("x")  # too short for a row of its own
    sources = read_sources([folder], tokenizer)
    assert [len(texts.documents) for texts in sources] == [1, 64, 4, 1]
    options = AdaptOptions(base="", data=(), out=tmp_path, length=48, block=6, chat_share=0.25, own_share=0.2)
    mixed = training_rows(sources, options, tokenizer, own=[list(range(60))])
    assert isinstance(mixed, MixedRows)
    shares = mixed.shares.tolist()
    # the short text joins the largest; the file of chats alone gives answers and no rows of text
    assert shares == pytest.approx([0.8 * 0.75 * 0.2, 0.8 * 0.75 * 0.8, 0.8 * 0.25, 0.2], abs=0.005)
    assert [rows.batch(0).origin for rows in mixed.sources] == ["text", "text", "answers", "own"]


def test_held_out_documents_are_the_same_whatever_file_they_are_in() -> None:
    sources = [Texts([np.array([i, j], np.int32) for j in range(30)], []) for i in range(2)]
    train, held = split_documents(sources)
    assert held is not None
    assert len(held.documents) == 3
    kept = [tuple(d) for texts in train for d in texts.documents]
    assert len(kept) == len(set(kept)) == 57
    assert not set(kept) & {tuple(d) for d in held.documents}
    alone, none = split_documents([Texts([np.array([1], np.int32)], [])])
    assert (len(alone[0].documents), none) == (1, None)


def test_no_text_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TrainingError, match="no text"):
        read_sources([tmp_path / "empty.jsonl"], tokenizer)
