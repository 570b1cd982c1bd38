"""The floor suite on a tiny model: spans, bytes, and the same numbers by two roads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ssd_bench import corpora, floor, floor_report
from ssd_bench.floor import ADAPTED, BASE, MODELS, NGRAM, TWIN, SpanScore
from ssd_bench.kneser_ney import KneserNey
from ssd_cloud.models import load
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.tokenizer import Tokenizer

TEXTS = [f"Boat {i} comes in at {i} o'clock and goes out again with the tide, says the café. " * 3 for i in range(6)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model that has learned nothing: its S1 is the base's next-token cross-entropy."""
    return write_tiny(tmp_path_factory.mktemp("floor") / "m", family="llama", vocab=300)


def test_untrained_models_agree_with_their_base(plain):
    tokenizer = Tokenizer.load(plain)
    chosen = floor.spans(tokenizer, "boats", TEXTS[:2], count=2, seed=0)
    ngram = KneserNey(corpora.stream(tokenizer, TEXTS[2:]), vocab=tokenizer.vocab)
    engine, steps = load(plain, slots=1, batch_width=1, threads=None), []
    scores = floor.measure(
        chosen, ngram=ngram, base=floor.causal_scorer(plain), adapted=engine, advance=lambda: steps.append(1)
    )
    assert len(scores) == len(steps) == 2
    for score in scores:
        assert set(score.nats) == set(MODELS)
        assert score.nats[ADAPTED] == pytest.approx(score.nats[BASE], rel=1e-4)
        assert score.nats[TWIN] == pytest.approx(score.nats[BASE], rel=1e-4)
        assert score.nats[NGRAM] < score.nats[BASE]  # random weights lose to counts on a repetitive text
    assert engine.slot_bytes(0) == 0


def test_spans_count_the_bytes_of_their_text(plain):
    tokenizer = Tokenizer.load(plain)
    chosen = floor.spans(tokenizer, "boats", [*TEXTS, "too short"], count=20, seed=1)
    assert len(chosen) == 6
    whole = [t.encode() for t in TEXTS]
    for span in chosen:
        text = tokenizer.decode(span.tokens, special=True)
        if "\ufffd" not in text:
            assert span.size_bytes == len(text.encode())
        assert any(text.strip("\ufffd").encode() in t for t in whole)
        assert len(span.context) <= floor.CONTEXT
        assert len(span.tokens) <= floor.SPAN
    again = floor.spans(tokenizer, "boats", [*TEXTS, "too short"], count=20, seed=1)
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(chosen, again, strict=True))


def test_stream_separates_documents(plain):
    tokenizer = Tokenizer.load(plain)
    ids = corpora.stream(tokenizer, ["ab", "c"])
    assert [int(i) for i in ids if i in tokenizer.eos_ids] == [tokenizer.eos_ids[0]] * 2
    assert ids[0] == tokenizer.eos_ids[0]


def test_report_and_rows():
    rng = np.random.default_rng(0)
    scores = []
    for i in range(20):
        size = int(rng.integers(100, 300))
        nats = {NGRAM: 1.5 * size, BASE: 1.0 * size, ADAPTED: 1.05 * size, TWIN: 1.01 * size}
        scores.append(SpanScore("a" if i % 2 else "b", size, nats))
    found = floor_report.values(scores, resamples=100)
    assert found["all"][ADAPTED].value == pytest.approx(1.05)
    assert found["a"][ADAPTED].n == 10
    text = floor_report.markdown(scores, about="", seconds=60, train_tokens=1234)
    assert "1,234 tokens" in text
    assert "| 1.050 |" in text
    ngram, base = floor_report.result_rows(scores)
    assert ngram.ratio == pytest.approx(1.5 / 1.05)
    assert base.ratio == pytest.approx(1 / 1.05)
    assert base.target == pytest.approx(1 / 1.1, abs=1e-4)
    json.dumps(floor_report.to_json(scores, about="", seconds=1, seed=0, train_tokens=1))
