"""`ssd-cloud expert-base` on tiny models: the folder it makes, training, going on, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ssd_cloud import models
from ssd_cloud.adapt_options import AdaptOptions
from ssd_cloud.cli.main import main
from ssd_cloud.errors import UsageError
from ssd_cloud.expert_base import ExpertBaseOptions, Watch, expert_base
from ssd_diffusion.errors import InvalidModel, TrainingError
from ssd_diffusion.models.folder import load
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.spec_file import read_spec
from ssd_diffusion.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from answering_support import environment
from opt_vocabulary import write_tiny_opt

V_OPT = 286


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "source", seed=3, learned=0.3)


@pytest.fixture
def vocab(tmp_path: Path) -> Path:
    return write_tiny_opt(tmp_path / "opt-files")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    lines = (f"The boat number {i} is at the shed, and the key of the shed is on hook {i % 7}. " * 4 for i in range(40))
    path.write_text("\n".join(json.dumps({"text": line}) for line in lines))
    return path


@pytest.fixture
def asked(tmp_path: Path, source: Path, vocab: Path) -> Callable[..., ExpertBaseOptions]:
    def make(**changed: Any) -> ExpertBaseOptions:
        own = {key: changed.pop(key) for key in ("tokenizer", "vocab", "held_out") if key in changed}
        training = {"base": str(source), "data": (), "out": tmp_path / "out", "length": 48, "block": 8, **changed}
        return ExpertBaseOptions(**{"tokenizer": "opt", "vocab": vocab, **own}, training=AdaptOptions(**training))

    return make


def test_without_text_it_is_the_source_in_the_new_vocabulary(
    tmp_path: Path, source: Path, asked: Callable[..., ExpertBaseOptions]
) -> None:
    stages: list[str] = []
    made = expert_base(asked(), tmp_path, Watch(stages.append))
    (model, spec), (old, old_spec) = load(made.folder), load(source)
    held, before = Tokenizer.load(made.folder), Tokenizer.load(source)
    assert (spec.vocab, held.vocab, spec.eos_ids) == (V_OPT, V_OPT, (2,))
    assert (spec.grid, spec.max_context) == (old_spec.grid, old_spec.max_context)
    assert spec.tokenizer_fingerprint == made.fingerprint == held.fingerprint
    assert spec.model_id == made.model_id
    assert torch.equal(model.w_diff.weight, old.w_diff.weight)
    assert torch.equal(model.table[held.encode("k")[0]], old.table[before.encode("k")[0]])
    pieces = [before.encode(c)[0] for c in " the"]
    assert torch.allclose(model.table[held.encode(" the")[0]], old.table[pieces].mean(0), atol=1e-6)
    assert sum(made.rows.values()) == V_OPT
    assert made.rows["role"] == 2
    card = json.loads((made.folder / "card.json").read_text())
    assert (card["rows"], card["base"], card["scored"]) == (made.rows, old_spec.model_id, None)
    assert stages[-1] == "writing the model"
    assert not (made.folder / ".writing").exists()
    assert not (made.folder / "training").exists()


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_model_folder_gives_the_vocabulary_and_any_family_the_rest(
    tmp_path: Path, asked: Callable[..., ExpertBaseOptions], family: Any
) -> None:
    core = write_tiny(tmp_path / "core", family="opt", width=32, vocab=300)
    base = write_tiny(tmp_path / "base", family=family, seed=5)
    made = expert_base(asked(tokenizer=str(core), base=str(base)), tmp_path)
    assert read_spec(made.folder).tokenizer_fingerprint == read_spec(core).tokenizer_fingerprint
    assert made.rows == {"copied": 256, "averaged": 44, "role": 0}
    assert Tokenizer.load(made.folder).chat_template == Tokenizer.load(core).chat_template
    models.try_one_pass(models.load(made.folder, slots=1, batch_width=1, threads=1))


def test_training_lowers_the_loss_per_byte_and_leaves_copied_rows(
    tmp_path: Path, source: Path, text: Path, asked: Callable[..., ExpertBaseOptions]
) -> None:
    fractions: list[float] = []
    watch = Watch(fraction=fractions.append)
    made = expert_base(asked(data=(text,), steps=40, learning_rate=1e-2), tmp_path, watch)
    assert made.scored is not None
    assert made.scored.trained is not None
    assert made.scored.trained.nats_per_byte < made.scored.switched.nats_per_byte
    assert made.scored.source.texts == 2  # a twentieth of 40 documents
    assert made.scored.source.bytes == made.scored.trained.bytes
    assert fractions[-1] == 1.0
    (model, _), (old, _) = load(made.folder), load(source)
    held, before = Tokenizer.load(made.folder), Tokenizer.load(source)
    assert torch.equal(model.table[held.encode("k")[0]], old.table[before.encode("k")[0]])
    pieces = [before.encode(c)[0] for c in " the"]
    assert not torch.allclose(model.table[held.encode(" the")[0]], old.table[pieces].mean(0), atol=1e-3)
    card = json.loads((made.folder / "card.json").read_text())
    assert card["scored"]["trained"]["nats_per_byte"] == pytest.approx(made.scored.trained.nats_per_byte, abs=1e-4)
    assert card["training"]["steps"] == 40


def test_scores_without_training_and_training_without_scores(
    tmp_path: Path, text: Path, asked: Callable[..., ExpertBaseOptions]
) -> None:
    scored = expert_base(asked(held_out=(text,)), tmp_path).scored
    assert scored is not None
    assert (scored.trained, scored.source.texts) == (None, 40)
    few = tmp_path / "few.txt"
    few.write_text(text.read_text())
    told: list[str] = []
    made = expert_base(asked(data=(few,), steps=1, out=tmp_path / "second"), tmp_path, Watch(told.append))
    assert any(words.startswith("nothing is scored") for words in told)
    assert (made.scored, made.report and made.report.steps) == (None, 1)


def test_a_run_goes_on_and_another_one_is_told_apart(
    tmp_path: Path, text: Path, asked: Callable[..., ExpertBaseOptions]
) -> None:
    expert_base(asked(data=(text,), steps=3), tmp_path)
    steps: list[int] = []
    expert_base(asked(data=(text,), steps=5), tmp_path, Watch(progress=lambda p: steps.append(p.step)))
    assert steps == [4, 5]
    with pytest.raises(UsageError, match=r"another rank and seed.*--no-resume"):
        expert_base(asked(data=(text,), steps=6, rank=4, seed=1), tmp_path)
    assert read_spec(tmp_path / "out").vocab == V_OPT  # what was there still is
    anew = expert_base(asked(data=(text,), steps=2, rank=4, resume=False), tmp_path)
    assert anew.report is not None
    assert anew.report.steps == 2


def test_an_earlier_one_is_replaced_whole(tmp_path: Path, asked: Callable[..., ExpertBaseOptions]) -> None:
    core = write_tiny(tmp_path / "core", vocab=300)
    first = expert_base(asked(tokenizer=str(core)), tmp_path)
    assert (first.folder / "chat_template.jinja").is_file()
    expert_base(asked(), tmp_path)
    assert not (first.folder / "chat_template.jinja").exists()  # OPT's vocabulary knows no turns
    assert load(first.folder)[1].vocab == V_OPT


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"vocab": None}, UsageError, "SSD_OPT_VOCAB"),
        ({"vocab": Path("/nowhere")}, InvalidModel, "has no vocab.json"),
        ({"tokenizer": "/no/such/folder"}, InvalidModel, "there is no folder"),
        ({"base": "/no/such/model"}, InvalidModel, "is no model folder"),
        ({"steps": 3}, UsageError, "nothing to train on"),
        ({"data": (Path("/nowhere"),)}, TrainingError, "training needs a bound"),
        ({"data": (Path("/nowhere"),), "steps": 1}, TrainingError, "there is no file or folder"),
        ({"held_out": (Path("/nowhere"),)}, TrainingError, "there is no file or folder"),
    ],
)
def test_refusals(
    tmp_path: Path, asked: Callable[..., ExpertBaseOptions], changed: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        expert_base(asked(**changed), tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", [{"held_out": ()}, {"data": (), "steps": 1}])
def test_a_folder_without_text_is_not_passed_over(
    tmp_path: Path, asked: Callable[..., ExpertBaseOptions], named: dict[str, Any]
) -> None:
    (tmp_path / "empty").mkdir()
    paths = {key: (tmp_path / "empty",) if value == () else value for key, value in named.items()}
    with pytest.raises(TrainingError, match="there is no text in"):
        expert_base(asked(**paths), tmp_path)


def test_places_that_hold_something_else(tmp_path: Path, source: Path, asked: Callable[..., ExpertBaseOptions]) -> None:
    other = write_tiny(tmp_path / "other")
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    for out, words in ((other, "something else"), (other / "card.json", "is a file"), (source, "something else")):
        with pytest.raises(UsageError, match=words):
            expert_base(asked(out=out), tmp_path)
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before
    made = expert_base(asked(), tmp_path).folder
    with pytest.raises(UsageError, match="is the source itself"):
        expert_base(asked(base=str(made)), tmp_path)
    (tmp_path / "empty").mkdir()
    assert expert_base(asked(out=tmp_path / "empty", base=str(made)), tmp_path).rows["copied"] == V_OPT


def test_command_line(
    tmp_path: Path, source: Path, vocab: Path, text: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SSD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SSD_OPT_VOCAB", str(vocab))
    out = tmp_path / "home" / "models" / "expert"
    arguments = ["expert-base", str(out), "--tokenizer", "opt", "--from", str(source)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--heldout", str(text), "--heldout-texts", "2", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code in (0, None)
    assert found["scored"]["source"]["texts"] == 2
    assert (found["training"], found["rows"]["role"]) == (None, 2)
    with pytest.raises(SystemExit):
        main([*arguments, "--data", str(text), "--steps", "2", "--length", "48", "--block", "8"])
    shown = capsys.readouterr().out
    assert "2 by role" in shown
    assert "after training" in shown
    with pytest.raises(SystemExit):
        main(["models", "--json"])
    assert found["model_id"].split("@")[0] in {one["name"] for one in json.loads(capsys.readouterr().out)}
    monkeypatch.delenv("SSD_OPT_VOCAB")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "SSD_OPT_VOCAB" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_model_and_goes_on(tmp_path: Path, source: Path, vocab: Path, text: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out"
    given = ["expert-base", str(out), "--tokenizer", "opt", "--vocab", str(vocab), "--from", str(source), "--data",
             str(text), "--max-minutes", "0.4", "--checkpoint-minutes", "0.02", "--json"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "ssd_cloud.cli.main", *given], env=environment(home), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    until = time.monotonic() + 120
    while not (out / "training" / "checkpoint.safetensors").exists():
        assert time.monotonic() < until
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "model.json").exists()
    done = subprocess.run(
        [sys.executable, "-m", "ssd_cloud.cli.main", *given], env=environment(home), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["training"]["seconds"] >= 24
    assert load(out)[1].model_id == found["model_id"]
