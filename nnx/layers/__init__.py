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
from nnx.layers.dropout import Dropout, SpatialDropout1D, SpatialDropout2D
from nnx.layers.embedding import Embedding
from nnx.layers.function import Lambda
from nnx.layers.noise import AlphaDropout, GaussianDropout, GaussianNoise
from nnx.layers.norm import BatchNormalization
from nnx.layers.prelu import PReLU
from nnx.layers.reshape import Flatten, Input, Permute, RepeatVector, Reshape
from nnx.layers.sample_norm import GroupNormalization, LayerNormalization, RMSNormalization

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Activation",
    "AlphaDropout",
    "BatchNormalization",
    "Chain",
    "Dense",
    "Dropout",
    "Embedding",
    "Flatten",
    "GaussianDropout",
    "GaussianNoise",
    "GroupNormalization",
    "HardSigmoid",
    "Input",
    "Lambda",
    "Layer",
    "LayerNormalization",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Mish",
    "PReLU",
    "Parallel",
    "Permute",
    "RMSNormalization",
    "ReLU",
    "RepeatVector",
    "Reshape",
    "Residual",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "Tanh",
]
