"""Optimizers: the update of a parameter by its gradient, as an elementwise rule.

An optimizer has three parts: the names of its `slots` (arrays that it keeps for each parameter),
`scalars(step)`, computed on the host in double precision, and `rule`,

    (param, *slots) = rule(xp, param, grad, *slots, **scalars),

an elementwise kernel. The backend runs it over one flat buffer or leaf by leaf. Names, defaults and
formulas are Keras's. Weight decay is decoupled:
param *= 1 - learning_rate * weight_decay before the rule (Loshchilov and Hutter, 2017,
arXiv:1711.05101).
"""

import functools
import itertools
import operator
from typing import Any

from nnx import schedules, tree
from nnx.arguments import expect_range
from nnx.backend import Backend, get_backend
from nnx.registry import REGISTRIES, Configurable
from nnx.schedules import is_rate, rate_at

_registry = REGISTRIES["optimizer"]


class Optimizer(Configurable):
    """Base of all optimizers.

    Parameters
    ----------
    learning_rate : float, LearningRateSchedule or function of the step
        Size of a step.
    weight_decay : float, optional
        Each step subtracts this times the learning rate times the parameter.
    clipnorm : float, optional
        Each gradient array is scaled down to at most this norm.
    clipvalue : float, optional
        Each element of the gradient is limited to this magnitude.
    global_clipnorm : float, optional
        All gradients together are scaled down to at most this norm.
    """

    kind = "optimizer"
    slots: Any = ()
    """Names of the arrays kept for each parameter, which may depend on the settings; they start at `slot_start`."""
    slot_start: Any = 0.0

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
    ):
        if not callable(learning_rate) and not is_rate(learning_rate):
            raise ValueError(
                f"{type(self).__name__}: learning_rate must be 0 or more, or a schedule, got {learning_rate!r}"
            )
        limits = {"clipnorm": clipnorm, "clipvalue": clipvalue, "global_clipnorm": global_clipnorm}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        if len(given) > 1:
            raise ValueError(f"give only one of clipnorm, clipvalue and global_clipnorm, got {given}")
        expect_range(self, above=0, **given)
        expect_range(self, at_least=0, weight_decay=weight_decay)
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clipnorm = clipnorm
        self.clipvalue = clipvalue
        self.global_clipnorm = global_clipnorm

    def rule(self, xp, param, grad, *slots, learning_rate, **scalars) -> tuple:
        """Return the new parameter and the new slots, element by element."""
        raise NotImplementedError

    def scalars(self, step: int) -> dict[str, float]:
        """Return the scalars of `rule` at a step, counted from 0."""
        return {"learning_rate": rate_at(self.learning_rate, step)}

    def init(self, params, backend: Backend | None = None) -> list:
        """Return the starting slots: for each name in `slots` a tree shaped as `params`."""
        on = backend or get_backend()
        return [on.pack(tree.map(lambda p: on.full_like(p, self.slot_start), params)) for _ in self.slots]

    def update(self, grads, slots, params, step, backend: Backend | None = None):
        """Return (params, slots) after one step; the arguments are consumed.

        Parameters
        ----------
        grads, params : tree of arrays
        slots : list of trees, from `init` or the previous `update`
        step : int or dict
            The step number, from 0; or the result of `scalars(step)`.
        """
        backend = backend or get_backend()
        scalars = step if isinstance(step, dict) else self.scalars(step)
        if self.clipnorm is not None or self.global_clipnorm is not None:
            grads = self._clip_norms(backend.xp, grads)
        trees, overwrite = (params, grads, *slots), (0, *range(2, 2 + len(slots)))
        params, *slots = backend.map(self._whole_rule, *trees, scalars=scalars, overwrite=overwrite)
        return params, slots

    def _whole_rule(self, xp, param, grad, *slots, finite=None, **scalars):
        """Return `rule` with clipping by value and weight decay; if gradients are not `finite`, change nothing."""
        before = (param, *slots)
        if self.clipvalue is not None:
            grad = xp.minimum(xp.maximum(grad, -self.clipvalue), self.clipvalue)
        if self.weight_decay:
            param = param - param * (scalars["learning_rate"] * self.weight_decay)
        after = self.rule(xp, param, grad, *slots, **scalars)
        if finite is None:
            return after
        return tuple(xp.where(finite, new, old) for new, old in zip(after, before, strict=True))

    def _clip_norms(self, xp, grads):
        squares = tree.map(lambda g: xp.sum(g * g), grads)
        if self.clipnorm is not None:
            return tree.map(lambda g, s: g * _shrink(xp, s, self.clipnorm), grads, squares)
        factor = _shrink(xp, sum(tree.leaves(squares)), self.global_clipnorm)
        return tree.map(lambda g: g * factor, grads)


