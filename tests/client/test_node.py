"""Reaching a node: addresses, TLS rules, Describe that does not fit, a node that is silent or sends nonsense."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from answering_support import TOKEN, ThreadedNode
from ssd_client import answer
from ssd_client.errors import LedgerError, NodeError, NodeMismatch, NodeRefused, NodeUnreachable, UsageError
from ssd_client.ledger import Ledger
from ssd_client.node import Address, NodeChannel
from ssd_client.options import GenerateOptions
from ssd_client.remote import previous_record
from ssd_diffusion.sampler import DecodeParams, decide
from ssd_diffusion.window import StepRecord, WindowState
from ssd_kernels.types import TokenSets
from ssd_protos.ssd.v1 import ssd_pb2 as pb
from ssd_protos.ssd.v1 import ssd_pb2_grpc


@pytest.mark.parametrize(
    ("text", "insecure", "target", "tls"),
    [
        ("localhost", False, "localhost:7337", False),
        ("127.0.0.1:80", False, "127.0.0.1:80", False),
        ("[::1]:80", False, "[::1]:80", False),
        ("gpu.example.org:7337", False, "gpu.example.org:7337", True),
        ("192.168.1.4", False, "192.168.1.4:7337", True),
        ("192.168.1.4", True, "192.168.1.4:7337", False),
    ],
)
def test_plaintext_only_to_this_machine(text: str, insecure: bool, target: str, tls: bool) -> None:
    address = Address.parse(text, insecure=insecure)
    assert (address.target, address.tls) == (target, tls)


@pytest.mark.parametrize("text", ["", "a b", "host:", "host:x", "host:0", "host:70000", "http://host", "a:b:c/d"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="--node HOST:PORT"):
        Address.parse(text)


def test_certificates_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        Address.parse("host", ca=tmp_path / "none.pem")
    (tmp_path / "ca.pem").write_text("hello")
    with pytest.raises(UsageError, match="no PEM certificate"):
        Address.parse("host", ca=tmp_path / "ca.pem")
    with pytest.raises(UsageError, match="exclude each other"):
        Address.parse("host", ca=tmp_path / "ca.pem", insecure=True)


def test_a_certificate_checks_a_node_on_this_machine_as_well(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    assert Address.parse("localhost", ca=tmp_path / "ca.pem").tls


class _Servicer(ssd_pb2_grpc.SsdServicer):
    """A node of the test's own making."""

    def __init__(self, describe: pb.DescribeResponse, answers: Any = None) -> None:
        self._describe, self._answers = describe, answers

    def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:
        return self._describe

    def Denoise(self, requests: Any, context: Any) -> Any:
        yield from self._answers(requests, context)


@contextmanager
def odd_node(describe: pb.DescribeResponse, answers: Any = None) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(4))
    ssd_pb2_grpc.add_SsdServicer_to_server(_Servicer(describe, answers), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait(10)


def described(**changes: Any) -> pb.DescribeResponse:
    answer = pb.DescribeResponse(
        protocol="1", model_id="odd@1", family="ssd2", tokenizer_fingerprint="f" * 64, vocab=256, max_block=8,
        simplex_k=5.0, schedule_s=1e-4, grid=[1.0, 0.5], max_context=512, hidden=16, output_shift=True,
        codecs=[pb.CODEC_KIND_DENSE_F32], decoders=[pb.DECODER_WINDOW],
    )  # fmt: skip
    for name, value in changes.items():
        answer.ClearField(name)  # type: ignore[arg-type]
        answer.MergeFrom(pb.DescribeResponse(**{name: value}))
    return answer


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"protocol": "2"}, "version 2"),
        ({"protocol": ""}, "version unknown"),
        ({"family": "gpt"}, "no usable model"),
        ({"grid": []}, "no usable model"),
        ({"vocab": 0}, "no usable model"),
        ({"tail_log_unigram": b"abc" * 2}, "broken codec"),
        ({"tail_log_unigram": b"x" * 511}, "broken codec"),
        ({"tail_log_unigram": b"\x00\x7c" * 256}, "broken codec"),  # infinity
    ],
)
def test_a_description_that_does_not_fit(changes: dict[str, Any], words: str) -> None:
    with odd_node(described(**changes)) as target, NodeChannel(Address(target, False)) as channel:
        with pytest.raises(NodeMismatch, match=words):
            channel.describe(5.0)


