"""The base of all losses, losses from plain functions, and losses by name."""

import copy
import math
from typing import Any

from nnx.backend import get_backend
from nnx.context import Context
from nnx.data.targets import check_real
from nnx.graph.derivatives import derive
from nnx.registry import REGISTRIES, Configurable

register = REGISTRIES["loss"].register

EPSILON = 1e-7
"""Probabilities are clipped to this distance from 0 and 1 before a logarithm, as in Keras."""
LEAST = 1e-30
"""The smallest divisor: its inverse is finite in float32."""


class Loss(Configurable):
    """Base of all losses. Called on arrays, it returns the mean over the samples.

    Examples
    --------
    >>> import nnx
    >>> loss = nnx.losses.MeanSquaredError()
    >>> float(loss([[1.0, 2.0]], [[1.0, 4.0]]))
    2.0
    """

    kind = "loss"
    fused_activation: str | None = None
    """The activation that `with_logits` takes into the loss."""
    from_logits = False
    clips = True
    """Whether probabilities that are clipped before their logarithm is taken get no gradient, as in Keras."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parts of `total`, if it is a sum of several losses."""
        return ()

    def forward(self, ctx, target, output):
        """Return one value for each sample, and the pullback to the output.

        A loss of your own may return the values alone: its pullback is then derived.
        """
        raise NotImplementedError

    def run(self, ctx, target, output) -> tuple:
        """Return what `forward` does, with a pullback that is derived if it returns none."""
        result = self.forward(ctx, target, output)
        if isinstance(result, tuple):
            return result

        def forward_only(backend, output):
            return self.forward(ctx.on(backend, {}, ctx.mask), target, output)

        return result, lambda dvalues: derive(ctx.backend, forward_only, output)[1](dvalues)[0]

    def total(self, ctx, target, output, weight, mask=None) -> tuple:
        """Return the scalar that a step minimises, a function that returns its gradient, and its named parts.

        It is the mean of the values of a batch, each times the weight of its sample, (batch,), or
        over the time steps that a mask, (batch, time), counts.
        """

        def compute():
            return self.run(ctx, target, output)

        values, pullback = compute() if ctx.observer is None else ctx.observer(self, ctx, compute)
        share = _shares(ctx.xp, weight, mask, values)
        return ctx.xp.sum(values * share), lambda: pullback(share), {}

    def steps_counted(self, xp, output, mask, value) -> dict:
        """Return, by part of the loss, the factor of its value, the value, and the time steps a mask counts.

        Empty where each sample counts alike.
        """
        if mask is None or output.ndim < 3 or tuple(output.shape[:2]) != tuple(mask.shape):
            return {}
        return {"loss": (1.0, value, xp.sum(xp.astype(mask, value.dtype)))}

    def divisor(self, xp, weight) -> Any:
        """Return the divisor of penalties that the samples of a batch share: their number."""
        return weight.shape[0]

    def value_and_grad(self, ctx, target, output):
        """Return the mean over the samples, a scalar, and its gradient by the output."""
        values, pullback = self.run(ctx, target, output)
        count = math.prod(values.shape)
        return ctx.xp.mean(values), pullback(ctx.xp.full_like(values, 1 / count))

    def with_logits(self) -> "Loss":
        """Return the same loss, to be given the values before the final softmax or sigmoid."""
        fused = copy.copy(self)
        fused.from_logits = True
        return fused

    def unclipped(self) -> "Loss":
        """Return the same loss, whose gradient does not stop where a probability is clipped."""
        changed = copy.copy(self)
        changed.clips = False
        return changed

    def _slope_of_log(self, xp, p, highest: float = 1 - EPSILON):
        """Return the slope of log(p) at probabilities, 0 where they are clipped."""
        lowest, highest = (EPSILON, highest) if self.clips else (0.0, math.inf)
        inside = xp.astype(p > lowest, p.dtype) * xp.astype(p < highest, p.dtype)
        return inside / xp.maximum(p, LEAST)

    def check_target(self, y, out_shape) -> Any:
        """Return `y`, a host array, in the form that `forward` takes, or raise a ValueError."""
        return check_real(y, out_shape)

    def __call__(self, y_true, y_pred, sample_weight=None):
        """Return the weighted mean, sum(weight * value) / number of values, as a scalar."""
        backend = get_backend()
        xp, values = backend.xp, evaluate(self, y_true, y_pred)
        if sample_weight is not None:
            weight = xp.astype(backend.asarray(sample_weight), values.dtype)
            # A weight of a sample counts for each of its values.
            values = values * xp.reshape(weight, (*weight.shape, *[1] * values.ndim)[: values.ndim])
        return xp.mean(values)


