"""Learning-rate schedules against Keras and PyTorch (see reference/make_reference.py)."""

import json
import math

import pytest
from paths import REFERENCE

from nnx import schedules
from nnx.registry import REGISTRIES

REFERENCE = json.loads((REFERENCE / "schedules.json").read_text())
STEPS, CASES = REFERENCE["steps"], REFERENCE["cases"]


def identify(case):
    return f"{case['source'].rpartition('.')[2]}-{case['schedule']}-{len(case['settings'])}"


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_rates(case):
    schedule = getattr(schedules, case["schedule"])(**case["settings"])
    assert [schedule(step) for step in STEPS] == pytest.approx(case["rates"], rel=1e-9, abs=1e-15)


def test_every_schedule_has_a_reference():
    classes = [REGISTRIES["schedule"].find(name) for name in REGISTRIES["schedule"].names()]
    ours = {cls.__name__ for cls in classes if cls.__module__ == schedules.__name__}
    tested_below = {"ConstantSchedule", "Warmup"}
    assert ours - tested_below == {case["schedule"] for case in CASES}


def test_constant_schedule():
    assert [schedules.ConstantSchedule(0.3)(step) for step in (0, 1, 10**6)] == [0.3, 0.3, 0.3]


def test_warmup_before_a_cosine_is_the_warm_up_of_cosine_decay():
    [case] = [c for c in CASES if c["settings"].get("initial_learning_rate") == 0.0]
    warm = case["settings"]
    after = schedules.CosineDecay(warm["warmup_target"], warm["decay_steps"])
    schedule = schedules.Warmup(warm["warmup_steps"], after)
    assert [schedule(step) for step in STEPS] == pytest.approx(case["rates"], rel=1e-9, abs=1e-15)


def test_warmup_before_a_number():
    schedule = schedules.Warmup(4, 0.2)
    assert [schedule(step) for step in (0, 1, 3, 4, 5)] == pytest.approx([0.0, 0.05, 0.15, 0.2, 0.2])


def test_one_cycle_rises_to_its_maximum_and_ends_at_its_end():
    schedule = schedules.OneCycle(1.0, total_steps=100, warmup_fraction=0.3)
    rates = [schedule(step) for step in range(100)]
    assert max(rates) == rates[29] == 1.0
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[-1] == pytest.approx(1 / 250_000)


def test_one_cycle_without_a_warm_up_only_falls():
    rates = [schedules.OneCycle(1.0, total_steps=10, warmup_fraction=0.0)(step) for step in range(12)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize(
    ("total", "warmup", "last"),  # the last step is PyTorch's lowest, however short the descent is
    [(10, 0.95, 9), (1, 0.3, 0), (2, 0.9, 1), (3, 0.3, 2), (10, 0.99, 9), (10, 1.0, 10)],
)
def test_one_cycle_ends_at_its_lowest_rate(total, warmup, last):
    schedule = schedules.OneCycle(1.0, total_steps=total, warmup_fraction=warmup)
    assert schedule(last) == schedule(last + 5) == pytest.approx(1 / 250_000)


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.OneCycle(0.1, 0),
        lambda: schedules.OneCycle(0.1, 10, warmup_fraction=1.5),
        lambda: schedules.ExponentialDecay(0.1, 0, 0.9),
        lambda: schedules.StepDecay(0.1, 0),
        lambda: schedules.PolynomialDecay(0.1, -1),
        lambda: schedules.CosineDecay(0.1, 0),
        lambda: schedules.CosineDecay(0.1, 10, warmup_target=1.0, warmup_steps=-1),
        lambda: schedules.Warmup(-1, 0.1),
        lambda: schedules.Warmup(10, "0.1"),
        lambda: schedules.PiecewiseConstantDecay([5, 3], [1.0, 0.5, 0.1]),
        lambda: schedules.PiecewiseConstantDecay([5], [1.0, "0.5"]),
        lambda: schedules.ConstantSchedule("0.1"),
        lambda: schedules.rate_at(lambda step: None, 0),
        lambda: schedules.rate_at(lambda step: "0.1", 0),
        lambda: schedules.rate_at(lambda step: -0.1, 0),
        lambda: schedules.rate_at(lambda step: math.nan, 0),
    ],
)
def test_what_is_no_schedule_is_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()


@pytest.mark.parametrize("settings", [{"first_decay_steps": 0}, {"first_decay_steps": 10, "t_mul": 0.5}])
def test_restarts_that_would_never_end_are_refused(settings):
    with pytest.raises(ValueError, match=r"first_decay_steps must be above 0|t_mul must be at least 1"):
        schedules.CosineDecayRestarts(0.1, **settings)


def test_rate_at_takes_numbers_schedules_and_functions():
    assert schedules.rate_at(0.1, 7) == 0.1
    assert schedules.rate_at(schedules.StepDecay(1.0, 5, 0.5), 7) == 0.5
    assert schedules.rate_at(lambda step: step / 10, 7) == 0.7
