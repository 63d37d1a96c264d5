"""Training steps compiled for libraries that run each call at once: the calls, without the layers.

A step of a small network costs what Python does around the arrays, not what the library does to
them. So the step is traced twice while it runs (`tracing`). If both times it made the same calls on
the same constants, these become the lines of a plain function (`writer`), and the layers' own code
is not run again for arrays of these shapes. The results are the same bits. A step that differs from
one time to the next, or looks at a value, runs as it stands.
"""

import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nnx import tree

from .flat import Packed
from .tracing import NotTraceableError, Trace, Traced

# Programs remembered for one step function, one for each set of shapes.
MOST_PROGRAMS = 32


def is_on() -> bool:
    """Whether steps are compiled: unless NNX_REPLAY=0, to follow one's layers in a debugger."""
    return os.environ.get("NNX_REPLAY") != "0"


@dataclass
class Plain:
    """Stands in place of a program for a step that runs as it stands."""

    reason: str


class Replay:
    """Runs many steps, as `Backend.repeat` says, and compiles what it has seen twice."""

    def __init__(self, backend, step: Callable, plain: Callable):
        self.backend, self.step, self.plain = backend, step, plain
        self.programs: dict[tuple, Program | Trace | Plain] = {}

    def __call__(self, carry, totals, rows, data, start, stop):
        key = _kinds([carry, data, rows])
        while start < stop:
            known = self.programs.get(key)
            if isinstance(known, Plain):
                return self.plain(carry, totals, rows, data, start, stop)
            if isinstance(known, Program):
                return known.run(carry, totals, rows, data, start, stop)
            carry, totals = self._trace_one(key, carry, totals, rows, data, start)
            start += 1
        return carry, totals

    def _trace_one(self, key, carry, totals, rows, data, i):
        """Run step `i`, and remember what is now known of steps like it."""
        earlier = self.programs.get(key)
        written = {id(leaf): (leaf, leaf.copy()) for leaf in flatten(carry)}
        trace = Trace(self.backend)
        try:
            row = {name: rows[name][i] for name in sorted(rows)}
            inputs = [_map(trace.input, part) for part in (carry, row, data)]
            carry_out, sums = self.step(*inputs)
            found: Program | Trace | Plain = trace
            if isinstance(earlier, Trace):
                if not trace.same_as(earlier):
                    raise NotTraceableError("it makes other calls each time")
                found = Program(trace, carry, rows, data, carry_out, sums)
            carry, sums = _restore(carry, (leaf.value for leaf in flatten(carry_out))), tree.map(_value, sums)
            totals = sums if totals is None else tree.map(operator.add, totals, sums)
        except Exception as error:  # the plain step knows best what is wrong, if anything
            found = Plain(f"{type(error).__name__}: {error}")
            for leaf, copy in written.values():
                leaf[...] = copy
            carry, totals = self.plain(carry, totals, rows, data, i, i + 1)
        self.programs[key] = found
        while len(self.programs) > MOST_PROGRAMS:
            del self.programs[next(iter(self.programs))]
        return carry, totals


class Program:
    """A compiled step: `loop(inputs, rows, totals, start, stop) -> (carry, totals)`, on flat lists."""

    def __init__(self, trace, carry, rows, data, carry_out, sums):
        if _structure(carry) != _structure(carry_out):
            raise ValueError("a step that changes the structure of its carry")
        self.names, self.zero = sorted(rows), trace.backend.zero
        self.sums = tree.map(lambda leaf: trace.values[leaf.index], sums)
        carried, fixed = len(flatten(carry)), len(flatten(data))
        self.loop = trace.backend.writer(
            trace,
            carry=range(carried),
            rows=range(carried, carried + len(rows)),
            data=range(carried + len(rows), carried + len(rows) + fixed),
            carry_out=[leaf.index for leaf in flatten(carry_out)],
            sums=[leaf.index for leaf in tree.leaves(sums)],
        ).loop()

    def run(self, carry, totals, rows, data, start, stop):
        """Run steps start, ..., stop - 1."""
        if totals is None:
            zero = self.zero
            totals = tree.map(lambda made: zero(made.shape, made.dtype), self.sums)
        rows = [rows[name] for name in self.names]
        carried, totals = self.loop([*flatten(carry), *flatten(data)], rows, tree.leaves(totals), start, stop)
        return _restore(carry, iter(carried)), tree.rebuild(self.sums, totals)


# Trees, here with lists, and with the buffer of what is packed as one more leaf.


def flatten(value) -> list:
    """Return the leaves of a tree of dicts and lists."""
    if isinstance(value, dict):
        own = [value.buffer] if isinstance(value, Packed) else []
        return own + [leaf for name in sorted(value) for leaf in flatten(value[name])]
    return [leaf for item in value for leaf in flatten(item)] if isinstance(value, list) else [value]


def _map(function, value):
    if isinstance(value, Packed):
        buffer = function(value.buffer)
        return Packed({name: _map(function, value[name]) for name in sorted(value)}, buffer)
    if isinstance(value, dict):
        return {name: _map(function, value[name]) for name in sorted(value)}
    return [_map(function, item) for item in value] if isinstance(value, list) else function(value)


def _restore(like, values):
    """Return a tree like `like` with the iterator's values; what is packed stays what it is."""
    if isinstance(like, Packed):
        for _ in flatten(like):
            next(values)
        return like
    if isinstance(like, dict):
        return {name: _restore(like[name], values) for name in sorted(like)}
    return [_restore(item, values) for item in like] if isinstance(like, list) else next(values)


def _structure(value):
    if isinstance(value, dict):
        return type(value), [(name, _structure(value[name])) for name in sorted(value)]
    return [_structure(item) for item in value] if isinstance(value, list) else None


def _kinds(value) -> Any:
    """Return what a program depends on: names, shapes, dtypes and layouts."""
    if isinstance(value, dict):
        return tuple((name, _kinds(value[name])) for name in sorted(value))
    if isinstance(value, list):
        is_column = bool(value) and isinstance(value[0], (int, float))
        return type(value[0]) if is_column else tuple(map(_kinds, value))
    return value.shape, value.dtype, value.flags.c_contiguous


def _value(leaf: Traced):
    return leaf.value
