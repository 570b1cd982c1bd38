"""Does the ensemble help? Core alone, expert alone and both, by diffusion and by the autoregressive twin.

For every question of the sample folder: S1 of the reference answer (nats a token), and a greedy answer scored by exact
match, by whether the reference stands in it, and by token F1. For every held-out document: S1 of a passage that follows
a prompt all members see, the expert with passages of other documents before it. The core never sees a passage.

One chain of passes gives all three systems, since each pass returns the members' logits beside the fused ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ssd_client.prompt import NOTES_HEADING
from ssd_diffusion import autoregressive, sampler
from ssd_diffusion.ensemble import Ensemble, EnsembleStep
from ssd_diffusion.keys import noise_key
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
    """

    id: str
    question: str
    answer: str
    accepted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A held-out document: its path in the folder, and its text."""

    path: str
    text: str


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
    documents: Sequence[Document],
    settings: Settings,
    records: RecordFile,
    *,
    advance: Callable[[], None],
    until: float = float("inf"),
) -> None:
    """Measure every item that the records do not hold yet, questions and documents in turn.

    Args:
        pair: core and expert.
        questions: with their accepted answers.
        documents: held-out ones.
        settings: how.
        records: where results go.
        advance: called after every item and decoder.
        until: `time.monotonic()` after which no new item is begun.
    """
    for item in _in_turn(questions, documents):
        for decoder in settings.decoders:
            kind: ItemKind = "question" if isinstance(item, Question) else "document"
            name = item.id if isinstance(item, Question) else item.path
            if not records.has(name, kind, decoder):
                if time.monotonic() >= until:
                    return
                if isinstance(item, Question):
                    records.add(_question(pair, item, decoder, settings))
                else:
                    found = _document(pair, item, decoder, settings)
                    if found is not None:
                        records.add(found)
            advance()


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


def _document(pair: Pair, item: Document, decoder: DecoderKind, settings: Settings) -> Record | None:
    """S1 of a passage from the middle of a document; None where the document is too short."""
    ids = pair.tokenizer.encode(item.text)
    if len(ids) < PROMPT_TOKENS + PASSAGE_TOKENS:
        return None
    start = (len(ids) - PROMPT_TOKENS - PASSAGE_TOKENS) // 2
    prompt = ids[start : start + PROMPT_TOKENS]
    tokens = ids[start + PROMPT_TOKENS : start + PROMPT_TOKENS + PASSAGE_TOKENS]
    notes = [p for p in pair.retrieve(pair.tokenizer.decode(prompt)) if not item.path.endswith(p.document)]
    expert_ids = _with_notes(pair, [f"{p.title}\n{p.text.strip()}" for p in notes], prompt, len(tokens))
    nats = reference_nats(pair, prompt, expert_ids, tokens, decoder, noise_key(settings.seed))
    return Record(item.path, "document", decoder, len(tokens), nats)


def _with_notes(pair: Pair, notes: Sequence[str], prompt: I32, room: int) -> I32:
    """The prompt after as many notes as the expert's window takes."""
    kept = list(notes)
    while kept:
        before = pair.tokenizer.encode("\n\n".join([NOTES_HEADING, *kept]) + "\n\n")
        if len(before) + len(prompt) + room <= pair.expert.spec.max_context:
            return np.concatenate([before, prompt])
        kept.pop()
    return prompt


def _in_turn(questions: Sequence[Question], documents: Sequence[Document]) -> Iterator[Question | Document]:
    """Questions with the documents spread evenly among them, so that a run cut short has some of both."""
    share, due = len(documents) / max(1, len(questions)), 0.0
    left = iter(documents)
    for question in questions:
        yield question
        due += share
        while due >= 1:
            due -= 1
            item = next(left, None)
            if item is not None:
                yield item
    yield from left
