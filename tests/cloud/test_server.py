"""Addresses, certificates, logging and broken models, without a process of their own."""

from __future__ import annotations

import json
import logging
import shutil
import socket

import numpy as np
import pytest
from ssd_cloud import logs, models
from ssd_cloud.auth import Authenticator
from ssd_cloud.errors import StartError, UsageError
from ssd_cloud.server import Address, Node, Settings, preflight
from ssd_diffusion.errors import InvalidModel


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [("127.0.0.1:0", "127.0.0.1", 0, True), ("[::1]:7", "::1", 7, True), ("localhost:1", "localhost", 1, True),
     ("0.0.0.0:80", "0.0.0.0", 80, False), ("node.example:65535", "node.example", 65535, False)],
)  # fmt: skip
def test_addresses(text, host, port, loopback):
    address = Address.parse(text)
    assert (address.host, address.port, address.loopback, str(address)) == (host, port, loopback, text)


@pytest.mark.parametrize("text", ["", "127.0.0.1", ":80", "a:b", "a:-1", "a:65536", "a:８０"])
def test_no_addresses(text):
    with pytest.raises(UsageError, match="HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize("wrong", ["no key", "empty", "swapped", "missing", "another key"])
def test_a_bad_certificate_is_one_sentence(tmp_path, certificate, wrong):
    cert, key = certificate(tmp_path)
    if wrong == "empty":
        cert.write_bytes(b"")
    if wrong == "missing":
        cert.unlink()
    if wrong == "another key":
        (tmp_path / "more").mkdir()
        key = certificate(tmp_path / "more")[1]
    given = {"no key": None, "swapped": cert}.get(wrong, key)
    settings = Settings(listen=Address("127.0.0.1", 0), tls_cert=cert, tls_key=given)
    with pytest.raises(UsageError if wrong == "no key" else StartError) as caught:
        preflight(settings)
    assert "\n" not in str(caught.value)


async def test_a_port_that_is_taken(fake_engine):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(listen=Address("127.0.0.1", taken.getsockname()[1]))
        with pytest.raises(StartError, match="--listen"):
            preflight(settings)
        node = Node(fake_engine(), settings, Authenticator(None, required=False))
        with pytest.raises(StartError, match="in use"):
            await node.start()
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(StartError, match="--listen"):
            preflight(Settings(listen=Address(host, 0)))


async def test_two_nodes_never_share_a_port(start_node, fake_engine):
    async with start_node() as run:
        second = Node(fake_engine(), Settings(listen=run.address), Authenticator(None, required=False))
        with pytest.raises(StartError):
            await second.start()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from ssd_diffusion.models.tiny import write_tiny

    return write_tiny(tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "no weights", "no model.json", "nan", "no diffusion"])
def test_a_damaged_model_is_one_sentence(tmp_path, tiny, damage):
    model = tmp_path / "model"
    shutil.copytree(tiny, model)
    weights = model / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-5000])
    elif damage == "foreign":
        weights.write_bytes(b"this is no safetensors file" * 100)
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no model.json":
        (model / "model.json").write_text("[]")
    elif damage == "no diffusion":
        (model / "diffusion.safetensors").unlink()
    else:
        import torch
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        save_file({k: torch.full_like(v, float("nan")) for k, v in tensors.items()}, weights, {"format": "pt"})
    with pytest.raises(InvalidModel) as caught:
        models.load(model, slots=1, batch_width=1, threads=None)
    assert len(str(caught.value)) < 400


def test_models_by_name_and_path(tmp_path, tiny):
    assert models.resolve(str(tiny), tmp_path) == tiny
    shutil.copytree(tiny, tmp_path / "models" / "mine")
    assert models.resolve("mine", tmp_path) == tmp_path / "models" / "mine"
    assert {m.name: m.ready for m in models.listed(tmp_path)} == {models.PACKAGED: False, "mine": True}
    with pytest.raises(StartError, match="ssd-cloud models"):
        models.resolve("other", tmp_path)


def test_an_engine_without_usable_logits_is_refused(fake_engine):
    models.try_one_pass(fake_engine())
    models.try_one_pass(fake_engine(family="ssdlm"))
    broken = fake_engine()
    broken.nan = True
    with pytest.raises(InvalidModel, match="damaged"):
        models.try_one_pass(broken)


def test_log_lines_carry_fields():
    record = logging.makeLogRecord(
        {"msg": "call refused", "levelno": 20, "levelname": "INFO", "name": "n", "code": "X"}
    )
    line = json.loads(logs.JsonFormatter().format(record))
    assert (line["event"], line["level"], line["code"]) == ("call refused", "info", "X")
    assert "call refused code=X" in logs.TextFormatter().format(record)


async def test_no_log_line_holds_what_a_caller_sent(start_node, fake_engine, caplog, status_of):
    from ssd_protos.ssd.v1 import ssd_pb2 as pb

    caplog.set_level(logging.DEBUG, logger="ssd_cloud")
    async with start_node(fake_engine()) as run:
        device = run.device(prompt=[213, 214, 215])
        session = await device.unary(run.stub, passes=2, last=False)
        run.engine.fail = {"step"}
        await status_of(run.stub.DenoiseStep(pb.DenoiseStepRequest(session_id=session, step=device.step)))
    assert {r.getMessage() for r in caplog.records} >= {"engine call failed", "call refused", "drained"}
    text = " ".join(logs.JsonFormatter().format(r) for r in caplog.records)
    assert session not in text
    assert "secret detail" not in text
    assert "213" not in text.replace(str(np.pi), "")
    assert "ssd_token" not in text
