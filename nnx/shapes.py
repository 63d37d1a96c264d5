"""Shapes of one sample, without the batch axis: of an array, or of several in a dict or a tuple.

(28, 28)                                one array, (batch, 28, 28)
{"numbers": (4,), "city": (1,)}         two arrays by name
((10, 8), (12, 8))                      two arrays in order
"""

import math
from typing import Any

Shape = tuple[int, ...]
"""The shape of one sample: the batch axis is left out."""


def is_single(shape) -> bool:
    """Whether a shape is that of one array.

    >>> is_single((28, 28)), is_single({"a": (4,)}), is_single(((4,), (5,)))
    (True, False, False)
    """
    return isinstance(shape, tuple) and not any(isinstance(part, (tuple, dict)) for part in shape)


def map_shapes(function, shapes, *others) -> Any:
    """Return a tree like `shapes` of `function(shape, *the others at the same place)`.

    >>> map_shapes(len, {"a": (4, 2), "b": (5,)})
    {'a': 2, 'b': 1}
    """
    if is_single(shapes):
        return function(shapes, *others)
    if isinstance(shapes, dict):
        return {
            name: map_shapes(function, shapes[name], *(other[name] for other in others)) for name in shapes
        }
    return tuple(map_shapes(function, *items) for items in zip(shapes, *others, strict=True))


def as_shapes(value, batch_axis: bool = False) -> Any:
    """Return a shape, or a dict or tuple of shapes, given with lists in place of tuples; see `as_shape`.

    >>> as_shapes([[4], [5, 6]]), as_shapes(3)
    (((4,), (5, 6)), (3,))
    """
    if isinstance(value, dict):
        return {name: as_shapes(shape, batch_axis) for name, shape in value.items()}
    if isinstance(value, (list, tuple)) and any(isinstance(item, (list, tuple, dict)) for item in value):
        return tuple(as_shapes(item, batch_axis) for item in value)
    return as_shape(value, batch_axis)


def as_shape(value, batch_axis: bool = False) -> Shape:
    """Return the shape of one sample, without a batch axis that stands in front of it as None, if one may."""
    shape = (value,) if isinstance(value, int) else tuple(value)
    shape = shape[1:] if batch_axis and shape and shape[0] is None else shape
    if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in shape):
        raise ValueError(
            f"input_shape is the shape of one sample, positive integers without the batch axis such as (4,) or "
            f"(28, 28), or a dict or tuple of such, got {value}"
        )
    return shape


def describe_shape(shape) -> str:
    """Return the shape of a batch of such samples as text.

    >>> describe_shape((28, 28)), describe_shape({"a": (4,)})
    ('(batch, 28, 28)', "{'a': (batch, 4)}")
    """
    if is_single(shape):
        return f"(batch, {', '.join(map(str, shape))})" if shape else "(batch,)"
    if isinstance(shape, dict):
        return f"{{{', '.join(f'{name!r}: {describe_shape(part)}' for name, part in shape.items())}}}"
    return f"({', '.join(map(describe_shape, shape))})"


def as_column(shape: Shape) -> Shape:
    """Return the shape that losses and metrics see: one number a sample is a row of one.

    >>> as_column(()), as_column((3,))
    ((1,), (3,))
    """
    return shape or (1,)


def elements(shapes) -> int:
    """Return the number of elements of one sample, of all arrays together."""
    if is_single(shapes):
        return math.prod(shapes)
    return sum(map(elements, shapes.values() if isinstance(shapes, dict) else shapes))
