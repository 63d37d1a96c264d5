"""Small helpers, under Keras's names."""

import numpy as np

from nnx.data.prefetch import Prefetch
from nnx.random import set_random_seed

__all__ = ["Prefetch", "set_random_seed", "to_categorical"]


def to_categorical(y, num_classes: int | None = None) -> np.ndarray:
    """Return class numbers as one-hot rows: (samples,) -> (samples, classes).

    >>> to_categorical([0, 2, 1])
    array([[1., 0., 0.],
           [0., 0., 1.],
           [0., 1., 0.]], dtype=float32)
    """
    y = np.asarray(y)
    y = y[..., 0] if y.ndim > 1 and y.shape[-1] == 1 else y
    numbers = y.astype(np.int64)
    if y.size == 0 or (numbers != y).any() or numbers.min() < 0:
        raise ValueError("to_categorical expects class numbers: whole numbers from 0")
    classes = int(numbers.max()) + 1 if num_classes is None else num_classes
    if numbers.max() >= classes:
        raise ValueError(f"to_categorical: class {numbers.max()} is outside num_classes={classes}")
    return np.eye(classes, dtype=np.float32)[numbers]
