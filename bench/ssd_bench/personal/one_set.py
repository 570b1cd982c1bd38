"""All parts of the suite on one set: what is measured, in which order, and what comes of it.

Knows the order of things and the names of records; the measurements are its neighbours in this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ssd_client.personalize.corpus import Corpus, build_corpus
from ssd_diffusion.ensemble import Weights

from ssd_bench.console import progress
from ssd_bench.folder import read_questions
from ssd_bench.items import Question
from ssd_bench.lines import JsonRecord, LineFile
from ssd_bench.personal import answers, asking, cloze, curve, figures, heldout, recall
from ssd_bench.personal.experts import Trio
from ssd_bench.personal.figures import BYTE, TOKEN, Choice, Pair
from ssd_bench.personal.results import Result
from ssd_bench.personal.sentences import Sentences
from ssd_bench.personal.sets import Source, Split
from ssd_bench.stats import RESAMPLES, Interval

PARTS = ("heldout", "cloze", "answers", "curve")
EXAMPLES = 5
_FEWER = 2
"""The validation part and the curve have that many times fewer items than the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of a set is measured, and how.

    Attributes:
        parts: which of PARTS.
        limit: stretches of the test part and hidden facts at most; half as many validate and make the curve.
        questions: made by rule, at most.
        tokens: longest answer.
        passages: most passages of an answer.
        seed: of every choice and of the noise.
        until: `time.monotonic()` after which nothing new is begun.
        records: folder of records.
        resamples: of the bootstrap.
    """

    parts: Sequence[str]
    limit: int
    questions: int
    tokens: int
    passages: int
    seed: int
    until: float
    records: Path
    resamples: int = RESAMPLES


@dataclass(frozen=True, slots=True)
class Found:
    """A set's result, and the records of its test part, to be pooled."""

    result: Result
    test: Sequence[JsonRecord] = ()
    ratios: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Set:
    """What all parts measure on."""

    source: Source
    split: Split
    trio: Trio
    corpus: Corpus
    plan: Plan

    def lines(self, kind: str, key: Sequence[str]) -> LineFile:
        """The file of one kind of records; it names all that a record of this set depends on."""
        about = {
            "set": self.split.digest, "core": self.trio.core.spec.model_id, "base": self.trio.before.spec.model_id,
            "expert": self.trio.made.card.data_fingerprint, "made": self.trio.made.card.created,
            "name": self.trio.made.card.name, "seed": self.plan.seed,
        }  # fmt: skip
        return LineFile(self.plan.records, f"{self.split.name}-{kind}", about, key)

    def stretches(self, part: heldout.Part, limit: int) -> list[heldout.Item]:
        """Stretches of a part."""
        documents = self.split.validation if part == "validation" else self.split.test
        return heldout.items(self.trio.tokenizer, documents, part, limit=limit, seed=self.plan.seed)

    def spans(self, limit: int) -> list[cloze.Span]:
        """Hidden facts of what the expert was trained on."""
        return cloze.spans(self.trio.tokenizer, self.corpus.train, limit=limit, seed=self.plan.seed)


def measure(source: Source, split: Split, trio: Trio, plan: Plan, work: Path) -> Found:
    """Measure what the records lack of the parts that are asked for, and sum all of it up.

    Args:
        source: the set as it was asked for.
        split: its documents.
        trio: core, base and expert.
        plan: how much.
        work: folder for what can be made again.

    Raises:
        ValueError: the questions of the set cannot be read, or ask about nothing that was learned from.
        ClientError, DiffusionError: a model or an index fails.
    """
    if not split.test:  # nothing was kept out: there is nothing to read that the expert has not
        plan = replace(plan, parts=[part for part in plan.parts if part not in ("heldout", "curve")])
    corpus = build_corpus(split.train, trio.tokenizer, work / f"tokens-{trio.core.spec.tokenizer_fingerprint[:16]}.npz")
    one = _Set(source, split, trio, corpus, plan)
    card = (trio.made.card.lam, trio.made.card.alpha if trio.made.card.lam > 0 else 0.0)
    documents = {
        "train": len(split.train), "validation": len(split.validation), "test": len(split.test),
        "left out": split.left_out,
    }  # fmt: skip
    choice, test, counts = _heldout(one, card)
    result = Result(
        name=split.name, documents=documents, minutes=trio.made.minutes, card=card, choice=choice, counts=counts
    )
    found = Found(result, test)
    if test:
        units = [figures.heldout(test, choice, card, unit, resamples=plan.resamples) for unit in (TOKEN, BYTE)]
        found = replace(
            found, result=replace(result, heldout=units[0], heldout_bytes=units[1]),
            ratios=figures.ratios(test, choice, resamples=plan.resamples),
        )  # fmt: skip
    for part, add in (("cloze", _cloze), ("answers", _answers), ("curve", _curve)):
        if part in plan.parts:
            found = replace(found, result=add(one, found.result))
    return found


