"""Whatever a caller sends is answered rightly or refused with the right status: no crash, no leak, no wrong accept."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ssd_cloud.errors import RequestError
from ssd_cloud.requests import read_open, read_record, read_step
from ssd_cloud.service import SsdService
from ssd_protos.limits import Limits
from ssd_protos.ssd.v1 import ssd_pb2 as pb

INVALID, FAILED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION

OPENS = [
    ({"protocol": "2"}, FAILED, "wire version 1"),
    ({"model_id": "other@1"}, FAILED, "other@1"),
    ({"tokenizer_fingerprint": "e" * 64}, FAILED, "e" * 64),
    ({"prompt_ids": b""}, INVALID, "prompt is empty"),
    ({"prompt_ids": b"\x01"}, INVALID, "whole number"),
    ({"prompt_ids": b"\x00\x01"}, INVALID, "outside the vocabulary"),
    ({"prompt_ids": b"\x01\x00" * 126}, INVALID, "context of 128"),
    ({"decoder": 0}, INVALID, "unknown decoder"),
    ({"decoder": 77}, INVALID, "unknown decoder"),
    ({"mode": 0}, INVALID, "unknown mode"),
    ({"mode": 9}, INVALID, "unknown mode"),
    ({"codec": pb.Codec()}, INVALID, "unknown codec"),
    ({"codec": pb.Codec(kind=pb.CODEC_KIND_TOP_K, k=257)}, INVALID, "vocabulary of 256"),
    ({"codec": pb.Codec(kind=pb.CODEC_KIND_TOP_K, residual=1.0)}, INVALID, "residual"),
    ({"codec": pb.Codec(kind=pb.CODEC_KIND_TOP_K, residual=math.nan)}, INVALID, "residual"),
    ({"history": [pb.Step(index=1)]}, INVALID, "out of order"),
    ({"history": [pb.Step(index=0, w_hat=b"\x01\x00")]}, INVALID, "first pass"),
    ({"history": [pb.Step(index=0, k=999)]}, INVALID, "vocabulary"),
    ({"history": [pb.Step()] * 4097}, INVALID, "bound of 4096"),
]
PARAMS = [
    ({"block": 0}, "block"),
    ({"block": 9}, "1 to 8"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 129}, "max_tokens"),
    ({"grid": []}, "grid"),
    ({"grid": [0.5]}, "start at 1"),
    ({"grid": [1.0, 1.0]}, "fall strictly"),
    ({"grid": [1.0, 0.0]}, "towards 0"),
    ({"grid": [1.0, math.nan]}, "finite"),
    ({"grid": [1.0 - i / 2000 for i in range(1100)]}, "1024"),
    ({"projection": 0}, "projection"),
    ({"temperature": math.inf}, "temperature"),
    ({"top_p": math.nan}, "top_p"),
    ({"entropy_budget": -1.0}, "entropy_budget"),
]
STEPS = [
    ({"w_hat": b""}, "0 token ids for 4"),
    ({"w_hat": b"\x01\x00" * 5}, "5 token ids for 4"),
    ({"w_hat": b"\x01\x01" * 4}, "outside the vocabulary"),
    ({"accepted": b""}, "flags"),
    ({"accepted": b"\xff"}, "past the last"),
    ({"accepted": b"\x01\x00"}, "flags"),
    ({"w_hat_counts": b"\x01\x00" * 4}, "multi-hot"),
    ({"index": 3}, "out of order"),
    ({"k": 300}, "vocabulary"),
]


def spec_and_limits(fake_engine):
    spec = fake_engine().spec
    return spec, Limits.of(vocab=spec.vocab, max_block=spec.max_block, max_context=spec.max_context)


@pytest.mark.parametrize(("changes", "code", "words"), OPENS)
async def test_a_wrong_open_is_refused(start_node, status_of, changes, code, words):
    async with start_node() as run:
        message = run.device().open()
        for name, value in changes.items():
            if isinstance(value, list):
                message.history.extend(value)
            elif isinstance(value, pb.Codec):
                message.codec.CopyFrom(value)
            else:
                setattr(message, name, value)
        unary = run.stub.DenoiseStep(pb.DenoiseStepRequest(open=message, step=pb.Step()))
        got, text = await status_of(unary)
        assert (got, words in text) == (code, True), text
        assert "\n" not in text
        stream = run.stub.Denoise()
        await stream.write(pb.DenoiseRequest(open=message))
        assert await status_of(stream.read()) == (got, text)
        await run.settled()


def test_fixed_blocks_are_all_that_the_ssdlm_family_offers(fake_engine, device_open):
    spec, limits = spec_and_limits(fake_engine)
    assert read_open(device_open(decoder=pb.DECODER_SSDLM), spec, limits).decoder == "ssdlm"
    with pytest.raises(RequestError, match="does not offer") as caught:
        read_open(device_open(), replace(spec, family="ssdlm"), limits)
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("drafts", "depth", "one_way", "words"),
    [(0, 1, False, "1 to 7"), (8, 1, False, "1 to 7"), (2, 1, True, "open"), (2, 0, False, "1 to 2"),
     (2, 3, False, "1 to 2 deep")],
)  # fmt: skip
def test_wrong_drafts_are_refused(fake_engine, device_open, drafts, depth, one_way, words):
    spec, limits = spec_and_limits(fake_engine)
    message = device_open(decoder=pb.DECODER_LOOKAHEAD)
    message.params.block, message.params.depth = 7, 3
    read = read_open(message, spec, limits).params
    assert (read.drafts, read.depth) == (7, 3)
    assert not read_open(message, spec, limits).exact_only
    message.params.exact_only = True
    assert read_open(message, spec, limits).exact_only
    message = device_open(decoder=pb.DECODER_WINDOW)
    message.params.exact_only = True
    with pytest.raises(RequestError, match="looks ahead"):
        read_open(message, spec, limits)
    message = device_open(decoder=pb.DECODER_LOOKAHEAD, one_way=one_way)
    message.params.block, message.params.depth = drafts, depth
    with pytest.raises(RequestError, match=words) as caught:
        read_open(message, spec, limits)
    assert caught.value.code == "INVALID_ARGUMENT"


async def test_a_core_that_need_not_draft_sends_exact_rows_alone(start_node):
    async with start_node() as run:
        opening = run.device(decoder=pb.DECODER_LOOKAHEAD).open()
        opening.params.block, opening.params.depth = 3, 2
        found = {}
        for exact_only in (False, True):
            opening.params.exact_only = exact_only
            first = await run.stub.DenoiseStep(pb.DenoiseStepRequest(open=opening, step=pb.Step()))
            step = pb.Step(index=1, w_hat=np.array([5, 6, 7], "<u2").tobytes(), accepted=b"\x01", parents=b"\0\0")
            request = pb.DenoiseStepRequest(session_id=first.session_id, step=step)
            found[exact_only] = (await run.stub.DenoiseStep(request)).result
        assert list(found[False].ahead.shape) == [6, 256]
        assert not found[True].HasField("ahead")
        assert found[True].logits == found[False].logits
        request.step.k = 9
        wider = (await run.stub.DenoiseStep(request)).result
        assert list(wider.logits.shape) == [1, 256]
        assert not wider.HasField("ahead")


@pytest.mark.parametrize(
    ("ids", "accepted", "parents", "words"),
    [([], b"", b"", "commit 1 to 1"), ([5], b"\x00", b"\0", "commit 1 to 1"), ([5, 6], b"\x03", b"", "commit 1 to 1"),
     ([5, 6, 7, 8, 9], b"\x01", b"\0\0\0\0", "can draft 3"), ([5, 6, 7, 8], b"\x01", b"\0\1\2", "2 tokens one behind"),
     ([5, 6], b"\x02", b"\0", "first tokens"), ([5, 6], b"", b"\0", "flags"), ([5, 6], b"\x01", b"", "1 drafts need"),
     ([5, 6], b"\x01", b"\1", "earlier draft"), ([5, 6, 6], b"\x01", b"\0\0", "different tokens")],
)  # fmt: skip
async def test_a_wrong_draft_is_refused_and_the_session_lives_on(start_node, status_of, ids, accepted, parents, words):
    async with start_node() as run:
        opening = run.device(decoder=pb.DECODER_LOOKAHEAD).open()
        opening.params.block, opening.params.depth = 3, 2
        first = await run.stub.DenoiseStep(pb.DenoiseStepRequest(open=opening, step=pb.Step()))
        assert list(first.result.logits.shape) == [1, 256]
        assert list(first.result.ahead.shape) == [2, 256]
        wrong = pb.Step(index=1, w_hat=np.array(ids, "<u2").tobytes(), accepted=accepted, parents=parents)
        request = pb.DenoiseStepRequest(session_id=first.session_id, step=wrong)
        code, text = await status_of(run.stub.DenoiseStep(request))
        assert (code, words in text) == (INVALID, True), text
        step = pb.Step(index=1, w_hat=np.array([5, 6, 7, 6], "<u2").tobytes(), accepted=b"\x01", parents=b"\0\0\2")
        request.step.CopyFrom(step)
        good = await run.stub.DenoiseStep(request)
        assert list(good.result.logits.shape) == [4, 256]
        assert list(good.result.ahead.shape) == [8, 256]
        request.step.parents = b"\0\0\1"
        assert await status_of(run.stub.DenoiseStep(request)) == (
            INVALID,
            "pass 1 was already taken with another estimate",
        )


def test_parents_are_for_drafts_alone(fake_engine):
    spec, limits = spec_and_limits(fake_engine)
    step = read_step(pb.Step(index=1, w_hat=bytes(2), accepted=b"\x01", parents=b"\0"), spec)
    with pytest.raises(RequestError, match="looks ahead"):
        read_record(step, 1, decoder="window", multi_hot=False, vocab=spec.vocab, limits=limits)


@pytest.mark.parametrize("one_way", [False, True])
@pytest.mark.parametrize(("changes", "words"), PARAMS)
def test_wrong_window_settings_are_refused(fake_engine, device_open, changes, words, one_way):
    spec, limits = spec_and_limits(fake_engine)
    message = device_open(one_way=one_way)
    assert read_open(message, spec, limits).one_way is one_way
    for name, value in changes.items():
        if isinstance(value, list):
            del message.params.grid[:]
            message.params.grid.extend(value)
        else:
            setattr(message.params, name, value)
    with pytest.raises(RequestError, match=words) as caught:
        read_open(message, spec, limits)
    assert caught.value.code == "INVALID_ARGUMENT"


@pytest.mark.parametrize(("changes", "words"), STEPS)
async def test_a_wrong_step_is_refused_and_the_session_lives_on(start_node, status_of, changes, words):
    async with start_node() as run:
        device = run.device()
        session = await device.unary(run.stub, passes=1, last=False)
        wrong = pb.Step()
        wrong.CopyFrom(device.step)
        for name, value in changes.items():
            setattr(wrong, name, value)
        code, text = await status_of(run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=wrong)))
        assert (code, words in text) == (INVALID, True), text
        good = await run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=device.step))
        assert good.result.index == 1


async def test_both_fingerprints_are_named(start_node, status_of):
    async with start_node() as run:
        message = run.device().open()
        message.tokenizer_fingerprint = "abc\n\x1b[31m\u202e" + "d" * 500
        _, text = await status_of(run.stub.DenoiseStep(pb.DenoiseStepRequest(open=message, step=pb.Step())))
        assert "f" * 64 in text
        assert "abc" in text
        assert text.isprintable()
        assert len(text) < 400


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (pb.DenoiseStepRequest(), "holds no pass"),
        (pb.DenoiseStepRequest(step=pb.Step()), "names no session"),
        (pb.DenoiseStepRequest(last=True), "names no session"),
    ],
)
async def test_empty_unary_requests(start_node, status_of, request_, words):
    async with start_node() as run:
        code, text = await status_of(run.stub.DenoiseStep(request_))
        assert (code, words in text) == (INVALID, True)


@pytest.mark.parametrize(
    "first", [pb.DenoiseRequest(), pb.DenoiseRequest(step=pb.Step()), pb.DenoiseRequest(close=pb.Close())]
)
async def test_a_stream_begins_with_open(start_node, status_of, first):
    async with start_node() as run:
        call = run.stub.Denoise()
        await call.write(first)
        code, _ = await status_of(call.read())
        assert code == INVALID


async def test_a_second_open_in_a_stream_is_refused(start_node, status_of):
    async with start_node() as run:
        call = run.stub.Denoise()
        await call.write(pb.DenoiseRequest(open=run.device().open()))
        await call.read()
        await call.write(pb.DenoiseRequest(open=run.device().open()))
        code, _ = await status_of(call.read())
        assert code == INVALID
        await run.settled()


async def test_a_message_over_the_bound_is_refused(start_node, status_of):
    async with start_node() as run:
        bound = run.node.limits.max_request_bytes
        assert bound < 4_000_000
        token = (("authorization", "Bearer ssd_token-of-the-tests"),)
        async with grpc.aio.insecure_channel(str(run.address)) as plain:
            call = plain.unary_unary("/ssd.v1.Ssd/DenoiseStep", request_serializer=lambda b: b)
            code, _ = await status_of(call(b"\x00" * (bound + 1), timeout=5, metadata=token))
            assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (await run.stub.Describe(pb.DescribeRequest(protocol="1"))).vocab == 256


@pytest.mark.parametrize("method", ["Describe", "DenoiseStep", "Denoise"])
async def test_bytes_that_are_no_message(start_node, status_of, method):
    async with start_node() as run:
        token = (("authorization", "Bearer ssd_token-of-the-tests"),)
        async with grpc.aio.insecure_channel(str(run.address)) as plain:
            if method == "Denoise":
                stream = plain.stream_stream(f"/ssd.v1.Ssd/{method}", request_serializer=lambda b: b)
                call = stream(timeout=5, metadata=token)
                await call.write(b"\xff" * 100)
                code, text = await status_of(call.read())
            else:
                unary = plain.unary_unary(f"/ssd.v1.Ssd/{method}", request_serializer=lambda b: b)
                code, text = await status_of(unary(b"\xff" * 100, timeout=5, metadata=token))
            assert (code, "no message" in text) == (INVALID, True)
        await run.settled()


async def test_describe(start_node, status_of):
    async with start_node() as run:
        spec, limits = run.engine.spec, run.node.limits
        answer = await run.stub.Describe(pb.DescribeRequest(protocol="1"))
        assert (answer.model_id, answer.vocab, answer.max_block) == (spec.model_id, 256, 8)
        assert tuple(answer.grid) == spec.grid
        assert (answer.max_request_bytes, answer.max_response_bytes) == (
            limits.max_request_bytes, limits.max_response_bytes)  # fmt: skip
        assert tuple(answer.decoders) == (
            pb.DECODER_WINDOW, pb.DECODER_AUTOREGRESSIVE, pb.DECODER_LOOKAHEAD, pb.DECODER_SSDLM)  # fmt: skip
        code, text = await status_of(run.stub.Describe(pb.DescribeRequest(protocol="0.9")))
        assert (code, "0.9" in text) == (FAILED, True)


# ---- mutated messages ----

BYTES = st.binary(max_size=24)
STEP = st.builds(
    pb.Step, index=st.integers(0, 4), w_hat=BYTES | st.just(b"\x01\x00" * 4), w_hat_counts=st.just(b"") | BYTES,
    accepted=st.sampled_from([b"", b"\x01", b"\x03", b"\x0f"]) | BYTES, k=st.integers(0, 2**32 - 1) | st.just(0),
    skip=st.booleans(),
)  # fmt: skip


def mutate(message: bytes, cuts: list[tuple[int, bytes]]) -> bytes:
    for at, new in cuts:
        at %= len(message) + 1
        message = message[:at] + new + message[at + len(new) :]
    return message


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=4)), max_size=4))
def test_a_mutated_open_is_read_or_refused(fake_engine, device_open, cuts):
    spec, limits = spec_and_limits(fake_engine)
    message = pb.Open()
    try:
        message.ParseFromString(mutate(device_open().SerializeToString(), cuts))
    except DecodeError:
        return
    try:
        opened = read_open(message, spec, limits)
    except RequestError:
        return
    assert 1 <= len(opened.prompt) <= spec.max_context - opened.params.max_tokens
    assert opened.prompt.max() < spec.vocab
    assert 1 <= opened.params.block <= spec.max_block


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    step=STEP, positions=st.integers(1, 8), multi_hot=st.booleans(), decoder=st.sampled_from(["window", "ar", "ssdlm"])
)
def test_any_step_is_read_or_refused(fake_engine, step, positions, multi_hot, decoder):
    spec, limits = spec_and_limits(fake_engine)
    try:
        record = read_record(
            read_step(step, spec), positions, decoder=decoder, multi_hot=multi_hot, vocab=spec.vocab, limits=limits
        )
    except RequestError:
        return
    assert len(record.w_hat) == positions
    assert record.w_hat.ids.max() < spec.vocab


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=4), history=st.lists(STEP, max_size=3))
def test_random_steps_never_crash_the_service(fake_engine, device_open, start_node, steps, history):
    async def scenario() -> None:
        async with start_node(fake_engine()) as run:
            call = run.stub.Denoise()
            device = run.device()
            await call.write(pb.DenoiseRequest(open=device.open(history)))
            try:
                await call.read()
                for step in steps:
                    await call.write(pb.DenoiseRequest(step=step))
                    assert (await call.read()).result.index == step.index
                await call.write(pb.DenoiseRequest(close=pb.Close()))
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # refused; the status is read below
                pass
            assert await call.code() in (INVALID, grpc.StatusCode.OK), await call.details()
            await run.settled()

    asyncio.run(scenario())


def test_nothing_of_the_service_is_left_unimplemented():
    assert {"Describe", "Denoise", "DenoiseStep"} <= set(vars(SsdService))
