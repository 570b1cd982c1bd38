"""Likelihood of documents that the expert has not seen: every member and every weighing of them, in nats.

A record holds a stretch of a document and what its tokens cost under every (lambda, alpha), by each measure of
`reading`. So the weights can be chosen afterwards on the validation part, and nothing is measured twice. The core reads
the stretch's own beginning; the expert reads passages of the documents it learned from before it, and once more without
them for the contrast. Knows records; nothing about reports.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from ssd_client.documents import Document
from ssd_client.personalize import weights
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import I32

from ssd_bench.items import Stretch, stretches_of, with_notes
from ssd_bench.lines import JsonRecord, LineFile
from ssd_bench.personal.experts import Trio
from ssd_bench.personal.reading import LEVELS, MEASURES, Measure, Reading, truth

KEY = ("part", "stretch")
NOTES = 2
"""Passages before the expert's text, as when its lambda and alpha are chosen."""
CHOOSING: tuple[Measure, ...] = ("s1", "next")
"""What weights are chosen by; the validation part is not measured by anything else."""
Part = Literal["validation", "test"]
CORE, EXPERT = (0.0, 0.0), weights.ALONE
GRID = tuple((lam, alpha) for lam in weights.LAMBDAS if lam > 0 for alpha in weights.ALPHAS)
"""Every (lambda, alpha) of an ensemble."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A stretch to measure, and the part that it belongs to."""

    part: Part
    stretch: Stretch


def name_of(pair: tuple[float, float]) -> str:
    """A (lambda, alpha) as a record has it."""
    return f"{pair[0]:g},{pair[1]:g}"


def items(tokenizer: Tokenizer, documents: Sequence[Document], part: Part, *, limit: int, seed: int) -> list[Item]:
    """Stretches of a part, one of each document and then a second one, until there are enough."""
    of_each = []
    for document in documents:
        found = stretches_of(tokenizer, document.path, document.text)
        order = np.random.default_rng([seed, len(found)]).permutation(len(found)).tolist()
        of_each.append([found[i] for i in order])
    turns = [one[turn] for turn in range(max(map(len, of_each), default=0)) for one in of_each if turn < len(one)]
    return [Item(part, stretch) for stretch in turns[:limit]]


def measure(
    trio: Trio, chosen: Sequence[Item], records: LineFile, *, seed: int, advance: Callable[[], None], until: float
) -> None:
    """Measure what the records do not hold yet; `until` is on the clock of `time.monotonic`."""
    for item in chosen:
        if records.get(item.part, item.stretch.id) is None:
            if time.monotonic() >= until:
                return
            records.add([_record(trio, item, seed)])
        advance()


def found_of(chosen: Sequence[Item], records: LineFile) -> list[JsonRecord]:
    """The records of these stretches, as far as there are any."""
    rows = (records.get(item.part, item.stretch.id) for item in chosen)
    return [row for row in rows if row is not None]


def _record(trio: Trio, item: Item, seed: int) -> JsonRecord:
    stretch = item.stretch
    notes = trio.made.retrieve(trio.tokenizer.decode(stretch.prompt), NOTES)
    room = min(trio.after.spec.max_context, trio.before.spec.max_context) - len(stretch.tokens)
    private = with_notes(trio.tokenizer, notes, stretch.prompt, room=room)
    found: dict[str, dict[str, float]] = {}
    measures = MEASURES if item.part == "test" else CHOOSING
    for measure, nats in _nats(trio, stretch, private, measures, seed):
        found[measure] = nats
    return {
        "part": item.part, "stretch": stretch.id, "document": stretch.path, "tokens": len(stretch.tokens),
        "bytes": size_bytes(trio.tokenizer, stretch), "nats": found,
    }  # fmt: skip


def _nats(
    trio: Trio, stretch: Stretch, private: I32, measures: Sequence[Measure], seed: int
) -> Iterator[tuple[Measure, dict[str, float]]]:
    """By measure, what the target costs under each weighing and member, summed over its tokens."""

    def read(model: Ssd2Model, context: I32) -> Reading:
        return Reading(model, context, stretch.tokens, seed)

    core, general = read(trio.core.reading, stretch.prompt), trio.core is trio.before
    plain = core if general else read(trio.before.reading, stretch.prompt)
    shown = private is not stretch.prompt
    before = read(trio.before.reading, private) if shown else plain
    public = read(trio.after.reading, stretch.prompt)
    after = read(trio.after.reading, private) if shown else public
    for measure in measures:
        target, per = truth(stretch.tokens, measure), len(LEVELS) if measure == "s2" else 1
        other = public.logits(measure) if shown else None
        every = [CORE, EXPERT, *GRID]
        fused = weights.of_truth(core.logits(measure), after.logits(measure), other, target, every)
        nats = {name_of(pair): -float(rows.sum()) / per for pair, rows in fused.items()}
        alone = {"before": before, "before, no passages": plain, "after, no passages": public}
        for name, reading in alone.items():
            rows = weights.of_truth(reading.logits(measure), reading.logits(measure), None, target, [CORE])
            nats[name] = -float(rows[CORE].sum()) / per
        yield measure, nats


def size_bytes(tokenizer: Tokenizer, stretch: Stretch) -> int:
    """UTF-8 bytes of the scored text."""
    before = len(tokenizer.decode(stretch.prompt, special=True).encode())
    both = np.concatenate([stretch.prompt, stretch.tokens])
    return max(1, len(tokenizer.decode(both, special=True).encode()) - before)
