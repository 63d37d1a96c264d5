"""Metrics of classes: accuracies, precision, recall, F1 and the area under the ROC curve."""

import math
import warnings

import numpy as np

from nnx.metrics.base import (
    Metric,
    as_arrays,
    as_numbers,
    expect_same_shape,
    ratio,
    register,
    weight_per_output,
)


def expect_weight_per_row(metric, output, weight) -> None:
    """Raise a ValueError if there is a weight for each output instead of each row."""
    if weight.ndim == output.ndim and output.shape[-1] > 1:
        raise ValueError(
            f"{type(metric).__name__} counts rows of outputs, but sample_weight has shape {tuple(weight.shape)}: "
            f"give one weight for each row, of shape {tuple(output.shape[:-1])}"
        )


@register("binary_accuracy")
class BinaryAccuracy(Metric):
    """Share of outputs that are above `threshold` where the target is 1, and not above it where it is 0."""

    higher_is_better = True

    def __init__(self, threshold: float = 0.5, name: str | None = None):
        super().__init__(name)
        self.threshold = threshold

    def takes_probabilities(self, output):
        return True

    def update(self, ctx, target, output, weight):
        expect_same_shape(self, target, output)
        xp = ctx.xp
        right = as_numbers(xp, output > self.threshold, output) == target
        return self._mean(xp, as_numbers(xp, right, output), weight)


@register("categorical_accuracy")
class CategoricalAccuracy(Metric):
    """Share of samples whose largest output is that of the target's class; target one-hot."""

    higher_is_better = True

    def update(self, ctx, target, output, weight):
        expect_same_shape(self, target, output)
        expect_weight_per_row(self, output, weight)
        xp = ctx.xp
        right = xp.argmax(output, axis=-1) == xp.argmax(target, axis=-1)
        return self._mean(xp, as_numbers(xp, right, output), weight)


def _expect_class_numbers(metric, target, output) -> None:
    """Raise a ValueError unless targets are class indices, one for each row of outputs."""
    if target.ndim != output.ndim - 1:
        raise ValueError(
            f"{type(metric).__name__} expects class numbers, of shape {tuple(output.shape[:-1])}, got targets of shape "
            f"{tuple(target.shape)}: for one-hot targets use categorical_accuracy or accuracy"
        )


@register("sparse_categorical_accuracy")
class SparseCategoricalAccuracy(Metric):
    """Share of samples whose largest output is that of the target's class; target class indices."""

    higher_is_better = True

    def update(self, ctx, target, output, weight):
        if target.ndim == output.ndim and output.shape[-1] == 1:
            target = target[..., 0]
        _expect_class_numbers(self, target, output)
        expect_weight_per_row(self, output, weight)
        xp = ctx.xp
        right = xp.astype(xp.argmax(output, axis=-1), target.dtype) == target
        return self._mean(xp, as_numbers(xp, right, output), weight)


@register("accuracy", "acc")
class Accuracy(Metric):
    """Binary, categorical or sparse accuracy, depending on the shapes of target and output."""

    higher_is_better = True

    _sparse, _binary, _categorical = SparseCategoricalAccuracy(), BinaryAccuracy(), CategoricalAccuracy()

    def takes_probabilities(self, output):
        return output.shape[-1] == 1

    def update(self, ctx, target, output, weight):
        if target.ndim < output.ndim:
            return self._sparse.update(ctx, target, output, weight)
        chosen = self._binary if output.shape[-1] == 1 else self._categorical
        return chosen.update(ctx, target, output, weight)


@register("top_k_categorical_accuracy")
class TopKCategoricalAccuracy(Metric):
    """Share of samples whose class is among the k largest outputs; target one-hot or class indices."""

    higher_is_better = True
    default_name = "top_k_categorical_accuracy"

    def __init__(self, k: int = 5, name: str | None = None):
        super().__init__(name)
        self.k = k

    def update(self, ctx, target, output, weight):
        expect_weight_per_row(self, output, weight)
        xp = ctx.xp
        if target.ndim == output.ndim:
            target = xp.argmax(target, axis=-1)
        own = xp.take_along_axis(output, xp.astype(target, xp.int32)[..., None], axis=-1)
        larger = xp.sum(as_numbers(xp, output > own, output), axis=-1)
        return self._mean(xp, as_numbers(xp, larger < self.k, output), weight)


@register("sparse_top_k_categorical_accuracy")
class SparseTopKCategoricalAccuracy(TopKCategoricalAccuracy):
    """TopKCategoricalAccuracy under Keras's name for class indices."""

    default_name = "sparse_top_k_categorical_accuracy"


