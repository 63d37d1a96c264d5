"""Parameters, gradients and optimizer slots in one flat buffer each, for eager libraries.

The arrays of the tree are views of the buffer, so the optimizer's kernel runs once over the whole model
instead of once per parameter.
"""

import functools
import math
from typing import Any

from nnx import tree
from nnx.backend import Backend


class Fixed(dict):
    """A tree whose leaves stay the same arrays, so that their list and types are computed once."""

    @functools.cached_property
    def arrays(self) -> list:
        """The leaves."""
        return tree.leaves(dict(self))

    @functools.cached_property
    def array_types(self) -> tuple:
        """See the function of this name. It differs from that of a dict, which a compiled step reads differently."""
        return type(self), array_types(dict(self))


class Packed(Fixed):
    """A tree whose leaves are views of `buffer`, one after another in sorted order."""

    def __init__(self, nested, buffer):
        super().__init__(nested)
        self.buffer = buffer

    @functools.cached_property
    def arrays(self) -> list:
        """The buffer and the leaves."""
        return [self.buffer, *tree.leaves(dict(self))]


def array_types(value) -> Any:
    """Return the names, shapes, dtypes and layouts of the arrays of a tree: a step is compiled for each of these."""
    if isinstance(value, Fixed):
        return value.array_types
    if isinstance(value, dict):
        return tuple([(name, array_types(value[name])) for name in sorted(value)])
    if isinstance(value, list):
        is_vector = bool(value) and isinstance(value[0], (int, float))
        return type(value[0]) if is_vector else tuple([array_types(item) for item in value])
    if isinstance(value, tuple):
        return tuple([array_types(item) for item in value])
    return value.shape, value.dtype, value.flags.c_contiguous


def view_as(like, buffer) -> Packed:
    """Return a tree of the structure of `like` whose leaves are views of the flat `buffer`."""
    views, start = [], 0
    for leaf in tree.leaves(like):
        size = math.prod(leaf.shape)
        views.append(buffer[start : start + size].reshape(leaf.shape))
        start += size
    return Packed(tree.rebuild(like, views), buffer)


class FlatBackend(Backend):
    """A backend that packs trees into flat buffers and maps over them in one pass."""

    def put_samples(self, samples, rows=None):
        return Fixed(super().put_samples(samples))

    def pack(self, values):
        leaves = [self.xp.reshape(leaf, (-1,)) for leaf in tree.leaves(values)]
        if not leaves:
            return values
        return view_as(values, self.xp.concat(leaves))

    def copy(self, values):
        if isinstance(values, Packed):
            return view_as(values, values.buffer.copy())
        return tree.map(lambda array: array.copy(), values)

    def map(self, function, *trees, scalars=None, overwrite=()):
        if not isinstance(trees[0], Packed):
            return super().map(function, *trees, scalars=scalars, overwrite=overwrite)
        packed = [values if isinstance(values, Packed) else self.pack(values) for values in trees]
        buffers = [values.buffer for values in packed]
        if overwrite:
            self.update_in_place(function, buffers, scalars or {}, overwrite)
            return tuple(packed[i] for i in overwrite)
        kernel = positional(function, tuple(scalars)) if scalars else function
        return view_as(trees[0], self.kernel(kernel, *buffers, *(scalars or {}).values()))

    def update_in_place(self, function, buffers, scalars, overwrite) -> None:
        """Run an elementwise function over flat arrays, and write its results over some of them; see `map`."""
        raise NotImplementedError


def positional(function, names):
    """Return `function(xp, *arrays, **scalars)` with its scalars as positional arguments."""

    def call(xp, *arguments):
        split = len(arguments) - len(names)
        return function(xp, *arguments[:split], **dict(zip(names, arguments[split:], strict=True)))

    owner = getattr(function, "__self__", None)
    call.__name__ = getattr(function, "__name__", "kernel") if owner is None else type(owner).__name__
    return call
