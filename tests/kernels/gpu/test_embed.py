"""softmax(x_t) E on a card against float64."""

import numpy as np
import pytest
import torch
from ssd_kernels import gpu
from ssd_kernels.errors import InvalidInput
from ssd_kernels.simplex import renoise_f64
from ssd_kernels.types import TokenSets

KEY, STEP, BLOCK = 2**63 + 12345, 3, 2


def reference(w_hat, alpha_bar, table, positions, k):
    x = renoise_f64(w_hat, alpha_bar, noise_key=KEY, positions=positions, step=STEP, block=BLOCK, vocab=len(table), k=k)
    p = np.exp(x - x.max(axis=1, keepdims=True))
    return (p / p.sum(axis=1, keepdims=True)) @ table.astype(np.float64)


def made(count, vocab, hidden, seed):
    rng = np.random.default_rng(seed)
    sets = [sorted(rng.choice(vocab, size=min(vocab, n), replace=False).tolist()) for n in rng.integers(0, 4, count)]
    alpha_bar = np.concatenate([[0.0, 1.0], rng.uniform(0, 1, count)])[:count].astype(np.float32)
    table = rng.normal(size=(vocab, hidden)).astype(np.float32)
    return TokenSets.of(sets), alpha_bar, table, rng.integers(0, 1000, count).astype(np.int32)


def embedded(put, w_hat, alpha_bar, table, positions, k=5.0):
    rows = put(gpu.counters(KEY, positions, step=STEP, block=BLOCK))
    table = table if isinstance(table, torch.Tensor) else put(table)
    return gpu.renoise_embed(put(w_hat.ids), put(w_hat.offsets), put(alpha_bar), table, rows, k=k).cpu().numpy()


@pytest.mark.parametrize(
    ("count", "vocab", "hidden", "k"), [(1, 5, 3, 5.0), (17, 1031, 70, 5.0), (3, 513, 64, 1.5), (5, 2049, 130, 8.0)]
)
def test_it_is_the_equation(put, count, vocab, hidden, k):
    case = made(count, vocab, hidden, count)
    got = embedded(put, *case, k=k)
    np.testing.assert_allclose(got, reference(*case, k), rtol=2e-5, atol=2e-5)


def test_a_table_in_bfloat16_costs_what_its_rounding_costs(put):
    w_hat, alpha_bar, table, positions = made(8, 3000, 96, 1)
    half = put(table).to(torch.bfloat16)
    want = reference(w_hat, alpha_bar, half.float().cpu().numpy(), positions, 5.0)
    got = embedded(put, w_hat, alpha_bar, half, positions)
    mean = half.float().cpu().numpy().mean(axis=0)
    off = np.sqrt(((got - want) ** 2).mean(axis=1)) / np.sqrt(((want - mean) ** 2).mean(axis=1))
    assert off.max() < 0.004  # weights are rounded to 8 bits


def test_bits_do_not_depend_on_companions(put):
    """Nor, on a card, on the row's place; the interpreter's products are BLAS, whose sums go by the place."""
    w_hat, alpha_bar, table, positions = made(21, 700, 40, 2)
    together = embedded(put, w_hat, alpha_bar, table, positions)
    other = made(21, 700, 40, 3)
    for i in (0, 7, 15, 16, 20):
        first = i // 16 * 16
        sets = [other[0].row(j).tolist() for j in range(first, i)] + [w_hat.row(i).tolist()]
        shares = np.append(other[1][first:i], alpha_bar[i])
        places = np.append(other[3][first:i], positions[i])
        np.testing.assert_array_equal(embedded(put, TokenSets.of(sets), shares, table, places)[-1], together[i])
        if torch.cuda.is_available():
            alone = embedded(put, TokenSets.of(sets[-1:]), shares[-1:], table, places[-1:])
            np.testing.assert_array_equal(alone[0], together[i])


def test_what_is_refused(put):
    w_hat, alpha_bar, table, positions = made(2, 50, 4, 3)
    with pytest.raises(InvalidInput, match="at most 30"):
        embedded(put, w_hat, alpha_bar, table, positions, k=31.0)
    with pytest.raises(InvalidInput, match="offsets"):
        embedded(put, TokenSets.empty(3), alpha_bar, table, positions)
    assert embedded(put, TokenSets.empty(0), alpha_bar[:0], table, positions[:0]).shape == (0, 4)
