"""Optimizers against the parameters that Keras and PyTorch reach (see reference/make_reference.py)."""

import json
import runpy

import pytest
from numpy.testing import assert_allclose
from paths import REFERENCE

import nnx
from nnx import tree
from nnx.registry import REGISTRIES

FOLDER = REFERENCE
CASES = json.loads((FOLDER / "optimizers.json").read_text())["cases"]
PROBLEMS = runpy.run_path(str(FOLDER / "problems.py"))["PROBLEMS"]


def identify(case):
    settings = ",".join(
        f"{name}={value}" for name, value in case["settings"].items() if name != "learning_rate"
    )
    return f"{case['source']}-{case['problem']}-{case['optimizer']}({settings})"


def make_optimizer(case):
    settings = dict(case["settings"])
    if isinstance(rate := settings.get("learning_rate"), dict):
        settings["learning_rate"] = getattr(nnx.schedules, rate["class_name"])(**rate["config"])
    return getattr(nnx.optimizers, case["optimizer"])(**settings)


def follow(optimizer, problem, steps, backend, pack):
    """Yield the number of steps taken and the parameters, on the host."""
    start, gradient = PROBLEMS[problem]
    params = pack(tree.map(lambda p: backend.asarray(p, dtype="float64"), start))
    slots = optimizer.init(params, backend)
    for step in range(steps):
        grads = gradient(tree.map(backend.to_numpy, params))
        grads = tree.map(lambda g: backend.asarray(g, dtype="float64"), grads)
        params, slots = optimizer.update(grads, slots, params, step, backend)
        yield step + 1, tree.map(backend.to_numpy, params)


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_parameters_after_steps(backend, case):
    expected = {int(steps): params for steps, params in case["after"].items()}
    tolerance = 1e-9 if case["source"] == "keras" else 1e-6
    reached = set()
    for steps, params in follow(make_optimizer(case), case["problem"], max(expected), backend, backend.pack):
        if steps in expected:
            reached.add(steps)
            for name, values in expected[steps].items():
                assert_allclose(params[name], values, rtol=tolerance, atol=1e-12, err_msg=f"{name}, {steps}")
    assert reached == set(expected)


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "Adagrad", "Adadelta", "Adam", "Adamax", "Nadam", "Lion"])
def test_parameters_need_not_be_packed(backend, name):
    [case] = [
        c for c in CASES if c["optimizer"] == name and c["problem"] == "regression" and c["source"] == "keras"
    ][:1]
    *_, (steps, params) = follow(make_optimizer(case), "regression", 20, backend, pack=lambda params: params)
    for key, values in case["after"][str(steps)].items():
        assert_allclose(params[key], values, rtol=1e-9, atol=1e-12)


def test_every_optimizer_has_a_reference():
    classes = [REGISTRIES["optimizer"].find(name) for name in REGISTRIES["optimizer"].names()]
    ours = {cls.__name__ for cls in classes if cls.__module__ == nnx.optimizers.__name__}
    assert ours == {case["optimizer"] for case in CASES if case["source"] == "keras"}
