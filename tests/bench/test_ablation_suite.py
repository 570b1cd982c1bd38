"""The ablation suite on a tiny model: equal compute, agreement of draws, a run that is stopped and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_bench.ablation import run as suite
from ssd_bench.ablation.measure import MEASURES, agreement
from ssd_bench.ablation.variants import USUAL, VARIANTS, batches, cost
from ssd_diffusion.models.tiny import write_tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for part, count in (("train", 12), ("heldout", 5)):
        folder = tmp_path / "data" / part / "text"
        folder.mkdir(parents=True)
        for name in ("boats", "keys"):
            rows = [{"text": f"the {name} of house {i} are counted on day {i % 5}. " * 9} for i in range(count)]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


def options(tmp_path: Path, data: Path, base: Path, **changed: object) -> suite.Options:
    given = {
        "data": data, "home": tmp_path, "base": str(base), "batches": 3, "limit": 4,
        "names": ("no output shift", "no transition"), "seed": 0, "max_minutes": None, "records": tmp_path / "records",
        "out": tmp_path / "docs", "results": tmp_path / "results.json",
    }  # fmt: skip
    return suite.Options(**{**given, **changed})  # type: ignore[arg-type]


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_agreement_is_how_often_shared_noise_draws_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, q = (np.where(rng.random(6) < 0.7, rng.random(6), 0.0) + 1e-3 * (np.arange(6) == 0) for _ in range(2))
    p, q = p / p.sum(), q / q.sum()
    noise = rng.gumbel(size=(40_000, 6))
    with np.errstate(divide="ignore"):
        same = np.argmax(np.log(p) + noise, axis=1) == np.argmax(np.log(q) + noise, axis=1)
    assert agreement(p.astype(np.float32), q.astype(np.float32)) == pytest.approx(same.mean(), abs=0.02)
    assert agreement(p.astype(np.float32), p.astype(np.float32)) == pytest.approx(1.0, abs=1e-6)


def test_variants_cost_the_same() -> None:
    assert len({v.name for v in VARIANTS}) == len(VARIANTS)
    assert len({repr(v) for v in VARIANTS}) == len(VARIANTS)
    for variant in VARIANTS:
        assert batches(variant, 1000) * cost(variant) == pytest.approx(1000 * cost(VARIANTS[0]), rel=2e-3)
    single = next(v for v in VARIANTS if v.offsets == 1)
    assert batches(single, 100) > 150


def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path, data: Path, base: Path) -> None:
    with pytest.raises(ValueError, match="--max-minutes"):
        suite.run(options(tmp_path, data, base, max_minutes=0.0))
    first = suite.run(options(tmp_path, data, base, names=("no transition",)))
    assert list(first.content["variants"]) == [USUAL, "no transition"]
    path = next((tmp_path / "records").glob("variants-*.jsonl"))
    before = path.read_text()
    whole = suite.run(options(tmp_path, data, base))
    assert path.read_text().startswith(before)
    assert list(whole.content["variants"]) == [USUAL, "no output shift", "no transition"]
    assert whole.content["variants"][USUAL] == first.content["variants"][USUAL]
    usual = whole.content["variants"][USUAL]
    assert all(name in usual for name in MEASURES)
    assert 1.0 <= usual["tokens a pass"][0] <= 6.0
    assert usual["targets"] > 0
    report = (tmp_path / "docs" / "ablation.md").read_text()
    assert report.count("\n| ") == 4 + 3
    assert "| no transition | " in report.split("Clear of zero")[1]
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["suite"] for row in rows] == ["ablation"] * 2


def test_bad_input(tmp_path: Path, data: Path, base: Path) -> None:
    with pytest.raises(ValueError, match="no variant 'colour'"):
        suite.run(options(tmp_path, data, base, names=("colour",)))
    with pytest.raises(ValueError, match="data build"):
        suite.run(options(tmp_path, tmp_path / "nowhere", base))
    for file in (data / "heldout" / "text").iterdir():
        file.write_text(json.dumps({"text": "short"}) + "\n")
    with pytest.raises(ValueError, match="held-out text"):
        suite.run(options(tmp_path, data, base))
