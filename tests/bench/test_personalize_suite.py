"""The personalize suite on a tiny model: what is timed is the same step, and the report says what was seen."""

from __future__ import annotations

import json
from pathlib import Path

from ssd_bench import personalize as suite
from ssd_bench.personalize_run import Options, run
from ssd_diffusion.models.tiny import write_tiny


def test_a_run_times_the_same_steps_in_every_way(tmp_path: Path) -> None:
    examples = tmp_path / "texts"
    examples.mkdir()
    (examples / "a.md").write_text("The harbour wall is swept on Mondays and Thursdays. " * 80)
    core = write_tiny(tmp_path / "tiny", seed=1)
    outcome = run(Options(
        home=tmp_path, core=str(core), examples=examples, steps=7, out=tmp_path / "out", results=tmp_path / "r.json",
    ))  # fmt: skip
    steps, names = outcome.content["steps"], [way.name for way in suite.WAYS]
    assert len(steps) == 7
    for step in steps:
        assert list(step["seconds"]) in (names, names[::-1])
        assert min(step["seconds"].values()) > 0
        assert all(abs(loss / step["loss"][names[0]] - 1) < 0.05 for loss in step["loss"].values())
        assert min(step["cosine"].values()) > 0.5
        assert step["targets"] > 0
    rows = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert [(row["suite"], row["n"]) for row in rows] == [(suite.SUITE, 7)] * 3
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows)
    assert "without closed pairs" in (tmp_path / "out" / "training-speed.md").read_text()
