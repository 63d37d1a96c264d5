"""Losses: how wrong a prediction is, and the gradient of that. One value for each sample.

A loss is a pure function like a layer's:

    values, pullback = loss.forward(ctx, target, output)
    doutput = pullback(dvalues)                     # dvalues = dL/dvalues, one for each sample

with target and output (batch, ..., features) and values (batch, ...). Names, defaults and
formulas are Keras's. Cross-entropies that follow a softmax or sigmoid are computed from the
values before it (`with_logits`), in one stable formula: a compiled model does so by itself.
"""

import copy
import math
from typing import Any

from nnx import activations
from nnx.arguments import expect_range
from nnx.backend import get_backend
from nnx.context import Context
from nnx.data.targets import check_classes, check_one_hot, check_probabilities, check_real
from nnx.registry import REGISTRIES, Configurable

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

_registry = REGISTRIES["loss"]

# Probabilities are kept this far from 0 and 1 before their logarithm is taken, as in Keras.
EPSILON = 1e-7
LEAST = 1e-30  # whose inverse is finite in float32


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
        """The names of the parts that `total` gives, if it is a sum of several losses."""
        return ()

    def forward(self, ctx, target, output):
        """Return one value for each sample, and the pullback to the output."""
        raise NotImplementedError

    def total(self, ctx, target, output, weight, mask=None) -> tuple:
        """Return what a step minimises, its gradient by the output as a function, and named parts of it.

        It is the mean of the values of a batch, each times the weight of its sample, (batch,), or
        over those time steps alone that a mask, (batch, time), counts.
        """
        values, pullback = self.forward(ctx, target, output)
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
        """Return what penalties that are shared by the samples of a batch are divided by: their number."""
        return weight.shape[0]

    def value_and_grad(self, ctx, target, output):
        """Return the mean over the samples, a scalar, and its gradient by the output."""
        values, pullback = self.forward(ctx, target, output)
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
        """Return the slope of log(p) at probabilities, 0 where they are outside of what the loss tells apart."""
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
    """Return what part of the total each value is, in the shape of the values, (batch, ...)."""
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
    if dtype not in ("float32", "float64"):  # whole numbers, or too few bits for sums
        wider = "float32" if "float" in dtype else "float64"
        output = backend.asarray(backend.to_numpy(output).astype(wider))
    target = loss.check_target(y_true, output.shape[1:])
    if target.dtype.kind == "f":
        target = target.astype(backend.to_numpy(output).dtype)
    return loss.forward(Context(backend), backend.asarray(target), output)[0]


class _Pointwise(Loss):
    """A loss that is the mean over the last axis of a function of each element."""

    def value(self, xp, target, output):
        """Return the loss of each element."""
        raise NotImplementedError

    def slope(self, xp, target, output):
        """Return its derivative by the output."""
        raise NotImplementedError

    def forward(self, ctx, target, output):
        xp = ctx.xp

        def pullback(dvalues):
            return self.slope(xp, target, output) * (dvalues / output.shape[-1])[..., None]

        return xp.mean(self.value(xp, target, output), axis=-1), pullback


@_registry.register("mean_squared_error", "mse")
class MeanSquaredError(_Pointwise):
    """mean (output - target)**2"""

    def value(self, xp, target, output):
        return (output - target) ** 2

    def slope(self, xp, target, output):
        return 2 * (output - target)


@_registry.register("mean_absolute_error", "mae")
class MeanAbsoluteError(_Pointwise):
    """mean |output - target|"""

    def value(self, xp, target, output):
        return xp.abs(output - target)

    def slope(self, xp, target, output):
        return xp.sign(output - target)


@_registry.register("log_cosh", "logcosh")
class LogCosh(_Pointwise):
    """mean log(cosh(output - target)): squared near zero, absolute far from it."""

    def value(self, xp, target, output):
        # log(cosh(x)) = log1p(sinh(x)**2) / 2, exact near 0; beyond 20 it rises as x does.
        size = xp.abs(output - target)
        inner = xp.minimum(size, 20.0)
        return 0.5 * xp.log1p(xp.sinh(inner) ** 2) + (size - inner)

    def slope(self, xp, target, output):
        return xp.tanh(output - target)


