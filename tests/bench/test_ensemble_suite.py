"""The ensemble suite on a tiny pair: its chain of passes, its records, and the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ssd_bench import ensemble as suite
from ssd_bench import ensemble_report as report
from ssd_bench.ensemble import Document, Question, Settings, measure, reference_nats
from ssd_bench.folder import read_documents, read_questions
from ssd_bench.pair import SYSTEMS
from ssd_bench.records import Answer, Record, RecordFile
from ssd_diffusion.scores import s1, s1_autoregressive

QUESTIONS = [
    Question("q1", "Where is the spare key?", "behind the blue door", ("behind the blue door", "blue door")),
    Question("q2", "Who has the boat?", "Ann", ("Ann",)),
]
DOCUMENTS = [Document("handbook/tide.md", "High water is at nine. " * 12), Document("handbook/keys.md", "short")]
LONG = "High water is at nine. "


@pytest.mark.parametrize("decoder", ["diffusion", "ar"])
def test_one_chain_gives_what_each_system_gives_alone(tiny_pair, decoder):
    contexts = tiny_pair.contexts("Where is the key?", answer_room=24)
    tokens = tiny_pair.tokenizer.encode("behind the door")
    assert len(contexts.expert_ids) > len(contexts.core_ids)
    got = reference_nats(tiny_pair, contexts.core_ids, contexts.expert_ids, tokens, decoder, 7)
    for system in SYSTEMS:

        def opener(system=system):
            return tiny_pair.open(system, contexts.core_ids, contexts.expert_ids)

        alone = s1_autoregressive(opener, tokens) if decoder == "ar" else s1(opener, tokens, noise_keys=[7])
        assert got[system] == pytest.approx(-alone.sum(), rel=1e-4)
    assert len(set(np.round(list(got.values()), 3))) == 3


def test_members_alone_keep_to_themselves(tiny_pair):
    ids = tiny_pair.contexts("Where?", answer_room=24)
    with tiny_pair.open("core", ids.core_ids, ids.expert_ids) as core:
        assert [m.name for m in core.members] == ["core"]
    with tiny_pair.open("expert", ids.core_ids, ids.expert_ids) as expert:
        assert [m.name for m in expert.members] == ["expert"]
    with tiny_pair.open("ensemble", ids.core_ids, ids.expert_ids) as both:
        assert len(both.members) == 3
    assert tiny_pair.expert.slot_bytes(0) == tiny_pair.expert.slot_bytes(1) == 0  # all slots are given back


def test_measure_and_resume(tiny_pair, tmp_path):
    path, settings = tmp_path / "records.jsonl", Settings(max_tokens=5)
    records, steps = RecordFile(path, {"a": 1}), []
    stretches = suite.stretches_of(tiny_pair.tokenizer, DOCUMENTS)[:1]
    measure(tiny_pair, QUESTIONS, stretches, settings, records, advance=lambda: steps.append(1))
    assert len(steps) == 6
    assert sorted((r.item, r.decoder) for r in records.records) == [
        ("handbook/tide.md#0", "ar"), ("handbook/tide.md#0", "diffusion"),
        ("q1", "ar"), ("q1", "diffusion"), ("q2", "ar"), ("q2", "diffusion"),
    ]  # fmt: skip
    for record in records.records:
        assert set(record.nats) == set(SYSTEMS)
        assert set(record.answers) == (set(SYSTEMS) if record.kind == "question" else set())
        assert all(a.tokens <= 5 and a.passes >= 1 for a in record.answers.values())
    text = path.read_text()
    path.write_text(text[:-30])  # killed in the middle of the last line
    again = RecordFile(path, {"a": 1})
    assert len(again.records) == 5
    measure(tiny_pair, QUESTIONS, stretches, settings, again, advance=lambda: None)
    assert [(r.item, r.nats) for r in again.records] == [(r.item, r.nats) for r in records.records]
    assert RecordFile(path, {"a": 1}).records == again.records
    assert RecordFile(path, {"a": 2}).records == []


def test_no_time_no_items(tiny_pair, tmp_path):
    records = RecordFile(tmp_path / "r.jsonl", {})
    measure(tiny_pair, QUESTIONS, [], Settings(), records, advance=lambda: None, until=0.0)
    assert records.records == []


def test_stretch_context_leaves_its_own_passages_out(tiny_pair):
    """The one passage at hand is of keys.md, so the expert sees it before tide.md's text and not before its own."""
    found = suite.stretches_of(
        tiny_pair.tokenizer, [Document(path, LONG * 12) for path in ("handbook/tide.md", "handbook/keys.md")]
    )
    other, own = (suite._stretch(tiny_pair, found[i], "ar", Settings()) for i in (0, len(found) // 2))
    assert (other.item, own.item) == ("handbook/tide.md#0", "handbook/keys.md#0")
    assert other.nats["core"] == pytest.approx(own.nats["core"])
    assert other.nats["expert"] != pytest.approx(own.nats["expert"])


def test_stretches_cover_a_document_without_overlap(tiny_pair):
    ids = tiny_pair.tokenizer.encode(LONG * 20)
    found = suite.stretches_of(tiny_pair.tokenizer, [Document("a.md", LONG * 20), Document("b.md", "short")])
    assert len(found) == len(ids) // 80
    joined = np.concatenate([part for s in found for part in (s.prompt, s.tokens)])
    np.testing.assert_array_equal(joined, ids[: len(joined)])


def test_items_take_turns(tiny_pair):
    stretches = suite.stretches_of(tiny_pair.tokenizer, [Document("a.md", LONG * 12)])[:2]
    order = [type(i).__name__[0] for i in suite._in_turn(QUESTIONS * 2, stretches)]
    assert "".join(order) == "QQSQQS"


def made_up(n=30):
    """Records in which the ensemble is better than both by about .5 nats a token, for diffusion only."""
    rng, records = np.random.default_rng(0), []
    for i in range(n):
        tokens = int(rng.integers(2, 9))
        base = rng.uniform(2, 4) * tokens
        for decoder in ("diffusion", "ar"):
            gain = (0.5 if decoder == "diffusion" else 0.0) * tokens + rng.normal(0, 0.05)
            nats = {"core": base, "expert": base + 0.1, "ensemble": base - gain}
            said = {"core": "I do not know", "expert": "Ann", "ensemble": "Ann" if i % 2 else "Ann it is"}
            answers = {s: Answer(text, 3, 2, 0.5) for s, text in said.items()}
            records.append(Record(f"q{i}", "question", decoder, tokens, nats, ("Ann",), answers))
    return records


def test_summary_values():
    records = made_up()
    summary = report.summarise(records, resamples=500)
    s1_name = "S1 of reference answers, nats a token"
    gap = summary.get(s1_name, "diffusion", "ensemble - core")
    assert gap is not None
    assert gap.value == pytest.approx(-0.5, abs=0.05)
    assert gap.clear_of_zero
    total = sum(r.nats["core"] for r in records if r.decoder == "ar") / sum(
        r.tokens for r in records if r.decoder == "ar"
    )
    core = summary.get(s1_name, "ar", "core")
    assert core is not None
    assert core.value == pytest.approx(total)
    twin = summary.get(s1_name, "ar", "ensemble - core")
    assert twin is not None
    assert not twin.clear_of_zero
    between = summary.get(s1_name, "diffusion - autoregressive", "ensemble - core")
    assert between is not None
    assert between.value == pytest.approx(gap.value - twin.value)
    for metric, value in (("exact match", 0.5), ("reference in the answer", 1.0), ("token F1", 0.75)):
        found = summary.get(metric, "diffusion", "ensemble")
        assert found is not None
        assert found.value == pytest.approx(value)
    assert summary.get("S1 of held-out documents, nats a token", "ar", "core") is None


def test_report_and_rows(tmp_path):
    records = made_up(8)
    summary = report.summarise(records, resamples=200)
    report.plot(summary, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    text = report.markdown(summary, records, about="A pair.", seconds=90, plot="plot.png")
    assert "| core alone, diffusion | 1.50 | 6.0 |" in text
    assert "8 questions" in text
    rows = report.result_rows(records, resamples=200)
    assert [r.n for r in rows] == [8] * 4
    core = [r.nats["core"] for r in records if r.decoder == "diffusion"]
    ours = [r.nats["ensemble"] for r in records if r.decoder == "diffusion"]
    assert rows[0].ratio == pytest.approx(sum(core) / sum(ours))
    json.dumps(report.to_json(summary, records, about="", seconds=1, seed=0))


def test_reading_the_sample_folder(tmp_path):
    (tmp_path / "docs" / "a").mkdir(parents=True)
    (tmp_path / "docs" / "a" / "x.md").write_text("text of x")
    (tmp_path / "questions.jsonl").write_text(json.dumps(
        {"id": "1", "question": "Q?", "answer": "A", "accept": ["B"], "document": "docs/a/x.md"}
    ) + "\n\n")  # fmt: skip
    (question,) = read_questions(tmp_path / "questions.jsonl")
    assert question.accepted == ("A", "B")
    mails = [f"From x\nSubject: s{i}\nFrom: a@example.org\n\nBody of mail {i}.\n" for i in range(2)]
    (tmp_path / "docs" / "m.mbox").write_text("\n".join(mails))
    (tmp_path / "docs" / "empty.md").write_text("")
    paths = ["a/x.md", "a/missing.md", "m.mbox#2", "m.mbox#99", "empty.md"]
    document, mail = read_documents(tmp_path, paths)
    assert document == Document("a/x.md", "text of x")
    assert mail.path == "m.mbox#2"
    assert "Body of mail 1." in mail.text
    (tmp_path / "questions.jsonl").write_text("{}")
    with pytest.raises(ValueError, match="no questions"):
        read_questions(tmp_path / "questions.jsonl")
