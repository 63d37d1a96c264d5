"""Parameters, gradients and optimizer slots as one flat buffer each, for eager libraries.

The arrays of the tree are views of the buffer, so the optimizer's kernel runs once over the whole
model instead of once for each parameter.
"""

import math

from nnx import tree
from nnx.backend import Backend


class Packed(dict):
    """A tree whose leaves are views of `buffer`, one after another in sorted order."""

    def __init__(self, nested, buffer):
        super().__init__(nested)
        self.buffer = buffer


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

    def pack(self, values):
        return view_as(values, self._flat(values)) if tree.leaves(values) else values

    def _flat(self, values):
        return self.xp.concat([self.xp.reshape(leaf, (-1,)) for leaf in tree.leaves(values)])

    def update(self, kernel, params, grads, slots, scalars):
        if not isinstance(params, Packed):
            return super().update(kernel, params, grads, slots, scalars)
        gradient = grads.buffer if isinstance(grads, Packed) else self._flat(grads)
        buffers = [params.buffer, gradient, *(slot.buffer for slot in slots)]
        self.update_in_place(kernel, buffers, scalars)
        return params, slots

    def update_in_place(self, kernel, buffers, scalars) -> None:
        """Run the optimizer's kernel over flat `(param, grad, *slots)`, writing back all but grad."""
        raise NotImplementedError