class _Counts(Metric):
    """True and false positives and false negatives, for each output.

    A label is predicted if its output is above the threshold; for targets that are class indices, without
    a threshold, if its output is the largest.
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
        """Return which outputs are predicted, one array for each threshold."""
        raise NotImplementedError

    def update(self, ctx, target, output, weight):
        xp = ctx.xp
        is_class = target.ndim < output.ndim
        if is_class:
            actual = target[..., None] == ctx.arange(output.shape[-1], "int32")
        else:
            expect_same_shape(self, target, output)
            actual = target > 0.5
        actual = xp.reshape(as_numbers(xp, actual, output), (-1, output.shape[-1]))
        w = xp.reshape(weight_per_output(xp, weight, output), actual.shape)
        each = []
        for chosen in self.predicted(xp, output, is_class):
            predicted = xp.reshape(as_numbers(xp, chosen, output), actual.shape)
            counts = predicted * actual, predicted * (1.0 - actual), (1.0 - predicted) * actual
            each.append([xp.sum(w * count, axis=0) for count in counts])
        tp, fp, fn = (xp.stack(counts) for counts in zip(*each, strict=True))
        return {"tp": tp, "fp": fp, "fn": fn}

    def score(self, tp, fp, fn):
        raise NotImplementedError

    def result(self, sums):
        """Return the score, or an array of the scores of several thresholds or classes."""
        counts = [sums[name] for name in ("tp", "fp", "fn")]
        if self.average == "micro":
            counts = [np.sum(count, axis=-1, keepdims=True) for count in counts]
        scores = self.score(*counts)
        if self.average == "weighted":
            actual = counts[0] + counts[2]
            scores = ratio(np.sum(scores * actual, axis=-1), np.sum(actual, axis=-1))
        elif self.average is not None:
            scores = np.mean(scores, axis=-1)
        scores = np.squeeze(scores)
        return float(scores) if scores.ndim == 0 else scores


class _Thresholds(_Counts):
    def __init__(self, thresholds=None, average: str | None = "micro", name: str | None = None):
        super().__init__(thresholds, average, name)
        self.thresholds = thresholds

    def predicted(self, xp, output, is_class):
        if self.thresholds is None and is_class:
            return [xp.argmax(output, axis=-1)[..., None] == xp.arange(output.shape[-1])]
        return [output > t for t in np.ravel(0.5 if self.thresholds is None else self.thresholds).tolist()]


@register("precision")
class Precision(_Thresholds):
    """True positives / predicted positives, of all outputs together (micro).

    Parameters
    ----------
    thresholds : float or list of float, optional
        An output above it is predicted; several thresholds give one value each. By default 0.5, or, for
        targets that are class indices, only the largest output is predicted.
    average : {"micro", "macro", "weighted"} or None
        One value of all outputs together, the mean over the outputs, the mean weighted by their positives,
        or one value for each output.
    """

    def score(self, tp, fp, fn):
        return ratio(tp, tp + fp)


@register("recall")
class Recall(_Thresholds):
    """True positives / actual positives, of all outputs together (micro); for the arguments see `Precision`."""

    def score(self, tp, fp, fn):
        return ratio(tp, tp + fn)


@register("f1_score", "f1")
class F1Score(_Counts):
    """2 * precision * recall / (precision + recall), of each output.

    Parameters
    ----------
    average : {None, "micro", "macro", "weighted"}
        As for `Precision`.
    threshold : float, optional
        An output above it is predicted. By default the largest output of each row is: give a threshold if a
        sample may have several labels or none, and if there is only one output.

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
        return ratio(2 * tp, 2 * tp + fp + fn)


@register("auc")
class AUC(Metric):
    """Area under the ROC curve: the probability that a positive has a higher output than a negative.

    nan if all targets are positive, or all are negative.

    Parameters
    ----------
    num_thresholds : int
        Below 200, the curve has that many evenly spaced points, as in Keras. Otherwise it has some
        thousands, which are denser near 0 and 1, where the outputs of rare classes are.
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
        expect_same_shape(self, target, output)
        xp = ctx.xp
        rows = xp.reshape(weight_per_output(xp, weight, output), (-1,))
        actual = as_numbers(xp, xp.reshape(target, (-1,)) > 0.5, output)
        index, length = self._intervals(xp, xp.reshape(output, (-1,)))
        counts = xp.stack([rows * actual, rows * (1.0 - actual)], axis=-1)
        counts = ctx.backend.scatter_add(xp.astype(index, xp.int32), counts, length)
        return {"positive": counts[:, 0], "negative": counts[:, 1]}

    def _intervals(self, xp, p):
        """Return the index of the interval of each probability, and the number of intervals."""
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
        # With all scores in memory, sorting them gives the exact area.
        target, output, weight = as_arrays(type(self).__name__, y_true, y_pred, sample_weight)
        expect_same_shape(self, target, output)
        is_positive, w = np.ravel(target) > 0.5, np.ravel(weight_per_output(np, weight, output))
        _, place = np.unique(output, return_inverse=True)
        positives, negatives = (np.bincount(np.ravel(place), w * of) for of in (is_positive, ~is_positive))
        if not (positives.any() and negatives.any()):
            return math.nan
        below = np.cumsum(negatives) - negatives / 2  # those of the same score count half
        return float(positives @ below / (positives.sum() * negatives.sum()))
