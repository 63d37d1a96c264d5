"""Models: `Model` and `Sequential`, which have weights, their summary, and `nnx.apply`.

The module has Keras's name: `keras.models.Sequential`, `load_model`.

May import: core, callbacks, data, export, graph, layers, losses, metrics, saving, training, NumPy.
"""

from nnx.models.model import Model
from nnx.models.sequential import Sequential, load

load_model = load

__all__ = ["Model", "Sequential", "load", "load_model"]
