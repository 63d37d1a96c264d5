"""Metrics against the values of Keras (see reference/make_reference.py)."""

import json

import numpy as np
import pytest
from paths import REFERENCE

import nnx
from nnx import tree
from nnx.registry import REGISTRIES

REFERENCE = json.loads((REFERENCE / "metrics.json").read_text())
DATA, CASES = REFERENCE["data"], REFERENCE["cases"]


def identify(case):
    settings = ",".join(f"{name}={value}" for name, value in case["settings"].items())
    return f"{case['metric']}({settings})-{case['data']}"


@pytest.fixture(params=CASES, ids=identify)
def case(request):
    return request.param


def make_metric(case):
    return getattr(nnx.metrics, case["metric"])(**case["settings"])


def arrays(case):
    """Return target, output and weight; class numbers as int32, as training gives them."""
    target, output, weight = (np.asarray(DATA[case["data"]][key]) for key in ("target", "output", "weight"))
    return target.astype("int32" if target.dtype.kind == "i" else "float64"), output, weight


def sums_of(backend, metric, target, output, weight):
    """Return the metric's sums over a batch, read back to the host."""
    sums = metric.update(nnx.Context(backend), *(backend.asarray(a) for a in (target, output, weight)))
    return tree.map(backend.to_numpy, sums)


def test_value(backend, case):
    metric, (target, output, weight) = make_metric(case), arrays(case)
    value = metric.result(sums_of(backend, metric, target, output, np.ones_like(weight)))
    assert value == pytest.approx(case["value"], rel=1e-9, abs=1e-12)


def test_weighted_value_of_two_batches(backend, case):
    metric, (target, output, weight) = make_metric(case), arrays(case)
    first, second = (
        sums_of(backend, metric, target[part], output[part], weight[part])
        for part in (slice(3), slice(3, None))
    )
    value = metric.result(tree.map(np.add, first, second))
    assert value == pytest.approx(case["weighted_value"], rel=1e-9, abs=1e-12)


def test_a_metric_called_on_arrays(case):
    metric, (target, output, weight) = make_metric(case), arrays(case)
    assert metric(target, output) == pytest.approx(case["value"], rel=1e-9, abs=1e-12)
    assert metric(target, output, weight) == pytest.approx(case["weighted_value"], rel=1e-9, abs=1e-12)


def test_every_metric_has_a_reference():
    classes = [REGISTRIES["metric"].find(name) for name in REGISTRIES["metric"].names()]
    ours = {cls.__name__ for cls in classes if cls.__name__ in nnx.metrics.__all__}
    # Keras's Accuracy is another thing; its "accuracy" is resolved by shape, as ours is (below).
    assert ours - {"Accuracy"} == {case["metric"] for case in CASES}


@pytest.mark.parametrize(
    ("data", "chosen"),
    [
        ("one_label", "BinaryAccuracy"),
        ("one_hot", "CategoricalAccuracy"),
        ("one_hot_sequences", "CategoricalAccuracy"),
        ("classes", "SparseCategoricalAccuracy"),
        ("class_sequences", "SparseCategoricalAccuracy"),
    ],
)
def test_accuracy_is_the_one_that_fits_the_shapes(data, chosen):
    [case] = [c for c in CASES if c["metric"] == chosen and c["data"] == data]
    target, output, weight = arrays(case)
    assert nnx.metrics.get("accuracy")(target, output, weight) == pytest.approx(
        case["weighted_value"], rel=1e-9
    )
