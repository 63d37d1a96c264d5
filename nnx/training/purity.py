"""Steps that run code of the user's: compiled as long as that code changes nothing that it refers to.

A compiled step repeats what the Python code did once. A layer that counts its calls, or draws from a
generator of its own, does something else each time. So the first step is watched: if what the user's code
refers to is not the same afterwards, all steps run as Python, and one line of the log says why.
"""

from collections.abc import Callable
from typing import Any

from nnx import log, tree
from nnx.backend import Backend
from nnx.graph.fingerprint import MOST_OBJECTS, Fingerprint, difference, global_draws


class Guard:
    """Watches the code of the user's in some parts of a step: layers, losses, metrics, an optimizer.

    Parameters
    ----------
    backend : Backend
    parts : tuple
        The layers, losses, ... whose code it is.
    reason : str, optional
        Why steps are not compiled, where that is known.
    """

    def __init__(self, backend: Backend, parts: tuple, reason: str | None = None):
        self.backend, self.parts, self.reason = backend, parts, reason
        self.first_as_python = False
        """Whether the first step runs as Python: it is likely to be one that cannot be compiled."""
        if reason is None:
            self._look()

    def repeat(self, step: Callable) -> "GuardedSteps":
        """Return `Backend.repeat(step)`, watched."""
        return GuardedSteps(self, self.backend.repeat(step), Backend.repeat(self.backend, step))

    def compile(self, function: Callable) -> Callable:
        """Return `Backend.compile(function)`, watched."""
        compiled, known = self.backend.compile(function), set()
        if compiled is function:
            return function

        def run(*arguments):
            if self.reason is None and (shapes := _shapes_of(arguments[-1])) not in known:
                known.add(shapes)
                return self.watch(function if self.first_as_python else compiled, *arguments)
            return (compiled if self.reason is None else function)(*arguments)

        return run

    def watch(self, run: Callable, *arguments) -> Any:
        """Return `run(*arguments)`; note if it changes what the parts refer to."""
        before = self._look()
        result = run(*arguments)
        after = self._look()
        if before != after:
            self._give_up(f"{difference(before, after) or 'what they refer to'} changes in a step")
        return result

    def _look(self) -> tuple:
        taken = Fingerprint(draws=True)
        found = tuple(map(taken.of, self.parts))
        self.first_as_python = taken.sets_names or taken.has_generators
        if taken.is_partial:
            self._give_up(
                f"they refer to an iterator that cannot be compared, or to more than {MOST_OBJECTS:,} objects"
            )
        return *found, *global_draws()

    def _give_up(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            log.info("steps on %s run as Python, not compiled: %s", self.backend.name, reason)


def _shapes_of(data) -> tuple:
    return tuple(getattr(leaf, "shape", ()) for leaf in tree.leaves(data))


class GuardedSteps:
    """What `Backend.repeat` returns, watched."""

    def __init__(self, guard: Guard, compiled, as_python):
        self.guard, self.compiled, self.as_python = guard, compiled, as_python
        self.known = set()
        """The shapes of the batches of which a step was watched."""

    @property
    def programs(self) -> list:
        """The compiled steps, where the backend keeps them."""
        return self.compiled.programs

    def __call__(self, carry, totals, rows, data, start, stop):
        guard = self.guard
        index = rows.get("index")
        shapes = (None if index is None else index.shape[1:], *_shapes_of(data))
        if guard.reason is None and start < stop and shapes not in self.known:
            self.known.add(shapes)
            run = self.as_python if guard.first_as_python else self.compiled
            carry, sums = guard.watch(run, carry, None, rows, data, start, start + 1)
            totals = sums if totals is None else guard.backend.add(totals, sums)
            start += 1
        if start == stop:
            return carry, totals
        run = self.compiled if guard.reason is None else self.as_python
        return run(carry, totals, rows, data, start, stop)