def _expect_moments(optimizer, beta_1: float, beta_2: float, epsilon: float = 0.0) -> None:
    """Raise a ValueError unless the decay rates of running means and epsilon are in their ranges."""
    expect_range(optimizer, at_least=0, below=1, beta_1=beta_1, beta_2=beta_2)
    expect_range(optimizer, at_least=0, epsilon=epsilon)


def _shrink(xp, square, limit):
    """Return the factor that scales an array with the sum of squares `square` down to norm `limit`."""
    return limit / xp.maximum(xp.sqrt(square), limit)


@_registry.register("sgd")
class SGD(Optimizer):
    """Gradient descent, with momentum (Polyak, 1964) or Nesterov's (Sutskever et al., 2013) on request.

    velocity = momentum * velocity - learning_rate * grad;  param += velocity

    Examples
    --------
    >>> import nnx, numpy as np
    >>> sgd, params = nnx.optimizers.SGD(0.1), {"w": np.array([1.0])}
    >>> params, _ = sgd.update({"w": np.array([2.0])}, sgd.init(params), params, 0)
    >>> params
    {'w': array([0.8])}
    """

    @property
    def slots(self):
        """The velocity, with momentum."""
        return ("velocity",) if self.momentum else ()

    def __init__(self, learning_rate: Any = 0.01, momentum: float = 0.0, nesterov: bool = False, **settings):
        super().__init__(learning_rate, **settings)
        expect_range(self, at_least=0, at_most=1, momentum=momentum)
        self.momentum = momentum
        self.nesterov = nesterov

    def rule(self, xp, param, grad, *slots, learning_rate):
        if not slots:
            return (param - learning_rate * grad,)
        velocity = self.momentum * slots[0] - learning_rate * grad
        step = self.momentum * velocity - learning_rate * grad if self.nesterov else velocity
        return param + step, velocity


@_registry.register("rmsprop")
class RMSprop(Optimizer):
    """Steps divided by a running root mean square of the gradient. Source: Hinton's lecture 6e, 2012."""

    @property
    def slots(self):
        """The mean square, the mean if centred, and the velocity with momentum."""
        return ("mean_square",) + ("mean",) * self.centered + ("velocity",) * (self.momentum > 0)

    def __init__(self, learning_rate: Any = 0.001, rho: float = 0.9, momentum: float = 0.0,
                 epsilon: float = 1e-7, centered: bool = False, **settings):  # fmt: skip
        super().__init__(learning_rate, **settings)
        expect_range(self, at_least=0, at_most=1, rho=rho, momentum=momentum)
        expect_range(self, at_least=0, epsilon=epsilon)
        self.rho = rho
        self.momentum = momentum
        self.epsilon = epsilon
        self.centered = centered

    def rule(self, xp, param, grad, *slots, learning_rate):
        slots = dict(zip(self.slots, slots, strict=True))
        mean_square = self.rho * slots["mean_square"] + (1 - self.rho) * grad * grad
        new, spread = [mean_square], mean_square
        if self.centered:
            mean = self.rho * slots["mean"] + (1 - self.rho) * grad
            new, spread = [*new, mean], mean_square - mean * mean
        step = learning_rate * grad / xp.sqrt(spread + self.epsilon)
        if self.momentum > 0:
            step = self.momentum * slots["velocity"] + step
            new = [*new, step]
        return param - step, *new


