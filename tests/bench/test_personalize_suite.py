"""The personalize suite on a tiny model: what is timed is the same step, and the report says what was seen."""

from __future__ import annotations

import json
from pathlib import Path

from ssd_bench import personalize as suite
from ssd_bench.personalize_run import Options, run
from ssd_diffusion.models.tiny import write_tiny


def test_a_run_times_the_same_steps_in_both_arithmetics(tmp_path: Path) -> None:
    examples = tmp_path / "texts"
    examples.mkdir()
    (examples / "a.md").write_text("The harbour wall is swept on Mondays and Thursdays. " * 80)
    core = write_tiny(tmp_path / "tiny", seed=1)
    outcome = run(Options(
        home=tmp_path, core=str(core), examples=examples, steps=7, out=tmp_path / "out", results=tmp_path / "r.json",
    ))  # fmt: skip
    steps = outcome.content["steps"]
    assert len(steps) == 7
    for step in steps:
        assert step["seconds"]["fp32"] > 0 < step["seconds"]["bf16"]
        assert abs(step["loss"]["bf16"] / step["loss"]["fp32"] - 1) < 0.05
        assert step["targets"] > 0
    row = json.loads((tmp_path / "r.json").read_text())["rows"][0]
    assert (row["suite"], row["n"]) == (suite.SUITE, 7)
    assert row["low"] <= row["ratio"] <= row["high"]
    assert "cosine of the two gradients" in (tmp_path / "out" / "training-speed.md").read_text()
