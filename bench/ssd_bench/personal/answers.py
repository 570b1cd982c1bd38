"""Answers to questions about the documents, system by system, and whether they hold what is accepted.

All systems that read passages read the same ones. The base is the expert before personalization: with passages it is
retrieval in the prompt. The best sentence is retrieval with no model, and the passages as a whole are what a perfect
reader of them could find. Knows records and engines; nothing about
intervals or reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ssd_client.prompt import Contexts, build_contexts, parse_prompt
from ssd_diffusion.ensemble import Weights
from ssd_diffusion.models.engine import TorchEngine

from ssd_bench.items import Question
from ssd_bench.lines import JsonRecord, LineFile
from ssd_bench.pair import DecoderKind
from ssd_bench.personal.experts import Model, Trio
from ssd_bench.personal.greedy import Members, Voice, write
from ssd_bench.personal.sentences import Sentences
from ssd_bench.text import contains

KEY = ("question", "system", "how")
BATCH, WIDTH = 16, 4
"""Answers at once, and rows of a pass; only rows of about one length share a pass."""


@dataclass(frozen=True, slots=True)
class System:
    """Who answers.

    Attributes:
        name: in records and reports.
        core: the core takes part.
        expert: the model on the device, if any takes part.
        passages: whether it reads passages.
        decoder: diffusion or its twin.
    """

    name: str
    core: bool = False
    expert: Literal["before", "after"] | None = None
    passages: bool = True
    decoder: DecoderKind = "diffusion"

    @property
    def together(self) -> bool:
        """Whether lambda and alpha matter to it."""
        return self.core and self.expert is not None


ENSEMBLE, TWIN = "expert + core", "expert + core, autoregressive"
CORE, EXPERT, BASE = "core alone", "expert alone", "base with passages"
SENTENCE, PASSAGES = "best sentence", "in the passages shown"
WRITERS = (
    System(ENSEMBLE, core=True, expert="after"),
    System(CORE, core=True, passages=False),
    System("expert alone, no passages", expert="after", passages=False),
    System(EXPERT, expert="after"),
    System(TWIN, core=True, expert="after", decoder="ar"),
    System(BASE, expert="before"),
)
SYSTEMS = (*(system.name for system in WRITERS), SENTENCE, PASSAGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How answers are written.

    Attributes:
        weights: lambda and alpha of the ensemble, by decoder.
        tokens: longest answer.
        passages: most passages.
    """

    weights: dict[DecoderKind, Weights]
    tokens: int
    passages: int

    @property
    def reads(self) -> str:
        """What is read, as a record has it."""
        return f"{self.passages} passages"

    def how(self, system: System) -> str:
        """All that decides an answer of the system beside the models, as a record has it."""
        weights = self.weights[system.decoder]
        told = [f"{self.tokens} tokens"]
        told += [self.reads] if system.passages else []
        told += [f"lambda {weights.lam:g}", f"alpha {weights.alpha:g}"] if system.together else []
        return ", ".join(told)


def measure(
    trio: Trio,
    questions: Sequence[Question],
    sentences: Sentences,
    settings: Settings,
    records: LineFile,
    *,
    advance: Callable[[], None],
    until: float,
) -> None:
    """Answer what the records do not hold yet; all systems answer a batch before the next one is begun.

    A record is {question, system, how, asked, reference, said, right}.
    """
    engines = _Engines(trio)
    lengths = {q.id: len(_contexts(trio, WRITERS[0], q, settings).expert_ids) for q in questions}
    ordered = sorted(questions, key=lambda q: (lengths[q.id], q.id))
    for first in range(0, len(ordered), BATCH):
        batch = ordered[first : first + BATCH]
        for system in WRITERS:
            how = settings.how(system)
            waiting = [q for q in batch if records.get(q.id, system.name, how) is None]
            if waiting and time.monotonic() >= until:
                return
            said = _answers(trio, engines, system, waiting, settings) if waiting else []
            records.add(_record(q, system.name, how, text) for q, text in zip(waiting, said, strict=True))
            for _ in batch:
                advance()
        for question in batch:
            if records.get(question.id, SENTENCE, "") is None:
                records.add([_record(question, SENTENCE, "", sentences.best(question.question))])
            if records.get(question.id, PASSAGES, settings.reads) is None:
                shown = trio.made.retrieve(question.question, settings.passages)
                together = "\n\n".join(passage.text for passage in shown)
                records.add([_record(question, PASSAGES, settings.reads, together)])
            advance()
            advance()


def found_of(questions: Sequence[Question], settings: Settings, records: LineFile) -> list[dict[str, JsonRecord]]:
    """By system, the records of every question that all systems have answered."""
    found = []
    for question in questions:
        rows = {system.name: records.get(question.id, system.name, settings.how(system)) for system in WRITERS}
        rows[SENTENCE] = records.get(question.id, SENTENCE, "")
        rows[PASSAGES] = records.get(question.id, PASSAGES, settings.reads)
        kept = {name: row for name, row in rows.items() if row is not None}
        if len(kept) == len(SYSTEMS):
            found.append(kept)
    return found


def _record(question: Question, system: str, how: str, said: str) -> JsonRecord:
    return {
        "question": question.id, "system": system, "how": how, "asked": question.question,
        "reference": question.answer, "said": said, "right": contains(said, question.accepted),
    }  # fmt: skip


class _Engines:
    """An engine for every model, made when it is first needed."""

    def __init__(self, trio: Trio) -> None:
        self._trio = trio
        self._made: dict[int, TorchEngine] = {}

    def of(self, model: Model) -> TorchEngine:
        """The engine of a model, with slots for both contexts of a batch."""
        if id(model) not in self._made:
            self._made[id(model)] = model.engine(slots=2 * BATCH, batch_width=WIDTH)
        return self._made[id(model)]


def _answers(
    trio: Trio, engines: _Engines, system: System, questions: Sequence[Question], settings: Settings
) -> list[str]:
    contexts = [_contexts(trio, system, question, settings) for question in questions]
    weights = settings.weights[system.decoder] if system.together else Weights(lam=1.0)
    expert = {None: None, "before": trio.before, "after": trio.after}[system.expert]
    core = private = public = None
    if system.core:
        core = Voice(engines.of(trio.core), [one.core_ids for one in contexts])
    if expert is not None:
        private = Voice(engines.of(expert), [one.expert_ids for one in contexts])
        if system.together and weights.alpha > 0:
            public = Voice(engines.of(expert), [one.core_ids for one in contexts])
    eos = {*trio.core.spec.eos_ids, *trio.before.spec.eos_ids}
    written = write(
        Members(core, private, public, weights),
        decoder=system.decoder, max_tokens=settings.tokens, eos_ids=sorted(eos),
    )  # fmt: skip
    return [trio.tokenizer.decode(ids).strip() for ids in written]


def _contexts(trio: Trio, system: System, question: Question, settings: Settings) -> Contexts:
    found = trio.made.retrieve(question.question, settings.passages) if system.passages else []
    return build_contexts(
        trio.tokenizer, parse_prompt(question.question), private=(), passages=found,
        expert_room=trio.before.spec.max_context - settings.tokens,
        core_room=trio.core.spec.max_context - settings.tokens,
    )  # fmt: skip
