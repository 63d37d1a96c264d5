"""Elementwise kernels: pure functions `(xp, *arrays) -> array`, run by `Backend.kernel`.

Here stands only the mathematics. Each backend decides how to run it: fused into one launch
(CuPy), inlined into the compiled step (JAX), or in blocks that stay in cache (NumPy).
A kernel combines elements of the same place (after broadcasting), never of different places.
"""

from nnx.random import hash_bits

__all__ = [
    "add",
    "alpha_dropout",
    "centre_and_scale",
    "dropout",
    "dropout_gradient",
    "erf",
    "exp_difference",
    "gaussian_dropout",
    "gaussian_noise",
    "hash_bits",
    "maximum",
    "multiply",
    "normal",
    "overlap",
    "scaled_sum",
    "subtract",
    "weigh_difference",
    "weighted_sum",
    "where_equal",
]


def add(xp, x, *others):
    """The sum of some arrays, element by element."""
    for other in others:
        x = x + other
    return x


def multiply(xp, x, y):
    """x * y"""
    return x * y


def weighted_sum(xp, *arrays):
    """The sum of the arrays of the first half, each times one of the second half."""
    pairs = zip(arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :], strict=True)
    first, *others = (x * weight for x, weight in pairs)
    for other in others:
        first = first + other
    return first


def subtract(xp, x, y):
    """x - y"""
    return x - y


def exp_difference(xp, x, y):
    """exp(x - y)"""
    return xp.exp(x - y)


def weigh_difference(xp, x, y, weight):
    """(x - y) * weight"""
    return (x - y) * weight


def maximum(xp, x, *others):
    """The largest of some arrays, element by element."""
    for other in others:
        x = xp.maximum(x, other)
    return x


def scaled_sum(xp, scale, x, *others):
    """scale times the sum of some arrays, element by element."""
    for other in others:
        x = x + other
    return x * scale


def where_equal(xp, x, y, z):
    """x where y = z, else 0."""
    return x * xp.astype(y == z, x.dtype)


def overlap(xp, start, length, stop):
    """The length of what start, ..., start + length - 1 and 0, ..., stop - 1 have in common."""
    return xp.minimum(start + length, stop) - xp.maximum(start, 0)


def centre_and_scale(xp, x, mean, scale, offset):
    """(x - mean) * scale + offset"""
    return (x - mean) * scale + offset


def dropout(xp, x, bits, threshold, scale):
    """x * scale where bits >= threshold, else 0."""
    return x * xp.astype(bits >= threshold, x.dtype) * scale


# dL/dx of dropout is dropout of dL/dy with the same bits.
dropout_gradient = dropout


def alpha_dropout(xp, x, bits, threshold, saturation, scale, offset):
    """x where bits >= threshold, else `saturation`; times scale, plus offset."""
    kept = xp.astype(bits >= threshold, x.dtype)
    return (x * kept + saturation * (1.0 - kept)) * scale + offset


def gaussian_noise(xp, x, bits, stddev):
    """x plus a normal deviate."""
    return x + normal(xp, bits, x.dtype) * stddev


def gaussian_dropout(xp, x, bits, stddev):
    """x times a normal deviate of mean 1. Its gradient is the same of dL/dy."""
    return x * (1.0 + normal(xp, bits, x.dtype) * stddev)


# Coefficients of M. J. Wichura, "Algorithm AS 241: the percentage points of the normal distribution",
# Applied Statistics 37 (1988), PPND7, highest power first: near the middle, and in the tails.
_MIDDLE_TOP = (5.9109374720e1, 1.5929113202e2, 5.0434271938e1, 3.3871327179e0)
_MIDDLE_BOTTOM = (6.7187563600e1, 7.8757757664e1, 1.7895169469e1, 1.0)
_TAIL_TOP = (1.7023821103e-1, 1.3067284816e0, 2.7568153900e0, 1.4234372777e0)
_TAIL_BOTTOM = (1.2021132975e-1, 7.3700164250e-1, 1.0)


def normal(xp, bits, dtype):
    """Standard normal deviates from 32 random bits each, by the inverse of the distribution function.

    One bit is the sign, the others the probability p of lying further out, (k + 1/2) / 2**32 for
    k = 0 .. 2**31 - 1. Error of the inverse below 1e-6; no deviate is larger than 6.4.
    """
    p = (xp.astype(bits & 0x7FFFFFFF, dtype) + 0.5) * 2.0**-32
    sign = 1.0 - 2.0 * xp.astype(bits >> 31, dtype)
    from_middle = 0.5 - p
    r = 0.180625 - from_middle * from_middle
    near = from_middle * _polynomial(_MIDDLE_TOP, r) / _polynomial(_MIDDLE_BOTTOM, r)
    r = xp.sqrt(-xp.log(p)) - 1.6
    far = _polynomial(_TAIL_TOP, r) / _polynomial(_TAIL_BOTTOM, r)
    return sign * xp.where(from_middle <= 0.425, near, far)


# Coefficients of W. J. Cody, "Rational Chebyshev approximations for the error function",
# Mathematics of Computation 23 (1969), highest power first: near zero, and from 0.46875 on.
_NEAR_TOP = (
    1.85777706184603153e-1,
    3.16112374387056560e0,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
_NEAR_BOTTOM = (
    1.0,
    2.36012909523441209e1,
    2.44024637934444173e2,
    1.28261652607737228e3,
    2.84423683343917062e3,
)
_FAR_TOP = (
    2.15311535474403846e-8,
    5.64188496988670089e-1,
    8.88314979438837594e0,
    6.61191906371416295e1,
    2.98635138197400131e2,
    8.81952221241769090e2,
    1.71204761263407058e3,
    2.05107837782607147e3,
    1.23033935479799725e3,
)
_FAR_BOTTOM = (
    1.0,
    1.57449261107098347e1,
    1.17693950891312499e2,
    5.37181101862009858e2,
    1.62138957456669019e3,
    3.29079923573345963e3,
    4.36261909014324716e3,
    3.43936767414372164e3,
    1.23033935480374942e3,
)


def _polynomial(coefficients, x):
    value = x * coefficients[0] + coefficients[1]
    for coefficient in coefficients[2:]:
        value = value * x + coefficient
    return value


def erf(xp, x):
    """The error function, 2/sqrt(pi) times the integral of exp(-t**2) from 0 to x.

    The array-API standard has none. Error below 1e-15 in float64.
    """
    size = xp.minimum(xp.abs(x), 6.0)  # beyond 6 it is 1 to the last bit
    square = xp.minimum(size, 0.5) ** 2
    near = size * _polynomial(_NEAR_TOP, square) / _polynomial(_NEAR_BOTTOM, square)
    far = 1.0 - xp.exp(-size * size) * _polynomial(_FAR_TOP, size) / _polynomial(_FAR_BOTTOM, size)
    return xp.sign(x) * xp.where(size < 0.46875, near, far)
