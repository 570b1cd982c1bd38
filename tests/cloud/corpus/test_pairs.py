"""Instruction pairs: who is asked for, what is evidence, which notes stand beside, and when the notes do not say."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_client.prompt import NOTES_HEADING, Passage, Prompt, expert_messages
from ssd_cloud.corpus import facts, pairs
from ssd_cloud.corpus.model import Document, Question

ORIGIN = ("leads", "CC BY-SA 4.0")


def asked(title: str, text: str) -> list[str]:
    return [one.question for one in facts.about(title, text)]


@pytest.mark.parametrize(
    ("title", "text", "questions"),
    [
        ("Ada Lovelace", "Ada Lovelace was an English mathematician and writer.", ["Who was Ada Lovelace?"]),
        ("Las Meninas", "Las Meninas is a 1656 painting in a museum, by a leading artist of the time.",
         ["What is Las Meninas?"]),
        ("The Kiss", "The Kiss is an oil painting by a painter who was in his golden period.", []),
        ("Joan Smith", "Joan Smith is an American. She was born in Ohio.", ["Where was Joan Smith born?"]),
        ("The Cars", "The Cars were an American rock band from Boston.", ["What were The Cars?"]),
        ("Trade union", "Trade union is a group of workers. A trade union may strike.", ["What is trade union?"]),
        ("Emma", "Emma is a novel. It was first published in December 1815.",
         ["What is Emma?", "When was Emma published?"]),
        ("Emma (novel)", "Emma was written by Jane Austen in Hampshire.", ["Who wrote Emma?"]),
        ("Kiln Bridge", "Kiln Bridge was designed by Ann Lee.", ["Who designed Kiln Bridge?"]),
        ("Oslo", "Oslo is located in Norway. It has a population of 700,000.",
         ["Where is Oslo located?", "What is the population of Oslo?"]),
        ("Oslo", "The city of Oslo is old. People say that Oslo was founded in 1048.", []),
    ],
)  # fmt: skip
def test_what_an_article_is_asked(title: str, text: str, questions: list[str]):
    assert asked(title, text) == questions


def test_an_answer_is_a_sentence_of_the_article_with_its_subject():
    text = "Emma is a novel. It was first published in December 1815."
    assert [one.answer for one in facts.about("Emma", text)] == [
        "Emma is a novel.", "Emma was first published in December 1815.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "page",
    [
        "Xanadu -- that he mean\nOf the pleasure dome that he told of in a poem that he had dreamt.",
        "appetite.\nAn instinct that was thoughtfully implanted as a solution to the labor question.",
        "living specimen of either.\nFreedom, as every schoolboy knows, once shrieked as a hero fell.",
        "splork!\nThe sound of coffee that hits the keyboard after it was forced out of the mouth.",
        "1. First\n2. The second of the two lines of a list is not what the first one means at all.",
        "backgammon\nSee bignum (sense 3), moby (sense 4), and pseudoprime for what this means.",
        "lower\nand so the sentence goes on from the page before, as it was cut in two by someone.",
        "an entry of far too many words here\nThe meaning of that is not what one would ask for by its head.",
        "short\nIt is short.",
    ],
)
def test_what_is_no_entry_is_not_asked_for(page: str):
    assert list(pairs.definitions([Document("d", page)], ORIGIN, 0)) == []


def test_a_word_is_explained_without_remarks_on_its_origin():
    page = "rehi\n[IRC, MUD] (rare) A greeting for those who come back to a channel after a while."
    for seed in range(6):
        (row,) = pairs.definitions([Document("d", page)], ORIGIN, seed)
        question, answer = (m["content"] for m in row["messages"])
        assert question in ("What does rehi mean?", "What is meant by rehi?", "Explain rehi.")
        assert answer == "A greeting for those who come back to a channel after a while."
        assert (row["source"], row["licence"], row["made"]) == (*ORIGIN, "rule")


def test_notes_are_written_as_the_device_writes_them():
    notes = [pairs.Labelled("a.md", "One. "), pairs.Labelled("b.md", "Two.")]
    passages = [Passage(document="x", place=n.place, text=n.text, score=1.0) for n in notes]
    device = expert_messages(Prompt(public="Why?", full="Why?"), [], passages)
    assert pairs.with_notes(notes, "Why?", "So.") == [*device, {"role": "assistant", "content": "So."}]
    assert pairs.NOTES_HEADING == NOTES_HEADING


def articles(english) -> list[Document]:
    return [
        Document(f"Place {i}", f"Place {i} is a town of some kind. It was founded in {1100 + i}. {english(i, 9)}")
        for i in range(300)
    ]


def test_most_notes_hold_the_answer_and_the_others_say_that_they_do_not(english, monkeypatch):
    monkeypatch.setattr(pairs, "UNKNOWN_SHARE", 0.08)  # enough of them to count
    rows = list(pairs.from_articles(articles(english), ORIGIN, 0))
    noted = [row["messages"] for row in rows if len(row["messages"]) == 3]
    plain = [row["messages"] for row in rows if len(row["messages"]) == 2]
    assert 0.25 < len(plain) / 300 < 0.45
    unknown = 0
    for system, user, assistant in noted:
        name = re.search(r"Place \d+", user["content"])[0]
        held = f"]: {name}:".replace("]: ", "] ") in system["content"]
        assert held == (assistant["content"] != pairs.UNKNOWN)
        unknown += not held
        assert system["content"].startswith(pairs.NOTES_HEADING + "\n\n[1] ")
        assert len(system["content"]) < 2400 + 700
    assert 0.03 < unknown / len(noted) < 0.15
    places = Counter(re.search(rf"\[(\d)\] {re.search(r'Place [0-9]+', user['content'])[0]}:", system["content"])[1]
                     for system, user, said in noted if said["content"] != pairs.UNKNOWN)  # fmt: skip
    assert len(places) > 2


def test_pairs_follow_from_the_seed(english):
    first = list(pairs.from_articles(articles(english), ORIGIN, 0))
    assert first == list(pairs.from_articles(articles(english), ORIGIN, 0))
    assert first != list(pairs.from_articles(articles(english), ORIGIN, 1))


def test_a_note_holds_no_two_facts_of_one_kind():
    rng = np.random.default_rng(0)
    for _ in range(100):
        note = facts.invented_note(rng)
        assert 2 <= len(note.asked) <= 6
        assert len({ways for ways, _ in note.asked}) == len(note.asked)


def test_yes_and_no_are_followed_by_the_sentence_that_says_so(english):
    passage = f"{english(1, 3)} The harbour of Kiln lies by the old river and not by the sea. {english(2, 3)}"
    yes = Question("is the harbour of kiln by the old river", "yes", "Kiln", passage)
    nothing = Question("do penguins fly over greenland", "no", "Kiln", passage)
    rows = list(pairs.from_questions([yes, nothing], [], ("boolq", "x"), "boolq", 0))
    assert len(rows) == 1
    system, user, assistant = (m["content"] for m in rows[0]["messages"])
    assert user == "Is the harbour of kiln by the old river?"
    assert assistant == "Yes. The harbour of Kiln lies by the old river and not by the sea."
    assert assistant[5:] in system
    assert rows[0]["dataset"] == "boolq"
    assert "made" not in rows[0]


def test_passages_without_titles_stand_beside_others_but_not_beside_themselves(english, monkeypatch):
    monkeypatch.setattr(pairs, "UNKNOWN_SHARE", 0.08)
    stories = [Document("", english(i, 4)) for i in range(40)]
    questions = [Question(f"Who came in {i}?", f"{one.text.split()[1]} {one.text[-9:]}", "", one.text)
                 for i, one in enumerate(stories)]  # fmt: skip
    rows = list(pairs.from_questions(questions * 3, stories, ("stories", "x"), "stories", 0))
    systems = [row["messages"][0]["content"] for row in rows]
    assert sum("[2]" in system for system in systems) > 100
    known = [row["messages"][2]["content"] != pairs.UNKNOWN for row in rows]
    assert 2 <= known.count(False) <= 25
    for system, one, held in zip(systems, stories * 3, known, strict=True):
        assert system.count(one.text[:60]) == held


def test_questions_without_passages():
    (row,) = pairs.short_answers([Question("who wrote emma", "jane austen", "", "")], ("questions", "x"), "questions")
    assert [m["content"] for m in row["messages"]] == ["Who wrote emma?", "Jane austen."]
    assert json.loads(json.dumps(row)) == row


@settings(max_examples=60)
@given(st.lists(st.text("abc DEF.", min_size=1, max_size=400), max_size=9), st.text("abc ", max_size=20))
def test_a_window_is_a_short_part_of_the_passage(parts: list[str], question: str):
    passage = " ".join(parts)
    found = pairs.window(Question(question, "abc", "", passage))
    assert len(found) <= 620
    assert set(found.split()) <= {w[:n] for w in passage.split() for n in range(len(w) + 1)} | {""}


def test_a_window_holds_the_answer(english):
    passage = f"{english(1, 20)} The kiln was built in Hexley by Amara. {english(2, 20)}"
    assert "The kiln was built in Hexley" in pairs.window(
        Question("Where was the kiln built?", "In Hexley.", "", passage)
    )


@given(st.text("ab .?!\n", min_size=1, max_size=30).filter(lambda t: t.strip(" ?\n")), st.sampled_from("?."))
def test_a_sentence_has_an_end(text: str, end: str):
    made = pairs.sentence_case(text, end)
    assert made[-1] in ".?!"
    assert not made[0].islower()
