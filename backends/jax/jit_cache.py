"""`jax.jit` with a bounded number of compiled programs.

`jax.jit` compiles a program for each set of shapes and keeps all of them, about 6 MiB each for a small network.
Its caches also keep the compiled function, and all that it refers to, alive.
"""

import collections
import weakref
from collections.abc import Callable

from nnx.lru_cache import Recent

# The bounds on the programs of one function: at first, and if the same shapes return; see `Recent`.
FEW, MOST = 4, 64

# Programs to be freed at the next call, because the garbage collector may drop them while JAX runs.
_dropped: collections.deque = collections.deque()


def _free() -> None:
    while _dropped:
        _dropped.popleft().clear_cache()


def _drop_all(programs: dict) -> None:
    _dropped.extend(programs.values())


class JitCache:
    """`jax.jit(function, **options)` that keeps the programs of the most recent shapes.

    Parameters
    ----------
    jax : module
    function : function
        JAX has only a weak reference to it, so its lifetime is that of this object.
    shapes_of : function
        Returns the tree of those arguments whose shapes differ from call to call.
    options
        The options of `jax.jit`.
    """

    def __init__(
        self, jax, function: Callable, shapes_of: Callable = lambda *arguments: arguments, **options
    ):
        self.jax, self.function, self.shapes_of, self.options = jax, function, shapes_of, options
        self.programs = Recent(FEW, MOST, _dropped.append)
        weakref.finalize(self, _drop_all, self.programs.values).atexit = False

    def __call__(self, *arguments):
        if _dropped:
            _free()
        leaves = self.jax.tree.leaves(self.shapes_of(*arguments))
        key = tuple([getattr(leaf, "shape", ()) for leaf in leaves])
        return self.programs.get(key, self._compiled)(*arguments)

    def eval_shape(self, *arguments):
        """Return the shapes of the results."""
        return self.jax.eval_shape(self._weak(), *arguments)

    def _compiled(self):
        return self.jax.jit(self._weak(), **self.options)

    def _weak(self) -> Callable:
        """Return a new function that calls `function`: JAX caches programs per function object."""
        owner = weakref.ref(self)

        def call(*arguments):
            cache = owner()
            assert cache is not None  # it is the caller
            return cache.function(*arguments)

        call.__name__ = getattr(self.function, "__name__", "function")
        return call
