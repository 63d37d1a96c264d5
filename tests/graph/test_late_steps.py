"""Schedules and optimizers at any step that a file may hold: in bounded time, and what counting step by step gives."""

import itertools
import math
import operator

import pytest

from nnx import optimizers, schedules

LATEST = 2**32 - 2


def counted(schedule, step):
    """Cosine restarts as they are defined: one after the other."""
    length, height = float(schedule.first_decay_steps), schedule.initial_learning_rate
    while step >= length:
        step, length, height = step - length, length * schedule.t_mul, height * schedule.m_mul
    return height * 0.5 * (1 + math.cos(math.pi * step / length))


@pytest.mark.parametrize(
    ("t_mul", "m_mul"), [(1.0, 1.0), (1.0, 0.9999), (1.001, 1.0), (1.0001, 0.999), (2.0, 0.5)]
)
def test_cosine_restarts_are_those_counted_one_by_one(t_mul, m_mul):
    schedule = schedules.CosineDecayRestarts(0.1, 3, t_mul, m_mul)
    for step in [*range(50), 2999, 3000, 3001, 12_345, 100_001]:
        assert schedule(step) == pytest.approx(counted(schedule, step), rel=1e-6, abs=1e-9)
    for step in range(0, 3000, 7):
        assert schedule(step) == pytest.approx(counted(schedule, step), rel=1e-11, abs=1e-15)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9, 0.999])
def test_nadam_is_the_product_counted_step_by_step(beta):
    nadam = optimizers.Nadam(0.01, beta_1=beta)
    momenta = (beta * (1 - 0.5 * 0.96**t) for t in range(1, 5000))
    products = [*itertools.accumulate(momenta, operator.mul, initial=1.0)]
    for step in (0, 1, 2, 10, 998, 999, 1000, 1001, 4000):
        expected = 0.01 * beta * (1 - 0.5 * 0.96 ** (step + 2)) / (1 - products[step + 2])
        assert nadam.scalars(step)["mean_rate"] == pytest.approx(expected, rel=1e-12)


def test_the_latest_step_takes_no_loop():
    """Each of these once counted up to the step, or made a whole number of billions of digits."""
    rates = [
        schedules.CosineDecayRestarts(0.1, 1, 1.0),
        schedules.CosineDecayRestarts(0.1, 1, 1.0 + 1e-9, m_mul=0.999),
        schedules.ExponentialDecay(0.1, 10, 1, staircase=True),
        schedules.StepDecay(0.1, 1, 1),
    ]
    for rate in rates:
        assert 0 <= rate(LATEST) <= 0.1
    for raised in (schedules.ExponentialDecay(0.1, 1, 2, staircase=True), schedules.StepDecay(0.1, 1, 2)):
        with pytest.raises(OverflowError):
            raised(LATEST)
    assert all(map(math.isfinite, optimizers.Nadam(beta_1=0.9999999).scalars(LATEST).values()))
