"""Elementary functions that loops of compiled kernels can be vectorised over: no call, no table, branches as selects.

Polynomials on reduced arguments: those of the Cephes library (S. Moshier) in float32, Taylor's in float64. Tests hold
them to their limits. Knows nothing about what is computed with them.
"""

from __future__ import annotations

import math

import numpy as np

from ssd_kernels._jit import inline

_F = np.float32
_I = np.int32
_L = np.int64
_U = np.uint32
_UNIT = _F(2.0**-32)
_HALF = _F(0.5)
_ONE = _F(1.0)
_LOG2E = _F(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = _F(0.693359375), _F(-2.12194440e-4)
_ROOT_HALF = _U(0xB504F334)
_ROOT_HALF_BITS = _I(0x3F3504F3)
_ALL = _U(0xFFFFFFFF)
_MANTISSA, _BIAS = _I(23), _I(127)
_TURN = _F(2.0 * math.pi * 2.0**-32)
_TURN_LOW = _F(2.0 * math.pi * 2.0**-32 - float(_TURN))
_OCTANT, _EIGHTH, _LOW29 = _U(29), _I(1 << 29), _U((1 << 29) - 1)
_LOW8, _MIDDLE = _I(255), _I(128)
_U1, _U2 = _U(1), _U(2)
_LEAST = _F(-87.0)
_E0, _E1, _E2 = _F(1.9875691500e-4), _F(1.3981999507e-3), _F(8.3334519073e-3)
_E3, _E4, _E5 = _F(4.1665795894e-2), _F(1.6666665459e-1), _F(5.0000001201e-1)
_L0, _L1, _L2 = _F(7.0376836292e-2), _F(-1.1514610310e-1), _F(1.1676998740e-1)
_L3, _L4, _L5 = _F(-1.2420140846e-1), _F(1.4249322787e-1), _F(-1.6668057665e-1)
_L6, _L7, _L8 = _F(2.0000714765e-1), _F(-2.4999993993e-1), _F(3.3333331174e-1)
_S0, _S1, _S2 = _F(-1.9515295891e-4), _F(8.3321608736e-3), _F(-1.6666654611e-1)
_C0, _C1, _C2 = _F(2.443315711809948e-5), _F(-1.388731625493765e-3), _F(4.166664568298827e-2)
_LOG2E_64, _LN2_HIGH_64, _LN2_LOW_64 = 1.4426950408889634, 6.93145751953125e-1, 1.42860682030941723212e-6
_LEAST_64 = -708.0


@inline
def exp32(x: np.float32) -> np.float32:
    """e^x of a float32 x <= 0, within 2 ulps; e^-87 below -87."""
    y = x if x > _LEAST else _LEAST
    n: np.float32 = np.floor(y * _LOG2E + _HALF)
    r = y - n * _LN2_HIGH
    r = r - n * _LN2_LOW
    p = ((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5
    p = p * (r * r) + r + _ONE
    p = p * np.int32((_I(n) + _BIAS) << _MANTISSA).view(np.float32)
    return p if x == x else x  # NaN; it was left out above, since as a whole number it is nothing


@inline
def exp64(x: float) -> float:
    """e^x of a float64 x <= 700, within 2 ulps; e^-708 below -708."""
    y = x if x > _LEAST_64 else _LEAST_64
    n: float = np.floor(y * _LOG2E_64 + 0.5)
    r = y - n * _LN2_HIGH_64
    r = r - n * _LN2_LOW_64
    p = 1.0 / 6227020800.0
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    p = p * (r * r) + r + 1.0
    p = p * float(np.int64((_L(n) + _L(1023)) << _L(52)).view(np.float64))
    return p if x == x else x


@inline
def _log_of(f: np.float32, exponent: np.int32) -> np.float32:
    """ln((1 + f) 2^exponent) for 1 + f between the roots of 1/2 and 2."""
    z, e = f * f, _F(exponent)
    p = (((_L0 * f + _L1) * f + _L2) * f + _L3) * f + _L4
    p = (((p * f + _L5) * f + _L6) * f + _L7) * f + _L8
    y = p * f * z + e * _LN2_LOW
    y = y - _HALF * z
    return f + y + e * _LN2_HIGH


@inline
def log32(x: np.float32) -> np.float32:
    """ln x of a float32 that is positive and normal, within 2 ulps or 1e-7."""
    bits = np.float32(x).view(np.int32)
    exponent = (bits - _ROOT_HALF_BITS) >> _MANTISSA
    return _log_of(np.int32(bits - (exponent << _MANTISSA)).view(np.float32) - _ONE, exponent)


@inline
def minus_log(word: np.uint32) -> np.float32:
    """-ln((word + 1/2) 2^-32) in float32, within 2.5 ulps. Near 1 from the complement, so that nothing cancels."""
    near_one = word >= _ROOT_HALF
    rest = (_F(word ^ _ALL) + _HALF) * _UNIT
    bits = np.float32((_F(word) + _HALF) * _UNIT).view(np.int32)
    exponent = _I(0) if near_one else (bits - _ROOT_HALF_BITS) >> _MANTISSA
    f = -rest if near_one else np.int32(bits - (exponent << _MANTISSA)).view(np.float32) - _ONE
    return -_log_of(f, exponent)


@inline
def turn(word: np.uint32) -> tuple[np.float32, np.float32]:
    """Cosine and sine of 2 pi (word + 1/2) 2^-32 in float32, within 2 ulps; reduced to an eighth in whole numbers."""
    octant = word >> _OCTANT
    quarter = (octant + _U1) >> _U1
    rest = _I(word & _LOW29) - (_EIGHTH if (octant & _U1) != _U(0) else _I(0))
    low = ((rest + _MIDDLE) & _LOW8) - _MIDDLE
    high = _F(rest - low)
    t = high * _TURN + (high * _TURN_LOW + (_F(low) + _HALF) * _TURN)
    z = t * t
    s = ((_S0 * z + _S1) * z + _S2) * z * t + t
    c = ((_C0 * z + _C1) * z + _C2) * z * z - _HALF * z + _ONE
    swap = (quarter & _U1) != _U(0)
    cosine, sine = (s if swap else c), (c if swap else s)
    cosine = -cosine if ((quarter + _U1) & _U2) != _U(0) else cosine
    return cosine, -sine if (quarter & _U2) != _U(0) else sine
