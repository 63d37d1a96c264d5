"""`model.summary()`: a table of the layers with their parameters, operations and memory."""

import itertools
import math

from nnx import tree
from nnx.layers.base import Layer, describe_shape
from nnx.layers.containers import Chain
from nnx.layers.parallel import Inputs
from nnx.shapes import elements

HEADER = ("Layer", "Output shape", "Params", "FLOPs", "Memory")


def summary_table(model) -> str:
    """Return the table as text; FLOPs and memory are those of the forward pass of one sample."""
    bytes_each = 8 if model.dtype == "float64" else 4
    params, state, shape = model._params, model._state, model.input_shape
    rows: list[tuple[str, ...]] = []
    if isinstance(model.network, Chain):
        for key, layer in model.network.sublayers().items():
            _add_rows(rows, key, layer, params.get(key, {}), state.get(key, {}), shape, bytes_each, 0)
            shape = layer.out_shape(shape)
    else:
        _add_rows(rows, "network", model.network, params, state, shape, bytes_each, 0)
    trained, kept = _count(params), _count(state)
    flops = model.network.flops(model.input_shape)
    footer = (
        f"Input {describe_shape(model.input_shape)} of {model.dtype} on {model.backend.name}\n"
        f"Parameters {trained + kept:,} ({trained:,} trained, {kept:,} moving averages), "
        f"{_bytes((trained + kept) * bytes_each)}; {flops:,} FLOPs a sample"
    )
    return f"{_table(rows)}\n{footer}"


def _add_rows(rows, key, layer: Layer, params, state, in_shape, bytes_each, depth):
    out_shape = layer.out_shape(in_shape)
    name = type(layer).__name__
    cells = (
        f"{'  ' * depth}{key} ({name})",
        describe_shape(out_shape),
        f"{_count(params) + _count(state):,}",
        f"{layer.flops(in_shape):,}",
        _bytes(elements(out_shape) * bytes_each),
    )
    rows.append(cells)
    in_shapes = (
        layer.in_shapes(in_shape) if isinstance(layer, (Chain, Inputs)) else itertools.repeat(in_shape)
    )
    for (inner_key, inner), shape in zip(layer.sublayers().items(), in_shapes, strict=False):
        own = params.get(inner_key, {}), state.get(inner_key, {})
        _add_rows(rows, inner_key, inner, *own, shape, bytes_each, depth + 1)


def _count(arrays) -> int:
    return sum(math.prod(leaf.shape) for leaf in tree.leaves(arrays) if hasattr(leaf, "shape"))


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _table(rows) -> str:
    widths = [max(len(row[i]) for row in [HEADER, *rows]) for i in range(len(HEADER))]

    def line(row):
        left = [row[i].ljust(widths[i]) for i in (0, 1)]
        right = [row[i].rjust(widths[i]) for i in (2, 3, 4)]
        return "  ".join(left + right)

    rule = "-" * len(line(HEADER))
    return "\n".join([line(HEADER), rule, *map(line, rows), rule])
