"""A graph of array operations, recorded while array code runs.

Array code calls the array-API namespace, a few methods of the backend, and operators. Given a `Symbol` in place
of an array, each call computes its result, and returns it as another Symbol that remembers the call. What does
not depend on a Symbol is computed as usual: in the graph it is a constant.

`nnx.graph.gradients` differentiates such a graph, and `nnx.export` writes it as ONNX or NumPy code.
"""

import contextlib
import operator
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np

from nnx.backend import Backend, joined

OPERATORS = {
    "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv,
    "floor_divide": operator.floordiv, "remainder": operator.mod, "pow": operator.pow, "matmul": operator.matmul,
    "bitwise_and": operator.and_, "bitwise_or": operator.or_, "bitwise_xor": operator.xor,
    "bitwise_left_shift": operator.lshift, "bitwise_right_shift": operator.rshift, "equal": operator.eq,
    "not_equal": operator.ne, "less": operator.lt, "less_equal": operator.le, "greater": operator.gt,
    "greater_equal": operator.ge, "negative": operator.neg, "abs": operator.abs,
    "bitwise_invert": operator.invert, "getitem": operator.getitem,
}  # fmt: skip
"""The operations that are operators of Python, by their name in the array-API standard."""

OF_BACKEND = ("pad", "patches", "from_patches", "unslice", "scatter_add")
"""The operations that are methods of the backend."""

NUMPY_NAMES = {
    "absolute": "abs", "arccos": "acos", "arccosh": "acosh", "arcsin": "asin", "arcsinh": "asinh",
    "arctan": "atan", "arctan2": "atan2", "arctanh": "atanh", "concatenate": "concat", "true_divide": "divide",
    "power": "pow", "left_shift": "bitwise_left_shift", "right_shift": "bitwise_right_shift",
    "invert": "bitwise_invert", "amax": "max", "amin": "min", "cumsum": "cumulative_sum", "around": "round",
    "rint": "round",
}  # fmt: skip
"""Functions of NumPy that have another name in the array-API standard."""

REDUCTIONS = {"add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min"}
"""What a reduction by a ufunc of NumPy is in the standard."""

METHODS = (
    "argmax", "argmin", "astype", "clip", "max", "mean", "min", "prod", "reshape", "round", "squeeze", "std",
    "sum", "take", "var",
)  # fmt: skip
"""Functions that most libraries also have as methods of their arrays."""


class GraphError(TypeError):
    """Array code does something that is not an operation on arrays; the message says what."""


