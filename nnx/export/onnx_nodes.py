"""Array operations in ONNX: a table of their counterparts."""

import numpy as np

from nnx.export.onnx_windows import WindowWriter, is_convolution
from nnx.export.onnx_writer import data_type
from nnx.export.trace import Batch, ExportError
from nnx.graph.graph import Symbol

ARITHMETIC = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "pow": "Pow",
    "maximum": "Max", "minimum": "Min", "matmul": "MatMul",
}  # fmt: skip
COMPARISONS = {
    "equal": "Equal", "less": "Less", "less_equal": "LessOrEqual",
    "greater": "Greater", "greater_equal": "GreaterOrEqual",
}  # fmt: skip
LOGICAL = {
    "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor", "logical_not": "Not",
    "bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor", "bitwise_invert": "Not",
}  # fmt: skip
UNARY = {
    "abs": "Abs", "negative": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sign": "Sign",
    "floor": "Floor", "ceil": "Ceil", "round": "Round", "reciprocal": "Reciprocal",
    "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan",
    "sinh": "Sinh", "cosh": "Cosh", "tanh": "Tanh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh",
}  # fmt: skip
TESTS = {"isnan": "IsNaN", "isinf": "IsInf"}
REDUCTIONS = {
    "sum": "ReduceSum", "mean": "ReduceMean", "max": "ReduceMax", "min": "ReduceMin", "prod": "ReduceProd",
}  # fmt: skip
FILLED = {"zeros_like": 0, "ones_like": 1}
QUANTIFIERS = {"any": "ReduceMax", "all": "ReduceMin"}  # of integers

FIRST, LAST = -(2**63), 2**63 - 1  # the ends of a slice without limits


