"""Learning-rate schedules against Keras and PyTorch (see reference/make_reference.py)."""

import json
from pathlib import Path

import pytest

from nnx import schedules
from nnx.registry import REGISTRIES

REFERENCE = json.loads((Path(__file__).parent / "reference" / "schedules.json").read_text())
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


@pytest.mark.parametrize("settings", [{"first_decay_steps": 0}, {"first_decay_steps": 10, "t_mul": 0.5}])
def test_restarts_that_would_never_end_are_refused(settings):
    with pytest.raises(ValueError, match="t_mul"):
        schedules.CosineDecayRestarts(0.1, **settings)


def test_rate_at_takes_numbers_schedules_and_functions():
    assert schedules.rate_at(0.1, 7) == 0.1
    assert schedules.rate_at(schedules.StepDecay(1.0, 5, 0.5), 7) == 0.5
    assert schedules.rate_at(lambda step: step / 10, 7) == 0.7
