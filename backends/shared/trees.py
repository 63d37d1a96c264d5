"""Trees in the text of a compiled step: lines that take one apart, and the expression that puts it together.

The leaves are called v and a number, in the order of `replay.flatten`. For the totals
{"loss": {"loss": a}, "accuracy": b} they are, if the next number is 7,

    v7 = totals['accuracy']
    v8 = totals['loss']['loss']

and `{'accuracy': v7, 'loss': {'loss': v8}}`.
"""

from nnx.backends.shared.flat import Fixed, Packed


def unpacking(value, text: str, numbers, space: dict) -> list[str]:
    """Return lines that name the leaves of a tree, which `text` stands for, v and their number."""
    if isinstance(value, Fixed):
        return [f"[{', '.join(f'v{next(numbers)}' for _ in value.arrays)}] = {text}.arrays"]
    if not isinstance(value, (dict, list, tuple)):
        return [f"v{next(numbers)} = {text}"]
    return [
        line
        for key, item in _items(value)
        for line in unpacking(item, f"{text}[{key_text(key, space)}]", numbers, space)
    ]


def packing(value, text: str, numbers, space: dict) -> str:
    """Return an expression for a tree whose leaves are named so; what is packed stays what it is."""
    if isinstance(value, Packed):
        for _ in value.arrays:
            next(numbers)
        return text
    if not isinstance(value, (dict, list, tuple)):
        return f"v{next(numbers)}"
    keys = [(key_text(key, space), item) for key, item in _items(value)]
    parts = [(key, packing(item, f"{text}[{key}]", numbers, space)) for key, item in keys]
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {part}" for key, part in parts) + "}"
    items = "".join(f"{part}, " for _, part in parts)
    return f"[{items}]" if isinstance(value, list) else f"({items})"


def _items(value) -> list[tuple]:
    return [(name, value[name]) for name in sorted(value)] if isinstance(value, dict) else [*enumerate(value)]


def key_text(name, space: dict) -> str:
    """Return the text of a key: of one that is not simply text or a number, a name for it."""
    if type(name) in (str, int):
        return repr(name)
    text = f"key_{len(space)}"
    space[text] = name
    return text
