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
from nnx.layers.sample_norm import GroupNormalization, LayerNormalization, RMSNormalization

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
    "GroupNormalization",
    "HardSigmoid",
    "Input",
    "Layer",
    "LayerNormalization",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Mish",
    "Parallel",
    "RMSNormalization",
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
