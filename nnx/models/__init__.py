"""Models: `Model` and `Sequential`, which hold weights, their summary, and `nnx.apply`.

The module name is the one that Keras gives them: `keras.models.Sequential`, `load_model`.

May import: core, callbacks, data, export, graph, layers, losses, metrics, saving, training, NumPy.
"""

from nnx.models.model import Model
from nnx.models.sequential import Sequential, load

load_model = load

__all__ = ["Model", "Sequential", "load", "load_model"]
