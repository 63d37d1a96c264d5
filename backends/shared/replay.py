"""Training steps compiled for eager libraries: the library calls of a step, without the layers' Python code.

A step of a small network costs what Python does around the arrays, not what the library computes. So the
step is traced twice while it runs (`nnx.graph.tracing`). If both traces have the same calls on the same
constants, the calls become the lines of a generated function (`nnx.graph.writer`), and the layers' own code
does not run again for arrays of these shapes. The results are the same bits. A step that differs between
the traces, or reads a value of an array, is not compiled.
"""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nnx.backends.shared.flat import Fixed, Packed, array_types
from nnx.backends.shared.trees import key_text, packing, unpacking

from nnx import log, tree
from nnx.backend import batch_of
from nnx.graph.tracing import NotTraceableError, Trace
from nnx.lru_cache import Recent

# Programs cached for one step function, one for each set of shapes.
MOST_PROGRAMS = 32


def is_on() -> bool:
    """Whether steps are compiled. NNX_REPLAY=0 turns it off, to debug layers."""
    return os.environ.get("NNX_REPLAY") != "0"


@dataclass
class NotCompiled:
    """A step that cannot be compiled."""

    reason: str


@dataclass
class Program:
    """The compilation of a step for arrays of certain shapes."""

    zeros: Any = None
    """The totals before the first step."""
    step: "Trace | CompiledStep | NotCompiled | None" = None
    """Its first trace, or the outcome."""


class Replay:
    """`run(carry, totals, rows, data, start, stop)` of `Backend.repeat`: compiles the step at its third call."""

    def __init__(self, backend, step: Callable, plain: Callable):
        self.backend, self.step, self.plain = backend, step, plain
        self.cache = Recent(MOST_PROGRAMS)

    @property
    def programs(self) -> list:
        """The traced and compiled steps."""
        return [program.step for program in self.cache.values.values() if program.step is not None]

    def __call__(self, carry, totals, rows, data, start, stop):
        program = self.cache.get(array_types([carry, data, rows]), Program)
        while start < stop:
            if totals is None:
                totals = program.zeros
            if isinstance(program.step, NotCompiled):
                return self.plain(carry, totals, rows, data, start, stop)
            if totals is None:
                carry, totals = self.plain(carry, None, rows, data, start, start + 1)
                program.zeros = tree.map(lambda total: self.backend.zero(total.shape, total.dtype), totals)
            elif isinstance(program.step, CompiledStep):
                return program.step.loop(carry, totals, rows, data, start, stop)
            else:
                carry, totals = self._trace_one(program, carry, totals, rows, data, start)
            start += 1
        return carry, totals

    def _trace_one(self, program: Program, carry, totals, rows, data, i):
        """Run step `i` and trace it; compile it if the trace equals the first one."""
        first = program.step
        arrays = filter(self.backend.is_array, flatten(carry))  # not a scalar, such as a state of shape ()
        before = {id(array): (array, array.copy()) for array in arrays}
        trace = Trace(self.backend)
        try:
            row = {name: rows[name][i] for name in sorted(rows)}
            inputs = [_map(trace.input, values) for values in ([carry, totals], row, data)]
            carry_out, sums = self.step(inputs[0][0], inputs[1], batch_of(self.backend, *inputs[1:]))
            outputs = [carry_out, self.backend.add(inputs[0][1], sums)]
            outcome: Any = trace
            if trace.refused:  # and the step has caught the error
                raise NotTraceableError(trace.refused)
            if not trace.end():
                outcome = NotCompiled("it writes into an array that it refers to")
            elif isinstance(first, Trace) and trace.same_as(first):
                outcome = CompiledStep(trace, [carry, totals], rows, data, outputs)
            elif first is not None:
                outcome = NotCompiled("it makes other calls each time")
            carry, totals = _restore([carry, totals], (leaf.value for leaf in flatten(outputs)))
        except Exception as error:  # the plain step raises a better error, if the step is wrong
            outcome = NotCompiled(f"{type(error).__name__}: {error}")
            for array, copy in before.values():
                array[...] = copy
            carry, totals = self.plain(carry, totals, rows, data, i, i + 1)
        program.step = outcome
        if isinstance(outcome, CompiledStep):
            log.debug("step on %s compiled: %d calls", self.backend.name, len(trace.calls))
        elif isinstance(outcome, NotCompiled):
            log.info("step on %s is not compiled: %s", self.backend.name, outcome.reason)
        return carry, totals


class CompiledStep:
    """A compiled step: `loop(carry, totals, rows, data, start, stop) -> (carry, totals)`."""

    def __init__(self, trace, carry, rows, data, carry_out):
        if _structure(carry) != _structure(carry_out):
            raise ValueError("a step that changes the structure of its carry")
        indices, space = itertools.count(), {}
        unpacked = unpacking(carry[0], "carry", indices, space) + unpacking(
            carry[1], "totals", indices, space
        )
        first_row = len(flatten(carry))
        unpacked += [f"r{next(indices)} = rows[{key_text(name, space)}]" for name in sorted(rows)]
        first_datum = first_row + len(rows)
        unpacked += unpacking(data, "data", indices, space)
        # If the carry changes in place only, the step returns the object that it was given.
        stays = [leaf.index for leaf in flatten(carry_out[0])] == [*range(len(flatten(carry[0])))]
        indices = itertools.count()
        packed = [
            packing(carry[0], "carry", indices, space),
            packing(carry[1], "totals", indices, space),
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


# Trees, which may also hold lists here. The buffer of a packed tree is its first leaf.


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
    """Return a tree like `like` with the iterator's values; a packed tree is returned unchanged."""
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
