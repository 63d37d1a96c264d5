"""Activations, layers and regularizers against Keras (see reference/make_reference.py)."""

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose
from paths import REFERENCE

import nnx
from nnx import tree
from nnx.layers.base import run
from nnx.registry import REGISTRIES

FOLDER = REFERENCE
ACTIVATIONS = json.loads((FOLDER / "activations.json").read_text())
LAYERS = [
    case
    for name in ("layers", "sample_layers", "convolution")
    for case in json.loads((FOLDER / f"{name}.json").read_text())["cases"]
]
REGULARIZERS = json.loads((FOLDER / "regularizers.json").read_text())


def identify(kind):
    def name(case):
        settings = ",".join(f"{key}={value}" for key, value in case["settings"].items())
        return f"{case[kind]}({settings})" + ("-inference" if case.get("training") is False else "")

    return name


def check(backend, actual, expected):
    """Compare arrays, or trees of them, on the device with numbers from the file."""
    if isinstance(expected, dict):
        assert set(actual) == set(expected)
        for name, values in expected.items():
            check(backend, actual[name], values)
    else:
        assert_allclose(backend.to_numpy(actual), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", ACTIVATIONS["cases"], ids=identify("activation"))
def test_activation(backend, case):
    activation = REGISTRIES["activation"].find(case["activation"])(**case["settings"])
    ctx = nnx.Context(backend)
    x, dy = (backend.asarray(ACTIVATIONS["data"][name], dtype="float64") for name in ("x", "dy"))
    y, saved = activation.run(ctx, x)
    check(backend, y, case["y"])
    check(backend, activation.pull(ctx, dy, saved), case["dx"])


def test_every_activation_has_a_reference():
    classes = {name: REGISTRIES["activation"].find(name) for name in nnx.activations.names()}
    ours = {name for name, cls in classes.items() if cls.__module__ == nnx.activations.__name__}
    assert ours == {case["activation"] for case in ACTIVATIONS["cases"]} | {"gelu_tanh"}


def test_gelu_tanh_is_the_approximate_gelu(backend):
    x = backend.asarray(ACTIVATIONS["data"]["x"], dtype="float64")
    [case] = [c for c in ACTIVATIONS["cases"] if c["settings"] == {"approximate": True}]
    check(backend, nnx.activations.gelu_tanh(x), case["y"])


def make_layer(case):
    settings = {
        name: getattr(nnx.regularizers, value["class_name"])(**value["config"])
        if isinstance(value, dict)
        else value
        for name, value in case["settings"].items()
    }
    return getattr(nnx.layers, case["layer"])(**settings)


@pytest.mark.parametrize("case", LAYERS, ids=identify("layer"))
def test_layer(backend, case):
    layer = make_layer(case)
    params, state = (
        tree.map(lambda a: backend.asarray(a, dtype="float64"), as_arrays(case[name]))
        for name in ("params", "state")
    )
    x, dy = (backend.asarray(case[name], dtype="float64") for name in ("x", "dy"))

    def passes(params, state, x, dy):
        ctx = nnx.Context(backend, training=case["training"], state=state)
        y, pullback = run(layer, ctx, params, x)
        dx, grads = pullback(dy)
        for name, regularizer in layer.regularizers().items():
            ctx.add_penalty(regularizer.penalty(backend.xp, params[name]))
            grads[name] = grads[name] + regularizer.gradient(backend.xp, params[name])
        return y, dx, grads, ctx.state, dict(enumerate(ctx.penalties))

    y, dx, grads, state_after, penalties = backend.compile(passes)(params, state, x, dy)
    check(backend, y, case["y"])
    check(backend, dx, case["dx"])
    check(backend, grads, case["grads"])
    check(backend, state_after, case["state_after"])
    penalty = sum(float(backend.to_numpy(p)) for p in penalties.values())
    assert penalty == pytest.approx(case["penalty"], rel=1e-9)


@pytest.mark.parametrize("case", LAYERS, ids=identify("layer"))
def test_starting_weights_have_the_shapes_of_keras(case):
    layer, in_shape = make_layer(case), np.shape(case["x"])[1:]
    params, out_shape = layer.init(np.random.default_rng(0), in_shape)
    assert out_shape == np.shape(case["y"])[1:]
    for actual, expected in ((params, case["params"]), (layer.init_state(in_shape), case["state"])):
        assert {name: a.shape for name, a in actual.items()} == {
            name: np.shape(values) for name, values in expected.items()
        }


@pytest.mark.parametrize("case", REGULARIZERS["cases"], ids=identify("regularizer"))
def test_regularizer(backend, case):
    regularizer = getattr(nnx.regularizers, case["regularizer"])(**case["settings"])
    weights = backend.asarray(REGULARIZERS["data"]["weights"], dtype="float64")
    check(backend, regularizer.penalty(backend.xp, weights), case["penalty"])
    check(backend, regularizer.gradient(backend.xp, weights), case["gradient"])


def as_arrays(values):
    return {name: np.asarray(value) for name, value in values.items()}
