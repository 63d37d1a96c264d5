"""Ownership of layers: each layer object is in one model only, and only once.

A layer contains no weights, so it would start from new ones in a second model, and would have two sets of weights
if it were in a model twice. Both are errors.
"""

import functools
import sys
import weakref
from collections.abc import Iterator

from nnx.layers.base import Layer
from nnx.registry import snake_case

MOST_NESTED = 1000
"""The deepest nesting of layers."""

_FRAMES = 16
"""The most nested Python calls for each nested layer: those of `copy.deepcopy`, and a few more."""

_owners: dict[int, tuple[weakref.ref, weakref.ref, str]] = {}
"""For the id of each layer with weights: the layer, its model, and the model's name."""


def walk(network: Layer) -> Iterator[tuple[str, Layer, int]]:
    """Yield (name, layer, depth) of a layer and all its inner layers."""
    waiting = [(network.name or snake_case(type(network).__name__), network, 1)]
    while waiting:
        key, layer, depth = waiting.pop()
        yield key, layer, depth
        waiting += ((name, inner, depth + 1) for name, inner in reversed(layer.sublayers().items()))


def check(model, network: Layer) -> None:
    """Raise a ValueError if a layer is in the network twice, has weights in another model, or is nested too deeply."""
    seen, deepest = set(), 1
    for key, layer, depth in walk(network):
        if id(layer) in seen:
            raise ValueError(twice(key, layer))
        seen.add(id(layer))
        _, owner, name = _owners.get(id(layer), (None, None, ""))
        if owner is not None and owner() is not model:
            raise ValueError(
                f"layer {key!r} ({type(layer).__name__}) has its weights in the model {name!r}, and would start from "
                f"new ones in another. Make a new layer, such as copy.deepcopy(layer), and copy weights: "
                f"new.set_weights([...]) of arrays of old.get_weights()"
            )
        deepest = max(deepest, depth)
        make_room(deepest)


def twice(key: str, layer: Layer) -> str:
    """Return the text of an error about a layer that is in a model twice."""
    return (
        f"layer {key!r} ({type(layer).__name__}) is in this model twice, and would have two sets of weights: "
        f"sharing is not possible yet. Make a layer for each place, such as copy.deepcopy(layer)"
    )


def make_room(depth: int) -> None:
    """Raise Python's recursion limit as far as layers of this depth need.

    Raises
    ------
    ValueError
        If the depth is more than `MOST_NESTED`.
    """
    if depth > MOST_NESTED:
        raise ValueError(f"layers are nested more than {MOST_NESTED} deep: put them one after another")
    if depth > 20:
        sys.setrecursionlimit(max(sys.getrecursionlimit(), 1000 + _FRAMES * depth))


def claim(model, params, state) -> None:
    """Record the model as the owner of each layer that has weights in it."""
    waiting = [(model.network, params, state)]
    owner = weakref.ref(model)
    while waiting:
        layer, weights, kept = waiting.pop()
        inner = layer.sublayers()
        if (weights.keys() | kept.keys()) - inner.keys():  # arrays of its own
            number = id(layer)
            known = weakref.ref(layer, functools.partial(_forget, number))
            _owners[number] = known, owner, model.name
        waiting += ((each, weights.get(key, {}), kept.get(key, {})) for key, each in inner.items())


def release(model) -> None:
    """Undo `claim`, for a model whose build was in vain."""
    for _, layer, _ in walk(model.network):
        if id(layer) in _owners and _owners[id(layer)][1]() is model:
            del _owners[id(layer)]


def _forget(number: int, layer: weakref.ref) -> None:
    if number in _owners and _owners[number][0] is layer:
        del _owners[number]
