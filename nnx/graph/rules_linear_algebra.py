"""Rules of derivatives: products of matrices and linear algebra; see `nnx.graph.rules`.

Source: Giles, "An extended collection of matrix derivative results for forward and reverse mode algorithmic
differentiation", 2008.
"""

import math
from typing import Any

from nnx.graph.axes import extreme, kept
from nnx.graph.graph import GraphError


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
    xp, d, y = b.xp, kept(b, d, x, axis), kept(b, y, x, axis)
    if ord == math.inf or ord == -math.inf:
        return extreme(b, d, y, xp.abs(x), axis) * xp.sign(x)
    return d * xp.sign(x) * (xp.abs(x) / y) ** (ord - 1)


def _matrix_norm(b, d, y, x, keepdims=False, ord="fro"):
    if ord != "fro":
        raise GraphError(f"no derivative is known of matrix_norm with ord={ord!r}")
    return x * (kept(b, d, x, (-2, -1)) / kept(b, y, x, (-2, -1)))


def _cross(first: bool):
    def rule(b, d, y, u, v, axis=-1):
        return b.xp.linalg.cross(v, d, axis=axis) if first else b.xp.linalg.cross(d, u, axis=axis)

    return rule


LINEAR_ALGEBRA: dict[str, Any] = {
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
}  # fmt: skip
for _name in ("matmul", "tensordot", "vecdot", "matrix_transpose"):
    LINEAR_ALGEBRA[f"linalg.{_name}"] = LINEAR_ALGEBRA[_name]
