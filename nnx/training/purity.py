"""Steps that run user code are compiled only while that code has no side effects.

A compiled step repeats the operations of one run of the Python code. A layer that counts its calls, or draws
from its own generator, differs each time. So the first step is watched: if the objects that the user code
refers to change, all steps run as Python, and a line of the log gives the reason.
"""

from collections.abc import Callable
from typing import Any

from nnx import log, tree
from nnx.backend import Backend
from nnx.graph.fingerprint import MOST_OBJECTS, Fingerprint, difference, global_draws


class Guard:
    """Watches the user code in parts of a step: layers, losses, metrics, an optimizer.

    Parameters
    ----------
    backend : Backend
    parts : tuple
        The layers, losses, ... to watch.
    reason : str, optional
        Why steps are not compiled, if that is known.
    """

    def __init__(self, backend: Backend, parts: tuple, reason: str | None = None):
        self.backend, self.parts, self.reason = backend, parts, reason
        self.first_as_python = False
        """Whether the first step runs as Python, because it probably cannot be compiled."""
        if reason is None:
            self._fingerprint()

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
        """Return `run(*arguments)`; give up compiling if it changes objects to which the parts refer."""
        before = self._fingerprint()
        result = run(*arguments)
        after = self._fingerprint()
        if before != after:
            self._give_up(f"{difference(before, after) or 'what they refer to'} changes in a step")
        return result

    def _fingerprint(self) -> tuple:
        fingerprint = Fingerprint(draws=True)
        parts = tuple(map(fingerprint.of, self.parts))
        self.first_as_python = fingerprint.sets_names or fingerprint.has_generators
        if fingerprint.is_partial:
            self._give_up(
                f"they refer to an iterator that cannot be compared, or to more than {MOST_OBJECTS:,} objects"
            )
        return *parts, *global_draws()

    def _give_up(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            log.info("steps on %s run as Python, not compiled: %s", self.backend.name, reason)


def _shapes_of(data) -> tuple:
    return tuple(getattr(leaf, "shape", ()) for leaf in tree.leaves(data))


class GuardedSteps:
    """The result of `Backend.repeat`, watched."""

    def __init__(self, guard: Guard, compiled, as_python):
        self.guard, self.compiled, self.as_python = guard, compiled, as_python
        self.known = set()
        """The shapes of batches for which a step was watched."""

    @property
    def programs(self) -> list:
        """The compiled steps, if the backend keeps them."""
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
