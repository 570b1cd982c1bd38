"""Conversations about notes: what invented notes answer, which part of a story a question belongs to, and dialogues."""

from __future__ import annotations

import json
import re
from typing import Any

from ssd_cloud.corpus import conversations, extract_data, pairs
from ssd_cloud.corpus.model import Document, Question


def turns(row: dict[str, Any]) -> list[tuple[str, str]]:
    said = [m["content"] for m in row["messages"][1:]]
    return list(zip(said[::2], said[1::2], strict=True))


def test_invented_notes_answer_what_they_are_asked(english, monkeypatch):
    monkeypatch.setattr(pairs, "UNKNOWN_SHARE", 0.08)  # enough of them to count
    prose = [Document("", english(i, 6)) for i in range(20)]
    rows = list(conversations.invented(200, prose, 0))
    assert rows == list(conversations.invented(200, prose, 0))
    assert rows != list(conversations.invented(200, prose, 1))
    known = unknown = mixed = 0
    for row in rows:
        roles = [m["role"] for m in row["messages"]]
        assert roles == ["system", *["user", "assistant"] * (len(roles) // 2)]
        system = row["messages"][0]["content"]
        mixed += any(sentence in system for d in prose for sentence in d.text.split(". ")[:2])
        assert not re.search(r"[{}]", system)
        assert 1 <= len(turns(row)) <= conversations.MOST_TURNS + 1
        questions = [user for user, _ in turns(row)]
        assert len(set(questions)) == len(questions)
        for user, assistant in turns(row):
            assert user.endswith("?")
            if assistant == pairs.UNKNOWN:
                unknown += 1
                continue
            known += 1
            held = re.findall(r"[\w£$€:.-]*\d[\w:.-]*|[A-Z]\w+", assistant)[1:]
            assert all(word.strip(".:").removesuffix("s") in system + user for word in held), assistant
    assert len(rows) > 180
    assert known > 6 * len(rows)
    assert 0.02 < unknown / known < 0.08
    assert mixed > 40


def test_a_question_that_two_notes_answer_is_not_asked():
    """Were it asked, its answer would be one of two."""
    for row in conversations.invented(300, [], 3):
        system = row["messages"][0]["content"]
        for user, assistant in turns(row):
            if user == "When is the fire drill?" and assistant != pairs.UNKNOWN:
                assert len(re.findall(r"fire drill", system)) == 1


def test_a_question_goes_to_the_part_that_answers_it(english):
    first, second = english(1, 9), english(2, 9)
    passage = f"{first} Hedda hid the silver lantern in Corveth. {second} Old Umar sold a piano to Lotte."
    asked = [
        Question("where did hedda hide the lantern", "in corveth", "", passage),
        Question("who bought the piano of umar", "Lotte", "", passage),
        Question("why is the sky green", "because of xylophones", "", passage),
    ]
    others = [Document("", english(i, 8)) for i in range(10, 30)]
    rows = list(conversations.of_stories(asked * 4, others, ("stories", "x"), "stories", 0))
    seen = set()
    for row in rows:
        system = row["messages"][0]["content"]
        assert len(system) < 2400 + 200
        assert row["dataset"] == "stories"
        for user, assistant in turns(row):
            assert assistant in ("In corveth.", "Lotte.")
            assert ("silver lantern" if "lantern" in user else "sold a piano") in system
            seen.add(assistant)
    assert len(seen) == 2
    assert sum(len(turns(row)) for row in rows) == 8
    assert any("[2]" in row["messages"][0]["content"] for row in rows)


def test_questions_from_elsewhere_are_not_answered(english, monkeypatch):
    monkeypatch.setattr(pairs, "UNKNOWN_SHARE", 0.08)  # enough of them to count
    passages = [f"{english(i, 5)} The kiln of house {i} is kept by Ms Ekman{i}." for i in range(60)]
    asked = [Question(f"Who keeps the kiln of house {i}?", f"Ms Ekman{i}", "", p) for i, p in enumerate(passages)]
    rows = list(conversations.of_stories(asked, [], ("stories", "x"), "stories", 0))
    told = [(row["messages"][0]["content"], *turn) for row in rows for turn in turns(row)]
    unknown = [(system, user) for system, user, said in told if said == pairs.UNKNOWN]
    assert 5 < len(unknown) < 40
    for system, user in unknown:
        house = re.search(r"house \d+", user)[0]  # type: ignore[index]
        assert f"{house} is kept" not in system


def test_dialogues_keep_their_order_and_say_of_few_questions_that_they_are_open(monkeypatch):
    passage = "She sang in Oslo in 1990, with a choir. Later she taught. She married Karl, a baker, in May."
    row = {
        "passage": passage + " CANNOTANSWER",
        "question": "question1: where did she sing?\nquestion2: who was her mother?\nquestion3: whom did she marry?",
        "answer": "possible answers for question1:\nShe sang in Oslo in 1990, She sang in Oslo\n"
        "possible answers for question2:\nCANNOTANSWER CANNOTANSWER\n"
        "possible answers for question3:\nShe married Karl, a baker, She married Karl, a baker, in May. Karl",
    }
    found = list(extract_data.dialogues("x", json.dumps(row).encode()))
    assert found[0] == Document("", passage)
    questions = [one for one in found if isinstance(one, Question)]
    assert [one.answer for one in questions] == ["She sang in Oslo in 1990", "", "She married Karl, a baker"]
    told = [conversations.of_dialogues(questions, ("dialogues", "x"), "dialogues", seed) for seed in range(60)]
    shown = [turns(row) for rows in told for row in rows]
    answered = [
        ("Where did she sing?", "She sang in Oslo in 1990."),
        ("Whom did she marry?", "She married Karl, a baker."),
    ]
    assert shown.count(answered) > 50
    monkeypatch.setattr(conversations, "_OPEN_KEPT", 1.0)
    (made,) = conversations.of_dialogues(questions, ("dialogues", "x"), "dialogues", 0)
    assert turns(made) == [
        ("Where did she sing?", "She sang in Oslo in 1990."), ("Who was her mother?", pairs.UNKNOWN),
        ("Whom did she marry?", "She married Karl, a baker."),
    ]  # fmt: skip
