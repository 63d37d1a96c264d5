"""Nested dicts of arrays ("trees"): how parameters, gradients and optimizer slots are held.

    {"dense": {"kernel": ..., "bias": ...}, "batch_normalization": {"gamma": ..., "beta": ...}}

Leaves are visited in sorted order of their keys, so that the order in which a dict was filled
(or handed back by a compiled function) never matters.

What goes in and out of a network may also hold tuples, whose leaves are visited in their order.
"""

from typing import Any

__all__ = ["at", "copy", "from_paths", "leaves", "map", "paths", "rebuild"]

Tree = dict[str, Any]


def leaves(tree) -> list:
    """Return the arrays of `tree`, in sorted order of their paths.

    >>> leaves({"b": {"y": 2, "x": 1}, "a": 0})
    [0, 1, 2]
    """
    if isinstance(tree, tuple):
        return [leaf for item in tree for leaf in leaves(item)]
    if not isinstance(tree, dict):
        return [tree]
    return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]


def buffers(tree) -> list:
    """Return the arrays that hold all of `tree`, which may have lists in it: of a packed tree its buffer.

    See `nnx.Backend.pack`.
    """
    if isinstance(tree, dict):
        if (buffer := getattr(tree, "buffer", None)) is not None:
            return [buffer]
        tree = [tree[key] for key in sorted(tree)]
    return [array for item in tree for array in buffers(item)] if isinstance(tree, (list, tuple)) else [tree]


def rebuild(like, values) -> Any:
    """Return a tree shaped as `like` whose leaves are taken from the iterable `values`.

    >>> rebuild({"b": 0, "a": 0}, [1, 2])
    {'a': 1, 'b': 2}
    """
    return _rebuild(like, iter(values))


def _rebuild(like, values):
    if isinstance(like, tuple):
        return tuple(_rebuild(item, values) for item in like)
    if not isinstance(like, dict):
        return next(values)
    return {key: _rebuild(like[key], values) for key in sorted(like)}


def map(function, tree, *others) -> Any:
    """Return a tree of `function(leaf, *leaves of the others at the same path)`.

    >>> map(lambda a, b: a + b, {"x": 1, "y": {"z": 2}}, {"x": 10, "y": {"z": 20}})
    {'x': 11, 'y': {'z': 22}}
    """
    if isinstance(tree, tuple):
        return tuple(map(function, *items) for items in zip(tree, *others, strict=True))
    if not isinstance(tree, dict):
        return function(tree, *others)
    return {key: map(function, tree[key], *(other[key] for other in others)) for key in sorted(tree)}


def paths(tree, prefix=()) -> list[tuple[str, ...]]:
    """Return the path of each leaf, in the order of the dicts themselves.

    >>> paths({"dense": {"kernel": 0, "bias": 0}})
    [('dense', 'kernel'), ('dense', 'bias')]
    """
    if not isinstance(tree, dict):
        return [prefix]
    return [path for key in tree for path in paths(tree[key], (*prefix, key))]


def at(tree, path) -> Any:
    """Return the part of `tree` at `path`."""
    for key in path:
        tree = tree[key]
    return tree


def from_paths(paths, values) -> Tree:
    """Return the tree that has `values` at `paths`: the inverse of `paths` and `at`.

    >>> from_paths([("dense", "kernel"), ("dense", "bias")], [1, 2])
    {'dense': {'kernel': 1, 'bias': 2}}
    """
    tree: Tree = {}
    for path, value in zip(paths, values, strict=True):
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree


def copy(tree) -> Any:
    """Return new dicts that hold the same arrays."""
    return map(lambda leaf: leaf, tree)
