"""Slots: what is committed and cached, how self-conditioning moves, repeated steps, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ssd_diffusion.engine import ModelSpec
from ssd_diffusion.errors import ContextOverflow, InvalidStep
from ssd_diffusion.slots import Slot, SlotEngine, cache_length
from ssd_diffusion.window import Window
from ssd_kernels.types import F32, I32, TokenSets

SPEC = ModelSpec(model_id="m@0", family="ssd2", vocab=9, hidden=1, max_block=4, max_context=8)


def rows(*values: float) -> F32:
    return np.array(values, np.float32)[:, None]


def ids(*tokens: int) -> I32:
    return np.array(tokens, np.int32)


def window(step: int, start: int = 0) -> Window:
    return Window(start, step, 0, np.ones(2, np.float32), TokenSets.empty(2), 7)


class Bare(SlotEngine[F32]):
    """Slots without a network."""

    def prefill(self, slots: list[int], contexts: list[I32]) -> list[Slot[F32]]:
        return self._reset(slots, contexts)

    def ready(self, number: int, block: int) -> Slot[F32]:
        return self._ready(number, block)


@pytest.fixture
def engine() -> Bare:
    return Bare(SPEC, 3)


@pytest.mark.parametrize(
    ("kept", "kept_start", "start", "block", "want"),
    [
        (None, 0, 2, 3, [9, 9, 9]),
        (rows(1, 2, 3), 4, 4, 3, [1, 2, 3]),
        (rows(1, 2, 3), 4, 6, 3, [3, 9, 9]),
        (rows(1, 2, 3), 4, 9, 3, [9, 9, 9]),
        (rows(1, 2, 3), 4, 4, 2, [1, 2]),
        (rows(1, 2, 3), 4, 2, 3, [1, 2, 3]),
    ],
)
def test_self_conditioning_moves_with_the_window(
    kept: F32 | None, kept_start: int, start: int, block: int, want: list[float]
) -> None:
    slot: Slot[F32] = Slot(sc_in=kept, sc_in_start=kept_start)
    assert slot.conditioning(rows(*[9.0] * block), start)[:, 0].tolist() == want


def test_a_step_reads_what_the_one_before_left() -> None:
    left = rows(1, 2)
    slot: Slot[F32] = Slot(tokens=[1, 2, 3], cached=1, sc_out=left, sc_out_start=5, last_step=0)
    slot.begin(window(1))
    assert slot.sc_in is left
    assert (slot.sc_in_start, slot.last_step, slot.cached_before) == (5, 1, 1)


def test_the_same_step_again_starts_where_it_started() -> None:
    left = rows(1, 2)
    slot: Slot[F32] = Slot(tokens=[1, 2, 3], sc_out=left, last_step=0)
    slot.begin(window(1))
    slot.cached, slot.sc_out = 2, rows(3, 4)
    slot.begin(window(1))
    assert slot.sc_in is left
    assert (slot.cached, slot.pending) == (0, 2)


def test_step_0_reads_nothing() -> None:
    slot: Slot[F32] = Slot(tokens=[1], sc_out=rows(1, 2), sc_out_start=5, last_step=3)
    slot.begin(window(0))
    assert slot.sc_in is None
    assert slot.conditioning(rows(9, 9), 5)[:, 0].tolist() == [9, 9]


def test_committed_tokens_wait_before_the_anchor(engine: Bare) -> None:
    (slot,) = engine.prefill([1], [ids(4, 5, 6)])
    slot.cached = 2
    assert slot.pending == 0
    engine.commit([1], [ids(7, 8)])
    assert slot.tokens == [4, 5, 6, 7, 8]
    assert slot.pending == 2
    assert engine.ready(1, 3) is slot


def test_a_slot_says_what_it_holds(engine: Bare) -> None:
    assert (engine.slots, engine.spec) == (3, SPEC)
    (slot,) = engine.prefill([2], [ids(4, 5)])
    slot.cache, slot.sc_in, slot.sc_out, slot.passes = [rows(0, 0), rows(0)], rows(1), rows(1, 2), 4
    assert engine.slot_bytes(2) == 4 * (2 + 1 + 1 + 2) + 8 * 2
    assert engine.forward_passes(2) == 4
    engine.release([2])
    assert (engine.slot_bytes(2), engine.forward_passes(2)) == (0, 0)


def test_a_new_context_forgets_the_old_one(engine: Bare) -> None:
    (before,) = engine.prefill([0], [ids(1, 2, 3)])
    before.cached, before.sc_out, before.last_step = 2, rows(1), 5
    (after,) = engine.prefill([0], [ids(4)])
    assert (after.tokens, after.cached, after.sc_out, after.last_step) == ([4], 0, None, -1)


@pytest.mark.parametrize("context", [ids(), ids(*range(9))])
def test_a_context_that_does_not_fit_changes_no_slot(engine: Bare, context: I32) -> None:
    engine.prefill([0], [ids(1, 2)])
    with pytest.raises(ContextOverflow, match=f"the context has {len(context)} tokens; this model takes 1 to 8"):
        engine.prefill([0, 1], [ids(3), context])
    assert engine.ready(0, 0).tokens == [1, 2]


def test_context_and_window_must_fit_together(engine: Bare) -> None:
    engine.prefill([0], [ids(1, 2, 3, 4)])
    engine.ready(0, 4)
    with pytest.raises(ContextOverflow, match="come to 9 tokens; this model takes 8"):
        engine.ready(0, 5)


def test_a_slot_without_a_context_is_refused(engine: Bare) -> None:
    with pytest.raises(InvalidStep, match="prefill it first"):
        engine.ready(0, 1)
    engine.prefill([0], [ids(1)])
    engine.release([0])
    with pytest.raises(InvalidStep, match="prefill it first"):
        engine.ready(0, 1)


@pytest.mark.parametrize(
    ("need", "room", "want"), [(0, 0, 64), (1, 0, 64), (64, 0, 64), (65, 64, 128), (129, 128, 192), (400, 128, 448)]
)
def test_a_cache_grows_by_half_in_whole_buckets(need: int, room: int, want: int) -> None:
    assert cache_length(need, room, 64) == want


def test_slots_hold_arrays_of_either_library() -> None:
    torch: Any = pytest.importorskip("torch")
    slot: Slot[Any] = Slot(sc_in=torch.tensor([[1.0], [2.0]]), sc_in_start=0, cache=[torch.zeros(2, 3)])
    assert slot.conditioning(torch.full((2, 1), 9.0), 1)[:, 0].tolist() == [2.0, 9.0]
    assert slot.nbytes == 4 * 8
