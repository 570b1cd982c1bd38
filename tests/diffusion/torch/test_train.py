"""Training on toy text: it learns, it resumes from a kill, and what it writes can be read again."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training import checkpoint, data, loop, lora
from ssd_diffusion.training.evaluate import anchor_losses, evaluate, next_token_losses, s2
from ssd_diffusion.training.objective import ObjectiveOptions, batch_loss

Make = Callable[..., Ssd2Model]


def toy_rows(rows: int = 4, **options: Any) -> data.PackedRows:
    """Text in which every token follows from the one before."""
    stream = (np.arange(3000) * 7 % 50 + 40).astype(np.int32)
    return data.PackedRows(stream, length=48, block=8, rows=rows, seed=1, **options)


def ready(make_model: Make, family: str = "llama") -> tuple[Ssd2Model, Any]:
    model = make_model(family).float()
    return model, lora.attach(model, lora.LoraOptions(rank=8, alpha=16))


def test_training_lowers_every_loss(make_model: Make, family: str) -> None:
    model, _ = ready(make_model, family)
    before = evaluate(model, toy_rows(), batches=2)
    seen: list[loop.Progress] = []
    report = loop.train(model, toy_rows(), loop.TrainOptions(steps=120, learning_rate=1e-2), on_progress=seen.append)
    after = evaluate(model, toy_rows(), batches=2)
    assert after.s1 < before.s1 - 1.0
    assert after.next_token < before.next_token - 1.0
    assert after.s2 < before.s2 - 0.5
    assert after.at_level["0.2"] < before.at_level["0.2"] - 1.0
    assert report.steps == 120
    assert report.stopped == "steps"
    assert report.targets > 0
    assert [p.step for p in seen] == list(range(1, 121))
    assert seen[-1].remaining_s == 0.0
    json.dumps(after.as_json())


def test_untrained_scores_are_the_bases(make_model: Make, family: str) -> None:
    model = make_model(family)
    tokens = toy_rows().batch(0).tokens
    base = model.causal(tokens).logits[:, :-1, :256]  # type: ignore[operator]
    expected = torch.nn.functional.cross_entropy(base.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    for found in (anchor_losses(model, tokens), next_token_losses(model, tokens)):
        np.testing.assert_allclose(found.flatten().numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-4)
    hidden = evaluate(model, toy_rows(), batches=1)
    assert s2(model, [toy_rows().batch(0)]) == pytest.approx(s2(model, [toy_rows().batch(0)]))
    assert hidden.first_at_level["1.0"] == pytest.approx(float(hidden.first_at_level["1.0"]))


def weights(model: Ssd2Model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_resume_equals_uninterrupted(make_model: Make, tmp_path: Path) -> None:
    options = loop.TrainOptions(steps=8, learning_rate=5e-3, accumulate=2, warmup_steps=3)
    model, _ = ready(make_model)
    whole = loop.train(model, toy_rows(), options)
    expected = weights(model)

    class Stopped(Exception):
        pass

    def stop(progress: loop.Progress) -> None:
        if progress.step == 5:
            raise Stopped

    model, _ = ready(make_model)
    kept = replace(options, checkpoint_dir=tmp_path, checkpoint_minutes=0.0)
    with pytest.raises(Stopped):
        loop.train(model, toy_rows(), kept, on_progress=stop)
    model, _ = ready(make_model)
    report = loop.train(model, toy_rows(), kept)
    for name, value in weights(model).items():
        np.testing.assert_allclose(value.numpy(), expected[name].numpy(), rtol=0, atol=1e-7)
    assert [p.loss for p in report.history] == pytest.approx([p.loss for p in whole.history], abs=1e-6)
    with (tmp_path / "loss.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 9))
    again = loop.train(model, toy_rows(), kept)  # nothing left to do
    assert again.steps == 8
    fresh = loop.train(ready(make_model)[0], toy_rows(), replace(kept, resume=False, steps=1))
    assert fresh.steps == 1


KILLED = """
import sys, time
from pathlib import Path
import numpy as np, torch, transformers
from ssd_diffusion.models.ssd2 import Ssd2Model
from ssd_diffusion.training import data, loop, lora
torch.manual_seed(0)
config = transformers.OPTConfig(vocab_size=256, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    max_position_embeddings=128, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0)
model = Ssd2Model(transformers.OPTForCausalLM(config), 256)
lora.attach(model, lora.LoraOptions(rank=2, alpha=4))
rows = data.PackedRows((np.arange(900) % 50).astype(np.int32), length=32, block=8, rows=2, seed=1)
report = loop.train(model, rows, loop.TrainOptions(steps=int(sys.argv[2]), checkpoint_dir=Path(sys.argv[1]),
    checkpoint_minutes=0.0), on_progress=lambda p: print(p.step, flush=True))
