"""Tokens: stored as hashes, asked for everywhere but in health checks."""

from __future__ import annotations

import json
import stat

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from ssd_cloud.auth import Authenticator, TokenFile
from ssd_cloud.errors import StartError, UsageError
from ssd_protos.ssd.v1 import ssd_pb2 as pb


def metadata(token):
    return (("authorization", f"Bearer {token}"),)


def test_a_token_is_kept_as_a_hash_only(tmp_path):
    file = TokenFile.under(tmp_path)
    record, token = file.new("laptop")
    text = file.path.read_text()
    assert token not in text
    assert record.sha256 in text
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert len(token) > 40
    assert Authenticator(file).caller(metadata(token)) == record.id
    assert [r.name for r in TokenFile.under(tmp_path).records()] == ["laptop"]


def test_tokens_of_one_node_are_told_apart_and_revoked_while_it_runs(tmp_path):
    file = TokenFile.under(tmp_path)
    (a, token_a), (b, token_b) = file.new(), file.new("b")
    door = Authenticator(TokenFile(file.path))
    assert (door.caller(metadata(token_a)), door.caller(metadata(token_b))) == (a.id, b.id)
    file.revoke(a.id)
    assert (door.caller(metadata(token_a)), door.caller(metadata(token_b))) == (None, b.id)
    with pytest.raises(UsageError, match="token list"):
        file.revoke(a.id)


@pytest.mark.parametrize(
    "given",
    [None, (), (("authorization", "Bearer "),), (("authorization", "Bearer wrong"),), (("authorization", "TOKEN"),),
     (("authorization", b"Bearer TOKEN"),), (("authorization", "Bearer TOKEN"), ("authorization", "Bearer TOKEN")),
     (("authorization", "bearer TOKEN"),), (("authorization", "Bearer TOKEN "),), (("x", "Bearer TOKEN"),),
     (("authorization", "Bearer \udcff"),)],
)  # fmt: skip
def test_anything_but_the_token_is_refused(given):
    assert Authenticator(None, given="TOKEN").caller(given) is None
    assert Authenticator(None, given="TOKEN").caller(metadata("TOKEN")) == "given"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "tokens": []}', '{"format": 1, "tokens": [{"id": 1}]}'])
def test_a_damaged_token_file_is_one_sentence(tmp_path, text):
    file = TokenFile.under(tmp_path)
    _, token = file.new()
    door = Authenticator(file)
    file.path.write_text(text)
    with pytest.raises(StartError, match="remove it"):
        TokenFile(file.path).records()
    assert door.caller(metadata(token)) is None


async def test_no_call_passes_without_a_token(start_node, stub_with, status_of):
    async with start_node() as run:
        for token in (None, "wrong"):
            stub = stub_with(run.channel, token)
            for call in (
                stub.Describe(pb.DescribeRequest(protocol="1")),
                stub.DenoiseStep(pb.DenoiseStepRequest(open=run.device().open(), step=pb.Step())),
                stub.Denoise().read(),
            ):
                code, text = await status_of(call)
                assert (code, "ssd-cloud token new" in text) == (grpc.StatusCode.UNAUTHENTICATED, True)
        assert run.node.store.created == 0
        assert run.node.service.counters.requests == 0


async def test_health_needs_no_token_and_reflection_does(start_node, status_of):
    async with start_node() as run:
        health = health_pb2_grpc.HealthStub(run.channel)
        for name in ("", "ssd.v1.Ssd"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(run.channel)
        code, _ = await status_of(call.ServerReflectionInfo(iter([ask]), timeout=5).read())
        assert code == grpc.StatusCode.UNAUTHENTICATED
        answer = await call.ServerReflectionInfo(
            iter([ask]), timeout=5, metadata=metadata("ssd_token-of-the-tests")
        ).read()
        assert "ssd.v1.Ssd" in {s.name for s in answer.list_services_response.service}


async def test_reflection_can_be_switched_off(start_node, status_of):
    async with start_node(reflection=False) as run:
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection_pb2_grpc.ServerReflectionStub(run.channel).ServerReflectionInfo(
            iter([ask]), timeout=5, metadata=metadata("ssd_token-of-the-tests")
        )
        code, _ = await status_of(call.read())
        assert code == grpc.StatusCode.UNIMPLEMENTED


async def test_a_session_belongs_to_its_token(start_node, stub_with, status_of, tmp_path):
    file = TokenFile.under(tmp_path)
    (_, mine), (_, theirs) = file.new(), file.new()
    async with start_node(authenticator=Authenticator(file)) as run:
        device = run.device()
        session = await device.unary(stub_with(run.channel, mine), passes=1, last=False)
        request = pb.DenoiseStepRequest(session_id=session, step=device.step)
        code, theirs_text = await status_of(stub_with(run.channel, theirs).DenoiseStep(request))
        assert code == grpc.StatusCode.NOT_FOUND
        nobodys = pb.DenoiseStepRequest(session_id="x" * 32, step=device.step)
        _, text = await status_of(stub_with(run.channel, theirs).DenoiseStep(nobodys))
        assert text == theirs_text  # another's session looks like none at all
        last = pb.DenoiseStepRequest(session_id=session, last=True)
        code, _ = await status_of(stub_with(run.channel, theirs).DenoiseStep(last))
        assert code == grpc.StatusCode.NOT_FOUND
        assert (await stub_with(run.channel, mine).DenoiseStep(request)).result.index == 1


def test_the_token_file_survives_two_writers(tmp_path):
    one, two = TokenFile.under(tmp_path), TokenFile.under(tmp_path)
    one.new("a")
    two.new("b")
    assert [t["name"] for t in json.loads(one.path.read_text())["tokens"]] == ["a", "b"]
    assert list(one.path.parent.iterdir()) == [one.path]
