"""Answers over stream and unary calls: the same bits however they are asked for."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from ssd_kernels.codec import CodecSpec
from ssd_kernels.types import Purpose
from ssd_protos.packing import unpack_flags, unpack_ids
from ssd_protos.ssd.v1 import ssd_pb2 as pb

DECODERS = [
    (pb.DECODER_WINDOW, "ssd2"), (pb.DECODER_AUTOREGRESSIVE, "ssd2"), (pb.DECODER_SSDLM, "ssd2"),
    (pb.DECODER_SSDLM, "ssdlm"),
]  # fmt: skip


@pytest.mark.parametrize(("decoder", "family"), DECODERS)
async def test_stream_unary_and_replay_give_the_same_bits(start_node, fake_engine, decoder, family):
    async with start_node(fake_engine(family=family)) as run:
        whole = run.device(decoder=decoder)
        await whole.stream(run.stub)
        assert len(whole.text) == 10
        unary = run.device(decoder=decoder)
        await unary.unary(run.stub)
        assert unary.data == whole.data

        broken = run.device(decoder=decoder)
        await broken.stream(run.stub, passes=3)
        await broken.stream(run.stub, passes=2, history=broken.steps[:-1])
        await broken.unary(run.stub)
        assert (broken.data, broken.text) == (whole.data, whole.text)
        await run.settled()
        assert run.node.store.created == 5


async def test_logits_are_the_engines_own(start_node, fake_engine):
    """Held against the engine driven directly with the device's own windows."""
    async with start_node() as run:
        device = run.device(max_tokens=6)
        await device.stream(run.stub)
        alone, twin = fake_engine(), run.device(max_tokens=6)
        alone.prefill([0], [np.array(twin.prompt, np.int32)])
        committed = 0
        for data in device.data:
            alone.commit([0], [np.array(twin.text[committed:], np.int32)])
            committed = len(twin.text)
            logits = alone.step([0], [twin.state.window()])[0]
            assert logits.tobytes() == data
            twin.take(pb.StepResult(index=twin.step.index, logits=pb.Logits(shape=logits.shape, data=data)))


async def test_one_session_or_eight_at_once(start_node, fake_engine):
    async with start_node(fake_engine(delay_s=0.002), batch_width=8) as run:

        async def answer(i: int):
            device = run.device(prompt=[3 + i, 9, 4], noise_key=i)
            await (device.stream(run.stub) if i % 2 else device.unary(run.stub))
            return device.data

        alone = [await answer(i) for i in range(8)]
        assert max(run.engine.batches) == 1
        run.engine.delay_s = 0.05  # long enough for others to be waiting; how many batch is test_scheduler's matter
        together = await asyncio.gather(*(answer(i) for i in range(8)))
        assert together == alone
        assert max(run.engine.batches) > 1
        assert len(run.engine.threads) == 1


async def test_asking_again_gives_the_same_pass(start_node):
    async with start_node() as run:
        device = run.device(codec=CodecSpec(kind="top-k", k=4, residual=0.0))
        session = await device.unary(run.stub, passes=2, last=False)
        request = pb.DenoiseStepRequest(session_id=session, step=device.step)
        first = await run.stub.DenoiseStep(request)
        again = await run.stub.DenoiseStep(request)
        assert again.result.logits == first.result.logits
        request.step.k = 9
        more = await run.stub.DenoiseStep(request)
        assert more.result.index == first.result.index
        assert len(more.result.logits.data) > len(first.result.logits.data)
        device.take(first.result)
        after = (await run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=device.step))).result

        straight = run.device(codec=device.codec)
        await straight.stream(run.stub, passes=4)
        assert straight.data == [*device.data, after.logits.data]


async def test_asking_again_with_another_decision_is_refused(start_node, status_of):
    async with start_node() as run:
        device = run.device()
        session = await device.unary(run.stub, passes=2, last=False)
        step = device.step
        await run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=step))
        other = pb.Step(index=step.index, w_hat=step.w_hat[:-2] + b"\x09\x00", accepted=step.accepted)
        code, text = await status_of(run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=other)))
        assert (code.name, "another estimate" in text) == ("INVALID_ARGUMENT", True)
        ahead = pb.Step(index=step.index + 2, w_hat=step.w_hat, accepted=step.accepted)
        code, _ = await status_of(run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=ahead)))
        assert code.name == "INVALID_ARGUMENT"
        # a refused step leaves the session as it was
        assert (await run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=step))).result.index == 2


