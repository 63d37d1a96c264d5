"""Layers, under the names that Keras gives them.

May import: core, activations, graph.
"""

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
from nnx.layers.attention import MultiHeadAttention
from nnx.layers.base import Layer
from nnx.layers.batch_normalization import BatchNormalization
from nnx.layers.containers import Chain, Residual
from nnx.layers.conv import Conv1D, Conv2D
from nnx.layers.conv_transpose import Conv2DTranspose
from nnx.layers.dense import Dense
from nnx.layers.depthwise import DepthwiseConv2D, SeparableConv2D
from nnx.layers.dropout import Dropout, SpatialDropout1D, SpatialDropout2D
from nnx.layers.embedding import Embedding
from nnx.layers.gru import GRU
from nnx.layers.lambda_layer import Lambda
from nnx.layers.layer_normalization import GroupNormalization, LayerNormalization, RMSNormalization
from nnx.layers.lstm import LSTM
from nnx.layers.noise import AlphaDropout, GaussianDropout, GaussianNoise
from nnx.layers.parallel import Inputs, Outputs, Parallel
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
from nnx.layers.positions import PositionEmbedding, RotaryPositions, SinusoidalPositions
from nnx.layers.prelu import PReLU
from nnx.layers.reshape import Flatten, Input, Permute, RepeatVector, Reshape
from nnx.layers.resize import Cropping1D, Cropping2D, UpSampling2D, ZeroPadding1D, ZeroPadding2D
from nnx.layers.sequences import Bidirectional, Masking, TimeDistributed
from nnx.layers.simple_rnn import SimpleRNN
from nnx.layers.transformer import TransformerBlock

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "SELU",
    "Activation",
    "AlphaDropout",
    "AveragePooling1D",
    "AveragePooling2D",
    "BatchNormalization",
    "Bidirectional",
    "Chain",
    "Conv1D",
    "Conv2D",
    "Conv2DTranspose",
    "Cropping1D",
    "Cropping2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Embedding",
    "Flatten",
    "GaussianDropout",
    "GaussianNoise",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "GroupNormalization",
    "HardSigmoid",
    "Input",
    "Inputs",
    "Lambda",
    "Layer",
    "LayerNormalization",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Masking",
    "MaxPooling1D",
    "MaxPooling2D",
    "Mish",
    "MultiHeadAttention",
    "Outputs",
    "PReLU",
    "Parallel",
    "Permute",
    "PositionEmbedding",
    "RMSNormalization",
    "ReLU",
    "RepeatVector",
    "Reshape",
    "Residual",
    "RotaryPositions",
    "SeparableConv2D",
    "SiLU",
    "Sigmoid",
    "SimpleRNN",
    "SinusoidalPositions",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "Tanh",
    "TimeDistributed",
    "TransformerBlock",
    "UpSampling2D",
    "ZeroPadding1D",
    "ZeroPadding2D",
]
