"""Functions compiled by XLA for the shapes they were called with last; programs no longer used give back their memory.

`jax.jit` compiles a program for each set of shapes and keeps all of them, about 6 MiB each for a small network.
JAX's caches also hold the compiled function and all it refers to, long after nothing else does.
"""

import collections
import weakref
from collections.abc import Callable

from nnx.lru_cache import Recent

# Programs kept of one function, and how many at most where the same shapes come again and again.
FEW, MOST = 4, 64

# Programs to be freed at the next call. Not when they are dropped: the garbage collector may drop them amid
# JAX's own work.
_dropped: collections.deque = collections.deque()


def _free() -> None:
    while _dropped:
        _dropped.popleft().clear_cache()


def _drop_all(programs: dict) -> None:
    _dropped.extend(programs.values())


class JitCache:
    """`jax.jit(function, **options)` that keeps the programs of the shapes used last.

    Parameters
    ----------
    jax : module
    function : function
        JAX reaches it through a weak reference, so it lives no longer than this object.
    shapes_of : function
        Returns, of the arguments, a tree of those arrays whose shapes differ from call to call.
    options
        Those of `jax.jit`.
    """

    def __init__(
        self, jax, function: Callable, shapes_of: Callable = lambda *arguments: arguments, **options
    ):
        self.jax, self.function, self.shapes_of, self.options = jax, function, shapes_of, options
        self.kept = Recent(FEW, MOST, _dropped.append)
        weakref.finalize(self, _drop_all, self.kept.values).atexit = False

    def __call__(self, *arguments):
        if _dropped:
            _free()
        leaves = self.jax.tree.leaves(self.shapes_of(*arguments))
        key = tuple([getattr(leaf, "shape", ()) for leaf in leaves])
        return self.kept.get(key, self._compiled)(*arguments)

    def eval_shape(self, *arguments):
        """Return the shapes of the results."""
        return self.jax.eval_shape(self._weak(), *arguments)

    def _compiled(self):
        return self.jax.jit(self._weak(), **self.options)

    def _weak(self) -> Callable:
        """Return a new function that calls `function`: JAX keeps what it compiled for each function object."""
        owner = weakref.ref(self)

        def call(*arguments):
            programs = owner()
            assert programs is not None  # it is what calls
            return programs.function(*arguments)

        call.__name__ = getattr(self.function, "__name__", "function")
        return call
