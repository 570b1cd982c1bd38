"""Random words, uniforms' logarithms and normals inside a Triton kernel: the formulas of `ssd_kernels.noise`.

The polynomials are those of `_numba_math` (Cephes, S. Moshier), so that no card's own functions decide the digits.
Counters are rows of four int64: key, position, step, fourth word. Philox itself is Triton's own. Knows nothing about
what the numbers are for.
"""

from __future__ import annotations

import triton
import triton.language as tl

_UNIT = tl.constexpr(2.0**-32)
_TURN = tl.constexpr(6.2831854820251465 * 2.0**-32)
_TURN_LOW = tl.constexpr(-1.7484556000744883e-7 * 2.0**-32)
_ROOT_HALF = tl.constexpr(0xB504F334)
_ROOT_HALF_BITS = tl.constexpr(0x3F3504F3)
_LN2_HIGH, _LN2_LOW = tl.constexpr(0.693359375), tl.constexpr(-2.12194440e-4)


@triton.jit
def words(counter, quad):
    """The four words of every quad of every row. Args: pointers [R, 1] to counters, quads [1, Q]. Four of [R, Q]."""
    key = tl.load(counter)
    zero = (tl.load(counter + 1) * 0).to(tl.uint32) + quad.to(tl.uint32) * 0
    position = tl.load(counter + 1).to(tl.uint32) + zero
    step = tl.load(counter + 2).to(tl.uint32) + zero
    word = tl.load(counter + 3).to(tl.uint32) + zero
    return tl.philox(key, quad.to(tl.uint32) + zero, position, step, word)


@triton.jit
def minus_log(x):
    """-ln((x + .5) 2^-32) of words, in float32; near 1 by the distance from 1, so that nothing cancels."""
    near_one = x >= _ROOT_HALF
    rest = ((x ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * _UNIT
    bits = ((x.to(tl.float32) + 0.5) * _UNIT).to(tl.int32, bitcast=True)
    exponent = tl.where(near_one, 0, (bits - _ROOT_HALF_BITS) >> 23)
    f = tl.where(near_one, -rest, (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0)
    z, e = f * f, exponent.to(tl.float32)
    p = (((7.0376836292e-2 * f - 1.1514610310e-1) * f + 1.1676998740e-1) * f - 1.2420140846e-1) * f + 1.4249322787e-1
    p = (((p * f - 1.6668057665e-1) * f + 2.0000714765e-1) * f - 2.4999993993e-1) * f + 3.3333331174e-1
    y = p * f * z + e * _LN2_LOW - 0.5 * z
    return -(f + y + e * _LN2_HIGH)


@triton.jit
def turn(x):
    """Cosine and sine of 2 pi (x + .5) 2^-32, by the angle from the nearest quarter, which is exact."""
    quarter = (x + 0x20000000) >> 30
    rest = (x - (quarter << 30)).to(tl.int32, bitcast=True)
    low = ((rest + 128) & 255) - 128
    high = (rest - low).to(tl.float32)
    t = high * _TURN + (high * _TURN_LOW + (low.to(tl.float32) + 0.5) * _TURN)
    z = t * t
    s = ((-1.9515295891e-4 * z + 8.3321608736e-3) * z - 1.6666654611e-1) * z * t + t
    c = ((2.443315711809948e-5 * z - 1.388731625493765e-3) * z + 4.166664568298827e-2) * z * z - 0.5 * z + 1.0
    odd = (quarter & 1) == 1
    cosine, sine = tl.where(odd, -s, c), tl.where(odd, c, s)
    back = (quarter & 2) == 2
    return tl.where(back, -cosine, cosine), tl.where(back, -sine, sine)


@triton.jit
def normals4(counter, quad):
    """The four normals of every quad of every row, each [R, Q]."""
    a, b, c, d = words(counter, quad)
    near, far = tl.sqrt(2.0 * minus_log(a)), tl.sqrt(2.0 * minus_log(c))
    cosine, sine = turn(b)
    cosine2, sine2 = turn(d)
    return near * cosine, near * sine, far * cosine2, far * sine2


@triton.jit
def interleave4(a, b, c, d, SIZE: tl.constexpr):
    """[1, Q] of each lane to [SIZE], 4 Q values in the order of the vocabulary."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (SIZE,))
