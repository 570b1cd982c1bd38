"""The numpy rules of one pass against rules spelled out key by key, and against the torch side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_diffusion.layout import InputMaps, joined_layout, lookahead_layout, pass_layout
from ssd_diffusion.schedule import alpha_bar
from ssd_diffusion.window import Window
from ssd_kernels.simplex import renoise_f64
from ssd_kernels.tables import HEAVY, LEVELS
from ssd_kernels.types import TokenSets


def may_read(query: int, key: int, cached: int, pending: int, u: list[float]) -> bool:
    """Indices count from the first cached token; the anchor is at cached + pending."""
    anchor = cached + pending
    if query < anchor:
        return key <= query
    if key <= anchor:
        return True
    return key == query or u[key - anchor - 1] < 1


@pytest.mark.parametrize("cached", [0, 3])
@pytest.mark.parametrize("pending", [0, 2])
def test_the_mask_is_what_the_words_say(cached: int, pending: int) -> None:
    u = [0.0, 1.0, 0.4, 1.0]
    layout = pass_layout(cached, pending, np.array(u, np.float32))
    queries = pending + 1 + len(u)
    for query in range(queries):
        for key in range(cached + queries):
            assert layout.allowed[query, key] == may_read(cached + query, key, cached, pending, u), (query, key)
    assert layout.position_ids.tolist() == list(range(cached, cached + queries))
    assert layout.bias.shape == (1, 1, queries, cached + queries)
    assert (layout.bias[0, 0] == 0).tolist() == layout.allowed.tolist()


def test_the_torch_side_has_the_same_rules() -> None:
    torch = pytest.importorskip("torch")
    from ssd_diffusion.models.ssd2 import pass_layout as torch_layout

    u = np.array([1.0, 0.3, 0.0], np.float32)
    ours = pass_layout(4, 2, u)
    theirs = torch_layout(
        torch.tensor([4]), torch.tensor([2]), torch.from_numpy(u)[None], past_length=4, pending_length=2
    )
    assert theirs.allowed[0].numpy().tolist() == ours.allowed.tolist()
    assert theirs.position_ids[0].tolist() == ours.position_ids.tolist()


@settings(max_examples=40)
@given(sizes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=4))
def test_joined_passes_do_not_read_one_another(sizes: list[tuple[int, int, int]]) -> None:
    parts = [
        lookahead_layout(cached, pending, np.arange(-1, drafts - 1, dtype=np.int32), 2)
        for cached, pending, drafts in sizes
    ]
    joined = joined_layout(parts)
    assert joined.position_ids.tolist() == [p for part in parts for p in part.position_ids.tolist()]
    row, key, own = 0, 0, sum(cached for cached, _, _ in sizes)
    for part, (cached, _, _) in zip(parts, sizes, strict=True):
        count = len(part.position_ids)
        keys = [*range(key, key + cached), *range(own, own + count)]
        np.testing.assert_array_equal(joined.allowed[row : row + count][:, keys], part.allowed)
        assert joined.allowed[row : row + count].sum() == part.allowed.sum()
        row, key, own = row + count, key + cached, own + count


def test_every_position_enters_by_its_own_level() -> None:
    rng = np.random.default_rng(0)
    vocab, hidden = 40, 6
    table = rng.standard_normal((vocab, hidden)).astype(np.float32)
    mean = table.mean(0)
    w_diff, w_time, bias = (rng.standard_normal(s).astype(np.float32) for s in ((hidden, hidden), hidden, hidden))
    maps = InputMaps(table, mean, w_diff, w_time, bias)
    u = np.array([0.0, 0.35, 1.0], np.float32)
    window = Window(5, 2, 0, u, TokenSets.of([[7], [9], []]), 123)
    conditioning = rng.standard_normal((3, hidden)).astype(np.float32)
    found = maps.embed_window(window, conditioning)

    x = renoise_f64(
        TokenSets.of([[9]]), alpha_bar(u[1:2]).astype(np.float32), noise_key=123, positions=window.positions[1:2],
        step=2, block=0, vocab=vocab,
    )[0]  # fmt: skip
    p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
    w = w_diff.astype(np.float64)
    want = [
        table[7] + bias,
        w @ ((p @ table + conditioning[1]) / 2) + 0.35 * w_time + bias,
        w @ mean + w_time + bias,
    ]
    np.testing.assert_allclose(found[[0, 2]], [want[0], want[2]], atol=2e-5)
    rounding = maps.whole.step * (0.5 + 127 * vocab / (2 * HEAVY * LEVELS))
    assert (np.abs(found[1] - want[1]) <= np.abs(w) @ rounding / 2 + 2e-5).all()


def test_without_a_pass_before_the_mean_stands_everywhere() -> None:
    mean = np.array([9.0, 7.0], np.float32)
    maps = InputMaps(table=np.ones((3, 2), np.float32), mean=mean, w_diff=np.eye(2), w_time=mean, w_time_bias=mean)
    found = maps.means(3)
    assert found.tolist() == [[9, 7]] * 3
    found[0] = 0
    assert mean.tolist() == [9, 7]
