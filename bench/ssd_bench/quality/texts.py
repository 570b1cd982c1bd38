"""The generation part: continuations written, judged and embedded, each only where the records lack it.

Knows the order of things; how texts are written is `generation`, what is made of them `summary`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ssd_client.index.encoder import Encoder
from ssd_kernels.types import F32, F64, I32

from ssd_bench import corpora
from ssd_bench.console import console, progress, progress_by
from ssd_bench.kneser_ney import KneserNey
from ssd_bench.lines import LineFile, digest
from ssd_bench.quality import corpus, generation, summary
from ssd_bench.quality.generation import Prompt
from ssd_bench.quality.judges import AutoregressiveJudge, Judge, NgramJudge
from ssd_bench.quality.likelihoods import Held
from ssd_bench.quality.settings import HUMAN, Setting, same_temperature
from ssd_bench.quality.summary import Figures, Sample
from ssd_bench.stats import Interval

ORDER = 5
"""Longest n-gram of the n-gram judge."""
OTHERS = "human, other texts"
DISTINCT = "distinct-2"
_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Tokens of a prefix and of its continuation."""

    prefix: int = 32
    tokens: int = 64


def samples(held: Held, settings: Sequence[Setting], lengths: Lengths, encoder: Encoder | None) -> dict[str, Sample]:
    """The texts of every setting with their judgements, the human continuations first.

    Raises:
        ValueError: no held-out document is long enough, or a corpus has no training half.
    """
    cuts = corpus.cuts(
        held.core.tokenizer, held.data, length=lengths.prefix + lengths.tokens, count=2 * held.limit, seed=held.seed
    )
    prompts = generation.prompts_of(cuts[: held.limit], lengths.prefix)
    written = _write(held, settings, prompts, lengths)
    judged = {HUMAN: _human(HUMAN, prompts), **written}
    spare = generation.prompts_of(cuts[held.limit : 2 * held.limit], lengths.prefix)
    if len(spare) == len(prompts):  # other people's texts under the same prompts' names: what MAUVE reaches at best
        judged[OTHERS] = _human(OTHERS, prompts, spare)
    nats = _judge(held, judged, {p.id: p.context for p in prompts}, {p.id: p.context for p in spare})
    vectors = _embed(held, judged, encoder)
    return {
        name: Sample(name, one.prompts, one.texts, one.passes, nats[name], vectors.get(name))
        for name, one in judged.items()
    }


def figures(found: Mapping[str, Sample]) -> dict[str, Figures]:
    """Figures of every sample."""
    out = {}
    with progress("figures", len(found)) as advance:
        for name, sample in found.items():
            out[name] = summary.figures(sample, found[HUMAN])
            advance()
    return out


def ratios(found: Mapping[str, Sample], settings: Sequence[Setting]) -> dict[str, dict[str, Interval | None]]:
    """Perplexity over that of the base at the same temperature, and distinct-2 less the base's, of the core's."""
    out: dict[str, dict[str, Interval | None]] = {}
    for setting in settings:
        if not setting.base:
            sample, base = found[setting.name], found[same_temperature(setting).name]
            out[setting.name] = {judge: summary.ratio(sample, base, judge) for judge in sample.nats}
            out[setting.name][DISTINCT] = summary.difference(sample, base, DISTINCT)
    return out


def matched(
    found: Mapping[str, Sample], reference: Sequence[Setting], names: Sequence[str]
) -> dict[str, dict[str, Interval | None]]:
    """Perplexity over that of a curve of temperatures at equal diversity, for these settings."""
    curve, out = [found[setting.name] for setting in reference], {}
    with progress("equal diversity", len(names)) as advance:
        for name in names:
            out[name] = {
                f"{judge} at {measure}": summary.matched(found[name], curve, judge, measure)
                for judge in found[name].nats
                for measure in summary.MATCHED
            }
            advance()
    return out


def _write(held: Held, settings: Sequence[Setting], prompts: Sequence[Prompt], lengths: Lengths) -> dict[str, Sample]:
    records = held.lines("texts", generation.KEY, prefix=lengths.prefix, tokens=lengths.tokens)
    models = held.core, held.base
    total = generation.work(models, settings, prompts, records, tokens=lengths.tokens)
    with progress_by("writing", total) as advance:
        generation.write(models, settings, prompts, records, tokens=lengths.tokens, seed=held.seed, advance=advance)
    return {setting.name: _sample(setting, prompts, records) for setting in settings}


def _sample(setting: Setting, prompts: Sequence[Prompt], records: LineFile) -> Sample:
    wanted = [prompt.id for prompt in generation.chosen(setting, prompts)]
    found = [records.get(setting.how, prompt) or {} for prompt in wanted]
    passes = np.array([float(one["passes"]) for one in found])
    return Sample(setting.name, wanted, [one["ids"] for one in found], passes, {})


def _human(name: str, prompts: Sequence[Prompt], written: Sequence[Prompt] | None = None) -> Sample:
    texts = [prompt.human.tolist() for prompt in written or prompts]
    return Sample(name, [prompt.id for prompt in prompts], texts, np.zeros(len(texts)), {})


def _judge(
    held: Held, found: Mapping[str, Sample], contexts: Mapping[str, I32], spare: Mapping[str, I32]
) -> dict[str, dict[str, F64]]:
    """Nats of every text by judge."""
    records = held.lines("judged", ("text", "judge"), order=ORDER, train=corpora.digests(held.data, "train"))
    others = list(spare.values())
    work: dict[str, tuple[I32, I32]] = {}
    names: dict[str, list[str]] = {}
    for name, sample in found.items():
        before = others if name == OTHERS else [contexts[prompt] for prompt in sample.prompts]
        pairs = [(context, np.array(text, np.int32)) for context, text in zip(before, sample.texts, strict=True)]
        names[name] = [digest([context.tolist(), text.tolist()]) for context, text in pairs]
        work |= dict(zip(names[name], pairs, strict=True))
    for judge_name in ("ar", "ngram"):
        missing = [text for text in work if records.get(text, judge_name) is None]
        if missing:
            _judge_missing(_judge_of(held, judge_name), judge_name, missing, work, records)
    return {
        name: {
            judge: np.array([float((records.get(text, judge) or {})["nats"]) for text in texts])
            for judge in ("ar", "ngram")
        }
        for name, texts in names.items()
    }


def _judge_of(held: Held, name: str) -> Judge:
    if name == "ar":
        return AutoregressiveJudge(held.base.reading)
    tokenizer = held.core.tokenizer
    console.print("counting n-grams ...")
    train = corpora.training_stream(tokenizer, held.data)
    return NgramJudge(KneserNey(train, vocab=tokenizer.vocab, order=ORDER))


def _judge_missing(
    judge: Judge, name: str, missing: Sequence[str], work: Mapping[str, tuple[I32, I32]], records: LineFile
) -> None:
    with progress(f"judging, {name}", len(missing)) as advance:
        for first in range(0, len(missing), _BATCH):
            part = missing[first : first + _BATCH]
            nats = judge.nats([work[text][0] for text in part], [work[text][1] for text in part])
            records.add({"text": t, "judge": name, "nats": float(x)} for t, x in zip(part, nats, strict=True))
            for _ in part:
                advance()


def _embed(held: Held, found: Mapping[str, Sample], encoder: Encoder | None) -> dict[str, F32]:
    if encoder is None:
        return {}
    vectors = {}
    with progress("embedding", len(found)) as advance:
        for name, sample in found.items():
            vectors[name] = encoder.embed([held.core.tokenizer.decode(text) for text in sample.texts])
            advance()
    return vectors