class Symbol:
    """An array of a graph: the result of `op` on arguments, among which are other Symbols.

    Attributes
    ----------
    op : str
        A function of the array-API standard such as "matmul" or "linalg.inv", a method of the backend such as
        "pad", or one of "input", "getitem", "item" (of an operation with several results) and "scan".
    value : array
        The result.
    path : str
        The layer that computes it.
    """

    __array_priority__ = 1000.0  # CuPy defers to the operators of this class

    def __init__(self, graph: "Graph", op: str, arguments: tuple, settings: dict, value, path: str):
        self.graph, self.op, self.arguments, self.settings = graph, op, arguments, settings
        self.value, self.path = value, path

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape

    @property
    def dtype(self):
        return self.value.dtype

    @property
    def ndim(self) -> int:
        return self.value.ndim

    @property
    def size(self) -> int:
        return self.value.size

    @property
    def device(self):
        return getattr(self.value, "device", "cpu")  # a scalar of NumPy 2.0 has none

    @property
    def T(self) -> "Symbol":
        return self.graph.add("permute_dims", (self, tuple(range(self.ndim))[::-1]))

    @property
    def mT(self) -> "Symbol":
        return self.graph.add("matrix_transpose", (self,))

    def __array_namespace__(self, **_):
        return self.graph.namespace

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        name = ufunc.__name__
        if method == "reduce" and name in REDUCTIONS:
            name, settings = REDUCTIONS[name], {"axis": 0, **settings}
        elif method != "__call__":
            self.graph.refuse(f"it calls {name}.{method} of NumPy")
        dtype, graph = settings.pop("dtype", None), innermost(inputs)
        result = graph.add_by_name(name, inputs, settings)
        return result if dtype is None or result.dtype == dtype else graph.add("astype", (result, dtype))

    def __array_function__(self, function, types, inputs, settings):
        if function in (np.shape, np.ndim, np.size):
            return getattr(inputs[0], function.__name__)
        module = function.__module__.partition(".")[2]  # such as "linalg"
        name = f"{module}.{function.__name__}" if module else function.__name__
        return innermost(inputs).add_by_name(name, inputs, settings)

    def __getitem__(self, key):
        return self.graph.add("getitem", (self, key))

    def __getattr__(self, name: str):
        if name not in METHODS:
            raise AttributeError(
                f"an array inside a layer or loss has no attribute {name!r}, which not every library has: take the "
                f"functions of the namespace, ctx.xp, or of nnx.get_backend().xp"
            )

        def method(*arguments, **settings):
            if name == "reshape" and len(arguments) > 1:
                arguments = (arguments,)
            return self.graph.add(name, (self, *arguments), settings)

        return method

    def __len__(self):
        return self.shape[0]

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __pos__(self):
        return self

    def __bool__(self):
        return self.graph.truth(self)

    def _refuse_value(self, *_):
        self.graph.refuse(
            "it takes the value of an array as a number, through which no gradient flows: compute with arrays, or "
            "write stop_gradient(x)"
        )

    __int__ = __float__ = __index__ = _refuse_value

    def __array__(self, *_, **__):
        self.graph.refuse(
            "it hands an array to a library itself: take the functions of the namespace, ctx.xp, or in a Lambda xp "
            "of function(xp, x)"
        )

    def __setitem__(self, *_):
        self.graph.refuse("it writes into an array")

    def __repr__(self):
        return f"<array of shape {tuple(self.shape)}, {self.dtype}, of {self.op}>"

    __hash__ = object.__hash__


def _operator(name: str, swapped: bool = False):
    def method(self, *others):
        arguments = (*others, self) if swapped else (self, *others)
        return innermost(arguments).add(name, arguments)

    return method


for _sign, _name in {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "floordiv": "floor_divide",
    "mod": "remainder", "pow": "pow", "matmul": "matmul", "and": "bitwise_and", "or": "bitwise_or",
    "xor": "bitwise_xor", "lshift": "bitwise_left_shift", "rshift": "bitwise_right_shift",
}.items():  # fmt: skip
    setattr(Symbol, f"__{_sign}__", _operator(_name))
    setattr(Symbol, f"__r{_sign}__", _operator(_name, swapped=True))
for _sign, _name in {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal",
    "neg": "negative", "abs": "abs", "invert": "bitwise_invert",
}.items():  # fmt: skip
    setattr(Symbol, f"__{_sign}__", _operator(_name))


