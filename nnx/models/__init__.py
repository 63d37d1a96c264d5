"""Models: `Model` and `Sequential`, which hold weights, their summary, and `nnx.apply`.

The module name is the one that Keras gives them: `keras.models.Sequential`, `load_model`.
Imports all other folders but the estimators, compare and plot.
"""

from nnx.models.model import Model
from nnx.models.sequential import Sequential, load

load_model = load

__all__ = ["Model", "Sequential", "load", "load_model"]
