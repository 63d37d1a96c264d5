"""Defaults, the order of arguments and short names are Keras's; what differs is listed, with the reason."""

import inspect
import json

import pytest
from paths import REFERENCE

import nnx
from nnx.registry import REGISTRIES, Configurable, init_arguments

KERAS = json.loads((REFERENCE / "defaults.json").read_text())
MODULES = {
    "optimizers": nnx.optimizers,
    "schedules": nnx.schedules,
    "losses": nnx.losses,
    "metrics": nnx.metrics,
    "initializers": nnx.initializers,
    "regularizers": nnx.regularizers,
    "layers": nnx.layers,
    "callbacks": nnx.callbacks,
}

# (class, argument): why nnx's default is not Keras's.
OTHER_DEFAULTS = {
    ("MultiHeadAttention", "key_dim"): "None, features / num_heads, where Keras has none",
    ("fit", "batch_size"): "32 is what Keras's None stands for",
    ("evaluate", "batch_size"): "changes the speed alone; Keras's None stands for 32",
    ("predict", "batch_size"): "changes the speed alone; Keras's None stands for 32",
    ("predict", "verbose"): "predictions are often made in loops",
}

# Keras puts the name into the signature; nnx fills it in when it is None.
NAME = "name"

# Bases and helpers that no program makes.
INTERNAL = {"Optimizer", "CallbackList"}


def shared_classes():
    """Return (kind, class name) of all public classes that both have."""
    return [
        (kind, name)
        for kind, module in MODULES.items()
        for name in KERAS[kind]
        if name not in INTERNAL and inspect.isclass(getattr(module, name, None))
    ]


def arguments(kind, name):
    """Return our arguments and defaults, in order, as the file writes them."""
    cls = getattr(MODULES[kind], name)
    if issubclass(cls, Configurable):
        found = init_arguments(cls)
    else:
        found = {p.name: p.default for p in list(inspect.signature(cls.__init__).parameters.values())[1:]}
    return {key: "<required>" if value is inspect.Parameter.empty else value for key, value in found.items()}


@pytest.mark.parametrize(("kind", "name"), shared_classes())
def test_defaults(kind, name):
    ours, keras = arguments(kind, name), KERAS[kind][name]
    shared = [key for key in ours if key in keras and key != NAME]
    different = {key for key in shared if not same(ours[key], keras[key])}
    assert different == {key for owner, key in OTHER_DEFAULTS if owner == name}


def same(ours, keras):
    """Whether two defaults mean the same: one number stands for as many as there are axes."""
    if isinstance(ours, tuple):
        return isinstance(keras, list) and len(ours) == len(keras) and all(map(same, ours, keras))
    return ours == keras or (isinstance(keras, list) and keras == [ours] * len(keras))


def by_position(kind, name):
    """Return the arguments that can be given without their names: not those of `**settings`."""
    parameters = list(inspect.signature(getattr(MODULES[kind], name).__init__).parameters.values())[1:]
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


@pytest.mark.parametrize(("kind", "name"), shared_classes())
def test_order_of_arguments(kind, name):
    ours, keras = by_position(kind, name), KERAS[kind][name]
    shared = [key for key in ours if key in keras and key != NAME]
    assert shared == [key for key in keras if key in shared]


@pytest.mark.parametrize(
    ("plural", "kind"),
    [
        ("optimizers", "optimizer"),
        ("losses", "loss"),
        ("metrics", "metric"),
        ("initializers", "initializer"),
        ("regularizers", "regularizer"),
    ],
)
def test_short_names_stand_for_the_same_class(plural, kind):
    registry = REGISTRIES[kind]
    ours = {key for name in registry.names() for key in (name, registry.find(name).__name__)}
    pairs = [(short, name) for short, name in KERAS["names"][plural].items() if name in ours]
    assert pairs
    for short, name in pairs:
        assert registry.find(short) is registry.find(name)


def test_activations_have_the_arguments_of_keras():
    for name in set(nnx.activations.names()) & set(KERAS["activations"]):
        ours = init_arguments(REGISTRIES["activation"].find(name))
        keras = {key: value for key, value in KERAS["activations"][name].items() if key != "x"}
        shared = ours.keys() & keras.keys()
        assert {key: ours[key] for key in shared} == {key: keras[key] for key in shared}


@pytest.mark.parametrize("method", ["compile", "fit", "evaluate", "predict"])
def test_methods_of_models(method):
    parameters = inspect.signature(getattr(nnx.Sequential, method)).parameters.values()
    ours, keras = {p.name: p.default for p in parameters}, KERAS["model"][method]
    shared = [name for name in ours if name in keras]
    different = {name for name in shared if name != "x" and ours[name] != keras[name]}
    assert different == {argument for owner, argument in OTHER_DEFAULTS if owner == method}
    assert shared == [name for name in keras if name in shared]
