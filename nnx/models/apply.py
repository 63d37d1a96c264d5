"""`nnx.apply`: the output of one layer on some data."""

from typing import Any

from nnx import tree
from nnx.backend import as_backend
from nnx.data.samples import as_inputs
from nnx.layers.base import Layer
from nnx.models.model import Model


class _Passing(Model):
    """A model for one pass of a layer, which may also have weights in another model."""

    _owns_layers = False


def apply(layer: Layer, x, *, training: bool = False, seed: int = 0, backend=None) -> Any:
    """Return the output of a layer with starting weights for `x`, a batch of samples, as a NumPy array.

    For layers with several inputs `x` is a dict or a tuple of arrays.

    >>> import nnx
    >>> nnx.apply(nnx.layers.Dense(1, kernel_initializer="ones"), [[1.0, 2.0]])
    array([[3.]], dtype=float32)
    """
    shape = tree.map(lambda a: a.shape[1:], as_inputs(x, None, "float32"))
    model = _Passing(layer, shape, seed=seed, backend=as_backend(backend))
    ctx = model.context(training)
    y, _ = model.apply(model.params, tree.map(model.backend.asarray, model.as_input(x, shape)), ctx)
    return tree.map(model.backend.to_numpy, y)