@_registry.register("huber", "huber_loss")
class Huber(_Pointwise):
    """Half the square of errors up to delta, linear beyond. Source: Huber, 1964."""

    def __init__(self, delta: float = 1.0):
        expect_range(self, above=0, delta=delta)
        self.delta = delta

    def value(self, xp, target, output):
        size = xp.abs(output - target)
        inner = xp.minimum(size, self.delta)
        return inner * (size - 0.5 * inner)

    def slope(self, xp, target, output):
        return xp.minimum(xp.maximum(output - target, -self.delta), self.delta)


@_registry.register("quantile", "pinball")
class Quantile(_Pointwise):
    """mean max(quantile * (target - output), (quantile - 1) * (target - output)): the pinball loss.

    The output that makes it least is that quantile of the target: 0.5, half the absolute error, gives
    the median. Source: Koenker and Bassett, "Regression quantiles", Econometrica 1978.

    >>> import nnx
    >>> float(nnx.losses.Quantile(0.9)([[1.0]], [[0.0]]))
    0.9
    """

    def __init__(self, quantile: float = 0.5):
        expect_range(self, above=0, below=1, quantile=quantile)
        self.quantile = quantile

    def value(self, xp, target, output):
        missing = target - output
        return xp.maximum(self.quantile * missing, (self.quantile - 1) * missing)

    def slope(self, xp, target, output):
        # Halfway between both slopes where the output is the target, as the absolute error has 0 there.
        return 0.5 * xp.sign(output - target) + (0.5 - self.quantile)


@_registry.register("poisson")
class Poisson(_Pointwise):
    """mean output - target * log(output): counts with an expected value of `output`."""

    def value(self, xp, target, output):
        return output - target * xp.log(output + EPSILON)

    def slope(self, xp, target, output):
        return 1.0 - target / (output + EPSILON)


def _signs(xp, target):
    """Return labels of -1 and 1; 0 is read as -1."""
    return xp.where(target == 0, -1.0, target)


@_registry.register("hinge")
class Hinge(_Pointwise):
    """mean max(1 - target * output, 0), for labels -1 (or 0) and 1."""

    power = 1

    def value(self, xp, target, output):
        return xp.maximum(1.0 - _signs(xp, target) * output, 0.0) ** self.power

    def slope(self, xp, target, output):
        signs = _signs(xp, target)
        margin = xp.maximum(1.0 - signs * output, 0.0)
        return -signs * (xp.astype(margin > 0, output.dtype) if self.power == 1 else 2 * margin)

    def check_target(self, y, out_shape):
        return check_probabilities(y, out_shape, lowest=-1)


@_registry.register("squared_hinge")
class SquaredHinge(Hinge):
    """mean max(1 - target * output, 0)**2, for labels -1 (or 0) and 1."""

    power = 2


@_registry.register("kl_divergence", "kullback_leibler_divergence", "kld")
class KLDivergence(Loss):
    """sum target * log(target / output), of two distributions over the last axis."""

    def forward(self, ctx, target, output):
        xp = ctx.xp
        target = _clip(xp, target, EPSILON, 1.0)
        kept = _clip(xp, output, EPSILON, 1.0)

        def pullback(dvalues):
            return -target * self._slope_of_log(xp, output, 1.0) * dvalues[..., None]

        return xp.sum(target * xp.log(target / kept), axis=-1), pullback

    def check_target(self, y, out_shape):
        return check_probabilities(y, out_shape)


class _CrossEntropy(Loss):
    def __init__(self, from_logits: bool = False, label_smoothing: float = 0.0):
        expect_range(self, at_least=0, at_most=1, label_smoothing=label_smoothing)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing


