"""Models, under the module name that Keras gives them: `keras.models.Sequential`, `load_model`."""

from nnx.model import Model
from nnx.sequential import Sequential, load

load_model = load

__all__ = ["Model", "Sequential", "load", "load_model"]
