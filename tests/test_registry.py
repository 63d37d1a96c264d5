"""Classes of one's own under a name: defined again, under a name that is taken, in every registry."""

import inspect

import numpy as np
import pytest

import nnx
from nnx.registry import REGISTRIES, Registry, decode, encode

BASES = {
    "activation": nnx.activations.Activation,
    "initializer": nnx.initializers.Initializer,
    "layer": nnx.layers.Layer,
    "loss": nnx.losses.Loss,
    "metric": nnx.metrics.Metric,
    "optimizer": nnx.optimizers.Optimizer,
    "regularizer": nnx.regularizers.Regularizer,
    "schedule": nnx.schedules.LearningRateSchedule,
}
CELL = """
@nnx.register
class {name}(Base):
    version = {version}
"""


@pytest.fixture(autouse=True)
def as_it_was():
    """Registries without the classes of these tests."""
    before = {kind: (dict(r._entries), list(r._names)) for kind, r in REGISTRIES.items()}
    yield
    for kind, (entries, names) in before.items():
        REGISTRIES[kind]._entries, REGISTRIES[kind]._names = entries, names


def run(cell: str, **space):
    """Run the text of a cell, as a notebook does; return its variables."""
    space = {"nnx": nnx, "__name__": "__main__", **space}
    exec(cell, space)
    return space


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_cell_that_is_run_again_replaces_its_class(kind):
    found = [run(CELL.format(name="Mine", version=v), Base=BASES[kind])["Mine"] for v in (1, 2, 3)]
    assert REGISTRIES[kind].find("mine") is found[-1]
    assert REGISTRIES[kind].names().count("Mine") == 1


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_name_that_another_class_has_is_an_error(kind):
    registry, name = REGISTRIES[kind], REGISTRIES[kind].names()[-1]
    taken = registry.find(name)
    message = rf"there is already a {kind} called .*{taken.__module__}.{taken.__qualname__}: give __main__.* another"
    with pytest.raises(ValueError, match=message):
        run(CELL.format(name=taken.__name__, version=1), Base=BASES[kind])
    run(CELL.format(name="Mine", version=1), Base=BASES[kind])
    with pytest.raises(
        ValueError, match=f"there is already a {kind} called 'MINE', __main__.Mine: give other.MINE"
    ):
        run(CELL.format(name="MINE", version=2), Base=BASES[kind], __name__="other")
    assert registry.find(name) is taken
    assert registry.find("mine").version == 1


def test_names_that_the_newer_class_does_not_have_are_gone():
    registry = Registry("thing")

    def defined(*names):
        @registry.register(*names)
        class Thing:
            pass

        return Thing

    defined("thing", "old_alias")
    newer = defined("thing", "alias")
    assert registry.find("alias") is registry.find("Thing") is newer
    assert registry.known("old_alias") is None
    assert registry.names() == ["thing"]


LAYER = """
@nnx.register
class Times(nnx.layers.Layer):
    def forward(self, ctx, params, x):
        return x * {factor}, lambda dy: (dy * {factor}, {{}})
"""


def test_a_model_of_the_older_class_is_saved_and_comes_back_with_the_newer(tmp_path):
    old = run(LAYER.format(factor=2.0))["Times"]
    model = nnx.Sequential([old(input_shape=(1,))], seed=0)
    newer = run(LAYER.format(factor=3.0))["Times"]
    assert model.predict([[1.0]]) == [[2.0]]
    model.save(tmp_path / "net.nnx")
    loaded = nnx.load(tmp_path / "net.nnx")
    assert type(loaded.layers[0]) is newer
    assert loaded.predict([[1.0]]) == [[3.0]]
    again = nnx.Sequential([newer(input_shape=(1,))], seed=0)
    again.compile("sgd", "mse")
    again.fit(np.ones((4, 1)), np.ones((4, 1)), verbose=0)
    assert again.predict([[1.0]]) == [[3.0]]


def test_classes_made_by_a_function_are_not_taken_for_one_another():
    """The newest has the name; an object of an older one, with other variables around it, is not saved as one."""

    def made(factor):
        @nnx.register
        class Times(nnx.layers.Layer):
            def forward(self, ctx, params, x):
                return x * factor, lambda dy: (dy * factor, {})

        return Times()

    two, three = made(2.0), made(3.0)
    assert type(decode(encode(three))) is type(three)
    with pytest.raises(TypeError, match=r"cannot save Times\(\): decorate .* under a name of its own"):
        encode(two)


@pytest.mark.parametrize("what", [object, nnx.callbacks.Callback, nnx.layers.Dense(1), len, "dense", None])
def test_what_has_no_registry_is_an_error(what):
    with pytest.raises(
        TypeError, match=r"nnx.register takes a class derived from one of nnx's, of the kinds activation,"
    ):
        nnx.register(what)


def test_all_classes_of_nnx_keep_their_names():
    for kind, registry in REGISTRIES.items():
        for name in registry.names():
            assert inspect.isclass(registry.find(name)), (kind, name)
            assert registry.find(registry.find(name).__name__) is registry.find(name)
