"""Metrics: computed on the device while training, as sums that batches add to.

A metric is a pair: `update(ctx, target, output, weight) -> sums`, run inside the compiled step
(sums of different batches are added up), and `result(sums) -> float`, run on the host once an
epoch. `weight` has one entry for each sample. Names and defaults are Keras's.

`classification_metrics` and `regression_metrics` report on finished predictions.
"""

import math
import warnings

import numpy as np

from nnx.context import Context
from nnx.layers.containers import snake_case
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
    default_name: str | None = None
    """What it is called in logs, if that is not its class's name in snake case."""

    def __init__(self, name: str | None = None):
        self.name = name or self.default_name or snake_case(type(self).__name__)

    def takes_probabilities(self, output) -> bool:
        """Return whether outputs that the loss takes as logits are turned into probabilities first."""
        return False

    def update(self, ctx, target, output, weight) -> dict:
        """Return this batch's sums: a dict of arrays, weighted by `weight`.

        The weights are those of samples, (batch,), of time steps, (batch, time), or of all outputs.
        """
        raise NotImplementedError

    def update_masked(self, ctx, target, output, weight, mask) -> dict:
        """Return the same sums, over those time steps alone that a mask, (batch, time), counts."""
        if mask is not None and output.ndim > 2 and tuple(output.shape[:2]) == tuple(mask.shape):
            weight = weight[:, None] * ctx.xp.astype(mask, weight.dtype)
        return self.update(ctx, target, output, weight)

    def result(self, sums: dict[str, np.ndarray]) -> float | np.ndarray:
        """Return the value of the metric from the sums over all batches."""
        return float(_ratio(sums["total"], sums["weight"]))

    def __call__(self, y_true, y_pred, sample_weight=None) -> float | np.ndarray:
        target, output, weight = _fitted(type(self).__name__, y_true, y_pred, sample_weight)
        return self.result(self.update(Context("numpy"), target, output, weight))

    def _mean(self, xp, values, weight) -> dict:
        """Return the sums whose `result` is the weighted mean of `values`, (batch, ...)."""
        if values.ndim > weight.ndim:
            values = xp.mean(xp.reshape(values, (*weight.shape, -1)), axis=-1)
        return {"total": xp.sum(values * weight), "weight": xp.sum(weight)}


def _fitted(name: str, y_true, y_pred, weight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return targets, outputs and weights that a metric was called on, in shapes that `update` takes."""
    target, output = np.asarray(y_true), np.asarray(y_pred, dtype=np.float64)
    if target.dtype.kind in "bf":
        target = target.astype(np.float64)
    if output.ndim == 1:
        output = output[:, None]
    if output.shape[-1] == 1 and target.shape == output.shape[:-1]:
        target = target[..., None]
    elif output.shape[-1] > 1 and target.shape == (*output.shape[:-1], 1):  # class numbers in a column
        target = target[..., 0]
    if target.shape not in (output.shape, output.shape[:-1]):
        raise ValueError(
            f"{name}: y_true of shape {np.shape(y_true)} does not fit y_pred of shape {np.shape(y_pred)}: give a "
            f"target for each output, or a class number for each row of outputs"
        )
    weight = np.ones(len(output)) if weight is None else np.asarray(weight, dtype=np.float64)
    if weight.ndim > 1 and weight.shape[-1] == 1 and weight.shape != output.shape:
        weight = weight[..., 0]
    if not 1 <= weight.ndim <= output.ndim or weight.shape != output.shape[: weight.ndim]:
        raise ValueError(
            f"{name}: sample_weight of shape {weight.shape} does not fit y_pred of shape {np.shape(y_pred)}: give "
            f"one weight for each sample, or for each output"
        )
    return target, output, weight


def _same_shape(metric, target, output) -> None:
    """Raise a ValueError unless there is one target for each output."""
    if target.shape != output.shape:
        raise ValueError(
            f"{type(metric).__name__} compares each output with its target, but they have shapes "
            f"{tuple(output.shape)} and {tuple(target.shape)}: with class numbers use accuracy, or one-hot targets"
        )


def _a_weight_a_row(metric, output, weight) -> None:
    """Raise a ValueError if each output has a weight of its own."""
    if weight.ndim == output.ndim and output.shape[-1] > 1:
        raise ValueError(
            f"{type(metric).__name__} counts rows of outputs, but sample_weight has shape {tuple(weight.shape)}: "
            f"give one weight for each row, of shape {tuple(output.shape[:-1])}"
        )


def _for_each(xp, weight, output):
    """Return the weights of samples, or of their time steps, in the shape of an output."""
    weight = xp.reshape(weight, (*weight.shape, *(1,) * (output.ndim - weight.ndim)))
    return weight if tuple(weight.shape) == tuple(output.shape) else xp.broadcast_to(weight, output.shape)


def _true(xp, condition, like):
    return xp.astype(condition, like.dtype)


def _ratio(part, whole):
    """Return part / whole on the host, 0 where the whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.not_equal(whole, 0))


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
        return float(np.sqrt(super().result(sums)))


