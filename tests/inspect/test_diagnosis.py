"""`nnx.diagnose`: each fault planted is told, a healthy network is left in peace, the model unchanged."""

import numpy as np
import pytest

import nnx
from nnx import initializers, layers

RNG = np.random.default_rng(0)
X = RNG.standard_normal((300, 12)).astype(np.float32)
W = RNG.standard_normal((12, 3))
Y = (X @ W).argmax(axis=1)
Dense = layers.Dense


def build(*parts, optimizer="adam", loss="sparse_categorical_crossentropy", units=3, **settings):
    last = Dense(units, "softmax" if "crossentropy" in loss else None)
    model = nnx.Sequential([*parts, last], seed=0, **settings)
    model.compile(optimizer, loss)
    return model


def diagnose(model, x=X, y=Y, **settings):
    return nnx.diagnose(model, x, y, print_fn=lambda text: None, **settings)


def told(found, *beginnings):
    """Assert that the advice begins so, and that there is no other."""
    assert len(found.advice) == len(beginnings), found.advice
    for text, beginning in zip(found.advice, beginnings, strict=True):
        assert text.startswith(beginning)


def test_a_healthy_network(any_backend):
    model = build(Dense(16, "relu"), layers.BatchNormalization(), layers.Dropout(0.2), Dense(8, "tanh"))
    told(diagnose(model))
    model.fit(X, Y, epochs=40, verbose=0)
    before, step = model.get_weights(), model.step
    slots = [any_backend.to_numpy(leaf) for leaf in nnx.tree.leaves(model.slots)]
    found = diagnose(model)
    told(found)
    assert [row.layer for row in found.rows] == [
        "dense",
        "batch_normalization",
        "dropout",
        "dense_1",
        "dense_2",
    ]
    assert found.rows[2].gradient is None
    assert model.step == step
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(slots, nnx.tree.leaves(model.slots), strict=True):
        np.testing.assert_array_equal(a, any_backend.to_numpy(b))


def test_digits_that_are_scaled_and_that_are_not():
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    for epochs in (0, 5):
        model = build(Dense(64, "relu"), Dense(32, "relu"), units=10)
        if epochs:
            model.fit(x / 16, y, epochs=epochs, verbose=0)
        told(diagnose(model, x / 16, y))
    told(diagnose(build(Dense(64, "relu"), units=10), x, y), "Unscaled input: feature")


def test_backends_agree():
    def rows(backend):
        found = diagnose(build(Dense(16, "relu"), layers.Dropout(0.5), Dense(8, "tanh"), backend=backend))
        return [[value for value in vars(row).values() if isinstance(value, float)] for row in found.rows]

    for mine, theirs in zip(rows("numpy"), rows("jax"), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_numbers_of_the_table():
    """By hand: one dense layer, one step of gradient descent on the mean squared error."""
    model = build(units=1, loss="mse", optimizer=nnx.optimizers.SGD(0.01))
    y = X[:, :1] * 2
    (row,) = diagnose(model, X, y).rows
    kernel, bias = model.get_weights()
    outputs = X @ kernel + bias
    gradient = 2 * np.concatenate([X.T @ (outputs - y), (outputs - y).sum(axis=0, keepdims=True)]) / len(X)
    assert row.mean == pytest.approx(outputs.mean(), rel=1e-4)
    assert row.deviation == pytest.approx(outputs.std(), rel=1e-4)
    assert row.gradient == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    assert row.update == pytest.approx(0.01 * np.linalg.norm(gradient) / np.linalg.norm(kernel), rel=1e-3)


def test_dead_units(any_backend):
    bias = np.where(np.arange(10) < 7, -99.0, 0.0)
    model = build(Dense(10, "relu"))
    model.build((12,))
    model.set_weights([model.get_weights()[0], bias, *model.get_weights()[2:]])
    found = diagnose(model)
    told(found, "Dead units: 70% of those of layer dense are 0 for every sample")
    assert found.rows[0].dead == 0.7
    told(
        diagnose(build(Dense(10, "relu", bias_initializer=initializers.Constant(-99.0)))), "Dead units: 100% "
    )


def test_a_channel_of_a_convolution_is_a_unit():
    model = build(layers.Reshape((6, 2)), layers.Conv1D(4, 3), layers.ReLU(), layers.Flatten())
    model.build((12,))
    kernel, _, *rest = model.get_weights()
    model.set_weights([kernel, np.array([0, -99, -99, -99]), *rest])
    found = diagnose(model)
    told(found, "Dead units: 75% of those of layer re_lu ")
    assert [row.dead is None for row in found.rows] == [True, True, False, True, True]


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "hard_sigmoid"])
def test_saturated_units(activation):
    steep = initializers.RandomNormal(0.0, 30.0)
    told(diagnose(build(Dense(16, activation, kernel_initializer=steep))), "Saturated: ")
    told(diagnose(build(Dense(16, activation))))