class Graph:
    """Symbols in the order of their creation, whose values are arrays of a backend.

    Where a function that is differentiated differentiates another one, the values of the inner graph are Symbols
    of the outer graph.
    """

    def __init__(self, backend: Backend):
        self.backend = backend
        self.level: int = backend.graph.level + 1 if isinstance(backend, GraphBackend) else 0
        self.namespace = GraphNamespace(self, "")
        self.symbols: list[Symbol] = []
        self.path = ""
        """The current layer."""

    def input(self, value) -> Symbol:
        """Return an array as an input of the graph."""
        return self.record("input", (), {}, value)

    def add(self, op: str, arguments: tuple, settings: dict | None = None) -> Any:
        """Return the result of an operation, recorded; of one with several results a tuple or list of them."""
        settings = settings or {}
        value = self.compute(op, self.plain(arguments), self.plain(settings))
        if not isinstance(value, (tuple, list)):
            return self.record(op, arguments, settings, value)
        several = self.record(op, arguments, settings, value)
        items = [self.record("item", (several, i), {}, item) for i, item in enumerate(value)]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)

    def add_by_name(self, name: str, arguments: tuple, settings: dict) -> Any:
        """Return the result of a function of a library, recorded under its name in the standard."""
        op = NUMPY_NAMES.get(name, name)
        if name == "dot" and all(getattr(array, "ndim", 0) in (1, 2) for array in arguments):
            op = "matmul"
        if settings.get("out") is not None:
            self.refuse(f"{name} writes into an array")
        try:
            operator.attrgetter(op)(self.backend.xp)
        except AttributeError:
            self.refuse(f"it calls {name}, which is no function of the namespace: take those of ctx.xp")
        return self.add(op, arguments, {k: v for k, v in settings.items() if v is not None})

    def record(self, op: str, arguments: tuple, settings: dict, value) -> Symbol:
        """Return a new Symbol with a given value."""
        self.symbols.append(Symbol(self, op, arguments, settings, value, self.path))
        return self.symbols[-1]

    def compute(self, op: str, arguments, settings) -> Any:
        """Return the result of an operation on values."""
        if op in OPERATORS:  # the operators never widen a dtype by a Python scalar
            return OPERATORS[op](*arguments)
        if op in OF_BACKEND:
            return getattr(self.backend, op)(*arguments, **settings)
        return operator.attrgetter(op)(self.backend.xp)(*arguments, **settings)

    def refuse(self, reason: str) -> NoReturn:
        """Raise the error of array code that cannot be recorded."""
        raise GraphError(reason)

    def truth(self, symbol: Symbol) -> bool:
        """Return the truth value of a Symbol."""
        return bool(symbol.value)

    def is_own(self, value) -> bool:
        """Whether a value is a Symbol of this graph."""
        return isinstance(value, Symbol) and value.graph is self

    def plain(self, value) -> Any:
        """Return arguments with each Symbol of this graph replaced by its value."""
        return mapped(lambda leaf: leaf.value if self.is_own(leaf) else leaf, value)

    @contextlib.contextmanager
    def inside(self, path: str) -> Iterator[None]:
        """Record the operations of this layer."""
        before, self.path = self.path, path
        try:
            yield
        finally:
            self.path = before

    @contextlib.contextmanager
    def body(self) -> Iterator[list[Symbol]]:
        """Collect Symbols in a separate list, the body of a loop."""
        before, self.symbols = self.symbols, []
        try:
            yield self.symbols
        finally:
            self.symbols = before


class GraphNamespace:
    """The namespace of a graph's backend, with functions that record calls on Symbols."""

    def __init__(self, graph: Graph, prefix: str):
        self._graph, self._prefix = graph, prefix

    def __getattr__(self, name: str):
        op = f"{self._prefix}{name}"
        function = operator.attrgetter(op)(self._graph.backend.xp)
        if name in ("linalg", "fft"):
            return GraphNamespace(self._graph, f"{name}.")
        if not callable(function) or isinstance(function, type):
            return function

        def call(*arguments, **settings):
            graph = innermost((arguments, settings))
            if graph is None or graph.level < self._graph.level:  # of outer graphs alone
                return function(*arguments, **settings)
            return graph.add(op, arguments, settings)

        return call


