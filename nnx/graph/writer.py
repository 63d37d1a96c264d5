"""The calls of a traced step, as the generated code of one function.

For a layer with relu and plain gradient descent it is, abridged,

    def loop(carry, totals, rows, data, start, stop):
        [v0, v1, v2] = carry['params'].arrays   # the flat buffer, and bias and kernel, views of it
        r3 = rows['index']
        r4 = rows['rate_learning_rate']
        [v5, v6] = data['samples'].arrays
        v14 = empty(15)                         # the flat gradient
        o13 = v14[3:15].reshape((4, 3))         # the kernel's part of it
        for i in range(start, stop):
            v3 = r3[i]
            v7 = v5.take(v3, axis=0)
            v8 = matmul(v7, v2)
            add(v8, v1, v8)
            maximum(v8, 0.0, v8)
            ...
            v13 = matmul(v12, v11, out=o13)
            ...
        return carry, {}
"""

import itertools
import math
import types
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nnx.graph.tracing import Call, Ref, Trace

# Smaller arrays, in bytes, are not freed explicitly.
SMALL = 1 << 16


class Writer:
    """Writes the loop over steps. The value of index 7 in the trace is called v7.

    Attributes
    ----------
    calls : list of Call
        The calls to write, without repetitions of one call and without those whose results nothing needs.
    makers : dict of int to Call
        The call that computes each value.
    reads : Counter
        How many calls read each value.
    escaping, overwritten : set of int
        The values, with all that share their memory, that the step returns, and that calls write into.
    fixed, constant : set of int
        The values that are the same array in every step, and those whose elements are the same, too.
    placed : set of int
        The values that are written into a part of a flat array.
    flat : dict of int to list of (int, str)
        The flat arrays; for each, the parts that are copied into it, and the lines that do it.
    """

    def __init__(
        self, trace: Trace, carry, rows, data, carry_out, unpacked: list[str], packed: str, space: dict
    ):
        self.library, self.values = trace.backend, trace.values
        self.carry, self.rows, self.carry_out = carry, rows, carry_out
        self.unpacked = unpacked  # lines that name the inputs
        self.packed = packed  # an expression of the results
        self.space = space  # the globals of the generated function
        self.names: dict[object, str] = {}  # of the objects in `space`
        self.unique = itertools.count()
        self.first_computed = len(carry) + len(rows) + len(data)
        self.fixed = {*data, *(v for v, out in zip(carry, carry_out, strict=True) if v == out)}
        self.constant: set[int] = set()
        self.placed: set[int] = set()
        self.flat: dict[int, list[tuple[int, str]]] = {}
        self.before: list[str] = []  # lines before the loop
        self.body: list[str] = []
        self.escaping = self._with_aliases(carry_out)
        self.overwritten = self._with_aliases(value for call in trace.calls for value in call.writes)
        calls = self._without_repetitions(trace.calls)
        self.makers = {result: call for call in calls for result in call.results}
        for call in calls:
            if call.function is self.library.concatenate:
                self._make_flat(call)
        needed = self._needed(calls)
        self.calls = self._ordered([c for c in calls if c.writes or needed & {*c.results}], needed)
        self.reads = Counter(v for call in self.calls for v in refs([call.arguments, call.settings]))

    def loop(self) -> Callable:
        """Return `loop(carry, totals, rows, data, start, stop) -> (carry, totals)`."""
        last_use = self._last_use()
        for i, call in enumerate(self.calls):
            lines = self._lines(call)
            if self._is_fixed(call):
                self.fixed |= {*call.results}
                self.before += lines
            else:
                unneeded = [f"v{v}" for v in last_use.get(i, ()) if v not in self.fixed]
                self.body += lines + ([f"del {', '.join(unneeded)}"] if unneeded else [])
        text = self._text()
        exec(text, self.space)  # the text holds only names and scalars from here
        loop: Any = self.space["loop"]
        loop.__doc__ = text
        return loop

    def _with_aliases(self, values) -> set[int]:
        """Return values, and all values computed in the step that may share their memory."""
        values = {*map(int, values)}
        memory = {self.values[value].memory for value in values}
        computed = enumerate(self.values[self.first_computed :], self.first_computed)
        return values | {value for value, kind in computed if kind.memory in memory}

    def _text(self) -> str:
        def listed(values):
            return "[" + ", ".join(f"v{value}" for value in values) + "]"

        changed = [(v, out) for v, out in zip(self.carry, self.carry_out, strict=True) if v != out]
        body = [f"v{n} = r{n}[i]" for n in self.rows] + self.body
        if changed:
            body.append(f"{listed(v for v, _ in changed)} = {listed(out for _, out in changed)}")
        lines = [
            *self.unpacked,
            *self.before,
            "for i in range(start, stop):",
            *(f"    {line}" for line in body),
            f"return {self.packed}",
        ]
        return "\n".join(
            ["def loop(carry, totals, rows, data, start, stop):", *(f"    {line}" for line in lines)]
        )

    def _ordered(self, calls: list[Call], needed: set[int]) -> list[Call]:
        """Return the calls in the order in which they are written."""
        return calls

    def _without_repetitions(self, calls) -> list[Call]:
        """Return the calls without those that repeat an earlier one on the same values."""
        first, instead, kept, changeable = {}, {}, [], self.escaping | self.overwritten
        for call in calls:
            call = replace(
                call, arguments=_renamed(call.arguments, instead), settings=_renamed(call.settings, instead)
            )
            kept.append(call)
            if call.writes:
                first.clear()
            elif call.plan is None and len(call.results) == 1 and call.results[0] not in changeable:
                text = Writer._call_text(self, call)
                if text in first:
                    instead[call.results[0]] = first[text]
                    kept.pop()
                first.setdefault(text, call.results[0])
        return kept

    def _is_fixed(self, call: Call) -> bool:
        """Whether a call gives the same array in every step, such as a view of a weight, or ones."""
        if len(call.results) != 1 or call.writes or call.results[0] in self.escaping | self.overwritten:
            return False
        # `ones_like` depends only on the shape of its first argument.
        skipped = int(call.function in self.library.made_from_shape)
        read = refs([call.arguments[skipped:], call.settings])
        if read <= self.constant:
            self.constant.add(call.results[0])
            return True
        return self.values[call.results[0]].is_view and read <= self.fixed

    def _needed(self, calls) -> set[int]:
        """Return the values that the results depend on."""
        needed = self.escaping | self.placed
        for call in reversed(calls):
            if needed & self.flat.keys() & {*call.results}:
                needed |= {part for part, _ in self.flat[call.results[0]]}
            elif call.writes or needed & {*call.results}:
                needed |= refs([call.arguments, call.settings])
        return needed

    def _last_use(self) -> dict[int, list[int]]:
        """Return the large values that each call, by index, is the last to read."""
        last, computed = {}, {result for call in self.calls for result in call.results}
        for i, call in enumerate(self.calls):
            for value in refs([call.arguments, call.settings]):
                last[value] = i
        values: dict[int, list[int]] = {}
        for value, i in last.items():
            is_large = self.values[value].nbytes >= SMALL
            if value in computed and value not in self.escaping and is_large:
                values.setdefault(i, []).append(value)
        return values

    # The flat gradient

    def _make_flat(self, call: Call) -> None:
        """Give a concatenated array the same memory in every step.

        A call that takes `out` writes its result directly into its part of the flat array; the other parts
        are copied.
        """
        (flat,), parts = call.results, call.arguments[0]
        kinds = [self.values[part] for part in parts]
        if call.settings or flat in self.escaping | self.overwritten or any(len(k.shape) != 1 for k in kinds):
            return
        dtype = self.values[flat].dtype
        self.before.append(
            f"v{flat} = {self._name(self.library.empty)}({self.values[flat].shape}, {self._name(dtype)})"
        )
        self.fixed.add(flat)
        copies, start = [], 0
        for part, kind in zip(parts, kinds, strict=True):
            stop = start + kind.shape[0]
            source = self._source(part, dtype)
            if source is None or source in self.placed:
                copies.append((part, f"v{flat}[{start}:{stop}] = v{part}"))
            else:
                self.before.append(
                    f"o{source} = v{flat}[{start}:{stop}].reshape({self.values[source].shape})"
                )
                self.placed.add(source)
            start = stop
        self.flat[flat] = copies

    def _source(self, part: int, dtype) -> int | None:
        """Return the value that `part` is a reshape of, if the call that computes it takes `out`."""
        maker = self.makers.get(part)
        if maker is not None and maker.function in self.library.reshapes:
            part = maker.arguments[0]
            maker = self.makers.get(part)
        if maker is None or maker.plan is not None or part in self.escaping | self.overwritten:
            return None
        kind = self.values[part]
        can_write = self.library.can_write(maker.function)
        return part if can_write and kind.is_array and kind.is_contiguous and kind.dtype == dtype else None

    # Lines

    def _lines(self, call: Call) -> list[str]:
        if call.results and call.results[0] in self.flat:
            return [line for _, line in self.flat[call.results[0]]]
        if call.plan is not None:
            return self._kernel_lines(call)
        results = ", ".join(f"v{result}" for result in call.results) + "," * call.unpacks
        return [f"{results} = {self._call_text(call)}" if results else self._call_text(call)]

    def _call_text(self, call: Call) -> str:
        """Return a call as an expression."""
        function, library = call.function, self.library
        given = [self._value(argument) for argument in call.arguments]
        named = [f"{name}={self._value(value)}" for name, value in call.settings.items()]
        if function == "T":
            return f"{given[0]}.T"
        if function == "__getitem__":
            return f"{given[0]}[{given[1]}]"
        if isinstance(function, str):
            return f"{given[0]}.{function}({', '.join(given[1:] + named)})"
        if function in library.made_from_shape:
            kind = self.values[call.arguments[0]]
            given[0] = f"{self._name(library.empty)}({kind.shape}, {self._name(kind.dtype)})"
        if call.results and call.results[0] in self.placed:
            named.append(f"out=o{call.results[0]}")
        text = f"{self._name(function)}({', '.join(given + named)})"
        is_scalar = bool(call.results) and isinstance(self.values[call.results[0]].dtype, type)
        return f"{text}.item()" if is_scalar else text

    def _kernel_lines(self, call: Call) -> list[str]:
        """Return the lines of a recorded kernel."""
        raise NotImplementedError

    def _value(self, value) -> str:
        """Return the text of an argument: a value's name, a literal, or a name for any other object."""
        if isinstance(value, Ref):
            return f"v{int(value)}"
        if type(value) is tuple:
            return "(" + "".join(f"{self._value(item)}, " for item in value) + ")"
        if type(value) is list:
            return "[" + ", ".join(map(self._value, value)) + "]"
        if type(value) is dict:
            return "{" + ", ".join(f"{name!r}: {self._value(item)}" for name, item in value.items()) + "}"
        is_plain = value is None or type(value) in (bool, int, str)
        return (
            repr(value) if is_plain or (type(value) is float and math.isfinite(value)) else self._name(value)
        )

    def _name(self, thing) -> str:
        """Return the name of an object in the globals of the generated function."""
        # `np.add.reduce` is a new object at each lookup. Other objects that are equal may do different things.
        key = thing if isinstance(thing, (types.BuiltinMethodType, types.MethodType)) else id(thing)
        if key not in self.names:
            called = getattr(thing, "__name__", "")
            name = self.names[key] = f"{called if called.isidentifier() else 'c'}_{len(self.names)}"
            self.space[name] = thing
        return self.names[key]


def _renamed(value, instead: dict):
    """Return an argument with its values replaced as in `instead`."""
    if isinstance(value, Ref):
        return instead.get(value, value)
    if type(value) in (tuple, list):
        return type(value)([_renamed(item, instead) for item in value])
    return {name: _renamed(item, instead) for name, item in value.items()} if type(value) is dict else value


def refs(value) -> set[int]:
    """Return all values in an argument."""
    if isinstance(value, Ref):
        return {value}
    if type(value) is dict:
        value = list(value.values())
    return set().union(*map(refs, value)) if type(value) in (list, tuple) else set()
