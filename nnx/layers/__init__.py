"""Layers, under the names that Keras gives them."""

from nnx.layers.activation import (
    ELU,
    GELU,
    SELU,
    Activation,
    HardSigmoid,
    LeakyReLU,
    Linear,
    LogSoftmax,
    Mish,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Softsign,
    Tanh,
)
from nnx.layers.base import Layer
from nnx.layers.combine import Chain, Parallel, Residual
from nnx.layers.dense import Dense
from nnx.layers.dropout import Dropout
from nnx.layers.norm import BatchNormalization
from nnx.layers.reshape import Flatten, Input, Reshape

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Activation",
    "BatchNormalization",
    "Chain",
    "Dense",
    "Dropout",
    "Flatten",
    "HardSigmoid",
    "Input",
    "Layer",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Mish",
    "Parallel",
    "ReLU",
    "Reshape",
    "Residual",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
]
