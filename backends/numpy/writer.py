"""Compiled steps on NumPy: the operations of small kernels inline, and faster forms of some calls."""

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
        if function in _OPERATORS and not call.settings and self._are_scalars(call):
            return f"{given[0]} {_OPERATORS[function]} {given[1]}"
        if is_reduction(function) and len(given) == 1 and call.settings.keys() <= {"axis", "keepdims"}:
            axis, keepdims = call.settings.get("axis", 0), call.settings.get("keepdims", False)
            return f"{self._name(function)}({given[0]}, {axis!r}, None, {out}, {keepdims!r})"
        return super()._call_text(call)

    def _over_a_product(self, call: Call) -> Call:
        """Let a large kernel overwrite a matrix product that nothing else reads, which saves memory traffic."""
        if call.function != self.library.run_kernel or call.arguments[1] is not None:
            return call
        function, _, *arrays = call.arguments
        for i, argument in enumerate(arrays):
            if isinstance(argument, Ref) and arrays.count(argument) == 1 and self._is_read_once(argument):
                product, result = (self.values[v] for v in (argument, call.results[0]))
                if (product.shape, product.dtype) == (result.shape, result.dtype):
                    return replace(call, arguments=(function, i, *arrays))
        return call

    def _is_read_once(self, value: int) -> bool:
        """Whether a value is a matrix product in its own memory that is read by a single call."""
        is_product = value in self.makers and self.makers[value].function is np.dot
        return is_product and self.reads[value] == 1 and value not in self.escaping | self.placed | self.fixed

    def _are_scalars(self, call: Call) -> bool:
        """Whether all arguments are scalars: then Python's operator is faster than the ufunc, with equal results."""
        kinds = [self.values[a] if isinstance(a, Ref) else a for a in call.arguments]
        if any(isinstance(kind, np.ndarray) or getattr(kind, "is_array", False) for kind in kinds):
            return False
        return call.function is not np.true_divide or isinstance(self.values[call.results[0]].dtype, np.dtype)

    def _kernel_lines(self, call: Call) -> list[str]:
        """Return the operations of a small kernel, each on the whole array."""
        plan, unique = call.plan, next(self.unique)
        result = call.results[0] if call.results else None
        given = {i: self._value(argument) for i, argument in enumerate(call.arguments)}
        lines = []
        for op in plan.setup:
            texts = [given[int(v)] if isinstance(v, Value) else self._value(v) for v in op.arguments]
            given[op.result] = f"p{unique}_{op.result}"
            lines.append(f"{given[op.result]} = {self._operation(op.function, texts, op.dtype)}")
        text = {("given", i): name for i, name in given.items()}
        text |= {("buffer", k): f"b{unique}_{k}" for k in range(len(plan.buffers))}
        shape = self.values[call.writes[0] if result is None else result].shape
        text |= {
            ("buffer", k): self._full(shape, scalar, plan.buffers[k]) for k, scalar in plan.filled.items()
        }
        text |= {("result", k): given.get(i, f"v{result}") for k, i in enumerate(plan.into)}
        exists = {given[i] for i in plan.into if i is not None}
        for function, arguments, place in plan.calls:
            like = plan.dtype_at(place if function is where_into else arguments[0])
            if not isinstance(like, np.dtype):
                like = plan.dtype_at(arguments[-1])
            texts = [self._scalar(a[1], like) if a[0] == "scalar" else text[a] for a in arguments]
            if text[place] in exists:
                lines.append(f"{self._name(function)}({', '.join(texts)}, out={text[place]})")
            else:
                dtype = plan.dtype_at(place)
                lines.append(f"{text[place]} = {self._operation(function, texts, dtype)}")
                exists.add(text[place])
        if call.results and plan.into[0] is not None:
            lines.append(f"v{result} = {text['result', 0]}")
        return lines

    def _scalar(self, scalar, like) -> str:
        """Return a scalar operand of an array as an array of shape (), which is faster in NumPy."""
        if not isinstance(like, np.dtype) or like.kind not in ("f" if isinstance(scalar, float) else "fiu"):
            return self._value(scalar)
        return self._full((), scalar, like)

    def _full(self, shape, scalar, dtype) -> str:
        """Return the name of a constant array filled with a scalar."""
        key = (shape, scalar, str(scalar), dtype)
        if key not in self.names:
            self.names[key] = f"n_{len(self.names)}"
            self.space[self.names[key]] = np.full(shape, scalar, dtype)
        return self.names[key]

    def _operation(self, function, texts: list[str], dtype) -> str:
        """Return an operation that gives a new array, or a scalar."""
        if function is cast:
            return f"{texts[0]}.astype({self._name(dtype)})"
        if function is where_into:
            return f"{self._name(np.where)}({', '.join(texts)})"
        if isinstance(dtype, type) and function in _OPERATORS and function is not np.true_divide:
            return f"{texts[0]} {_OPERATORS[function]} {texts[1]}"
        text = f"{self._name(function)}({', '.join(texts)})"
        return f"{text}.item()" if isinstance(dtype, type) else text


def is_reduction(function) -> bool:
    """Whether a function is the `reduce` of a ufunc."""
    return getattr(function, "__name__", "") == "reduce" and isinstance(function.__self__, np.ufunc)
