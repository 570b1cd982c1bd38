"""Questions, stretches, and the pair that suites open."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ssd_bench.folder import read_questions
from ssd_bench.items import stretches_of, with_notes
from ssd_client.prompt import Passage

LONG = "High water is at nine. "


def test_stretches_cover_a_document_without_overlap(tiny_pair):
    ids = tiny_pair.tokenizer.encode(LONG * 20)
    found = stretches_of(tiny_pair.tokenizer, "a.md", LONG * 20)
    assert [s.id for s in found] == [f"a.md#{i}" for i in range(len(ids) // 80)]
    joined = np.concatenate([part for s in found for part in (s.prompt, s.tokens)])
    np.testing.assert_array_equal(joined, ids[: len(joined)])
    assert stretches_of(tiny_pair.tokenizer, "b.md", "short") == []


def test_notes_that_do_not_fit_are_left_out_from_the_last(tiny_pair):
    tokenizer, prompt = tiny_pair.tokenizer, tiny_pair.tokenizer.encode("Where?")
    notes = [Passage("a.md", f"Note {i}", LONG, 1.0) for i in range(3)]
    sizes = [len(with_notes(tokenizer, notes[:n], prompt, room=10_000)) for n in range(4)]
    assert sizes == sorted(set(sizes))
    for room, shown in ((sizes[3], 3), (sizes[3] - 1, 2), (sizes[1], 1), (sizes[1] - 1, 0)):
        got = with_notes(tokenizer, notes, prompt, room=room)
        np.testing.assert_array_equal(got, with_notes(tokenizer, notes[:shown], prompt, room=10_000))
    np.testing.assert_array_equal(got, prompt)


def test_members_alone_keep_to_themselves(tiny_pair):
    ids = tiny_pair.contexts("Where?", answer_room=24)
    assert len(ids.expert_ids) > len(ids.core_ids)
    with tiny_pair.open("core", ids.core_ids, ids.expert_ids) as core:
        assert [m.name for m in core.members] == ["core"]
    with tiny_pair.open("expert", ids.core_ids, ids.expert_ids) as expert:
        assert [m.name for m in expert.members] == ["expert"]
    with tiny_pair.open("ensemble", ids.core_ids, ids.expert_ids) as both:
        assert len(both.members) == 3
    assert tiny_pair.expert.slot_bytes(0) == tiny_pair.expert.slot_bytes(1) == 0  # all slots are given back


def test_reading_questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"id": "1", "question": "Q?", "answer": "A", "accept": ["B"]}) + "\n\n")
    (question,) = read_questions(path)
    assert question.accepted == ("A", "B")
    path.write_text("{}")
    with pytest.raises(ValueError, match="no questions"):
        read_questions(path)
