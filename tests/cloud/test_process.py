"""`ssd-cloud serve` as a real process: what it prints, TLS, tokens, ports, signals, broken models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from ssd_protos.limits import PROTOCOL
from ssd_protos.ssd.v1 import ssd_pb2 as pb
from ssd_protos.ssd.v1 import ssd_pb2_grpc

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    from ssd_diffusion.models.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("models") / "tiny", family="llama", seed=3)


def environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SSD_")}
    return {**kept, "SSD_HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ssd_cloud.cli.main", *arguments]


@contextmanager
def serving(home: Path, *arguments: str) -> Iterator[tuple[dict[str, object], subprocess.Popen[str]]]:
    """A node that has said that it is ready."""
    process = subprocess.Popen(
        command("serve", "--listen", "127.0.0.1:0", "--json", *arguments), env=environment(home),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        if not line:
            pytest.fail(f"the node ended: {process.communicate()[1]}")
        yield json.loads(line), process
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def refused(home: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and message of a node that must not start."""
    done = subprocess.run(
        command("serve", "--json", *arguments), env=environment(home), capture_output=True, text=True, timeout=60
    )
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("ssd-cloud:")]
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


def describe(channel: grpc.Channel, token: str | None) -> pb.DescribeResponse:
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    return ssd_pb2_grpc.SsdStub(channel).Describe(pb.DescribeRequest(protocol=PROTOCOL), metadata=metadata, timeout=10)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def test_first_start_makes_a_token_and_sigterm_ends_in_order(tmp_path, tiny):
    with serving(tmp_path, "--model", str(tiny)) as (ready, process):
        assert set(ready) == {"listen", "token", "model", "tokenizer", "v", "b"}
        assert ready["model"].startswith("tiny-llama@")
        assert (ready["v"], ready["b"]) == (256, 32)
        with grpc.insecure_channel(ready["listen"]) as channel:
            answer = describe(channel, ready["token"])
            assert (answer.model_id, answer.tokenizer_fingerprint) == (ready["model"], ready["tokenizer"])
            for wrong in (None, "wrong"):
                with pytest.raises(grpc.RpcError) as caught:
                    describe(channel, wrong)
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        process.send_signal(signal.SIGTERM)
        code, out, err = ended(process)
        assert (code, out) == (0, ""), err
        assert "Traceback" not in err
    assert ready["token"] not in (tmp_path / "node/tokens.json").read_text()
    with serving(tmp_path, "--model", str(tiny)) as (again, process):
        assert again["token"] is None
        with grpc.insecure_channel(again["listen"]) as channel:
            assert describe(channel, ready["token"]).model_id == ready["model"]
            done = subprocess.run(command("token", "list", "--json"), env=environment(tmp_path), capture_output=True)
            token_id = json.loads(done.stdout)[0]["id"]
            subprocess.run(command("token", "revoke", token_id), env=environment(tmp_path), check=True,
                           capture_output=True)  # fmt: skip
            with pytest.raises(grpc.RpcError) as caught:
                describe(channel, ready["token"])
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] == 0


def test_tls(tmp_path, tiny, certificate):
    cert, key = certificate(tmp_path)
    flags = ("--model", str(tiny), "--tls-cert", str(cert), "--tls-key", str(key), "--token", "tls-token-1")
    with serving(tmp_path / "home", *flags) as (ready, _):
        assert ready["token"] == "tls-token-1"
        trusted = grpc.ssl_channel_credentials(cert.read_bytes())
        with grpc.secure_channel(ready["listen"], trusted) as channel:
            assert describe(channel, "tls-token-1").vocab == 256
        with grpc.insecure_channel(ready["listen"]) as channel, pytest.raises(grpc.RpcError) as caught:
            describe(channel, "tls-token-1")
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert not (tmp_path / "home/node/tokens.json").exists()


def test_a_taken_port_is_one_sentence(tmp_path, tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, text = refused(tmp_path, "--model", str(tiny), "--listen", address)
    assert (code, address in text, "--listen" in text) == (1, True, True)


def test_a_truncated_model_is_one_sentence(tmp_path, tiny):
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    code, text = refused(tmp_path / "home", "--model", str(model), "--listen", "127.0.0.1:0")
    assert code == 1
    assert len(text) < 400


def test_people_read_a_few_lines(tmp_path, tiny):
    process = subprocess.Popen(
        command("serve", "--model", str(tiny), "--listen", "127.0.0.1:0", "--log-level", "info", "--log-json"),
        env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lines = [process.stdout.readline() for _ in range(3)]
    finally:
        process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 0
    assert "tiny-llama@" in lines[0]
    assert "shown only now: ssd_" in lines[1]
    token = lines[1].split()[-1]
    assert token not in err
    events = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert {"drained"} <= {event["event"] for event in events}


def test_without_a_token_on_this_machine(tmp_path, tiny):
    with serving(tmp_path, "--model", str(tiny), "--no-token") as (ready, _):
        assert ready["token"] is None
        with grpc.insecure_channel(ready["listen"]) as channel:
            assert describe(channel, None).vocab == 256