async def test_a_skipped_pass_moves_the_window_without_the_core(start_node):
    async with start_node() as run:
        device = run.device()
        session = await device.unary(run.stub, passes=2, last=False)
        device.step.skip = True
        passes = run.node.service.counters.passes
        answer = await run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=device.step))
        assert not answer.result.HasField("logits")
        assert run.node.service.counters.passes == passes
        # the device decides with old logits; the node follows
        device.take(
            pb.StepResult(
                index=2,
                logits=pb.Logits(
                    shape=[len(device.state.window().u), 256], data=bytes(4 * 256 * len(device.state.window().u))
                ),
            )
        )
        answer = await run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=device.step))
        replay = pb.DenoiseStepRequest(open=device.open(device.steps[:-1]), step=device.step)
        assert (await run.stub.DenoiseStep(replay)).result.logits == answer.result.logits


async def test_multi_hot_estimates(start_node):
    async with start_node() as run:
        device = run.device(projection="multi-hot", entropy_budget=0.0)
        await device.stream(run.stub)
        assert any(step.w_hat_counts for step in device.steps)
        again = run.device(projection="multi-hot", entropy_budget=0.0)
        await again.stream(run.stub, passes=2)
        await again.unary(run.stub)
        assert again.data == device.data


async def read_one_way(run, device, history=()):
    call = run.stub.Denoise()
    await call.write(pb.DenoiseRequest(open=device.open(history)))
    assert (await call.read()).WhichOneof("kind") == "opened"
    results = []
    while True:
        message = await call.read()
        if message.WhichOneof("kind") == "done":
            return results, message.done.finish_reason
        results.append(message.result)


@pytest.mark.parametrize(("decoder", "family"), DECODERS)
async def test_one_way_runs_the_nodes_own_chain(start_node, fake_engine, decoder, family):
    """Every step of the chain is what the sampler decides from the logits that were sent, with the public key."""
    from ssd_diffusion.sampler import decide
    from ssd_diffusion.ssdlm import decide_block
    from ssd_kernels.combine import log_softmax

    async with start_node(fake_engine(family=family)) as run:
        device = run.device(mode=pb.MODE_ONE_WAY, decoder=decoder, max_tokens=7, temperature=0.5)
        results, reason = await read_one_way(run, device)
        choose = decide_block if decoder == pb.DECODER_SSDLM else decide
        for i, result in enumerate(results):
            b = len(device.state.window().u)
            assert (result.index, list(result.logits.shape)) == (i, [b, 256])
            logp = log_softmax(np.frombuffer(result.logits.data, "<f4").reshape(b, 256))
            record = choose(logp, device.state, device.params, draw_key=11, purpose=Purpose.CORE_DRAW).record
            assert unpack_ids(result.w_hat_core, 256).tolist() == record.w_hat.ids.tolist()
            assert unpack_flags(result.accepted, b).tolist() == record.accepted.tolist()
            device.state, committed = device.state.advance(record)
            device.text += committed.tolist()
            device.steps.append(pb.Step(index=i + 1, w_hat=result.w_hat_core, accepted=result.accepted))
        assert reason == ("stop" if 2 in device.text else "length")
        assert reason == "stop" or device.state.done
        rest, _ = await read_one_way(run, device, device.steps[:3])
        assert [r.logits.data for r in rest] == [r.logits.data for r in results[2:]]
        await run.settled()


async def test_one_way_takes_no_unary_step(start_node, status_of):
    async with start_node() as run:
        device = run.device(mode=pb.MODE_ONE_WAY)
        code, _ = await status_of(run.stub.DenoiseStep(pb.DenoiseStepRequest(open=device.open(), step=device.step)))
        assert code.name == "INVALID_ARGUMENT"