def _heldout(one: _Set, card: Pair) -> tuple[Choice, list[JsonRecord], dict[str, tuple[int, int]]]:
    """The choice, the records of the test part and how many there are; without this part, what earlier runs left."""
    plan, records = one.plan, one.lines("heldout", heldout.KEY)
    parts: dict[heldout.Part, int] = {"validation": max(2, plan.limit // _FEWER), "test": plan.limit}
    chosen = {part: one.stretches(part, limit) for part, limit in parts.items()}
    if "heldout" in plan.parts:
        every = [*chosen["validation"], *chosen["test"]]
        with progress(f"{one.split.name}: kept documents", len(every)) as advance:
            heldout.measure(one.trio, every, records, seed=plan.seed, advance=advance, until=plan.until)
    rows = {part: heldout.found_of(items, records) for part, items in chosen.items()}
    whole = rows["validation"] if len(rows["validation"]) == len(chosen["validation"]) else []
    choice = figures.choose(whole, card)
    if "heldout" not in plan.parts:
        return choice, [], {}
    counts = {f"kept documents, {part}": (len(rows[part]), len(chosen[part])) for part in parts}
    return choice, rows["test"], counts


def _cloze(one: _Set, result: Result) -> Result:
    spans, records = one.spans(one.plan.limit), one.lines("cloze", recall.KEY)
    with progress(f"{one.split.name}: hidden facts", len(spans)) as advance:
        recall.measure(one.trio, spans, records, advance=advance, until=one.plan.until)
    rows = recall.found_of(spans, records)
    result = replace(result, counts={**result.counts, "hidden facts": (len(rows), len(spans))})
    if not rows:
        return result
    found, p_values = figures.cloze(rows, result.choice, resamples=one.plan.resamples)
    kinds = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row["filled"]["both"] for row in rows if row["kind"] == kind]
        kinds[kind] = (len(own), sum(f["before"] for f in own), sum(f["after"] for f in own))
    named = {f"cloze {name}": p for name, p in p_values.items()}
    return replace(result, cloze=found, kinds=kinds, p_values={**result.p_values, **named})


def _answers(one: _Set, result: Result) -> Result:
    plan, questions = one.plan, _questions(one)
    weights = Weights(lam=result.card[0], alpha=result.card[1])
    settings = answers.Settings(
        weights={"diffusion": weights, "ar": weights}, tokens=plan.tokens, passages=plan.passages
    )
    records = one.lines("answers", answers.KEY)
    with progress(f"{one.split.name}: answers", len(questions) * len(answers.SYSTEMS)) as advance:
        answers.measure(
            one.trio, questions, Sentences(one.split.train), settings, records, advance=advance, until=plan.until
        )
    rows = answers.found_of(questions, settings, records)
    result = replace(result, counts={**result.counts, "questions": (len(rows), len(questions))})
    if not rows:
        return result
    found, p_values = figures.answered(rows, resamples=plan.resamples)
    named = {f"answers {name}": p for name, p in p_values.items()}
    examples = [_example(row) for row in rows[:: max(1, len(rows) // EXAMPLES)][:EXAMPLES]]
    return replace(result, answers=found, examples=examples, p_values={**result.p_values, **named})


def _example(row: dict[str, JsonRecord]) -> dict[str, Any]:
    first = row[answers.ENSEMBLE]
    return {
        "question": first["asked"],
        "reference": first["reference"],
        **{name: r["said"] for name, r in row.items() if name != answers.PASSAGES},
    }


def _questions(one: _Set) -> list[Question]:
    """Questions that the learned documents answer: all of the set's own, else some by rule."""
    plan = one.plan
    if one.source.questions is None:
        return asking.questions(one.split.train, limit=plan.questions, seed=plan.seed)
    paths = {path for document in one.split.train for path in (document.path, document.path.split("#")[0])}
    every = read_questions(one.source.questions)
    kept = [q for q in every if not q.document or any(_ends(q.document, path) for path in paths)]
    if not kept:
        raise ValueError(
            f"no question in {one.source.questions} is about a document that {one.source.name!r} learned from; "
            "give questions whose `document` is a path in its folder"
        )
    return kept


def _ends(document: str, path: str) -> bool:
    return document == path or document.endswith(f"/{path}")


def _curve(one: _Set, result: Result) -> Result:
    plan = one.plan
    stretches, spans = one.stretches("test", max(1, plan.limit // _FEWER)), one.spans(max(1, plan.limit // _FEWER))
    records, places = one.lines("curve", curve.KEY), curve.points(one.trio)
    total = len(places) * (len(stretches) + len(spans))
    with progress(f"{one.split.name}: learning curve", total) as advance:
        curve.measure(one.trio, stretches, spans, records, advance=advance, until=plan.until)
    rows = curve.found_of(one.trio, stretches, spans, records)
    counts = {**result.counts, "learning curve": (len(rows), total)}
    return replace(result, counts=counts, curve=figures.curve(rows, resamples=plan.resamples))
