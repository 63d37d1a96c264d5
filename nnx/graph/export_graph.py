"""The graph of a model's operations, recorded while it runs.

A layer is a pure function that calls the array API on `ctx.xp`, and a few methods of the backend. On a
`GraphBackend`, each call on a `Symbol`, an array that depends on the model's input, returns another Symbol
that records the call. What depends only on weights is computed immediately: the graph holds its result.
"""

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from nnx.backend import Backend, as_backend, joined


class ExportError(ValueError):
    """A model cannot be exported; the message names the layer and the reason."""


NUMPY = (
    "it calls a function of an array library itself: take those of the namespace, ctx.xp, or in a Lambda xp of "
    "function(xp, x)"
)


class Symbol:
    """An array of a graph: the result of `op` on arguments, among which are other Symbols.

    Attributes
    ----------
    op : str
        A function of the array-API standard, or one of "input", "getitem", "pad", "patches",
        "from_patches", "unslice", "scan" and "item".
    value : array
        The result for a batch of zeros, which gives shape and dtype.
    path : str
        The layer that computes it.
    """

    __array_ufunc__ = None  # NumPy arrays defer to the operators of this class

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
    def device(self) -> str:
        return "cpu"

    @property
    def T(self) -> "Symbol":
        return self.graph.add("permute_dims", (self, tuple(range(self.ndim))[::-1]))

    def __getitem__(self, key):
        return self.graph.add("getitem", (self, key))

    def __len__(self):
        return len(self.value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __neg__(self):
        return self.graph.add("negative", (self,))

    def __pos__(self):
        return self

    def __abs__(self):
        return self.graph.add("abs", (self,))

    def __invert__(self):
        return self.graph.add("bitwise_invert", (self,))

    def _refuse(self, *_):
        raise ExportError("it looks at the values of its input, which are not known when a model is exported")

    __bool__ = __int__ = __float__ = __index__ = _refuse

    def __array__(self, *_, **__):
        raise ExportError(NUMPY)

    def __setitem__(self, *_):
        raise ExportError("it writes into an array")

    __hash__ = object.__hash__


def _operator(name: str, swapped: bool = False):
    def method(self, other):
        return self.graph.add(name, (other, self) if swapped else (self, other))

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
}.items():  # fmt: skip
    setattr(Symbol, f"__{_sign}__", _operator(_name))


class Graph:
    """Symbols in the order of their creation."""

    def __init__(self):
        self.numpy: Backend = as_backend("numpy")
        self.symbols: list[Symbol] = []
        self.path = ""
        """The current layer."""

    def add(self, op: str, arguments: tuple, settings: dict | None = None) -> Symbol:
        """Return the result of an operation, recorded."""
        settings = settings or {}
        return self.record(op, arguments, settings, self._run(op, plain(arguments), plain(settings)))

    def record(self, op: str, arguments: tuple, settings: dict, value) -> Symbol:
        """Return a new Symbol with a given value."""
        self.symbols.append(Symbol(self, op, arguments, settings, value, self.path))
        return self.symbols[-1]

    def _run(self, op: str, arguments, settings):
        if op == "getitem":
            return operator.getitem(*arguments)
        if op in ("pad", "patches", "from_patches", "unslice"):
            return getattr(self.numpy, op)(*arguments, **settings)
        return np.asarray(getattr(self.numpy.xp, op)(*arguments, **settings))

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
    """NumPy's namespace with functions that record calls on Symbols."""

    def __init__(self, graph: Graph):
        self._graph = graph

    def __getattr__(self, name: str):
        function = getattr(self._graph.numpy.xp, name)
        if not callable(function) or isinstance(function, type):
            return function

        def call(*arguments, **settings):
            if not has_symbols((arguments, settings)):
                return function(*arguments, **settings)
            return self._graph.add(name, arguments, settings)

        return call


class GraphBackend(Backend):
    """A backend that records its operations."""

    name = "export"
    tile_bytes = dict.fromkeys(Backend.tile_bytes, 1 << 62)  # one tile, whatever the batch

    def __init__(self, graph: Graph):
        self.graph, self.xp = graph, GraphNamespace(graph)

    def asarray(self, value, dtype=None):
        return value if isinstance(value, Symbol) else np.asarray(value, dtype)

    def to_numpy(self, array):
        return np.array(plain(array))

    def arange(self, count, dtype):
        return np.arange(count, dtype=dtype)

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
            return self.graph.add(op, arguments)
        return getattr(self.graph.numpy, op)(*arguments)

    def scan(self, step, carry, xs, fixed=(), reverse=False):
        """Record a loop: its carry and xs, the body of one time step, and the Symbols that the body results in."""
        graph, steps = self.graph, xs[0].shape[0]
        if not has_symbols((carry, xs, fixed)):
            return graph.numpy.scan(step, carry, xs, fixed, reverse)
        with graph.body() as body:
            inner = [graph.record("input", (), {}, np.array(plain(c))) for c in carry]
            slices = [graph.record("input", (), {}, np.array(plain(x)[0])) for x in xs]
            results = joined(self.xp, step.join, step(self.xp, *step.arguments(self, fixed, inner, slices)))
        settings = {"body": body, "inputs": [*inner, *slices], "results": list(results), "reverse": reverse}
        loop = graph.record("scan", (tuple(carry), tuple(xs)), settings, np.zeros(()))
        return tuple(
            graph.record("item", (loop, i), {}, np.repeat(plain(result)[None], steps, axis=0))
            for i, result in enumerate(results)
        )


def plain(value) -> Any:
    """Return arguments with each Symbol replaced by its value."""
    return mapped(lambda leaf: leaf.value if isinstance(leaf, Symbol) else leaf, value)


def has_symbols(value) -> bool:
    """Whether any argument depends on the model's input."""
    return any(isinstance(leaf, Symbol) for leaf in leaves(value))


def leaves(value) -> list:
    """Return the leaves of nested tuples, lists and dicts."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for item in value for leaf in leaves(item)] if isinstance(value, (tuple, list)) else [value]


def mapped(function, value) -> Any:
    """Return nested tuples, lists and dicts with `function(leaf)` for each leaf."""
    if isinstance(value, (tuple, list)):
        return type(value)([mapped(function, item) for item in value])
    if isinstance(value, dict):
        return {name: mapped(function, item) for name, item in value.items()}
    return function(value)