def test_a_shared_unigram_is_read() -> None:
    stated = np.linspace(-3, 0, 256).astype("<f2")  # base 2
    with odd_node(described(tail_log_unigram=stated.tobytes())) as target, NodeChannel(Address(target, False)) as one:
        tail = one.describe(5.0).tail
    assert tail is not None
    np.testing.assert_allclose(tail, stated.astype(np.float32) * np.log(2.0), rtol=1e-6)


def test_no_node_wrong_token_and_tls_where_there_is_none(core_engine: Any, tmp_path: Path) -> None:
    with (
        NodeChannel(Address("127.0.0.1:9", False)) as channel,
        pytest.raises(NodeUnreachable, match="cannot be reached"),
    ):
        channel.describe(5.0)
    with ThreadedNode(core_engine) as node:
        with NodeChannel(Address(node.target, False), "wrong") as channel, pytest.raises(NodeRefused, match="--token"):
            channel.describe(5.0)
        with NodeChannel(Address(node.target, True), TOKEN) as channel, pytest.raises(NodeError):
            channel.describe(5.0)
        with NodeChannel(Address(node.target, False), TOKEN) as channel:
            assert channel.describe(5.0).spec.vocab == 256


@pytest.mark.parametrize("token", ["two\nlines", "naïve", "tab\t"])
def test_a_token_that_no_header_can_carry_is_refused_before_any_call(token: str) -> None:
    with pytest.raises(UsageError, match="printable ASCII"):
        NodeChannel(Address("127.0.0.1:9", False), token)


def _never(requests: Any, context: Any) -> Iterator[pb.DenoiseResponse]:
    next(requests)
    yield pb.DenoiseResponse(opened=pb.Opened(session_id="x"))
    for _ in requests:
        time.sleep(30)


def _nonsense(requests: Any, context: Any) -> Iterator[pb.DenoiseResponse]:
    next(requests)
    yield pb.DenoiseResponse(opened=pb.Opened(session_id="x"))
    for request in requests:
        logits = pb.Logits(codec=pb.CODEC_KIND_DENSE_F32, dtype="float32", shape=[1, 2], data=b"12345678")
        yield pb.DenoiseResponse(result=pb.StepResult(index=request.step.index, logits=logits))


def _nan(requests: Any, context: Any) -> Iterator[pb.DenoiseResponse]:
    next(requests)
    yield pb.DenoiseResponse(opened=pb.Opened(session_id="x"))
    data = np.full((6, 256), np.nan, "<f4").tobytes()
    for request in requests:
        logits = pb.Logits(codec=pb.CODEC_KIND_DENSE_F32, dtype="float32", shape=[6, 256], data=data)
        yield pb.DenoiseResponse(result=pb.StepResult(index=request.step.index, logits=logits))


def _own_text(requests: Any, context: Any, flags: bytes = b"\x01", count: int = 6) -> Iterator[pb.DenoiseResponse]:
    next(requests)
    yield pb.DenoiseResponse(opened=pb.Opened(session_id="x"))
    data = np.zeros((6, 256), "<f4").tobytes()
    for index in itertools.count():
        logits = pb.Logits(codec=pb.CODEC_KIND_DENSE_F32, dtype="float32", shape=[6, 256], data=data)
        yield pb.DenoiseResponse(
            result=pb.StepResult(index=index, logits=logits, w_hat_core=b"\x05\x00" * count, accepted=flags)
        )


def _endless(requests: Any, context: Any) -> Iterator[pb.DenoiseResponse]:
    yield from _own_text(requests, context)


