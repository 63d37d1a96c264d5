"""A model traced for export: its operations for batches of any size.

The model is run on batches of two sizes. A length that differs between the runs, such as one in a reshape,
must be a multiple of the batch size, and becomes a `Batch`. If anything else differs, the model cannot be
exported.
"""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnx import tree
from nnx.backend import as_backend
from nnx.context import Context
from nnx.graph.graph import Graph, LoopGraphBackend, Symbol, leaves
from nnx.layers.base import Layer, run
from nnx.layers.containers import Chain
from nnx.registry import snake_case
from nnx.shapes import is_single, map_shapes

SIZES = (2, 3)


class ExportError(ValueError):
    """A model cannot be exported; the message names the layer and the reason."""


class ExportGraph(Graph):
    """A graph on NumPy, of a model that runs on zeros."""

    def __init__(self):
        super().__init__(as_backend("numpy"))

    def compute(self, op, arguments, settings):
        value = super().compute(op, arguments, settings)
        return value if isinstance(value, tuple) else np.asarray(value)

    def truth(self, symbol):
        self.refuse("it looks at the values of its input, which are not known when a model is exported")


class ExportBackend(LoopGraphBackend):
    """The backend of a model that is exported."""

    def to_numpy(self, array):
        return np.array(self.graph.plain(array))

    def stop_gradient(self, x):
        return x


@dataclass(frozen=True)
class Batch:
    """A length of `times` times the size of the batch."""

    times: int


@dataclass
class ModelGraph:
    """The graph of a model.

    Attributes
    ----------
    inputs, outputs : list of (str, Symbol)
        The inputs and outputs with their names.
    symbols : list of Symbol
        In an order of computation. Lengths in their arguments may be a `Batch`.
    shapes : dict of Symbol to tuple
        With a `Batch` for a length that depends on the batch.
    weights : dict of str to array
        The parameters, and arrays computed from them, that the Symbols refer to.
    in_shape, out_shape : Shape
        The shapes of one sample.
    categories : list of int or None
        For each input of category indices, the number of categories.
    """

    inputs: list[tuple[str, Symbol]]
    outputs: list[tuple[str, Symbol]]
    symbols: list[Symbol]
    shapes: dict[Symbol, tuple]
    weights: dict[str, np.ndarray]
    in_shape: Any
    out_shape: Any
    categories: list[int | None]
    _names: dict[int, str]

    def weight_name(self, array) -> str:
        """Return the name of an array that is the same for every batch."""
        return self._names[id(array)]


def trace(model) -> ModelGraph:
    """Return the graph of a built model, for inference.

    Raises
    ------
    ExportError
        If a layer does something that is not a graph of array operations; the message names the layer.
    """
    in_shape = model._built_shape()
    with model.backend.scope(model.dtype):
        params, state = (tree.map(model.backend.to_numpy, t) for t in (model.params, model.state))
    runs = [_run(model, params, state, in_shape, size) for size in SIZES]
    pairs = _Pairs(*[(outputs, graph) for _, outputs, graph in runs])
    inputs, outputs, _ = runs[0]
    out_shape = model.output_shape
    model_graph = ModelGraph(
        inputs=_named(inputs, in_shape, "input"),
        outputs=_named(outputs, out_shape, "output"),
        symbols=pairs.symbols,
        shapes=pairs.shapes,
        weights={},
        in_shape=in_shape,
        out_shape=out_shape,
        categories=_flat(model.network.categories, in_shape),
        _names={},
    )
    known = {"/".join(path): tree.at(t, path) for t in (params, state) for path in tree.paths(t) if path}
    _name_weights(model_graph, known)
    return model_graph


def _run(model, params, state, in_shape, size: int):
    """Return the inputs and outputs of one run on a batch of zeros, and the graph."""
    graph = ExportGraph()
    zeros = map_shapes(lambda shape: np.zeros((size, *shape), model.weight_dtype), in_shape)
    zeros = model.as_input(zeros, in_shape)  # integers where the model takes category indices
    inputs = tree.map(graph.input, zeros)
    ctx = Context(ExportBackend(graph), state=state)
    ctx.observer = functools.partial(_in_graph, graph)
    with np.errstate(all="ignore"):
        outputs, _ = run(model.network, ctx, params, inputs)
    if not all(isinstance(y, Symbol) for y in leaves(outputs)):
        raise ExportError("the model cannot be exported: an output does not depend on its input")
    return inputs, outputs, graph


def _in_graph(graph: Graph, layer: Layer, ctx, compute):
    """Return `compute()`, with the layer's path in the graph's Symbols and in errors: an observer of layers."""
    if isinstance(layer, Chain):
        return compute()
    path = ctx.path[1:] or layer.name or snake_case(type(layer).__name__)
    with graph.inside(path):
        try:
            return compute()
        except Exception as error:
            if getattr(error, "names_layer", False):
                raise
            named = ExportError(f"layer {path!r} ({type(layer).__name__}) cannot be exported: {error}")
            vars(named)["names_layer"] = True
            raise named from error


def _named(values, shape, name: str) -> list[tuple[str, Any]]:
    """Return (name, leaf) of arrays of this shape: a single array has the given name, several their keys."""
    if is_single(shape):
        return [(name, values)]
    is_dict = isinstance(shape, dict)
    keys = {
        key: str(key) if is_dict else f"{name}_{key}" for key in (shape if is_dict else range(len(shape)))
    }
    prefix = "" if name in ("input", "output") or not is_dict else f"{name}/"
    return [pair for key, k in keys.items() for pair in _named(values[key], shape[key], prefix + k)]


