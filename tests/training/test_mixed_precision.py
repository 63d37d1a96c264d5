"""Half precision: layers compute in 16 bits, weights stay in 32, and no gradient is lost on the way."""

import pickle

import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.training import mixed_precision

RNG = np.random.default_rng(0)
X = RNG.standard_normal((96, 8)).astype(np.float32)
Y = (X @ RNG.standard_normal((8, 3))).argmax(axis=1)


@pytest.fixture(params=mixed_precision.HALF)
def half(request, any_backend):
    """Each half precision that the backend has."""
    if request.param not in any_backend.dtypes:
        with pytest.raises(
            nnx.BackendError, match=f"dtype '{request.param}' is not to be had on {any_backend.name}"
        ):
            build(request.param).fit(X, Y, verbose=0)
        pytest.skip(f"{any_backend.name} has no {request.param}, and says so")
    return request.param


def build(dtype, *inner, **settings):
    model = nnx.Sequential(
        [layers.Dense(16, "relu"), *inner, layers.Dense(3, "softmax")], seed=0, dtype=dtype, **settings
    )
    model.compile(nnx.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class Watched(layers.Layer):
    """Notes the precision of what comes through, both ways."""

    def forward(self, ctx, params, x):
        SEEN.append(str(x.dtype))

        def pullback(dy):
            SEEN.append(str(dy.dtype))
            return dy, {}

        return x, pullback


SEEN: list[str] = []


def test_learns_as_in_full_precision(half):
    def inner():
        return layers.BatchNormalization(), layers.Dropout(0.1)

    full = build("float32", *inner()).fit(X, Y, epochs=8, verbose=0).history
    model = build(half, *inner())
    found = model.fit(X, Y, epochs=8, verbose=0, validation_data=(X, Y)).history
    np.testing.assert_allclose(found["loss"], full["loss"], rtol=0.03 if half == "bfloat16" else 0.005)
    assert found["loss"][-1] < 0.7 * found["loss"][0]
    assert {w.dtype for w in model.get_weights()} == {np.dtype("float32")}
    assert model.predict(X).dtype == np.float32
    np.testing.assert_allclose(model.evaluate(X, Y, verbose=0)[0], found["val_loss"][-1], rtol=1e-5)


def test_layers_compute_in_half_precision_forwards_and_backwards(half):
    SEEN.clear()
    model = build(half, Watched())
    model.train_on_batch(X, Y)
    assert set(SEEN) == {half}
    SEEN.clear()
    model.predict(X)
    model.evaluate(X, Y, verbose=0)
    assert set(SEEN) == {half}


def test_the_output_is_that_of_rounded_weights_and_inputs(half, any_backend):
    model = build(half)
    model.build((8,))
    twin = build("float32")
    twin.build((8,))
    rounded = [np.asarray(any_backend.to_numpy(any_backend.xp.astype(
        any_backend.xp.astype(any_backend.asarray(w), getattr(any_backend.xp, half)), any_backend.xp.float32
    ))) for w in model.get_weights()]  # fmt: skip
    assert not np.array_equal(rounded[0], model.get_weights()[0])
    twin.set_weights(rounded)
    limit = 2.0 ** (-7 if half == "bfloat16" else -10)
    np.testing.assert_allclose(model.predict(X), twin.predict(X), atol=4 * limit)


class Small(layers.Layer):
    """Makes gradients too small for float16."""

    def forward(self, ctx, params, x):
        return x, lambda dy: (dy * 2.0**-14, {})


def test_small_gradients_are_not_lost(half):
    model = build(half, Small())
    model.compile(nnx.optimizers.SGD(2.0**14), "sparse_categorical_crossentropy")
    model.build((8,))
    before = model.get_weights()[0]
    model.train_on_batch(X, Y)
    twin = build("float32", Small())
    twin.compile(nnx.optimizers.SGD(2.0**14), "sparse_categorical_crossentropy")
    twin.train_on_batch(X, Y)
    mine, expected = (m.get_weights()[0] - before for m in (model, twin))
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(mine, expected, atol=0.03 * np.abs(expected).max())


class Exploding(layers.Layer):
    """Makes a gradient that overflows as long as the loss is scaled by more than `most`."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, ctx, params, x):
        return x, lambda dy: (dy * (2.0**16 / self.most), {})


def test_steps_that_overflow_are_left_out_and_the_scale_halved(any_backend):
    if "float16" not in any_backend.dtypes:
        pytest.skip(f"{any_backend.name} has no float16")
    model = build("float16", layers.BatchNormalization(), Exploding(2.0**3))
    model.build((8,))
    before, scale = model.get_weights(), mixed_precision.FIRST_SCALE
    skipped = 0
    while skipped < 40:
        model.train_on_batch(X, Y)
        found = float(any_backend.to_numpy(model.loss_scale["factor"]))
        if found == scale:
            break
        assert found == scale / 2
        for a, b in zip(model.get_weights(), before, strict=True):  # moving averages too
            np.testing.assert_array_equal(a, b)
        assert not any(np.any(slot) for slot in map(any_backend.to_numpy, nnx.tree.leaves(model.slots)))
        scale, skipped = found, skipped + 1
    assert 3 < skipped < 40
    assert not np.array_equal(model.get_weights()[0], before[0])
    assert np.isfinite(model.get_weights()[0]).all()


def test_the_scale_doubles_after_many_good_steps(any_backend, monkeypatch):
    if "float16" not in any_backend.dtypes:
        pytest.skip(f"{any_backend.name} has no float16")
    monkeypatch.setattr(mixed_precision, "GROW_AFTER", 3)
    model = build("float16", layers.Dense(7))
    for steps, factor in ((2, 1), (3, 2), (5, 2), (6, 4)):
        while model.step < steps:
            model.train_on_batch(X, Y)
        assert float(any_backend.to_numpy(model.loss_scale["factor"])) == factor * mixed_precision.FIRST_SCALE


def test_batch_normalization_computes_in_full_precision(half):
    """The squares of these do not fit into a float16, and bfloat16 would lose their spread."""
    model = nnx.Sequential([layers.BatchNormalization(input_shape=(1,)), layers.Flatten()], dtype=half)
    model.compile("sgd", "mse")
    x = (1000 + RNG.standard_normal((64, 1)) * 400).astype(np.float32)
    weight = np.full(64, 0.01)  # else the first step, whose gradient overflows, is left out
    model.fit(x, np.zeros((64, 1)), sample_weight=weight, epochs=1, batch_size=64, verbose=0)
    np.testing.assert_allclose(model.get_weights()[3], 0.99 + 0.01 * x.var(), rtol=0.02)


def test_penalties_and_clipping_see_gradients_without_the_scale(half):
    def weights(dtype):
        model = nnx.Sequential([layers.Dense(3, "softmax", kernel_regularizer="l2")], seed=0, dtype=dtype)
        model.compile(nnx.optimizers.SGD(0.5, global_clipnorm=0.1), "sparse_categorical_crossentropy")
        model.fit(X, Y, epochs=2, verbose=0)
        return model.get_weights()[0]

    np.testing.assert_allclose(weights(half), weights("float32"), atol=0.003)


def test_a_model_is_kept_with_its_scale(any_backend, tmp_path):
    if "float16" not in any_backend.dtypes:
        pytest.skip(f"{any_backend.name} has no float16")
    model = build("float16", Exploding(2.0**10))
    model.fit(X, Y, epochs=3, verbose=0)
    scale = {name: float(any_backend.to_numpy(a)) for name, a in model.loss_scale.items()}
    assert scale["factor"] < mixed_precision.FIRST_SCALE
    plain = build("float16")
    plain.loss_scale = model.loss_scale
    plain.build((8,))
    plain.compile("sgd", "sparse_categorical_crossentropy")
    plain.train_on_batch(X, Y)
    plain.save(tmp_path / "half.nnx")
    for kept in (nnx.load(tmp_path / "half.nnx"), pickle.loads(pickle.dumps(plain)), plain.to("numpy")):
        assert kept.dtype == "float16"
        assert float(kept.loss_scale["factor"]) == float(plain.loss_scale["factor"])
        kept.train_on_batch(X, Y)
