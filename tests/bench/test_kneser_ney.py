"""The n-gram model against dictionaries written from Chen and Goodman's equations, and against its own sum to 1."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from ssd_bench.kneser_ney import KneserNey


class Slow:
    """Modified Kneser-Ney by dictionaries of tuples."""

    def __init__(self, tokens, vocab, order):
        self.vocab, self.order = vocab, order
        grams = {k: [tuple(tokens[i : i + k]) for i in range(len(tokens) - k + 1)] for k in range(1, order + 1)}
        self.count = {order: Counter(grams[order])}
        for k in range(1, order):
            left = defaultdict(set)
            for gram in grams[k + 1]:
                left[gram[1:]].add(gram[0])
            self.count[k] = Counter({g: max(1, len(left[g])) for g in set(grams[k])})
        self.discount = {k: self._discounts(self.count[k]) for k in self.count}

    @staticmethod
    def _discounts(count):
        n = Counter(count.values())
        half = {0: 0.0, 1: 0.5, 2: 0.5, 3: 0.5}
        if not all(n[i] for i in (1, 2, 3, 4)):
            return half
        y = n[1] / (n[1] + 2 * n[2])
        found = {0: 0.0}
        for i in (1, 2, 3):
            d = i - (i + 1) * y * n[i + 1] / n[i]
            found[i] = d if 0 < d < max(1, i if i > 1 else 1) else 0.5
        return found

    def p(self, context, token):
        lower = self.p(context[1:], token) if context else 1 / self.vocab
        k = len(context) + 1
        children = {g: c for g, c in self.count[k].items() if g[:-1] == context}
        if not children:
            return lower
        total = sum(children.values())
        d = self.discount[k]
        left = sum(d[min(c, 3)] for c in children.values()) / total
        c = children.get((*context, token), 0)
        return (c - d[min(c, 3)]) / total + left * lower


@pytest.fixture(scope="module")
def stream():
    rng = np.random.default_rng(0)
    words = [rng.choice(6, rng.integers(2, 5), p=[0.4, 0.25, 0.15, 0.1, 0.06, 0.04]) for _ in range(8)]
    return np.concatenate([words[i] for i in rng.integers(0, 8, 90)]).astype(np.int64)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_same_as_dictionaries(stream, order):
    model, slow = KneserNey(stream, vocab=8, order=order), Slow(stream.tolist(), 8, order)
    text = [0, 1, 0, 2, 7, 0, 0, 1, 5, 3, 0, 1]
    expected = []
    for i, token in enumerate(text):
        expected.append(np.log(slow.p(tuple(text[max(0, i - order + 1) : i]), token)))
    np.testing.assert_allclose(model.logp(np.array(text)), expected, rtol=1e-12)


@pytest.mark.parametrize("order", [1, 3, 5])
def test_probabilities_sum_to_one(stream, order):
    model = KneserNey(stream, vocab=8, order=order)
    rng = np.random.default_rng(1)
    contexts = [stream[i : i + order - 1] for i in rng.integers(0, len(stream) - order, 20)]
    contexts += [rng.integers(0, 8, order - 1) for _ in range(20)]
    for context in contexts:
        p = [np.exp(model.logp(np.array([t]), context=context))[0] for t in range(8)]
        assert sum(p) == pytest.approx(1.0, abs=1e-12)
        assert min(p) > 0


def test_real_discounts_are_in_use(stream):
    """The small stream above is large enough for the estimated discounts at some order."""
    slow = Slow(stream.tolist(), 8, 5)
    assert any(d[1] != 0.5 for d in slow.discount.values())


def test_context_is_not_scored(stream):
    model = KneserNey(stream, vocab=8)
    whole = model.logp(np.array([0, 1, 2, 0, 1]))
    np.testing.assert_allclose(model.logp(np.array([0, 1]), context=np.array([0, 1, 2])), whole[3:])


def test_longer_contexts_help_on_a_repetitive_text(stream):
    held_out = stream[-60:]
    train = stream[:-60]
    losses = [-KneserNey(train, vocab=8, order=k).logp(held_out).mean() for k in (1, 2, 3)]
    assert losses[0] > losses[1]
    assert losses[0] > losses[2]


def test_bad_input():
    with pytest.raises(ValueError):
        KneserNey(np.array([1, 2]), vocab=8, order=3)
    with pytest.raises(ValueError):
        KneserNey(np.array([1, 9]), vocab=8, order=1)
    with pytest.raises(ValueError):
        KneserNey(np.array([1, 2, 3]), vocab=8, order=1).logp(np.array([8]))
