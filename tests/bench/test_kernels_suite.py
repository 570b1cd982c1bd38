"""The kernels suite at a small size: both sides do the same work, the page is made of sections, the plot is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ssd_bench import kernels, performance
from ssd_bench.ceilings import Ceilings
from ssd_bench.kernels import Embedding, Joining, Size
from ssd_bench.kernels_run import Options, run
from ssd_bench.versus import Rounds, by_turns, together
from ssd_kernels.project import nucleus_mask

SMALL = Size(vocab=700, block=3, hidden=8)


def test_turns_are_counted_and_paired() -> None:
    calls: list[str] = []
    found = by_turns(lambda: calls.append("plain"), lambda: calls.append("ours"), 7)
    assert calls == [name for i in range(8) for name in (("ours", "plain") if i % 2 == 0 else ("plain", "ours"))]
    assert len(found.plain) == len(found.ours) == 7
    with pytest.raises(ValueError, match="7 rounds"):
        by_turns(print, print, 6)


def test_a_ratio_is_a_median_of_rounds() -> None:
    rounds = Rounds((4.0, 9.0, 2.0), (2.0, 3.0, 2.0))
    assert (rounds.ratio, rounds.spread, str(rounds)) == (2.0, (1.0, 3.0), "2.00 (1.00 to 3.00)")
    assert together([rounds, Rounds((4.0, 3.0, 2.0), (2.0, 1.0, 2.0))]).plain == (8.0, 12.0, 4.0)


def test_a_floor_is_the_larger_of_bytes_and_operations() -> None:
    machine = Ceilings(copy_bytes=10.0, float_operations=4.0, byte_operations=8.0)
    assert machine.floor_s(size_bytes=100.0, floats=4.0) == 10.0
    assert machine.floor_s(size_bytes=1.0, floats=4.0, bytes_multiplied=16.0) == 3.0


def test_both_sides_embed_the_same_thing() -> None:
    """Without noise (u = 0) the composition and the kernel give the same embedding."""
    work = Embedding(SMALL, 0)
    exact = work.plain(0.0).numpy()
    np.testing.assert_allclose(work.ours(0.0, exact=True), exact, atol=1e-5)
    assert np.abs(work.ours(0.0) - exact).max() < 0.05
    assert work.error(0.4) < 0.05


def test_both_sides_draw_from_the_nucleus() -> None:
    logp = kernels.rows_of("usual", SMALL, 0)
    mask = nucleus_mask(logp, kernels.TOP_P, temperature=kernels.TEMPERATURE)
    for drawn in (kernels.draw(logp), kernels.plain_draw(torch.from_numpy(logp)).numpy()[:, 0]):
        assert mask[np.arange(len(drawn)), drawn].all()


def test_both_sides_join_the_same_members() -> None:
    work = Joining.of(SMALL, 0)
    np.testing.assert_allclose(work.join("numba"), work.join("numpy"), rtol=1e-5, atol=1e-5)


def test_a_run_leaves_page_plot_and_ratios(tmp_path: Path) -> None:
    out, results = tmp_path / "docs", tmp_path / "results.json"
    options = Options(size=SMALL, rounds=7, vocabs=(300, 600), blocks=(1, 2), out=out, results=results)
    outcome = run(options)
    assert outcome.text.startswith("## Kernels\n")
    assert (out / "performance" / "kernels-growth.png").read_bytes()[:4] == b"\x89PNG"
    page = (out / "performance.md").read_text()
    assert "### Draw from the nucleus" in page
    assert "](performance/kernels-growth.png)" in page
    rows = json.loads(results.read_text())["rows"]
    assert [row["target"] for row in rows] == [3.0, None, 20.0, None, None, None]
    assert all(row["n"] == 7 and row["low"] <= row["ratio"] <= row["high"] for row in rows)
    without = run(Options(size=SMALL, rounds=7, vocabs=(), blocks=(), out=out, results=results))
    assert "How it grows" not in without.text


def test_the_page_keeps_the_sections_of_other_suites(tmp_path: Path) -> None:
    for suite in ("personalize", "kernels"):
        section = performance.Section(suite, suite.title(), f"What {suite} says.", 1.0)
        performance.publish(section, [], out=tmp_path, results=tmp_path / "r.json")
    page = (tmp_path / "performance.md").read_text()
    assert page.index("## Kernels") < page.index("## Personalize")
    (tmp_path / "performance" / "personalize.json").write_text("{}")
    with pytest.raises(ValueError, match="no section"):
        performance.publish(section, [], out=tmp_path, results=tmp_path / "r.json")