class Nodes(WindowWriter):
    """Writes a program as ONNX nodes."""

    def lower(self, symbol: Symbol) -> str:
        op, given = symbol.op, symbol.arguments
        if op in LOGICAL and (op.startswith("logical") or symbol.dtype == bool):
            return self.emit(LOGICAL[op], *(self.value(v, np.bool_) for v in given))
        if op in COMPARISONS or op == "not_equal":
            dtype = _common(given)
            name = self.emit(COMPARISONS.get(op, "Equal"), *(self.value(v, dtype) for v in given))
            return self.emit("Not", name) if op == "not_equal" else name
        if op == "matmul" and is_convolution(symbol):
            return self.convolution(symbol)
        if op in ARITHMETIC:
            return self.emit(ARITHMETIC[op], *(self.value(v, symbol.dtype) for v in given))
        if op in UNARY:
            return self.emit(UNARY[op], self.value(given[0], symbol.dtype))
        if op in TESTS:
            return self.emit(TESTS[op], self.name(given[0]))
        if op in REDUCTIONS or op in QUANTIFIERS:
            return self._reduction(symbol)
        if op in FILLED and not symbol.settings:
            shape = self.emit("Shape", self.name(given[0]))
            return self.emit("Expand", self.value(FILLED[op], symbol.dtype), shape)
        method = getattr(self, f"_op_{op}", None)
        if method is None:
            raise ExportError(
                f"layer {symbol.path!r} cannot be exported to ONNX: it calls {op}, which has no ONNX operation here"
            )
        return method(symbol, *given, **symbol.settings)

    def _reduction(self, symbol: Symbol) -> str:
        settings = dict(zip(("x", "axis"), symbol.arguments, strict=False)) | symbol.settings
        x, axis, keepdims = settings.pop("x"), settings.pop("axis", None), settings.pop("keepdims", False)
        if settings:
            raise ExportError(
                f"layer {symbol.path!r} cannot be exported to ONNX: {symbol.op} with {', '.join(settings)}"
            )
        logical = symbol.op in QUANTIFIERS
        name = self.value(x, np.int32 if logical else symbol.dtype)
        if logical and x.dtype != bool:
            name = self.emit("Cast", self.value(x, np.bool_), to=data_type(np.int32))
        axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, (tuple, list)) else (axis,)
        node = QUANTIFIERS[symbol.op] if logical else REDUCTIONS[symbol.op]
        name = self.emit(node, name, self.integers(axes), keepdims=int(keepdims))
        return self.emit("Cast", name, to=data_type(np.bool_)) if logical else name

    def _op_expm1(self, symbol, x):
        return self.emit("Sub", self.emit("Exp", self.value(x, symbol.dtype)), self.value(1.0, symbol.dtype))

    def _op_log1p(self, symbol, x):
        return self.emit("Log", self.emit("Add", self.value(x, symbol.dtype), self.value(1.0, symbol.dtype)))

    def _op_square(self, symbol, x):
        return self.emit("Mul", self.name(x), self.name(x))

    def _op_floor_divide(self, symbol, x, y):
        quotient = self.emit("Div", *(self.value(v, np.float64) for v in (x, y)))
        return self.emit("Cast", self.emit("Floor", quotient), to=data_type(symbol.dtype))

    def _op_clip(self, symbol, x, min=None, max=None):
        name = self.value(x, symbol.dtype)
        name = name if min is None else self.emit("Max", name, self.value(min, symbol.dtype))
        return name if max is None else self.emit("Min", name, self.value(max, symbol.dtype))

    def _op_where(self, symbol, condition, x, y):
        return self.emit(
            "Where", self.value(condition, np.bool_), *(self.value(v, symbol.dtype) for v in (x, y))
        )

    def _op_astype(self, symbol, x, dtype, copy=True):
        return self.value(x, symbol.dtype)

    def _op_argmax(self, symbol, x, axis=None, keepdims=False, op="ArgMax"):
        name = self.name(x)
        if axis is None:
            name, axis = self.emit("Reshape", name, self.integers([-1])), 0
        return self.emit(op, name, axis=axis, keepdims=int(keepdims))

    def _op_argmin(self, symbol, x, axis=None, keepdims=False):
        return self._op_argmax(symbol, x, axis, keepdims, "ArgMin")

    def _op_reshape(self, symbol, x, shape):
        shape = self.program.shapes[symbol]
        if sum(isinstance(n, Batch) for n in shape) == 1:
            shape = [-1 if isinstance(n, Batch) else n for n in shape]
        return self.emit("Reshape", self.name(x), self.lengths(shape))

    def _op_permute_dims(self, symbol, x, axes):
        return self.emit("Transpose", self.name(x), perm=[axis % symbol.ndim for axis in axes])

    def _op_matrix_transpose(self, symbol, x):
        n = symbol.ndim
        return self._op_permute_dims(symbol, x, (*range(n - 2), n - 1, n - 2))

    def _op_expand_dims(self, symbol, x, axis=0):
        return self.emit("Unsqueeze", self.name(x), self.integers([axis]))

    def _op_squeeze(self, symbol, x, axis):
        axes = axis if isinstance(axis, (tuple, list)) else [axis]
        return self.emit("Squeeze", self.name(x), self.integers(axes))

    def _op_broadcast_to(self, symbol, x, shape):
        own = self.program.shapes[x]
        given = (None,) * (len(shape) - len(own)) + own
        # ONNX keeps the length of an axis if the new one is 1.
        shape = [1 if n == before else n for n, before in zip(shape, given, strict=True)]
        return self.emit("Expand", self.name(x), self.lengths(shape))

    def _op_concat(self, symbol, arrays, axis=0):
        names = [self.value(v, symbol.dtype) for v in arrays]
        if axis is None:
            names, axis = [self.emit("Reshape", name, self.integers([-1])) for name in names], 0
        return self.emit("Concat", *names, axis=axis)

    def _op_stack(self, symbol, arrays, axis=0):
        axis %= symbol.ndim
        names = [self.value(v, symbol.dtype) for v in arrays]
        return self.emit(
            "Concat", *(self.emit("Unsqueeze", n, self.integers([axis])) for n in names), axis=axis
        )

    def _op_take(self, symbol, x, indices, axis=0):
        indices = indices if isinstance(indices, (Symbol, np.ndarray)) else np.asarray(indices)
        return self.emit("Gather", self.value(x, symbol.dtype), self.value(indices, indices.dtype), axis=axis)

    def _op_flip(self, symbol, x, axis=None):
        axes = range(x.ndim) if axis is None else axis if isinstance(axis, (tuple, list)) else [axis]
        return self._slice(self.name(x), [(LAST, FIRST, a, -1) for a in axes])

    def _op_tile(self, symbol, x, repetitions):
        return self.emit("Tile", self.name(x), self.integers(repetitions))

    def _op_pad(self, symbol, x, widths, value=0.0):
        pads = [before for before, _ in widths] + [after for _, after in widths]
        return self.emit("Pad", self.name(x), self.integers(pads), self.value(value, symbol.dtype))

    # Indices

    def _slice(self, name: str, cuts) -> str:
        """Return slices of axes: `cuts` are (start, stop, axis, step)."""
        starts, stops, axes, steps = map(self.integers, zip(*cuts, strict=True))
        return self.emit("Slice", name, starts, stops, axes, steps)

    def _op_getitem(self, symbol, x, key):
        keys = list(key) if isinstance(key, tuple) else [key]
        count = sum(k is not None and k is not ... for k in keys)
        rest = [slice(None)] * (x.ndim - count)
        places = [i for i, k in enumerate(keys) if k is ...]
        place = places[0] if places else len(keys)
        keys = [*keys[:place], *rest, *keys[place + 1 :]]
        axes = [k for k in keys if k is not None]
        cuts, taken = [], []
        for axis, k in enumerate(axes):
            if isinstance(k, slice):
                if any(isinstance(end, (Batch, Symbol)) for end in (k.start, k.stop, k.step)):
                    raise ExportError(
                        f"layer {symbol.path!r} cannot be exported to ONNX: it cuts the batch into parts"
                    )
                if k != slice(None):
                    step = 1 if k.step is None else k.step
                    ends = (0, LAST) if step > 0 else (LAST, FIRST)
                    start, stop = (
                        e if v is None else v for v, e in zip((k.start, k.stop), ends, strict=True)
                    )
                    cuts.append((start, stop, axis, step))
            else:
                taken.append((axis, k))
        if sum(not isinstance(k, int) for _, k in taken) > 1 or any(
            str(getattr(k, "dtype", "")) == "bool" for _, k in taken
        ):
            raise ExportError(
                f"layer {symbol.path!r} cannot be exported to ONNX: it takes elements by masks or several arrays"
            )
        name = self._slice(self.name(x), cuts) if cuts else self.name(x)
        for axis, k in reversed(taken):
            index = self.constant(np.int64(k)) if isinstance(k, int) else self.value(k, k.dtype)
            name = self.emit("Gather", name, index, axis=axis)
        kept = [k for k in keys if not isinstance(k, int)]
        new = [axis for axis, k in enumerate(kept) if k is None]
        return self.emit("Unsqueeze", name, self.integers(new)) if new else name


def _common(values) -> np.dtype:
    """Return the dtype in which values are compared."""
    return np.result_type(*(v.dtype if hasattr(v, "dtype") else v for v in values))
