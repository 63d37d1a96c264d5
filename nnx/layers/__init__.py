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
from nnx.layers.conv import Conv1D, Conv2D
from nnx.layers.conv_transpose import Conv2DTranspose
from nnx.layers.dense import Dense
from nnx.layers.depthwise import DepthwiseConv2D, SeparableConv2D
from nnx.layers.dropout import Dropout
from nnx.layers.norm import BatchNormalization
from nnx.layers.pooling import (
    AveragePooling1D,
    AveragePooling2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    MaxPooling1D,
    MaxPooling2D,
)
from nnx.layers.reshape import Flatten, Input, Reshape
from nnx.layers.resize import Cropping1D, Cropping2D, UpSampling2D, ZeroPadding1D, ZeroPadding2D

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Activation",
    "AveragePooling1D",
    "AveragePooling2D",
    "BatchNormalization",
    "Chain",
    "Conv1D",
    "Conv2D",
    "Conv2DTranspose",
    "Cropping1D",
    "Cropping2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "HardSigmoid",
    "Input",
    "Layer",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MaxPooling1D",
    "MaxPooling2D",
    "Mish",
    "Parallel",
    "ReLU",
    "Reshape",
    "Residual",
    "SeparableConv2D",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
    "UpSampling2D",
    "ZeroPadding1D",
    "ZeroPadding2D",
]
