"""Learning rates that change: functions of the step number, evaluated on the host.

Any function `step -> float` can be a learning rate; these are the usual ones, under Keras's
names where Keras has them. They are plain Python: exact, the same on every backend, and never
a reason to compile again.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

from nnx.arguments import expect_range
from nnx.errors import raised_by
from nnx.registry import REGISTRIES, Configurable, is_number

__all__ = [
    "ConstantSchedule",
    "CosineDecay",
    "CosineDecayRestarts",
    "ExponentialDecay",
    "LearningRateSchedule",
    "OneCycle",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "StepDecay",
    "Warmup",
]

_registry = REGISTRIES["schedule"]


class LearningRateSchedule(Configurable):
    """Base of all schedules: `schedule(step) -> learning rate`."""

    kind = "schedule"

    def __call__(self, step: int) -> float:
        raise NotImplementedError


@_registry.register("constant_schedule")
class ConstantSchedule(LearningRateSchedule):
    """Always `learning_rate`.

    >>> ConstantSchedule(0.1)(1000)
    0.1
    """

    def __init__(self, learning_rate: float):
        expect_range(self, at_least=0, learning_rate=learning_rate)
        self.learning_rate = learning_rate

    def __call__(self, step):
        return self.learning_rate


@_registry.register("exponential_decay")
class ExponentialDecay(LearningRateSchedule):
    """initial * decay_rate ** (step / decay_steps), in steps if `staircase`.

    >>> ExponentialDecay(1.0, decay_steps=10, decay_rate=0.5)(20)
    0.25
    """

    def __init__(
        self, initial_learning_rate: float, decay_steps: float, decay_rate: float, staircase: bool = False
    ):
        expect_range(self, above=0, decay_steps=decay_steps)
        expect_range(self, at_least=0, initial_learning_rate=initial_learning_rate, decay_rate=decay_rate)
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.decay_rate = decay_rate
        self.staircase = staircase

    def __call__(self, step):
        periods = step // self.decay_steps if self.staircase else step / self.decay_steps
        return self.initial_learning_rate * float(self.decay_rate) ** periods


@_registry.register("step_decay")
class StepDecay(LearningRateSchedule):
    """Multiplied by `factor` every `step_size` steps.

    >>> [StepDecay(1.0, step_size=10, factor=0.5)(step) for step in (0, 9, 10, 25)]
    [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(self, initial_learning_rate: float, step_size: float, factor: float = 0.1):
        expect_range(self, above=0, step_size=step_size)
        expect_range(self, at_least=0, initial_learning_rate=initial_learning_rate, factor=factor)
        self.initial_learning_rate = initial_learning_rate
        self.step_size = step_size
        self.factor = factor

    def __call__(self, step):
        return self.initial_learning_rate * float(self.factor) ** (step // self.step_size)


@_registry.register("piecewise_constant_decay")
class PiecewiseConstantDecay(LearningRateSchedule):
    """values[i] up to and including step boundaries[i], which rise; values[-1] after the last boundary.

    >>> [PiecewiseConstantDecay([100], [0.1, 0.01])(step) for step in (100, 101)]
    [0.1, 0.01]
    """

    def __init__(self, boundaries: list, values: list):
        if len(values) != len(boundaries) + 1:
            raise ValueError(
                f"PiecewiseConstantDecay needs one value more than boundaries, got {len(values)} values "
                f"and {len(boundaries)} boundaries"
            )
        if any(first >= second for first, second in itertools.pairwise(boundaries)):
            raise ValueError(f"PiecewiseConstantDecay: boundaries must rise, got {list(boundaries)}")
        if wrong := [value for value in values if not is_rate(value)]:
            raise ValueError(
                f"PiecewiseConstantDecay: values must be learning rates of 0 or more, got {wrong[0]!r}"
            )
        self.boundaries, self.values = list(boundaries), list(values)

    def __call__(self, step):
        return self.values[sum(boundary < step for boundary in self.boundaries)]


@_registry.register("polynomial_decay")
class PolynomialDecay(LearningRateSchedule):
    """From initial to end in `decay_steps`, along (1 - t) ** power; then constant, or again if `cycle`.

    >>> PolynomialDecay(1.0, decay_steps=10, end_learning_rate=0.0)(5)
    0.5
    """

    def __init__(self, initial_learning_rate: float, decay_steps: float, end_learning_rate: float = 0.0001,
                 power: float = 1.0, cycle: bool = False):  # fmt: skip
        expect_range(self, above=0, decay_steps=decay_steps)
        expect_range(
            self,
            at_least=0,
            initial_learning_rate=initial_learning_rate,
            end_learning_rate=end_learning_rate,
            power=power,
        )
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.end_learning_rate = end_learning_rate
        self.power = power
        self.cycle = cycle

    def __call__(self, step):
        length = self.decay_steps
        if self.cycle:
            length *= max(1, math.ceil(step / self.decay_steps))
        left = 1 - min(step, length) / length
        return (
            self.initial_learning_rate - self.end_learning_rate
        ) * left**self.power + self.end_learning_rate


MOST_RESTARTS = 1000
"""That are counted one by one, which is exact to the last bit."""


def _cosine(t: float) -> float:
    """Fall from 1 at t = 0 to 0 at t = 1 along half a cosine wave."""
    return 0.5 * (1 + math.cos(math.pi * min(max(t, 0.0), 1.0)))


@_registry.register("cosine_decay")
class CosineDecay(LearningRateSchedule):
    """Along half a cosine wave from initial to alpha * initial, after an optional linear warm-up.

    With `warmup_target`, the rate first rises from initial to it in `warmup_steps`.
    Source: Loshchilov and Hutter, 2016 (arXiv:1608.03983).

    >>> CosineDecay(1.0, decay_steps=10)(5)
    0.5
    """

    def __init__(self, initial_learning_rate: float, decay_steps: float, alpha: float = 0.0,
                 warmup_target: float | None = None, warmup_steps: float = 0):  # fmt: skip
        expect_range(self, above=0, decay_steps=decay_steps)
        expect_range(
            self,
            at_least=0,
            initial_learning_rate=initial_learning_rate,
            alpha=alpha,
            warmup_target=warmup_target,
            warmup_steps=warmup_steps,
        )
        self.initial_learning_rate = initial_learning_rate
        self.decay_steps = decay_steps
        self.alpha = alpha
        self.warmup_target = warmup_target
        self.warmup_steps = warmup_steps

    def __call__(self, step):
        start = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return start + (self.warmup_target - start) * step / self.warmup_steps
            start, step = self.warmup_target, step - self.warmup_steps
        return start * (self.alpha + (1 - self.alpha) * _cosine(step / self.decay_steps))


@_registry.register("cosine_decay_restarts")
class CosineDecayRestarts(LearningRateSchedule):
    """Half cosine waves one after another, each t_mul times longer and starting m_mul times as high.

    Source: Loshchilov and Hutter, 2016 (arXiv:1608.03983).

    >>> [CosineDecayRestarts(1.0, first_decay_steps=10)(step) for step in (0, 10)]
    [1.0, 1.0]
    """

    def __init__(self, initial_learning_rate: float, first_decay_steps: float, t_mul: float = 2.0,
                 m_mul: float = 1.0, alpha: float = 0.0):  # fmt: skip
        expect_range(self, above=0, first_decay_steps=first_decay_steps)
        expect_range(self, at_least=1, t_mul=t_mul)
        expect_range(self, at_least=0, initial_learning_rate=initial_learning_rate, m_mul=m_mul, alpha=alpha)
        self.initial_learning_rate = initial_learning_rate
        self.first_decay_steps = first_decay_steps
        self.t_mul = t_mul
        self.m_mul = m_mul
        self.alpha = alpha

    def __call__(self, step):
        length, height = float(self.first_decay_steps), self.initial_learning_rate
        for _ in range(MOST_RESTARTS):
            if step < length:
                break
            step, length, height = step - length, length * self.t_mul, height * self.m_mul
        else:
            step, length, height = self._much_later(step, length, height)
        return self.alpha * self.initial_learning_rate + (1 - self.alpha) * height * _cosine(step / length)

    def _much_later(self, step: float, length: float, height: float) -> tuple[float, float, float]:
        """Return the same numbers after all restarts that are left, from the sum of a geometric series."""
        growth = self.t_mul - 1
        if growth == 0:
            restarts = step // length
            step -= restarts * length
        else:
            restarts = math.floor(math.log1p(step * growth / length) / math.log1p(growth))
            step -= length * math.expm1(restarts * math.log1p(growth)) / growth
            length *= self.t_mul**restarts
        return step, length, height * float(self.m_mul) ** restarts


@_registry.register("warmup")
class Warmup(LearningRateSchedule):
    """Rise linearly from 0 in `warmup_steps`, then follow `after` (a number or a schedule).

    >>> [Warmup(4, 0.1)(step) for step in (0, 2, 4, 100)]
    [0.0, 0.05, 0.1, 0.1]
    """

    def __init__(self, warmup_steps: float, after: float | Callable[[int], float]):
        expect_range(self, at_least=0, warmup_steps=warmup_steps)
        if not callable(after) and not is_rate(after):
            raise ValueError(
                f"Warmup: after must be a learning rate of 0 or more, or a schedule, got {after!r}"
            )
        self.warmup_steps = warmup_steps
        self.after = after

    def __call__(self, step):
        if step < self.warmup_steps:
            return rate_at(self.after, 0) * step / self.warmup_steps
        return rate_at(self.after, step - self.warmup_steps)


@_registry.register("one_cycle")
class OneCycle(LearningRateSchedule):
    """Rise along a cosine to max_learning_rate, then fall far below the start, in `total_steps`.

    The last of these steps is the lowest. PyTorch's OneCycleLR: start_factor is 1 / div_factor,
    end_factor is start_factor / final_div_factor.
    Source: Smith and Topin, "Super-Convergence", 2017 (arXiv:1708.07120).

    >>> OneCycle(1.0, total_steps=10, warmup_fraction=0.5)(4)
    1.0
    """

    def __init__(self, max_learning_rate: float, total_steps: float, warmup_fraction: float = 0.3,
                 start_factor: float = 1 / 25, end_factor: float = 1 / 250_000):  # fmt: skip
        expect_range(self, above=0, total_steps=total_steps)
        expect_range(self, at_least=0, at_most=1, warmup_fraction=warmup_fraction)
        expect_range(
            self,
            at_least=0,
            max_learning_rate=max_learning_rate,
            start_factor=start_factor,
            end_factor=end_factor,
        )
        self.max_learning_rate = max_learning_rate
        self.total_steps = total_steps
        self.warmup_fraction = warmup_fraction
        self.start_factor = start_factor
        self.end_factor = end_factor

    def __call__(self, step):
        top, last = self.warmup_fraction * self.total_steps - 1, self.total_steps - 1
        if step < top:
            factor = 1 - (1 - self.start_factor) * _cosine(step / top)
        else:
            fallen = (step - top) / (last - top) if last > top else float(step > last)
            factor = self.end_factor + (1 - self.end_factor) * _cosine(fallen)
        return self.max_learning_rate * factor


def is_rate(value: Any) -> bool:
    """Whether a value can be a learning rate: one number, finite and not negative."""
    return is_number(value) and 0 <= float(value) < math.inf


def rate_at(rate: Any, step: float) -> float:
    """Return a learning rate, a number or any function of the step, at one step."""
    try:
        value: Any = rate(step) if callable(rate) else rate
        if not is_rate(value):
            raise ValueError(f"the learning rate must be a finite number of 0 or more, got {value!r}")
        return float(value)
    except Exception as error:
        raised_by(error, "learning-rate schedule", rate, f" at step {step}")
        raise
