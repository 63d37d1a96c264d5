"""Metrics, computed on the device during training as sums over batches.

A metric is a pair: `update(ctx, target, output, weight) -> sums` runs inside the compiled step, and the
sums of all batches are added; `result(sums) -> float` runs on the host once an epoch. `weight` has one
entry for each sample. Names and defaults are Keras's.

`classification_metrics` and `regression_metrics` evaluate finished predictions.

May import: core, NumPy.
"""

from nnx.metrics.base import Metric, get
from nnx.metrics.classification import (
    AUC,
    Accuracy,
    BinaryAccuracy,
    CategoricalAccuracy,
    F1Score,
    Precision,
    Recall,
    SparseCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
    TopKCategoricalAccuracy,
)
from nnx.metrics.regression import MeanAbsoluteError, MeanSquaredError, R2Score, RootMeanSquaredError
from nnx.metrics.reports import classification_metrics, regression_metrics

__all__ = [
    "AUC",
    "Accuracy",
    "BinaryAccuracy",
    "CategoricalAccuracy",
    "F1Score",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "Precision",
    "R2Score",
    "Recall",
    "RootMeanSquaredError",
    "SparseCategoricalAccuracy",
    "SparseTopKCategoricalAccuracy",
    "TopKCategoricalAccuracy",
    "classification_metrics",
    "get",
    "regression_metrics",
]
