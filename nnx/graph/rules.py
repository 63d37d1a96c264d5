"""The derivative of each operation of a graph, in one table.

For an operation y = f(x1, x2, ...), a rule gives dL/dx of one argument from dL/dy:

    dx = rule(b, dy, y, *arguments, **settings)

with the backend `b` on which the arrays are. Where an argument was broadcast, `pull` sums its gradient afterwards.

Where a derivative does not exist, the convention is JAX's: `maximum`, `minimum` and `clip` give each of two equal
numbers half of the gradient, `max` and `min` share it among all the largest; `abs` and `sign` have slope 0 at 0;
`sort` moves gradients like values, equal numbers staying in order. (JAX itself gives `abs` slope 1 at 0.)

Source: Griewank and Walther, "Evaluating Derivatives", 2nd edition 2008, chapter 3.
"""

import math
from typing import Any

from nnx.graph.axes import as_number, count_reduced, extreme, is_array, kept, no_gradient, spread, unchanged
from nnx.graph.rules_indexing import INDEXING
from nnx.graph.rules_linear_algebra import LINEAR_ALGEBRA

# Elementwise


def _pow_by_base(b, d, y, x, n):
    if not is_array(n):
        return d * n * x ** (n - 1) if n != 0 else d * 0.0
    # n = 0 gives slope 0, where x ** (n - 1) may be infinite.
    xp, is_zero = b.xp, n == 0
    return d * xp.where(is_zero, xp.zeros_like(n), n) * x ** xp.where(is_zero, xp.ones_like(n), n - 1)


def _pow_by_exponent(b, d, y, x, n):
    if not is_array(x):
        return d * y * (math.log(x) if x != 0 else 0.0)
    xp = b.xp
    return d * y * xp.log(xp.where(x == 0, xp.ones_like(x), x))


def _larger(first: bool):
    """Return a rule of `maximum`: all of the gradient to the larger, half of it to each of two equal numbers."""

    def rule(b, d, y, u, v):
        mine, other = (u, v) if first else (v, u)
        return d * (as_number(b, mine > other, d) + 0.5 * as_number(b, mine == other, d))

    return rule


def _smaller(first: bool):
    def rule(b, d, y, u, v):
        mine, other = (u, v) if first else (v, u)
        return d * (as_number(b, mine < other, d) + 0.5 * as_number(b, mine == other, d))

    return rule


def _clip(b, d, y, x, min=None, max=None):
    for limit, is_inside in ((min, lambda: x > min), (max, lambda: x < max)):
        if limit is not None:
            d = d * (as_number(b, is_inside(), d) + 0.5 * as_number(b, x == limit, d))
    return d


# Reductions


def _prod(b, d, y, x, axis=None, keepdims=False, **_):
    # The product of all others, right where one or more elements are zero.
    xp, is_zero = b.xp, x == 0
    rest = xp.where(is_zero, xp.ones_like(x), x)
    zeros = xp.sum(as_number(b, is_zero, x), axis=axis, keepdims=True)
    others = xp.prod(rest, axis=axis, keepdims=True) / rest
    only_here = (zeros == 0) | (is_zero & (zeros == 1))
    return kept(b, d, x, axis) * others * as_number(b, only_here, x)


def _degrees_of_freedom(x, axis=None, correction=0.0, ddof=0, **_):
    return count_reduced(x, axis) - (correction or ddof)


def _var(b, d, y, x, axis=None, keepdims=False, **settings):
    centred = x - b.xp.mean(x, axis=axis, keepdims=True)
    return kept(b, d, x, axis) * centred * (2 / _degrees_of_freedom(x, axis, **settings))


def _std(b, d, y, x, axis=None, keepdims=False, **settings):
    centred = x - b.xp.mean(x, axis=axis, keepdims=True)
    return kept(b, d / y, x, axis) * centred / _degrees_of_freedom(x, axis, **settings)


def _cumulative_sum(b, d, y, x, axis=None, include_initial=False, **_):
    xp, axis = b.xp, 0 if axis is None else axis % x.ndim
    if include_initial:
        d = d[(slice(None),) * axis + (slice(1, None), ...)]
    total = xp.sum(d, axis=axis, keepdims=True)
    return total - xp.cumulative_sum(d, axis=axis) + d


# For each operation, a rule for each argument through which a gradient flows

