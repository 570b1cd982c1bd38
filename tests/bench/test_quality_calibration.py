"""Calibration in the quality suite: what a document gives, by two roads, and what becomes of the sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ssd_bench.quality import calibration, plots
from ssd_bench.quality.calibration import BASE, BINS, FIRST, LENGTH, PLACES, WINDOWS
from ssd_bench.quality.models import Opened, open_model
from ssd_diffusion.models.tiny import write_tiny
from ssd_diffusion.training.evaluate import next_token_losses


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> tuple[Opened, Opened]:
    """A core whose maps have learned something, and its base."""
    root = tmp_path_factory.mktemp("calibration")
    core = write_tiny(root / "core", seed=0, vocab=300, learned=0.3)
    return open_model(core), open_model(write_tiny(root / "base", seed=0, vocab=300))


def texts(rows: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 300, (rows, LENGTH)).astype(np.int32)


def test_an_untrained_core_is_as_sure_as_its_base(models):
    base = models[1].reading
    for sums in calibration.of_documents(base, base, texts(), seed=0):
        assert set(sums) == set(PLACES)
        assert np.sum(sums[BASE]["n"]) == np.sum(sums[FIRST]["n"]) == WINDOWS
        assert np.sum(sums["5th to 8th, drafted"]["n"]) == 4 * WINDOWS
        assert sums[FIRST]["confidence"] == pytest.approx(sums[BASE]["confidence"], rel=1e-4)
        assert sums[FIRST]["right"] == sums[BASE]["right"]
        # The floor's row is the same distribution, so it grants what the first position is sure of.
        assert sums[FIRST]["granted"][0] == pytest.approx(np.sum(sums[FIRST]["confidence"]), rel=1e-4)
        assert sums[FIRST]["overlap"][0] == pytest.approx(WINDOWS, rel=1e-4)


def test_right_counts_the_most_probable_tokens(models):
    """A text whose window openings hold the base's most probable tokens is right there, every time."""
    base, rows = models[1].reading, torch.from_numpy(texts(1).astype(np.int64))
    losses = []
    for start in range(calibration.CONTEXT, LENGTH - calibration.BLOCK + 1, calibration.STRIDE):
        every = rows[:, : start + 1].repeat(300, 1)
        every[:, start] = torch.arange(300)
        nats = next_token_losses(base, every)[:, -1]
        rows[0, start] = int(nats.argmin())
        losses.append(float(nats.min()))
    (sums,) = calibration.of_documents(base, base, rows.numpy().astype(np.int32), seed=0)
    assert np.sum(sums[FIRST]["right"]) == np.sum(sums[BASE]["right"]) == WINDOWS
    assert np.sum(sums[BASE]["confidence"]) == pytest.approx(np.exp(-np.array(losses)).sum(), rel=1e-4)


def test_drafts_do_not_read_their_own_window(models):
    core, base = (m.reading for m in models)
    changed = texts(1)
    changed[0, -1] = 3 + (changed[0, -1] - 2) % 297
    (one,), (other,) = (calibration.of_documents(core, base, rows, seed=0) for rows in (texts(1), changed))
    for place in PLACES:
        assert one[place]["confidence"] == pytest.approx(other[place]["confidence"], rel=1e-4)
        assert one[place]["overlap"] == pytest.approx(other[place]["overlap"], rel=1e-4)
    assert one["2nd, drafted"]["overlap"][0] < WINDOWS * 0.999
    assert one["own guesses at u = 0.5"] != one["own guesses at u = 0.3"]


def test_the_transition_reads_the_tokens_before(models):
    core, base = (m.reading for m in models)
    before = calibration.of_documents(core, base, texts(1), seed=0)[0]
    torch.manual_seed(0)
    try:
        torch.nn.init.normal_(core.add_transition(6).outer.weight)
        after = calibration.of_documents(core, base, texts(1), seed=0)[0]
    finally:
        core.transition = None
    assert after["2nd, drafted"] != before["2nd, drafted"]
    assert {place for place in PLACES if "drafted" not in place and after[place] != before[place]} == set()


def binned(n: list[int], confidence: list[float], right: list[float]) -> calibration.Sums:
    pad = [0.0] * (BINS - len(n))
    return {
        "n": [*pad, *n], "confidence": [*pad, *(c * k for c, k in zip(confidence, n, strict=True))],
        "right": [*pad, *(r * k for r, k in zip(right, n, strict=True))],
        "granted": [float(sum(n)) / 2], "overlap": [float(sum(n)) / 4],
    }  # fmt: skip


def test_figures_of_what_is_known():
    honest = calibration.figures([binned([10, 10], [0.85, 0.95], [0.85, 0.95])] * 3)
    assert honest["over"].value == honest["error"].value == pytest.approx(0)
    assert (honest["sure"].value, honest["right when sure"].value) == (0.5, pytest.approx(0.95))
    assert (honest["granted"].value, honest["overlap"].value) == (0.5, 0.25)
    # Too sure in one bin and not sure enough in the other: nothing in the mean, all of it in the error.
    crooked = [binned([10, 10], [0.85, 0.95], [0.95, 0.85])] * 3
    found = calibration.figures(crooked)
    assert found["over"].value == pytest.approx(0)
    assert found["error"].value == pytest.approx(0.1)
    assert calibration.curve(crooked) == [pytest.approx((0.85, 0.95, 30)), pytest.approx((0.95, 0.85, 30))]
    assert "right when sure" not in calibration.figures([binned([4, 0], [0.8, 0.0], [0.5, 0.0])] * 2)


def test_the_picture_is_written(models, tmp_path):
    found = calibration.of_documents(models[0].reading, models[1].reading, texts(), seed=0)
    path = tmp_path / "calibration.png"
    plots.calibration({place: calibration.curve([one[place] for one in found]) for place in PLACES}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