@_registry.register("r2_score", "r2")
class R2Score(Metric):
    """1 - squared error / variance of the target, averaged over the outputs.

    As in Keras, 0 for an output whose target is constant. Targets are added up in intervals, as their
    distance from the middle of theirs: so their variance is right in float32 when they are far from 0.
    """

    higher_is_better = True
    default_name = "r2_score"

    OCTAVES = -10, 30  # intervals reach from 2**-10 to 2**30, positive and negative

    @staticmethod
    def _intervals_an_octave(outputs: int) -> int:
        return 64 if outputs <= 16 else 8  # many outputs would take much memory

    def update(self, ctx, target, output, weight):
        _same_shape(self, target, output)
        xp = ctx.xp
        w = _for_each(xp, weight, output)
        target, output, w = (xp.reshape(a, (a.shape[0], -1)) for a in (target, output, w))
        count, (low, high) = self._intervals_an_octave(target.shape[1]), self.OCTAVES
        size = xp.abs(target)
        interval = xp.floor(xp.log(xp.maximum(size, 2.0**low)) * (count / math.log(2.0)))
        interval = xp.minimum(interval, float(high * count - 1))
        is_far = _true(xp, size >= 2.0**low, target)
        sign = xp.sign(target)
        off = target - sign * is_far * xp.exp((interval + 0.5) * (math.log(2.0) / count))
        # Interval 0 is around 0; those of positive numbers come before those of negative ones.
        length = (high - low) * count
        index = is_far * (interval + (1.0 - low * count) + length * _true(xp, sign < 0, target))
        columns = ctx.arange(target.shape[1], "int32")
        index = xp.astype(index, xp.int32) * target.shape[1] + columns
        rows = xp.stack([w, w * off, w * off * off], axis=-1)
        sums = ctx.backend.scatter_add(
            xp.reshape(index, (-1,)), xp.reshape(rows, (-1, 3)), (2 * length + 1) * target.shape[1]
        )
        return {
            "error": xp.sum(w * (output - target) ** 2, axis=0),
            "target": xp.reshape(sums, (2 * length + 1, target.shape[1], 3)),
        }

    def result(self, sums):
        weight, off, square = np.moveaxis(sums["target"], -1, 0)
        count, (low, high) = self._intervals_an_octave(weight.shape[1]), self.OCTAVES
        middle = np.exp2((np.arange(low * count, high * count) + 0.5) / count)
        middle = np.concatenate([[0.0], middle, -middle])[:, None]
        total = weight.sum(axis=0)
        centre = middle - _ratio((weight * middle + off).sum(axis=0), total)
        spread = np.sum(weight * centre**2 + 2 * centre * off + square, axis=0)
        varies = spread > 2e-6 * np.sum(square, axis=0)  # less is rounding
        return float(np.mean(np.where(varies, 1 - _ratio(sums["error"], spread), 0.0)))

    def __call__(self, y_true, y_pred, sample_weight=None):
        # All targets are here: no intervals are needed.
        target, output, weight = _fitted(type(self).__name__, y_true, y_pred, sample_weight)
        _same_shape(self, target, output)
        w = _for_each(np, weight, output)
        target, output, w = (np.reshape(a, (len(a), -1)) for a in (target, output, w))
        mean = _ratio((w * target).sum(axis=0), w.sum(axis=0))
        error, spread = (w * (output - target) ** 2).sum(axis=0), (w * (target - mean) ** 2).sum(axis=0)
        return float(np.mean(np.where(spread > 0, 1 - _ratio(error, spread), 0.0)))


