"""Batching without luck: the engine is held in a pass until everybody who shall wait is waiting."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from ssd_cloud.errors import NodeFull
from ssd_cloud.requests import read_open
from ssd_cloud.scheduler import Pending, Scheduler
from ssd_cloud.sessions import SessionStore
from ssd_diffusion.window import Window
from ssd_kernels.types import TokenSets
from ssd_protos.limits import Limits

WIDE = 8


def window(step: int = 0, block: int = 4) -> Window:
    return Window(step, 0, 5, np.ones(block, np.float32), TokenSets.empty(block), 0)


class Held:
    """An engine whose passes wait for `gate`; notes which slots computed together."""

    def __init__(self, inner) -> None:
        self.inner, self.spec = inner, inner.spec
        self.gate, self.entered = threading.Event(), threading.Event()
        self.together: list[list[int]] = []

    def step(self, slots, windows):
        self.together.append(list(slots))
        self.entered.set()
        assert self.gate.wait(20)
        return self.inner.step(slots, windows)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.fixture
def held(fake_engine) -> Held:
    return Held(fake_engine(slots=WIDE))


async def until(true) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("width", "expected"), [(8, [[0], [1, 2, 3, 4, 5, 6, 7]]), (3, [[0], [1, 2, 3], [4, 5, 6], [7]])]
)
async def test_all_that_wait_compute_together_up_to_the_width_oldest_first(held, width, expected):
    scheduler = Scheduler(held, batch_width=width)
    scheduler.start()
    for slot in range(WIDE):
        await scheduler.prefill(slot, np.array([slot + 3, 4], np.int32), deadline=None)
    passes = [asyncio.create_task(scheduler.step(0, window(), Pending(), deadline=None))]
    await until(held.entered.is_set)
    for slot in range(1, WIDE):
        passes.append(asyncio.create_task(scheduler.step(slot, window(), Pending(), deadline=None)))
        await asyncio.sleep(0)
    held.gate.set()
    done = await asyncio.gather(*passes)
    await scheduler.close()
    assert held.together == expected
    assert [c.batch for c in done] == [len(batch) for batch in expected for _ in batch]


async def test_a_caller_that_returns_at_once_waits_behind_those_before_it(held):
    scheduler = Scheduler(held, batch_width=1)
    scheduler.start()
    for slot in range(3):
        await scheduler.prefill(slot, np.array([5], np.int32), deadline=None)

    async def greedy() -> None:
        for step in range(3):
            await scheduler.step(0, window(step), Pending(), deadline=None)

    first = asyncio.create_task(greedy())
    await until(held.entered.is_set)
    others = [asyncio.create_task(scheduler.step(slot, window(), Pending(), deadline=None)) for slot in (1, 2)]
    await asyncio.sleep(0)
    held.gate.set()
    await asyncio.gather(first, *others)
    await scheduler.close()
    assert held.together == [[0], [1], [2], [0], [0]]


async def test_a_new_session_waits_for_a_slot_that_is_being_given_back(held, device_open):
    scheduler = Scheduler(held, batch_width=1)
    spec = held.spec
    limits = Limits.of(vocab=spec.vocab, max_block=spec.max_block, max_context=spec.max_context)
    store = SessionStore(spec, limits, scheduler, slots=1, max_sessions=1, cache_bytes=1 << 20, idle_timeout_s=60)
    request = read_open(device_open(), spec, limits)
    first = await store.open("me", request, deadline=None)
    with pytest.raises(NodeFull):  # nobody is about to leave, so there is nothing to wait for
        await store.open("me", request, deadline=None)
    scheduler.start()
    await scheduler.prefill(0, np.array([5], np.int32), deadline=None)
    passing = asyncio.create_task(scheduler.step(0, window(), Pending(), deadline=None))
    await until(held.entered.is_set)
    store.release(first)
    loop = asyncio.get_running_loop()
    with pytest.raises(NodeFull):
        await store.open("me", request, deadline=loop.time() + 0.05)
    second = asyncio.create_task(store.open("me", request, deadline=loop.time() + 20))
    await asyncio.sleep(0.02)
    assert not second.done()
    held.gate.set()
    assert (await second).slot == 0
    await passing
    store.release_all()
    await scheduler.close()
    assert (store.created, store.released, store.reserved_bytes) == (2, 2, 0)


async def test_an_engine_that_takes_two_calls_gets_two_but_never_one_slot_twice(held):
    """While two calls compute, what waits for their slots stays, and so does the release of one of them."""
    held.parallel = 2
    scheduler = Scheduler(held, batch_width=8)
    scheduler.start()
    for slot in range(4):
        await scheduler.prefill(slot, np.array([slot + 3, 4], np.int32), deadline=None)
    passes, released = [], []

    def ask(slot: int, step: int) -> None:
        passes.append(asyncio.create_task(scheduler.step(slot, window(step), Pending(), deadline=None)))

    ask(0, 0)
    await until(lambda: held.together == [[0]])
    ask(1, 0)
    await until(lambda: held.together == [[0], [1]])  # although the first still computes
    for slot, step in ((0, 1), (1, 1), (2, 0), (3, 0)):
        ask(slot, step)
        await asyncio.sleep(0)
    scheduler.release(1, lambda: released.append(held.inner.slot_bytes(1)))
    await asyncio.sleep(0.05)
    assert held.together == [[0], [1]]
    assert released == []
    held.gate.set()
    done = await asyncio.gather(*passes, return_exceptions=True)
    await until(lambda: len(released) == 1)
    await scheduler.close()
    assert isinstance(done[3], asyncio.CancelledError)  # it waited for the slot that was given back
    assert sorted(slot for batch in held.together for slot in batch) == [0, 0, 1, 2, 3]
    assert all(len(set(batch)) == len(batch) for batch in held.together)
    assert [c.batch for c in (*done[:3], *done[4:])].count(1) >= 2
