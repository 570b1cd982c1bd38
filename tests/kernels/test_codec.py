"""The codec: what comes back, what it costs, what it refuses, and how far the fused distribution can move."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ssd_kernels.codec import LATER_PART, TAIL_POWER, CodecSpec, decode, decode_full, encode
from ssd_kernels.combine import fuse, log_softmax
from ssd_kernels.errors import CodecError, InvalidInput
from ssd_kernels.project import sample
from ssd_kernels.tail import LOCAL_POWER, SHARED_POWERS, reshape_tail, total_variation_bound
from ssd_kernels.topk import FINE, FLOOR_SHARE, MIN_ENTRIES_PART, codes, values

HEADER = struct.Struct("<HBhfH")


def rows_of(b, v, seed=0, scale=3.0):
    return (np.random.default_rng(seed).normal(size=(b, v)) * scale).astype(np.float32)


def lsm(x):
    x = x.astype(np.float64) - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("text", ["dense-f32", "dense-f16", "top-k:256:0.01", "top-k:7:0"])
def test_spec_text_round_trip(text):
    assert str(CodecSpec.parse(text)) == text


def test_spec_defaults():
    assert CodecSpec.parse("top-k") == CodecSpec()
    assert CodecSpec.parse(" TOP-K:64 ") == CodecSpec(k=64)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "topk",
        "top-k:",
        "top-k:x",
        "top-k:0",
        "top-k:70000",
        "top-k:5:1",
        "top-k:5:nan",
        "top-k:5:0:1",
        "dense-f32:3",
    ],
)
def test_spec_refuses(text):
    with pytest.raises(InvalidInput):
        CodecSpec.parse(text)


def test_later_rows_are_held_to_what_they_are_worth():
    rows, spec = rows_of(4, 500), CodecSpec(k=100, residual=0.0)
    data = encode(rows, spec, leading=1, later=np.array([7, 30, 900, 0], np.int32))
    seen = decode_full(data, rows=4, vocab=500, spec=spec)
    assert seen.head.sum(axis=1).tolist() == [100, 30, 100, 1]
    wider = encode(rows, spec, leading=1, wider=300, later=np.array([7, 30, 900, 0], np.int32))
    seen = decode_full(wider, rows=4, vocab=500, spec=CodecSpec(k=300))
    assert seen.head.sum(axis=1).tolist() == [300, 30, 100, 1]


def test_spec_refuses_a_kind_made_by_hand():
    with pytest.raises(InvalidInput, match="dense-f8"):
        CodecSpec(kind="dense-f8")


def test_dense_f32_is_exact():
    x = rows_of(3, 17)
    data = encode(x, CodecSpec("dense-f32"))
    assert data == x.astype("<f4").tobytes()
    np.testing.assert_array_equal(decode(data, rows=3, vocab=17, spec=CodecSpec("dense-f32")), x)


def test_dense_f16_rounds_once():
    x = rows_of(3, 17)
    got = decode(encode(x, CodecSpec("dense-f16")), rows=3, vocab=17, spec=CodecSpec("dense-f16"))
    np.testing.assert_array_equal(got, x.astype(np.float16).astype(np.float32))


def slow_decode(row, spec, tail_logp):
    """What a top-k row must come back as, with exact head values: token by token."""
    logp = log_softmax(row, backend="numpy").astype(np.float64)  # what the rules read; they have edges
    p = np.exp(logp)
    order = sorted(range(len(row)), key=lambda i: (-logp[i], i))
    k = min(spec.k, len(row))
    if spec.residual > 0:
        for n in range(1, k + 1):
            rest = 1 - sum(p[i] for i in order[:n])
            following = p[order[n]] if n < len(row) else 0.0
            faint = n >= spec.k // MIN_ENTRIES_PART and following < FLOOR_SHARE / spec.k
            if rest <= spec.residual or faint:
                k = n
                break
    head, tail = order[:k], order[k:]
    out = np.log(p)
    if tail:
        r = max(1 - sum(p[i] for i in head), 1e-7)
        w = np.exp(TAIL_POWER * tail_logp[tail])
        out[tail] = np.log(r * w / w.sum())
        out[head] += np.log1p(-r) - np.log(sum(p[i] for i in head))
    return out, set(head)


@given(
    b=st.integers(1, 3),
    v=st.integers(1, 90),
    k=st.integers(1, 100),
    residual=st.sampled_from([0.0, 0.001, 0.05, 0.5]),
    scale=st.sampled_from([0.0, 0.5, 3.0, 20.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150)
def test_top_k_round_trip(b, v, k, residual, scale, seed):
    x = rows_of(b, v, seed, scale)
    tail = rows_of(1, v, seed + 1, 2.0)[0]
    spec = CodecSpec(k=k, residual=residual)
    got = decode_full(encode(x, spec, backend="numpy"), rows=b, vocab=v, spec=spec, tail_logp=tail)
    assert got.logp.dtype == np.float32
    np.testing.assert_allclose(np.exp(got.logp.astype(float)).sum(axis=1), 1.0, rtol=1e-5)
    for i in range(b):
        want, head = slow_decode(x[i], spec, tail)
        assert set(np.flatnonzero(got.head[i])) == head
        np.testing.assert_allclose(got.residual[i], 1 - np.exp(lsm(x)[i])[list(head)].sum(), atol=2e-6)
        off = [j for j in range(v) if j not in head]
        np.testing.assert_allclose(
            got.logp[i, off], want[off], atol=1e-2 if got.residual[i] < 1e-5 else 2e-3, rtol=1e-4
        )
        ids = sorted(head)
        error, half = got.logp[i, ids] - want[ids], got.value_step[i, ids] / 2
        # each rounded by at most half its step, then all moved alike to keep the head's mass
        assert (error - half).max() <= (error + half).min() + 2e-4
        p = np.exp(want[ids])
        np.testing.assert_array_less(got.value_step[i, ids], 1.2 * np.maximum(FINE / np.sqrt(p / p.sum()), 0.5) + 1e-3)


def test_uniform_tail_without_a_unigram():
    x = rows_of(1, 40)
    spec = CodecSpec(k=5, residual=0.0)
    got = decode_full(encode(x, spec), rows=1, vocab=40, spec=spec)
    tail = got.logp[0][~got.head[0]]
    np.testing.assert_allclose(np.exp(tail), got.residual[0] / 35, rtol=1e-5)


def test_all_entries_keep_no_tail():
    x = rows_of(2, 9)
    spec = CodecSpec(k=9, residual=0.0)
    got = decode_full(encode(x, spec), rows=2, vocab=9, spec=spec)
    assert got.head.all()
    assert not got.residual.any()
    assert (np.abs(got.logp - lsm(x)) <= got.value_step).all()


def test_flat_rows_do_not_break():
    """A row near the uniform distribution keeps its shape though hardly an entry is worth sending."""
    spec = CodecSpec()
    flat = np.zeros((1, 50_272), np.float32)
    got = decode(encode(flat, spec), rows=1, vocab=50_272, spec=spec)
    np.testing.assert_allclose(got, -np.log(50_272), atol=0.01)


def test_backends_write_the_same_bytes():
    x = rows_of(4, 3001)
    assert encode(x, CodecSpec(), backend="numpy") == encode(x, CodecSpec(), backend="numba")


@given(
    vocab=st.integers(1, 700), k=st.integers(1, 900), residual=st.sampled_from([0.0, 1e-4, 0.03, 0.5]),
    scale=st.sampled_from([0.0, 0.5, 4.0, 40.0]), ties=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60)
def test_the_compiled_kernel_says_what_the_plain_one_says(vocab, k, residual, scale, ties, seed):
    """The same bytes but for the last digit of a sum: heads, codes and sizes are equal, the residual mass nearly."""
    x = (np.random.default_rng(seed).normal(size=(3, vocab)) * scale).astype(np.float32)
    x = np.round(x) if ties else x
    spec = CodecSpec(k=k, residual=residual)
    plain, fast = (encode(x, spec, leading=1, backend=backend) for backend in ("numpy", "numba"))
    assert len(plain) == len(fast)
    want, got = (decode_full(data, rows=3, vocab=vocab, spec=spec) for data in (plain, fast))
    np.testing.assert_array_equal(got.head, want.head)
    np.testing.assert_array_equal(got.value_step, want.value_step)
    np.testing.assert_allclose(got.residual, want.residual, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(got.logp, want.logp, rtol=1e-5, atol=1e-4)


def test_the_kernel_uncompiled(uncompiled):
    x, spec = rows_of(2, 90), CodecSpec(k=40)
    assert encode(x, spec, backend="numba") == encode(x, spec, backend="numpy")


def test_the_error_stays_within_half_a_step_over_the_whole_range():
    logp = -np.linspace(0, 60, 200_001)
    back, step = values(codes(logp))
    assert (np.abs(back - logp) <= step / 2 + 1e-12).all()
    assert (np.diff(step) >= -1e-12).all()
    assert step.min() < 1.01 * FINE
    assert step.max() == 0.5
    np.testing.assert_array_equal(codes(back), codes(logp))


def test_later_rows_keep_a_part_and_a_wider_answer_widens_the_leading_ones():
    x, spec = rows_of(3, 301), CodecSpec(k=160, residual=0.0)
    got = decode_full(encode(x, spec, leading=1), rows=3, vocab=301, spec=spec)
    assert got.head.sum(axis=1).tolist() == [160, 160 // LATER_PART, 160 // LATER_PART]
    more = decode_full(encode(x, spec, leading=1, wider=200), rows=3, vocab=301, spec=CodecSpec(k=200))
    assert more.head.sum(axis=1).tolist() == [200, 160 // LATER_PART, 160 // LATER_PART]
    everything = encode(x[:1], spec, leading=1, wider=500)
    assert decode_full(everything, rows=1, vocab=301, spec=CodecSpec(k=500)).head.all()


def test_rows_are_independent():
    x = rows_of(3, 301)
    spec = CodecSpec(k=50)
    assert encode(x, spec) == b"".join(encode(x[i : i + 1], spec) for i in range(3))


def test_no_rows():
    for kind in ("dense-f32", "dense-f16", "top-k"):
        spec = CodecSpec(kind)
        assert decode(encode(np.zeros((0, 5), np.float32), spec), rows=0, vocab=5, spec=spec).shape == (0, 5)


@pytest.mark.parametrize("kind", ["dense-f32", "dense-f16", "top-k"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encode_refuses_what_is_not_finite(kind, bad):
    with pytest.raises(CodecError, match="NaN"):
        encode(np.array([[0.0, bad]], np.float32), CodecSpec(kind))


def test_encode_refuses_shapes_and_sizes():
    with pytest.raises(CodecError, match="shape"):
        encode(np.zeros(3, np.float32), CodecSpec())
    with pytest.raises(CodecError, match="float16"):
        encode(np.full((1, 3), 7e4, np.float32), CodecSpec("dense-f16"))


@pytest.mark.parametrize("kind", ["dense-f32", "dense-f16"])
def test_dense_refuses(kind):
    spec = CodecSpec(kind)
    data = encode(rows_of(2, 5), spec)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(CodecError, match="bytes long"):
            decode(wrong, rows=2, vocab=5, spec=spec)
    nan = np.full((2, 5), np.nan).astype("<f4" if kind == "dense-f32" else "<f2").tobytes()
    with pytest.raises(CodecError, match="NaN"):
        decode(nan, rows=2, vocab=5, spec=spec)


def packed(header, bits):
    return HEADER.pack(*header) + np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()


# k = 2 of V = 5: one low bit an id; high bits 2 + 2 + 1 = 5; b = 0; two ones for two values of 0.
GOOD = packed((2, 0, 9, 0.25, 0), [1, 0, 1, 0, 0, 1, 0, 1, 1])


def test_a_row_by_hand():
    got = decode_full(GOOD, rows=1, vocab=5, spec=CodecSpec(k=2))
    assert np.flatnonzero(got.head[0]).tolist() == [1, 4]
    np.testing.assert_allclose(np.exp(got.logp[0]), [0.25 / 3, 0.375, 0.25 / 3, 0.25 / 3, 0.375], rtol=1e-6)
    np.testing.assert_allclose(got.value_step[0], [0, 2 / 8.5, 0, 0, 2 / 8.5], rtol=1e-6)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "end before row 0"),
        (GOOD[:5], "end before row 0"),
        (GOOD[:-1], "end within row 0"),
        (GOOD + b"\0", "1 bytes too long"),
        (packed((0, 0, 9, 0.25, 0), [1]), "has 0 entries"),
        (packed((3, 0, 9, 0.25, 0), [1] * 16), "has 3 entries"),
        (packed((2, 0, 9, 1.0, 0), [1, 0, 1, 0, 0, 1, 0, 1, 1]), "residual"),
        (packed((2, 0, 9, -0.1, 0), [1, 0, 1, 0, 0, 1, 0, 1, 1]), "residual"),
        (packed((2, 0, 9, 0.0, 0), [1, 0, 1, 0, 0, 1, 0, 1, 1]), "residual"),
        (packed((2, 0, 9, np.nan, 0), [1, 0, 1, 0, 0, 1, 0, 1, 1]), "residual"),
        (packed((2, 0, 9, np.inf, 0), [1, 0, 1, 0, 0, 1, 0, 1, 1]), "residual"),
        (packed((2, 0, 9, 0.25, 0), [1, 0, 1, 1, 0, 1, 0, 1, 1]), "does not hold"),
        (packed((2, 0, 9, 0.25, 0), [1, 0, 1, 0, 0, 0, 0, 1, 1]), "does not hold"),
        (packed((2, 0, 9, 0.25, 0), [1, 0, 1, 0, 0, 1, 0, 1, 0]), "does not hold"),
        (packed((2, 0, 9, 0.25, 0), [1, 0, 1, 0, 0, 1, 0, 1, 1, 1]), "does not hold"),
        (packed((2, 0, 9, 0.25, 1), [1, 0, 1, 0, 0, 1, 0, 1, 1, 0]), "does not hold"),
        (packed((2, 0, 9, 0.25, 0), [1, 1, 1, 0, 0, 1, 0, 1, 1]), "out of range or not ascending"),
        (packed((2, 0, 801, 0.25, 0), [1, 0, 1, 0, 0, 1, 0, 1, 1]), "no log-probabilities"),
        (packed((2, 0, -30_001, 0.25, 0), [1, 0, 1, 0, 0, 1, 0, 1, 1]), "no log-probabilities"),
        (packed((2, 16, 9, 0.25, 0), [1, 0, 1, 0, 0, 1, 0, 1, 1]), "end within"),
        (packed((2, 0, 9, 0.25, 0), [1, 0, 1, 1, 0, 0, 0, 1, 1]), "out of range or not ascending"),
    ],
)
def test_top_k_refuses(data, message):
    with pytest.raises(CodecError, match=message):
        decode(data, rows=1, vocab=5, spec=CodecSpec(k=2))


def test_decode_refuses_bad_settings():
    for tail in (np.zeros(4, np.float32), np.array([0, 0, 0, 0, -np.inf], np.float32)):
        with pytest.raises(CodecError, match="unigram"):
            decode(GOOD, rows=1, vocab=5, spec=CodecSpec(k=2), tail_logp=tail)
    with pytest.raises(CodecError, match="no rows"):
        decode(GOOD, rows=-1, vocab=5, spec=CodecSpec(k=2))


@given(data=st.data())
@settings(max_examples=300)
def test_corrupted_bytes_never_give_anything_but_rows_or_a_codec_error(data):
    spec = CodecSpec(k=20, residual=0.01)
    good = bytearray(encode(rows_of(3, 67), spec))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        got = decode(bytes(good[:cut]) if data.draw(st.booleans()) else bytes(good), rows=3, vocab=67, spec=spec)
    except CodecError:
        return
    assert np.isfinite(got).all()
    np.testing.assert_allclose(np.exp(got.astype(float)).sum(axis=1), 1.0, rtol=1e-4)


@given(noise=st.binary(max_size=80))
@settings(max_examples=200)
def test_random_bytes(noise):
    try:
        got = decode(noise, rows=1, vocab=300, spec=CodecSpec(k=64))
    except CodecError:
        return
    assert np.isfinite(got).all()


@pytest.mark.parametrize("lam", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("k", [1, 8, 40])
def test_total_variation_stays_under_the_bound(lam, alpha, k):
    b, v = 12, 120
    core, private, public = rows_of(b, v, 1, 2.0), rows_of(b, v, 2, 2.0), rows_of(b, v, 3, 2.0)
    spec = CodecSpec(k=k, residual=0.0)
    seen = decode_full(encode(core, spec), rows=b, vocab=v, spec=spec)
    exact, got = (np.exp(fuse(c, private, public, lam=lam, alpha=alpha).astype(float)) for c in (core, seen.logp))
    tv = 0.5 * np.abs(exact - got).sum(axis=1)
    bound = total_variation_bound(seen, private, public, lam=lam, alpha=alpha)
    assert bound.shape == (b,)
    assert ((bound >= 0) & (bound <= 1)).all()
    assert (tv <= bound + 1e-6).all()
    if lam == 1.0:
        assert not bound.any()


def test_the_bound_is_reached_when_tails_are_disjoint():
    """Hölder's equality: the core's tail proportional to the expert's, all of it where the decoder puts none."""
    v = 6
    core = np.log(np.array([[0.5, 0.2, 0.3, 1e-12, 1e-12, 1e-12]], np.float32))
    private = np.log(np.array([[0.5, 0.2, 0.3, 1e-12, 1e-12, 1e-12]], np.float32))
    spec = CodecSpec(k=1, residual=0.0)
    tail = np.array([0, -200, -200, 0, 0, 0], np.float32) * 2
    seen = decode_full(encode(core, spec), rows=1, vocab=v, spec=spec, tail_logp=tail)
    exact, got = (np.exp(fuse(c, private, None, lam=0.5, alpha=0).astype(float)) for c in (core, seen.logp))
    tv = 0.5 * np.abs(exact - got).sum()
    bound = total_variation_bound(seen, private, None, lam=0.5, alpha=0)[0]
    assert tv <= bound
    assert bound < 1.05 * tv


