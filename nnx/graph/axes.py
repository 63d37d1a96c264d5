"""What several rules of derivatives share; see `nnx.graph.rules`."""

import math


def reduced_axes(x, axis) -> tuple[int, ...]:
    """Return the axes of a reduction, counted from the front."""
    if axis is None:
        return tuple(range(x.ndim))
    return tuple(a % x.ndim for a in (axis if isinstance(axis, (tuple, list)) else (axis,)))


def kept(b, d, x, axis=None, keepdims=False):
    """Return a reduction of x with the axes it was reduced over, of length 1."""
    axes = reduced_axes(x, axis)
    return b.xp.reshape(d, tuple(1 if i in axes else n for i, n in enumerate(x.shape)))


def spread(b, d, x, axis=None, keepdims=False, **_):
    """Return the gradient of a sum: d for each element that was summed."""
    return b.xp.broadcast_to(kept(b, d, x, axis), x.shape)


def count_reduced(x, axis=None, **_) -> int:
    """Return how many elements of x one element of its reduction stands for."""
    return math.prod(x.shape[a] for a in reduced_axes(x, axis))


def is_array(value) -> bool:
    return hasattr(value, "shape")


def as_number(b, condition, like):
    """Return 1 where a condition holds, else 0."""
    return b.xp.astype(condition, like.dtype)


def sum_to(b, d, x):
    """Return a gradient summed over the axes along which x was broadcast, in the dtype of x."""
    xp = b.xp
    if tuple(d.shape) != tuple(x.shape):
        extra = d.ndim - x.ndim
        axes = [i for i in range(d.ndim) if i < extra or (x.shape[i - extra] == 1 and d.shape[i] != 1)]
        d = xp.reshape(xp.sum(d, axis=tuple(axes)) if axes else d, tuple(x.shape))
    return d if d.dtype == x.dtype else xp.astype(d, x.dtype)


def extreme(b, d, y, x, axis=None, keepdims=False, **_):
    """The rule of `max` and `min`: all the largest share the gradient."""
    isextreme = as_number(b, x == kept(b, y, x, axis), d)
    return kept(b, d, x, axis) * isextreme / b.xp.sum(isextreme, axis=axis, keepdims=True)


def unchanged(b, d, *_, **__):
    """The rule of what passes a gradient on, such as addition; `gradients` sums over broadcast axes."""
    return d


def no_gradient(*_, **__):
    """The rule of an argument through which no gradient flows."""
    return None