@_registry.register("binary_crossentropy", "bce")
class BinaryCrossentropy(_CrossEntropy):
    """mean -(target * log(output) + (1 - target) * log(1 - output)), of probabilities or logits."""

    fused_activation = "sigmoid"

    def forward(self, ctx, target, output):
        xp = ctx.xp
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + 0.5 * self.label_smoothing
        values, slope = self._elements(xp, target, output)

        def pullback(dvalues):
            return slope() * (dvalues / output.shape[-1])[..., None]

        return xp.mean(values, axis=-1), pullback

    def _elements(self, xp, target, output):
        """Return the loss of each element, and a function that returns its slope."""
        if self.from_logits:
            values = xp.maximum(output, 0.0) - output * target + xp.log1p(xp.exp(-xp.abs(output)))
            return values, lambda: activations.sigmoid.forward(xp, output) - target
        p = _clip(xp, output, EPSILON, 1 - EPSILON)
        values = -target * xp.log(p) - (1.0 - target) * xp.log1p(-p)

        def slope():
            right, wrong = self._slope_of_log(xp, output), self._slope_of_log(xp, 1.0 - output)
            return (1.0 - target) * wrong - target * right

        return values, slope

    def check_target(self, y, out_shape):
        return check_probabilities(y, out_shape)


@_registry.register("binary_focal_crossentropy")
class BinaryFocalCrossentropy(BinaryCrossentropy):
    """Binary cross-entropy times (1 - p)**gamma, p the probability of the true label.

    With `apply_class_balancing` also times alpha where the label is 1, 1 - alpha where it is 0.
    Source: Lin et al., "Focal Loss", 2017 (arXiv:1708.02002).
    """

    def __init__(
        self, apply_class_balancing: bool = False, alpha: float = 0.25, gamma: float = 2.0, **settings
    ):
        super().__init__(**settings)
        self.apply_class_balancing = apply_class_balancing
        expect_range(self, at_least=0, alpha=alpha, gamma=gamma)
        self.alpha = alpha
        self.gamma = gamma

    def _elements(self, xp, target, output):
        entropy, entropy_slope = super()._elements(xp, target, output)
        p = activations.sigmoid.forward(xp, output) if self.from_logits else output
        wrong = xp.maximum(1.0 - (target * p + (1.0 - target) * (1.0 - p)), 0.0)
        weight = (
            target * self.alpha + (1.0 - target) * (1 - self.alpha) if self.apply_class_balancing else 1.0
        )

        def slope():
            dwrong = (1.0 - 2.0 * target) * (p * (1.0 - p) if self.from_logits else 1.0)
            dfactor = _power_slope(xp, wrong, self.gamma) * dwrong
            return weight * (dfactor * entropy + wrong**self.gamma * entropy_slope())

        return weight * wrong**self.gamma * entropy, slope


@_registry.register("categorical_crossentropy", "cce")
class CategoricalCrossentropy(_CrossEntropy):
    """-sum target * log(output) over classes, of probabilities or logits; target one-hot.

    Probabilities are first divided by their sum, as in Keras.
    """

    fused_activation = "softmax"

    def forward(self, ctx, target, output):
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / output.shape[-1]
        logs, pull_logs = self._logs(ctx.xp, output)
        values, slope = self._classes(ctx.xp, target, logs)

        def pullback(dvalues):
            return pull_logs(slope() * dvalues[..., None])

        return values, pullback

    def _logs(self, xp, output):
        """Return the logarithms of the probabilities, and the pullback."""
        if self.from_logits:
            logs = activations.log_softmax.forward(xp, output)
            return logs, lambda dlogs: activations.log_softmax.gradient(xp, dlogs, logs)
        total = xp.sum(output, axis=-1, keepdims=True)
        share = output / total
        kept = _clip(xp, share, EPSILON, 1 - EPSILON)

        def pullback(dlogs):
            dshare = dlogs * self._slope_of_log(xp, share)
            return (dshare - xp.sum(dshare * share, axis=-1, keepdims=True)) / total

        return xp.log(kept), pullback

    def _classes(self, xp, target, logs):
        """Return the loss of each sample, and a function that returns its slope by the logs."""
        return -xp.sum(target * logs, axis=-1), lambda: -target

    def check_target(self, y, out_shape):
        return check_one_hot(y, out_shape)


