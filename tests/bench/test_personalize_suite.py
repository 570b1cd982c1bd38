"""The personalize suite on a tiny model: Trainer and product learn the same, and every way times the same step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ssd_bench import personalize as suite
from ssd_bench.personalize_run import Options, ratios, run
from ssd_bench.trainer import Job, Raced, plainly, race
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.training.objective import batch_loss


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    root = tmp_path_factory.mktemp("personalize")
    examples = root / "texts"
    examples.mkdir()
    for number in range(4):
        text = f"The harbour wall number {number} is swept on Mondays, and on day {number} of the month. "
        (examples / f"{number}.md").write_text(text * (30 + number))
    (root / "cache").mkdir()
    return Job(model=write_tiny(root / "tiny", seed=1), examples=examples, cache=root / "cache", steps=12, rank=4)


def test_plainly_it_is_the_same_loss_and_gradient(job: Job) -> None:
    model, rows, _ = job.learned()
    for number in range(6):  # blocks, pure next-token rows, and private context
        found = []
        for plain in (False, True):
            model.zero_grad()
            if plain:
                with plainly():
                    one = batch_loss(model, rows.batch(number), job.options().objective, (0, number))
            else:
                one = batch_loss(model, rows.batch(number), job.options().objective, (0, number))
            one.loss.backward()  # type: ignore[no-untyped-call]
            found.append((one, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
        (ours, slope), (theirs, other) = found
        assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
        torch.testing.assert_close(slope, other, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_race_of_two_processes_ends_at_the_same_score(job: Job) -> None:
    told: list[None] = []
    found = race(job, lambda: told.append(None), bf16=False)
    assert len(told) == 2 * 13
    assert len(found.plain) == len(found.ours) == 11
    assert min(*found.plain, *found.ours) > 0
    assert found.plain_s1 == pytest.approx(found.ours_s1, abs=0.05)


def test_a_side_that_fails_is_told(job: Job, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended early"):
        race(Job(model=tmp_path / "none", examples=job.examples, cache=job.cache, steps=7), lambda: None, bf16=False)


def test_ratios_are_of_tokens_over_the_whole_race() -> None:
    found = Raced(plain=(2.0, 2.0, 6.0, 6.0, 4.0), ours=(1.0, 1.0, 2.0, 2.0, 4.0), plain_s1=1.0, ours_s1=1.0)
    assert ratios(found) == (2.0, 1.0, 3.0)


@pytest.mark.slow
def test_a_run_writes_the_section_and_the_ratios(job: Job, tmp_path: Path) -> None:
    run(Options(
        home=tmp_path, core=str(job.model), examples=job.examples, steps=7, timed=7, out=tmp_path / "out",
        results=tmp_path / "r.json",
    ))  # fmt: skip
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [row["target"] for row in rows] == [2.5, None, *[None] * (len(suite.WAYS) - 1)]
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows)
    page = (tmp_path / "out" / "performance.md").read_text()
    assert "LoRA layers in one step (what runs)" in page
    assert "as the Trainer comes (float32)" in page
    assert (tmp_path / "out" / "performance" / "personalize.png").stat().st_size > 0
