"""The quality suite on tiny models: decoding in batches, likelihoods by two roads, and a whole run from the shell."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ssd_bench import floor
from ssd_bench.lines import LineFile
from ssd_bench.quality import corpus, denoising, generation, settings
from ssd_bench.quality.judges import AutoregressiveJudge
from ssd_bench.quality.models import UnconditionedEngine, open_pair
from ssd_bench.quality.settings import AHEAD, CORE, SETTINGS, Setting, few_steps, own_grid, params_of
from ssd_bench.quality.together import decode_together
from ssd_cloud.models import load
from ssd_diffusion import keys
from ssd_diffusion.ensemble import Ensemble, Weights
from ssd_diffusion.members import EngineMember
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.sampler import DecodeParams, denoise
from ssd_diffusion.scores import s1, s3
from ssd_diffusion.tokenizer import Tokenizer

PREFIX, TOKENS = 12, 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path, Path, Path]:
    """Core, base, data and pairs."""
    root = tmp_path_factory.mktemp("quality")
    core = write_tiny(root / "core", seed=0, vocab=300, learned=0.3)
    base = write_tiny(root / "base", seed=0, vocab=300)
    data = root / "data"
    for name in ("boats", "keys"):
        texts = [f"The {name} of house {i} are counted on day {i % 5}, says Ms {name.title()}. " * 4 for i in range(14)]
        for part, rows in (("train", texts[:6]), ("heldout", texts[6:])):
            file = data / part / "text" / f"{name}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps({"text": t}) + "\n" for t in rows))
    messages = [
        [{"role": "user", "content": f"Who signs {i}?"}, {"role": "assistant", "content": "Ms Keys signs."}]
        for i in range(4)
    ]
    pairs = root / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"messages": m}) + "\n" for m in messages))
    return core, base, data, pairs


@pytest.fixture(scope="module")
def models(folders):
    return open_pair(folders[0], folders[1])


def contexts(count: int) -> list[np.ndarray]:
    return [np.arange(10 + i, 16 + 2 * i, dtype=np.int32) for i in range(count)]


@pytest.mark.parametrize("budget", [0.0, 40.0])
def test_a_batch_writes_what_each_would_alone(folders, models, budget):
    spec = models[0].spec
    params = DecodeParams(block=6, grid=spec.grid, max_tokens=10, entropy_budget=budget, temperature=0.7)
    engine = load(folders[0], slots=5, batch_width=1, threads=None)
    together = decode_together(engine, contexts(5), generation.decoder("diffusion", params, range(5)))
    assert all(engine.slot_bytes(slot) == 0 for slot in range(5))
    for number, context in enumerate(contexts(5)):
        member = EngineMember(engine, 0, context, name="core")
        with Ensemble(core=member, private=None, public=None, weights=Weights(lam=0.0)) as ensemble:
            draw_key = keys.draw_key(generation.SECRET, number)
            events = list(denoise(ensemble, params, noise_key=keys.noise_key(number), draw_key=draw_key))
            alone, passes = np.concatenate([e.committed for e in events]), member.forward_passes
        assert together[number].ids.tolist() == alone.tolist()
        assert together[number].passes == passes
        assert (budget > 0) == (passes < 10)


def test_a_decoder_that_fails_leaves_nobody_waiting(folders):
    engine = load(folders[0], slots=3, batch_width=1, threads=None)
    params = DecodeParams(block=2, grid=(1.0,), max_tokens=4)

    def decode(ensemble, number):
        if number == 1:
            raise RuntimeError("broken")
        return generation.decoder("diffusion", params, range(3))(ensemble, number)

    with pytest.raises(RuntimeError, match="broken"):
        decode_together(engine, contexts(3), decode)
    with pytest.raises(ValueError, match="slots"):
        decode_together(engine, contexts(4), decode)


def test_an_engine_that_fails_leaves_nobody_waiting(folders, monkeypatch):
    engine = load(folders[0], slots=3, batch_width=1, threads=None)
    params = DecodeParams(block=2, grid=(1.0,), max_tokens=4)

    def fail(slots, windows):
        raise RuntimeError("no memory")

    monkeypatch.setattr(engine, "step", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        decode_together(engine, contexts(3), generation.decoder("diffusion", params, range(3)))


def test_banned_ids_are_never_written(folders):
    engine = load(folders[0], slots=4, batch_width=4, threads=None)
    params = DecodeParams(block=2, grid=(1.0,), max_tokens=30, temperature=2.0, top_p=1.0)
    free = decode_together(engine, contexts(4), generation.decoder("ar", params, range(4)))
    common = np.bincount(np.concatenate([text.ids for text in free])).argsort()[::-1][:5].tolist()
    held = decode_together(engine, contexts(4), generation.decoder("ar", params, range(4)), banned=common)
    assert not {int(i) for text in held for i in text.ids} & set(common)
    assert {int(i) for text in free for i in text.ids} & set(common)


@pytest.mark.parametrize("kind", ["ssdlm", "lookahead", "ar"])
def test_other_decoders_write_the_same_in_a_batch(folders, models, kind):
    spec = models[0].spec
    changes = {"drafts": 3, "leniency": 0.5} if kind == "lookahead" else {}
    grid = spec.grid if kind == "ssdlm" else (1.0,)
    params = DecodeParams(block=4, grid=grid, max_tokens=9, temperature=0.7, **changes)
    engine, every = load(folders[0], slots=3, batch_width=1, threads=None), contexts(3)
    together = decode_together(engine, every, generation.decoder(kind, params, range(3), contexts=every))
    for number, context in enumerate(every):
        decode = generation.decoder(kind, params, [number], contexts=[context])
        (alone,) = decode_together(engine, [context], decode)
        assert together[number].ids.tolist() == alone.ids.tolist()
        assert together[number].passes == alone.passes


@pytest.mark.parametrize("setting", [s for s in SETTINGS if s.first_only], ids=lambda s: s.name)
def test_the_narrow_window_writes_the_same_text(models, setting: Setting):
    core = models[0]
    narrow = params_of(setting, core.spec, TOKENS)
    wide = DecodeParams(**{f: getattr(narrow, f) for f in narrow.__slots__ if f != "block"}, block=8)
    assert narrow.block == 1
    engine = core.engine(slots=3, batch_width=1, conditioned=True)
    texts = [
        [t.ids.tolist() for t in decode_together(engine, contexts(3), generation.decoder("diffusion", p, range(3)))]
        for p in (narrow, wide)
    ]
    assert texts[0] == texts[1]


def test_every_setting_can_be_decoded_by_name(models):
    every = [*SETTINGS, settings.THOUSAND, *few_steps(thousand=True)]
    assert len({s.name for s in every}) == len(every)
    for setting in every:
        params = params_of(setting, models[setting.base].spec, TOKENS)
        assert params.max_tokens == TOKENS
        assert not params.eos_ids
        assert settings.queries(setting, params) >= TOKENS
    assert params_of(CORE, models[0].spec, 8).grid == (1.0,)
    assert own_grid((1.0, 0.6, 0.2), 5) == pytest.approx((1.0, 0.8, 0.6, 0.4, 0.2))
    assert own_grid((1.0, 0.6), 1) == (1.0,)


def test_without_self_conditioning_every_pass_begins_anew(models):
    core = models[0]
    params = DecodeParams(block=6, grid=core.spec.grid, max_tokens=10, temperature=0.0)
    told = {}
    for conditioned in (True, False):
        engine = core.engine(slots=1, batch_width=1, conditioned=conditioned)
        assert isinstance(engine, UnconditionedEngine) != conditioned
        heard: list[np.ndarray] = []

        def decode(ensemble, number, heard=heard):
            for event in generation.decoder("diffusion", params, [0])(ensemble, number):
                heard.append(event.fused)
                yield event

        decode_together(engine, contexts(1), decode)
        told[conditioned] = heard
    assert np.array_equal(told[True][0], told[False][0])
    assert not np.allclose(told[True][1], told[False][1], atol=1e-4)


def test_s1_and_s3_agree_with_the_engine(folders, models):
    core, base = models
    rows = np.random.default_rng(0).integers(3, 300, (2, denoising.INFILL_LENGTH)).astype(np.int32)
    engine = load(folders[0], slots=1, batch_width=1, threads=None)
    found = denoising.infill(core.reading, base.reading, rows)
    for row, nats in zip(rows, found, strict=True):
        left, span = row[: denoising.LEFT], row[denoising.LEFT : denoising.LEFT + denoising.SPAN]
        right = row[denoising.LEFT + denoising.SPAN :][: denoising.RIGHT]
        both = [-s3(floor.scorer(engine, row[: denoising.LEFT + i]), span[i:], right)[0] for i in range(denoising.SPAN)]
        assert nats["chain, both"] == pytest.approx(np.mean(both), rel=1e-4)
        one = -s3(floor.scorer(engine, left), span, right).mean()
        assert nats["one pass, both"] == pytest.approx(one, rel=1e-4)
        alone = -s1(floor.scorer(engine, left), span).mean()
        assert nats["chain, left"] == pytest.approx(alone, rel=1e-4)
        assert denoising.chain(core.reading, row[: len(left) + 4], first=len(left)).mean() == pytest.approx(
            alone, rel=1e-4
        )
        wanted = floor.causal_scorer(folders[1])(left, span) / denoising.SPAN
        assert nats["base"] == pytest.approx(wanted, rel=1e-4)


def test_levels_agree_where_nothing_can_be_seen(models):
    tokens = np.random.default_rng(1).integers(3, 300, (2, denoising.LENGTH)).astype(np.int32)
    core = models[0].reading
    found = denoising.by_level(core, tokens, seed=3)
    for row, nats in zip(tokens, found, strict=True):
        first = denoising.chain(core, row[: denoising.CONTEXT + 1], first=denoising.CONTEXT)[0]
        assert nats["1 first"] == pytest.approx(first, rel=1e-4)
        assert nats["1 first conditioned"] == pytest.approx(first, rel=1e-4)
        assert nats["0.4 all"] != pytest.approx(nats["0.4 all conditioned"], rel=1e-4)
        assert nats["0.4 eighth"] != pytest.approx(nats["0.4 first"], rel=1e-4)
    assert denoising.by_level(core, tokens, seed=3) == found


def test_the_judge_agrees_with_the_base_text_by_text(folders, models):
    rng = np.random.default_rng(2)
    texts = [(rng.integers(3, 300, a).astype(np.int32), rng.integers(3, 300, b).astype(np.int32))
             for a, b in ((4, 7), (5, 6), (9, 3), (4, 7))]  # fmt: skip
    found = AutoregressiveJudge(models[1].reading).nats([a for a, _ in texts], [b for _, b in texts])
    wanted = [floor.causal_scorer(folders[1])(context, text) for context, text in texts]
    assert found == pytest.approx(wanted, rel=1e-4)


def test_cuts_come_by_turns_and_fewer_are_the_first_of_more(folders):
    tokenizer = Tokenizer.load(folders[0])
    few, more = (corpus.cuts(tokenizer, folders[2], length=24, count=n, seed=0) for n in (3, 8))
    assert [c.id.split(":")[0] for c in more[:4]] == ["boats", "keys", "boats", "keys"]
    assert [(c.id, c.tokens.tolist()) for c in few] == [(c.id, c.tokens.tolist()) for c in more[:3]]
    with pytest.raises(ValueError, match="has 90000 tokens"):
        corpus.cuts(tokenizer, folders[2], length=90_000, count=2, seed=0)


def test_texts_are_written_once(folders, models, tmp_path):
    tokenizer = Tokenizer.load(folders[0])
    cuts = corpus.cuts(tokenizer, folders[2], length=PREFIX + TOKENS, count=4, seed=0)
    prompts = generation.prompts_of(cuts, PREFIX)
    chosen = [s for s in SETTINGS if s.name in ("core, default", "base, T 0.7", "SSD-LM, 25 steps")]
    counted: list[int] = []
    for count in (2, 4, 4):
        records = LineFile(tmp_path, "texts", {}, generation.KEY)
        wanted = generation.work(models, chosen, prompts[:count], records, tokens=TOKENS)
        before = sum(counted)
        generation.write(
            models, chosen, prompts[:count], records, tokens=TOKENS, seed=0, advance=counted.append
        )  # fmt: skip
        assert sum(counted) - before == wanted
    assert wanted == 0
    rows = [json.loads(line) for line in records.path.read_text().splitlines()[1:]]
    assert len(rows) == 4 + 4 + 2
    assert {len(row["ids"]) for row in rows} == {TOKENS}
    assert {row["passes"] for row in rows if row["setting"] == "core, default"} == {TOKENS + 1}
    assert not any(set(row["ids"]) & set(models[0].spec.eos_ids) for row in rows)


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssd_bench", "quality", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_whole_run_from_the_shell_and_again(folders, tmp_path):
    core, base, data, pairs = folders
    options = (
        "--data", data, "--home", tmp_path / "home", "--core", core, "--base", base, "--pairs", pairs, "--limit", 4,
        "--limit-read", 5,
        "--prefix", PREFIX, "--tokens", TOKENS, "--few-steps", "--out", tmp_path / "docs",
        "--results", tmp_path / "results.json", "--json",
    )  # fmt: skip
    done = run(*options)
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert {s.name for s in SETTINGS} <= set(content["generation"])
    assert {s.name for s in few_steps(thousand=False)} <= set(content["few_steps"])
    human = content["generation"]["human"]
    assert "mauve" not in human  # of four texts
    assert human["perplexity ngram"]["value"] < content["generation"]["core, default"]["perplexity ngram"]["value"]
    assert content["denoising"]["1 first"]["n"] == content["calibration"]["1st"]["right"]["n"] == 5
    assert content["ratios"]["core, T 1"]["ar"]["value"] > 0
    assert -1 <= content["ratios"]["core, 16 drafts"]["distinct-2"]["value"] <= 1
    assert set(content["one_a_pass"]) == {s.name for s in AHEAD}
    assert set(content["answers"]) >= {"F1, core", "reference, base"}
    for name in ("quality.md", "quality.json", "quality.png", "quality-few-steps.png", "quality-calibration.png"):
        assert (tmp_path / "docs" / name).stat().st_size > 0
    assert {row["suite"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]} == {"quality"}
    again = run(*options)
    assert json.loads(again.stdout)["generation"] == content["generation"]
    assert "writing" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--part", "poetry"), "no part 'poetry'"),
        (("--part", "answers"), "--pairs"),
        (("--data", "nowhere"), "data build"),
        (("--part", "answers", "--pairs", "nowhere.jsonl"), "give --pairs JSON lines"),
    ],
)
def test_bad_input_is_one_sentence(folders, tmp_path, arguments, words):
    core, base, data, _ = folders
    shared = ("--home", tmp_path, "--core", core, "--base", base, "--out", tmp_path, "--results", tmp_path / "r.json")
    done = run("--data", data, *shared, *arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_data_without_a_training_half_is_refused(folders, tmp_path):
    core, base, data, _ = folders
    only = tmp_path / "data"
    shutil.copytree(data / "heldout", only / "heldout")
    done = run("--data", only, "--home", tmp_path, "--core", core, "--base", base, "--out", tmp_path)
    assert done.returncode == 2
    assert "train/text/boats.jsonl cannot be read" in " ".join(done.stderr.replace("\n", "").split())


def test_another_vocabulary_is_refused(folders, tmp_path):
    other = write_tiny(tmp_path / "other", vocab=256)
    with pytest.raises(ValueError, match="another vocabulary"):
        open_pair(folders[0], other)


def test_models_that_write_are_those_that_are_read(models):
    core = models[0]
    assert core.reading.w_diff.weight.dtype == torch.float32
    gap = (core.writing.w_diff.weight.detach().float() - core.reading.w_diff.weight.detach()).abs().max()
    assert float(gap) < 0.01
