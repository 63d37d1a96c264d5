"""The calls of a traced step, written out as a function.

For a layer with relu and plain gradient descent it is, in short,

    def loop(carry, totals, rows, data, start, stop):
        [v0, v1, v2] = carry['params'].arrays   # the flat buffer, bias and kernel in it
        r3 = rows['index']
        r4 = rows['rate_learning_rate']
        [v5, v6] = data['samples'].arrays
        v14 = empty(15)                         # the flat gradient
        o13 = v14[3:15].reshape((4, 3))         # where the kernel's lies in it
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

# Arrays below this many bytes are not worth a line that frees them.
SMALL = 1 << 16


class Writer:
    """Writes the loop over steps. Value number 7 of the trace is called v7."""

    def __init__(
        self, trace: Trace, carry, rows, data, carry_out, unpacked: list[str], packed: str, space: dict
    ):
        self.library, self.values, self.calls = trace.backend, trace.values, trace.calls
        self.carry, self.rows, self.carry_out = carry, rows, carry_out
        self.unpacked = unpacked  # lines that name the inputs
        self.packed = packed  # an expression of the results
        self.space = space  # what the function's text refers to
        self.names: dict[object, str] = {}  # the name of each thing in it
        self.unique = itertools.count()
        self.first_made = len(carry) + len(rows) + len(data)
        self.escaping = self._with_aliases(carry_out)
        self.overwritten = self._with_aliases(value for call in self.calls for value in call.writes)
        self.maker: dict[int, Call] = {}  # the call that makes a value, of those that are written
        # What is the same array in every step.
        self.fixed = {*data, *(v for v, out in zip(carry, carry_out, strict=True) if v == out)}
        self.constant: set[int] = set()  # what holds the same numbers in every step
        self.placed: set[int] = set()  # values that are written into a part of a flat array
        self.reads: Counter[int] = Counter()  # how many calls read a value, once that is known
        self.flat: dict[int, list[tuple[int, str]]] = {}  # flat arrays: parts to copy, and the lines that do
        self.before: list[str] = []
        self.body: list[str] = []

    def loop(self) -> Callable:
        """Return `loop(carry, totals, rows, data, start, stop) -> (carry, totals)`."""
        self._drop_repetitions()
        self.maker = {result: call for call in self.calls for result in call.results}
        for call in self.calls:
            if call.function is self.library.concatenate:
                self._make_flat(call)
        needed = self._needed()
        self.calls = self._ordered([c for c in self.calls if c.writes or needed & {*c.results}], needed)
        self.reads.update(v for call in self.calls for v in refs([call.arguments, call.settings]))
        last_use = self._last_use()
        for number, call in enumerate(self.calls):
            lines = self._lines(call)
            if self._is_fixed(call):
                self.fixed |= {*call.results}
                self.before += lines
            else:
                gone = [f"v{v}" for v in last_use.get(number, ()) if v not in self.fixed]
                self.body += lines + ([f"del {', '.join(gone)}"] if gone else [])
        text = self._text()
        exec(text, self.space)  # only names and numbers made here
        loop: Any = self.space["loop"]
        loop.__doc__ = text
        return loop

    def _with_aliases(self, values) -> set[int]:
        """Return values, and with those made in the step all that may lie in the same memory."""
        values = {*map(int, values)}
        memory = {self.values[value].memory for value in values}
        made = enumerate(self.values[self.first_made :], self.first_made)
        return values | {value for value, kind in made if kind.memory in memory}

    def _text(self) -> str:
        def listed(letter, numbers):
            return "[" + ", ".join(f"{letter}{n}" for n in numbers) + "]"

        changed = [(v, out) for v, out in zip(self.carry, self.carry_out, strict=True) if v != out]
        body = [f"v{n} = r{n}[i]" for n in self.rows] + self.body
        if changed:
            body.append(
                f"{listed('v', [v for v, _ in changed])} = {listed('v', [out for _, out in changed])}"
            )
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
        """Return the calls as they are to be written."""
        return calls

    def _drop_repetitions(self) -> None:
        """Let a call that has been made before, on the same values, stand for its repetition."""
        first, instead, kept, changeable = {}, {}, [], self.escaping | self.overwritten
        for call in self.calls:
            call = replace(
                call, arguments=_renamed(call.arguments, instead), settings=_renamed(call.settings, instead)
            )
            kept.append(call)
            if call.writes:
                first.clear()
            elif call.plan is None and len(call.results) == 1 and call.results[0] not in changeable:
                text = self._call_text(call)
                if text in first:
                    instead[call.results[0]] = first[text]
                    kept.pop()
                first.setdefault(text, call.results[0])
        self.calls = kept

    def _is_fixed(self, call: Call) -> bool:
        """Whether a call gives the same array in every step: a view of a weight, or ones."""
        if len(call.results) != 1 or call.writes or call.results[0] in self.escaping | self.overwritten:
            return False
        # Of the first argument of `ones_like` only the shape counts.
        is_made = call.function in self.library.made_from_shape
        read = refs([call.arguments[is_made:], call.settings])
        if read <= self.constant:
            self.constant.add(call.results[0])
            return True
        return self.values[call.results[0]].is_view and read <= self.fixed

    def _needed(self) -> set[int]:
        """Return the values that the results are made of."""
        needed = self.escaping | self.placed
        for call in reversed(self.calls):
            if needed & self.flat.keys() & {*call.results}:
                needed |= {part for part, _ in self.flat[call.results[0]]}
            elif call.writes or needed & {*call.results}:
                needed |= refs([call.arguments, call.settings])
        return needed

    def _last_use(self) -> dict[int, list[int]]:
        """Return the large values that are not needed after a call, for each call."""
        last, made = {}, {result for call in self.calls for result in call.results}
        for number, call in enumerate(self.calls):
            for value in refs([call.arguments, call.settings]):
                last[value] = number
        found: dict[int, list[int]] = {}
        for value, number in last.items():
            kind = self.values[value]
            if value in made and value not in self.escaping and kind.nbytes >= SMALL:
                found.setdefault(number, []).append(value)
        return found

    # The flat gradient

    def _make_flat(self, call: Call) -> None:
        """Let a flat array have the same memory in every step.

        A call that can write its result where it is told writes it into its part of the flat array
        at once; the other parts are copied.
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
        """Return the value that `part` is all of, if what makes it can write it anywhere."""
        maker = self.maker.get(part)
        if maker is not None and maker.function in self.library.reshapes:
            part = maker.arguments[0]
            maker = self.maker.get(part)
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
        is_number = bool(call.results) and isinstance(self.values[call.results[0]].dtype, type)
        return f"{text}.item()" if is_number else text

    def _kernel_lines(self, call: Call) -> list[str]:
        """Return the lines of a recorded kernel."""
        raise NotImplementedError

    def _value(self, value) -> str:
        """Return the text of an argument: a value's name, a number, or a name for anything else."""
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
        """Return the name under which the function finds something that has no text."""
        # `np.add.reduce` is made anew when it is looked up. Other objects that are equal may do different things.
        key = thing if isinstance(thing, (types.BuiltinMethodType, types.MethodType)) else id(thing)
        if key not in self.names:
            called = getattr(thing, "__name__", "")
            name = self.names[key] = f"{called if called.isidentifier() else 'c'}_{len(self.names)}"
            self.space[name] = thing
        return self.names[key]


def _renamed(value, instead: dict):
    """Return an argument that refers to other values."""
    if isinstance(value, Ref):
        return instead.get(value, value)
    if type(value) in (tuple, list):
        return type(value)([_renamed(item, instead) for item in value])
    return {name: _renamed(item, instead) for name, item in value.items()} if type(value) is dict else value


def refs(value) -> set[int]:
    """Return the numbers of all values that an argument refers to."""
    if isinstance(value, Ref):
        return {value}
    if type(value) is dict:
        value = list(value.values())
    return set().union(*map(refs, value)) if type(value) in (list, tuple) else set()
