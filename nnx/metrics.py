"""Metrics: computed on the device while training, as sums that batches add to.

A metric is a pair: `update(ctx, target, output, weight) -> sums`, run inside the compiled step
(sums of different batches are added up), and `result(sums) -> float`, run on the host once an
epoch. `weight` has one entry for each sample. Names and defaults are Keras's.

`classification_metrics` and `regression_metrics` report on finished predictions.
"""

import math

import numpy as np

from nnx.context import Context
from nnx.layers.combine import snake_case
from nnx.registry import REGISTRIES, Configurable
from nnx.reports import classification_metrics as classification_metrics
from nnx.reports import regression_metrics as regression_metrics

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

_registry = REGISTRIES["metric"]

EPSILON = 1e-7


class Metric(Configurable):
    """Base of all metrics. Called on arrays, it returns its value for them.

    Examples
    --------
    >>> import nnx
    >>> nnx.metrics.BinaryAccuracy()([[1], [0]], [[0.9], [0.6]])
    0.5
    """

    kind = "metric"
    higher_is_better: bool | None = None
    """Whether a larger value is better: True, False, or None if that is not known."""

    def __init__(self, name: str | None = None):
        self.name = name or snake_case(type(self).__name__)

    def update(self, ctx, target, output, weight) -> dict:
        """Return this batch's sums: a dict of arrays, weighted by `weight`, (batch,) or (batch, time)."""
        raise NotImplementedError

    def update_masked(self, ctx, target, output, weight, mask) -> dict:
        """Return the same sums, over those time steps alone that a mask, (batch, time), counts."""
        if mask is not None and output.ndim > 2 and tuple(output.shape[:2]) == tuple(mask.shape):
            weight = weight[:, None] * ctx.xp.astype(mask, weight.dtype)
        return self.update(ctx, target, output, weight)

    def result(self, sums: dict[str, np.ndarray]) -> float:
        """Return the value of the metric from the sums over all batches."""
        return float(sums["total"] / max(float(sums["weight"]), EPSILON))

    def __call__(self, y_true, y_pred, sample_weight=None) -> float:
        y_true, y_pred = np.asarray(y_true), np.asarray(y_pred, dtype=np.float64)
        if y_pred.ndim == 1:
            y_pred = y_pred[:, None]
        if y_true.ndim == y_pred.ndim - 1 and y_pred.shape[-1] == 1:
            y_true = y_true[..., None]
        weight = (
            np.ones(len(y_pred)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        )
        return self.result(self.update(Context("numpy"), y_true, y_pred, weight))

    def _mean(self, xp, values, weight) -> dict:
        """Return the sums whose `result` is the weighted mean of `values`, (batch, ...)."""
        if values.ndim > weight.ndim:
            values = xp.mean(xp.reshape(values, (*weight.shape, -1)), axis=-1)
        return {"total": xp.sum(values * weight), "weight": xp.sum(weight)}


def _same_shape(metric, target, output) -> None:
    """Raise a ValueError unless there is one target for each output."""
    if target.shape != output.shape:
        raise ValueError(
            f"{type(metric).__name__} compares each output with its target, but they have shapes "
            f"{tuple(output.shape)} and {tuple(target.shape)}: with class numbers use accuracy, or one-hot targets"
        )


def _for_each(xp, weight, output):
    """Return the weights of samples, or of their time steps, in the shape of an output."""
    return xp.broadcast_to(
        xp.reshape(weight, (*weight.shape, *(1,) * (output.ndim - weight.ndim))), output.shape
    )


def _true(xp, condition, like):
    return xp.astype(condition, like.dtype)


@_registry.register("mean_squared_error", "mse")
class MeanSquaredError(Metric):
    """mean (output - target)**2"""

    higher_is_better = False

    def update(self, ctx, target, output, weight):
        _same_shape(self, target, output)
        return self._mean(ctx.xp, (output - target) ** 2, weight)


@_registry.register("mean_absolute_error", "mae")
class MeanAbsoluteError(Metric):
    """mean |output - target|"""

    higher_is_better = False

    def update(self, ctx, target, output, weight):
        _same_shape(self, target, output)
        return self._mean(ctx.xp, ctx.xp.abs(output - target), weight)


@_registry.register("root_mean_squared_error", "rmse")
class RootMeanSquaredError(MeanSquaredError):
    """Square root of the mean squared error."""

    def result(self, sums):
        return math.sqrt(super().result(sums))


@_registry.register("r2_score", "r2")
class R2Score(Metric):
    """1 - squared error / variance of the target, averaged over the outputs.

    As in Keras, 0 for an output whose target is constant. Summed in the precision of the model: in
    float32, standardise targets whose mean is far larger than their spread.
    """

    higher_is_better = True

    def update(self, ctx, target, output, weight):
        _same_shape(self, target, output)
        xp = ctx.xp
        w = _for_each(xp, weight, output)
        target, output, w = (xp.reshape(a, (a.shape[0], -1)) for a in (target, output, w))
        return {
            "error": xp.sum(w * (output - target) ** 2, axis=0),
            "sum": xp.sum(w * target, axis=0),
            "square": xp.sum(w * target * target, axis=0),
            "weight": xp.sum(w, axis=0),
        }

    def result(self, sums):
        spread = sums["square"] - sums["sum"] ** 2 / np.maximum(sums["weight"], EPSILON)
        varies = spread > 1e-12 * sums["square"]  # less is rounding
        return float(np.mean(np.where(varies, 1 - sums["error"] / np.where(varies, spread, 1.0), 0.0)))


@_registry.register("binary_accuracy")
class BinaryAccuracy(Metric):
    """Share of outputs on the right side of `threshold`."""

    higher_is_better = True

    def __init__(self, threshold: float = 0.5, name: str | None = None):
        super().__init__(name)
        self.threshold = threshold

    def update(self, ctx, target, output, weight):
        xp = ctx.xp
        right = (output > self.threshold) == (target > self.threshold)
        return self._mean(xp, _true(xp, right, output), weight)


@_registry.register("categorical_accuracy")
class CategoricalAccuracy(Metric):
    """Share of samples whose largest output is the one of the one-hot target."""

    higher_is_better = True

    def update(self, ctx, target, output, weight):
        xp = ctx.xp
        right = xp.argmax(output, axis=-1) == xp.argmax(target, axis=-1)
        return self._mean(xp, _true(xp, right, output), weight)


@_registry.register("sparse_categorical_accuracy")
class SparseCategoricalAccuracy(Metric):
    """Share of samples whose largest output is the one numbered by the target."""

    higher_is_better = True

    def update(self, ctx, target, output, weight):
        xp = ctx.xp
        right = xp.astype(xp.argmax(output, axis=-1), target.dtype) == target
        return self._mean(xp, _true(xp, right, output), weight)


@_registry.register("accuracy", "acc")
class Accuracy(Metric):
    """Binary, categorical or sparse accuracy, whichever fits the shapes of target and output."""

    higher_is_better = True

    _sparse, _binary, _categorical = SparseCategoricalAccuracy(), BinaryAccuracy(), CategoricalAccuracy()

    def update(self, ctx, target, output, weight):
        if target.ndim < output.ndim:
            return self._sparse.update(ctx, target, output, weight)
        chosen = self._binary if output.shape[-1] == 1 else self._categorical
        return chosen.update(ctx, target, output, weight)


@_registry.register("top_k_categorical_accuracy")
class TopKCategoricalAccuracy(Metric):
    """Share of samples whose class is among the k largest outputs; target one-hot or class numbers."""

    higher_is_better = True

    def __init__(self, k: int = 5, name: str | None = None):
        super().__init__(name)
        self.k = k

    def update(self, ctx, target, output, weight):
        xp = ctx.xp
        if target.ndim == output.ndim:
            target = xp.argmax(target, axis=-1)
        own = xp.take_along_axis(output, xp.astype(target, xp.int32)[..., None], axis=-1)
        larger = xp.sum(_true(xp, output > own, output), axis=-1)
        return self._mean(xp, _true(xp, larger < self.k, output), weight)


@_registry.register("sparse_top_k_categorical_accuracy")
class SparseTopKCategoricalAccuracy(TopKCategoricalAccuracy):
    """TopKCategoricalAccuracy under Keras's name for class numbers."""


class _Counts(Metric):
    """True and false positives and false negatives, for each output.

    A label counts as predicted if its output is above `threshold`; where the target is a class
    number, if its output is the largest.
    """

    higher_is_better = True

    def __init__(self, threshold: float, average: str, name: str | None):
        super().__init__(name)
        if average not in ("micro", "macro"):
            raise ValueError(f"{type(self).__name__}: average must be 'micro' or 'macro', got {average!r}")
        self.threshold = threshold
        self.average = average

    def update(self, ctx, target, output, weight):
        xp, columns = ctx.xp, (math.prod(weight.shape), -1, output.shape[-1])
        if target.ndim < output.ndim:
            classes = ctx.arange(output.shape[-1], "int32")
            predicted = xp.astype(xp.argmax(output, axis=-1), xp.int32)[..., None] == classes
            actual = target[..., None] == classes
        else:
            predicted, actual = output > self.threshold, target > 0.5
        predicted, actual = (xp.reshape(_true(xp, a, output), columns) for a in (predicted, actual))
        w = xp.reshape(weight, (-1, 1, 1))
        return {
            "tp": xp.sum(w * predicted * actual, axis=(0, 1)),
            "fp": xp.sum(w * predicted * (1.0 - actual), axis=(0, 1)),
            "fn": xp.sum(w * (1.0 - predicted) * actual, axis=(0, 1)),
        }

    def score(self, tp, fp, fn):
        raise NotImplementedError

    def result(self, sums):
        counts = [sums[name] for name in ("tp", "fp", "fn")]
        if self.average == "micro":
            counts = [np.sum(count) for count in counts]
        return float(np.mean(self.score(*counts)))


@_registry.register("precision")
class Precision(_Counts):
    """True positives / predicted positives, of all outputs together (micro) or their mean (macro)."""

    def __init__(self, thresholds: float | None = None, average: str = "micro", name: str | None = None):
        super().__init__(0.5 if thresholds is None else thresholds, average, name)
        self.thresholds = thresholds

    def score(self, tp, fp, fn):
        return tp / np.maximum(tp + fp, EPSILON)


@_registry.register("recall")
class Recall(_Counts):
    """True positives / actual positives, of all outputs together (micro) or their mean (macro)."""

    def __init__(self, thresholds: float | None = None, average: str = "micro", name: str | None = None):
        super().__init__(0.5 if thresholds is None else thresholds, average, name)
        self.thresholds = thresholds

    def score(self, tp, fp, fn):
        return tp / np.maximum(tp + fn, EPSILON)


@_registry.register("f1_score", "f1")
class F1Score(_Counts):
    """2 * precision * recall / (precision + recall), by default the mean over the classes."""

    def __init__(self, average: str = "macro", threshold: float = 0.5, name: str | None = None):
        super().__init__(threshold, average, name)

    def score(self, tp, fp, fn):
        return 2 * tp / np.maximum(2 * tp + fp + fn, EPSILON)


@_registry.register("auc")
class AUC(Metric):
    """Area under the ROC curve of probabilities, by the trapezoids between `num_thresholds` points."""

    higher_is_better = True

    def __init__(self, num_thresholds: int = 200, name: str | None = None):
        super().__init__(name)
        if num_thresholds < 2:
            raise ValueError(f"AUC: num_thresholds must be at least 2, got {num_thresholds}")
        self.num_thresholds = num_thresholds

    def update(self, ctx, target, output, weight):
        if target.ndim < output.ndim:
            raise ValueError(
                "AUC expects one probability for each label: a sigmoid output or one-hot targets"
            )
        xp, last = ctx.xp, self.num_thresholds - 1
        rows = xp.reshape(_for_each(xp, weight, output), (-1,))
        target, output = xp.reshape(target, (-1,)), xp.reshape(output, (-1,))
        # From just below 0 to just above 1, so that the curve starts and ends in its corners.
        thresholds = xp.astype(ctx.arange(last + 1, "int32"), output.dtype) / last
        thresholds = xp.where(thresholds == 0, -EPSILON, xp.where(thresholds == 1, 1 + EPSILON, thresholds))
        above = _true(xp, output[None, :] > thresholds[:, None], output)
        return {"tp": xp.matmul(above, rows * target), "fp": xp.matmul(above, rows * (1.0 - target))}

    def result(self, sums):
        tp, fp = sums["tp"], sums["fp"]
        hit_rate, false_rate = tp / max(tp[0], EPSILON), fp / max(fp[0], EPSILON)
        return float(np.sum((false_rate[:-1] - false_rate[1:]) * (hit_rate[:-1] + hit_rate[1:]) / 2))


def get(metric) -> Metric:
    """Return the metric of this name; it is then shown under that very name, as in Keras."""
    found = _registry.get(metric, Metric)
    if isinstance(metric, str):
        found.name = metric
    return found