@_registry.register("binary_accuracy")
class BinaryAccuracy(Metric):
    """Share of outputs that are above `threshold` where the target is 1, and not above it where it is 0."""

    higher_is_better = True

    def __init__(self, threshold: float = 0.5, name: str | None = None):
        super().__init__(name)
        self.threshold = threshold

    def takes_probabilities(self, output):
        return True

    def update(self, ctx, target, output, weight):
        _same_shape(self, target, output)
        xp = ctx.xp
        right = _true(xp, output > self.threshold, output) == target
        return self._mean(xp, _true(xp, right, output), weight)


@_registry.register("categorical_accuracy")
class CategoricalAccuracy(Metric):
    """Share of samples whose largest output is the one of the one-hot target."""

    higher_is_better = True

    def update(self, ctx, target, output, weight):
        _same_shape(self, target, output)
        _a_weight_a_row(self, output, weight)
        xp = ctx.xp
        right = xp.argmax(output, axis=-1) == xp.argmax(target, axis=-1)
        return self._mean(xp, _true(xp, right, output), weight)


def _class_numbers(metric, target, output) -> None:
    """Raise a ValueError unless targets are class numbers, one for each row of outputs."""
    if target.ndim != output.ndim - 1:
        raise ValueError(
            f"{type(metric).__name__} expects class numbers, of shape {tuple(output.shape[:-1])}, got targets of shape "
            f"{tuple(target.shape)}: for one-hot targets use categorical_accuracy or accuracy"
        )


@_registry.register("sparse_categorical_accuracy")
class SparseCategoricalAccuracy(Metric):
    """Share of samples whose largest output is the one numbered by the target."""

    higher_is_better = True

    def update(self, ctx, target, output, weight):
        if target.ndim == output.ndim and output.shape[-1] == 1:
            target = target[..., 0]
        _class_numbers(self, target, output)
        _a_weight_a_row(self, output, weight)
        xp = ctx.xp
        right = xp.astype(xp.argmax(output, axis=-1), target.dtype) == target
        return self._mean(xp, _true(xp, right, output), weight)


@_registry.register("accuracy", "acc")
class Accuracy(Metric):
    """Binary, categorical or sparse accuracy, whichever fits the shapes of target and output."""

    higher_is_better = True

    _sparse, _binary, _categorical = SparseCategoricalAccuracy(), BinaryAccuracy(), CategoricalAccuracy()

    def takes_probabilities(self, output):
        return output.shape[-1] == 1

    def update(self, ctx, target, output, weight):
        if target.ndim < output.ndim:
            return self._sparse.update(ctx, target, output, weight)
        chosen = self._binary if output.shape[-1] == 1 else self._categorical
        return chosen.update(ctx, target, output, weight)


@_registry.register("top_k_categorical_accuracy")
class TopKCategoricalAccuracy(Metric):
    """Share of samples whose class is among the k largest outputs; target one-hot or class numbers."""

    higher_is_better = True
    default_name = "top_k_categorical_accuracy"

    def __init__(self, k: int = 5, name: str | None = None):
        super().__init__(name)
        self.k = k

    def update(self, ctx, target, output, weight):
        _a_weight_a_row(self, output, weight)
        xp = ctx.xp
        if target.ndim == output.ndim:
            target = xp.argmax(target, axis=-1)
        own = xp.take_along_axis(output, xp.astype(target, xp.int32)[..., None], axis=-1)
        larger = xp.sum(_true(xp, output > own, output), axis=-1)
        return self._mean(xp, _true(xp, larger < self.k, output), weight)


@_registry.register("sparse_top_k_categorical_accuracy")
class SparseTopKCategoricalAccuracy(TopKCategoricalAccuracy):
    """TopKCategoricalAccuracy under Keras's name for class numbers."""

    default_name = "sparse_top_k_categorical_accuracy"