def test_vanishing_and_exploding_gradients():
    told(diagnose(build(*(Dense(16, "sigmoid") for _ in range(10)))), "Vanishing gradients: ")
    wide = initializers.RandomNormal(0.0, 2.0)
    found = diagnose(build(*(Dense(32, "relu", kernel_initializer=wide) for _ in range(6))))
    told(found, "Exploding gradients: ")


def test_inputs():
    x = X.copy()
    x[:, 7] = 5000 + 300 * x[:, 7]
    x[:, 3] = 4.0
    told(
        diagnose(build(Dense(8)), x), "Unscaled input: feature 7 goes up to", "Constant input: feature 3 has"
    )
    x[:, 3] = 0.0  # which a network does not see
    told(diagnose(build(Dense(8)), x), "Unscaled input: feature 7")
    found = diagnose(build(Dense(8)), X * 1e-4)
    assert found.advice[0].startswith("Unscaled input: no feature deviates by more than 0.00")
    images = RNG.integers(0, 256, (50, 6, 6, 1))
    model = build(layers.Conv2D(4, 3), layers.Flatten())
    assert diagnose(model, images, Y[:50]).advice[0].startswith("Unscaled input: the values have mean 1")


def test_targets_of_a_large_scale():
    y = 250_000 + 90_000 * X[:, :1]
    told(diagnose(build(Dense(8, "relu"), loss="mse", units=1), X, y), "Unscaled targets: mean 2.")


def test_learning_rates():
    for rate, beginning in (
        (1.0, "Large steps: one step changes the weights of layer "),
        (1e-9, "Small steps: "),
    ):
        told(diagnose(build(Dense(8, "relu"), optimizer=nnx.optimizers.Adam(rate))), beginning)


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", "mse"])
def test_nothing_learnt(loss):
    y = np.random.default_rng(1).permutation(Y) if "sparse" in loss else RNG.standard_normal((300, 1))
    model = build(
        Dense(4, "relu"), units=3 if "sparse" in loss else 1, loss=loss, optimizer=nnx.optimizers.SGD(1e-3)
    )
    told(diagnose(model, X, y))  # it has not been trained
    model.fit(X, y, epochs=20, verbose=0)
    told(diagnose(model, X, y), f"Nothing learnt: after {model.step} steps the loss is ")


def test_several_inputs_and_outputs_recurrent_layers_and_one_layer_alone(any_backend):
    inputs = layers.Inputs({"a": [], "b": [layers.Embedding(5, 4), layers.LSTM(4)]})
    outputs = layers.Outputs({"u": Dense(1), "v": [Dense(2, "softmax")]})
    model = nnx.Sequential([inputs, layers.Residual(Dense(16)), outputs], seed=0)
    model.compile("adam", {"u": "mse", "v": "sparse_categorical_crossentropy"})
    x = {"a": X * 900, "b": RNG.integers(0, 5, (300, 3))}
    found = diagnose(model, x, {"u": X[:, :1], "v": Y % 2})
    assert any("of input 'a'" in text for text in found.advice)
    names = [row.layer for row in found.rows]
    assert any(name.endswith("lstm") for name in names)
    alone = nnx.Model(Dense(3, "softmax"), seed=0)
    alone.compile("adam", "sparse_categorical_crossentropy")
    (row,) = diagnose(alone).rows
    assert row.layer == "dense"
    assert row.gradient > 0


def test_what_is_not_finite():
    model = build(Dense(4))
    model.build((12,))
    model.set_weights([np.full_like(w, np.nan) for w in model.get_weights()])
    assert any("The output of layer dense is not finite" in text for text in diagnose(model).advice)


def test_text(capsys):
    found = nnx.diagnose(build(Dense(4, "relu")), X, Y)
    text = capsys.readouterr().out
    assert text == f"{found}\n"
    assert text.splitlines()[0].split() == [
        "layer",
        "mean",
        "deviation",
        "dead",
        "saturated",
        "gradient",
        "update",
    ]
    assert f"Nothing stands out. Loss {found.loss:.4g}." in text
    assert len({len(line) for line in text.splitlines()[:3]}) == 1


def test_a_model_that_is_not_compiled():
    with pytest.raises(nnx.NotReadyError, match="the model is not compiled"):
        nnx.diagnose(nnx.Sequential([Dense(3)]), X, Y)
