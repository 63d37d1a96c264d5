"""Arrays, checked and split into batches on the host.

Errors in the data are reported here, in one line, before anything is computed.
"""

import functools
import operator
from collections.abc import Callable, Generator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np

from nnx import tree
from nnx.data.lazy_arrays import LazyArray
from nnx.shapes import Shape, describe_shape, is_single


@dataclass
class Samples:
    """Features, targets and weights of the same samples, on the host.

    For a model with several inputs or outputs, `x` and `y` are dicts or tuples of arrays.
    """

    x: Any
    y: Any
    weight: np.ndarray

    stays_on_host: ClassVar[bool] = False
    """Whether they stay there even if they fit on the device."""

    def __len__(self):
        return len(self.weight)

    def part(self, start, stop) -> "Samples":
        """Return samples start, ..., stop - 1."""
        return self.map_arrays(lambda array: array[start:stop])

    def map_arrays(self, function) -> "Samples":
        """Return the samples with a function applied to each array."""
        return Samples(*(tree.map(function, arrays) for arrays in (self.x, self.y, self.weight)))

    def arrays(self) -> dict[str, Any]:
        """Return the arrays by name, as a training step expects a batch."""
        return {"x": self.x, "y": self.y, "weight": self.weight}

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in tree.leaves(self.arrays()))

    def targets(self) -> Any:
        """Return the targets of all samples, or None if they are not in memory."""
        return self.y

    def identifying_samples(self) -> "Samples":
        """Return the samples that are compared to recognise the same data in another run: all, or some of a file."""
        return self

    def transformed(self, function: "Callable[[Samples], Samples]") -> "Samples":
        """Return the result of a function of samples; samples in files are transformed as they are read."""
        return function(self)

    def order(self, shuffle=False, rng: "Callable[[], np.random.Generator] | None" = None) -> Any:
        """Return the order in which an epoch visits the samples, for `batches`.

        `shuffle` is that of `fit`; `rng` returns the generator to shuffle with.
        """
        order = np.arange(len(self))
        if callable(shuffle):
            return checked_order(shuffle(order), len(order))
        if shuffle and rng is not None:
            rng().shuffle(order)
        return order

    def batches(self, order, batch_size: int) -> "Generator[Samples]":
        """Yield the samples in this order, gathered into batches."""
        for indices in batch_indices(order, batch_size):
            for index in indices:
                yield self.map_arrays(lambda array, index=index: np.take(array, index, axis=0))


def as_inputs(x, in_shape, dtype: str, categories=None, what: str = "X") -> Any:
    """Return checked features: one array, see `as_features`, or the dict or tuple of arrays that a model expects.

    Without `in_shape` a dict, or a tuple of arrays, is several inputs, and any other value is one: see `as_several`.
    """
    if not _is_several(x, in_shape):
        if isinstance(x, dict):
            raise ValueError(
                f"the model takes one array, {describe_shape(in_shape)}, got a dict with the keys "
                f"{', '.join(map(repr, x))}: its first layer must be nnx.layers.Inputs to take several"
            )
        return as_features(x, in_shape, dtype, what, categories if isinstance(categories, int) else None)
    inputs = {
        name: as_inputs(x[name], _entry(in_shape, name), dtype, _entry(categories, name), f"{what}[{name!r}]")
        for name in _names(x, in_shape, what)
    }
    counts = {name: rows_of(arrays) for name, arrays in inputs.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{what}[{name!r}] {count}" for name, count in counts.items())
        raise ValueError(f"the inputs differ in their number of samples: {listed}")
    return inputs if isinstance(x, dict) else tuple(inputs.values())


def as_several(x, y, begins_with_inputs: bool) -> Any:
    """Return a list as a tuple if it holds several inputs of a model that is not built, one array each.

    It does if the first layer is `Inputs`, or if its arrays are as long as y and the list is not.
    """
    if not isinstance(x, list) or not x:
        return x
    if begins_with_inputs:
        return tuple(x)
    are_arrays = all(np.ndim(each) and hasattr(each, "shape") for each in x) and np.ndim(y) > 0
    return tuple(x) if are_arrays and len(x) != len(y) and {len(each) for each in x} == {len(y)} else x


def _is_several(x, in_shape) -> bool:
    if in_shape is not None:
        return not is_single(in_shape)
    return isinstance(x, dict) or (isinstance(x, tuple) and all(hasattr(item, "shape") for item in x))


def _entry(whole, name):
    """Return the entry of a dict or tuple at a name or index, or None if there is none."""
    if isinstance(whole, dict):
        return whole.get(name)
    return whole[name] if isinstance(whole, tuple) and name < len(whole) else None


def _names(x, in_shape, what) -> list:
    """Return the names or indices of several inputs, or raise a ValueError if the model expects others."""
    given = list(x) if isinstance(x, dict) else list(range(len(x))) if isinstance(x, (list, tuple)) else None
    if in_shape is None:
        return given or []
    names = list(in_shape) if isinstance(in_shape, dict) else list(range(len(in_shape)))
    if given is None or set(given) != set(names) or isinstance(x, dict) != isinstance(in_shape, dict):
        shown = f"{len(given)} arrays" if given else type(x).__name__
        shown = f"the keys {given}" if isinstance(x, dict) else shown
        raise ValueError(
            f"the model takes several inputs, {describe_shape(in_shape)}, got {what} with {shown}"
        )
    return names


def rows_of(x) -> int:
    """Return the number of samples of one array or of several."""
    return len(tree.leaves(x)[0])


def as_features(
    x, in_shape: Shape | None, dtype: str, what: str = "X", categories: int | None = None
) -> np.ndarray:
    """Return `x` as a host array of `dtype` and shape (batch, *in_shape), or raise a ValueError.

    With `categories` it must hold category indices from 0 on, and becomes int32. A `LazyArray` stays lazy and
    is checked as it is read.
    """
    if isinstance(x, LazyArray):
        check = functools.partial(
            as_features, in_shape=in_shape, dtype=dtype, what=what, categories=categories
        )
        return x.checked(check, _expected_shape(x, in_shape, what))  # pyright: ignore[reportReturnType]
    try:
        x = np.asarray(x)
        x = x.astype(np.float64) if x.dtype == object else x
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be an array of numbers with one row a sample: its rows differ in shape or "
                         f"hold something else") from None  # fmt: skip
    x = x.reshape(_expected_shape(x, in_shape, what))
    if categories is not None:
        return _as_categories(x, categories, what)
    # If the sum is finite, all values are; it takes no memory. Check each value only if it is not.
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.ascontiguousarray(x, dtype=dtype)
        suspicious = not np.isfinite(np.sum(x))
    if suspicious and not (finite := np.isfinite(x)).all():
        raise ValueError(
            f"{what} {_first_value(x, finite)}: fill or drop such samples first (scikit-learn's SimpleImputer, or "
            f"{what}[np.isfinite({what}).all(axis=1)])"
        )
    return x


