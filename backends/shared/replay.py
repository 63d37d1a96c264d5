"""Training steps compiled for libraries that run each call at once: the calls, without the layers.

A step of a small network costs what Python does around the arrays, not what the library does to
them. So the step is traced twice while it runs (`tracing`). If both times it made the same calls on
the same constants, these become the lines of a plain function (`writer`), and the layers' own code
is not run again for arrays of these shapes. The results are the same bits. A step that differs from
one time to the next, or looks at a value, runs as it stands.
"""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nnx.backends.shared.flat import Fixed, Packed, kinds
from nnx.backends.shared.remembered import remember
from nnx.backends.shared.trees import key_text, packing, unpacking

from nnx import log, tree
from nnx.backend import batch_of
from nnx.graph.tracing import NotTraceableError, Trace

# Programs remembered for one step function, one for each set of shapes.
MOST_PROGRAMS = 32


def is_on() -> bool:
    """Whether steps are compiled: unless NNX_REPLAY=0, to follow one's layers in a debugger."""
    return os.environ.get("NNX_REPLAY") != "0"


@dataclass
class NotCompiled:
    """Stands in place of a program for a step that runs as it stands."""

    reason: str


class Replay:
    """Runs many steps, as `Backend.repeat` says, and compiles what it has seen twice."""

    def __init__(self, backend, step: Callable, plain: Callable):
        self.backend, self.step, self.plain = backend, step, plain
        self.programs: dict[Any, CompiledStep | Trace | NotCompiled] = {}
        self.zeros: dict[Any, Any] = {}  # what totals start from

    def __call__(self, carry, totals, rows, data, start, stop):
        key = kinds([carry, data, rows])
        while start < stop:
            known = self.programs.get(key)
            if totals is None:
                totals = self.zeros.get(key)
            if isinstance(known, NotCompiled):
                return self.plain(carry, totals, rows, data, start, stop)
            if totals is None:
                carry, totals = self.plain(carry, None, rows, data, start, start + 1)
                zeros = tree.map(lambda total: self.backend.zero(total.shape, total.dtype), totals)
                remember(self.zeros, key, zeros, MOST_PROGRAMS)
            elif isinstance(known, CompiledStep):
                return known.loop(carry, totals, rows, data, start, stop)
            else:
                carry, totals = self._trace_one(key, known, carry, totals, rows, data, start)
            start += 1
        return carry, totals

    def _trace_one(self, key, earlier: "Trace | None", carry, totals, rows, data, i):
        """Run step `i`, and remember what is now known of steps like it."""
        arrays = filter(self.backend.is_array, flatten(carry))  # a number, such as a state of shape (), stays
        written = {id(array): (array, array.copy()) for array in arrays}
        trace = Trace(self.backend)
        try:
            row = {name: rows[name][i] for name in sorted(rows)}
            inputs = [_map(trace.input, part) for part in ([carry, totals], row, data)]
            carry_out, sums = self.step(inputs[0][0], inputs[1], batch_of(self.backend, *inputs[1:]))
            outputs = [carry_out, self.backend.add(inputs[0][1], sums)]
            found: CompiledStep | Trace | NotCompiled = trace
            if trace.refused:  # and the step has caught the error
                raise NotTraceableError(trace.refused)
            if not trace.end():
                found = NotCompiled("it writes into an array that it refers to")
            elif earlier is not None and trace.same_as(earlier):
                found = CompiledStep(trace, [carry, totals], rows, data, outputs)
            elif earlier is not None:
                found = NotCompiled("it makes other calls each time")
            carry, totals = _restore([carry, totals], (leaf.value for leaf in flatten(outputs)))
        except Exception as error:  # the plain step knows best what is wrong, if anything
            found = NotCompiled(f"{type(error).__name__}: {error}")
            for array, copy in written.values():
                array[...] = copy
            carry, totals = self.plain(carry, totals, rows, data, i, i + 1)
        remember(self.programs, key, found, MOST_PROGRAMS)
        if isinstance(found, CompiledStep):
            log.debug("step on %s compiled: %d calls", self.backend.name, len(trace.calls))
        elif isinstance(found, NotCompiled):
            log.info("step on %s runs as it stands: %s", self.backend.name, found.reason)
        return carry, totals


class CompiledStep:
    """A compiled step: `loop(carry, totals, rows, data, start, stop) -> (carry, totals)`."""

    def __init__(self, trace, carry, rows, data, carry_out):
        if _structure(carry) != _structure(carry_out):
            raise ValueError("a step that changes the structure of its carry")
        numbers, space = itertools.count(), {}
        unpacked = unpacking(carry[0], "carry", numbers, space) + unpacking(
            carry[1], "totals", numbers, space
        )
        first_row = len(flatten(carry))
        unpacked += [f"r{next(numbers)} = rows[{key_text(name, space)}]" for name in sorted(rows)]
        first_datum = first_row + len(rows)
        unpacked += unpacking(data, "data", numbers, space)
        # Where all that changes in the carry changes in place, it is the same after a step.
        stays = [leaf.index for leaf in flatten(carry_out[0])] == [*range(len(flatten(carry[0])))]
        numbers = itertools.count()
        packed = [
            packing(carry[0], "carry", numbers, space),
            packing(carry[1], "totals", numbers, space),
        ]
        self.loop = trace.backend.writer(
            trace,
            carry=range(first_row),
            rows=range(first_row, first_datum),
            data=range(first_datum, first_datum + len(flatten(data))),
            carry_out=[leaf.index for leaf in flatten(carry_out)],
            unpacked=unpacked,
            packed=f"{'carry' if stays else packed[0]}, {packed[1]}",
            space=space,
        ).loop()


# Trees, here with lists, and with the buffer of what is packed as one more leaf.


def flatten(value) -> list:
    """Return the leaves of a tree of dicts and lists."""
    if isinstance(value, Fixed):
        return value.arrays
    if isinstance(value, dict):
        return [leaf for name in sorted(value) for leaf in flatten(value[name])]
    return [leaf for item in value for leaf in flatten(item)] if isinstance(value, (list, tuple)) else [value]


def _map(function, value):
    if isinstance(value, Packed):
        buffer = function(value.buffer)
        return Packed({name: _map(function, value[name]) for name in sorted(value)}, buffer)
    if isinstance(value, dict):
        return {name: _map(function, value[name]) for name in sorted(value)}
    if isinstance(value, (list, tuple)):
        return type(value)([_map(function, item) for item in value])
    return function(value)


def _restore(like, values):
    """Return a tree like `like` with the iterator's values; what is packed stays what it is."""
    if isinstance(like, Packed):
        for _ in flatten(like):
            next(values)
        return like
    if isinstance(like, dict):
        return {name: _restore(like[name], values) for name in sorted(like)}
    if isinstance(like, (list, tuple)):
        return type(like)([_restore(item, values) for item in like])
    return next(values)


def _structure(value):
    if isinstance(value, dict):
        return type(value), [(name, _structure(value[name])) for name in sorted(value)]
    return [_structure(item) for item in value] if isinstance(value, (list, tuple)) else None
