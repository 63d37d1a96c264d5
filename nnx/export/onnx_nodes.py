"""A traced model as ONNX nodes: one table of what each array operation is there.

Convolutions are one product of patches with a matrix, in nnx; here they are `Conv` and `ConvTranspose`,
with the channels moved to where ONNX has them.
"""

from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from nnx.export.graph import ExportError, Symbol
from nnx.export.trace import Batch, Program

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
# As integers.
QUANTIFIERS = {"any": "ReduceMax", "all": "ReduceMin"}

FIRST, LAST = -(2**63), 2**63 - 1  # of a slice, where nothing is said


def data_type(dtype) -> int:
    """Return ONNX's number of a dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class Nodes:
    """Writes a program as ONNX nodes."""

    def __init__(self, program: Program):
        self.program = program
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.names: dict[Any, str] = {}
        self.taken: set[str] = set()
        self.path = ""
        self.loops: dict[Symbol, dict[int, str]] = {}
        self._batch = ""

    def graph(self, title: str) -> GraphProto:
        """Return the whole graph."""
        program = self.program
        for name, symbol in program.inputs:
            self.names[symbol] = self._unique(name)
        ends = [(self._unique(name), symbol) for name, symbol in program.outputs]
        self._batch = self.emit("Shape", self.names[program.inputs[0][1]], start=0, end=1, hint="batch")
        self._late = _fused(program.symbols)
        self.write(program.symbols)
        for name, symbol in ends:
            self.nodes.append(
                helper.make_node("Identity", [self.name(symbol)], [name], name=f"{name}/Identity")
            )
        inputs, outputs = (
            [self._info(name, symbol) for name, symbol in pairs]
            for pairs in ([(self.names[s], s) for _, s in program.inputs], ends)
        )
        used = {name for node in _all_nodes(self.nodes) for name in node.input}
        nodes = [
            node for node in self.nodes if used & {*node.output} or {*node.output} & {o.name for o in outputs}
        ]
        used = {name for node in _all_nodes(nodes) for name in node.input}
        constants = [tensor for name, tensor in self.constants.items() if name in used]
        return helper.make_graph(nodes, title, inputs, outputs, constants)

    def write(self, symbols: list[Symbol]) -> None:
        """Write the nodes of some Symbols, but for those that become part of another node."""
        for symbol in symbols:
            if symbol.op != "input" and symbol not in self._late:
                self.name(symbol)

    def name(self, symbol: Symbol) -> str:
        """Return the name of a Symbol's result, after writing its nodes."""
        if symbol not in self.names:
            before, self.path = self.path, symbol.path
            self.names[symbol] = self._lower(symbol)
            self.path = before
        return self.names[symbol]

    # Nodes and constants

    def emit(self, op: str, *inputs: str, hint: str = "", **attributes) -> str:
        """Add a node and return the name of its result."""
        result = self._unique(f"{self.path}/{hint or op}".strip("/"))
        self.nodes.append(helper.make_node(op, list(inputs), [result], name=result, **attributes))
        return result

    def constant(self, array, hint: str = "") -> str:
        """Return the name of an array that is the same for every batch."""
        array = np.asarray(array, order="C")
        key = (hint, array.tobytes(), array.dtype, array.shape)
        if key not in self.names:
            wanted = hint or (str(array) if array.ndim == 0 else "constant")
            name = self.names[key] = self._unique(wanted)
            self.constants[name] = numpy_helper.from_array(array, name)
        return self.names[key]

    def integers(self, values) -> str:
        """Return the name of a vector of whole numbers."""
        return self.constant(np.array(values, np.int64))

    def lengths(self, shape) -> str:
        """Return the name of a shape, parts of which may depend on the batch."""
        if not any(isinstance(n, Batch) for n in shape):
            return self.integers(shape)
        parts = [
            self.integers([n])
            if not isinstance(n, Batch)
            else self._batch
            if n.times == 1
            else self.emit("Mul", self._batch, self.integers([n.times]))
            for n in shape
        ]
        return self.emit("Concat", *parts, axis=0)

    def _unique(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name

    def _info(self, name: str, symbol: Symbol):
        shape = [
            n if not isinstance(n, Batch) else "batch" if n.times == 1 else f"{n.times} * batch"
            for n in self.program.shapes[symbol]
        ]
        return helper.make_tensor_value_info(name, data_type(symbol.dtype), shape)

    def value(self, value, dtype) -> str:
        """Return the name of an argument, converted to a dtype if it has another."""
        if isinstance(value, Symbol):
            name = self.name(value)
            return name if value.dtype == dtype else self.emit("Cast", name, to=data_type(dtype))
        if isinstance(value, (np.ndarray, np.generic)):
            hint = self.program.weight_name(value) if value.ndim else ""
            return self.constant(np.asarray(value, dtype), hint)
        return self.constant(np.asarray(value, dtype))

    # What each operation is

    def _lower(self, symbol: Symbol) -> str:
        op, given = symbol.op, symbol.arguments
        if op in LOGICAL and (op.startswith("logical") or symbol.dtype == bool):
            return self.emit(LOGICAL[op], *(self.value(v, np.bool_) for v in given))
        if op in COMPARISONS or op == "not_equal":
            dtype = _common(given)
            found = self.emit(COMPARISONS.get(op, "Equal"), *(self.value(v, dtype) for v in given))
            return self.emit("Not", found) if op == "not_equal" else found
        if op == "matmul" and _is_convolution(symbol):
            return self._convolution(symbol)
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
        found = dict(zip(("x", "axis"), symbol.arguments, strict=False)) | symbol.settings
        x, axis, keepdims = found.pop("x"), found.pop("axis", None), found.pop("keepdims", False)
        if found:
            raise ExportError(
                f"layer {symbol.path!r} cannot be exported to ONNX: {symbol.op} with {', '.join(found)}"
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
        found = self.emit("Div", *(self.value(v, np.float64) for v in (x, y)))
        return self.emit("Cast", self.emit("Floor", found), to=data_type(symbol.dtype))

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
        # ONNX leaves an axis as it is where 1 is asked for.
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
        """Return parts of axes: `cuts` are (start, stop, axis, step)."""
        starts, stops, axes, steps = (self.integers(part) for part in zip(*cuts, strict=True))
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

    # Convolutions

    def _convolution(self, symbol: Symbol) -> str:
        """Return the product of patches with a matrix, (batch * windows, filters)."""
        rows, matrix = symbol.arguments
        x, windows = rows.arguments[0].arguments
        found = self._conv(x, windows, matrix, symbol.dtype)
        return self.emit("Reshape", found, self.integers([-1, matrix.shape[1]]))

    def _op_patches(self, symbol, x, windows):
        return self._conv(x, windows, np.eye(symbol.shape[-1], dtype=symbol.dtype), symbol.dtype)

    def _conv(self, x: Symbol, windows, matrix, dtype) -> str:
        kernel = np.asarray(matrix, dtype).reshape((*windows.size, x.shape[-1], -1))
        rank = len(windows.size)
        kernel = self.constant(np.moveaxis(kernel, (-1, -2), (0, 1)), self._kernel_name(matrix))
        found = self.emit("Conv", self._first(self.value(x, dtype), rank), kernel, **_window(windows))
        return self._last(found, rank)

    def _op_from_patches(self, symbol, gradients, windows):
        rows, channels, rank = gradients, symbol.shape[-1], len(windows.size)
        if _is_product(gradients):
            rows, matrix = gradients.arguments[0].arguments
            name = self.emit(
                "Reshape",
                self.value(rows, symbol.dtype),
                self.integers([-1, *windows.counts, matrix.shape[0]]),
            )
        else:
            name, matrix = self.value(rows, symbol.dtype), np.eye(rows.shape[-1])
        kernel = np.asarray(matrix, symbol.dtype).reshape((-1, *windows.size, channels))
        kernel = self.constant(np.moveaxis(kernel, -1, 1), self._kernel_name(matrix))
        padded = [
            n + before + after for n, (before, after) in zip(windows.spatial, windows.padding, strict=True)
        ]
        extra = [
            n - (count - 1) * stride - length
            for n, count, stride, length in zip(
                padded, windows.counts, windows.strides, windows.reach, strict=True
            )
        ]
        found = self.emit(
            "ConvTranspose", self._first(name, rank), kernel, output_padding=extra, **_window(windows)
        )
        return self._last(found, rank)

    def _kernel_name(self, matrix) -> str:
        try:
            return self.program.weight_name(matrix)
        except KeyError:  # the matrix is one of ones
            return f"{self.path}/ones"

    def _first(self, name: str, rank: int) -> str:
        return self.emit("Transpose", name, perm=[0, rank + 1, *range(1, rank + 1)])

    def _last(self, name: str, rank: int) -> str:
        return self.emit("Transpose", name, perm=[0, *range(2, rank + 2), 1])

    # Loops

    def _op_scan(self, loop, carry, xs, *, body, inputs, results, reverse):
        starts = [self.value(c, i.dtype) for c, i in zip(carry, inputs, strict=False)]
        rows = [self.value(x, i.dtype) for x, i in zip(xs, inputs[len(carry) :], strict=True)]
        for symbol in inputs:
            self.names[symbol] = self._unique(f"{self.path}/step")
        around, self.nodes = self.nodes, []
        self.write(body)
        states = [self.emit("Identity", self.value(r, r.dtype)) for r in results[: len(carry)]]
        read = [i for i, r in enumerate(results) if r is not None]
        stacked = [self.emit("Identity", self.value(results[i], results[i].dtype)) for i in read]
        ends = [*results[: len(carry)], *(results[i] for i in read)]
        graph = helper.make_graph(
            self.nodes,
            f"{self.path}/loop",
            [self._info(self.names[symbol], symbol) for symbol in inputs],
            [
                helper.make_tensor_value_info(name, data_type(r.dtype), None)
                for name, r in zip([*states, *stacked], ends, strict=True)
            ],
        )
        self.nodes = around
        last = [self._unique(f"{self.path}/last") for _ in states]
        steps = [self._unique(f"{self.path}/steps") for _ in stacked]
        self.nodes.append(
            helper.make_node(
                "Scan", [*starts, *rows], [*last, *steps], name=self._unique(f"{self.path}/Scan"), body=graph,
                num_scan_inputs=len(rows), scan_input_directions=[int(reverse)] * len(rows),
                scan_output_directions=[int(reverse)] * len(steps),
            )
        )  # fmt: skip
        self.loops[loop] = dict(zip(read, steps, strict=True))
        return ""

    def _op_item(self, symbol, loop, number):
        return self.loops[loop][number]


def _window(windows) -> dict:
    """Return the attributes of a convolution."""
    pads = [before for before, _ in windows.padding] + [after for _, after in windows.padding]
    return {
        "kernel_shape": list(windows.size),
        "strides": list(windows.strides),
        "dilations": list(windows.dilation),
        "pads": pads,
    }


def _is_convolution(symbol: Symbol) -> bool:
    """Whether this is a product of patches, as rows, with a matrix of weights."""
    rows, matrix = symbol.arguments
    return (
        isinstance(matrix, np.ndarray)
        and matrix.ndim == 2
        and isinstance(rows, Symbol)
        and rows.op == "reshape"
        and isinstance(rows.arguments[0], Symbol)
        and rows.arguments[0].op == "patches"
        and rows.ndim == 2
    )


def _is_product(gradients) -> bool:
    """Whether these patches are rows times a matrix of weights."""
    product = gradients.arguments[0] if isinstance(gradients, Symbol) and gradients.op == "reshape" else None
    return (
        isinstance(product, Symbol)
        and product.op == "matmul"
        and isinstance(product.arguments[0], Symbol)
        and product.arguments[0].ndim == 2
        and isinstance(product.arguments[1], np.ndarray)
    )


def _fused(symbols: list[Symbol]) -> set[Symbol]:
    """Return the Symbols that are written only if something else than a convolution asks for them."""
    found = set()
    for symbol in symbols:
        if symbol.op == "patches" or (symbol.op == "reshape" and symbol.arguments[0].op == "patches"):
            found.add(symbol)
        elif symbol.op == "from_patches" and _is_product(symbol.arguments[0]):
            found |= {symbol.arguments[0], symbol.arguments[0].arguments[0]}
        elif symbol.op == "scan":
            found |= _fused(symbol.settings["body"])
    return found


def _common(values) -> np.dtype:
    """Return the dtype in which values are compared."""
    return np.result_type(*(v.dtype if hasattr(v, "dtype") else v for v in values))


def _all_nodes(nodes):
    """Yield nodes and those inside them; what a body gives back counts as read."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g.node)