def _shares(xp, weight, mask, values):
    """Return the share of each value in the total, in the shape of the values, (batch, ...)."""
    count, axes = math.prod(values.shape), 1
    if mask is not None and tuple(values.shape[:2]) == tuple(mask.shape):
        mask = xp.astype(mask, weight.dtype)
        weight, axes = weight[:, None] * mask, 2
        count = xp.maximum(xp.sum(mask), 1.0) * math.prod(values.shape[2:])
    share = xp.reshape(weight / count, (*weight.shape, *(1,) * (values.ndim - axes)))
    return share if tuple(share.shape) == tuple(values.shape) else xp.broadcast_to(share, values.shape)


def evaluate(loss: Loss, y_true, y_pred):
    """Return the value of `loss` for each sample, of arrays or nested lists."""
    backend = get_backend()
    output = backend.asarray(y_pred)
    dtype = str(output.dtype).rpartition(".")[2]
    if dtype not in ("float32", "float64"):  # integers, or too few bits for sums
        wider = "float32" if "float" in dtype else "float64"
        output = backend.asarray(backend.to_numpy(output).astype(wider))
    target = loss.check_target(y_true, output.shape[1:])
    if target.dtype.kind == "f":
        target = target.astype(backend.to_numpy(output).dtype)
    return loss.run(Context(backend), backend.asarray(target), output)[0]


class Pointwise(Loss):
    """A loss that is the mean over the last axis of a function of each element."""

    def value(self, xp, target, output):
        """Return the loss of each element."""
        raise NotImplementedError

    def slope(self, xp, target, output):
        """Return its derivative by the output; without this method it is derived."""
        raise NotImplementedError

    def forward(self, ctx, target, output):
        xp = ctx.xp
        if type(self).slope is Pointwise.slope:
            return xp.mean(self.value(xp, target, output), axis=-1)

        def pullback(dvalues):
            return self.slope(xp, target, output) * (dvalues / output.shape[-1])[..., None]

        return xp.mean(self.value(xp, target, output), axis=-1), pullback


class FunctionLoss(Loss):
    """A loss given as a function `(y_true, y_pred) -> one value for each sample`.

    It computes with operators and the functions of `nnx.get_backend().xp`. Its gradient is derived.
    """

    def __init__(self, function):
        self.function = function

    def forward(self, ctx, target, output):
        values = self.function(target, output)
        if values.shape != output.shape[:-1]:
            raise ValueError(
                f"the loss {self.function!r} must return one value for each sample, of shape "
                f"{tuple(output.shape[:-1])}, got {tuple(values.shape)}: take the mean over the last axis only"
            )
        return values


def get(loss) -> Loss:
    """Return the loss of this name, or made of this function."""
    if callable(loss) and not isinstance(loss, (Loss, type)):
        return getattr(loss, "loss", None) or FunctionLoss(loss)
    return REGISTRIES["loss"].get(loss, Loss)


def as_function(cls, name: str) -> Any:
    """Return the loss as a function of arrays that gives one value for each sample, as in Keras."""

    def function(y_true, y_pred, **settings):
        return evaluate(cls(**settings), y_true, y_pred)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = cls.__doc__
    vars(function)["loss"] = cls()  # for `get`
    return function
