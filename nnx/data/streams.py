"""Iterables of batches: how they are recognised, checked and read."""

import types
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from numbers import Real
from typing import Any

import numpy as np

from nnx import log, tree
from nnx.data import dataframes
from nnx.shapes import is_single

# After so many batches of an iterator without a limit, a warning says that it may be endless.
MANY = 10_000


def is_stream(x) -> bool:
    """Whether `x`, given without y, is an iterable of batches: not an array, table or dict; a list only if of tuples.

    >>> is_stream([([[1.0]], [0])]), is_stream([[1.0]]), is_stream(iter([])), is_stream({"a": [[1.0]]})
    (True, False, True, False)
    """
    if isinstance(x, (list, tuple)):
        return len(x) > 0 and isinstance(x[0], tuple)
    if _is_sequence(x):
        return True
    is_array = any(hasattr(x, name) for name in ("shape", "__array__", "__dlpack__", "toarray"))
    return isinstance(x, Iterable) and not (
        is_array or isinstance(x, (str, dict, set)) or _is_buffer(x) or dataframes.is_table(x)
    )


def _is_sequence(x) -> bool:
    """Whether `x` has a length and returns batches by index, like Keras's PyDataset; iteration may not end."""
    cls = type(x)
    is_builtin = cls.__module__ in ("builtins", "collections", "array")
    is_array = any(hasattr(x, name) for name in ("shape", "__array__", "__dlpack__", "toarray", "keys"))
    has_both = hasattr(cls, "__len__") and hasattr(cls, "__getitem__") and not hasattr(cls, "__iter__")
    return has_both and not (is_builtin or is_array or dataframes.is_table(x))


def iter_of(stream) -> Iterator:
    """Return an iterator over the batches of one pass."""
    return (stream[i] for i in range(len(stream))) if _is_sequence(stream) else iter(stream)


def holds_batches(x, in_shape) -> bool:
    """Whether `x`, given to `predict`, is an iterable of batches rather than samples of shape `in_shape`."""
    single = is_single(in_shape)
    if isinstance(x, list) and x and single and all(hasattr(part, "shape") for part in x):
        return all(tuple(part.shape[1:]) == in_shape for part in x)
    if not isinstance(x, (list, tuple)) or not is_stream(x):
        return is_stream(x)
    if single:
        return _shape_of(x[0]) != in_shape  # else samples, as tuples of numbers
    return isinstance(x, list) and any(hasattr(leaf, "shape") for leaf in tree.leaves(x[0]))


def _shape_of(item) -> tuple | None:
    try:
        return np.shape(item)
    except ValueError:  # entries of different shapes
        return None


def _is_buffer(x) -> bool:
    """Whether `x` has the buffer interface, like bytes and `array.array`."""
    try:
        memoryview(x)
    except TypeError:
        return False
    return True


def is_one_pass(x) -> bool:
    """Whether `x` is a generator or another iterator, which can be read once."""
    return isinstance(x, Iterator) and type(x).__module__ in ("builtins", "itertools")


def as_batch(item, what: str = "an iterable of batches must give") -> tuple[Any, Any, Any]:
    """Return (x, y, sample_weight) of one item of a stream."""
    if not isinstance(item, (tuple, list)) or not 2 <= len(item) <= 3:
        length = f" of {len(item)}" if isinstance(item, (tuple, list)) else ""
        raise ValueError(f"{what} (x, y) or (x, y, sample_weight), got {type(item).__name__}{length}")
    return (*item, None) if len(item) == 2 else tuple(item)


def features_of(item) -> Any:
    """Return x of one item of a stream: x, (x,), (x, y) or (x, y, sample_weight)."""
    is_batch = isinstance(item, tuple) or (isinstance(item, list) and item and hasattr(item[0], "shape"))
    if not is_batch:
        return item
    if not 1 <= len(item) <= 3:
        raise ValueError(
            f"an iterable of batches must give x, (x,), (x, y) or (x, y, sample_weight), got a {type(item).__name__} "
            f"of {len(item)}: several inputs of one batch are a tuple in a tuple, ((a, b),), or a dict"
        )
    return item[0]


