"""Does the ensemble help? Core alone, expert alone and both, by diffusion and by the autoregressive twin.

For every question of the sample folder: S1 of the reference answer (nats a token), and a greedy answer scored by exact
match, by whether the reference stands in it, and by token F1. For held-out documents: S1 of stretches that follow a
prompt all members see, the expert with passages of other documents before it. The core never sees a passage.

One chain of passes gives all three systems, since each pass returns the members' logits beside the fused ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ssd_client.prompt import NOTES_HEADING, Passage
from ssd_diffusion import autoregressive, sampler
from ssd_diffusion.ensemble import Ensemble, EnsembleStep
from ssd_diffusion.keys import noise_key
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.window import Window
from ssd_kernels.combine import log_softmax
from ssd_kernels.types import I32, TokenSets

from ssd_bench.pair import DECODERS, SYSTEMS, DecoderKind, Pair, System
from ssd_bench.records import Answer, ItemKind, Record, RecordFile

PROMPT_TOKENS, PASSAGE_TOKENS = 32, 48
_EMPTY = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Question:
    """A question about the documents.

    Attributes:
        id: its name.
        question: as a user asks it.
        answer: the reference.
        accepted: every answer that counts, the reference first.
        document: path of the document that says so; may be empty.
    """

    id: str
    question: str
    answer: str
    accepted: tuple[str, ...]
    document: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A held-out document: its path in the folder, and its text."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """A piece of a held-out document.

    Attributes:
        id: "PATH#NUMBER".
        path: of the document.
        prompt: ids that all members see [PROMPT_TOKENS].
        tokens: ids to score [PASSAGE_TOKENS].
    """

    id: str
    path: str
    prompt: I32
    tokens: I32


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    Attributes:
        seed: of the noise (greedy answers draw nothing).
        max_tokens: longest answer.
        decoders: which to compare.
    """

    seed: int = 0
    max_tokens: int = 24
    decoders: tuple[DecoderKind, ...] = DECODERS


def measure(
    pair: Pair,
    questions: Sequence[Question],
    stretches: Sequence[Stretch],
    settings: Settings,
    records: RecordFile,
    *,
    advance: Callable[[], None],
    until: float = float("inf"),
) -> None:
    """Measure every item that the records do not hold yet, questions and stretches in turn.

    Args:
        pair: core and expert.
        questions: with their accepted answers.
        stretches: of held-out documents.
        settings: how.
        records: where results go.
        advance: called after every item and decoder.
        until: `time.monotonic()` after which no new item is begun.
    """
    for item in _in_turn(questions, stretches):
        for decoder in settings.decoders:
            kind: ItemKind = "question" if isinstance(item, Question) else "document"
            if not records.has(item.id, kind, decoder):
                if time.monotonic() >= until:
                    return
                if isinstance(item, Question):
                    records.add(_question(pair, item, decoder, settings))
                else:
                    records.add(_stretch(pair, item, decoder, settings))
            advance()


