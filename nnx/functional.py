"""`nnx.apply`: run one layer on some data, to see what it does."""

import numpy as np

from nnx.backend import as_backend
from nnx.layers.base import Layer
from nnx.model import Model


def apply(layer: Layer, x, *, training: bool = False, seed: int = 0, backend=None) -> np.ndarray:
    """Return what a layer with fresh weights makes of `x`, a batch of samples, as a NumPy array.

    >>> import nnx
    >>> nnx.apply(nnx.layers.Dense(1, kernel_initializer="ones"), [[1.0, 2.0]])
    array([[3.]], dtype=float32)
    """
    x = np.asarray(x, dtype=np.float32 if layer.categories is None else np.int32)
    model = Model(layer, x.shape[1:], seed=seed, backend=as_backend(backend))
    ctx = model.context(training)
    return model.backend.to_numpy(model.apply(model.params, model.backend.asarray(x), ctx)[0])
