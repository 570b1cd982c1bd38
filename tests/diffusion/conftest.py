"""A small engine in plain numpy, so that decoding is tested without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.members import EngineMember
from ssd_diffusion.window import Window
from ssd_kernels.types import F32, I32

VOCAB = 23


@dataclass
class TableEngine:
    """Logits are a fixed random table looked up by the position's left neighbour (the anchor or a clean token).

    A position whose left neighbour is still open reads row VOCAB. So with one token accepted a pass the text is that of
    a first-order Markov chain, which tests can compute by hand.
    """

    seed: int = 0
    sharpness: float = 1.0
    slots: int = 8
    spec: ModelSpec = field(
        default_factory=lambda: ModelSpec(
            model_id="table@0", family="ssd2", vocab=VOCAB, hidden=4, max_block=32, max_context=64, eos_ids=(0,)
        )
    )
    contexts: dict[int, list[int]] = field(default_factory=dict)
    passes: dict[int, int] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.table = (rng.normal(size=(VOCAB + 1, VOCAB)) * self.sharpness).astype(np.float32)

    def prefill(self, slots: Sequence[int], contexts: Sequence[I32]) -> None:
        for slot, context in zip(slots, contexts, strict=True):
            self.contexts[slot], self.passes[slot] = context.tolist(), 1

    def commit(self, slots: Sequence[int], tokens: Sequence[I32]) -> None:
        for slot, new in zip(slots, tokens, strict=True):
            self.contexts[slot].extend(new.tolist())

    def step(self, slots: Sequence[int], windows: Sequence[Window]) -> list[F32]:
        return [self._step(slot, window) for slot, window in zip(slots, windows, strict=True)]

    def _step(self, slot: int, window: Window) -> F32:
        self.passes[slot] += 1
        self.windows.append(window)
        left = [self.contexts[slot][-1]]
        if window.parents is not None:
            return self.table[[*left, *window.w_hat.ids, *[VOCAB] * (window.rows - window.exact)]].copy()
        for i in range(len(window.u) - 1):
            left.append(int(window.w_hat.row(i)[0]) if window.u[i] == 0 else VOCAB)
        return self.table[left].copy()

    def next_logits(self, slots: Sequence[int]) -> list[F32]:
        for slot in slots:
            self.passes[slot] += 1
        return [self.table[self.contexts[slot][-1]].copy() for slot in slots]

    def release(self, slots: Sequence[int]) -> None:
        for slot in slots:
            del self.contexts[slot]

    def slot_bytes(self, slot: int) -> int:
        return 4 * len(self.contexts[slot])

    def forward_passes(self, slot: int) -> int:
        return self.passes[slot]


@pytest.fixture
def make_engine() -> Callable[..., TableEngine]:
    return TableEngine


@pytest.fixture
def make_member() -> Callable[..., EngineMember]:
    def make(engine: TableEngine, slot: int = 0, context: Sequence[int] = (3,), name: str = "core") -> EngineMember:
        return EngineMember(engine, slot, np.array(context, np.int32), name=name)

    return make
