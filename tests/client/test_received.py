"""The core's logits as they arrive: shapes, bounds, wider answers."""

from __future__ import annotations

import numpy as np
import pytest
from ssd_client.received import WIRE_CODECS, Received
from ssd_diffusion.ensemble import Weights
from ssd_kernels.codec import CodecSpec, decode_full, encode
from ssd_kernels.combine import fuse, log_softmax
from ssd_kernels.errors import CodecError
from ssd_kernels.tail import reshape_tail
from ssd_protos.ssd.v1 import ssd_pb2 as pb

ROWS, V = 4, 64


def rows(seed: int, near: np.ndarray | None = None) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(ROWS, V)).astype(np.float32) * 2
    return made if near is None else (near + 0.5 * made).astype(np.float32)


def message(logits: np.ndarray, spec: CodecSpec) -> pb.Logits:
    return pb.Logits(codec=WIRE_CODECS[spec.kind], shape=logits.shape, data=encode(logits, spec))


def received(spec: CodecSpec, limit: float = 1.0, **weights: float) -> Received:
    return Received(spec, vocab=V, tail=None, weights=Weights(**{"lam": 0.6, **weights}), limit=limit)


def test_a_dense_codec_arrives_as_it_was() -> None:
    core, one = rows(1), received(CodecSpec(kind="dense-f32"))
    assert np.array_equal(one.read(message(core, CodecSpec(kind="dense-f32")), ROWS, 0), core)
    assert np.array_equal(one.review(core, rows(2), rows(3)), core)
    assert one.bound() is None


@pytest.mark.parametrize("k", [2, 8, 32])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_fused_error_is_within_the_bound(k: int, alpha: float) -> None:
    spec = CodecSpec(kind="top-k", k=k, residual=0.0)
    core = rows(1)
    private, public = rows(2, core), rows(3, core)
    one = received(spec, alpha=alpha)
    got = one.review(one.read(message(core, spec), ROWS, 0), private, public)
    exact = np.exp(fuse(core, private, public, lam=0.6, alpha=alpha).astype(np.float64))
    fused = np.exp(fuse(got, private, public, lam=0.6, alpha=alpha).astype(np.float64))
    bound = one.bound()
    assert bound is not None
    assert 0.5 * np.abs(fused - exact).sum(axis=-1).max() <= bound.worst + 1e-6
    assert bound.mean <= bound.worst <= 1.0


def test_what_was_left_out_is_shaped_by_the_expert() -> None:
    spec = CodecSpec(kind="top-k", k=4, residual=0.0)
    core = rows(1)
    public = rows(3, core)
    one = received(spec)
    plain = one.read(message(core, spec), ROWS, 0)
    shaped = one.review(plain, rows(2), public)
    want = log_softmax(core)
    assert np.abs(shaped - want).mean() < np.abs(plain - want).mean()
    assert np.allclose(np.exp(shaped.astype(np.float64)).sum(axis=-1), 1.0, atol=1e-5)


def test_a_shared_unigram_has_a_say_beside_the_expert() -> None:
    spec = CodecSpec(kind="top-k", k=4, residual=0.0)
    core, expert, tail = rows(1), rows(2), rows(3)[0]
    one = Received(spec, vocab=V, tail=tail, weights=Weights(lam=0.6), limit=1.0)
    got = one.review(one.read(message(core, spec), ROWS, 0), expert, None)
    seen = decode_full(encode(core, spec), rows=ROWS, vocab=V, spec=spec, tail_logp=tail)
    assert np.array_equal(got, reshape_tail(seen, expert, tail_logp=tail).logp)
    assert not np.array_equal(got, reshape_tail(seen, expert).logp)


@pytest.mark.parametrize("count", [ROWS, 1])
def test_a_wider_answer_is_asked_for_once_where_the_bound_is_high(count: int) -> None:
    """Of all rows, or of the first alone, as a node that looks ahead sends it."""
    spec = CodecSpec(kind="top-k", k=2, residual=0.0)
    core, private, public = rows(1), rows(2), rows(3)
    one, asked = received(spec, limit=0.1, alpha=0.5), []

    def again(k: int) -> np.ndarray:
        asked.append(k)
        return one.read(message(core[:count], CodecSpec(kind="top-k", k=k, residual=0.0)), count, k)

    one.ask = again
    found = one.review(one.read(message(core, spec), ROWS, 0), private, public)
    assert asked == [8]
    wide, narrow = (CodecSpec(kind="top-k", k=k, residual=0.0) for k in (8, 2))
    for i in range(ROWS):
        sent = wide if i < count else narrow
        seen = decode_full(encode(core[i : i + 1], sent), rows=1, vocab=V, spec=sent)
        np.testing.assert_allclose(found[i : i + 1], reshape_tail(seen, public[i : i + 1]).logp, atol=1e-6)
    bound = one.bound()
    assert bound is not None
    assert bound.asked_again == 1
    fine = received(spec, limit=1.0)
    fine.ask = again
    fine.review(fine.read(message(core, spec), ROWS, 0), private, None)
    assert asked == [8]


def test_nonsense_is_refused() -> None:
    spec = CodecSpec(kind="top-k", k=4)
    good = message(rows(1), spec)
    one = received(spec)
    for bad in (
        pb.Logits(codec=good.codec, shape=[ROWS, V + 1], data=good.data),
        pb.Logits(codec=good.codec, shape=[ROWS + 1, V], data=good.data),
        pb.Logits(codec=pb.CODEC_KIND_DENSE_F32, shape=[ROWS, V], data=good.data),
        pb.Logits(codec=good.codec, shape=[ROWS, V], data=good.data[:-1]),
        pb.Logits(codec=good.codec, shape=[ROWS, V], data=good.data + b"x"),
        pb.Logits(codec=good.codec, shape=[ROWS, V]),
    ):
        with pytest.raises(CodecError):
            one.read(bad, ROWS, 0)
