"""The base of the NumPy and CuPy backends: kernels recorded once, and steps compiled from traces.

Both libraries are eager. In a step that is traced, a kernel is recorded as one call, with a plan of its
operations; see `replay`.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

from nnx.backends.shared import replay
from nnx.backends.shared.flat import FlatBackend, positional, view_as

from nnx import tree
from nnx.graph.tracing import Traced, trace_of
from nnx.graph.writer import Writer


class EagerBackend(FlatBackend):
    """A backend whose steps are compiled by tracing them."""

    replays: bool
    writer: type[Writer]
    empty: Callable
    concatenate: Callable
    reshapes: tuple
    """Functions, or names of methods, that return a view of another shape if possible."""
    made_from_shape: tuple
    """Functions that depend only on the shape and dtype of their first argument, such as `ones_like`."""

    def repeat(self, step):
        plain = super().repeat(step)
        return replay.Replay(self, step, plain) if self.replays else plain

    def translate(self, error):
        # CuPy raises these, on NumPy too: it handles an operation of which one array is its own.
        text = str(error)
        match = re.search(r"Unsupported type <class '(.+?)'>|expected cupy\S+, got ([\w.]+)\)", text)
        if isinstance(error, TypeError) and match:
            return TypeError(f"{match[1] or match[2]} and an array of CuPy in one operation")
        if isinstance(error, TypeError) and text.startswith("Implicit conversion to a NumPy array"):
            return TypeError("an array of CuPy was given to a function of NumPy")
        return super().translate(error)

    # For traces

    def is_array(self, value) -> bool:
        """Whether a value is an array of this library."""
        raise NotImplementedError

    def share_memory(self, a, b) -> bool:
        """Whether two arrays may share memory."""
        raise NotImplementedError

    def native(self, function):
        """Return this library's function for a NumPy ufunc of the same name."""
        return function

    def run_without_writing(self, function, given, named) -> Any:
        """Return `function(*given, **named)`; raise an error if it writes into an array, if that is detected."""
        return function(*given, **named)

    def can_write(self, function) -> bool:
        """Whether a function takes `out`, the array for its result."""
        raise NotImplementedError

    def zero(self, shape, dtype) -> Any:
        """Return the zeros that totals of this shape start from."""
        raise NotImplementedError

    def plan(self, function, arguments, into) -> Any:
        """Return the recorded operations of a kernel, if a compiled step may run them separately, else None."""
        raise NotImplementedError

    def traced(self, function, *arguments) -> Any:
        """Return `function(*arguments)`, recorded as one call if the step is traced."""
        trace = trace_of(arguments)
        return function(*arguments) if trace is None else trace.call(function, arguments)

    def pad(self, x, widths, value=0.0):
        return self.traced(self._pad, x, widths, value)

    def _pad(self, x, widths, value):
        lengths = list(zip(x.shape, widths, strict=True))
        padded = self.empty(tuple(n + before + after for n, (before, after) in lengths), x.dtype)
        padded.fill(value)
        padded[tuple(slice(before, before + n) for n, (before, _) in lengths)] = x
        return padded

    def unslice(self, shape, parts, keys):
        return self.traced(self._unslice, tuple(shape), tuple(parts), tuple(keys))

    def _unslice(self, shape, parts, keys):
        total = self.zero(shape, parts[0].dtype)
        for part, key in zip(parts, keys, strict=True):
            total[key] += part
        return total

    # Kernels

    def kernel(self, function, *arrays, overwrite=None):
        trace = trace_of(arrays)
        if trace is None:
            return self.run_kernel(function, overwrite, *arrays)
        if overwrite is not None and type(arrays[overwrite]) is not Traced:
            overwrite = None  # a constant, which the next step reads again
        writes = () if overwrite is None else (arrays[overwrite],)
        plan = self.plan(function, arrays, (overwrite,))
        if plan is None:
            return trace.call(self.run_kernel, (function, overwrite, *arrays), writes=writes)
        run = functools.partial(self.run_kernel, function, overwrite)
        return trace.call(function, arrays, writes=writes, plan=plan, run=run)

    def run_kernel(self, function, overwrite, *arrays):
        """Run a kernel on arrays of this library; see `kernel`."""
        raise NotImplementedError

    def scan(self, step, carry, xs, fixed=(), reverse=False):
        arguments = step, tuple(carry), tuple(xs), tuple(fixed), reverse
        trace = trace_of(arguments)
        # All time steps are one call of a compiled step.
        return self.run_scan(*arguments) if trace is None else trace.call(self.run_scan, arguments)

    def run_scan(self, step, carry, xs, fixed, reverse):
        """Run a recurrence on arrays of this library; see `scan`.

        Each kernel writes its results into the stacked arrays, which saves a copy.
        """
        times, count, stacks, places, run = range(xs[0].shape[0]), len(carry), [], [], None
        for t in reversed(times) if reverse else times:
            arguments = step.arguments(self, fixed, carry, [x[t] for x in xs])
            if run is None:
                shape, dtypes, run = self.kernel_into(step, arguments, sum(step.join))
                firsts = [dtypes[sum(step.join[:k])] for k in range(len(step.join))]
                stacks = [
                    self.empty((len(times), *shape[:-1], shape[-1] * parts), dtype)
                    for parts, dtype in zip(step.join, firsts, strict=True)
                ]
                places = [
                    (stack, slice(k * shape[-1], (k + 1) * shape[-1])) if parts > 1 else (stack, None)
                    for stack, parts in zip(stacks, step.join, strict=True)
                    for k in range(parts)
                ]
            run(arguments, [stack[t] if part is None else stack[t, ..., part] for stack, part in places])
            carry = tuple(stack[t] for stack in stacks[:count])
        return tuple(stacks)

    def kernel_into(self, function, arguments, count: int) -> tuple:
        """Return (shape, dtypes, run) of a kernel with `count` results of one shape.

        `run(arguments, results)` writes the results for arguments like these into arrays.
        """
        samples = function(self.xp, *arguments)

        def run(arguments, results):
            for result, value in zip(results, function(self.xp, *arguments), strict=True):
                result[...] = value

        return samples[0].shape, [value.dtype for value in samples], run

    def scatter_add(self, indices, values, length):
        return self.traced(self.run_scatter_add, indices, values, length)

    def run_scatter_add(self, indices, values, length):
        """Add up rows on arrays of this library; see `scatter_add`."""
        raise NotImplementedError

    def update_in_place(self, function, buffers, scalars, overwrite):
        rule, arguments, into = (
            positional(function, tuple(scalars)),
            (*buffers, *scalars.values()),
            tuple(overwrite),
        )
        trace = trace_of(arguments)
        if trace is None:
            self.run_update(rule, into, *arguments)
            return
        writes = tuple(arguments[i] for i in into)
        plan = self.plan(rule, arguments, into)
        if plan is None:
            trace.call(self.run_update, (rule, into, *arguments), writes=writes)
        else:
            run = functools.partial(self.run_update, rule, into)
            trace.call(rule, arguments, writes=writes, plan=plan, run=run)

    def all_reduce(self, communicator, trees, scale=None):
        flat = self.xp.concat(
            [self.xp.reshape(leaf, (-1,)) for values in trees for leaf in tree.leaves(values)]
        )
        if scale is not None:
            flat = flat * scale
        trace = trace_of((flat,))
        if trace is None:
            communicator.all_reduce(flat)
        else:
            trace.call(communicator.all_reduce, (flat,), writes=(flat,))
        reduced, start = [], 0
        for values in trees:
            stop = start + sum(math.prod(leaf.shape) for leaf in tree.leaves(values))
            reduced.append(view_as(values, flat[start:stop]))
            start = stop
        return reduced

    def run_update(self, rule, into, *arguments) -> None:
        """Run `rule(xp, *arguments)` and write its results into the arguments of the indices `into`."""
        raise NotImplementedError
