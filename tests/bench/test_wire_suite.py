"""The wire suite: its bytes are the messages' own, and its figures mean what they say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from ssd_bench import wire, wire_report
from ssd_bench.wire import Channel, Members, answer, channels, divergence, request_bytes, synthetic_pass
from ssd_diffusion.ensemble import Weights
from ssd_diffusion.window import StepRecord
from ssd_kernels.codec import CodecSpec
from ssd_kernels.combine import entropy, log_softmax
from ssd_kernels.types import TokenSets
from ssd_protos.ssd.v1 import ssd_pb2


def members(seed=0, block=6, vocab=120):
    rng = np.random.default_rng(seed)
    core, private = (3 * rng.normal(size=(block, vocab))).astype(np.float32), rng.normal(size=(block, vocab))
    return Members(core, private.astype(np.float32), None)


def test_dense_bytes_and_no_loss():
    exact = members()
    channel = Channel(CodecSpec.parse("dense-f32"), Weights(lam=0.3), 120, limit=0.5)
    got = channel.fused(exact, up_bytes=50)
    np.testing.assert_allclose(got, wire.fuse_members(exact, Weights(lam=0.3)), atol=1e-6)
    assert channel.tally.up == [50]
    assert 6 * 120 * 4 < channel.tally.down[0] < 6 * 120 * 4 + 80
    raw = answer(exact.core, CodecSpec.parse("dense-f32"), index=1)
    assert channel.tally.down[0] == 5 + len(raw.SerializeToString())


def test_a_wider_answer_is_asked_for_and_counted():
    """One entry a row leaves nearly all mass in the tail: the device asks once for more."""
    exact = members()
    calm, strict = (Channel(CodecSpec.parse("top-k:1:0"), Weights(lam=0.3), 120, limit=x) for x in (1.0, 0.05))
    for channel in (calm, strict):
        channel.fused(exact, up_bytes=20)
    assert calm.tally.asked_again == 0
    assert strict.tally.asked_again == 1
    assert strict.tally.down[0] > calm.tally.down[0] * 1.5
    assert strict.tally.up[0] == 20 + 23


def test_request_bytes_are_the_protocols():
    record = StepRecord(TokenSets.single(np.arange(16, dtype=np.int32)), np.zeros(16, np.bool_))
    step = ssd_pb2.Step(index=9, w_hat=np.arange(16, dtype="<u2").tobytes(), accepted=b"\0\0")
    assert request_bytes(record, index=9, vocab=50_272) == 5 + len(
        ssd_pb2.DenoiseRequest(step=step).SerializeToString()
    )
    assert request_bytes(None, index=0, vocab=50_272) < 12
    assert request_bytes(record, index=9, vocab=70_000) == request_bytes(record, index=9, vocab=50_272) + 32


def test_divergence():
    p = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    q = np.log(np.array([[0.25, 0.5, 0.25]], np.float32))
    assert divergence(p, q)[0] == pytest.approx(0.5 * np.log(2) - 0.25 * np.log(2))
    assert divergence(p, p)[0] == pytest.approx(0, abs=1e-7)


def test_synthetic_rows_have_their_entropies():
    got = synthetic_pass(np.random.default_rng(0), block=8, vocab=4000)
    assert got.public is None
    nats = entropy(log_softmax(got.core))
    np.testing.assert_allclose(nats[:6], np.linspace(0.1, 7.0, 8)[:6], atol=0.01)
    assert (nats[6:] > 5.2).all()  # a vocabulary of 4,000 does not reach 6 nats with this unigram
    np.testing.assert_array_equal(got.core, synthetic_pass(np.random.default_rng(0), block=8, vocab=4000).core)


def test_a_decode_and_the_report(tiny_pair):
    chans = channels(tiny_pair.weights, 300, default="top-k:8:0")
    ids = tiny_pair.contexts("Where is the key?", answer_room=24)
    tokens = wire.decode_once(tiny_pair, ids.core_ids, ids.expert_ids, chans, seed=3, max_tokens=12)
    assert 1 <= tokens <= 12
    reference = tiny_pair.tokenizer.encode("behind it")
    wire.reference_change(tiny_pair, ids.core_ids, ids.expert_ids, reference, chans)
    dense, half, sparse = (wire_report.numbers(c.tally) for c in chans)
    assert dense["same"] == 1.0
    assert abs(dense["s1_mean"]) < 1e-5
    assert abs(half["s1_mean"]) < 0.01
    assert dense["passes"] == sparse["passes"] > 0
    assert sparse["kl_mean"] > half["kl_mean"] >= 0
    assert sparse["down_mean"] < half["down_mean"] < dense["down_mean"]
    assert sparse["s1_tokens"] == len(reference)
    part = wire_report.Part("Default decode", "Tiny.", 300, chans)
    text = wire_report.markdown([part], seconds=60)
    assert f"{dense['down_mean']:,.0f} B" in text
    rows = {row.name: row for row in wire_report.result_rows([part])}
    naive = rows["Default decode: dense float32 both ways / default"]
    naive_bytes = 2 * 4 * sparse["rows_mean"] * 300
    assert naive.ratio == pytest.approx(naive_bytes / (sparse["down_mean"] + sparse["up_mean"]))
    assert rows["Default decode: draws as with exact logits"].target == 0.99
    json.dumps(wire_report.to_json([part], seconds=1, seed=0))


def test_a_decode_with_drafts(tiny_pair):
    """Exact rows for every draft, most of their bytes for the likely paths, and only rows on the path compared."""

    class Silent:
        def add(self, logp, before):
            return logp

    pair = replace(tiny_pair, drafter=Silent())
    chans = channels(pair.weights, 300, default="top-k:200:0")
    ids = pair.contexts("Where is the key?", answer_room=24)
    tokens = wire.decode_once(pair, ids.core_ids, ids.expert_ids, chans, seed=3, max_tokens=12)
    plain = channels(pair.weights, 300, default="top-k:200:0")
    assert wire.decode_once(tiny_pair, ids.core_ids, ids.expert_ids, plain, seed=3, max_tokens=12) == tokens
    dense, _, sparse = (c.tally for c in chans)
    assert dense.rows == dense.same == tokens
    assert dense.carried[0] == 1
    assert max(dense.carried) == 7
    assert sparse.rows == tokens
    assert len(dense.kl) == tokens
    assert max(dense.kl) < 1e-5
    alone = sparse.down[0]
    assert sparse.down[dense.carried.index(7)] < 7 * alone  # unlikely paths have fewer entries


def test_wrong_logits_do_not_draw_the_same(tiny_pair, monkeypatch):
    """The comparison can fail: a channel that garbles the rows is found out."""
    chans = channels(tiny_pair.weights, 300, default="top-k:8:0")
    monkeypatch.setattr(
        chans[1],
        "fused",
        lambda m, *, up_bytes: chans[0].fused(Members(m.core[:, ::-1], m.private, m.public), up_bytes=up_bytes),
    )
    ids = tiny_pair.contexts("Where is the key?", answer_room=24)
    wire.decode_once(tiny_pair, ids.core_ids, ids.expert_ids, chans, seed=3, max_tokens=12)
    assert chans[1].tally.same < chans[1].tally.rows
    assert np.mean(chans[1].tally.kl) > 0.05
