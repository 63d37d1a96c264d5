"""Compiled steps on NumPy: small kernels written out, and the quicker ways to say the same."""

from dataclasses import replace

import numpy as np

from nnx.graph.recording import Value, cast, where_into
from nnx.graph.tracing import Call, Ref
from nnx.graph.writer import Writer

_OPERATORS = {np.add: "+", np.subtract: "-", np.multiply: "*", np.bitwise_xor: "^", np.true_divide: "/"}


class NumpyWriter(Writer):
    """Writes calls of NumPy."""

    def _call_text(self, call: Call) -> str:
        call = self._over_a_product(call)
        function, given = call.function, [self._value(argument) for argument in call.arguments]
        out = f"o{call.results[0]}" if call.results and call.results[0] in self.placed else None
        if function is np.dot:
            return f"{given[0]}.dot({', '.join([given[1], out] if out else given[1:])})"
        if function in _OPERATORS and not call.settings and self._are_numbers(call):
            return f"{given[0]} {_OPERATORS[function]} {given[1]}"
        if is_reduction(function) and len(given) == 1 and call.settings.keys() <= {"axis", "keepdims"}:
            axis, keepdims = call.settings.get("axis", 0), call.settings.get("keepdims", False)
            return f"{self._name(function)}({given[0]}, {axis!r}, None, {out}, {keepdims!r})"
        return super()._call_text(call)

    def _over_a_product(self, call: Call) -> Call:
        """Let a large kernel write over a matrix product that nothing else reads: less memory to go through."""
        if call.function != self.library.run_kernel or call.arguments[1] is not None:
            return call
        function, _, *arrays = call.arguments
        for number, argument in enumerate(arrays):
            if isinstance(argument, Ref) and arrays.count(argument) == 1 and self._is_read_once(argument):
                mine, other = (self.values[v] for v in (argument, call.results[0]))
                if (mine.shape, mine.dtype) == (other.shape, other.dtype):
                    return replace(call, arguments=(function, number, *arrays))
        return call

    def _is_read_once(self, value: int) -> bool:
        """Whether a value is a matrix product, in memory of its own, that one call alone reads."""
        is_product = value in self.maker and self.maker[value].function is np.dot
        return is_product and self.reads[value] == 1 and value not in self.escaping | self.placed | self.fixed

    def _are_numbers(self, call: Call) -> bool:
        """Whether Python's operator does what the ufunc does, and faster: on numbers of NumPy."""
        kinds = [self.values[a] if isinstance(a, Ref) else a for a in call.arguments]
        if any(isinstance(kind, np.ndarray) or getattr(kind, "is_array", False) for kind in kinds):
            return False
        return call.function is not np.true_divide or isinstance(self.values[call.results[0]].dtype, np.dtype)

    def _kernel_lines(self, call: Call) -> list[str]:
        """Return the calls of a small kernel, each on the whole array."""
        plan, unique = call.plan, next(self.unique)
        result = call.results[0] if call.results else None
        given = {i: self._value(argument) for i, argument in enumerate(call.arguments)}
        lines = []
        for op in plan.before:
            texts = [given[int(v)] if isinstance(v, Value) else self._value(v) for v in op.arguments]
            given[op.result] = f"p{unique}_{op.result}"
            lines.append(f"{given[op.result]} = {self._operation(op.function, texts, op.dtype)}")
        text = {("given", i): name for i, name in given.items()}
        text |= {("buffer", k): f"b{unique}_{k}" for k in range(len(plan.buffers))}
        shape = self.values[call.writes[0] if result is None else result].shape
        text |= {("buffer", k): self._full(shape, n, plan.buffers[k]) for k, n in plan.filled.items()}
        text |= {("result", k): given.get(i, f"v{result}") for k, i in enumerate(plan.into)}
        exists = {given[i] for i in plan.into if i is not None}
        for function, arguments, place in plan.calls:
            like = plan.dtype_at(place if function is where_into else arguments[0])
            if not isinstance(like, np.dtype):
                like = plan.dtype_at(arguments[-1])
            texts = [self._number(a[1], like) if a[0] == "number" else text[a] for a in arguments]
            if text[place] in exists:
                lines.append(f"{self._name(function)}({', '.join(texts)}, out={text[place]})")
            else:
                dtype = plan.dtype_at(place)
                lines.append(f"{text[place]} = {self._operation(function, texts, dtype)}")
                exists.add(text[place])
        if call.results and plan.into[0] is not None:
            lines.append(f"v{result} = {text['result', 0]}")
        return lines

    def _number(self, number, like) -> str:
        """Return a number beside an array as an array itself, which NumPy is faster to take."""
        if not isinstance(like, np.dtype) or like.kind not in ("f" if isinstance(number, float) else "fiu"):
            return self._value(number)
        return self._full((), number, like)

    def _full(self, shape, number, dtype) -> str:
        """Return the name of an array that is full of a number."""
        key = (shape, number, str(number), dtype)
        if key not in self.names:
            self.names[key] = f"n_{len(self.names)}"
            self.space[self.names[key]] = np.full(shape, number, dtype)
        return self.names[key]

    def _operation(self, function, texts: list[str], dtype) -> str:
        """Return an operation that makes a new array, or a number."""
        if function is cast:
            return f"{texts[0]}.astype({self._name(dtype)})"
        if function is where_into:
            return f"{self._name(np.where)}({', '.join(texts)})"
        if isinstance(dtype, type) and function in _OPERATORS and function is not np.true_divide:
            return f"{texts[0]} {_OPERATORS[function]} {texts[1]}"
        text = f"{self._name(function)}({', '.join(texts)})"
        return f"{text}.item()" if isinstance(dtype, type) else text


def is_reduction(function) -> bool:
    """Whether this is the `reduce` of a ufunc."""
    return getattr(function, "__name__", "") == "reduce" and isinstance(function.__self__, np.ufunc)