def _first_value(x, valid) -> str:
    """Return the first value that is not valid, and its place, as text."""
    row, *columns = index = tuple(int(i) for i in np.argwhere(~valid)[0])
    return f"has the value {x[index]} at row {row}, column {', '.join(map(str, columns))}"


def _expected_shape(x, in_shape, what) -> Shape:
    """Return (batch, *in_shape) for an array, or lazy array, of numbers in that shape, or raise a ValueError."""
    if x.dtype.kind not in "buif":
        raise ValueError(f"{what} must be numbers, got dtype {x.dtype}: encode text columns as numbers first")
    shape, expected = x.shape, describe_shape(in_shape) if in_shape is not None else "(batch, features)"
    if not shape or 0 in shape:
        raise ValueError(f"{what} is empty, of shape {shape}: expected at least one sample, shape {expected}")
    if len(shape) == 1 and in_shape == (1,):
        shape = (*shape, 1)
    if in_shape is not None and shape[1:] != in_shape:
        raise ValueError(_wrong_shape(shape, in_shape, what))
    if len(shape) == 1:
        raise ValueError(
            f"{what} must have one row a sample, shape {expected}, got shape {shape}: use {what}.reshape(-1, 1) "
            f"for one feature, {what}.reshape(1, -1) for one sample"
        )
    return shape


def _as_categories(x, categories, what):
    fits = (x >= 0) & (x < categories) & (x == np.floor(x))
    if not fits.all():
        raise ValueError(
            f"{what} {_first_value(x, fits)}: the model's Embedding takes whole numbers from 0 to {categories - 1}. "
            f"Number the categories from 0 (scikit-learn's OrdinalEncoder, or numpy.unique with return_inverse=True) "
            f"or enlarge input_dim"
        )
    return np.ascontiguousarray(x, dtype=np.int32)


def _wrong_shape(shape, in_shape, what):
    message = f"the model expects {what} of shape {describe_shape(in_shape)}, got {shape}"
    if shape == in_shape:
        return f"{message}: for one sample use {what}[None]"
    if len(shape) == len(in_shape) + 1:
        return f"{message}: it was built for {describe_features(in_shape)}"
    return f"{message}: reshape {what} to one axis for the batch and {len(in_shape)} for each sample"


def describe_features(in_shape: Shape) -> str:
    """Return `64 features`, or `samples of shape (28, 28)`."""
    return f"{in_shape[0]} features" if len(in_shape) == 1 else f"samples of shape {in_shape}"


def as_samples(x, y, sample_weight, loss, out_shape, dtype) -> Samples:
    """Return samples of features that `as_inputs` has checked; the loss checks the targets."""
    count = rows_of(x)
    y = as_targets(y, count, loss, out_shape, dtype)
    weight = np.ones(count) if sample_weight is None else as_weight(sample_weight, count)
    return Samples(x, y, weight.astype(dtype))


def as_targets(y, count: int, loss, out_shape, dtype) -> Any:
    """Return the checked targets of `count` samples in the form that the loss expects."""
    if y is None:
        raise ValueError("y is missing: fit and evaluate need targets, or an iterable of (x, y) batches")
    y = loss.check_target(y, out_shape)
    for targets in tree.leaves(y):
        if len(targets) != count:
            raise ValueError(f"X has {count} samples, y has {len(targets)}: they must be as many")
    return tree.map(lambda a: np.ascontiguousarray(a, dtype=dtype if a.dtype.kind == "f" else a.dtype), y)


