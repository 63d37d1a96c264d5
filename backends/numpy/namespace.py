"""NumPy's namespace with faster versions of a few functions.

`numpy.sum` and similar functions handle old conventions before they call the ufunc, which takes longer than
the sum of a small array: 2.4 microseconds instead of 1.1 for 16 x 3 elements. A step of a small network makes
a dozen such calls. The results are the same bits, except for sums over one axis, which are computed as
products with ones: their last bits depend on the BLAS library.
"""

import functools
import math
import types

import numpy as np

# A maximum over rows of at most FEW elements is taken column by column, if there are at least TIMES as many rows.
FEW, TIMES = 16, 20


def sum(x, axis=None, keepdims=False):
    if x.ndim >= 2 and x.dtype.char in "fd":
        if axis == 0 and x.ndim == 2 and not keepdims:
            return np.dot(np.ones(x.shape[0], x.dtype), x)  # half the time, at all sizes
        if axis in (-1, x.ndim - 1):  # a third of the time for 32 x 10 elements, a ninth for 8192 x 10
            length, shape = x.shape[-1], (*x.shape[:-1], 1) if keepdims else x.shape[:-1]
            ones = np.ones((length, 1) if keepdims and x.ndim == 2 else length, x.dtype)
            if x.ndim == 2:
                return np.dot(x, ones)
            return np.dot(x.reshape((math.prod(x.shape[:-1]), length)), ones).reshape(shape)
    return np.add.reduce(x, axis=axis, keepdims=keepdims)


def matmul(x, y, out=None):
    if 1 <= x.ndim == y.ndim <= 2:
        return np.dot(x, y) if out is None else np.dot(x, y, out)
    return np.matmul(x, y, out=out)


def max(x, axis=None, keepdims=False):
    if axis in (-1, 1) and x.ndim == 2 and 1 < x.shape[1] <= FEW and x.shape[0] >= TIMES * x.shape[1]:
        columns = [x[:, k : k + 1] if keepdims else x[:, k] for k in range(x.shape[1])]
        return functools.reduce(np.maximum, columns)  # 31 microseconds for 8192 x 10 elements, not 362
    return np.maximum.reduce(x, axis=axis, keepdims=keepdims)


def mean(x, axis=None, keepdims=False):
    total = sum(x, axis=axis, keepdims=keepdims)
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    count = math.prod(x.shape[i] for i in axes)
    return np.true_divide(total, count, dtype=x.dtype)


def reshape(x, shape):
    return x.reshape(shape)


def take(x, indices, axis):
    return x.take(indices, axis=axis)


def argmax(x, axis):
    return x.argmax(axis=axis)


def astype(x, dtype):
    return x.astype(dtype, copy=False)


def make() -> types.ModuleType:
    """Return NumPy's namespace with the functions above instead of its own."""
    namespace = types.ModuleType("numpy")
    vars(namespace).update(vars(np))
    for function in (sum, matmul, max, mean, reshape, take, argmax, astype):
        setattr(namespace, function.__name__, function)
    return namespace