@_registry.register("categorical_focal_crossentropy")
class CategoricalFocalCrossentropy(CategoricalCrossentropy):
    """Categorical cross-entropy with each class's term times alpha * (1 - p)**gamma.

    Source: Lin et al., "Focal Loss", 2017 (arXiv:1708.02002).
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, **settings):
        super().__init__(**settings)
        expect_range(self, at_least=0, alpha=alpha, gamma=gamma)
        self.alpha = alpha
        self.gamma = gamma

    def _classes(self, xp, target, logs):
        p = xp.exp(logs)
        wrong = xp.maximum(1.0 - p, 0.0)
        scaled = self.alpha * target

        def slope():
            return scaled * (_power_slope(xp, wrong, self.gamma) * p * logs - wrong**self.gamma)

        return -xp.sum(scaled * wrong**self.gamma * logs, axis=-1), slope


@_registry.register("sparse_categorical_crossentropy", "scce")
class SparseCategoricalCrossentropy(CategoricalCrossentropy):
    """Categorical cross-entropy of class numbers: target (batch, ...), whole numbers from 0.

    Examples
    --------
    >>> import nnx
    >>> loss = nnx.losses.SparseCategoricalCrossentropy()
    >>> round(float(loss([1], [[0.25, 0.75]])), 4)
    0.2877
    """

    def __init__(self, from_logits: bool = False):
        super().__init__(from_logits)

    def forward(self, ctx, target, output):
        classes = ctx.arange(output.shape[-1], "int32")
        one_hot = ctx.xp.astype(target[..., None] == classes, output.dtype)
        return super().forward(ctx, one_hot, output)

    def check_target(self, y, out_shape):
        return check_classes(y, out_shape)


def _clip(xp, values, lowest, highest):
    return xp.minimum(xp.maximum(values, lowest), highest)


def _power_slope(xp, values, power):
    """Return the slope of values**power, kept finite at 0, where that of powers below 1 is not."""
    if power < 1:
        values = xp.maximum(values, EPSILON)
    return power * values ** (power - 1)


class FunctionLoss(Loss):
    """A loss given as a function `(y_true, y_pred) -> one value for each sample`.

    Its gradient is derived by the backend, so it trains on JAX.
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

        def pullback(dvalues):
            derived = ctx.backend.vjp(lambda output: self.function(target, output), output)
            if derived is None:
                raise TypeError(
                    f"the loss {self.function!r} is a plain function, whose gradient this backend cannot "
                    f"derive: write a nnx.losses.Loss with a pullback, or train on the jax backend"
                )
            return derived[1](dvalues)[0]

        return values, pullback


def get(loss) -> Loss:
    """Return the loss of this name, or made of this function."""
    if callable(loss) and not isinstance(loss, (Loss, type)):
        return getattr(loss, "loss", None) or FunctionLoss(loss)
    return _registry.get(loss, Loss)


def _as_function(cls, name: str) -> Any:
    """Return the loss as a function of arrays that gives one value for each sample, as in Keras."""

    def function(y_true, y_pred, **settings):
        return evaluate(cls(**settings), y_true, y_pred)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = cls.__doc__
    vars(function)["loss"] = cls()  # for `get`
    return function


mean_squared_error = _as_function(MeanSquaredError, "mean_squared_error")
mean_absolute_error = _as_function(MeanAbsoluteError, "mean_absolute_error")
log_cosh = _as_function(LogCosh, "log_cosh")
huber = _as_function(Huber, "huber")
quantile = _as_function(Quantile, "quantile")
poisson = _as_function(Poisson, "poisson")
hinge = _as_function(Hinge, "hinge")
squared_hinge = _as_function(SquaredHinge, "squared_hinge")
kl_divergence = _as_function(KLDivergence, "kl_divergence")
binary_crossentropy = _as_function(BinaryCrossentropy, "binary_crossentropy")
binary_focal_crossentropy = _as_function(BinaryFocalCrossentropy, "binary_focal_crossentropy")
categorical_crossentropy = _as_function(CategoricalCrossentropy, "categorical_crossentropy")
categorical_focal_crossentropy = _as_function(CategoricalFocalCrossentropy, "categorical_focal_crossentropy")
sparse_categorical_crossentropy = _as_function(
    SparseCategoricalCrossentropy, "sparse_categorical_crossentropy"
)
