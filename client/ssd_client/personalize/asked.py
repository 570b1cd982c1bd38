"""Questions by rule about the person's own documents, among the passages that the index finds for them.

An expert that has only continued its documents must still find, at answer time, one sentence among several passages.
It learns that on what it may learn from (`asked_pairs`), where no passage of a held-out unit is asked about or shown;
what is held out is asked about to choose how it answers (`asked_stretches`). Questions are made of sentences and of
their typed parts (`asking` and `spans` of ssd_diffusion.training), the notes are what retrieval shows for such a
question, in the form of an answer's context. Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training import asking, spans
from ssd_diffusion.training.asking import Asked
from ssd_diffusion.training.chats import conversation, end_of_answer
from ssd_diffusion.training.data import Pair
from ssd_diffusion.training.reading import Part, sentences_of_lines, turns

from ssd_client.personalize.corpus import Unit
from ssd_client.personalize.weights import Stretch
from ssd_client.prompt import Passage, Prompt, expert_messages

Find = Callable[[str, int], Sequence[Passage]]
"""(question, most passages) -> passages, best first."""

NOTES = 4
_MOST_TURNS = 6
_MOST_OF_A_PASSAGE = 3  # questions that choose lambda and alpha
_MOST_CONVERSATIONS = 400  # more than the time of a run lets an expert read
_RULES = (asking.about, spans.about)
_SPARE = 4  # passages that may fall away as held out


def asked_pairs(
    units: Sequence[Unit], passages: Iterable[Passage], find: Find, tokenizer: Tokenizer, seed: int
) -> list[Pair]:
    """Conversations about what the units hold; none where no sentence is plain enough to be asked about.

    Args:
        units: what may be learned from; whatever else passages hold is left out.
        passages: of all documents, as the index has them.
        find: the retrieval of answers.
        tokenizer: with the template of chats.
        seed: of every choice.
    """
    learned = _inside(units)
    own = [passage for passage in passages if learned(passage)]
    rng = np.random.default_rng([seed, 3])
    pairs: list[Pair] = []
    for i in rng.permutation(len(own)):
        passage = own[int(i)]
        first = turns(rng, [_part(passage)], 1, _RULES)
        if not first:
            continue
        found = [one for one in find(first[0].question, NOTES + _SPARE) if learned(one)][:NOTES]
        if all(one.text != passage.text for one in found):
            found = [*found[: NOTES - 1], passage]
        asked = turns(rng, [_part(one) for one in found], _MOST_TURNS, _RULES)
        if asked:
            pairs.append(conversation(_messages(found, asked), tokenizer))
        if len(pairs) == _MOST_CONVERSATIONS:
            break
    return pairs


def asked_stretches(
    units: Sequence[Unit], passages: Iterable[Passage], find: Find, tokenizer: Tokenizer, seed: int, tokens: int
) -> list[Stretch]:
    """Questions about what the units hold, each beside the notes that an answer would be given, and its answer.

    Args:
        units: what is asked about.
        passages: of all documents, as the index has them.
        find: the retrieval of answers, of all documents.
        tokenizer: with the template of chats.
        seed: of every choice.
        tokens: of answers, after which no more is asked.
    """
    held = _inside(units)
    own = [passage for passage in passages if held(passage)]
    rng = np.random.default_rng([seed, 4])
    found: list[Stretch] = []
    for i in rng.permutation(len(own)):
        for one in turns(rng, [_part(own[int(i)])], _MOST_OF_A_PASSAGE, _RULES):
            if sum(len(stretch.target) for stretch in found) >= tokens:
                return found
            prompt = Prompt(one.question, one.question)
            notes = find(one.question, NOTES)
            answer = np.append(tokenizer.encode(one.answer), end_of_answer(tokenizer)).astype(np.int32)
            public = tokenizer.chat(expert_messages(prompt, (), ()))
            private = tokenizer.chat(expert_messages(prompt, (), notes)) if notes else public
            found.append(Stretch(public, private, answer))
    return found


def _inside(units: Sequence[Unit]) -> Callable[[Passage], bool]:
    """Whether a passage stands in one of the units."""
    texts: dict[str, list[str]] = {}
    for unit in units:
        texts.setdefault(unit.path, []).append(unit.text)
    return lambda passage: any(passage.text in text for text in texts.get(passage.document, ()))


def _part(passage: Passage) -> Part:
    return Part(passage.place, tuple(sentences_of_lines(passage.text)))


def _messages(notes: Sequence[Passage], asked: Sequence[Asked]) -> list[dict[str, str]]:
    """The conversation, its notes as the expert is shown them when it answers."""
    messages = expert_messages(Prompt(asked[0].question, asked[0].question), (), notes)[:-1]
    for one in asked:
        messages += [{"role": "user", "content": one.question}, {"role": "assistant", "content": one.answer}]
    return messages
