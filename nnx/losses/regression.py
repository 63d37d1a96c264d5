"""Losses of real targets: errors squared, absolute, or between the two, quantiles and counts."""

from nnx.arguments import expect_range
from nnx.losses.base import EPSILON, Pointwise, as_function, register


@register("mean_squared_error", "mse")
class MeanSquaredError(Pointwise):
    """mean (output - target)**2"""

    def value(self, xp, target, output):
        return (output - target) ** 2

    def slope(self, xp, target, output):
        return 2 * (output - target)


@register("mean_absolute_error", "mae")
class MeanAbsoluteError(Pointwise):
    """mean |output - target|"""

    def value(self, xp, target, output):
        return xp.abs(output - target)

    def slope(self, xp, target, output):
        return xp.sign(output - target)


@register("log_cosh", "logcosh")
class LogCosh(Pointwise):
    """mean log(cosh(output - target)): squared near zero, absolute far from it."""

    def value(self, xp, target, output):
        # log(cosh(x)) = log1p(sinh(x)**2) / 2, exact near 0; beyond 20 it rises as x does.
        size = xp.abs(output - target)
        inner = xp.minimum(size, 20.0)
        return 0.5 * xp.log1p(xp.sinh(inner) ** 2) + (size - inner)

    def slope(self, xp, target, output):
        return xp.tanh(output - target)


@register("huber", "huber_loss")
class Huber(Pointwise):
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


@register("quantile", "pinball")
class Quantile(Pointwise):
    """mean max(quantile * (target - output), (quantile - 1) * (target - output)): the pinball loss.

    The quantile of the target minimises it: 0.5, half the absolute error, gives the median.
    Source: Koenker and Bassett, "Regression quantiles", Econometrica 1978.

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
        # At output == target the mean of both derivatives, as the absolute error has 0 there.
        return 0.5 * xp.sign(output - target) + (0.5 - self.quantile)


@register("poisson")
class Poisson(Pointwise):
    """mean output - target * log(output): counts with an expected value of `output`."""

    def value(self, xp, target, output):
        return output - target * xp.log(output + EPSILON)

    def slope(self, xp, target, output):
        return 1.0 - target / (output + EPSILON)


mean_squared_error = as_function(MeanSquaredError, "mean_squared_error")
mean_absolute_error = as_function(MeanAbsoluteError, "mean_absolute_error")
log_cosh = as_function(LogCosh, "log_cosh")
huber = as_function(Huber, "huber")
quantile = as_function(Quantile, "quantile")
poisson = as_function(Poisson, "poisson")
