"""What a layer sees in one pass: the array namespace, whether this is training, state, randomness.

A `Context` belongs to one layer in one forward pass. A container hands each of its layers
`ctx.at(name)`: the same pass, seen from that layer's place.
"""

import math
from collections.abc import Callable
from typing import Any

from nnx import kernels, tree
from nnx.backend import Backend, as_backend, get_backend
from nnx.random import Key, fold_name


class Context:
    """One forward pass, as one layer sees it.

    Attributes
    ----------
    xp : namespace
        The array-API namespace of the backend.
    training : bool
        Whether dropout drops and batch normalisation uses the batch.
    state : dict
        This layer's arrays that change without a gradient, such as moving averages: read them
        here, and assign the new ones here. After the pass, the outermost context's `state` is
        the new state; the arrays that went in are untouched.
    mask : array of bool, (batch, time), optional
        Which time steps of a layer's input count: the others are padding. A layer that has made
        other time steps of them, or none, assigns the mask of its output, or None, here. Where
        several arrays come in, a tree of masks like theirs.
    needs_input_gradient : bool
        False where nothing asks for dL/dx (the first layer of a model): a pullback may then
        return None for it.

    Examples
    --------
    >>> import nnx
    >>> ctx = nnx.Context(training=True)
    >>> ctx.xp.__name__
    'numpy'
    """

    __slots__ = (
        "backend",
        "key",
        "mask",
        "needs_input_gradient",
        "observer",
        "part",
        "path",
        "penalties",
        "state",
        "training",
        "xp",
    )

    def __init__(
        self,
        backend: Backend | str | None = None,
        *,
        training: bool = False,
        state: dict[str, Any] | None = None,
        key: Key = (0, 0),
        needs_input_gradient: bool = True,
        mask: Any = None,
    ):
        self.backend = as_backend(backend)
        if self.backend is not (current := get_backend()) and current.base is self.backend:
            self.backend = current  # inside a function that is being differentiated
        self.xp = self.backend.xp
        self.training = training
        self.state = tree.copy(state or {})
        self.key = key
        self.path = ""
        """Where in the network the layer stands: the names of what it is in, and its own."""
        self.needs_input_gradient = needs_input_gradient
        self.mask = mask
        self.part: tuple[Any, int] | None = None
        """Where the samples start in a batch that several processes share, and how many they are."""
        self.observer: Callable | None = None
        """Called in place of each layer and loss as `observer(layer, ctx, compute)`; returns `compute()`, its output
        and pullback, or what stands in for them."""
        self.penalties: list = []
        """Terms that layers add to the loss, such as activity regularisation."""

    def at(self, name: str, needs_input_gradient: bool = True) -> "Context":
        """Return the context of the layer called `name` inside this one."""
        inner = object.__new__(Context)
        inner.backend, inner.xp, inner.training = self.backend, self.xp, self.training
        inner.state = self.state.get(name, {})
        inner.key, inner.path, inner.part = self.key, f"{self.path}/{name}", self.part
        inner.needs_input_gradient, inner.mask = needs_input_gradient, self.mask
        inner.penalties, inner.observer = self.penalties, self.observer
        return inner

    def on(self, backend: Backend, state, mask) -> "Context":
        """Return this layer's context at the start of its pass, to be run again on another backend."""
        again = self.at("")
        again.path, again.backend, again.xp = self.path, backend, backend.xp
        again.state, again.mask, again.penalties, again.observer = tree.copy(state), mask, [], None
        again.needs_input_gradient = self.needs_input_gradient
        return again

    def kernel(self, function, *arrays, overwrite: int | None = None):
        """Run the pure elementwise function `function(xp, *arrays)`; see `Backend.kernel`."""
        return self.backend.kernel(function, *arrays, overwrite=overwrite)

    def arange(self, count: int, dtype: str):
        """Return 0, 1, ..., count - 1 on the device."""
        return self.backend.arange(count, dtype)

    def random_bits(self, shape, salt: object = "", window=None):
        """Return 32 random bits (uint32) for each element of `shape`.

        They are a function of the model's seed, the step, the layer's place in the network, and
        `salt`: a layer that draws twice in one pass gives two. The first axis of `shape` is the
        batch: where several processes share one, each draws the bits of its own samples.

        With `window`, ((start, stop), (start, stop)) of the last two axes, only the bits of that part
        are made.
        """
        size = math.prod(shape)
        first, samples = self.part or (0, 1)
        key = fold_name(self.key, f"{self.path}#{salt}")
        if window is None:
            counter = self.arange(size, "uint32")
            if self.part is not None:
                counter = self.kernel(kernels.add, counter, first * (size // samples), overwrite=0)
        else:
            counter = self._counter(shape, window, first * (size // samples))
            shape = (*shape[:-2], *(stop - start for start, stop in window))
        bits = self.kernel(kernels.hash_bits, counter, *key, overwrite=0)
        return self.xp.reshape(bits, shape)

    def _counter(self, shape, window, start):
        """Return the numbers of the elements in a window of the last two axes, if counted from `start`."""
        rows, columns = (self.arange(b - a, "uint32") + a for a, b in window)
        matrices = self.arange(math.prod(shape[:-2]), "uint32") * math.prod(shape[-2:]) + start
        # With the step's key in it: the sum of constants alone a compiled step would keep in memory.
        columns = self.kernel(kernels.add, columns, self.key[0] ^ self.key[0])
        places = columns + self.xp.reshape(rows * shape[-1], (-1, 1))
        return places + self.xp.reshape(matrices, (-1, 1, 1))

    def add_penalty(self, value) -> None:
        """Add a scalar to the loss of this pass. Its gradient is the caller's own business."""
        self.penalties.append(value)
