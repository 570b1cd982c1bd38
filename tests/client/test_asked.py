"""Questions by rule about a person's documents: answered by a note, shown as at answer time, nothing held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from ssd_client.personalize.asked import NOTES, asked_pairs, asked_stretches
from ssd_client.personalize.corpus import ASKED_LENGTH, Corpus, Unit, training_rows
from ssd_client.personalize.options import PersonalizeOptions
from ssd_client.prompt import Passage, build_contexts, parse_prompt
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training.chats import end_of_answer
from ssd_diffusion.training.data import InstructionRows, MixedRows

FACTS = {
    "boats": "The grey boat is kept in the northern shed. Ms Orrin is the master of the long slip.",
    "keys": "The spare key is under the third pot. The old lock was changed in March 2021.",
    "pumps": "The yellow pump was bought in 1998. The drain is emptied by Tobias Penn.",
    "oars": "The short oars are stored in the loft. The varnish was mixed in Ennerby.",
    "sails": "The brown sail was sewn by Wren Harlow. The canvas is dried in the attic.",
    "ropes": "The tarred rope is coiled in the cellar. The winch was oiled in June 2024.",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tiny(tmp_path_factory.mktemp("base") / "tiny"))


def passage(name: str) -> Passage:
    return Passage(f"{name}.md", name.title(), FACTS[name], 0.0)


def unit(name: str, tokenizer: Tokenizer) -> Unit:
    return Unit(f"{name}.md", name.title(), f"{FACTS[name]}\n\nmore", tokenizer.encode(FACTS[name]))


def in_order(_question: str, most: int) -> Sequence[Passage]:
    return [passage(name) for name in FACTS][:most]


def test_a_note_answers_every_question_and_no_held_out_passage_is_shown(tokenizer: Tokenizer) -> None:
    learned = [unit(name, tokenizer) for name in FACTS if name != "keys"]
    pairs = asked_pairs(learned, map(passage, FACTS), in_order, tokenizer, seed=0)
    assert len(pairs) == len(learned)
    for pair in pairs:
        prompt = tokenizer.decode(list(pair.prompt), special=True)
        assert FACTS["keys"] not in prompt
        assert f"[{NOTES}]" in prompt
        assert f"[{NOTES + 1}]" not in prompt
        for turn in (pair, *pair.later):
            assert tokenizer.decode(list(turn.response)).rstrip(".") in prompt


def test_the_passage_that_is_asked_about_is_shown_even_where_retrieval_misses_it(tokenizer: Tokenizer) -> None:
    def others(_question: str, most: int) -> Sequence[Passage]:
        return [passage("boats"), passage("pumps"), passage("oars"), passage("sails"), passage("ropes")][:most]

    pairs = asked_pairs([unit(n, tokenizer) for n in FACTS], [passage("keys")], others, tokenizer, seed=0)
    assert FACTS["keys"] in tokenizer.decode(list(pairs[0].prompt), special=True)


def test_the_first_question_stands_as_it_would_be_asked(tokenizer: Tokenizer) -> None:
    units = [unit(name, tokenizer) for name in FACTS]
    pair = asked_pairs(units, map(passage, FACTS), in_order, tokenizer, seed=1)[0]
    question = tokenizer.decode(list(pair.prompt), special=True).splitlines()
    asked = next(line for line in reversed(question) if line.endswith("?") or "?" in line)
    asked = asked.split("?")[0].split(">")[-1].strip() + "?"
    contexts = build_contexts(
        tokenizer, parse_prompt(asked), private=(), passages=in_order("", NOTES), expert_room=4000, core_room=None
    )
    assert list(pair.prompt)[: len(contexts.expert_ids)] == list(contexts.expert_ids)


def test_the_same_seed_asks_the_same(tokenizer: Tokenizer) -> None:
    units = [unit(name, tokenizer) for name in FACTS]
    first, again, other = (asked_pairs(units, map(passage, FACTS), in_order, tokenizer, seed=s) for s in (3, 3, 4))
    assert [list(p.prompt) for p in first] == [list(p.prompt) for p in again]
    assert [list(p.prompt) for p in first] != [list(p.prompt) for p in other]


def test_what_is_held_out_is_asked_about_as_an_answer_would_be_given(tokenizer: Tokenizer) -> None:
    """The expert's context is that of an answer, the core's holds the question alone, and answers end."""
    held = [unit("keys", tokenizer), unit("oars", tokenizer)]
    found = asked_stretches(held, [passage(name) for name in FACTS], in_order, tokenizer, 0, 1000)
    assert len(found) == 2
    for one in found:
        answer = tokenizer.decode(one.target[:-1].tolist())
        assert answer in FACTS["keys"] + FACTS["oars"]
        assert one.target[-1] == end_of_answer(tokenizer)
        public = tokenizer.decode(one.public.tolist(), special=True)
        assert not any(fact in public for fact in FACTS.values())
        asked = public.split("?")[0].split(">")[-1].split("\n")[-1].strip() + "?"
        contexts = build_contexts(
            tokenizer, parse_prompt(asked), private=(), passages=in_order("", NOTES), expert_room=4000, core_room=None
        )
        assert one.private.tolist() == contexts.expert_ids.tolist()
        assert one.public.tolist() == contexts.core_ids.tolist()


def test_no_more_is_asked_than_wanted_and_without_passages_both_contexts_are_one(tokenizer: Tokenizer) -> None:
    every = [unit(name, tokenizer) for name in FACTS]
    few = asked_stretches(every, map(passage, FACTS), lambda _q, _n: [], tokenizer, 0, 30)
    assert sum(len(one.target) for one in few[:-1]) < 30 <= sum(len(one.target) for one in few)
    assert all(one.private is one.public for one in few)
    assert asked_stretches([], map(passage, FACTS), in_order, tokenizer, 0, 30) == []


def test_what_cannot_be_asked_about_is_learned_without_questions(tokenizer: Tokenizer) -> None:
    units = [Unit("list.md", "List", "one, two", tokenizer.encode("one, two"))]
    listed = Passage("list.md", "List", "one, two", 0.0)
    assert asked_pairs(units, [listed], in_order, tokenizer, seed=0) == []


def test_their_share_of_rows_goes_to_the_others_where_there_are_none(tmp_path: Path, tokenizer: Tokenizer) -> None:
    units = tuple(unit(name, tokenizer) for name in FACTS)
    corpus = Corpus(train=units, select=(), report=())
    options = PersonalizeOptions(folder=tmp_path, name="mine", block=4)
    pairs = asked_pairs(units, map(passage, FACTS), in_order, tokenizer, seed=0)
    rows = [training_rows(corpus, tokenizer, options, asked) for asked in (pairs, ())]
    kinds = []
    for one in rows:
        assert isinstance(one, MixedRows)
        kinds.append([type(source) for source in one.sources].count(InstructionRows))
    assert kinds[0] == kinds[1] + 1
    longest = max(rows[0].batch(step).tokens.shape[1] for step in range(40))
    assert options.length < longest <= ASKED_LENGTH
