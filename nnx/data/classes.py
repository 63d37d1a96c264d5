"""Class weights, and a warning of classes that only the validation samples have.

Targets of classes are class indices, one-hot labels, or for a single output 0 and 1 (or -1 and 1).
"""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from nnx import log, tree
from nnx.data.samples import Samples
from nnx.shapes import Shape, is_single

# The labels of a single output.
PAIRS = ({0, 1}, {-1, 1})
# The most classes in one message.
SHOWN = 5


def classes_of(y: np.ndarray) -> np.ndarray | None:
    """Return the class of each checked target, or None if the targets are not classes.

    Soft labels that sum to 1 belong to the class of the largest, as in Keras.

    >>> classes_of(np.asarray([[0.0, 1.0], [1.0, 0.0]])), classes_of(np.asarray([[0.5], [2.0]]))
    (array([1, 0]), None)
    """
    if y.dtype.kind in "iu":  # checked targets are integers only if they are class indices
        return y
    if y.ndim > 1 and y.shape[-1] > 1:
        exclusive = (y >= 0).all() and (np.abs(y.sum(axis=-1) - 1) < 1e-3).all()
        return y.argmax(axis=-1) if exclusive else None
    labels = y[..., 0] if y.ndim > 1 else y
    is_label = any(np.isin(labels, list(pair)).all() for pair in PAIRS)
    return labels.astype(int) if is_label else None


def with_class_weights(samples: Samples, class_weight: Any, out_shape: Shape) -> Samples:
    """Return the samples, each weight multiplied by that of its class (1 for a class not named).

    Parameters
    ----------
    class_weight : dict of class number to weight, or None

    Raises
    ------
    ValueError
        If it is not such a dict, names an unknown class, or the targets are not classes.
    """
    if class_weight is None:
        return samples
    if not is_single(out_shape):
        raise ValueError(
            "class_weight needs one label a sample, but the model has several outputs: use sample_weight"
        )
    if len(out_shape) > 1:
        raise ValueError(
            f"class_weight needs one label a sample, but the model's output for one sample has shape {out_shape}: "
            f"use sample_weight"
        )
    weights = check_weights(class_weight)
    _expect_classes(weights, out_shape)
    return samples.transformed(lambda loaded: _weighted(loaded, weights))


def check_weights(class_weight: Any) -> dict[int, float]:
    """Return the checked weights by class index: finite and not negative."""
    if not isinstance(class_weight, Mapping):
        remedy = ""
        if isinstance(class_weight, str) and class_weight == "balanced":
            remedy = (
                ": for equal shares of the classes count the labels, counts = np.bincount(y), and give "
                "dict(enumerate(len(y) / (len(counts) * counts)))"
            )
        elif not isinstance(class_weight, str) and hasattr(class_weight, "__len__"):
            remedy = ": if these are the weights of classes 0, 1, ..., give dict(enumerate(weights))"
        raise ValueError(
            f"class_weight must be a dict of class number to weight, such as {{0: 1.0, 1: 5.0}}, got "
            f"{_shown(class_weight)}{remedy}"
        )
    for key in class_weight:
        if not isinstance(key, (Real, np.bool_)) or not float(key).is_integer():
            raise ValueError(
                f"class_weight must have class numbers as keys, such as 0 and 1, got the key {key!r}: number the "
                f"classes as in y"
            )
    return {int(key): check_weight(key, weight) for key, weight in class_weight.items()}


def check_weight(label, weight) -> float:
    """Return the checked weight of a class: finite and not negative."""
    try:
        number = np.nan if isinstance(weight, (str, bytes)) else float(weight)
    except (TypeError, ValueError):
        number = np.nan
    if not (np.isfinite(number) and number >= 0):
        raise ValueError(
            f"class_weight must be finite and not negative, got {_shown(weight)} for class {label!r}: 1 leaves the "
            f"loss of a class as it is, 0 ignores it"
        )
    return number


def _expect_classes(weights, out_shape) -> None:
    """Raise a ValueError if the model has no output for a class."""
    count = out_shape[0] if out_shape else 1
    if count == 1:
        if not any(set(weights) <= pair for pair in PAIRS):
            raise ValueError(
                f"class_weight names the classes {_listed(weights)}, but a model of one output has the classes 0 and 1 "
                f"(or -1 and 1): correct the keys, or for targets that are not classes give sample_weight"
            )
    elif unknown := [number for number in weights if not 0 <= number < count]:
        raise ValueError(
            f"class_weight names the class {unknown[0]}, but the model has {count} outputs, for the classes 0 to "
            f"{count - 1}: correct the key"
        )


def _weighted(samples: Samples, weights: dict[int, float]) -> Samples:
    present, places = np.unique(_one_class_each(samples.y), return_inverse=True)
    if (0 in weights and -1 in present) or (-1 in weights and 0 in present):
        raise ValueError(
            f"class_weight names the classes {_listed(weights)}, but the labels are {_listed(present)}: use these"
        )
    factors = np.asarray([weights.get(int(c), 1.0) for c in present], dtype=samples.weight.dtype)
    return Samples(samples.x, samples.y, samples.weight * factors[places])


def _one_class_each(y) -> np.ndarray:
    """Return the class of each sample, (batch,), or raise a ValueError."""
    if (classes := classes_of(y)) is not None:
        return classes
    if y.ndim > 1 and y.shape[-1] > 1:
        row = int(np.argmax((y < 0).any(axis=-1) | (np.abs(y.sum(axis=-1) - 1) >= 1e-3)))
        raise ValueError(
            f"class_weight needs one class a sample, but y has the labels {_shown(y[row].tolist())} at row {row}: for "
            f"several labels a sample, or real targets, give sample_weight"
        )
    labels = y.ravel()
    row = int(np.argmin(np.isin(labels, (0, 1))))
    raise ValueError(
        f"class_weight needs classes as targets, 0 and 1 (or -1 and 1) for one output, but y has the value "
        f"{labels[row]:g} at row {row}: for real targets give sample_weight"
    )


def warn_of_untrained(trained: Samples, validation: Samples) -> None:
    """Warn of classes that only the validation samples have, as happens if samples are sorted by class."""
    y, y_validation = trained.targets(), validation.targets()
    if y is None or y_validation is None:
        return
    for train, held_out in zip(tree.leaves(y), tree.leaves(y_validation), strict=True):
        known, classes = classes_of(train), classes_of(held_out)
        if known is None or classes is None:
            continue
        unknown = np.setdiff1d(classes, known)
        if len(unknown):
            share = np.isin(classes, unknown).mean()
            log.warn(
                f"validation_split keeps the last {len(validation)} samples for validation, before any shuffling: "
                f"{share:.0%} of their labels are of classes that the {len(trained)} samples to train on do not have "
                f"({_listed(unknown)}). Shuffle the samples first, rows = np.random.permutation(len(X)); "
                f"fit(X[rows], y[rows], ...), or give validation_data"
            )
            return


def _listed(classes) -> str:
    """Return the first few classes as text."""
    indices = sorted(map(int, classes))
    return ", ".join(map(str, indices[:SHOWN])) + (
        f" and {len(indices) - SHOWN} more" if indices[SHOWN:] else ""
    )


def _shown(value) -> str:
    """Return a value as one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
