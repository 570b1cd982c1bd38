"""The step suite on a tiny model: both engines do the same pass, and the section says what was seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ssd_bench import step
from ssd_bench.step_run import Options, _opened, run
from ssd_diffusion.export import graph
from ssd_diffusion.models.tiny import write_tiny


@pytest.fixture
def options(tmp_path: Path) -> Options:
    core = write_tiny(tmp_path / "tiny", learned=0.4)
    return Options(
        home=tmp_path, core=str(core), context=20, lengths=(8, 16), rounds=7, out=tmp_path / "docs",
        results=tmp_path / "results.json",
    )  # fmt: skip


def test_both_sides_do_the_same_pass(options: Options) -> None:
    engines = _opened(options)
    step.fill(engines, step.context_of(20, engines.ours.spec.vocab, 0))
    for name, work in step.cases(engines.ours.spec.vocab).items():
        ours, theirs = (work(engine)[0] for engine in (engines.ours, engines.plain))
        np.testing.assert_allclose(ours, theirs, atol=2e-3, err_msg=name)
    window = step.drafted(engines.ours.spec.vocab)
    assert (window.exact, window.ahead) == (7, 3)


def test_a_run(options: Options) -> None:
    outcome = run(options)
    assert outcome.text.startswith("## One pass of the expert\n")
    assert (options.out / "performance" / "step-context.png").read_bytes()[:4] == b"\x89PNG"
    rows = json.loads(options.results.read_text())["rows"]
    assert [row["target"] for row in rows] == [2.5, None, 2.5, None, None]
    assert all(row["suite"] == "step" and row["n"] == 7 for row in rows)


def test_a_model_without_a_graph(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "can_build", lambda _: False)
    with pytest.raises(ValueError, match="no graph to compare"):
        run(options)
