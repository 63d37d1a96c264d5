"""Metrics of real targets: mean errors and R2."""

import math

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


@register("mean_squared_error", "mse")
class MeanSquaredError(Metric):
    """mean (output - target)**2"""

    higher_is_better = False

    def update(self, ctx, target, output, weight):
        expect_same_shape(self, target, output)
        return self._mean(ctx.xp, (output - target) ** 2, weight)


@register("mean_absolute_error", "mae")
class MeanAbsoluteError(Metric):
    """mean |output - target|"""

    higher_is_better = False

    def update(self, ctx, target, output, weight):
        expect_same_shape(self, target, output)
        return self._mean(ctx.xp, ctx.xp.abs(output - target), weight)


@register("root_mean_squared_error", "rmse")
class RootMeanSquaredError(MeanSquaredError):
    """Square root of the mean squared error."""

    def result(self, sums):
        return float(np.sqrt(super().result(sums)))


@register("r2_score", "r2")
class R2Score(Metric):
    """1 - squared error / variance of the target, averaged over the outputs.

    As in Keras, 0 for an output with a constant target. Targets are summed by intervals, as distances from
    the middle of their interval: so the variance is accurate in float32 even if targets are far from 0.
    """

    higher_is_better = True
    default_name = "r2_score"

    OCTAVES = -10, 30  # intervals reach from 2**-10 to 2**30, positive and negative

    @staticmethod
    def _intervals_an_octave(outputs: int) -> int:
        return 64 if outputs <= 16 else 8  # many outputs would take much memory

    def update(self, ctx, target, output, weight):
        expect_same_shape(self, target, output)
        xp = ctx.xp
        w = weight_per_output(xp, weight, output)
        target, output, w = (xp.reshape(a, (a.shape[0], -1)) for a in (target, output, w))
        count, (low, high) = self._intervals_an_octave(target.shape[1]), self.OCTAVES
        size = xp.abs(target)
        interval = xp.floor(xp.log(xp.maximum(size, 2.0**low)) * (count / math.log(2.0)))
        interval = xp.minimum(interval, float(high * count - 1))
        is_far = as_numbers(xp, size >= 2.0**low, target)
        sign = xp.sign(target)
        off = target - sign * is_far * xp.exp((interval + 0.5) * (math.log(2.0) / count))
        # Interval 0 is around 0; those of positive numbers come before those of negative ones.
        length = (high - low) * count
        index = is_far * (interval + (1.0 - low * count) + length * as_numbers(xp, sign < 0, target))
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
        centre = middle - ratio((weight * middle + off).sum(axis=0), total)
        spread = np.sum(weight * centre**2 + 2 * centre * off + square, axis=0)
        varies = spread > 2e-6 * np.sum(square, axis=0)  # less is rounding
        return float(np.mean(np.where(varies, 1 - ratio(sums["error"], spread), 0.0)))

    def __call__(self, y_true, y_pred, sample_weight=None):
        # With all targets in memory no intervals are needed.
        target, output, weight = as_arrays(type(self).__name__, y_true, y_pred, sample_weight)
        expect_same_shape(self, target, output)
        w = weight_per_output(np, weight, output)
        target, output, w = (np.reshape(a, (len(a), -1)) for a in (target, output, w))
        mean = ratio((w * target).sum(axis=0), w.sum(axis=0))
        error, spread = (w * (output - target) ** 2).sum(axis=0), (w * (target - mean) ** 2).sum(axis=0)
        return float(np.mean(np.where(spread > 0, 1 - ratio(error, spread), 0.0)))
