"""What accepting several positions a pass costs: judged likelihood, repetition and passes a token, setting by setting.

The same prompts, noise and draws for every setting. The judge is the packaged decoder as it was before any adaptation;
its likelihood of a text falls with repetition too, so distinct-2 and unigram entropy stand beside it. The setting that
accepts one position a pass is the autoregressive floor that the others are held against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from ssd_diffusion import keys
from ssd_diffusion.engine import Engine
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.members import EngineMember
from ssd_diffusion.sampler import DecodeParams, denoise
from ssd_diffusion.schedule import thin_grid
from ssd_diffusion.tokenizer import Tokenizer
from ssd_kernels.types import F64, I32

from ssd_bench import machine as machine_of
from ssd_bench.report import origin, table
from ssd_bench.results import Row
from ssd_bench.stats import bootstrap
from ssd_bench.text import distinct_n, unigram_entropy

Line: TypeAlias = dict[str, float | str | int]
PROMPTS = (
    "What is a lighthouse for?",
    "Explain how bread is made.",
    "Write three sentences about the sea in winter.",
    "Why do leaves change colour in autumn?",
    "Describe a small workshop where boats are built.",
    "What should a new colleague know on the first day?",
    "Write a short letter that thanks a supplier.",
    "How does a bicycle stay upright?",
    "Tell me about the city of Lisbon.",
    "What makes a good meeting?",
    "Give me advice for growing tomatoes.",
    "Summarise what a library does.",
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to decode: points of the step grid and nats that a pass may accept beyond its first position."""

    steps: int
    budget: float

    def __str__(self) -> str:
        return f"{self.steps} level{'s' if self.steps > 1 else ''}, budget {self.budget:g}"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One text: its setting, ids, forward passes, and its nats under the judge."""

    setting: Setting
    tokens: I32
    passes: int
    nats: float


FLOOR = Setting(1, 0.0)


def settings(steps: Iterable[int], budgets: Iterable[float]) -> list[Setting]:
    """The floor, and every combination."""
    chosen = [Setting(s, b) for s in steps for b in budgets]
    return [FLOOR, *(one for one in chosen if one != FLOOR)]


def measure(
    engine: Engine,
    tokenizer: Tokenizer,
    judge: Callable[[I32, I32], float],
    chosen: Sequence[Setting],
    *,
    prompts: Sequence[str] = PROMPTS,
    params: DecodeParams,
    seed: int,
    advance: Callable[[], None],
) -> list[Sample]:
    """Decode every prompt under every setting, in turn.

    Args:
        engine: the core.
        tokenizer: its tokenizer.
        judge: minus the log-probability of tokens after a context.
        chosen: the settings.
        prompts: what is asked.
        params: everything but grid and budget.
        seed: of noise and draws; the same for all settings.
        advance: called after every text.
    """
    out = []
    for number, prompt in enumerate(prompts):
        context = tokenizer.chat([{"role": "user", "content": prompt}])
        for setting in chosen:
            tokens, passes = _decode(engine, context, setting, params, seed + number)
            out.append(Sample(setting, tokens, passes, judge(context, tokens)))
            advance()
    return out


def _decode(engine: Engine, context: I32, setting: Setting, params: DecodeParams, seed: int) -> tuple[I32, int]:
    own = replace(params, grid=thin_grid(params.grid, setting.steps), entropy_budget=setting.budget)
    member = EngineMember(engine, 0, context, name="core")
    draw_key = keys.draw_key(b"bench", seed)
    with Ensemble(core=member, private=None, public=None, weights=Weights(lam=0.0)) as ensemble:
        events = list(denoise(ensemble, own, noise_key=keys.noise_key(seed), draw_key=draw_key))
    return np.concatenate([e.committed for e in events]).astype(np.int32), len(events)


def summary(samples: Sequence[Sample]) -> list[Line]:
    """One row a setting: tokens a pass, judged nats a token with its difference to the floor, distinct-2, entropy."""
    floor_nats, floor_tokens = _of(samples, FLOOR)
    rows: list[Line] = []
    for setting in dict.fromkeys(s.setting for s in samples):
        mine = [s for s in samples if s.setting == setting]
        nats, tokens = _of(samples, setting)
        drop = bootstrap(nats / tokens - floor_nats / floor_tokens)
        texts = [s.tokens.tolist() for s in mine]
        rows.append({
            "setting": str(setting), "texts": len(mine),
            "tokens_a_pass": float(tokens.sum() / sum(s.passes for s in mine)),
            "nats": float(nats.sum() / tokens.sum()), "difference": drop.value, "low": drop.low, "high": drop.high,
            "distinct_2": distinct_n(texts, 2), "unigram_entropy": unigram_entropy(texts),
        })  # fmt: skip
    return rows


def markdown(rows: Sequence[Line], *, about: str, machine: dict[str, str], seconds: float) -> str:
    """The report."""
    header = [
        "setting",
        "tokens a pass",
        "judged nats a token",
        "less the floor [95%]",
        "distinct-2",
        "unigram nats",
    ]
    body = [
        [
            r["setting"], f"{r['tokens_a_pass']:.2f}", f"{r['nats']:.3f}",
            f"{r['difference']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]", f"{r['distinct_2']:.3f}",
            f"{r['unigram_entropy']:.2f}",
        ]
        for r in rows
    ]  # fmt: skip
    return "\n\n".join(
        [
            "# Accepting several positions a pass",
            origin(machine_of.command(), machine, seconds=seconds, note=about),
            (__doc__ or "").split("\n\n", 1)[1].strip(),
            table(header, body),
        ]
    ) + "\n"  # fmt: skip


def result_rows(rows: Sequence[Line]) -> list[Row]:
    """Tokens a pass of every setting over one a pass."""
    return [
        Row(
            suite="acceptance",
            name=f"tokens a pass, {r['setting']}",
            ratio=float(r["tokens_a_pass"]),
            n=int(r["texts"]),
            note=f"judged nats a token {float(r['difference']):+.3f} against one position a pass",
        )
        for r in rows
    ]  # fmt: skip


def _of(samples: Sequence[Sample], setting: Setting) -> tuple[F64, F64]:
    mine = [s for s in samples if s.setting == setting]
    return np.array([s.nats for s in mine]), np.array([float(len(s.tokens)) for s in mine])
