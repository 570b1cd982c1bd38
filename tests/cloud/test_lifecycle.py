"""However a call ends, what it held is free: cancel, timeout, error and shutdown, unary and stream."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ssd_protos.ssd.v1 import ssd_pb2 as pb

CODE = grpc.StatusCode


async def begin(run, kind, **more):
    """A call with a session whose next pass is being computed; returns an awaitable for its outcome."""
    device = run.device()
    if kind == "unary":
        session = await device.unary(run.stub, passes=1, last=False)
        run.engine.delay_s = 0.3
        call = run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=device.step), **more)
        return call, call
    call = run.stub.Denoise(**more)
    await call.write(pb.DenoiseRequest(open=device.open()))
    await call.read()
    run.engine.delay_s = 0.3
    await call.write(pb.DenoiseRequest(step=device.step))
    return call, call.read()


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_cancel_frees_the_session(start_node, kind):
    async with start_node() as run:
        call, answer = await begin(run, kind)
        waiting = asyncio.ensure_future(answer)
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await run.settled()
        assert run.node.service.counters.cancelled == 1


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_passed_deadline_frees_the_session(start_node, status_of, kind):
    async with start_node() as run:
        _, answer = await begin(run, kind, timeout=0.15)
        code, _ = await status_of(answer)
        assert code == CODE.DEADLINE_EXCEEDED
        await run.settled()


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_lost_connection_frees_the_session(start_node, stub_with, kind):
    async with start_node() as run:
        channel = grpc.aio.insecure_channel(str(run.address))
        mine = run.stub
        run.stub = stub_with(channel, "ssd_token-of-the-tests")
        _, answer = await begin(run, kind)
        waiting = asyncio.ensure_future(answer)
        await asyncio.sleep(0.1)
        await channel.close()
        with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError, grpc.aio.UsageError)):
            await waiting
        run.stub = mine
        await run.settled()


@pytest.mark.parametrize("where", ["prefill", "commit", "step", "nan"])
@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_an_engine_failure_is_one_sentence_and_frees_the_session(start_node, status_of, kind, where):
    async with start_node() as run:
        device = run.device(entropy_budget=0.0)
        if where == "prefill":
            run.engine.fail = {where}
        if kind == "unary":
            call = device.unary(run.stub, passes=1, last=False)
            if where == "prefill":
                code, text = await status_of(call)
            else:
                session = await call
                run.engine.fail, run.engine.nan = {where}, where == "nan"
                again = pb.DenoiseStepRequest(session_id=session, step=device.step)
                code, text = await status_of(run.stub.DenoiseStep(again))
        else:
            stream = run.stub.Denoise()
            await stream.write(pb.DenoiseRequest(open=device.open()))
            if where != "prefill":
                await stream.read()
                await stream.write(pb.DenoiseRequest(step=device.step))
                device.take((await stream.read()).result)
                run.engine.fail, run.engine.nan = {where}, where == "nan"
                await stream.write(pb.DenoiseRequest(step=device.step))
            code, text = await status_of(stream.read())
        assert code == CODE.INTERNAL
        assert "secret" not in text
        assert "\n" not in text
        await run.settled()
        run.engine.fail, run.engine.nan = set(), False
        await run.device().stream(run.stub)  # the node goes on


async def test_one_slots_failure_leaves_its_companions_alone(start_node, fake_engine):
    async with start_node(fake_engine(delay_s=0.02), batch_width=8) as run:
        alone = run.device()
        await alone.stream(run.stub)
        run.engine.fail_slots = {1}
        others = [run.device() for _ in range(4)]
        outcomes = await asyncio.gather(*(d.stream(run.stub) for d in others), return_exceptions=True)
        failed = [o for o in outcomes if o is not None]
        assert [e.code() for e in failed] == [CODE.INTERNAL]
        assert [d.data for d, o in zip(others, outcomes, strict=True) if o is None] == [alone.data] * 3
        run.engine.fail_slots = set()
        await run.settled()


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_shutdown_lets_answers_finish(start_node, kind):
    async with start_node(drain_s=5.0) as run:
        device = run.device()
        run.engine.delay_s = 0.02
        # a unary answer is one call: whatever comes after it is new work, which a draining node refuses
        answer = device.stream(run.stub) if kind == "stream" else device.unary(run.stub, passes=1, last=False)
        work = asyncio.ensure_future(answer)
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await run.node.drain()
        assert time.monotonic() - started < 3
        await work
        assert device.state.done or kind == "unary"
        assert run.node.store.created == run.node.store.released == 1


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_shutdown_ends_what_does_not_finish(start_node, status_of, kind):
    async with start_node(drain_s=0.1) as run:
        _, answer = await begin(run, kind)
        waiting = asyncio.ensure_future(answer)
        await asyncio.sleep(0.05)
        run.engine.delay_s = 0.6
        await run.node.drain()
        code, text = await status_of(waiting)
        assert (code, "open the session again" in text) == (CODE.UNAVAILABLE, True)
        assert run.node.store.created == run.node.store.released == 1


async def test_a_draining_node_refuses_new_sessions_and_says_so_in_health(start_node, status_of):
    async with start_node(drain_s=2.0) as run:
        health = health_pb2_grpc.HealthStub(run.channel)
        device = run.device()
        stream = run.stub.Denoise()
        await stream.write(pb.DenoiseRequest(open=device.open()))
        await stream.read()
        draining = asyncio.ensure_future(run.node.drain())
        await asyncio.sleep(0.05)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="ssd.v1.Ssd"), timeout=2)
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        code, _ = await status_of(run.device().unary(run.stub))
        assert code == CODE.UNAVAILABLE
        await stream.write(pb.DenoiseRequest(step=device.step))
        device.take((await stream.read()).result)  # what was open goes on
        await stream.write(pb.DenoiseRequest(close=pb.Close()))
        assert await stream.read() is grpc.aio.EOF
        await asyncio.wait_for(draining, 1.5)


async def test_idle_sessions_are_released(start_node, status_of):
    async with start_node(idle_timeout_s=0.2) as run:
        device = run.device()
        session = await device.unary(run.stub, passes=1, last=False)
        stream = run.stub.Denoise()
        await stream.write(pb.DenoiseRequest(open=run.device().open()))
        await stream.read()
        code, text = await status_of(stream.read())
        assert (code, "0.2 s" in text) == (CODE.DEADLINE_EXCEEDED, True)
        await run.settled()
        gone = pb.DenoiseStepRequest(session_id=session, step=device.step)
        assert (await status_of(run.stub.DenoiseStep(gone)))[0] == CODE.NOT_FOUND
        gone.open.CopyFrom(device.open(device.steps[:-1]))  # with open the same call restores it
        answer = await run.stub.DenoiseStep(gone)
        assert (answer.replayed, answer.result.index) == (1, 1)


async def test_a_full_node_says_when_to_come_back(start_node, fake_engine):
    async with start_node(fake_engine(slots=2), max_sessions=8) as run:
        sessions = [await run.device().unary(run.stub, passes=1, last=False) for _ in range(2)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await run.device().unary(run.stub)
        assert caught.value.code() == CODE.RESOURCE_EXHAUSTED
        packed = dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
        hint = error_details_pb2.RetryInfo()
        assert status_pb2.Status.FromString(packed).details[0].Unpack(hint)
        assert hint.retry_delay.ToTimedelta().total_seconds() > 0
        await run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=sessions[0], last=True))
        await asyncio.sleep(0.05)
        await run.device().unary(run.stub)


async def test_the_cache_is_bounded_in_bytes(start_node, status_of):
    one = (4 + 10) * (2 * 2 * 1 * 4 * 4 + 4) + 4 * 8 * 4
    async with start_node(cache_bytes=2 * one) as run:
        for _ in range(2):
            await run.device().unary(run.stub, passes=1, last=False)
        code, text = await status_of(run.device().unary(run.stub))
        assert (code, "cache is full" in text) == (CODE.RESOURCE_EXHAUSTED, True)
        code, text = await status_of(run.device(max_tokens=100).unary(run.stub))
        assert (code, "fewer tokens" in text) == (CODE.RESOURCE_EXHAUSTED, True)
        run.node.store.release_all()
        await run.settled()


async def test_work_nobody_waits_for_is_not_computed(start_node, fake_engine, status_of):
    async with start_node(fake_engine(delay_s=0.2), batch_width=1) as run:
        slow = asyncio.ensure_future(run.device().unary(run.stub, passes=1))
        await asyncio.sleep(0.05)
        calls = [
            run.stub.DenoiseStep(pb.DenoiseStepRequest(open=run.device().open(), step=pb.Step(index=0)), timeout=0.1)
            for _ in range(3)
        ]
        for call in calls:
            assert (await status_of(call))[0] == CODE.DEADLINE_EXCEEDED
        await slow
        await run.settled()
        assert run.node.scheduler.dropped == 3
        assert len(run.engine.batches) == 1


async def test_a_cancelled_opening_call_leaves_nothing(start_node, fake_engine):
    async with start_node(fake_engine(delay_s=0.1)) as run:
        call = run.stub.DenoiseStep(pb.DenoiseStepRequest(open=run.device().open(), step=pb.Step(index=0)))
        await asyncio.sleep(0.05)
        call.cancel()
        await run.settled()
        assert run.node.store.created == 1


class StuckContext:
    """A connection whose reader takes the first message and then nothing more."""

    def __init__(self, first):
        self.first, self.written, self.aborted = first, 0, None

    def invocation_metadata(self):
        return (("authorization", "Bearer ssd_token-of-the-tests"),)

    def time_remaining(self):
        return None

    async def read(self):
        return self.first

    async def write(self, message):
        self.written += 1
        if self.written > 2:
            await asyncio.sleep(60)

    async def abort(self, code, details, metadata):
        self.aborted = code
        raise grpc.aio.AbortError


async def test_a_reader_that_takes_nothing_more_is_dropped(start_node):
    async with start_node(idle_timeout_s=0.2) as run:
        device = run.device(mode=pb.MODE_ONE_WAY, max_tokens=40, entropy_budget=0.0)
        context = StuckContext(pb.DenoiseRequest(open=device.open()))
        with pytest.raises(grpc.aio.AbortError):
            await run.node.service.Denoise(None, context)
        assert (context.aborted, context.written) == (CODE.DEADLINE_EXCEEDED, 3)
        await run.settled()


async def test_fairness_between_sessions(start_node, fake_engine):
    """A long replay does not keep another session waiting for more than a pass or two."""
    async with start_node(fake_engine(delay_s=0.01), batch_width=1) as run:
        long = run.device(max_tokens=60, entropy_budget=0.0)
        await long.stream(run.stub, passes=40)
        replay = asyncio.ensure_future(long.unary(run.stub, passes=1))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await run.device().unary(run.stub, passes=1)
        assert time.monotonic() - started < 0.2
        assert not replay.done()
        await replay


async def test_a_second_order_to_stop_ends_the_wait(start_node, status_of):
    async with start_node(drain_s=30.0) as run:
        stream = run.stub.Denoise()
        await stream.write(pb.DenoiseRequest(open=run.device().open()))
        await stream.read()
        draining = asyncio.ensure_future(run.node.drain())
        await asyncio.sleep(0.1)
        assert not draining.done()
        run.node.hurry()
        assert (await status_of(stream.read()))[0] == CODE.UNAVAILABLE
        await asyncio.wait_for(draining, 5)
