"""Rules of derivatives: indexing, and operations that move elements; see `nnx.graph.rules`."""

import math
from typing import Any

from nnx.graph.axes import is_array, no_gradient, unchanged


def _slices(key, shape):
    """Return a basic index as slices of all axes, or None if it has arrays of indices in it."""
    key = key if isinstance(key, tuple) else (key,)
    if any(is_array(k) or isinstance(k, (list, bool)) for k in key):
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
    if is_array(key) and b.xp.isdtype(key.dtype, "integral"):
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


INDEXING: dict[str, Any] = {
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
    "broadcast_to": (unchanged,),
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
    "astype": (unchanged,),
    "asarray": (unchanged,),
    "copy": (unchanged,),
    # Methods of the backend
    "pad": (_unpadded,),
    "patches": (lambda b, d, y, x, windows: b.from_patches(d, windows),),
    "from_patches": (lambda b, d, y, x, windows: b.patches(d, windows),),
    "unslice": (no_gradient, lambda b, d, y, shape, parts, keys: tuple(d[key] for key in keys)),
    "scatter_add": (no_gradient, lambda b, d, y, indices, values, length: b.gather(d, indices)),
}  # fmt: skip
