"""Philox against the known answers of Random123 and against itself over all backends."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from ssd_kernels.errors import InvalidInput
from ssd_kernels.philox import philox4x32, split_key, uniforms

KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hexes(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer, backend):
    out = philox4x32(np.array(hexes(counter), np.uint32), tuple(hexes(key)), backend=backend)
    assert out.dtype == np.uint32
    assert out.tolist() == hexes(answer)


@given(
    counter=hnp.arrays(np.uint32, hnp.array_shapes(max_dims=2, max_side=5).map(lambda s: (*s, 4))),
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
)
@settings(max_examples=50)
def test_backends_equal_to_the_bit_and_rows_independent(counter, key):
    a, b = philox4x32(counter, key, backend="numpy"), philox4x32(counter, key, backend="numba")
    np.testing.assert_array_equal(a, b)
    flat = counter.reshape(-1, 4)
    np.testing.assert_array_equal(a.reshape(-1, 4)[-1], philox4x32(flat[-1], key, backend="numpy"))


def slow_philox(counter, key):
    """Written from the paper with Python's whole numbers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 % 2**32, (p0 >> 32) ^ c[3] ^ k1, p0 % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


@given(st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6))
@settings(max_examples=50)
def test_equals_whole_number_arithmetic(numbers):
    out = philox4x32(np.array(numbers[:4], np.uint32), (numbers[4], numbers[5]), backend="numpy")
    assert out.tolist() == slow_philox(numbers[:4], (numbers[4], numbers[5]))


def test_runs_uncompiled(uncompiled):
    counter = np.random.default_rng(0).integers(0, 2**32, (3, 4), dtype=np.uint32)
    np.testing.assert_array_equal(
        philox4x32(counter, (1, 2), backend="numba"), philox4x32(counter, (1, 2), backend="numpy")
    )


def test_uniforms_never_touch_the_ends():
    u = uniforms(np.array([0, 2**32 - 1], np.uint32))
    assert u.tolist() == [2.0**-33, 1.0 - 2.0**-33]


def test_key_splits_low_word_first():
    assert split_key(0x299F31D0A4093822) == (0xA4093822, 0x299F31D0)


@pytest.mark.parametrize("key", [-1, 2**64])
def test_key_out_of_range(key):
    with pytest.raises(InvalidInput, match="64"):
        split_key(key)


@pytest.mark.parametrize("shape", [(), (3,), (2, 5)])
def test_counter_of_wrong_shape(shape):
    with pytest.raises(InvalidInput, match="four words"):
        philox4x32(np.zeros(shape, np.uint32), (0, 0))