def as_weight(sample_weight, count) -> np.ndarray:
    """Return checked weights, one a sample, finite and not negative."""
    try:
        weight = np.asarray(sample_weight, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"sample_weight must be an array of numbers, one weight a sample, got {type(sample_weight).__name__} that "
            f"holds something else"
        ) from None
    if weight.shape == (count, 1):
        weight = weight[:, 0]
    if weight.shape != (count,):
        raise ValueError(f"sample_weight must have shape ({count},), one weight a sample, got {weight.shape}")
    if not np.isfinite(weight).all() or (weight < 0).any():
        row = int(np.argwhere(~(np.isfinite(weight) & (weight >= 0)))[0][0])
        raise ValueError(f"sample_weight must be finite and not negative, got {weight[row]} at row {row}")
    return weight


def split_last(samples: Samples, fraction: float) -> tuple[Samples, Samples]:
    """Return the first samples for training and the last `fraction` of them for validation."""
    if not 0 < fraction < 1:
        raise ValueError(f"validation_split must lie between 0 and 1, got {fraction}")
    cut = int(len(samples) * (1 - fraction))
    if cut < 1 or cut == len(samples):
        raise ValueError(
            f"validation_split={fraction} of {len(samples)} samples leaves none to "
            f"{'train on' if cut < 1 else 'validate on'}"
        )
    return samples.part(0, cut), samples.part(cut, len(samples))


def checked_order(order, samples: int) -> np.ndarray:
    """Return the sample indices that a function given as `shuffle` returned, checked."""
    indices = np.asarray(order)
    if indices.ndim != 1 or indices.size == 0 or indices.dtype.kind not in "iu":
        got = "None" if order is None else f"an array of {indices.dtype}, shape {indices.shape}"
    elif (
        indices.astype(np.int64, copy=False).view(np.uint64).max() >= samples
    ):  # negative indices become large
        got = f"numbers from {indices.min()} to {indices.max()}"
    else:
        return indices
    raise ValueError(
        f"the function given as shuffle must return sample indices from 0 to {samples - 1}, got {got}"
    )


def batch_indices(order: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return `order` split into batches: a matrix of the full batches, and one of the smaller last batch.

    >>> [index.tolist() for index in batch_indices(np.arange(5), 2)]
    [[[0, 1], [2, 3]], [[4]]]
    """
    full = len(order) // batch_size * batch_size
    matrices = order[:full].reshape(-1, batch_size), order[full:].reshape(1, -1)
    return [matrix for matrix in matrices if matrix.size]


def pad_samples(array: np.ndarray, length: int) -> np.ndarray:
    """Return the array with its last sample repeated up to a length.

    >>> pad_samples(np.asarray([1, 2]), 4).tolist()
    [1, 2, 2, 2]
    """
    count = len(array)
    return array if count >= length else array[np.minimum(np.arange(length), count - 1)]


def check_count(name: str, value) -> int:
    """Return `value` if it is a positive whole number, else raise a ValueError that names it."""
    number = _as_whole(value)
    if number is None or number < 1:
        raise ValueError(f"{name} must be a positive whole number, got {value!r}{_whole_remedy(value)}")
    return number


def check_epochs(initial_epoch, epochs) -> tuple[int, int]:
    """Return both as whole numbers, 0 <= initial_epoch <= epochs."""
    for name, value in (("initial_epoch", initial_epoch), ("epochs", epochs)):
        if _as_whole(value) is None:
            raise ValueError(f"{name} must be a whole number, got {value!r}{_whole_remedy(value)}")
    if epochs < initial_epoch or initial_epoch < 0:
        raise ValueError(f"epochs must be at least initial_epoch, got {epochs} and {initial_epoch}")
    return int(initial_epoch), int(epochs)


def _as_whole(value) -> int | None:
    try:
        return None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        return None


def _whole_remedy(value) -> str:
    is_real = isinstance(value, Real) and not isinstance(value, Integral)
    return f": give {int(float(value))}" if is_real and float(value).is_integer() else ""


def check_share(name: str, value) -> float:
    """Return `value` if it is a number, 0 <= value < 1."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or not 0 <= float(value) < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value!r}")
    return float(value)


def check_shuffle(shuffle) -> Any:
    """Return `shuffle` if it is True, False or a function."""
    if callable(shuffle):
        return shuffle
    if not isinstance(shuffle, (bool, np.bool_)) and not (isinstance(shuffle, int) and shuffle in (0, 1)):
        raise ValueError(f"shuffle must be True, False or a function that returns an order, got {shuffle!r}")
    return bool(shuffle)


def check_verbose(verbose) -> Any:
    """Return `verbose` if it is "auto", 0, 1 or 2."""
    if not isinstance(verbose, (str, int, np.integer, np.bool_)) or verbose not in ("auto", 0, 1, 2):
        raise ValueError(f"verbose must be 'auto', 0, 1 or 2, got {verbose!r}")
    return verbose
