"""The personal suite on tiny models: its passes against the product's, its rules, and a whole run that is continued."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ssd_bench.personal import answers, asking, cloze, figures, greedy, heldout, reading, recall, run, sets
from ssd_bench.personal.conclusions import sentences, verdict
from ssd_bench.personal.reading import Reading
from ssd_bench.personal.results import Result
from ssd_bench.personal.sentences import Sentences
from ssd_bench.quality import denoising
from ssd_bench.stats import Interval
from ssd_client.personalize import weights
from ssd_client.personalize.corpus import Unit
from ssd_cloud.models import load
from ssd_diffusion import autoregressive, sampler
from ssd_diffusion.ensemble import Weights
from ssd_diffusion.keys import noise_key
from ssd_diffusion.members import EngineMember
from ssd_diffusion.models import folder as folders
from ssd_diffusion.scores import s3
from ssd_diffusion.tokenizer import Tokenizer
from ssd_diffusion.training.data import Batch
from ssd_diffusion.training.evaluate import block_losses, next_token_losses
from ssd_kernels.combine import fuse

TOPICS = ("boats", "keys", "invoices", "pumps", "gardens", "letters", "engines", "stores", "ropes", "lamps")


@pytest.fixture(scope="module")
def documents(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("personal") / "company"
    folder.mkdir()
    for i, topic in enumerate(TOPICS):
        lines = [
            f"The {topic} of house {i} are counted on {d + 1} March, {d * i + 40} in all, so Ada {topic.title()} signs."
            for d in range(7)
        ]
        (folder / f"{topic}.md").write_text(f"# Blue {topic.title()} Card: Fees\n\n- Annual fee: ${i + 20}.00\n\n"
                                            + "\n\n".join(lines))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tiny(tiny_folders):
    return folders.load(tiny_folders[0])[0]


@pytest.fixture(scope="module")
def tokenizer(tiny_folders) -> Tokenizer:
    return Tokenizer.load(tiny_folders[0])


@pytest.mark.parametrize("decoder", ["diffusion", "ar"])
@pytest.mark.parametrize("system", ["core", "expert", "ensemble"])
def test_a_batch_writes_what_the_clients_decoders_write(tiny_pair, tiny_folders, decoder, system):
    questions = ["Where is the spare key?", "Who has the boat, and since when?", "Why?", "How many keys are there?"]
    contexts = [tiny_pair.contexts(q, answer_room=12) for q in questions]
    assert len({len(c.expert_ids) for c in contexts}) > 1
    core = load(tiny_folders[0], slots=4, batch_width=3, threads=None)
    expert = load(tiny_folders[1], slots=8, batch_width=3, threads=None)
    members = greedy.Members(
        core=None if system == "expert" else greedy.Voice(core, [c.core_ids for c in contexts]),
        private=None if system == "core" else greedy.Voice(expert, [c.expert_ids for c in contexts]),
        public=greedy.Voice(expert, [c.core_ids for c in contexts]) if system == "ensemble" else None,
        weights=tiny_pair.weights,
    )  # fmt: skip
    written = greedy.write(members, decoder=decoder, max_tokens=12, eos_ids=tiny_pair.eos_ids)
    for ids, context in zip(written, contexts, strict=True):
        assert ids == _alone(tiny_pair, system, context, decoder)
    assert len({tuple(ids) for ids in written}) > 1
    assert all(engine.slot_bytes(slot) == 0 for engine in (core, expert) for slot in range(4))


def _alone(pair, system, context, decoder) -> list[int]:
    params = pair.params(decoder, max_tokens=12, projection="greedy")
    with pair.open(system, context.core_ids, context.expert_ids) as opened:
        if decoder == "ar":
            events = list(autoregressive.decode(opened, params, draw_key=0))
        else:
            events = list(sampler.denoise(opened, params, noise_key=noise_key(0), draw_key=0))
    ids = [int(token) for event in events for token in event.committed]
    return [token for token in ids if token not in params.eos_ids]


def test_an_end_token_ends_its_own_answer_alone(tiny_folders, tiny_pair):
    contexts = [tiny_pair.contexts(q, answer_room=12).core_ids for q in ("Where is the key?", "Who?", "When is it?")]
    engine = load(tiny_folders[0], slots=3, batch_width=2, threads=None)
    members = greedy.Members(core=greedy.Voice(engine, contexts))
    free = greedy.write(members, decoder="ar", max_tokens=8, eos_ids=())
    stop = free[0][3]
    stopped = greedy.write(members, decoder="ar", max_tokens=8, eos_ids=(stop,))
    assert stopped == [ids[: ids.index(stop)] if stop in ids else ids for ids in free]
    with pytest.raises(ValueError, match="one at least"):
        greedy.write(greedy.Members(), decoder="ar", max_tokens=8, eos_ids=())


def test_one_pass_reads_the_chain_the_twin_and_noisy_blocks(tiny, tokenizer):
    ids = tokenizer.encode("High water is at nine, and the boat leaves a quarter of an hour before that. " * 4)
    context, target = ids[:20], ids[20:52]
    found = Reading(tiny, context, target, seed=3)
    torch.testing.assert_close(found.logits("s1"), weights.first_position_logits(tiny, context, target))
    rows = torch.from_numpy(np.concatenate([context, target]).astype(np.int64))[None]
    plain = next_token_losses(tiny, rows)[0, 19:]
    torch.testing.assert_close(_nats(found.logits("next"), target), plain)
    u = torch.tensor(reading.LEVELS).repeat_interleave(2)[None, :, None].expand(1, 4, denoising.BLOCK).contiguous()
    batch = Batch(rows, torch.tensor([[20, 36, 20, 36]]), rows >= 0, denoising.BLOCK)
    torch.testing.assert_close(
        _nats(found.logits("s2"), reading.truth(target, "s2")), block_losses(tiny, batch, u, 3).flatten()
    )


def test_weights_are_scored_as_the_ensemble_fuses(tiny, tiny_folders, tokenizer):
    ids = tokenizer.encode("High water is at nine, and the boat leaves a quarter of an hour before that, most days.")
    core = Reading(tiny, ids[:10], ids[20:30]).logits("s1")
    other = folders.load(tiny_folders[1])[0]
    private, public = (Reading(other, ids[first:20], ids[20:30]).logits("s1") for first in (0, 10))
    pairs = [heldout.CORE, heldout.EXPERT, (0.4, 0.0), (0.4, 0.5), (0.9, 1.0)]
    found = weights.of_truth(core, private, public, ids[20:30], pairs)
    for lam, alpha in pairs:
        rows = [part.numpy() for part in (core, private, public)]
        fused = fuse(*rows, lam=lam, alpha=alpha)[np.arange(10), ids[20:30]]
        np.testing.assert_allclose(found[lam, alpha].numpy(), fused, atol=1e-4)
    assert len({round(float(rows.sum()), 3) for rows in found.values()}) == len(pairs)


def _nats(logits, target):
    truth = torch.from_numpy(target.astype(np.int64))[:, None]
    return -torch.log_softmax(logits, -1).gather(1, truth)[:, 0]


def test_a_hidden_fact_is_read_as_the_infill_score_reads_it(tiny, tiny_folders, tokenizer):
    text = "Seven boats lie in the harbour and one of them is painted blue, they say, because the paint was cheap."
    ids = tokenizer.encode(text)
    span = cloze.Span("a@1", "a", "name", "x", ids[:30], ids[30:31], ids[31 : 31 + cloze.RIGHT])
    found = recall.read(tiny, span)
    engine = load(tiny_folders[0], slots=1, batch_width=1, threads=None)
    pair = SimpleNamespace(member=lambda: EngineMember(engine, 0, span.left, name="core"))

    def opened():
        from ssd_diffusion.ensemble import Ensemble

        return Ensemble(core=pair.member(), private=None, public=None, weights=Weights(lam=0.0))

    assert -recall.score(found["both"], span)[0] == pytest.approx(s3(opened, span.tokens, span.right)[0], abs=1e-4)
    longer = replace(span, tokens=ids[30:34], right=ids[34 : 34 + cloze.RIGHT])
    found = recall.read(tiny, longer)
    left = denoising.chain(tiny, ids[:34], first=30).sum()
    assert recall.score(found["left"], longer)[0] == pytest.approx(left, abs=1e-3)
    assert recall.score(found["both"], longer)[0] != pytest.approx(left, abs=1e-3)


def test_filled_is_what_greedy_writing_gives(tiny, tokenizer):
    ids = tokenizer.encode("Seven boats lie in the harbour and one of them is painted blue, they say, all day long.")
    right, tokens = ids[34 : 34 + cloze.RIGHT], np.array([5, 5, 5], np.int32)
    for place in range(3):  # position by position, the right side in sight
        span = cloze.Span("a@1", "a", "name", "x", ids[:30], tokens, right)
        tokens[place] = int(recall.read(tiny, span)["both"][place].argmax())
    assert recall.score(recall.read(tiny, span)["both"], span)[1]
    other = replace(span, tokens=np.array([*tokens[:2], (tokens[2] + 1) % 256], np.int32))
    assert not recall.score(recall.read(tiny, other)["both"], other)[1]


def test_hidden_facts_stand_in_their_documents(documents, tokenizer):
    units = [Unit(p.name, p.stem, p.read_text(), tokenizer.encode(p.read_text())) for p in sorted(documents.iterdir())]
    found = cloze.spans(tokenizer, units, limit=16, seed=0)
    assert len(found) == 16
    assert len({span.document for span in found[: len(units)]}) == len({span.document for span in found})
    assert len({span.id for span in found}) == 16
    for span in found:
        whole = next(unit.text for unit in units if unit.path == span.document)
        around = tokenizer.decode(np.concatenate([span.left, span.tokens, span.right]))
        assert around in whole
        assert tokenizer.decode(span.tokens).strip() == span.text
        assert len(span.tokens) <= cloze.MOST_TOKENS
        assert len(span.right) == cloze.RIGHT
    fewer = cloze.spans(tokenizer, units, limit=5, seed=0)
    assert [span.id for span in fewer] == [span.id for span in found[:5]]
    assert [span.id for span in cloze.spans(tokenizer, units, limit=16, seed=1)] != [span.id for span in found]


def test_facts_of_every_kind_are_found_once():
    text = "Since 3 May 2021 it costs £27.50 from 9:40, says Maren Quist of Old Harbour, for 12 days, 4 boats and 5%."
    found = [(kind, text[start:end]) for kind, start, end in cloze._places(text)]
    assert found == [
        ("date", "3 May 2021"), ("amount", "£27.50"), ("time", "9:40"), ("name", "Maren Quist of Old Harbour"),
        ("amount", "12 days"), ("number", "4"), ("amount", "5%"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text", "question", "accepted"),
    [
        ("a.md", "# Blue Card: Fees\n\n- Annual fee: $59.00\n", "What is the annual fee of the Blue Card?",
         ("$59.00", "$59")),
        ("b.md", "# Blue Card: Fees\n\nThe annual fee is $59 then.\n", "What is the annual fee of the Blue Card?",
         ("$59",)),
        ("c.md", "gc.auto\n\nPack when there are so many. The default value is 6700. Zero stops it.",
         "What is the default value of gc.auto?", ("6700",)),
        ("d.md", "From: Ann Lee Kay <a@example.org>\nDate: Tue, 10 Sep 2002 09:27 -0700\nSubject: Sorting\n\nHello.",
         'Who wrote the mail of 10 Sep 2002 with the subject "Sorting"?', ("Ann Lee Kay", "Kay")),
        ("0001-plato.md", "Plato was an ancient Greek philosopher of the Classical period.", "Who was Plato?",
         ("ancient Greek philosopher", "philosopher")),
        ("e.md", "# Blue Card: Fees\n\n- Annual fee: $59\n- Annual fee: $60\n", None, ()),
        ("f.md", "gc.auto\n\nIt defaults to true.", None, ()),
        ("0001-other.md", "Plato was an ancient Greek philosopher of the Classical period.", None, ()),
    ],
)  # fmt: skip
def test_questions_by_rule(path, text, question, accepted):
    found = asking.questions([SimpleNamespace(path=path, text=text)], limit=9, seed=0)
    assert [(q.question, q.accepted, q.document) for q in found] == ([(question, accepted, path)] if question else [])


def test_a_question_that_two_documents_answer_is_not_asked():
    text = "# Blue Card: Fees\n\n- Annual fee: $59\n"
    two = [SimpleNamespace(path=f"{i}.md", text=text) for i in range(2)]
    assert asking.questions(two, limit=9, seed=0) == []
    assert len(asking.questions(two[:1], limit=9, seed=0)) == 1


def test_the_best_sentence_holds_the_rare_words():
    texts = ["The boat is blue. The key hangs in the hall.", "The pump was mended.\nNo boat has a key."]
    found = Sentences([SimpleNamespace(text=text) for text in texts])
    assert found.best("Where does the key hang?") == "The key hangs in the hall."
    assert found.best("mending pumps") == "The pump was mended."
    assert found.best('"zebra" OR') == ""
    assert found.best("?!") == ""


def test_a_set_is_cut_into_parts_that_share_nothing(documents, tmp_path):
    folder = shutil.copytree(documents, tmp_path / "set")
    (folder / "again.md").write_text((folder / "keys.md").read_text())
    source = sets.Source("s", folder)
    cut = sets.split(source, tmp_path / "work", kilobytes=100, seed=0)
    parts = [{d.path for d in part} for part in (cut.train, cut.validation, cut.test)]
    assert [len(part) for part in parts] == [8, 1, 1]  # the copy is gone
    assert len(set.union(*parts)) == 10
    assert {p.name for p in cut.folder.iterdir()} == parts[0]
    assert sets.split(source, tmp_path / "work", kilobytes=100, seed=0) == cut
    assert sets.split(source, tmp_path / "work", kilobytes=100, seed=1).digest != cut.digest
    (folder / f"{sorted(parts[0])[0]}").write_text("Other words altogether, and more of them than there were before.")
    assert sets.split(source, tmp_path / "work", kilobytes=100, seed=0).digest != cut.digest
    small = sets.split(source, tmp_path / "work", kilobytes=1, seed=0)
    assert (len(small.train), len(small.test), small.left_out) == (3, 2, 5)  # the copy is none any more
    for name in sorted(parts[0])[:4]:
        (folder / name).unlink()
    with pytest.raises(ValueError, match="at least 8"):
        sets.split(source, tmp_path / "work", kilobytes=100, seed=0)


def made_up(part, gain_diffusion, gain_twin, documents=20):
    """Records in which the expert costs 2 nats a token, the core 3, and both together less than 2 by a gain."""
    rng, rows = np.random.default_rng(0), []
    for i in range(documents):
        tokens = int(rng.integers(20, 40))
        noise = rng.normal(0, 0.02)
        nats = {}
        for measure, gain in (("s1", gain_diffusion), ("next", gain_twin), ("s2", gain_diffusion)):
            every = {heldout.name_of(pair): (2.4 - pair[0] * 0.1) * tokens for pair in heldout.GRID}
            alone = {
                "0,0": 3.0, "1,0": 2.0, "before": 2.5, "before, no passages": 3.0, "after, no passages": 2.2,
            }  # fmt: skip
            every |= {name: value * tokens for name, value in alone.items()}
            every["0.6,0.5"] = (2 - gain + noise) * tokens
            nats[measure] = every
        rows.append({"part": part, "stretch": f"{i}", "document": f"d{i // 2}", "tokens": tokens, "bytes": 4 * tokens,
                     "nats": nats})  # fmt: skip
    return rows


@pytest.mark.parametrize(
    ("diffusion", "twin", "word"),
    [(0.5, 0.2, "yes"), (0.2, 0.5, "no"), (0.3, 0.3, "not shown"), (0.304, 0.3, "yes, by too little to matter")],
)
def test_conclusions_follow_the_figures(diffusion, twin, word):
    rows = made_up("test", diffusion, twin)
    choice = figures.choose(made_up("validation", 0.3, 0.3), (0.9, 0.0))
    assert choice.pairs == {"s1": (0.6, 0.5), "next": (0.6, 0.5)}
    assert choice.better == "after"
    found = figures.heldout(rows, choice, (0.9, 0.0), "tokens", resamples=500)
    assert found["s1 ensemble - after"].value == pytest.approx(-diffusion, abs=0.02)
    assert found["s1 ensemble - after"].n == 10  # documents, not stretches
    assert found["diffusion - twin ensemble - after"].value == pytest.approx(twin - diffusion, abs=0.01)
    bytes_ = figures.heldout(rows, choice, (0.9, 0.0), "bytes", resamples=500)
    assert bytes_["s1 core"].value == pytest.approx(0.75)
    pooled = figures.pooled([(rows, choice)], resamples=500)
    assert pooled is not None
    assert pooled.value == pytest.approx(twin - diffusion, abs=0.01)
    result = Result(name="a", documents={}, minutes=1, card=(0.9, 0.0), choice=choice, heldout=found)
    said = " ".join(sentences([result], pooled))
    assert f"collaborate better than autoregression here? {word.capitalize()}." in said
    assert "It beats both members, the intervals clear of zero, on: a (" in said
    assert "S1 after less before, nats a token, both with passages: a yes, -0.500" in said
    assert figures.ratios(rows, choice, resamples=200)["before / after"].value == pytest.approx(1.25)


@pytest.mark.parametrize(
    ("low", "high", "n", "p_value", "word"),
    [
        (-0.3, -0.1, 20, 0.0, "yes"), (0.1, 0.3, 20, 0.0, "no"), (-0.3, 0.1, 20, 0.0, "not shown"),
        (-0.3, -0.1, 7, 0.0, "not shown"), (-0.3, -0.1, 20, 0.06, "not shown"),
    ],
)  # fmt: skip
def test_a_verdict_needs_a_clear_interval_enough_units_and_a_small_p(low, high, n, p_value, word):
    gap = Interval((low + high) / 2, low, high, n)
    assert verdict(gap, lower_is_better=True, p_value=p_value) == word
    opposite = {"yes": "no", "no": "yes"}.get(word, word)
    assert verdict(gap, lower_is_better=False, p_value=p_value) == opposite


def test_without_a_validation_part_the_cards_weights_count():
    choice = figures.choose([], (0.7, 0.25))
    assert choice.pairs["s1"] == choice.pairs["next"] == (0.7, 0.25)
    assert not choice.measured


def test_answers_are_judged_by_whole_words_and_compared_in_pairs():
    rows = []
    for i in range(12):
        right = {name: i < 6 for name in answers.SYSTEMS} | {answers.ENSEMBLE: i < 11, answers.SENTENCE: i < 11}
        rows.append({name: {"right": yes} for name, yes in right.items()})
    found, p_values = figures.answered(rows, resamples=500)
    assert found[answers.ENSEMBLE].value == pytest.approx(11 / 12)
    assert found[f"ahead of {answers.CORE}"].value == pytest.approx(5 / 12)
    assert p_values[answers.CORE] == pytest.approx(2 / 2**5)
    assert p_values[answers.SENTENCE] == 1.0


def options(root: Path, documents: Path, core: Path, **changes) -> run.Options:
    given = {
        "sets": [f"company={documents}"], "questions": [], "whole": [], "home": root / "home",
        "core": str(core), "base": str(core),
        "kilobytes": 100, "train_minutes": 0.03, "parts": (), "limit": 2, "limit_questions": None, "tokens": 4,
        "passages": 1, "seed": 0, "max_minutes": None, "records": root / "records", "out": root / "docs",
        "results": root / "results.json", "resamples": 200, "marks": (0.01, 1.0),
        "training": {"length": 64, "block": 4, "rank": 2, "select_tokens": 40},
    }  # fmt: skip
    return run.Options(**{**given, **changes})


def test_a_run_measures_all_parts_and_goes_on_from_its_records(documents, tiny_folders, tmp_path):
    started = options(tmp_path, documents, tiny_folders[0])
    content = run.run(started).content
    (found,) = content["sets"].values()
    assert found["counts"]["kept documents, test"][0] >= 1
    assert found["counts"]["hidden facts"] == [2, 2]
    assert found["counts"]["questions"] == [2, 2]
    assert next(iter(found["curve"])) == "0"
    assert "0.01" in found["curve"]
    assert len(found["curve"]) == 3
    assert found["curve"]["0"]["heldout"] != found["curve"]["0.01"]["heldout"]
    # Without passages the base is the core, and the card's own weights stand beside the choice.
    assert found["heldout"]["s1 before, no passages"] == found["heldout"]["s1 core"]
    assert found["heldout"]["s1 after, no passages"] != found["heldout"]["s1 core"]
    page = (tmp_path / "docs" / "personal.md").read_text()
    assert page.startswith("# Personalization that shows")
    assert "Does diffusion collaborate better" in page
    assert str(tmp_path) not in page
    assert {p.name for p in (tmp_path / "docs").iterdir()} == {
        "personal.md", "personal.json", "personal-sweeps.png", "personal-curves.png"
    }  # fmt: skip
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["suite"] for row in rows} == {"personal"}
    # A run with no time tells what the records hold, and measures nothing.
    again = run.run(replace(started, max_minutes=0.0)).content
    assert again["sets"] == content["sets"]
    more = run.run(replace(started, max_minutes=0.0, limit=3, parts=["cloze"])).content["sets"]["company"]
    assert more["counts"] == {"hidden facts": [2, 3]}
    assert not more["heldout"]
    with pytest.raises(ValueError, match="raise --max-minutes"):
        run.run(replace(started, max_minutes=0.0, seed=5))


def test_a_whole_set_keeps_nothing_out_and_all_its_own_questions_are_asked(documents, tiny_folders, tmp_path):
    asked = [
        {"id": f"q{i}", "question": "How many keys are there?", "answer": "two", "accept": [], "document": path.name}
        for i, path in enumerate(sorted(documents.iterdir())[:5])
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(json.dumps(one) for one in asked))
    started = options(tmp_path, documents, tiny_folders[0], whole=["company"], questions=[f"company={file}"])
    (found,) = run.run(started).content["sets"].values()
    assert found["documents"]["train"] == len(list(documents.iterdir()))
    assert found["counts"] == {"hidden facts": [2, 2], "questions": [5, 5]}
    assert (found["heldout"], found["curve"]) == ({}, {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parts": ["likelihoods"]}, "choose of heldout"),
        ({"sets": []}, "no set to measure"),
        ({"sets": ["company"]}, "NAME=FOLDER"),
        ({"sets": ["company=nowhere"]}, "nowhere is not a folder"),
        ({"sets": ["a=.", "a=."]}, "twice"),
        ({"questions": ["other=x.jsonl"]}, "no --set gives"),
        ({"whole": ["other"]}, "no --set gives"),
        ({"questions": ["company=x.jsonl"]}, "is not a file"),
        ({"sets": ["a/b=."]}, "cannot be an expert's name"),
    ],
)
def test_bad_input_is_one_sentence(documents, tiny_folders, tmp_path, changes, words):
    with pytest.raises(Exception, match=words) as raised:
        run.run(options(tmp_path, documents, tiny_folders[0], **changes))
    assert type(raised.value).__name__ in ("ValueError", "BadInput")
    assert not (tmp_path / "docs").exists()
