"""Targets, checked on the host, where an error can name the row.

On a device an index out of range raises (NumPy), wraps (CuPy) or clamps (JAX): silently wrong on two of
three backends. So each loss checks and reshapes its targets here, once.
"""

import numpy as np

from nnx.shapes import describe_shape


def as_numbers(y) -> np.ndarray:
    """Return targets as a host array of numbers, or raise a ValueError with the remedy."""
    y = np.asarray(y)
    if y.dtype.kind in "USO":
        try:
            return y.astype(np.float64)
        except (TypeError, ValueError):
            example = str(np.ravel(y)[0])
            raise ValueError(
                f"y must be numbers, got labels such as {example!r}: number them first, for example with "
                f"classes, y = np.unique(y, return_inverse=True)"
            ) from None
    if y.dtype.kind not in "buif":
        raise ValueError(f"y must be numbers, got an array of dtype {y.dtype}")
    return y


ROUNDING = 1e-6
"""How far a label may be out of range, by rounding."""


def check_real(y, out_shape) -> np.ndarray:
    """Return real targets in the shape of the output: (batch, *out_shape)."""
    y = as_numbers(y)
    y = _fit_shape(y.astype(np.float64) if y.dtype.kind in "bui" else y, out_shape)
    finite = np.isfinite(y)
    if not finite.all():
        index = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise ValueError(f"y has the value {y[index]} at row {index[0]}: targets must be finite numbers")
    return y


def check_probabilities(y, out_shape, lowest=0) -> np.ndarray:
    """Return labels between `lowest` and 1 in the shape of the output."""
    y = check_real(y, out_shape)
    outside = (y < lowest - ROUNDING) | (y > 1 + ROUNDING)
    if outside.any():
        index = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"this loss expects labels between {lowest} and 1, got {y[index]:g} at row {index[0]}: "
            f"for more than two classes use categorical_crossentropy or sparse_categorical_crossentropy"
        )
    return np.clip(y, lowest, 1)


def check_one_hot(y, out_shape) -> np.ndarray:
    """Return one-hot (or soft) labels, (batch, classes)."""
    y = as_numbers(y)
    if y.shape[1:] != tuple(out_shape) and (y.ndim == 1 or y.shape[1:] == (1,)):
        raise ValueError(
            f"categorical_crossentropy expects one column for each class, shape {describe_shape(out_shape)}, got y of "
            f"shape {y.shape}: use loss='sparse_categorical_crossentropy' for class numbers, or "
            f"nnx.utils.to_categorical(y)"
        )
    return check_probabilities(y, out_shape)


def check_classes(y, out_shape) -> np.ndarray:
    """Return class indices as int32, (batch, ...), each from 0 to the number of outputs - 1."""
    y, classes = as_numbers(y), out_shape[-1]
    shape = (len(y) if y.ndim else 1, *out_shape[:-1])
    if y.shape == (*shape, 1):
        y = y.reshape(shape)
    if y.shape != shape:
        is_one_hot = y.shape[1:] == tuple(out_shape)
        hint = ": use loss='categorical_crossentropy' for one-hot labels" if is_one_hot else ""
        raise ValueError(
            f"expected class numbers of shape {describe_shape(out_shape[:-1])}, got y of shape {y.shape}{hint}"
        )
    wrong = ~((y >= 0) & (y < classes) & (y == np.floor(y)))
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"labels must be whole numbers from 0 to {classes - 1}, since the model has {classes} outputs; "
            f"got {y[index]:g} at row {index[0]}"
        )
    return y.astype(np.int32)


def _fit_shape(y: np.ndarray, out_shape) -> np.ndarray:
    wanted = (len(y) if y.ndim else 1, *out_shape)
    if y.shape == wanted:
        return y
    if y.size == np.prod(wanted) and 1 in (*y.shape[1:], *out_shape, y.ndim):
        return y.reshape(wanted)  # (batch,) for an output of (batch, 1), or the reverse
    raise ValueError(
        f"the model's output has shape {describe_shape(out_shape)}, got y of shape {y.shape}: give y the same shape, "
        f"or the last layer as many units as y has columns"
    )
