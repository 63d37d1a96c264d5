"""The base of all metrics, and metrics by name."""

import numpy as np

from nnx.context import Context
from nnx.registry import REGISTRIES, Configurable, snake_case

register = REGISTRIES["metric"].register


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
    """Its name in logs; by default the class name in snake case."""

    def __init__(self, name: str | None = None):
        self.name = name or self.default_name or snake_case(type(self).__name__)

    def takes_probabilities(self, output) -> bool:
        """Return whether logits must be converted to probabilities for this metric."""
        return False

    def update(self, ctx, target, output, weight) -> dict:
        """Return the sums of this batch: a dict of arrays, weighted by `weight`.

        `weight` has one entry for each sample, (batch,), time step, (batch, time), or output.
        """
        raise NotImplementedError

    def update_masked(self, ctx, target, output, weight, mask) -> dict:
        """Return the same sums over the time steps where a mask, (batch, time), is True."""
        if mask is not None and output.ndim > 2 and tuple(output.shape[:2]) == tuple(mask.shape):
            weight = weight[:, None] * ctx.xp.astype(mask, weight.dtype)
        return self.update(ctx, target, output, weight)

    def result(self, sums: dict[str, np.ndarray]) -> float | np.ndarray:
        """Return the value of the metric from the sums over all batches."""
        return float(ratio(sums["total"], sums["weight"]))

    def __call__(self, y_true, y_pred, sample_weight=None) -> float | np.ndarray:
        target, output, weight = as_arrays(type(self).__name__, y_true, y_pred, sample_weight)
        return self.result(self.update(Context("numpy"), target, output, weight))

    def _mean(self, xp, values, weight) -> dict:
        """Return the sums whose `result` is the weighted mean of `values`, (batch, ...)."""
        if values.ndim > weight.ndim:
            values = xp.mean(xp.reshape(values, (*weight.shape, -1)), axis=-1)
        return {"total": xp.sum(values * weight), "weight": xp.sum(weight)}


def as_arrays(name: str, y_true, y_pred, weight) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return targets, outputs and weights as arrays, in the shapes that `update` expects."""
    target, output = np.asarray(y_true), np.asarray(y_pred, dtype=np.float64)
    if target.dtype.kind in "bf":
        target = target.astype(np.float64)
    if output.ndim == 1:
        output = output[:, None]
    if output.shape[-1] == 1 and target.shape == output.shape[:-1]:
        target = target[..., None]
    elif output.shape[-1] > 1 and target.shape == (*output.shape[:-1], 1):  # class indices in a column
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


def expect_same_shape(metric, target, output) -> None:
    """Raise a ValueError unless there is one target for each output."""
    if target.shape != output.shape:
        raise ValueError(
            f"{type(metric).__name__} compares each output with its target, but they have shapes "
            f"{tuple(output.shape)} and {tuple(target.shape)}: with class numbers use accuracy, or one-hot targets"
        )


def weight_per_output(xp, weight, output):
    """Return the weights of samples, or of their time steps, in the shape of an output."""
    weight = xp.reshape(weight, (*weight.shape, *(1,) * (output.ndim - weight.ndim)))
    return weight if tuple(weight.shape) == tuple(output.shape) else xp.broadcast_to(weight, output.shape)


def as_numbers(xp, condition, like):
    """Return 1 where a condition holds, else 0, in the dtype of another array."""
    return xp.astype(condition, like.dtype)


def ratio(part, whole):
    """Return part / whole on the host, or 0 where `whole` is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.not_equal(whole, 0))


def get(metric) -> Metric:
    """Return the metric of this name, which is also its name in logs, as in Keras."""
    chosen = REGISTRIES["metric"].get(metric, Metric)
    if isinstance(metric, str):
        chosen.name = metric
    return chosen
