"""The main path in seconds: train, save, load, export, on every backend present. `make test` runs it first."""

import numpy as np

import nnx
from nnx import layers

X = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")


def test_a_network_learns_is_saved_and_loaded(any_backend, tmp_path):
    model = nnx.Sequential([layers.Dense(8, "relu"), layers.Dense(2, "softmax")], seed=1)
    model.compile(nnx.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(X, Y, epochs=10, validation_split=0.2, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] / 2
    assert model.evaluate(X, Y, verbose=0)[1] > 0.9
    model.save(tmp_path / "model.nnx")
    np.testing.assert_allclose(nnx.load(tmp_path / "model.nnx").predict(X), model.predict(X), rtol=1e-6)
    names: dict = {}
    exec(model.to_numpy_function(), names)
    np.testing.assert_allclose(names["predict"](X), model.predict(X), rtol=1e-4)


def test_a_layer_is_right(any_backend):
    nnx.testing.check_layer(layers.Dense(3, "tanh"), (4,), backends=[any_backend.name])
