"""nnx: a neural-network engine that trains from one readable source on NumPy, CuPy and JAX."""

import importlib

from nnx import (
    activations,
    callbacks,
    distributed,
    initializers,
    layers,
    losses,
    metrics,
    models,
    optimizers,
    random,
    registry,
    regularizers,
    schedules,
    tree,
    utils,
)
from nnx.backend import (
    Backend,
    BackendError,
    BackendInfo,
    as_backend,
    available_backends,
    get_backend,
    set_backend,
    use_backend,
)
from nnx.callbacks.history import History
from nnx.context import Context
from nnx.errors import NonFiniteError, OutOfMemoryError
from nnx.graph.derivatives import grad, stop_gradient, value_and_grad, vjp
from nnx.graph.graph import GraphError
from nnx.layers import Input
from nnx.models.apply import apply
from nnx.models.model import Model, NotReadyError
from nnx.models.sequential import Sequential, load
from nnx.registry import register

__version__ = "0.1.0"

# Modules that are imported when first used: they need packages that nnx itself does not.
_LAZY = ("compare", "datasets", "diagnosis", "estimators", "onnx", "plot", "testing")


def __getattr__(name: str):
    if name in _LAZY:
        return importlib.import_module(f"nnx.{name}")
    if name == "diagnose":
        return importlib.import_module("nnx.inspect.diagnosis").diagnose
    raise AttributeError(f"module 'nnx' has no attribute {name!r}")


__all__ = [
    "Backend",
    "BackendError",
    "BackendInfo",
    "Context",
    "GraphError",
    "History",
    "Input",
    "Model",
    "NonFiniteError",
    "NotReadyError",
    "OutOfMemoryError",
    "Sequential",
    "activations",
    "apply",
    "as_backend",
    "available_backends",
    "callbacks",
    "distributed",
    "get_backend",
    "grad",
    "initializers",
    "layers",
    "load",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "random",
    "register",
    "registry",
    "regularizers",
    "schedules",
    "set_backend",
    "stop_gradient",
    "tree",
    "use_backend",
    "utils",
    "value_and_grad",
    "vjp",
]
