"""Losses: the error of a prediction and its gradient, one value for each sample.

A loss is a pure function like a layer's:

    values, pullback = loss.forward(ctx, target, output)
    doutput = pullback(dvalues)                     # dvalues = dL/dvalues, one for each sample

with target and output (batch, ..., features) and values (batch, ...). Names, defaults and
formulas are Keras's. A compiled model computes cross-entropies after a softmax or sigmoid from the
logits (`with_logits`), in one stable formula.

May import: core, activations, data, graph, metrics.
"""

from nnx.losses.base import FunctionLoss, Loss, get
from nnx.losses.classification import (
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    Hinge,
    KLDivergence,
    SparseCategoricalCrossentropy,
    SquaredHinge,
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    hinge,
    kl_divergence,
    sparse_categorical_crossentropy,
    squared_hinge,
)
from nnx.losses.regression import (
    Huber,
    LogCosh,
    MeanAbsoluteError,
    MeanSquaredError,
    Poisson,
    Quantile,
    huber,
    log_cosh,
    mean_absolute_error,
    mean_squared_error,
    poisson,
    quantile,
)

__all__ = [
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "CategoricalCrossentropy",
    "CategoricalFocalCrossentropy",
    "FunctionLoss",
    "Hinge",
    "Huber",
    "KLDivergence",
    "LogCosh",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Poisson",
    "Quantile",
    "SparseCategoricalCrossentropy",
    "SquaredHinge",
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "categorical_crossentropy",
    "categorical_focal_crossentropy",
    "get",
    "hinge",
    "huber",
    "kl_divergence",
    "log_cosh",
    "mean_absolute_error",
    "mean_squared_error",
    "poisson",
    "quantile",
    "sparse_categorical_crossentropy",
    "squared_hinge",
]