def test_bound_without_an_expert_and_for_dense():
    x = rows_of(2, 30)
    spec = CodecSpec(k=4, residual=0.0)
    seen = decode_full(encode(x, spec), rows=2, vocab=30, spec=spec)
    bound = total_variation_bound(seen, None, None, lam=0.5, alpha=1)
    assert (bound >= seen.residual).all()
    assert (0.5 * np.abs(np.exp(lsm(x)) - np.exp(seen.logp.astype(float))).sum(axis=1) <= bound).all()
    dense = decode_full(encode(x, CodecSpec("dense-f32")), rows=2, vocab=30, spec=CodecSpec("dense-f32"))
    np.testing.assert_array_equal(total_variation_bound(dense, x, None, lam=0.5, alpha=0), [0, 0])


@pytest.mark.parametrize(("lam", "alpha"), [(-0.1, 0.0), (1.1, 0.0), (0.5, -1.0)])
def test_bound_refuses(lam, alpha):
    x = rows_of(1, 5)
    seen = decode_full(encode(x, CodecSpec(k=2)), rows=1, vocab=5, spec=CodecSpec(k=2))
    with pytest.raises(InvalidInput):
        total_variation_bound(seen, x, x, lam=lam, alpha=alpha)


@pytest.mark.parametrize("shared", [False, True])
def test_reshaped_tail_is_the_formula(shared):
    x, local, unigram = rows_of(3, 50, 1), rows_of(3, 50, 2), rows_of(1, 50, 3)[0] if shared else None
    spec = CodecSpec(k=6, residual=0.0)
    seen = decode_full(encode(x, spec), rows=3, vocab=50, spec=spec)
    got = reshape_tail(seen, local, tail_logp=unigram)
    np.testing.assert_array_equal(got.logp[seen.head], seen.logp[seen.head])
    for i in range(3):
        off = ~seen.head[i]
        shape = LOCAL_POWER * local[i, off].astype(float)
        if shared:
            shape = SHARED_POWERS[0] * unigram[off].astype(float) + SHARED_POWERS[1] * local[i, off].astype(float)
        edge = np.exp(seen.logp[i, seen.head[i]].min().astype(float))
        low, high = -80.0, 80.0
        for _ in range(100):
            factor = (low + high) / 2
            want = 1 / (np.exp(-factor - shape) + 1 / edge)
            low, high = (low, factor) if want.sum() > seen.residual[i] else (factor, high)
        assert want.max() < edge
        np.testing.assert_allclose(np.exp(got.logp[i, off]), want, rtol=0.03)  # the factor comes from a histogram
        np.testing.assert_allclose(np.exp(got.logp[i, off].astype(float)).sum(), seen.residual[i], rtol=1e-5)


