"""The derivative of each operation of a graph, in one table, and the chain rule over the graph.

For an operation y = f(x1, x2, ...), a rule gives dL/dx of one argument from dL/dy:

    dx = rule(b, dy, y, *arguments, **settings)

with the backend `b` on which the arrays are. Where an argument was broadcast, `pull` sums its gradient afterwards.

Where a derivative does not exist, the convention is JAX's: `maximum`, `minimum` and `clip` give each of two equal
numbers half of the gradient, `max` and `min` share it among all the largest; `abs` and `sign` have slope 0 at 0;
`sort` moves gradients like values, equal numbers staying in order. (JAX itself gives `abs` slope 1 at 0.)

Source: Griewank and Walther, "Evaluating Derivatives", 2nd edition 2008, chapter 3; for linear algebra, Giles, "An
extended collection of matrix derivative results for forward and reverse mode algorithmic differentiation", 2008.
"""

import math
from typing import Any

from nnx.graph.graph import Graph, GraphError, Symbol

# Shapes and axes


def _axes(x, axis) -> tuple[int, ...]:
    """Return the axes of a reduction, counted from the front."""
    if axis is None:
        return tuple(range(x.ndim))
    return tuple(a % x.ndim for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))


def _kept(b, d, x, axis=None, keepdims=False):
    """Return a reduction of x with the axes it was reduced over, of length 1."""
    axes = _axes(x, axis)
    return b.xp.reshape(d, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def _spread(b, d, x, axis=None, keepdims=False, **_):
    return b.xp.broadcast_to(_kept(b, d, x, axis), x.shape)


def _count(x, axis=None, **_) -> int:
    return math.prod(x.shape[a] for a in _axes(x, axis))


def _is_array(value) -> bool:
    return hasattr(value, "shape")


def _bool(b, condition, like):
    """Return 1 where a condition holds, else 0."""
    return b.xp.astype(condition, like.dtype)


def _sum_to(b, d, x):
    """Return a gradient summed over the axes along which x was broadcast, in the dtype of x."""
    xp = b.xp
    if tuple(d.shape) != tuple(x.shape):
        extra = d.ndim - x.ndim
        axes = [i for i in range(d.ndim) if i < extra or (x.shape[i - extra] == 1 and d.shape[i] != 1)]
        d = xp.reshape(xp.sum(d, axis=tuple(axes)) if axes else d, tuple(x.shape))
    return d if d.dtype == x.dtype else xp.astype(d, x.dtype)


# Elementwise


def _pow_by_base(b, d, y, x, n):
    if not _is_array(n):
        return d * n * x ** (n - 1) if n != 0 else d * 0.0
    # n = 0 gives slope 0, where x ** (n - 1) may be infinite.
    xp, is_zero = b.xp, n == 0
    return d * xp.where(is_zero, xp.zeros_like(n), n) * x ** xp.where(is_zero, xp.ones_like(n), n - 1)


def _pow_by_exponent(b, d, y, x, n):
    if not _is_array(x):
        return d * y * (math.log(x) if x != 0 else 0.0)
    xp = b.xp
    return d * y * xp.log(xp.where(x == 0, xp.ones_like(x), x))


def _larger(first: bool):
    """Return a rule of `maximum`: all of the gradient to the larger, half of it to each of two equal numbers."""

    def rule(b, d, y, u, v):
        mine, other = (u, v) if first else (v, u)
        return d * (_bool(b, mine > other, d) + 0.5 * _bool(b, mine == other, d))

    return rule


def _smaller(first: bool):
    def rule(b, d, y, u, v):
        mine, other = (u, v) if first else (v, u)
        return d * (_bool(b, mine < other, d) + 0.5 * _bool(b, mine == other, d))

    return rule


def _clip(b, d, y, x, min=None, max=None):
    for limit, is_inside in ((min, lambda: x > min), (max, lambda: x < max)):
        if limit is not None:
            d = d * (_bool(b, is_inside(), d) + 0.5 * _bool(b, x == limit, d))
    return d


# Reductions


def _extreme(b, d, y, x, axis=None, keepdims=False, **_):
    is_extreme = _bool(b, x == _kept(b, y, x, axis), d)
    return _kept(b, d, x, axis) * is_extreme / b.xp.sum(is_extreme, axis=axis, keepdims=True)


def _prod(b, d, y, x, axis=None, keepdims=False, **_):
    # The product of all others, right where one or more elements are zero.
    xp, is_zero = b.xp, x == 0
    rest = xp.where(is_zero, xp.ones_like(x), x)
    zeros = xp.sum(_bool(b, is_zero, x), axis=axis, keepdims=True)
    others = xp.prod(rest, axis=axis, keepdims=True) / rest
    only_here = (zeros == 0) | (is_zero & (zeros == 1))
    return _kept(b, d, x, axis) * others * _bool(b, only_here, x)


def _degrees_of_freedom(x, axis=None, correction=0.0, ddof=0, **_):
    return _count(x, axis) - (correction or ddof)


def _var(b, d, y, x, axis=None, keepdims=False, **settings):
    centred = x - b.xp.mean(x, axis=axis, keepdims=True)
    return _kept(b, d, x, axis) * centred * (2 / _degrees_of_freedom(x, axis, **settings))


def _std(b, d, y, x, axis=None, keepdims=False, **settings):
    centred = x - b.xp.mean(x, axis=axis, keepdims=True)
    return _kept(b, d / y, x, axis) * centred / _degrees_of_freedom(x, axis, **settings)


def _cumulative_sum(b, d, y, x, axis=None, include_initial=False, **_):
    xp, axis = b.xp, 0 if axis is None else axis % x.ndim
    if include_initial:
        d = d[(slice(None),) * axis + (slice(1, None), ...)]
    total = xp.sum(d, axis=axis, keepdims=True)
    return total - xp.cumulative_sum(d, axis=axis) + d


# Products of matrices


def _transposed(b, x):
    return b.xp.matrix_transpose(x)


def _as_matrices(b, d, u, v):
    """Return dL/dy and the factors of a product, vectors as matrices of one row or column."""
    xp = b.xp
    if u.ndim == 1:
        u, d = xp.expand_dims(u, axis=0), xp.expand_dims(d, axis=-1 if v.ndim == 1 else -2)
    if v.ndim == 1:
        v, d = xp.expand_dims(v, axis=1), xp.expand_dims(d, axis=-1)
    return d, u, v


def _matmul_by_first(b, d, y, u, v):
    d, _, matrix = _as_matrices(b, d, u, v)
    d = b.xp.matmul(d, _transposed(b, matrix))
    return b.xp.squeeze(d, axis=-2) if u.ndim == 1 else d


def _matmul_by_second(b, d, y, u, v):
    d, matrix, _ = _as_matrices(b, d, u, v)
    d = b.xp.matmul(_transposed(b, matrix), d)
    return b.xp.squeeze(d, axis=-1) if v.ndim == 1 else d


def _tensordot(first: bool):
    def rule(b, d, y, u, v, axes=2):
        if isinstance(axes, int):
            axes = (tuple(range(u.ndim - axes, u.ndim)), tuple(range(axes)))
        mine, other = ([a % x.ndim for a in some] for x, some in zip((u, v), axes, strict=True))
        x, factor = (u, v) if first else (v, u)
        mine, other = (mine, other) if first else (other, mine)
        free, others = (
            [i for i in range(a.ndim) if i not in some] for a, some in ((x, mine), (factor, other))
        )
        of_factor = range(len(free), d.ndim) if first else range(len(others))
        d = b.xp.tensordot(d, factor, axes=(tuple(of_factor), tuple(others)))
        order = [*free, *(mine[other.index(a)] for a in sorted(other))]
        return b.xp.permute_dims(d, tuple(order.index(i) for i in range(x.ndim)))

    return rule


def _vecdot(first: bool):
    def rule(b, d, y, u, v, axis=-1):
        return b.xp.expand_dims(d, axis=axis) * (v if first else u)

    return rule


def _inverse(b, d, y, x):
    return -(_transposed(b, y) @ d @ _transposed(b, y))


def _determinant(b, d, y, x):
    return _as_factors(b, d * y) * _transposed(b, b.xp.linalg.inv(x))


def _as_factors(b, d):
    """Return one number a matrix as a factor of the matrices."""
    return b.xp.reshape(d, (*d.shape, 1, 1))


def _slogdet(b, d, y, x):
    return None if d[1] is None else _as_factors(b, d[1]) * _transposed(b, b.xp.linalg.inv(x))


def _solve_by_matrix(b, d, y, a, x):
    d = b.xp.linalg.solve(_transposed(b, a), d)
    if y.ndim == 1:
        return -(b.xp.expand_dims(d, axis=1) * y)
    return -(d @ _transposed(b, y))


def _solve_by_right(b, d, y, a, x):
    return b.xp.linalg.solve(_transposed(b, a), d)


def _cholesky(b, d, y, x, upper=False):
    xp = b.xp
    if upper:
        d, y = _transposed(b, d), _transposed(b, y)
    inverse = xp.linalg.inv(y)
    middle = xp.tril(_transposed(b, y) @ xp.tril(d))
    middle = middle - 0.5 * (middle * xp.eye(y.shape[-1], dtype=y.dtype, device=y.device))
    d = _transposed(b, inverse) @ middle @ inverse
    return 0.5 * (d + _transposed(b, d))


def _eigh(b, d, y, x):
    xp, (values, vectors), (dvalues, dvectors) = b.xp, y, d
    middle = 0.0
    eye = xp.eye(vectors.shape[-1], dtype=vectors.dtype, device=vectors.device)
    if dvalues is not None:
        middle = xp.expand_dims(dvalues, axis=-1) * eye
    if dvectors is not None:
        gaps = xp.expand_dims(values, axis=-2) - xp.expand_dims(values, axis=-1)
        middle = middle + _transposed(b, vectors) @ dvectors * (1 - eye) / (gaps + eye)
    d = vectors @ middle @ _transposed(b, vectors)
    return 0.5 * (d + _transposed(b, d))


def _diagonal_mask(b, x, offset=0):
    """Return 1 on a diagonal of matrices of the shape of x, else 0."""
    rows, columns = x.shape[-2:]
    return b.xp.eye(rows, columns, k=offset, dtype=x.dtype, device=x.device)


def _trace(b, d, y, x, offset=0, **_):
    return _as_factors(b, d) * _diagonal_mask(b, x, offset)


def _diagonal(b, d, y, x, offset=0):
    count, first = d.shape[-1], max(0, -offset)
    d = b.pad(d, [(0, 0)] * (d.ndim - 1) + [(first, x.shape[-2] - count - first)])
    return b.xp.expand_dims(d, axis=-1) * _diagonal_mask(b, x, offset)


def _vector_norm(b, d, y, x, axis=None, keepdims=False, ord=2):
    xp, d, y = b.xp, _kept(b, d, x, axis), _kept(b, y, x, axis)
    if ord == math.inf or ord == -math.inf:
        return _extreme(b, d, y, xp.abs(x), axis) * xp.sign(x)
    return d * xp.sign(x) * (xp.abs(x) / y) ** (ord - 1)


def _matrix_norm(b, d, y, x, keepdims=False, ord="fro"):
    if ord != "fro":
        raise GraphError(f"no derivative is known of matrix_norm with ord={ord!r}")
    return x * (_kept(b, d, x, (-2, -1)) / _kept(b, y, x, (-2, -1)))


def _cross(first: bool):
    def rule(b, d, y, u, v, axis=-1):
        return b.xp.linalg.cross(v, d, axis=axis) if first else b.xp.linalg.cross(d, u, axis=axis)

    return rule


# Places


def _slices(key, shape):
    """Return a basic index as slices of all axes, or None if it has arrays of indices in it."""
    key = key if isinstance(key, tuple) else (key,)
    if any(_is_array(k) or isinstance(k, (list, bool)) for k in key):
        return None
    key = [k for k in key if k is not None]
    if any(k is Ellipsis for k in key):
        at = next(i for i, k in enumerate(key) if k is Ellipsis)
        key = key[:at] + [slice(None)] * (len(shape) - len(key) + 1) + key[at + 1 :]
    key += [slice(None)] * (len(shape) - len(key))
    return tuple(
        k if isinstance(k, slice) else slice(k % n, k % n + 1) for k, n in zip(key, shape, strict=True)
    )


def _getitem(b, d, y, x, key):
    if _is_array(key) and b.xp.isdtype(key.dtype, "integral"):
        return _take(b, d, y, x, key, axis=0)
    slices = _slices(key, x.shape)
    if slices is None:
        return _scattered(b, d, x, lambda places: places[key])
    ranges = [range(*s.indices(n)) for s, n in zip(slices, x.shape, strict=True)]
    d = b.xp.reshape(d, tuple(map(len, ranges)))
    if backwards := tuple(i for i, r in enumerate(ranges) if r.step < 0):
        d, ranges = b.xp.flip(d, axis=backwards), [r[::-1] if r.step < 0 else r for r in ranges]
    keys = tuple(slice(r.start, min(r.stop, n), r.step) for r, n in zip(ranges, x.shape, strict=True))
    return b.unslice(tuple(x.shape), (d,), (keys,))


def _scattered(b, d, x, gather):
    """Return zeros of the shape of x, with d added at the places from which `gather` takes elements."""
    xp, count = b.xp, math.prod(x.shape)
    places = gather(xp.reshape(b.arange(count, "int32"), tuple(x.shape)))
    d = b.scatter_add(xp.reshape(places, (-1,)), xp.reshape(d, (-1, 1)), count)
    return xp.reshape(d, tuple(x.shape))


def _take(b, d, y, x, indices, axis=None, **_):
    xp = b.xp
    if axis is None:
        return _scattered(b, d, x, lambda places: xp.take(xp.reshape(places, (-1,)), indices, axis=0))
    axis, ndim = axis % x.ndim, indices.ndim
    indices = xp.reshape(xp.where(indices < 0, indices + x.shape[axis], indices), (-1,))
    first = (*range(axis, axis + ndim), *range(axis), *range(axis + ndim, d.ndim))
    shape = (x.shape[axis], *x.shape[:axis], *x.shape[axis + 1 :])
    d = xp.reshape(xp.permute_dims(d, first), (indices.shape[0], math.prod(shape[1:])))
    d = xp.reshape(b.scatter_add(indices, d, x.shape[axis]), shape)
    return xp.moveaxis(d, 0, axis)


def _take_along_axis(b, d, y, x, indices, axis=-1):
    return _scattered(b, d, x, lambda places: b.xp.take_along_axis(places, indices, axis=axis))


def _sort(b, d, y, x, axis=-1, **settings):
    order = b.xp.argsort(x, axis=axis, **settings)
    return b.xp.take_along_axis(d, b.xp.argsort(order, axis=axis), axis=axis)


def _concat(b, d, y, arrays, axis=0, **_):
    if axis is None:
        d = [
            b.xp.reshape(part, tuple(x.shape))
            for part, x in zip(_parts(d, arrays, None), arrays, strict=True)
        ]
        return d
    return _parts(d, arrays, axis % d.ndim)


def _parts(d, arrays, axis):
    """Return the parts of a concatenated array."""
    parts, start = [], 0
    for x in arrays:
        stop = start + (math.prod(x.shape) if axis is None else x.shape[axis])
        parts.append(d[(slice(None),) * (axis or 0) + (slice(start, stop), ...)])
        start = stop
    return parts


def _at(i: int, axis: int, ndim: int) -> tuple:
    return (slice(None),) * (axis % ndim) + (i,)


def _stack(b, d, y, arrays, axis=0):
    return [d[(*_at(i, axis, d.ndim), ...)] for i in range(len(arrays))]


def _unstack(b, d, y, x, axis=0):
    parts = [b.xp.zeros_like(part) if di is None else di for di, part in zip(d, y, strict=True)]
    return b.xp.stack(parts, axis=axis)


def _permuted(b, d, y, x, axes=None):
    axes = tuple(range(x.ndim))[::-1] if axes is None else [a % x.ndim for a in axes]
    return b.xp.permute_dims(d, tuple(axes.index(i) for i in range(x.ndim)))


def _swapped(b, d, y, x, i, j):
    axes = list(range(x.ndim))
    axes[i], axes[j] = axes[j], axes[i]
    return b.xp.permute_dims(d, tuple(axes))


def _repeat(b, d, y, x, repeats, axis=None):
    xp = b.xp
    return _scattered(b, d, x, lambda places: xp.repeat(places, repeats, axis=axis))


def _unpadded(b, d, y, x, widths, value=0.0):
    return d[tuple(slice(before, before + n) for n, (before, _) in zip(x.shape, widths, strict=True))]


def _diff(b, d, y, x, axis=-1, n=1, **_):
    widths = [(0, 0)] * x.ndim
    for _ in range(n):
        widths[axis] = (1, 0)
        after = b.pad(d, widths)
        widths[axis] = (0, 1)
        d = after - b.pad(d, widths)
    return d


def _restored(b, d, y, x, *_, **__):
    """The gradient of an operation that gives the elements another shape."""
    return b.xp.reshape(d, tuple(x.shape))


def _item(b, d, y, several, i):
    return [d if k == i else None for k in range(len(several))]


def _same(b, d, *_, **__):
    return d


def _none(*_, **__):
    return None


# The table: for each operation, a rule for each argument through which a gradient flows

RULES: dict[str, Any] = {
    "add": (_same, _same),
    "subtract": (_same, lambda b, d, y, u, v: -d),
    "multiply": (lambda b, d, y, u, v: d * v, lambda b, d, y, u, v: d * u),
    "divide": (lambda b, d, y, u, v: d / v, lambda b, d, y, u, v: -(d * y / v)),
    "pow": (_pow_by_base, _pow_by_exponent),
    "float_power": (_pow_by_base, _pow_by_exponent),
    "remainder": (_same, lambda b, d, y, u, v: -(d * b.xp.floor(u / v))),
    "atan2": (lambda b, d, y, u, v: d * v / (u * u + v * v), lambda b, d, y, u, v: -(d * u / (u * u + v * v))),
    "hypot": (lambda b, d, y, u, v: d * u / y, lambda b, d, y, u, v: d * v / y),
    "logaddexp": (lambda b, d, y, u, v: d * b.xp.exp(u - y), lambda b, d, y, u, v: d * b.xp.exp(v - y)),
    "copysign": (lambda b, d, y, u, v: d * b.xp.sign(y) * b.xp.sign(u), _none),
    "maximum": (_larger(True), _larger(False)),
    "minimum": (_smaller(True), _smaller(False)),
    "where": (
        _none,
        lambda b, d, y, c, u, v: b.xp.where(c, d, 0.0),
        lambda b, d, y, c, u, v: b.xp.where(c, 0.0, d),
    ),
    "clip": (_clip,),
    "negative": (lambda b, d, y, x: -d,),
    "positive": (_same,),
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
    "nan_to_num": (lambda b, d, y, x, **_: d * _bool(b, b.xp.isfinite(x), d),),
    # Reductions
    "sum": (lambda b, d, y, x, *a, **k: _spread(b, d, x, *a, **k),),
    "mean": (lambda b, d, y, x, *a, **k: _spread(b, d, x, *a, **k) / _count(x, *a, **k),),
    "max": (_extreme,),
    "min": (_extreme,),
    "prod": (_prod,),
    "var": (_var,),
    "std": (_std,),
    "cumulative_sum": (_cumulative_sum,),
    # Linear algebra
    "matmul": (_matmul_by_first, _matmul_by_second),
    "tensordot": (_tensordot(True), _tensordot(False)),
    "vecdot": (_vecdot(True), _vecdot(False)),
    "matrix_transpose": (lambda b, d, y, x: _transposed(b, d),),
    "linalg.inv": (_inverse,),
    "linalg.det": (_determinant,),
    "linalg.slogdet": (_slogdet,),
    "linalg.solve": (_solve_by_matrix, _solve_by_right),
    "linalg.cholesky": (_cholesky,),
    "linalg.eigh": (_eigh,),
    "linalg.eigvalsh": (lambda b, d, y, x: _eigh(b, (d, None), b.xp.linalg.eigh(x), x),),
    "linalg.trace": (_trace,),
    "linalg.diagonal": (_diagonal,),
    "linalg.outer": (lambda b, d, y, u, v: d @ v, lambda b, d, y, u, v: u @ d),
    "linalg.vector_norm": (_vector_norm,),
    "linalg.matrix_norm": (_matrix_norm,),
    "linalg.cross": (_cross(True), _cross(False)),
    # Places
    "getitem": (_getitem,),
    "item": (_item,),
    "take": (_take,),
    "take_along_axis": (_take_along_axis,),
    "sort": (_sort,),
    "reshape": (_restored,),
    "expand_dims": (_restored,),
    "squeeze": (_restored,),
    "ravel": (_restored,),
    "permute_dims": (_permuted,),
    "transpose": (_permuted,),
    "swapaxes": (_swapped,),
    "moveaxis": (lambda b, d, y, x, source, destination: b.xp.moveaxis(d, destination, source),),
    "broadcast_to": (_same,),
    "broadcast_arrays": lambda i: lambda b, d, y, *arrays: d[i],
    "concat": (_concat,),
    "stack": (_stack,),
    "unstack": (_unstack,),
    "flip": (lambda b, d, y, x, axis=None: b.xp.flip(d, axis=axis),),
    "roll": (lambda b, d, y, x, shift, axis=None: b.xp.roll(
        d, tuple(-s for s in shift) if isinstance(shift, (tuple, list)) else -shift, axis=axis),),
    "repeat": (_repeat,),
    "tile": (lambda b, d, y, x, repetitions: _scattered(b, d, x, lambda places: b.xp.tile(places, repetitions)),),
    "tril": (lambda b, d, y, x, k=0: b.xp.tril(d, k=k),),
    "triu": (lambda b, d, y, x, k=0: b.xp.triu(d, k=k),),
    "diff": (_diff,),
    "astype": (_same,),
    "asarray": (_same,),
    "copy": (_same,),
    # Methods of the backend
    "pad": (_unpadded,),
    "patches": (lambda b, d, y, x, windows: b.from_patches(d, windows),),
    "from_patches": (lambda b, d, y, x, windows: b.patches(d, windows),),
    "unslice": (_none, lambda b, d, y, shape, parts, keys: tuple(d[key] for key in keys)),
    "scatter_add": (_none, lambda b, d, y, indices, values, length: b.gather(d, indices)),
}  # fmt: skip
for _name in ("matmul", "tensordot", "vecdot", "matrix_transpose"):
    RULES[f"linalg.{_name}"] = RULES[_name]

FLAT = (
    "all", "any", "argmax", "argmin", "argsort", "ceil", "count_nonzero", "empty_like", "floor", "floor_divide",
    "full_like", "ones_like", "round", "sign", "signbit", "trunc", "zeros_like",
)  # fmt: skip
"""The operations on floating arrays whose slope is zero wherever it exists."""
RULES |= dict.fromkeys(FLAT, lambda i: _none)


def pull(graph: Graph, outputs, cotangents) -> dict[Symbol, object]:
    """Return dL/dx of all Symbols that outputs depend on, from dL/d(output) of the outputs.

    Raises
    ------
    GraphError
        If a gradient reaches an operation without a rule.
    """
    gradients: dict[Symbol, object] = {}
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if graph.is_own(output) and cotangent is not None:
            _accumulate(graph.backend, gradients, output, cotangent)
    for symbol in reversed(graph.symbols):
        if symbol.op == "input" or symbol not in gradients:
            continue
        d = gradients.pop(symbol)
        arguments = graph.plain(symbol.arguments)
        for i, argument in enumerate(symbol.arguments):
            if not any(graph.is_own(leaf) and _has_gradient(leaf) for leaf in _items(argument)):
                continue
            rule: Any = _rule(symbol, i)
            d_argument = rule(graph.backend, d, symbol.value, *arguments, **graph.plain(symbol.settings))
            if d_argument is None:
                continue
            pairs = [(argument, d_argument)]
            if isinstance(argument, (tuple, list)):
                pairs = zip(argument, d_argument, strict=True)
            for leaf, d_leaf in pairs:
                if graph.is_own(leaf) and d_leaf is not None:
                    _accumulate(graph.backend, gradients, leaf, d_leaf)
        for leaf in symbol.settings.values():
            if graph.is_own(leaf) and _has_gradient(leaf):
                raise GraphError(f"no derivative is known of {symbol.op} by an argument given by name")
    return gradients


def _rule(symbol: Symbol, i: int):
    """Return the rule of an operation for its argument number i."""
    rules: Any = RULES.get(symbol.op)
    if callable(rules):
        return rules(i)
    if rules is None or i >= len(rules):
        which = "" if rules is None else f" by its argument number {i + 1}"
        where = f" in layer {symbol.path!r}" if symbol.path else ""
        raise GraphError(f"no derivative is known of {symbol.op}{which}{where}")
    return rules[i]


def _items(argument):
    return argument if isinstance(argument, (tuple, list)) else (argument,)


def _has_gradient(symbol: Symbol) -> bool:
    """Whether a Symbol has elements of a floating dtype."""
    if "complex" in str(getattr(symbol.value, "dtype", "")):
        raise GraphError(f"no derivative is known of {symbol.op}, whose result is complex")
    return isinstance(symbol.value, (tuple, list)) or is_floating(symbol)


def is_floating(array) -> bool:
    """Whether an array of any library has a floating dtype."""
    return "float" in str(getattr(array, "dtype", ""))


def _accumulate(b, gradients: dict, symbol: Symbol, d) -> None:
    before = gradients.get(symbol)
    if isinstance(symbol.value, (tuple, list)):  # an operation with several results: a list
        if before is not None:
            d = [p if q is None else q if p is None else p + q for p, q in zip(before, d, strict=True)]
        gradients[symbol] = d
    elif is_floating(symbol):
        d = _sum_to(b, d, symbol.value)
        gradients[symbol] = d if before is None else before + d
