"""Trees in the code of a compiled step: lines that unpack one, and the expression that packs it again.

The leaves are called v and an index, in the order of `replay.flatten`. For the totals
{"loss": {"loss": a}, "accuracy": b}, if the next index is 7, they are

    v7 = totals['accuracy']
    v8 = totals['loss']['loss']

and `{'accuracy': v7, 'loss': {'loss': v8}}`.
"""

from nnx.backends.shared.flat import Fixed, Packed


def unpacking(value, text: str, indices, space: dict) -> list[str]:
    """Return lines that assign the leaves of a tree, the value of the expression `text`, to v and their index."""
    if isinstance(value, Fixed):
        return [f"[{', '.join(f'v{next(indices)}' for _ in value.arrays)}] = {text}.arrays"]
    if not isinstance(value, (dict, list, tuple)):
        return [f"v{next(indices)} = {text}"]
    return [
        line
        for key, item in _items(value)
        for line in unpacking(item, f"{text}[{key_text(key, space)}]", indices, space)
    ]


def packing(value, text: str, indices, space: dict) -> str:
    """Return an expression of a tree with such leaves; of a packed tree `text` itself."""
    if isinstance(value, Packed):
        for _ in value.arrays:
            next(indices)
        return text
    if not isinstance(value, (dict, list, tuple)):
        return f"v{next(indices)}"
    keys = [(key_text(key, space), item) for key, item in _items(value)]
    parts = [(key, packing(item, f"{text}[{key}]", indices, space)) for key, item in keys]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {part}" for key, part in parts) + "}"
    items = "".join(f"{part}, " for _, part in parts)
    return f"[{items}]" if isinstance(value, list) else f"({items})"


def _items(value) -> list[tuple]:
    return [(name, value[name]) for name in sorted(value)] if isinstance(value, dict) else [*enumerate(value)]


def key_text(name, space: dict) -> str:
    """Return the literal of a key that is a str or an int, else a name for it in `space`."""
    if type(name) in (str, int):
        return repr(name)
    text = f"key_{len(space)}"
    space[text] = name
    return text