def stretches_of(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[Stretch]:
    """All whole stretches of the documents, one after the other without overlap; none of a very short document."""
    size = PROMPT_TOKENS + PASSAGE_TOKENS
    found = []
    for document in documents:
        ids = tokenizer.encode(document.text)
        for i, start in enumerate(range(0, len(ids) - size + 1, size)):
            prompt, tokens = ids[start : start + PROMPT_TOKENS], ids[start + PROMPT_TOKENS : start + size]
            found.append(Stretch(f"{document.path}#{i}", document.path, prompt, tokens))
    return found


def reference_nats(
    pair: Pair, core_ids: I32, expert_ids: I32, tokens: I32, decoder: DecoderKind, key: int
) -> dict[System, float]:
    """Minus the log-probability of the tokens by the chain rule (S1), for each system, in one chain of passes."""
    total = dict.fromkeys(SYSTEMS, 0.0)
    with pair.open("ensemble", core_ids, expert_ids) as ensemble:
        for i, token in enumerate(tokens.tolist()):
            step = _first_position(ensemble, i, tokens[i - 1 : i] if i else _EMPTY, decoder, key)
            if step.core is None or step.private is None:
                raise AssertionError("both members answer every pass in this process")
            for system, row in zip(SYSTEMS, (step.core, step.private, step.fused), strict=True):
                total[system] -= float(log_softmax(row[:1])[0, token])
    return total


def _first_position(ensemble: Ensemble, i: int, committed: I32, decoder: DecoderKind, key: int) -> EnsembleStep:
    if decoder == "ar":
        return ensemble.next(committed)
    return ensemble.step(Window(i, i, 0, np.ones(1, np.float32), TokenSets.empty(1), key), committed)


def write(
    pair: Pair, system: System, core_ids: I32, expert_ids: I32, decoder: DecoderKind, settings: Settings
) -> Answer:
    """A greedy answer of one system."""
    started, params = time.monotonic(), pair.params(decoder, max_tokens=settings.max_tokens, projection="greedy")
    with pair.open(system, core_ids, expert_ids) as ensemble:
        if decoder == "ar":
            events = list(autoregressive.decode(ensemble, params, draw_key=0))
        else:
            events = list(sampler.denoise(ensemble, params, noise_key=noise_key(settings.seed), draw_key=0))
    ids = [int(token) for event in events for token in event.committed]
    text = pair.tokenizer.decode([token for token in ids if token not in params.eos_ids])
    return Answer(text.strip(), len(ids), len(events), round(time.monotonic() - started, 3))


def _question(pair: Pair, item: Question, decoder: DecoderKind, settings: Settings) -> Record:
    tokens = pair.tokenizer.encode(item.answer)
    room = max(settings.max_tokens, len(tokens))
    contexts = pair.contexts(item.question, answer_room=room)
    core_ids, expert_ids = contexts.core_ids, contexts.expert_ids
    nats = reference_nats(pair, core_ids, expert_ids, tokens, decoder, noise_key(settings.seed))
    answers = {system: write(pair, system, core_ids, expert_ids, decoder, settings) for system in SYSTEMS}
    return Record(item.id, "question", decoder, len(tokens), nats, item.accepted, answers)


def _stretch(pair: Pair, item: Stretch, decoder: DecoderKind, settings: Settings) -> Record:
    """S1 of a stretch; the expert sees passages of other documents before it."""
    notes = [p for p in pair.retrieve(pair.tokenizer.decode(item.prompt)) if p.document != item.path]
    expert_ids = with_notes(pair.tokenizer, notes, item.prompt, room=pair.expert.spec.max_context - len(item.tokens))
    nats = reference_nats(pair, item.prompt, expert_ids, item.tokens, decoder, noise_key(settings.seed))
    return Record(item.id, "document", decoder, len(item.tokens), nats)


def with_notes(tokenizer: Tokenizer, passages: Sequence[Passage], prompt: I32, *, room: int) -> I32:
    """The prompt after as many passages as leave the whole within `room` tokens. [n]"""
    kept = [f"{p.title}\n{p.text.strip()}" for p in passages]
    while kept:
        before = tokenizer.encode("\n\n".join([NOTES_HEADING, *kept]) + "\n\n")
        if len(before) + len(prompt) <= room:
            return np.concatenate([before, prompt])
        kept.pop()
    return prompt


def _in_turn(questions: Sequence[Question], stretches: Sequence[Stretch]) -> Iterator[Question | Stretch]:
    """Questions with the stretches spread evenly among them, so that a run cut short has some of both."""
    share, due = len(stretches) / max(1, len(questions)), 0.0
    left = iter(stretches)
    for question in questions:
        yield question
        due += share
        while due >= 1:
            due -= 1
            item = next(left, None)
            if item is not None:
                yield item
    yield from left
