"""Writes the texts that are judged: every setting continues the same prefixes, with the same keys, into records.

A record is {setting, how, prompt, seed, ids, passes}. Knows nothing about judges or metrics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from ssd_diffusion import autoregressive, keys, sampler, ssdlm
from ssd_diffusion.ensemble import Ensemble
from ssd_diffusion.sampler import DecodeParams, StepEvent
from ssd_kernels.types import I32

from ssd_bench.quality.corpus import Cut
from ssd_bench.quality.lines import JsonRecord, LineFile
from ssd_bench.quality.models import Opened
from ssd_bench.quality.settings import Kind, Setting, params_of, queries
from ssd_bench.quality.together import Decode, decode_together

KEY = ("setting", "how", "prompt")
SECRET = b"bench"
_WIDE, _NARROW = 8, 32
"""Rows of a pass: windows of many positions keep the processor busy with few, single positions need more."""


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
        opened = models[1] if setting.base else models[0]
        params = params_of(setting, opened.spec, tokens)
        missing = [p for p in chosen(setting, prompts) if records.get(setting.name, setting.how, p.id) is None]
        width = min(_NARROW if params.block == 1 else _WIDE, max(1, len(missing)))
        engine = opened.engine(slots=width, batch_width=width, conditioned=setting.conditioned)
        for first in range(0, len(missing), width):
            batch = missing[first : first + width]
            decode = decoder(setting.decoder, params, [seed + numbers[p.id] for p in batch])
            texts = decode_together(engine, [p.context for p in batch], decode, banned=opened.spec.eos_ids)
            records.add(
                _record(setting, prompt, seed + numbers[prompt.id], text.ids, text.passes)
                for prompt, text in zip(batch, texts, strict=True)
            )
            advance(len(batch) * queries(setting, params))


def work(models: tuple[Opened, Opened], settings: Sequence[Setting], prompts: Sequence[Prompt], records: LineFile,
         *, tokens: int) -> int:  # fmt: skip
    """Positions that `write` has still to compute."""
    total = 0
    for setting in settings:
        missing = [p for p in chosen(setting, prompts) if records.get(setting.name, setting.how, p.id) is None]
        total += len(missing) * queries(setting, params_of(setting, models[setting.base].spec, tokens))
    return total


def decoder(kind: Kind, params: DecodeParams, seeds: Sequence[int]) -> Decode:
    """The product's decoder of a kind, with keys that follow from each answer's seed."""

    def decode(ensemble: Ensemble, number: int) -> Iterator[StepEvent]:
        noise_key, draw_key = keys.noise_key(seeds[number]), keys.draw_key(SECRET, seeds[number])
        if kind == "ar":
            return autoregressive.decode(ensemble, params, draw_key=draw_key)
        if kind == "ssdlm":
            return ssdlm.decode_blocks(ensemble, params, noise_key=noise_key, draw_key=draw_key)
        return sampler.denoise(ensemble, params, noise_key=noise_key, draw_key=draw_key)

    return decode


def ids_of(record: JsonRecord) -> I32:
    """The ids of a record."""
    return np.array(record["ids"], np.int32)


def _record(setting: Setting, prompt: Prompt, seed: int, ids: I32, passes: int) -> JsonRecord:
    return {
        "setting": setting.name, "how": setting.how, "prompt": prompt.id, "seed": seed, "ids": ids.tolist(),
        "passes": passes,
    }  # fmt: skip