print("sum", sum(float(p.detach().double().sum()) for p in model.parameters() if p.requires_grad))
"""


@pytest.mark.slow
def test_killed_process_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(KILLED))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    def start(folder: str) -> subprocess.Popen[str]:
        arguments = [sys.executable, str(script), str(tmp_path / folder), "12"]
        return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)

    with start("killed") as killed:
        assert killed.stdout is not None
        for line in killed.stdout:
            if line.strip() == "5":
                killed.send_signal(signal.SIGKILL)
                break
    resumed, whole = (start(name).communicate(timeout=120)[0].split() for name in ("killed", "whole"))
    assert 3 <= int(resumed[0]) <= 7
    assert float(resumed[-1]) == pytest.approx(float(whole[-1]), abs=1e-9)


def test_early_stop_keeps_the_best(make_model: Make, tmp_path: Path) -> None:
    model, _ = ready(make_model)
    scores = iter([3.0, 1.0, 2.0, 2.5, 9.0])
    held: list[dict[str, torch.Tensor]] = []

    def score(current: Ssd2Model) -> float:
        held.append(weights(current))
        assert not current.training
        return next(scores)

    options = loop.TrainOptions(steps=50, eval_steps=2, patience=2, learning_rate=1e-2, checkpoint_dir=tmp_path)
    seen: list[loop.Evaluation] = []
    report = loop.train(model, toy_rows(), options, evaluate=score, on_eval=seen.append)
    assert report.stopped == "early"
    assert report.steps == 8
    assert report.best_step == 4
    assert [e.best for e in seen] == [True, True, False, False]
    for name, value in weights(model).items():
        assert torch.equal(value, held[1][name])
    resumed, _ = ready(make_model)
    again = loop.train(resumed, toy_rows(), options, evaluate=lambda _: 9.0)
    assert again.best_step == 4
    for name, value in weights(resumed).items():
        assert torch.equal(value, held[1][name])


def test_time_is_a_bound(make_model: Make) -> None:
    model, _ = ready(make_model)
    report = loop.train(
        model, toy_rows(), loop.TrainOptions(max_minutes=0.001, eval_minutes=1e-5), evaluate=lambda _: 1.0
    )
    assert report.stopped == "time"
    assert report.evaluations
    assert report.history[-1].learning_rate <= 4e-4


def test_refusals(make_model: Make, tmp_path: Path) -> None:
    model, _ = ready(make_model)
    with pytest.raises(TrainingError, match="bound"):
        loop.train(model, toy_rows(), loop.TrainOptions())
    (tmp_path / checkpoint.NAME).write_bytes(b"not a checkpoint")
    options = loop.TrainOptions(steps=1, checkpoint_dir=tmp_path)
    with pytest.raises(TrainingError, match="not a training checkpoint"):
        loop.train(model, toy_rows(), options)
    loop.train(model, toy_rows(), replace(options, resume=False))
    other = make_model("llama").float()
    lora.attach(other, lora.LoraOptions(rank=2))
    with pytest.raises(TrainingError, match="another model"):
        loop.train(other, toy_rows(), options)
    for p in model.parameters():
        p.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing"):
        loop.train(model, toy_rows(), loop.TrainOptions(steps=1))
    broken, _ = ready(make_model)
    with torch.no_grad():
        broken.w_diff.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="not finite"):
        loop.train(broken, toy_rows(), loop.TrainOptions(steps=2))
    with pytest.raises(TrainingError, match="only 5 tokens"):
        data.PackedRows(np.zeros(5, np.int32), length=8, block=4, rows=1, seed=0)
    with pytest.raises(TrainingError, match="no instruction pairs"):
        data.InstructionRows([], length=8, block=4, rows=1, seed=0, eos=0)
    with pytest.raises(TrainingError, match="nothing to train"):
        data.MixedRows([], 0)


@pytest.mark.parametrize("half", [False, True])
def test_adapter_round_trip(make_model: Make, family: str, tmp_path: Path, half: bool) -> None:
    model, wrapped = ready(make_model, family)
    loop.train(model, toy_rows(), loop.TrainOptions(steps=4, learning_rate=1e-2))
    lora.save_adapter(wrapped, model, tmp_path, half=half)
    other = make_model(family).float()
    loaded = lora.load_adapter(other, tmp_path)
    tokens = toy_rows().batch(0).tokens
    expected = anchor_losses(model, tokens).numpy()
    bound = 2e-2 if half else 1e-5
    np.testing.assert_allclose(anchor_losses(other.eval(), tokens).numpy(), expected, atol=bound)
    other.causal = loaded.merge_and_unload()
    np.testing.assert_allclose(anchor_losses(other, tokens).numpy(), expected, atol=max(bound, 1e-4))


def test_a_saved_adapter_names_its_base_and_no_folder(make_model: Make, tmp_path: Path) -> None:
    model, wrapped = ready(make_model)
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "home of a person" / "tiny")
    lora.save_adapter(wrapped, model, tmp_path / "out")
    written = (tmp_path / "out" / lora.CONFIG_FILE).read_text()
    assert json.loads(written)["base_model_name_or_path"] == "tiny"
    assert "person" not in written
    assert json.loads(written)["target_modules"] == sorted(json.loads(written)["target_modules"])


def test_bad_adapters(make_model: Make, tmp_path: Path) -> None:
    model, wrapped = ready(make_model)
    good = tmp_path / "good"
    lora.save_adapter(wrapped, model, good)
    with pytest.raises(InvalidModel, match="no adapter"):
        lora.load_adapter(make_model("llama"), tmp_path)
    with pytest.raises(InvalidModel, match=r"fit|another model"):
        lora.load_adapter(make_model("opt"), good)
    file = good / lora.ADAPTER_FILES[0]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidModel, match="damaged"):
        lora.load_adapter(make_model("llama"), good)
    file.write_bytes(whole)
    with torch.no_grad():
        model.w_time.bias[0] = float("nan")
    lora.save_adapter(wrapped, model, good)
    with pytest.raises(InvalidModel, match="not finite"):
        lora.load_adapter(make_model("llama"), good)


def test_own_draws_and_conditioning_change_the_input_only(make_model: Make) -> None:
    model, _ = ready(make_model)
    batch = toy_rows(2).batch(0)
    plain = batch_loss(model, batch, ObjectiveOptions(conditioned=0.0), (1, 2, 3))
    again = batch_loss(model, batch, ObjectiveOptions(conditioned=0.0), (1, 2, 3))
    assert torch.equal(plain.loss, again.loss)
    for own in (0.0, 1.0):
        found = batch_loss(model, batch, ObjectiveOptions(conditioned=1.0, own_draws=own), (1, 2, 3))
        assert found.noisy_targets == plain.noisy_targets
        assert found.noisy != plain.noisy
        assert found.loss.requires_grad
    twin = batch_loss(model, toy_rows(2, noisy=False).batch(0), ObjectiveOptions(), (1, 2, 3))
    assert twin.noisy_targets == 0
    assert twin.clean_targets == 2 * 47


def test_packed_rows_are_a_function_of_the_step() -> None:
    rows, again = toy_rows(3, offsets=2), toy_rows(3, offsets=2)
    for step in (0, 7, 500):
        a, b = rows.batch(step), again.batch(step)
        assert torch.equal(a.tokens, b.tokens)
        assert torch.equal(a.starts, b.starts)
        assert a.starts.shape == (3, 2 * 5)
        used = a.starts[a.starts > 0]
        assert int(used.min()) >= 1
        assert int(used.max()) + 8 <= 48
    seen = {int(rows.stream[0]) for _ in range(1)}
    assert seen
    assert not torch.equal(rows.batch(0).tokens, rows.batch(1).tokens)


def test_instruction_rows_supervise_responses_and_ends() -> None:
    pairs = [data.Pair([1, 2, 3], [10, 11, 12, 13, 14]), data.Pair(list(range(100)), [20] * 40)]
    rows = data.InstructionRows(pairs, length=24, block=4, rows=2, seed=0, eos=9)
    batch = rows.batch(0)
    by_first = {int(row[0]): i for i, row in enumerate(batch.tokens)}
    short = by_first[1]
    assert batch.tokens[short, :11].tolist() == [1, 2, 3, 10, 11, 12, 13, 14, 9, 9, 9]
    assert batch.supervised[short].tolist() == [False] * 3 + [True] * 8 + [False] * (batch.tokens.shape[1] - 11)
    assert batch.starts[short].tolist()[:2] == [3, 7]
    assert set(batch.starts[short].tolist()[2:]) <= {-1}
    long = 1 - short
    assert batch.tokens.shape[1] == 24
    assert batch.tokens[long, :12].tolist() == list(range(88, 100))  # the prompt loses its beginning
    assert batch.tokens[long, 12:].tolist() == [20] * 11 + [9]  # the response its end, never its end token
    model_free = data.MixedRows([(0.75, toy_rows()), (0.25, rows)], seed=3)
    drawn = [model_free.batch(i).block for i in range(40)]
    assert 9 <= drawn.count(4) <= 11


def test_items_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("plain text")
    lines = [
        {"text": "a row"},
        {"instruction": "Ask", "context": "Given", "response": "Said"},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(x) for x in lines) + "\n\n")
    found = list(data.read_items([tmp_path]))
    assert found[:2] == ["plain text", "a row"]
    assert found[2] == [{"role": "user", "content": "Given\n\nAsk"}, {"role": "assistant", "content": "Said"}]
    assert found[3] == lines[2]["messages"]
    bad = tmp_path / "bad.jsonl"
    for content, match in (('{"x": 1}', "has no text"), ("[1]", "not a JSON object"), ("{", "cannot be read")):
        bad.write_text(content)
        with pytest.raises(TrainingError, match=match):
            list(data.read_items([bad]))
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrainingError, match="cannot be read"):
        list(data.read_items([tmp_path / "c.txt"]))
    with pytest.raises(TrainingError, match="no file"):
        list(data.read_items([tmp_path / "nowhere"]))


def test_plot(make_model: Make, tmp_path: Path) -> None:
    model, _ = ready(make_model)
    report = loop.train(model, toy_rows(2), loop.TrainOptions(steps=3))
    loop.plot(tmp_path / "loss.png", report.history)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