class GraphBackend(Backend):
    """A backend that records the operations on Symbols of a graph, and computes on the graph's own backend."""

    tile_bytes = dict.fromkeys(Backend.tile_bytes, 1 << 62)  # one tile, whatever the batch

    def __init__(self, graph: Graph):
        self.graph, self.xp = graph, graph.namespace
        self.name, self.dtypes = graph.backend.name, graph.backend.dtypes

    @property
    def base(self) -> Backend:
        return self.graph.backend.base

    def asarray(self, value, dtype=None):
        return value if isinstance(value, Symbol) else self.graph.backend.asarray(value, dtype)

    def to_numpy(self, array):
        if isinstance(array, Symbol):
            self.graph.refuse("it reads the value of an array")
        return self.graph.backend.to_numpy(array)

    def stop_gradient(self, x):
        return self.graph.backend.stop_gradient(x.value if self.graph.is_own(x) else x)

    def arange(self, count, dtype):
        return self.graph.backend.arange(count, dtype)

    def full_like(self, array, value):
        return self.graph.backend.full_like(self.graph.plain(array), value)

    def gather(self, array, index):
        if has_symbols((array, index)):
            return self.graph.add("take", (array, index), {"axis": 0})
        return self.graph.backend.gather(array, index)

    def scatter_add(self, indices, values, length):
        return self._recorded("scatter_add", indices, values, length)

    def pad(self, x, widths, value=0.0):
        return self._recorded("pad", x, tuple(map(tuple, widths)), value)

    def patches(self, x, windows):
        return self._recorded("patches", x, windows)

    def from_patches(self, gradients, windows):
        return self._recorded("from_patches", gradients, windows)

    def unslice(self, shape, parts, keys):
        return self._recorded("unslice", tuple(shape), tuple(parts), tuple(keys))

    def _recorded(self, op, *arguments):
        if has_symbols(arguments):
            return innermost(arguments).add(op, arguments)
        return getattr(self.graph.backend, op)(*arguments)

    def kernel(self, function, *arrays, overwrite=None):
        if has_symbols(arrays):
            return function(self.xp, *arrays)
        return self.graph.backend.kernel(function, *arrays, overwrite=overwrite)

    def scope(self, dtype):
        return self.graph.backend.scope(dtype)


class LoopGraphBackend(GraphBackend):
    """A GraphBackend that records a recurrence as one loop instead of all its time steps."""

    def scan(self, step, carry, xs, fixed=(), reverse=False):
        """Record a loop: its carry and xs, the body of one time step, and the Symbols that the body results in."""
        graph, steps = self.graph, xs[0].shape[0]
        if not has_symbols((carry, xs, fixed)):
            return graph.backend.scan(step, carry, xs, fixed, reverse)
        with graph.body() as body:
            inner = [graph.input(np.array(graph.plain(c))) for c in carry]
            slices = [graph.input(np.array(graph.plain(x)[0])) for x in xs]
            results = joined(self.xp, step.join, step(self.xp, *step.arguments(self, fixed, inner, slices)))
        settings = {"body": body, "inputs": [*inner, *slices], "results": list(results), "reverse": reverse}
        loop = graph.record("scan", (tuple(carry), tuple(xs)), settings, np.zeros(()))
        return tuple(
            graph.record("item", (loop, i), {}, np.repeat(graph.plain(result)[None], steps, axis=0))
            for i, result in enumerate(results)
        )


def has_symbols(value) -> bool:
    """Whether an argument, or an item in it, is a Symbol."""
    return any(isinstance(leaf, Symbol) for leaf in leaves(value))


def innermost(arguments) -> Any:
    """Return the innermost graph of the Symbols among some arguments, or None."""
    graphs = [leaf.graph for leaf in leaves(arguments) if isinstance(leaf, Symbol)]
    return max(graphs, key=lambda graph: graph.level, default=None)


def leaves(value) -> list:
    """Return the leaves of nested tuples, lists and dicts, these in the order of their keys."""
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (tuple, list)) else [value]


def mapped(function, value) -> Any:
    """Return nested tuples, lists and dicts with `function(leaf)` for each leaf."""
    if isinstance(value, (tuple, list)):
        items = [mapped(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: mapped(function, value[key]) for key in sorted(value)}
    return function(value)


def rebuilt(like, values) -> Any:
    """Return nested tuples, lists and dicts with new leaves, in the order of `leaves`."""
    values = iter(values)
    return mapped(lambda _: next(values), like)