RULES: dict[str, Any] = {
    "add": (unchanged, unchanged),
    "subtract": (unchanged, lambda b, d, y, u, v: -d),
    "multiply": (lambda b, d, y, u, v: d * v, lambda b, d, y, u, v: d * u),
    "divide": (lambda b, d, y, u, v: d / v, lambda b, d, y, u, v: -(d * y / v)),
    "pow": (_pow_by_base, _pow_by_exponent),
    "float_power": (_pow_by_base, _pow_by_exponent),
    "remainder": (unchanged, lambda b, d, y, u, v: -(d * b.xp.floor(u / v))),
    "atan2": (lambda b, d, y, u, v: d * v / (u * u + v * v), lambda b, d, y, u, v: -(d * u / (u * u + v * v))),
    "hypot": (lambda b, d, y, u, v: d * u / y, lambda b, d, y, u, v: d * v / y),
    "logaddexp": (lambda b, d, y, u, v: d * b.xp.exp(u - y), lambda b, d, y, u, v: d * b.xp.exp(v - y)),
    "copysign": (lambda b, d, y, u, v: d * b.xp.sign(y) * b.xp.sign(u), no_gradient),
    "maximum": (_larger(True), _larger(False)),
    "minimum": (_smaller(True), _smaller(False)),
    "where": (
        no_gradient,
        lambda b, d, y, c, u, v: b.xp.where(c, d, 0.0),
        lambda b, d, y, c, u, v: b.xp.where(c, 0.0, d),
    ),
    "clip": (_clip,),
    "negative": (lambda b, d, y, x: -d,),
    "positive": (unchanged,),
    "abs": (lambda b, d, y, x: d * b.xp.sign(x),),
    "fabs": (lambda b, d, y, x: d * b.xp.sign(x),),
    "exp": (lambda b, d, y, x: d * y,),
    "exp2": (lambda b, d, y, x: d * y * math.log(2),),
    "expm1": (lambda b, d, y, x: d * (y + 1),),
    "log": (lambda b, d, y, x: d / x,),
    "log1p": (lambda b, d, y, x: d / (1 + x),),
    "log2": (lambda b, d, y, x: d / (x * math.log(2)),),
    "log10": (lambda b, d, y, x: d / (x * math.log(10)),),
    "sqrt": (lambda b, d, y, x: d * 0.5 / y,),
    "cbrt": (lambda b, d, y, x: d / (3 * y * y),),
    "square": (lambda b, d, y, x: d * 2 * x,),
    "reciprocal": (lambda b, d, y, x: -(d * y * y),),
    "sin": (lambda b, d, y, x: d * b.xp.cos(x),),
    "cos": (lambda b, d, y, x: -(d * b.xp.sin(x)),),
    "tan": (lambda b, d, y, x: d * (1 + y * y),),
    "asin": (lambda b, d, y, x: d / b.xp.sqrt(1 - x * x),),
    "acos": (lambda b, d, y, x: -(d / b.xp.sqrt(1 - x * x)),),
    "atan": (lambda b, d, y, x: d / (1 + x * x),),
    "sinh": (lambda b, d, y, x: d * b.xp.cosh(x),),
    "cosh": (lambda b, d, y, x: d * b.xp.sinh(x),),
    "tanh": (lambda b, d, y, x: d * (1 - y * y),),
    "asinh": (lambda b, d, y, x: d / b.xp.sqrt(x * x + 1),),
    "acosh": (lambda b, d, y, x: d / b.xp.sqrt(x * x - 1),),
    "atanh": (lambda b, d, y, x: d / (1 - x * x),),
    "nan_to_num": (lambda b, d, y, x, **_: d * as_number(b, b.xp.isfinite(x), d),),
    # Reductions
    "sum": (lambda b, d, y, x, *a, **k: spread(b, d, x, *a, **k),),
    "mean": (lambda b, d, y, x, *a, **k: spread(b, d, x, *a, **k) / count_reduced(x, *a, **k),),
    "max": (extreme,),
    "min": (extreme,),
    "prod": (_prod,),
    "var": (_var,),
    "std": (_std,),
    "cumulative_sum": (_cumulative_sum,),
    **LINEAR_ALGEBRA,
    **INDEXING,
}  # fmt: skip

FLAT = (
    "all", "any", "argmax", "argmin", "argsort", "ceil", "count_nonzero", "empty_like", "floor", "floor_divide",
    "full_like", "ones_like", "round", "sign", "signbit", "trunc", "zeros_like",
)  # fmt: skip
"""The operations on floating arrays whose slope is zero wherever it exists."""
RULES |= dict.fromkeys(FLAT, lambda i: no_gradient)