class _Counts(Metric):
    """True and false positives and false negatives, for each output.

    A label counts as predicted if its output is above the threshold; without one, where the target
    is a class number, if its output is the largest.
    """

    higher_is_better = True

    def __init__(self, thresholds, average: str | None, name: str | None):
        super().__init__(name)
        if average not in (None, "micro", "macro", "weighted"):
            raise ValueError(
                f"{type(self).__name__}: average must be None, 'micro', 'macro' or 'weighted', got {average!r}"
            )
        for threshold in np.ravel(() if thresholds is None else thresholds).tolist():
            if not 0 <= threshold <= 1:
                raise ValueError(
                    f"{type(self).__name__}: a threshold must lie between 0 and 1, got {threshold!r}"
                )
        self.average = average

    def takes_probabilities(self, output):
        return True

    def predicted(self, xp, output, is_class: bool):
        """Return which outputs count as predicted, one array for each threshold."""
        raise NotImplementedError

    def update(self, ctx, target, output, weight):
        xp = ctx.xp
        is_class = target.ndim < output.ndim
        if is_class:
            actual = target[..., None] == ctx.arange(output.shape[-1], "int32")
        else:
            _same_shape(self, target, output)
            actual = target > 0.5
        actual = xp.reshape(_true(xp, actual, output), (-1, output.shape[-1]))
        w = xp.reshape(_for_each(xp, weight, output), actual.shape)
        each = []
        for chosen in self.predicted(xp, output, is_class):
            predicted = xp.reshape(_true(xp, chosen, output), actual.shape)
            counts = predicted * actual, predicted * (1.0 - actual), (1.0 - predicted) * actual
            each.append([xp.sum(w * count, axis=0) for count in counts])
        tp, fp, fn = (xp.stack(counts) for counts in zip(*each, strict=True))
        return {"tp": tp, "fp": fp, "fn": fn}

    def score(self, tp, fp, fn):
        raise NotImplementedError

    def result(self, sums):
        """Return the score: a number, or an array of one for each threshold or class if there are several."""
        counts = [sums[name] for name in ("tp", "fp", "fn")]
        if self.average == "micro":
            counts = [np.sum(count, axis=-1, keepdims=True) for count in counts]
        scores = self.score(*counts)
        if self.average == "weighted":
            actual = counts[0] + counts[2]
            scores = _ratio(np.sum(scores * actual, axis=-1), np.sum(actual, axis=-1))
        elif self.average is not None:
            scores = np.mean(scores, axis=-1)
        scores = np.squeeze(scores)
        return float(scores) if scores.ndim == 0 else scores


def _largest(xp, output):
    """Return which outputs are the first largest of their row."""
    classes = xp.arange(output.shape[-1])
    return xp.argmax(output, axis=-1)[..., None] == classes


class _Thresholds(_Counts):
    def __init__(self, thresholds=None, average: str | None = "micro", name: str | None = None):
        super().__init__(thresholds, average, name)
        self.thresholds = thresholds

    def predicted(self, xp, output, is_class):
        if self.thresholds is None and is_class:
            return [_largest(xp, output)]
        return [output > t for t in np.ravel(0.5 if self.thresholds is None else self.thresholds).tolist()]


@_registry.register("precision")
class Precision(_Thresholds):
    """True positives / predicted positives, of all outputs together (micro).

    Parameters
    ----------
    thresholds : float or list of float, optional
        Above which an output counts as predicted; of several there is a value for each. By default 0.5;
        where the target is a class number, the largest output is predicted.
    average : {"micro", "macro", "weighted"} or None
        Of all outputs together, the mean over them, that weighted by their positives, or one for each.
    """

    def score(self, tp, fp, fn):
        return _ratio(tp, tp + fp)


@_registry.register("recall")
class Recall(_Thresholds):
    """True positives / actual positives, of all outputs together (micro); for the arguments see `Precision`."""

    def score(self, tp, fp, fn):
        return _ratio(tp, tp + fn)


@_registry.register("f1_score", "f1")
class F1Score(_Counts):
    """2 * precision * recall / (precision + recall), of each output.

    Parameters
    ----------
    average : {None, "micro", "macro", "weighted"}
        None gives one value for each output, "micro" that of all together, "macro" the mean over the
        outputs, "weighted" the mean weighted by their positives.
    threshold : float, optional
        Above which an output counts as predicted. By default the largest output of each row does: give
        a threshold where a sample may have several labels or none, and where there is one output.

    Examples
    --------
    >>> import nnx
    >>> nnx.metrics.F1Score()([[1, 0], [0, 1], [0, 1]], [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]).round(2)
    array([0.67, 0.67])
    """

    default_name = "f1_score"

    def __init__(self, average: str | None = None, threshold: float | None = None, name: str | None = None):
        super().__init__(threshold, average, name)
        self.threshold = threshold

    def predicted(self, xp, output, is_class):
        if self.threshold is not None:
            return [output > self.threshold]
        if output.shape[-1] == 1:
            warnings.warn(
                "F1Score of one output without a threshold counts each sample as predicted, as in Keras: give "
                "nnx.metrics.F1Score(threshold=0.5)",
                stacklevel=2,
            )
        largest = xp.max(output, axis=-1, keepdims=True)
        return [(output >= largest) & (xp.abs(output) > 1e-9)]

    def score(self, tp, fp, fn):
        return _ratio(2 * tp, 2 * tp + fp + fn)


