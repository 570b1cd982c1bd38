"""Writes the texts that are judged: every setting continues the same prefixes, with the same keys, into records.

A record is {setting, how, prompt, seed, ids, passes}. Knows nothing about judges or metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ssd_diffusion import autoregressive, keys, lookahead, sampler, ssdlm
from ssd_diffusion.ensemble import Ensemble
from ssd_diffusion.lookahead import Drafter
from ssd_diffusion.sampler import DecodeParams, StepEvent
from ssd_kernels.types import I32

from ssd_bench.lines import LineFile
from ssd_bench.quality.corpus import Cut
from ssd_bench.quality.models import Opened
from ssd_bench.quality.settings import Kind, Setting, params_of, queries
from ssd_bench.quality.together import Decode, decode_together

KEY = ("how", "prompt")
SECRET = b"bench"
_WIDE, _NARROW = 8, 32
"""Answers at once: windows of many positions keep the processor busy with few, single positions need more."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prefix and how its own document goes on."""

    id: str
    context: I32
    human: I32


def prompts_of(cuts: Iterable[Cut], prefix: int) -> list[Prompt]:
    """Cuts as a prefix of so many tokens and the rest."""
    return [Prompt(cut.id, cut.tokens[:prefix], cut.tokens[prefix:]) for cut in cuts]


def chosen(setting: Setting, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The first of the prompts, as many as the setting's share says; at least one."""
    return prompts[: max(1, math.ceil(setting.share * len(prompts)))]


def write(
    models: tuple[Opened, Opened],
    settings: Sequence[Setting],
    prompts: Sequence[Prompt],
    records: LineFile,
    *,
    tokens: int,
    seed: int,
    advance: Callable[[int], None],
) -> None:
    """Write what the records do not hold yet.

    Args:
        models: core and base.
        settings: in this order.
        prompts: what is continued.
        records: kept there, a batch at a time.
        tokens: of every text.
        seed: of noise and draws; prompt by prompt the same for all settings.
        advance: called with the positions computed, see `queries`.
    """
    numbers = {prompt.id: number for number, prompt in enumerate(prompts)}
    for setting in settings:
        opened = models[setting.base]
        params, waiting = params_of(setting, opened.spec, tokens), missing(setting, prompts, records)
        width = min(_NARROW if params.block == 1 else _WIDE, len(waiting))
        rows = 1 if setting.decoder == "lookahead" else width  # its windows have many shapes, and each would be padded
        engine = opened.engine(slots=width, batch_width=rows, conditioned=setting.conditioned) if waiting else None
        while engine is not None and waiting:
            batch, waiting = waiting[:width], waiting[width:]
            seeds = [seed + numbers[prompt.id] for prompt in batch]
            contexts = [prompt.context for prompt in batch]
            decode = decoder(setting.decoder, params, seeds, contexts=contexts, drafter=opened.drafter)
            texts = decode_together(engine, contexts, decode, banned=opened.spec.eos_ids)
            records.add(
                {
                    "setting": setting.name, "how": setting.how, "prompt": prompt.id, "seed": own,
                    "ids": text.ids.tolist(), "passes": text.passes,
                }
                for prompt, own, text in zip(batch, seeds, texts, strict=True)
            )  # fmt: skip
            advance(len(batch) * queries(setting, params))


def missing(setting: Setting, prompts: Sequence[Prompt], records: LineFile) -> list[Prompt]:
    """The setting's prompts whose text the records do not hold yet."""
    return [p for p in chosen(setting, prompts) if records.get(setting.how, p.id) is None]


def work(
    models: tuple[Opened, Opened],
    settings: Sequence[Setting],
    prompts: Sequence[Prompt],
    records: LineFile,
    *,
    tokens: int,
) -> int:
    """Positions that `write` has still to compute."""
    return sum(
        len(missing(setting, prompts, records))
        * queries(setting, params_of(setting, models[setting.base].spec, tokens))
        for setting in settings
    )


def decoder(
    kind: Kind,
    params: DecodeParams,
    seeds: Sequence[int],
    *,
    contexts: Sequence[I32] = (),
    drafter: Drafter | None = None,
) -> Decode:
    """The product's decoder of a kind, with keys that follow from each answer's seed.

    Args:
        kind: which.
        params: how.
        seeds: of each answer.
        contexts: of each answer; read by lookahead alone.
        drafter: of lookahead.
    """

    def decode(ensemble: Ensemble, number: int) -> Iterator[StepEvent]:
        noise_key, draw_key = keys.noise_key(seeds[number]), keys.draw_key(SECRET, seeds[number])
        if kind == "ar":
            return autoregressive.decode(ensemble, params, draw_key=draw_key)
        if kind == "ssdlm":
            return ssdlm.decode_blocks(ensemble, params, noise_key=noise_key, draw_key=draw_key)
        if kind == "lookahead":
            last = contexts[number][-2:]
            return lookahead.decode(ensemble, params, last, drafter, noise_key=noise_key, draw_key=draw_key)
        return sampler.denoise(ensemble, params, noise_key=noise_key, draw_key=draw_key)

    return decode