def _flat(categories, shape) -> list[int | None]:
    """Return the number of categories, or None, for each array of this shape."""
    if is_single(shape):
        return [categories]
    keys = shape if isinstance(shape, dict) else range(len(shape))
    return [
        count for key in keys for count in _flat(None if categories is None else categories[key], shape[key])
    ]


class _Pairs:
    """Two runs compared Symbol by Symbol; the first becomes valid for any batch size."""

    def __init__(self, first, second):
        self.shapes: dict[Symbol, tuple] = {}
        self.twin: dict[Symbol, Symbol] = {}
        self.symbols = self._unify(
            *(needed(graph.symbols, leaves(outputs)) for outputs, graph in (first, second))
        )

    def _unify(self, ours: list[Symbol], others: list[Symbol]) -> list[Symbol]:
        for a, b in zip(ours, others, strict=False):
            path = a.path or b.path
            if a.op != b.op:
                raise _differs(path, f"{a.op} of one and {b.op} of the other")
            self.twin[a] = b
            if a.op == "scan":
                mine, theirs = (_trimmed(loop, symbols) for loop, symbols in ((a, ours), (b, others)))
                mine["body"] = self._unify(*(needed(s["body"], s["results"]) for s in (mine, theirs)))
            else:
                a.settings = self._value(a.settings, b.settings, path)
            a.arguments = self._value(a.arguments, b.arguments, path)
            self.shapes[a] = self._value(a.shape, b.shape, path)
        if len(ours) != len(others):
            raise _differs("", f"{len(ours)} operations and {len(others)}")
        return ours

    def _value(self, a, b, path: str) -> Any:
        if isinstance(a, Symbol):
            if self.twin.get(a) is b:
                return a
            raise _differs(path, "results of other operations")
        if type(a) is type(b):
            if isinstance(a, (tuple, list)) and len(a) == len(b):
                return type(a)([self._value(x, y, path) for x, y in zip(a, b, strict=True)])
            if isinstance(a, dict) and a.keys() == b.keys():
                return {name: self._value(a[name], b[name], path) for name in a}
            if isinstance(a, slice):
                ends = [
                    self._value(x, y, path)
                    for x, y in zip((a.start, a.stop, a.step), (b.start, b.stop, b.step), strict=True)
                ]
                return slice(*ends)
            if isinstance(a, (np.ndarray, np.generic)):
                if (
                    a.shape == b.shape
                    and a.dtype == b.dtype
                    and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
                ):
                    return a
                raise _differs(
                    path, f"an array {a.shape} and an array {b.shape} that is made without the input"
                )
            if hasattr(a, "size") and hasattr(a, "strides"):  # Windows
                self._value(vars(a), vars(b), path)
                return a
            if a == b or (a != a and b != b):
                return a
            if isinstance(a, int) and a % SIZES[0] == 0 and a // SIZES[0] * SIZES[1] == b:
                return Batch(a // SIZES[0])
        raise _differs(path, f"{a} and {b}")


def _trimmed(loop: Symbol, symbols: list[Symbol]) -> dict:
    """Return the settings of a loop without the results that nothing reads."""
    read = {s.arguments[1] for s in symbols if s.op == "item" and s.arguments[0] is loop}
    states = len(loop.arguments[0])
    results = loop.settings["results"]
    loop.settings["results"] = [r if i < states or i in read else None for i, r in enumerate(results)]
    return loop.settings


def _differs(path: str, what: str) -> ExportError:
    layer = f"layer {path!r}" if path else "the model"
    return ExportError(
        f"{layer} cannot be exported: it computes something else for a batch of {SIZES[0]} samples and one of "
        f"{SIZES[1]}, {what}"
    )


def needed(symbols: list[Symbol], results: list) -> list[Symbol]:
    """Return the inputs, and the Symbols that some results depend on, in their order."""
    wanted = {leaf for leaf in results if isinstance(leaf, Symbol)}
    for symbol in reversed(symbols):
        if symbol in wanted:
            wanted |= set(operands(symbol))
    return [symbol for symbol in symbols if symbol in wanted or symbol.op == "input"]


def operands(symbol: Symbol) -> list[Symbol]:
    """Return the Symbols that one is computed from; for a loop, also those outside of it that its body reads."""
    symbols = [leaf for leaf in leaves(symbol.arguments) if isinstance(leaf, Symbol)]
    if symbol.op == "scan":
        body = symbol.settings["body"]
        inside = {leaf for inner in body for leaf in operands(inner)} | {
            leaf for leaf in symbol.settings["results"] if isinstance(leaf, Symbol)
        }
        return symbols + list(inside - set(body))
    return symbols + [leaf for leaf in leaves(symbol.settings) if isinstance(leaf, Symbol)]


def _name_weights(model_graph: ModelGraph, known: dict[str, np.ndarray]) -> None:
    """Name each array that the Symbols refer to: like the weight, if it is one or a view of one."""
    names = model_graph._names
    used: set[str] = set()

    def visit(symbol: Symbol):
        inner = symbol.settings.get("body", [])
        settings = {} if symbol.op == "scan" else symbol.settings
        for leaf in leaves((symbol.arguments, settings)):
            if not isinstance(leaf, (np.ndarray, np.generic)) or id(leaf) in names:
                continue
            source = next((n for n, w in known.items() if np.shares_memory(leaf, w)), None)
            name = source or f"{symbol.path}/constant".strip("/")
            unique, count = name, 1
            while unique in used:
                count += 1
                unique = f"{name}_{count}"
            used.add(unique)
            names[id(leaf)] = unique
            model_graph.weights[unique] = np.asarray(leaf)
        for each in inner:
            visit(each)

    for symbol in model_graph.symbols:
        visit(symbol)
