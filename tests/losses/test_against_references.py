"""Losses against the values and gradients of Keras (see reference/make_reference.py)."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from paths import REFERENCE

import nnx
from nnx.registry import REGISTRIES

REFERENCE = json.loads((REFERENCE / "losses.json").read_text())
DATA, CASES = REFERENCE["data"], REFERENCE["cases"]


def identify(case):
    settings = ",".join(f"{name}={value}" for name, value in case["settings"].items())
    return f"{case['loss']}({settings})-{case['data']}"


@pytest.fixture(params=CASES, ids=identify)
def case(request):
    return request.param


def make_loss(case):
    return getattr(nnx.losses, case["loss"])(**case["settings"])


def run(backend, case):
    """Return the values of the samples, on the host, and the function dvalues -> doutput on it."""
    loss, data = make_loss(case), DATA[case["data"]]
    output = np.asarray(data["output"])
    target = loss.check_target(data["target"], output.shape[1:])
    values, pullback = loss.forward(
        nnx.Context(backend), backend.asarray(target), backend.asarray(output, dtype="float64")
    )

    def pull(dvalues):
        return backend.to_numpy(pullback(backend.asarray(dvalues, dtype="float64")))

    return backend.to_numpy(values), pull


def spread(weight, values):
    """Return one weight a sample for each of its values."""
    return np.broadcast_to(np.reshape(weight, (-1, *[1] * (values.ndim - 1))), values.shape)


def test_values(backend, case):
    values, _ = run(backend, case)
    assert_allclose(values, case["values"], rtol=1e-9, atol=1e-12)


def test_gradient_of_the_mean(backend, case):
    values, pull = run(backend, case)
    gradient = pull(np.ones(values.shape) / values.size)
    assert_allclose(gradient, case["gradient"], rtol=1e-9, atol=1e-12)


def test_gradient_of_the_weighted_mean(backend, case):
    values, pull = run(backend, case)
    weight = spread(DATA[case["data"]]["weight"], values)
    assert_allclose(pull(weight / values.size), case["weighted_gradient"], rtol=1e-9, atol=1e-12)


def test_a_loss_called_on_arrays_is_the_weighted_mean(backend, case):
    loss, data = make_loss(case), DATA[case["data"]]
    target, output = np.asarray(data["target"]), np.asarray(data["output"])
    mean, weighted_mean = loss(target, output), loss(target, output, sample_weight=data["weight"])
    assert_allclose(backend.to_numpy(mean), case["mean"], rtol=1e-9)
    assert_allclose(backend.to_numpy(weighted_mean), case["weighted_mean"], rtol=1e-9)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_weights_may_be_a_column(backend, shape):
    [case] = [c for c in CASES if c["loss"] == "MeanSquaredError" and c["data"] == "real"]
    data = DATA["real"]
    weight = np.reshape(data["weight"], shape)
    mean = make_loss(case)(data["target"], data["output"], sample_weight=weight)
    assert_allclose(backend.to_numpy(mean), case["weighted_mean"], rtol=1e-9)


@pytest.mark.parametrize("name", ["BinaryFocalCrossentropy", "CategoricalFocalCrossentropy"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("from_logits", [False, True])
def test_focal_gradients_of_certain_predictions_are_finite(backend, name, gamma, from_logits):
    loss = getattr(nnx.losses, name)(gamma=gamma, from_logits=from_logits)
    output = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    target = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    values, pullback = loss.forward(
        nnx.Context(backend),
        backend.asarray(target),
        backend.asarray(500 * output if from_logits else output),
    )
    gradient = backend.to_numpy(pullback(backend.asarray(np.ones(3))))
    assert np.all(np.isfinite(backend.to_numpy(values)))
    assert np.all(np.abs(gradient) < 1e7 + 1)


def test_every_loss_has_a_reference():
    classes = [REGISTRIES["loss"].find(name) for name in REGISTRIES["loss"].names()]
    ours = {cls.__name__ for cls in classes if cls.__name__ in nnx.losses.__all__}
    assert ours == {case["loss"] for case in CASES} | {"Quantile"}  # which Keras does not have


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_quantile_is_scikit_learns_pinball_loss(quantile):
    metrics = pytest.importorskip("sklearn.metrics")
    data = DATA["real"]
    expected = metrics.mean_pinball_loss(data["target"], data["output"], alpha=quantile)
    with nnx.use_backend("numpy"):
        found = nnx.losses.Quantile(quantile)(data["target"], data["output"])
    assert_allclose(found, expected, rtol=1e-12)