def _broken_flags(requests: Any, context: Any) -> Iterator[pb.DenoiseResponse]:
    yield from _own_text(requests, context, flags=b"\xff\xff")


def _nothing_accepted(requests: Any, context: Any) -> Iterator[pb.DenoiseResponse]:
    yield from _own_text(requests, context, flags=b"\x00")


@pytest.mark.parametrize(
    ("privacy", "answers"),
    [
        ("open", _never), ("open", _nonsense), ("open", _nan), ("one-way", _never), ("one-way", _nonsense),
        ("one-way", _endless), ("one-way", _broken_flags), ("one-way", _nothing_accepted),
    ],
)  # fmt: skip
def test_a_node_that_misbehaves_costs_its_deadline_and_the_expert_goes_on(
    privacy: Any, answers: Any, home: Path, on_torch: Any
) -> None:
    expert = on_torch(None, "anna")
    describe = described(tokenizer_fingerprint=expert.engine.spec.tokenizer_fingerprint)
    with odd_node(describe, answers) as target:
        options = GenerateOptions(
            prompt="Hello", node=target, seed=1, max_tokens=12, block=6, codec="dense-f32", privacy=privacy,
            deadline_s=2.0, yes=True,
        )  # fmt: skip
        started = time.monotonic()
        got = answer.generate(options, home=home)
        assert time.monotonic() - started < 30
    assert got.tokens == 12 or got.finish_reason == "stop"
    if answers in (_never, _nonsense, _nan):
        assert "went on alone" in got.notes[0]
    with odd_node(describe) as target, pytest.raises(NodeMismatch, match="does not offer --decoder"):
        answer.generate(replace(options, node=target, decoder="ar"), home=home)
    with odd_node(describe) as target, pytest.raises(NodeMismatch, match="does not offer --codec"):
        answer.generate(replace(options, node=target, codec="top-k"), home=home)


@pytest.mark.parametrize("projection", ["sample", "multi-hot"])
@pytest.mark.parametrize("grid", [(1.0,), (1.0, 0.6, 0.3)])
def test_the_record_of_a_pass_can_be_read_off_the_window_after_it(projection: Any, grid: tuple[float, ...]) -> None:
    rng = np.random.default_rng(5)
    params = DecodeParams(block=5, grid=grid, max_tokens=17, entropy_budget=3.0, projection=projection, top_p=0.7)
    state = WindowState.begin(grid=grid, noise_key=1, block=5, limit=17)
    other = state
    while True:
        size = len(state.window().u)
        logp = rng.normal(size=(size, 30)).astype(np.float32) * 2
        logp -= np.log(np.exp(logp).sum(axis=-1, keepdims=True))
        record = decide(logp, state, params, draw_key=3).record
        state, committed = state.advance(record)
        if state.done:
            break
        sets, accepted = previous_record(state.window(), committed, size)
        assert accepted == record.accepted.tolist()
        if len(grid) > 1:
            assert sets.same(record.w_hat)
        other, _ = other.advance(StepRecord(TokenSets(sets.ids, sets.offsets), np.array(accepted)))
        assert other.window().w_hat.same(state.window().w_hat)
        assert (other.level == state.level).all()
        assert other.start == state.start


def test_a_ledger_can_be_closed_while_messages_are_noted(tmp_path: Path) -> None:
    """A stream's own thread may still be serialising when an answer ends."""
    for i in range(20):
        ledger = Ledger(tmp_path / f"{i}.sqlite")
        failed: list[Exception] = []

        def note(ledger: Ledger = ledger, failed: list[Exception] = failed) -> None:
            try:
                while True:
                    ledger.record(to="a:1", kind="step", size_bytes=1, sha256="0" * 64)
            except LedgerError as error:
                failed.append(error)

        thread = threading.Thread(target=note)
        thread.start()
        time.sleep(0.01)
        ledger.close()
        thread.join(10)
        assert len(failed) == 1