def as_part_of_stream(check, item, number: int) -> Any:
    """Return `check(item)` for an item of a stream; an error names the index of the batch."""
    try:
        return check(item)
    except ValueError as error:
        error.args = (f"{error} (in batch {number}, counted from 0)",)
        raise


def first(stream: Iterable, steps: int | None) -> Generator:
    """Yield the next `steps` items of an iterable, or all. An iterator continues at the next call."""
    source = iter_of(stream)
    try:
        yield from source if steps is None else islice(source, steps)
    finally:
        if source is not stream:  # it was made here
            getattr(source, "close", lambda: None)()


def numbered(items: Iterable, stream: Iterable, steps: int | None, name: str | None) -> Generator:
    """Yield (index, item) for a pass over a stream; warn if there are fewer than `steps` items, or endlessly many.

    `name` is the argument that limits the pass; None if the caller limits it and warns.
    """
    if name is None:
        yield from enumerate(items)
        return
    number = -1
    for number, item in enumerate(items):
        if number == MANY and steps is None and name == "validation_steps" and isinstance(stream, Iterator):
            raise ValueError(
                f"{MANY:,} batches to validate on have been taken from a {type(stream).__name__}, which goes on: say "
                f"by validation_steps= how many batches a validation takes"
            )
        if number == MANY and steps is None and isinstance(stream, Iterator):
            log.warn(
                f"{MANY:,} batches have been taken from a {type(stream).__name__}, which goes on: if it has no end, "
                f"stop this (Ctrl-C), and say how many batches to take by {name}="
            )
        yield number, item
    if steps is not None and 0 <= number < steps - 1:
        log.warn(
            f"the iterable of batches ended after {number + 1} of {steps} batches, {name}={steps}: the result is that "
            f"of these alone"
        )


def end_of(name: str, steps: int | None, batch_size: int, samples: int) -> int:
    """Return the number of samples in the first `steps` batches; all samples if `steps` is None."""
    if steps is not None and steps > -(-samples // batch_size):
        log.warn(
            f"{name}={steps} batches of {batch_size} samples are more than there are: all {samples} samples are used"
        )
    return samples if steps is None else min(samples, steps * batch_size)


def as_validation(given: Any, takes_several: bool) -> Any:
    """Return validation_data as a tuple (x, y, sample_weight), or as an iterable of batches, or raise a ValueError.

    A tuple is one (x, y), even if x is a tuple, unless the model takes one input and each item is a batch.
    """
    expected = "validation_data must be (x, y), (x, y, sample_weight) or an iterable of batches"
    if isinstance(given, (tuple, list)):
        are_batches = len(given) > 0 and all(map(_is_batch, given))
        if are_batches and (isinstance(given, list) or not takes_several):
            return list(given)
        return as_batch(given, "validation_data must be")
    if is_stream(given):
        return given
    shape = f" of shape {np.shape(given)}" if hasattr(given, "shape") else ""
    raise ValueError(f"{expected}, got {type(given).__name__}{shape}")


def _is_batch(item) -> bool:
    return isinstance(item, tuple) and len(item) in (2, 3) and not isinstance(item[0], Real)


def expect_end(stream, steps: int | None, validations: int, is_trained_without_end: bool) -> None:
    """Raise a ValueError if a generator to validate on needs `validation_steps`."""
    if steps is None and is_one_pass(stream) and (validations > 1 or is_trained_without_end):
        kind = "a generator" if isinstance(stream, types.GeneratorType) else f"a {type(stream).__name__}"
        raise ValueError(
            f"validation_data is {kind}, which is used up after one pass, or never: say by validation_steps= how many "
            f"batches each validation takes from it, or give a list or an object with __iter__"
        )
