"""Answering with a real node in this process: same text however the core is reached, replay, loss, one-way."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answering_support import TOKEN, RecordingProxy, TcpProxy, ThreadedNode, torch_engine
from ssd_client import answer
from ssd_client.errors import ConsentNeeded, NodeMismatch, UsageError
from ssd_client.ledger import Ledger
from ssd_client.options import USUAL_DRAFTS, GenerateOptions, with_drafts
from ssd_client.prompt import Passage
from ssd_diffusion import keys
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.errors import ContextOverflow
from ssd_diffusion.members import EngineMember
from ssd_diffusion.sampler import denoise
from ssd_protos.packing import unpack_ids
from ssd_protos.ssd.v1 import ssd_pb2 as pb

PROMPT = "Who holds the key?"
SECRET_PASSAGE = Passage("staff/keys.md", "Keys", "Ilse Brandt holds the key to the red cabinet.", 1.0)


@pytest.fixture(scope="module")
def node(core_engine: Any) -> Any:
    with ThreadedNode(core_engine) as running:
        yield running


@pytest.fixture
def options(node: ThreadedNode) -> GenerateOptions:
    return GenerateOptions(
        prompt=PROMPT, node=node.target, token=TOKEN, seed=7, max_tokens=24, block=6, codec="dense-f32",
        temperature=1.0, entropy_budget=12.0, deadline_s=20.0, yes=True,
    )  # fmt: skip


def write(options: GenerateOptions, home: Path, **changes: Any) -> Any:
    return answer.generate(replace(options, **changes), home=home)


def test_the_same_text_however_the_core_is_reached(options, home, on_torch, passages, core_engine, engines):
    passages.append(SECRET_PASSAGE)
    first = write(options, home)
    assert first.tokens == 24 or first.finish_reason == "stop"
    assert first.members == ("core", "expert", "expert without context")
    assert first.privacy == "open"
    assert first.notes == ()
    assert write(options, home).text == first.text
    assert write(options, home, wire="unary").text == first.text

    expert = on_torch(None, "anna")
    for _ in range(2):  # an expert that stays open writes one answer after the other
        again = answer.generate(options, home=home, opened=expert)
        assert again.text == first.text
        assert 0 < again.first_seconds <= again.seconds
    run = answer._prepare(options, answer.parse_prompt(PROMPT), expert, answer._Core(), home, "")
    core = EngineMember(core_engine, 8, run.contexts.core_ids, name="core")
    private = EngineMember(expert.engine, 0, run.contexts.expert_ids, name="expert")
    public = EngineMember(expert.engine, 1, run.contexts.core_ids, name="expert without context")
    with Ensemble(core=core, private=private, public=public, weights=Weights(lam=0.6, alpha=0.5)) as ensemble:
        events = list(denoise(ensemble, run.params, noise_key=keys.noise_key(7), draw_key=run.draw_key))
    ids = np.concatenate([event.committed for event in events])
    assert expert.tokenizer.decode([i for i in ids if i not in run.params.eos_ids]) == first.text
    assert len(events) == first.steps < first.tokens  # some steps accepted more than one


def test_another_seed_or_another_secret_is_another_text(options, home, on_torch, tmp_path, monkeypatch):
    first = write(options, home).text
    assert write(options, home, seed=8).text != first
    other = tmp_path / "other"
    other.write_bytes(bytes(32))
    monkeypatch.setenv("SSD_DEVICE_SECRET_FILE", str(other))
    assert write(options, home).text != first


def test_a_secret_file_that_is_none_is_named(home, tmp_path, monkeypatch):
    (tmp_path / "short").write_bytes(bytes(31))
    for named in (tmp_path / "short", tmp_path / "missing", tmp_path, "~nobody-of-that-name/secret"):
        monkeypatch.setenv("SSD_DEVICE_SECRET_FILE", str(named))
        with pytest.raises(UsageError, match="SSD_DEVICE_SECRET_FILE"):
            answer.answer_secret(home)


def test_eight_at_once_write_what_one_writes(options, home, on_torch, engines, tiny_experts, monkeypatch):
    alone = [write(options, home, seed=seed).text for seed in range(3)]
    spare = [torch_engine(tiny_experts["anna"], slots=2) for _ in range(8)]  # an engine is for one thread at a time

    def own_engine(store: Any, name: str | None) -> Any:
        return replace(on_torch(store, name), engine=spare.pop())

    monkeypatch.setattr(answer, "open_expert", own_engine)
    texts: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i: texts.__setitem__(i, write(options, home, seed=i % 3).text))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [texts[i] for i in range(8)] == [alone[i % 3] for i in range(8)]


@pytest.mark.parametrize("wire", ["stream", "unary"])
@pytest.mark.parametrize("decoder", ["diffusion", "ar"])
def test_a_cut_connection_costs_time_and_not_the_text(options, node, home, on_torch, wire, decoder):
    options = replace(options, wire=wire, decoder=decoder)
    want = write(options, home)
    with TcpProxy(node.target) as proxy:
        cuts = []

        def progress(now: Any) -> None:
            if now.steps in (1, 3):
                cuts.append(now.steps)
                proxy.cut()

        got = answer.generate(replace(options, node=proxy.target), home=home, on_progress=progress)
    assert cuts == [1, 3]
    assert got.text == want.text
    # A unary call connects anew by itself, unless it was under way when the connection broke.
    assert got.reconnects == 2 if wire == "stream" else got.reconnects <= 2
    assert got.notes == ()


@pytest.mark.parametrize("codec", ["dense-f32", "top-k:64:0"])
def test_looking_ahead_changes_the_steps_and_not_the_text(options, node, home, on_torch, passages, codec):
    passages.append(SECRET_PASSAGE)
    options = replace(options, entropy_budget=0.0, temperature=0.3, codec=codec, tv_limit=1.0)
    want = write(options, home)
    assert want.steps == want.tokens
    for drafts in (1, 3, 7):
        got = write(options, home, drafts=drafts)
        assert (got.text, got.drafts) == (want.text, drafts)
        assert got.core_steps == got.steps <= got.tokens
        assert write(options, home, drafts=drafts, wire="unary").text == want.text
        assert write(options, home, drafts=drafts, offline=True).text == write(options, home, offline=True).text
    plain, drafting = (write(options, home, drafts=3, core_drafts=core) for core in (False, True))
    assert drafting.text == plain.text
    assert drafting.bytes_down / drafting.steps > plain.bytes_down / plain.steps
    lenient = write(options, home, drafts=3, leniency=1.0, temperature=1.0)
    assert lenient.steps < lenient.tokens


def test_drafts_where_nobody_asked(options: GenerateOptions) -> None:
    """Six where the expert was taught, the node can, and nothing forbids it; what was asked for stays."""
    plain = replace(options, entropy_budget=0.0)
    able = [pb.DECODER_WINDOW, pb.DECODER_LOOKAHEAD]

    def drafts(asked: GenerateOptions, *, taught: bool = True, decoders: list[int] | None = able) -> int | None:
        return with_drafts(asked, taught=taught, decoders=decoders).drafts

    assert drafts(plain) == drafts(plain, decoders=None) == USUAL_DRAFTS == 6
    assert drafts(plain, taught=False) == 0
    assert drafts(plain, decoders=able[:1]) == 0
    for other in ({"privacy": "one-way"}, {"decoder": "ar"}, {"steps": 3}, {"entropy_budget": 0.1}, {"core_every": 2}):
        assert drafts(replace(plain, **other)) == 0  # type: ignore[arg-type]
    assert drafts(replace(plain, drafts=2), taught=False) == 2
    assert drafts(replace(plain, drafts=0)) == 0
    with pytest.raises(UsageError, match="--leniency"):
        drafts(replace(plain, leniency=0.5), taught=False)
    assert drafts(replace(plain, leniency=0.5)) == 6


def test_looking_ahead_survives_a_cut_connection(options, node, home, on_torch):
    options = replace(options, entropy_budget=0.0, temperature=0.3, drafts=2)
    want = write(options, home)
    with TcpProxy(node.target) as proxy:
        got = answer.generate(
            replace(options, node=proxy.target), home=home, on_progress=lambda p: p.steps in (1, 3) and proxy.cut()
        )
    assert (got.text, got.reconnects, got.notes) == (want.text, 2, ())


@pytest.mark.parametrize("decoder", ["diffusion", "ar"])
def test_a_unary_answer_lost_on_the_way_is_asked_for_again(options, node, home, on_torch, decoder):
    options = replace(options, wire="unary", decoder=decoder)
    want = write(options, home)
    with TcpProxy(node.target) as proxy:
        proxy.cut_after_bytes = 9_000
        got = write(options, home, node=proxy.target)
        assert proxy.cuts == 1
    assert got.text == want.text
    assert got.reconnects == 1


def test_a_node_that_stays_away_leaves_the_expert_to_finish(options, node, home, on_torch):
    with TcpProxy(node.target) as proxy:

        def progress(now: Any) -> None:
            if now.steps == 2:
                proxy.refusing = True
                proxy.cut()

        got = answer.generate(
            replace(options, node=proxy.target, deadline_s=3.0), home=home, on_progress=progress
        )  # fmt: skip
    assert got.tokens == 24 or got.finish_reason == "stop"
    assert got.core_steps == 2
    assert len(got.notes) == 1
    assert "went on alone" in got.notes[0]


def test_without_a_node_the_expert_writes_alone(options, home, on_torch):
    assert write(options, home, offline=True).privacy == "offline"
    assert write(options, home, offline=True).notes == ()
    unreachable = write(options, home, node="127.0.0.1:9", deadline_s=2.0)
    assert "wrote this answer alone" in unreachable.notes[0]
    assert unreachable.text == write(options, home, offline=True).text
    refused = write(options, home, token="wrong-token")
    assert "--token" in refused.notes[0]
    assert refused.members == ("expert",)
    assert "no node was named" in write(options, home, node=None).notes[0]


def test_what_goes_up_in_open_is_the_prompt_and_the_estimates(options, node, home, on_torch, passages):
    passages.append(SECRET_PASSAGE)
    private = replace(
        options, prompt="Who holds the [[red cabinet]] key?", private=("My number is 4711.",), codec="top-k:8:0"
    )
    with RecordingProxy(node.target) as proxy:
        got = write(private, home, node=proxy.target)
        sent = proxy.messages("Denoise")
        assert [name for name, _ in proxy.sent].count("/ssd.v1.Ssd/Describe") == 1
        assert len(proxy.sent) == len(sent) + 1
        keys_sent = {key for _, headers in proxy.headers for key, _ in headers}
    assert keys_sent <= {"authorization", "user-agent"}
    requests = [pb.DenoiseRequest.FromString(data) for data in sent]
    for request, data in zip(requests, sent, strict=True):
        assert request.SerializeToString(deterministic=True) == data  # no unknown fields
    opened, steps, closed = requests[0].open, [r.step for r in requests[1:-1]], requests[-1]
    assert closed.WhichOneof("kind") == "close"
    assert {f.name for f, _ in opened.ListFields()} == {
        "protocol", "model_id", "tokenizer_fingerprint", "prompt_ids", "noise_key", "decoder", "mode", "params",
        "codec",
    }  # fmt: skip
    assert {f.name for f, _ in opened.params.ListFields()} == {"block", "grid", "max_tokens", "projection"}
    expert = on_torch(None, "anna")
    prompt = unpack_ids(opened.prompt_ids, 256)
    assert expert.tokenizer.chat([{"role": "user", "content": "Who holds the key?"}]).tolist() == prompt.tolist()
    assert opened.noise_key == keys.noise_key(7)
    assert opened.noise_key != keys.draw_key(bytes(range(32)), 7)
    assert [s.index for s in steps] == sorted(s.index for s in steps)
    assert {s.index for s in steps} == set(range(got.core_steps))
    tokens: list[int] = []
    for step in steps[1:]:
        assert {f.name for f, _ in step.ListFields()} <= {"index", "w_hat", "accepted", "k"}
    for before, step in pairwise(steps):
        if step.index == before.index:  # the same pass, asked for with a wider codec
            assert (step.w_hat, step.accepted) == (before.w_hat, before.accepted)
            continue
        ids = unpack_ids(step.w_hat, 256)
        flags = np.unpackbits(np.frombuffer(step.accepted, np.uint8), bitorder="little")[: len(ids)].astype(bool)
        tokens += ids[: len(ids) if flags.all() else int(np.argmin(flags))].tolist()
    text = expert.tokenizer.decode(tokens)
    assert got.text.startswith(text.rstrip("\ufffd"))
    everything = b"".join(data for _, data in proxy.sent)
    for word in (b"Brandt", b"4711", b"red cabinet", b"anna", b"keys.md"):
        assert word not in everything
    assert got.bytes_up == sum(len(data) for _, data in proxy.sent)
    with Ledger(home / answer.LEDGER_FILE) as ledger:
        entries = ledger.entries(1000, got.session)[::-1]
    assert [e.sha256 for e in entries] == [hashlib.sha256(data).hexdigest() for _, data in proxy.sent]
    assert [e.size_bytes for e in entries] == [len(data) for _, data in proxy.sent]
    assert [e.kind for e in entries] == ["describe", "open", *["step"] * len(steps), "close"]


@pytest.mark.parametrize("decoder", ["diffusion", "ar"])
def test_one_way_sends_the_same_bytes_whatever_the_expert(options, node, home, on_torch, passages, decoder):
    options = replace(options, privacy="one-way", decoder=decoder, codec="top-k:8:0")
    runs, texts = [], []
    for expert, shown, lam in (("anna", [], None), ("bert", [SECRET_PASSAGE], 0.95), ("anna", [SECRET_PASSAGE], 1.0)):
        passages[:] = shown
        with RecordingProxy(node.target) as proxy:
            got = write(options, home, expert=expert, lam=lam, node=proxy.target)
            runs.append(list(proxy.sent))
            texts.append(got.text)
        assert got.privacy == "one-way"
        assert not any("lost" in note for note in got.notes)
    assert runs[0] == runs[1] == runs[2]
    assert [name.rsplit("/", 1)[1] for name, _ in runs[0]] == ["Describe", "Denoise"]
    assert len(set(texts)) == 3
    opened = pb.DenoiseRequest.FromString(runs[0][1][1]).open
    assert opened.params.core_draw_key == keys.core_draw_key(7)


def test_one_way_survives_a_cut_connection(options, node, home, on_torch):
    options = replace(options, privacy="one-way")
    want = write(options, home)
    with TcpProxy(node.target) as proxy, RecordingProxy(proxy.target) as recorder:
        proxy.cut_after_bytes = 20_000
        got = write(options, home, node=recorder.target)
        opens = recorder.messages("Denoise")
        assert proxy.cuts == 1
    assert got.text == want.text
    assert len(opens) == 2
    assert opens[0] == opens[1]


def test_one_way_alone_is_the_cores_own_text(options, home, on_torch, core_engine):
    """With lambda 0 and greedy reading, what is delivered is what the node wrote."""
    got = write(options, home, privacy="one-way", lam=0.0, alpha=0.0, projection="greedy")
    same = write(options, home, privacy="open", lam=0.0, alpha=0.0, projection="greedy")
    assert got.text == same.text


def test_a_core_that_is_asked_now_and_then_is_told_of_every_step(options, home, on_torch, core_engine):
    sparse = write(options, home, core_every=3, entropy_budget=6.0)
    assert sparse.core_steps == -(-sparse.steps // 3)
    expert = on_torch(None, "anna")
    asked = replace(options, entropy_budget=6.0)
    run = answer._prepare(asked, answer.parse_prompt(PROMPT), expert, answer._Core(), home, "")
    core = EngineMember(core_engine, 8, run.contexts.core_ids, name="core")
    private = EngineMember(expert.engine, 0, run.contexts.expert_ids, name="expert")
    with Ensemble(core=core, private=private, public=None, weights=Weights(lam=0.6, core_every=3)) as ensemble:
        events = list(denoise(ensemble, run.params, noise_key=keys.noise_key(7), draw_key=run.draw_key))
    ids = [int(i) for event in events for i in event.committed if i not in run.params.eos_ids]
    assert expert.tokenizer.decode(ids) == sparse.text
    assert write(asked, home, core_every=3, wire="unary").text == sparse.text


def test_a_node_of_another_vocabulary_is_refused(options, home, on_torch):
    with pytest.raises(NodeMismatch) as caught:
        write(options, home, expert="foreign")
    assert len([word for word in str(caught.value).split() if len(word.strip("(),;")) == 64]) == 2


def test_nothing_is_sent_without_agreement(options, node, home, on_torch):
    with RecordingProxy(node.target) as proxy:
        asking = replace(options, node=proxy.target, yes=False)
        with pytest.raises(ConsentNeeded):
            answer.generate(asking, home=home)
        shown = []
        with pytest.raises(ConsentNeeded):
            answer.generate(asking, home=home, ask=lambda d: bool(shown.append(d)))
        assert proxy.messages("Denoise") == []
        answer.generate(asking, home=home, ask=lambda d: True)
        sent = len(proxy.messages("Denoise"))
        assert sent > 0
        answer.generate(asking, home=home)  # agreed once, for this node and mode
        with pytest.raises(ConsentNeeded):
            answer.generate(replace(asking, privacy="one-way"), home=home)
    assert "Who holds the key?" in shown[0].public_text


def test_preview_sends_nothing(options, node, home, on_torch, passages):
    passages.append(SECRET_PASSAGE)
    with RecordingProxy(node.target) as proxy:
        disclosure, contexts = answer.preview(replace(options, node=proxy.target), home=home)
        assert proxy.sent == []
    assert "Ilse" not in disclosure.public_text
    assert "Ilse" in contexts.expert_text
    assert not (home / answer.LEDGER_FILE).exists()


def test_prompts_that_do_not_fit_are_refused(options, home, on_torch):
    with pytest.raises(ContextOverflow, match="shorten the prompt"):
        write(options, home, prompt="word " * 400)
    with pytest.raises(ContextOverflow, match="private text"):
        write(options, home, private=("word " * 400,))
    with pytest.raises(ContextOverflow):
        write(options, home, max_tokens=1020)


def test_passages_that_do_not_fit_are_left_out(options, home, on_torch, passages):
    passages += [SECRET_PASSAGE, Passage("long.md", "", "word " * 400, 0.5), replace(SECRET_PASSAGE, place="Again")]
    got = write(options, home)
    assert [p.place for p in got.passages] == ["Keys", "Again"]


def test_a_wider_answer_is_asked_for_where_the_codec_is_too_rough(options, home, on_torch):
    rough = write(options, home, codec="top-k:2:0", tv_limit=1.0)
    assert rough.tv_bound["asked_again"] == 0
    fine = write(options, home, codec="top-k:2:0", tv_limit=0.2)
    assert fine.tv_bound["asked_again"] > 0
    assert fine.tv_bound["mean"] < rough.tv_bound["mean"]
    assert fine.bytes_down > rough.bytes_down
    one_way = write(options, home, codec="top-k:2:0", tv_limit=0.0, privacy="one-way")
    assert one_way.tv_bound["asked_again"] == 0


def test_a_ledger_that_cannot_be_written_sends_nothing(options, node, home, on_torch):
    (home / answer.LEDGER_FILE).mkdir()
    with RecordingProxy(node.target) as proxy:
        got = write(options, home, node=proxy.target)
        assert proxy.sent == []
    assert "ledger" in got.notes[0]
    assert got.members == ("expert",)


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"max_tokens": 0}, {"block": 0}, {"lam": 1.5}, {"alpha": -1.0}, {"temperature": float("nan")},
        {"codec": "zip"}, {"decoder": "rnn"}, {"privacy": "secret"}, {"node": "a b"}, {"node": "host:99999"},
        {"prompt": "  "}, {"prompt": "a [[b"}, {"prompt": "[[all]]"}, {"private": ("@/does/not/exist",)},
        {"privacy": "one-way", "wire": "unary"}, {"seed": 2**70}, {"core_every": 0},
        {"privacy": "one-way", "core_every": 2}, {"drafts": -1}, {"drafts": 17}, {"leniency": 0.5, "drafts": 0},
        {"drafts": 2, "leniency": 2.0}, {"drafts": 2, "privacy": "one-way"}, {"drafts": 2, "decoder": "ar"},
        {"drafts": 2, "projection": "multi-hot"}, {"drafts": 2, "steps": 4}, {"drafts": 2, "entropy_budget": 1.0},
        {"drafts": 2, "core_every": 2},
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_exit_code_2(options, home, on_torch, bad):
    with pytest.raises(UsageError) as caught:
        write(options, home, **bad)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_sessions_on_the_node_are_all_released(node):
    end = time.monotonic() + 10
    while node.node.store.active and time.monotonic() < end:
        time.sleep(0.02)
    assert node.node.store.active == 0
