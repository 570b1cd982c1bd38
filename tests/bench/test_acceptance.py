from pathlib import Path

import numpy as np
import pytest
from ssd_bench import acceptance as suite
from ssd_bench.machine import describe
from ssd_cloud.models import load
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.sampler import DecodeParams
from ssd_diffusion.tokenizer import Tokenizer


@pytest.fixture
def samples(tmp_path: Path) -> list[suite.Sample]:
    folder = write_tiny(tmp_path / "tiny", seed=3)
    engine = load(folder, slots=1, batch_width=1, threads=None)
    params = DecodeParams(block=4, grid=engine.spec.grid, max_tokens=8)
    ticks: list[int] = []
    out = suite.measure(
        engine, Tokenizer.load(folder), lambda context, tokens: 2.0 * len(tokens),
        suite.settings((1, 3), (0.0, 50.0)), prompts=suite.PROMPTS[:2], params=params, seed=1,
        advance=lambda: ticks.append(1),
    )  # fmt: skip
    assert len(ticks) == len(out) == 8
    return out


def test_one_position_a_pass_is_the_floor(samples: list[suite.Sample]) -> None:
    assert [str(s) for s in dict.fromkeys(s.setting for s in samples)] == [
        "1 level, budget 0", "1 level, budget 50", "3 levels, budget 0", "3 levels, budget 50",
    ]  # fmt: skip
    for sample in samples:
        if sample.setting.budget == 0:
            assert sample.passes == len(sample.tokens) == 8
        else:
            assert sample.passes == 2


def test_summary_counts_tokens_a_pass_and_differences(samples: list[suite.Sample]) -> None:
    changed = [
        suite.Sample(s.setting, s.tokens, s.passes, s.nats + (8.0 if s.setting.budget else 0.0)) for s in samples
    ]
    rows = suite.summary(changed)
    assert [r["tokens_a_pass"] for r in rows] == [1.0, 4.0, 1.0, 4.0]
    assert [r["difference"] for r in rows] == pytest.approx([0.0, 1.0, 0.0, 1.0])
    text = suite.markdown(rows, about="tiny", machine=describe(), seconds=1.0)
    assert "| 1 level, budget 50 | 4.00 | 3.000 | +1.000" in text
    assert [r.ratio for r in suite.result_rows(rows)] == [1.0, 4.0, 1.0, 4.0]
    assert np.isfinite([r["unigram_entropy"] for r in rows]).all()
