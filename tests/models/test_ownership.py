"""A layer stands once in one model; layers nest deeply, and many of them take time in proportion."""

import copy
import gc
import pickle

import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.layers.containers import Chain
from nnx.models import ownership

X = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
Y = X[:, :2]


def trained():
    model = nnx.Sequential([layers.Dense(4, "relu"), layers.Flatten(), layers.Dense(2)], seed=0)
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0)
    return model


def one():
    return layers.Dense(3)


@pytest.mark.parametrize(
    "make",
    [
        lambda d: layers.Chain([d, d]),
        lambda d: layers.Residual([d, d]),
        lambda d: layers.Parallel(d, d),
        lambda d: layers.Outputs({"a": d, "b": d}),
        lambda d: nnx.Sequential([d, d]),
        lambda d: nnx.Sequential([layers.Residual(d), d]),
        lambda d: nnx.Model(layers.Parallel([d], layers.Residual(d))),
    ],
)
def test_a_layer_that_is_there_twice(make):
    d = one()
    with pytest.raises(
        ValueError, match=r"twice, and would have two sets of weights.*copy.deepcopy\(layer\)"
    ):
        make(d)


def test_a_layer_that_is_added_and_inside_another():
    d = one()
    model = nnx.Sequential([layers.Input((3,)), layers.Residual(d)])
    model.add(d)
    with pytest.raises(ValueError, match=r"layer 'dense' \(Dense\) is in this model twice"):
        model.build((3,))


def test_a_layer_of_a_trained_model_in_another():
    model = trained()
    message = r"layer 'dense' \(Dense\) has its weights in the model 'sequential'.*copy.deepcopy\(layer\).*set_weights"
    for make in (
        lambda: nnx.Sequential(model.layers[:-1] + [layers.Dense(5)]),
        lambda: nnx.Sequential().add(model.layers[0]),
        lambda: nnx.Model(model.network),
        lambda: nnx.Sequential([layers.Residual([model.layers[0]])]),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    again = nnx.Sequential(copy.deepcopy(model.layers[:-1]) + [layers.Dense(5)])
    again.build((3,))
    again.set_weights(model.get_weights()[:2] + again.get_weights()[2:])
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])
    nnx.Sequential([layers.Dense(1), model.layers[1]])  # one without weights has none to lose


def test_also_when_that_model_is_gone():
    model = trained()
    used = model.layers[0]
    del model
    gc.collect()
    with pytest.raises(ValueError, match="has its weights in the model 'sequential'"):
        nnx.Sequential([used])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_layers_of_a_copy_belong_to_the_copy(again):
    copied = again(trained())
    copied.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="has its weights in the model 'sequential'"):
        nnx.Sequential(copied.layers)


def test_layers_of_models_that_were_never_built():
    used = [layers.Dense(4), layers.Dense(2)]
    for _ in range(3):
        model = nnx.Sequential(used)
        model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="y"):
        model.fit(X, Y[:3], verbose=0)  # which does not build it either
    last = nnx.Sequential(used)
    last.compile("sgd", "mse")
    last.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="has its weights in the model"):
        model.build((3,))


def test_one_pass_needs_no_layer_of_its_own():
    model = trained()
    assert nnx.apply(model.layers[0], X).shape == (8, 4)
    model.fit(X, Y, verbose=0)


# Many layers, and deep ones


@pytest.mark.parametrize(
    "wrap", [layers.Residual, lambda inner: layers.Residual([inner]), lambda i: layers.Parallel(i)]
)
def test_250_layers_inside_each_other(wrap, tmp_path):
    layer = layers.Dense(3)
    for _ in range(250):
        layer = wrap(layer)
    model = nnx.Sequential([layer], seed=0)
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0)
    model.save(tmp_path / "net.nnx")
    for other in (nnx.load(tmp_path / "net.nnx"), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.predict(X), model.predict(X))
    model.summary(print_fn=lambda text: None)


def test_too_many_layers_inside_each_other(monkeypatch, tmp_path):
    model = nnx.Sequential([layers.Residual(layers.Residual(layers.Dense(3)))], seed=0)
    model.build((3,))
    model.save(tmp_path / "net.nnx")
    monkeypatch.setattr(ownership, "MOST_NESTED", 2)
    with pytest.raises(ValueError, match="layers are nested more than 2 deep"):
        nnx.Sequential([layers.Residual(layers.Residual(layers.Dense(3)))])
    with pytest.raises(
        ValueError, match=r"cannot make the model of .*net.nnx: layers are nested more than 2 deep"
    ):
        nnx.load(tmp_path / "net.nnx")


def test_layers_are_looked_at_in_proportion_to_their_number(monkeypatch, tmp_path):
    """Counted: each layer's shape is asked for a few times, however many there are."""
    asked = []

    class Same(layers.Flatten):
        def out_shape(self, in_shape):
            asked.append(self)
            return in_shape

    monkeypatch.setattr(layers.Flatten, "out_shape", Same.out_shape)
    chains, init = [], Chain.__init__
    monkeypatch.setattr(
        Chain,
        "__init__",
        lambda self, *given, **settings: (chains.append(self), init(self, *given, **settings))[1],
    )
    count = 300
    model = nnx.Sequential([layers.Input((3,)), *(layers.Flatten() for _ in range(count))])
    for _ in range(count):
        model.add(layers.Flatten())
    model.build((3,))
    model.save(tmp_path / "net.nnx")
    nnx.load(tmp_path / "net.nnx")
    assert len(asked) < 20 * count
    assert sum(len(chain.layers) for chain in chains) < 20 * count
    assert [key for key, _ in model.network._keyed] == list(model.network.sublayers())
