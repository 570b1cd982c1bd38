"""The quality suite's metrics against values computed by hand: clusters, divergence, diversity, intervals, records."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ssd_bench.kneser_ney import KneserNey
from ssd_bench.lines import LineFile
from ssd_bench.quality import mauve, report, summary
from ssd_bench.quality.judges import NgramJudge
from ssd_bench.quality.summary import Sample
from ssd_bench.stats import jackknife
from ssd_bench.text import repeated_n, zipf_coefficient

COUNTS = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)
SHARES = COUNTS.map(lambda counts: np.array(counts) / sum(counts))


def test_area_of_equal_and_of_disjoint_shares():
    assert mauve.area(np.array([0.2, 0.8]), np.array([0.2, 0.8])) == pytest.approx(1.0, abs=1e-6)
    # Disjoint: KL(Q|R) = -log(1 - l), KL(P|R) = -log l, so the area is the integral of y = l^c over x = (1 - l)^c,
    # c B(c + 1, c) = c c! (c - 1)! / (2 c)!.
    wanted = 5 * math.factorial(5) * math.factorial(4) / math.factorial(10)
    assert mauve.area(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(wanted, rel=0.02)


def test_area_by_slow_quadrature():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.5, 0.4])
    points = [(1.0, 0.0)]
    for i in range(1, 20_000):
        r = i / 20_000 * p + (1 - i / 20_000) * q
        points.append((
            math.exp(-5 * sum(b * math.log(b / c) for b, c in zip(q, r, strict=True))),
            math.exp(-5 * sum(a * math.log(a / c) for a, c in zip(p, r, strict=True))),
        ))  # fmt: skip
    points.append((0.0, 1.0))
    wanted = sum((a[1] + b[1]) / 2 * (a[0] - b[0]) for a, b in itertools.pairwise(points))
    assert mauve.area(p, q) == pytest.approx(wanted, rel=0.01)


@given(SHARES, SHARES)
def test_area_is_symmetric_and_at_most_one(p, q):
    forth, back = mauve.area(p, q), mauve.area(q, p)
    assert forth == pytest.approx(back, abs=1e-6)  # the steps of the integral
    assert 0.0 <= forth <= 1.0 + 1e-6
    assert forth <= mauve.area(p, p) + 1e-6


def test_clusters_of_points_that_lie_apart():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    truth = rng.integers(0, 3, 60)
    labels = mauve.kmeans(centres[truth] + rng.normal(0, 0.1, (60, 2)), 3)
    pairs = {(int(a), int(b)) for a, b in zip(truth, labels, strict=True)}
    assert len(pairs) == 3
    assert (mauve.kmeans(np.ones((5, 2)), 3) < 3).all()
    with pytest.raises(ValueError, match="cannot be put"):
        mauve.kmeans(np.ones((2, 2)), 3)


def test_texts_of_two_kinds_are_told_apart():
    rng = np.random.default_rng(1)
    near, far = rng.normal(0, 1, (40, 3)), rng.normal(30, 1, (40, 3))
    every = np.arange(40)
    assert mauve.quantise(near, near).score(every) == pytest.approx(1.0, abs=1e-6)
    assert mauve.quantise(near, far).score(every) < 0.01
    assert mauve.quantise(near, rng.normal(0, 1, (40, 3))).score(every) > 0.5


def test_repetition_and_zipf_by_hand():
    assert repeated_n([1, 2, 1, 2, 1, 2], 2) == pytest.approx(1 - 2 / 5)
    assert repeated_n([1], 2) == 0.0
    texts = [[rank] * (1200 // rank) for rank in (1, 2, 3, 4, 5)]  # frequency = 1200 / rank
    assert zipf_coefficient(texts) == pytest.approx(1.0)
    assert zipf_coefficient([[3, 3, 3]]) == 0.0


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=30))
def test_jackknife_of_a_mean_is_the_standard_error(values):
    x = np.array(values)
    found = jackknife(lambda rows: float(x[rows].mean()), len(x))
    half = 1.959963984540054 * x.std(ddof=1) / math.sqrt(len(x))
    assert found.value == pytest.approx(x.mean(), abs=1e-9)
    assert (found.low, found.high) == (
        pytest.approx(x.mean() - half, abs=1e-6), pytest.approx(x.mean() + half, abs=1e-6)
    )  # fmt: skip
    with pytest.raises(ValueError):
        jackknife(lambda _: 0.0, 1)


def sample(name: str, texts, nats: float = 2.0, **others) -> Sample:
    n = len(texts)
    costs = np.array([nats * len(t) for t in texts])
    return Sample(name, [f"p{i}" for i in range(n)], texts, np.full(n, 5.0), {"ar": costs}, **others)


def test_figures_by_hand():
    one = sample("a", [[1, 2, 3, 4], [1, 2, 5, 6]])
    human = sample("human", [[1, 2, 3, 4], [7, 8, 9, 9]])
    found = summary.figures(one, human, resamples=50)
    assert found["perplexity ar"].value == pytest.approx(math.exp(2))
    assert found["tokens a pass"].value == pytest.approx(4 / 5)
    assert found["distinct-1"].value == pytest.approx(6 / 8)
    assert found["distinct-2"].value == pytest.approx(5 / 6)
    assert found["entropy"].value == pytest.approx(-2 * (1 / 4) * math.log(1 / 4) - 4 * (1 / 8) * math.log(1 / 8))
    assert found["repeated-4"].value == 0.0
    assert "mauve" not in found
    other = summary.ratio(one, sample("b", one.texts, nats=1.0), "ar", resamples=50)
    assert (other.value, other.low) == (pytest.approx(math.e), pytest.approx(math.e))


def test_the_divergence_needs_texts_enough():
    rng = np.random.default_rng(0)
    for count, scored in ((mauve.LEAST_TEXTS, True), (mauve.LEAST_TEXTS - 1, False)):
        vectors = rng.normal(0, 1, (count, 3)).astype(np.float32)
        texts = [[1, 2, 3, i] for i in range(count)]
        one, human = (sample(name, texts, vectors=vectors) for name in ("a", "human"))
        found = summary.figures(one, human, resamples=20)
        assert ("mauve" in found) == scored
        if scored:
            assert (found["mauve"].value, found["mauve"].high) == (pytest.approx(1.0, abs=1e-6), pytest.approx(1.0))


def test_a_sample_is_compared_on_its_own_prompts():
    whole = sample("b", [[1, 1], [2, 2], [3, 3]])
    part = whole.of(["p2", "p0"])
    assert part.texts == [[3, 3], [1, 1]]
    assert part.nats["ar"].tolist() == [4.0, 4.0]


def test_perplexity_at_equal_entropy_lies_between_the_temperatures():
    # Entropies log 2 and log 4; the text's own is log 2 too, so the first point alone decides.
    low = sample("base, T 0.5", [[1, 2] * 4, [2, 1] * 4], nats=1.0)
    high = sample("base, T 1", [[1, 2, 3, 4] * 2, [4, 3, 2, 1] * 2], nats=3.0)
    same = sample("core", [[7, 8] * 4, [8, 7] * 4], nats=1.5)
    found = summary.matched(same, [low, high], "ar", "entropy")
    assert found is not None
    assert found.value == pytest.approx(math.exp(0.5))
    between = sample("core", [[1, 2, 3] * 2, [3, 2, 1] * 2], nats=2.0)  # entropy log 3
    found = summary.matched(between, [high, low], "ar", "entropy")
    assert found is not None
    assert math.log(found.value) == pytest.approx(2.0 - (1.0 + 2.0 * math.log(1.5) / math.log(2)))
    beyond = sample("core", [[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]])
    assert summary.matched(beyond, [low, high], "ar", "entropy") is None


@given(st.floats(0.1, 3), st.floats(-2, 2), st.floats(-5, 5))
def test_a_straight_line_is_read_exactly(slope, offset, x):
    points = [(float(at), offset + slope * at) for at in (-1, 0, 2)]
    assert summary.on_line(points, x) == pytest.approx(offset + slope * x, abs=1e-9)


def test_the_n_gram_judge_reads_the_context():
    model = KneserNey(np.array([1, 2, 3, 1, 2, 3, 1, 2, 4] * 5), vocab=6, order=3)
    judge = NgramJudge(model)
    context, text = np.array([3, 1], np.int32), np.array([2, 3], np.int32)
    wanted = -model.logp(np.array([2, 3]), context=np.array([3, 1])).sum()
    assert judge.nats([context, context], [text, text]).tolist() == [wanted, wanted]
    assert wanted < -model.logp(np.array([2, 3])).sum()


def test_records_go_on_after_a_kill_and_other_settings_lose_nothing(tmp_path):
    first = LineFile(tmp_path, "texts", {"seed": 0}, ("setting", "prompt"))
    first.add([{"setting": "a", "prompt": "p", "ids": [1, 2]}, {"setting": "a", "prompt": "q", "ids": [3]}])
    with first.path.open("a") as file:
        file.write('{"setting": "b", "pro')  # a run that was killed while it wrote
    again = LineFile(tmp_path, "texts", {"seed": 0}, ("setting", "prompt"))
    assert again.get("a", "p") == {"setting": "a", "prompt": "p", "ids": [1, 2]}
    assert again.get("b", "p") is None
    again.add([{"setting": "b", "prompt": "p", "ids": []}])
    assert [json.loads(line) for line in first.path.read_text().splitlines()][-1]["setting"] == "b"
    other = LineFile(tmp_path, "texts", {"seed": 1}, ("setting", "prompt"))
    assert other.get("a", "p") is None
    assert LineFile(tmp_path, "texts", {"seed": 0}, ("setting", "prompt")).get("a", "q") is not None
    first.path.write_text("not records\n")
    with pytest.raises(ValueError, match="move it away"):
        LineFile(tmp_path, "texts", {"seed": 0}, ("setting", "prompt"))


def test_rows_say_above_one_where_the_core_is_better():
    better = replace(
        report.Report(about="", seconds=1.0),
        likelihood={"S1 / base": jackknife(lambda rows: 0.5 + 0 * len(rows), 3)},
    )  # fmt: skip
    (row,) = report.result_rows(better)
    assert (row.suite, row.ratio, row.target) == ("quality", 2.0, 1.0)
