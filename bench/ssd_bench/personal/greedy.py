"""Greedy answers of core and expert together, many at once: what the client's decoders write, a batch at a time.

A greedy answer takes the most probable token of the fused row at the first open position, or of the twin's next-token
row, until an end token. That is what the product's decoders do with their defaults, one answer at a time; a test holds
the two against each other. Knows engines and ids; nothing about text or questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from ssd_diffusion.engine import Engine
from ssd_diffusion.ensemble import Weights
from ssd_diffusion.window import Window
from ssd_kernels.combine import fuse
from ssd_kernels.types import F32, I32, TokenSets

from ssd_bench.pair import DecoderKind


@dataclass(frozen=True, slots=True, eq=False)
class Voice:
    """A member and what it reads before each answer.

    Attributes:
        engine: with at least as many slots as there are answers, twice as many where the expert is read both ways.
        contexts: ids, by answer.
    """

    engine: Engine
    contexts: Sequence[I32]


@dataclass(slots=True, eq=False)
class _Open:
    """Slots of one member."""

    engine: Engine
    slots: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """Who writes: a core, an expert, or both.

    Attributes:
        core: None where the expert writes alone.
        private: the expert with its private context; None where the core writes alone.
        public: the expert without, on the same engine; only where alpha is above 0.
        weights: lambda and alpha.
    """

    core: Voice | None = None
    private: Voice | None = None
    public: Voice | None = None
    weights: Weights = field(default_factory=Weights)


def write(members: Members, *, decoder: DecoderKind, max_tokens: int, eos_ids: Sequence[int]) -> list[list[int]]:
    """The ids of every answer, end tokens left out.

    Args:
        members: who writes.
        decoder: diffusion or its autoregressive twin.
        max_tokens: longest answer, the end token included.
        eos_ids: what ends an answer.

    Raises:
        ValueError: no member, or members that differ in how many answers they are to write.
        ContextOverflow: a context does not fit.
    """
    voices = (members.core, members.private, members.public)
    counts = {len(voice.contexts) for voice in voices if voice is not None}
    if len(counts) != 1:
        raise ValueError("members must read as many contexts as one another, and there must be one at least")
    opened = [None if voice is None else _opened(voice, 0) for voice in voices[:2]]
    opened.append(None if members.public is None else _opened(members.public, len(members.public.contexts)))
    written: list[list[int]] = [[] for _ in range(counts.pop())]
    alive = list(range(len(written)))
    for place in range(max_tokens):
        rows = [None if one is None else _logits(one, alive, place, decoder) for one in opened]
        tokens = fuse(rows[0], rows[1], rows[2], lam=members.weights.lam, alpha=members.weights.alpha).argmax(-1)
        kept = [(i, int(token)) for i, token in zip(alive, tokens, strict=True) if int(token) not in eos_ids]
        for i, token in kept:
            written[i].append(token)
            for one in opened:
                if one is not None:
                    one.engine.commit([one.slots[i]], [np.array([token], np.int32)])
        alive = [i for i, _ in kept]
        if not alive:
            break
    for one in opened:
        if one is not None:
            one.engine.release(one.slots)
    return written


def _opened(voice: Voice, first: int) -> _Open:
    slots = list(range(first, first + len(voice.contexts)))
    voice.engine.prefill(slots, voice.contexts)
    return _Open(voice.engine, slots)


def _logits(one: _Open, alive: Sequence[int], place: int, decoder: DecoderKind) -> F32:
    """Rows of the answers that are still open. [n, V]"""
    slots = [one.slots[i] for i in alive]
    if decoder == "ar":
        return np.stack(one.engine.next_logits(slots))
    window = Window(place, place, 0, np.ones(1, np.float32), TokenSets.empty(1), 0)
    return np.stack([rows[0] for rows in one.engine.step(slots, [window] * len(slots))])
