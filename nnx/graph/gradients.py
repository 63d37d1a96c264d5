"""The chain rule over a graph: from the gradients of its outputs to those of its inputs."""

from typing import Any

from nnx.graph.axes import sum_to
from nnx.graph.graph import Graph, GraphError, Symbol
from nnx.graph.rules import RULES


def pull(graph: Graph, outputs, cotangents) -> dict[Symbol, object]:
    """Return dL/dx of all Symbols that outputs depend on, from dL/d(output) of the outputs.

    Raises
    ------
    GraphError
        If a gradient reaches an operation without a rule.
    """
    gradients: dict[Symbol, object] = {}
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if graph.is_own(output) and cotangent is not None:
            _accumulate(graph.backend, gradients, output, cotangent)
    for symbol in reversed(graph.symbols):
        if symbol.op == "input" or symbol not in gradients:
            continue
        d = gradients.pop(symbol)
        arguments = graph.plain(symbol.arguments)
        for i, argument in enumerate(symbol.arguments):
            if not any(graph.is_own(leaf) and _has_gradient(leaf) for leaf in _items(argument)):
                continue
            rule: Any = _rule(symbol, i)
            d_argument = rule(graph.backend, d, symbol.value, *arguments, **graph.plain(symbol.settings))
            if d_argument is None:
                continue
            pairs = [(argument, d_argument)]
            if isinstance(argument, (tuple, list)):
                pairs = zip(argument, d_argument, strict=True)
            for leaf, d_leaf in pairs:
                if graph.is_own(leaf) and d_leaf is not None:
                    _accumulate(graph.backend, gradients, leaf, d_leaf)
        for leaf in symbol.settings.values():
            if graph.is_own(leaf) and _has_gradient(leaf):
                raise GraphError(f"no derivative is known of {symbol.op} by an argument given by name")
    return gradients


def _rule(symbol: Symbol, i: int):
    """Return the rule of an operation for its argument number i."""
    rules: Any = RULES.get(symbol.op)
    if callable(rules):
        return rules(i)
    if rules is None or i >= len(rules):
        which = "" if rules is None else f" by its argument number {i + 1}"
        where = f" in layer {symbol.path!r}" if symbol.path else ""
        raise GraphError(f"no derivative is known of {symbol.op}{which}{where}")
    return rules[i]


def _items(argument):
    return argument if isinstance(argument, (tuple, list)) else (argument,)


def _has_gradient(symbol: Symbol) -> bool:
    """Whether a Symbol has elements of a floating dtype."""
    if "complex" in str(getattr(symbol.value, "dtype", "")):
        raise GraphError(f"no derivative is known of {symbol.op}, whose result is complex")
    return isinstance(symbol.value, (tuple, list)) or is_floating(symbol)


def is_floating(array) -> bool:
    """Whether an array of any library has a floating dtype."""
    return "float" in str(getattr(array, "dtype", ""))


def _accumulate(b, gradients: dict, symbol: Symbol, d) -> None:
    before = gradients.get(symbol)
    if isinstance(symbol.value, (tuple, list)):  # an operation with several results: a list
        if before is not None:
            d = [p if q is None else q if p is None else p + q for p, q in zip(before, d, strict=True)]
        gradients[symbol] = d
    elif is_floating(symbol):
        d = sum_to(b, d, symbol.value)
        gradients[symbol] = d if before is None else before + d