@_registry.register("adagrad")
class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squared gradients. Source: Duchi et al., JMLR 2011."""

    slots = ("sum_of_squares",)

    @property
    def slot_start(self):
        """The starting value of the sums."""
        return self.initial_accumulator_value

    def __init__(self, learning_rate: Any = 0.001, initial_accumulator_value: float = 0.1,
                 epsilon: float = 1e-7, **settings):  # fmt: skip
        super().__init__(learning_rate, **settings)
        expect_range(self, at_least=0, initial_accumulator_value=initial_accumulator_value, epsilon=epsilon)
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon

    def rule(self, xp, param, grad, total, *, learning_rate):
        total = total + grad * grad
        return param - learning_rate * grad / xp.sqrt(total + self.epsilon), total


@_registry.register("adadelta")
class Adadelta(Optimizer):
    """Steps in the ratio of running sizes of steps and gradients. Source: Zeiler, 2012 (arXiv:1212.5701)."""

    slots = ("mean_square", "mean_square_step")

    def __init__(self, learning_rate: Any = 0.001, rho: float = 0.95, epsilon: float = 1e-7, **settings):
        super().__init__(learning_rate, **settings)
        expect_range(self, at_least=0, at_most=1, rho=rho)
        expect_range(self, at_least=0, epsilon=epsilon)
        self.rho = rho
        self.epsilon = epsilon

    def rule(self, xp, param, grad, mean_square, mean_square_step, *, learning_rate):
        mean_square = self.rho * mean_square + (1 - self.rho) * grad * grad
        step = grad * xp.sqrt(mean_square_step + self.epsilon) / xp.sqrt(mean_square + self.epsilon)
        mean_square_step = self.rho * mean_square_step + (1 - self.rho) * step * step
        return param - learning_rate * step, mean_square, mean_square_step


@_registry.register("adam")
class Adam(Optimizer):
    """Running means of the gradient and of its square, corrected for starting at zero,

        param -= rate * mean / (sqrt(mean_square) + epsilon),
        rate = learning_rate * sqrt(1 - beta_2**t) / (1 - beta_1**t).

    Source: Kingma and Ba, 2014 (arXiv:1412.6980), section 2's second form.

    Examples
    --------
    >>> import nnx
    >>> nnx.optimizers.Adam(learning_rate=0.01)
    Adam(learning_rate=0.01)
    """

    @property
    def slots(self):
        """Both means, and with `amsgrad` the largest mean square so far."""
        return ("mean", "mean_square") + ("largest_mean_square",) * self.amsgrad

    def __init__(self, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.999,
                 epsilon: float = 1e-7, amsgrad: bool = False, **settings):  # fmt: skip
        super().__init__(learning_rate, **settings)
        _expect_moments(self, beta_1, beta_2, epsilon)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.amsgrad = amsgrad

    def scalars(self, step):
        rate = rate_at(self.learning_rate, step)
        corrected = rate * (1 - self.beta_2 ** (step + 1)) ** 0.5 / (1 - self.beta_1 ** (step + 1))
        return {"learning_rate": rate, "corrected_rate": corrected}

    def rule(self, xp, param, grad, mean, mean_square, *largest, learning_rate, corrected_rate):
        mean = mean + (grad - mean) * (1 - self.beta_1)
        mean_square = mean_square + (grad * grad - mean_square) * (1 - self.beta_2)
        if largest:
            largest = (xp.maximum(largest[0], mean_square),)
        spread = largest[0] if largest else mean_square
        return param - corrected_rate * mean / (xp.sqrt(spread) + self.epsilon), mean, mean_square, *largest


@_registry.register("adamw")
class AdamW(Adam):
    """Adam with weight decay on by default. Source: Loshchilov and Hutter, 2017 (arXiv:1711.05101)."""

    def __init__(self, learning_rate: Any = 0.001, weight_decay: float | None = 0.004, **settings):
        super().__init__(learning_rate, weight_decay=weight_decay, **settings)


@_registry.register("adamax")
class Adamax(Optimizer):
    """Adam with the largest recent gradient in place of the mean square. Source: as Adam, section 7."""

    slots = ("mean", "largest")

    def __init__(self, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.999,
                 epsilon: float = 1e-7, **settings):  # fmt: skip
        super().__init__(learning_rate, **settings)
        _expect_moments(self, beta_1, beta_2, epsilon)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def scalars(self, step):
        rate = rate_at(self.learning_rate, step)
        return {"learning_rate": rate, "corrected_rate": rate / (1 - float(self.beta_1) ** (step + 1))}

    def rule(self, xp, param, grad, mean, largest, *, learning_rate, corrected_rate):
        mean = mean + (grad - mean) * (1 - self.beta_1)
        largest = xp.maximum(self.beta_2 * largest, xp.abs(grad))
        return param - corrected_rate * mean / (largest + self.epsilon), mean, largest


@functools.cache
def _nadam_schedule() -> list[float]:
    """Return the products of 1 - 0.96**t / 2 up to each t; later factors are 1 in float64."""
    return [*itertools.accumulate((1 - 0.5 * 0.96**t for t in range(1, 1000)), operator.mul, initial=1.0)]


@_registry.register("nadam")
class Nadam(Optimizer):
    """Adam with Nesterov momentum. Source: Dozat, "Incorporating Nesterov momentum into Adam", 2016."""

    slots = ("mean", "mean_square")

    def __init__(self, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.999,
                 epsilon: float = 1e-7, **settings):  # fmt: skip
        super().__init__(learning_rate, **settings)
        _expect_moments(self, beta_1, beta_2, epsilon)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def _momentum(self, t: int) -> float:
        return self.beta_1 * (1 - 0.5 * 0.96**t)

    def _product(self, t: int) -> float:
        """Return the product of the momenta of steps 1 to t."""
        return float(self.beta_1) ** t * _nadam_schedule()[min(t, len(_nadam_schedule()) - 1)]

    def scalars(self, step):
        rate, t = rate_at(self.learning_rate, step), step + 1
        return {
            "learning_rate": rate,
            "mean_rate": rate * self._momentum(t + 1) / (1 - self._product(t + 1)),
            "grad_rate": rate * (1 - self._momentum(t)) / (1 - self._product(t)),
            "square_correction": 1 / (1 - float(self.beta_2) ** t),
        }

    def rule(
        self, xp, param, grad, mean, mean_square, *, learning_rate, mean_rate, grad_rate, square_correction
    ):
        mean = mean + (grad - mean) * (1 - self.beta_1)
        mean_square = mean_square + (grad * grad - mean_square) * (1 - self.beta_2)
        spread = xp.sqrt(mean_square * square_correction) + self.epsilon
        return param - (mean_rate * mean + grad_rate * grad) / spread, mean, mean_square


@_registry.register("lion")
class Lion(Optimizer):
    """Steps of constant size along the sign of a running mean. Source: Chen et al., 2023 (arXiv:2302.06675)."""

    slots = ("mean",)

    def __init__(self, learning_rate: Any = 0.001, beta_1: float = 0.9, beta_2: float = 0.99, **settings):
        super().__init__(learning_rate, **settings)
        _expect_moments(self, beta_1, beta_2)
        self.beta_1 = beta_1
        self.beta_2 = beta_2

    def rule(self, xp, param, grad, mean, *, learning_rate):
        step = xp.sign(self.beta_1 * mean + (1 - self.beta_1) * grad)
        return param - learning_rate * step, self.beta_2 * mean + (1 - self.beta_2) * grad


# As in Keras: `optimizers.schedules.ExponentialDecay`.
__all__ = [
    "SGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "Nadam", "Optimizer", "RMSprop",
    "get", "schedules",
]  # fmt: skip


def get(optimizer) -> Optimizer:
    """Return the optimizer of this name."""
    return _registry.get(optimizer, Optimizer)
