"""Parameters, gradients and optimizer slots as one flat buffer each, for eager libraries.

The arrays of the tree are views of the buffer, so the optimizer's kernel runs once over the whole
model instead of once for each parameter.
"""

import functools
import math
from typing import Any

from nnx import tree
from nnx.backend import Backend


class Fixed(dict):
    """A tree whose leaves stay the same arrays: what a compiled step asks of them is found once."""

    @functools.cached_property
    def arrays(self) -> list:
        """The leaves."""
        return tree.leaves(dict(self))

    @functools.cached_property
    def kinds(self) -> tuple:
        """See the function of this name. A compiled step reads this otherwise than a dict."""
        return type(self), kinds(dict(self))


class Packed(Fixed):
    """A tree whose leaves are views of `buffer`, one after another in sorted order."""

    def __init__(self, nested, buffer):
        super().__init__(nested)
        self.buffer = buffer

    @functools.cached_property
    def arrays(self) -> list:
        """The buffer and the leaves."""
        return [self.buffer, *tree.leaves(dict(self))]


def kinds(value) -> Any:
    """Return what a compiled step depends on: names, shapes, dtypes and layouts of all arrays of a tree."""
    if isinstance(value, Fixed):
        return value.kinds
    if isinstance(value, dict):
        return tuple([(name, kinds(value[name])) for name in sorted(value)])
    if isinstance(value, list):
        is_column = bool(value) and isinstance(value[0], (int, float))
        return type(value[0]) if is_column else tuple([kinds(item) for item in value])
    if isinstance(value, tuple):
        return tuple([kinds(item) for item in value])
    return value.shape, value.dtype, value.flags.c_contiguous


def view_as(like, buffer) -> Packed:
    """Return a tree shaped as `like` whose leaves are views of the flat `buffer`."""
    views, start = [], 0
    for leaf in tree.leaves(like):
        size = math.prod(leaf.shape)
        views.append(buffer[start : start + size].reshape(leaf.shape))
        start += size
    return Packed(tree.rebuild(like, views), buffer)


class FlatBackend(Backend):
    """Packs trees into flat buffers and updates them in one pass."""

    def fixed(self, values):
        return Fixed(values)

    def pack(self, values):
        leaves = [self.xp.reshape(leaf, (-1,)) for leaf in tree.leaves(values)]
        if not leaves:
            return values
        return view_as(values, self.xp.concat(leaves))

    def convert(self, values, dtype):
        if isinstance(values, Packed):
            return view_as(values, self.xp.astype(values.buffer, dtype))
        return super().convert(values, dtype)

    def map_kernel(self, function, values, *arguments):
        if isinstance(values, Packed):
            return view_as(values, self.kernel(function, values.buffer, *arguments))
        return super().map_kernel(function, values, *arguments)

    def flat(self, values):
        return [values.buffer] if isinstance(values, Packed) else super().flat(values)

    def snapshot(self, values):
        if not isinstance(values, Packed):
            return super().snapshot(values)
        kept = self.copy(values.buffer)
        return lambda: view_as(values, self.copy(kept))

    def update(self, kernel, params, grads, slots, scalars):
        if not isinstance(params, Packed):
            return super().update(kernel, params, grads, slots, scalars)
        if not isinstance(grads, Packed):
            grads = self.pack(grads)
        buffers = [params.buffer, grads.buffer, *(slot.buffer for slot in slots)]
        self.update_in_place(kernel, buffers, scalars)
        return params, slots

    def update_in_place(self, kernel, buffers, scalars) -> None:
        """Run the optimizer's kernel over flat `(param, grad, *slots)`, writing back all but grad."""
        raise NotImplementedError