def test_reshaped_tail_at_the_edges():
    x = rows_of(2, 8, 1)
    spec = CodecSpec(k=3, residual=0.0)
    seen = decode_full(encode(x, spec), rows=2, vocab=8, spec=spec)
    nothing = reshape_tail(seen, np.full((2, 8), -np.inf, np.float32))
    np.testing.assert_allclose(np.exp(nothing.logp[~seen.head]), np.repeat(seen.residual / 5, 5), rtol=1e-5)
    some = np.where(np.arange(8) < 7, -np.inf, 0.0) * np.ones((2, 1))
    assert np.isfinite(reshape_tail(seen, some.astype(np.float32)).logp).all()
    whole = CodecSpec(k=8, residual=0.0)
    exact = decode_full(encode(x, whole), rows=2, vocab=8, spec=whole)
    np.testing.assert_array_equal(reshape_tail(exact, x).logp, exact.logp)
    for local in (np.zeros((2, 7), np.float32), np.full((2, 8), np.nan, np.float32)):
        with pytest.raises(CodecError, match="local rows"):
            reshape_tail(seen, local)


def window_entropies(b):
    """A window in full swing: most positions nearly settled, some open, the newest at the far right hardly known."""
    return np.concatenate([np.geomspace(0.1, 2.0, b * 3 // 4), np.linspace(2.5, 7.0, b - b * 3 // 4)])


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [49_152, 50_272])
def test_default_codec_keeps_its_promise(zipf_rows, vocab):
    """Under 30 KB for 32 rows; S1 within .01 nat; 99% of the draws as with the dense codec."""
    spec, args = CodecSpec(), dict(lam=0.5, alpha=0.0)
    draw = dict(top_p=0.9, temperature=0.7, draw_key=11, positions=np.arange(32, dtype=np.int32), block=0)
    kl, same = [], []
    for seed in range(3):
        core, expert, _ = zipf_rows(np.roll(window_entropies(32), 1 + 9 * seed), vocab, seed)
        data = encode(core, spec, leading=1)
        assert len(data) < 30_000
        seen = decode_full(data, rows=32, vocab=vocab, spec=spec)
        exact = fuse(core, expert, None, **args)
        got, plain = fuse(reshape_tail(seen, expert).logp, expert, None, **args), fuse(seen.logp, expert, None, **args)
        p = np.exp(exact.astype(float))
        kl.append((p * (exact - got)).sum(axis=1))
        assert kl[-1].mean() < (p * (exact - plain)).sum(axis=1).mean()
        same += [sample(exact, step=t, **draw).ids == sample(got, step=t, **draw).ids for t in range(10)]
    assert np.mean(kl) < 0.01
    assert np.mean(same) >= 0.99