@_registry.register("auc")
class AUC(Metric):
    """Area under the ROC curve of probabilities: how often a positive has a higher one than a negative.

    nan if all targets are positive, or none is.

    Parameters
    ----------
    num_thresholds : int
        With less than 200, the curve has that many points, evenly spread as in Keras. Otherwise it has
        some thousands, evenly spread and close together near 0 and 1, where those of rare classes are.
    """

    higher_is_better = True

    EVEN, LOG, NEAREST = 2000, 32, 1e-12

    def __init__(self, num_thresholds: int = 200, name: str | None = None):
        super().__init__(name)
        if num_thresholds < 2:
            raise ValueError(f"AUC: num_thresholds must be at least 2, got {num_thresholds}")
        self.num_thresholds = num_thresholds

    def takes_probabilities(self, output):
        return True

    def update(self, ctx, target, output, weight):
        if target.ndim < output.ndim:
            raise ValueError(
                "AUC expects one probability for each label: a sigmoid output or one-hot targets"
            )
        _same_shape(self, target, output)
        xp = ctx.xp
        rows = xp.reshape(_for_each(xp, weight, output), (-1,))
        actual = _true(xp, xp.reshape(target, (-1,)) > 0.5, output)
        index, length = self._intervals(xp, xp.reshape(output, (-1,)))
        counts = xp.stack([rows * actual, rows * (1.0 - actual)], axis=-1)
        counts = ctx.backend.scatter_add(xp.astype(index, xp.int32), counts, length)
        return {"positive": counts[:, 0], "negative": counts[:, 1]}

    def _intervals(self, xp, p):
        """Return in which interval between two thresholds each probability lies, and how many there are."""
        p = xp.minimum(xp.maximum(p, 0.0), 1.0)
        if self.num_thresholds < 200:
            return xp.maximum(xp.ceil(p * (self.num_thresholds - 1)) - 1, 0.0), self.num_thresholds - 1
        most = -self.LOG * math.log(self.NEAREST)
        logit = xp.log(p + self.NEAREST) - xp.log(1.0 - p + self.NEAREST)
        return xp.floor(self.EVEN * p + self.LOG * logit + (most + 1)), math.ceil(self.EVEN + 2 * most) + 2

    def result(self, sums):
        positive, negative = sums["positive"], sums["negative"]
        pairs = positive.sum() * negative.sum()
        if pairs == 0:
            return math.nan
        above = positive.sum() - np.cumsum(positive)
        return float(np.sum(negative * (above + positive / 2)) / pairs)

    def __call__(self, y_true, y_pred, sample_weight=None):
        output = np.asarray(y_pred, dtype=np.float64)
        if output.size and not (output.min() >= 0 and output.max() <= 1):
            raise ValueError(
                f"AUC expects probabilities, got outputs from {output.min():.4g} to {output.max():.4g}: apply a "
                f"sigmoid or softmax first"
            )
        if self.num_thresholds < 200:
            return super().__call__(y_true, y_pred, sample_weight)
        # All scores are here: sorted, they give the area exactly.
        target, output, weight = _fitted(type(self).__name__, y_true, y_pred, sample_weight)
        _same_shape(self, target, output)
        is_positive, w = np.ravel(target) > 0.5, np.ravel(_for_each(np, weight, output))
        _, place = np.unique(output, return_inverse=True)
        positives, negatives = (np.bincount(np.ravel(place), w * of) for of in (is_positive, ~is_positive))
        if not (positives.any() and negatives.any()):
            return math.nan
        below = np.cumsum(negatives) - negatives / 2  # those of the same score count half
        return float(positives @ below / (positives.sum() * negatives.sum()))


def get(metric) -> Metric:
    """Return the metric of this name; it is then shown under that very name, as in Keras."""
    found = _registry.get(metric, Metric)
    if isinstance(metric, str):
        found.name = metric
    return found
