"""One pass of the expert on the device: the graph on onnxruntime against the same pass in eager torch, both cached.

Knows engines and windows; nothing about files or reports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from ssd_diffusion.draft_tree import DraftTree
from ssd_diffusion.engine import Engine
from ssd_diffusion.lookahead import LookaheadState
from ssd_diffusion.onnx_engine import OnnxEngine
from ssd_diffusion.window import Window
from ssd_kernels.types import F32, I32, TokenSets

from ssd_bench.versus import Rounds, by_turns

PARENTS = (-1, -1, 0, 0, 2, 1)
"""Of the six drafts of a usual pass."""
BLOCK, LEVEL = 8, 0.4


@dataclass(frozen=True, slots=True)
class Engines:
    """The same model twice, two slots each."""

    plain: Engine
    ours: OnnxEngine


def drafted(vocab: int) -> Window:
    """A usual pass of the default decode: six drafts, three open positions after each."""
    tokens = np.arange(10, 10 + len(PARENTS), dtype=np.int32) % vocab
    tree = DraftTree(tokens, np.array(PARENTS, np.int32))
    return LookaheadState(noise_key=1, width=len(PARENTS), depth=3, limit=99, drafts=tree).window()


def noised() -> Window:
    """A sliding window between the noise levels."""
    return Window(0, 0, 0, np.full(BLOCK, LEVEL, np.float32), TokenSets.of([[5]] * BLOCK), 77)


def cases(vocab: int) -> dict[str, Callable[[Engine], list[F32]]]:
    """What is timed, by name; every engine has its context in slot 0 and in slot 1."""
    ahead = drafted(vocab)
    exact = ahead.exact_only()
    windows = {"a pass with six drafts": ahead, "the same, exact rows alone": exact, "a window of 8": noised()}
    found: dict[str, Callable[[Engine], list[F32]]] = {name: partial(_step, window=w) for name, w in windows.items()}
    found["one token (autoregressive)"] = lambda engine: engine.next_logits([0])
    return found


def _step(engine: Engine, window: Window) -> list[F32]:
    return engine.step([0], [window])


def measure(engines: Engines, context: I32, rounds: int) -> dict[str, Rounds]:
    """Every case on a cached context."""
    fill(engines, context)
    return {
        name: by_turns(partial(work, engines.plain), partial(work, engines.ours), rounds)
        for name, work in cases(engines.ours.spec.vocab).items()
    }


def joined(engines: Engines, context: I32, rounds: int) -> Rounds:
    """The expert's two passes of a step apart, against both in one run."""
    fill(engines, context)
    whole = drafted(engines.ours.spec.vocab)
    windows = (whole, whole.exact_only())

    def apart() -> None:
        for slot, window in enumerate(windows):
            engines.ours.step([slot], [window])

    return by_turns(apart, lambda: engines.ours.step_joined([0, 1], windows), rounds)


def growth(engines: Engines, lengths: Sequence[int], rounds: int, seed: int) -> dict[int, Rounds]:
    """The usual pass by length of the context."""
    work = cases(engines.ours.spec.vocab)["a pass with six drafts"]
    found = {}
    for length in lengths:
        fill(engines, context_of(length, engines.ours.spec.vocab, seed))
        found[length] = by_turns(partial(work, engines.plain), partial(work, engines.ours), rounds)
    return found


def context_of(length: int, vocab: int, seed: int) -> I32:
    """A context of random tokens, all but the last of which are cached. [length + 1]"""
    return np.random.default_rng(seed).integers(vocab, size=length + 1).astype(np.int32)


def fill(engines: Engines, context: I32) -> None:
    """Put the context into both slots of both engines."""
    for engine in (engines.plain, engines.ours):
        engine.prefill([0, 1], [context, context])
