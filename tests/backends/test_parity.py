"""The same seed gives the same weights, batches and masks on every backend, and the same curve."""

import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.training.runner import StepRunner

pytestmark = pytest.mark.optimized

RNG = np.random.default_rng(0)
X = RNG.standard_normal((203, 6)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] ** 2 > 0.5).astype(int) + (X[:, 2] > 1)


def build(backend, dtype="float32", seed=7):
    model = nnx.Sequential(
        [
            layers.Dense(16, activation="relu", kernel_regularizer="l2"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Residual([layers.Dense(16, activation="gelu"), layers.Dropout(0.1)]),
            layers.Dense(3, activation="softmax"),
        ],
        seed=seed,
        dtype=dtype,
        backend=backend,
    )
    model.compile(nnx.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def fit(model, epochs=5, **settings):
    return model.fit(X, Y, epochs=epochs, batch_size=32, verbose=0, validation_split=0.2, **settings)


def test_starting_weights_are_the_same_bits(any_backend):
    mine, reference = build(any_backend), build("numpy")
    for model in (mine, reference):
        model.build((6,))
    for a, b in zip(mine.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_masks_are_the_same_bits(any_backend):
    def bits(backend):
        ctx = nnx.Context(backend, training=True, key=tuple(nnx.random.step_keys(3, 5, 6)[0].tolist()))
        return backend.to_numpy(ctx.at("dropout").random_bits((7, 33)))

    np.testing.assert_array_equal(bits(any_backend), bits(nnx.as_backend("numpy")))


class RecordsOrder(layers.Layer):
    """Keeps the last value of the first feature that each step saw, to tell in which order they came."""

    def init_state(self, in_shape):
        return {"seen": np.zeros(1), "mixed": np.zeros(1)}

    def forward(self, ctx, params, x):
        if ctx.training:
            ctx.state["seen"] = x[:1, 0]
            ctx.state["mixed"] = ctx.state["mixed"] * 0.5 + x[:1, 0]
        return x, lambda dy: (dy, {})


def last_seen(backend):
    model = nnx.Sequential([RecordsOrder(), layers.Dense(1)], seed=3, backend=backend)
    model.compile("sgd", "mse")
    ids = np.arange(53, dtype=np.float32)[:, None] / 64
    model.fit(ids, ids, epochs=2, batch_size=8, verbose=0)
    return model.get_weights()[:2]


def test_batches_come_in_the_same_order(any_backend):
    for a, b in zip(last_seen(any_backend), last_seen("numpy"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seconds_a_run", [0.0, 0.5])
@pytest.mark.parametrize("batches", [0, 1, 2, 4, 5, 6, 100])
def test_jax_gathers_any_number_of_batches_at_a_time(batches, seconds_a_run, monkeypatch):
    jax_backend = pytest.importorskip("nnx.backends.jax.backend")
    monkeypatch.setattr(jax_backend, "GATHERED", batches * 8 * 3 * 4)  # x, y and weight of 8 samples
    monkeypatch.setattr(nnx.as_backend("jax"), "seconds_a_run", seconds_a_run)
    for a, b in zip(last_seen("jax"), last_seen("numpy"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_loss_curves_agree(any_backend):
    mine, reference = fit(build(any_backend)).history, fit(build("numpy")).history
    assert mine.keys() == reference.keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(mine[name], reference[name], atol=1e-4)
    assert reference["loss"][-1] < 0.8 * reference["loss"][0]


def test_loss_curves_agree_closely_in_float64(any_backend):
    mine, reference = (fit(build(b, "float64")).history["loss"] for b in (any_backend, "numpy"))
    np.testing.assert_allclose(mine, reference, rtol=1e-10)


def test_a_second_run_is_the_same_bits(any_backend, monkeypatch):
    """However the machine's speed cuts the epochs into runs of steps."""
    first, second = build(any_backend), build(any_backend)
    lengths = iter([1, 2, 3, 1, 4, 2, 5, 1, 3] * 10)
    runs = StepRunner.runs

    def cut_otherwise(runner, steps):
        if runner.model is not second:
            yield from runs(runner, steps)
            return
        start = 0
        while start < steps:
            stop = min(steps, start + next(lengths))
            yield start, stop
            start = stop

    monkeypatch.setattr(StepRunner, "runs", cut_otherwise)
    assert fit(first, 2).history == fit(second, 2).history
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_seed_gives_another_run():
    assert fit(build("numpy", seed=1), 1).history != fit(build("numpy", seed=2), 1).history


@pytest.mark.parametrize("target", ["numpy", "jax", "array_api_strict"])
def test_a_half_trained_model_moves_with_its_optimizer(any_backend, target):
    whole = build("numpy", "float64")
    curve = fit(whole, 4).history["loss"]
    model = build(any_backend, "float64")
    first = fit(model, 2).history["loss"]
    model.to(target)
    assert model.backend.name == target
    second = fit(model, 4, initial_epoch=2).history["loss"]
    np.testing.assert_allclose(first + second, curve, rtol=1e-9)
    for a, b in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_set_random_seed_decides_about_models_without_seed():
    def weights():
        model = nnx.Sequential([layers.Dense(3, input_shape=(2,))])
        return model.get_weights()[0]

    nnx.utils.set_random_seed(5)
    first, second = weights(), weights()
    nnx.utils.set_random_seed(5)
    np.testing.assert_array_equal(weights(), first)
    np.testing.assert_array_equal(weights(), second)
    assert not np.array_equal(first, second)


def test_hash_is_fair():
    """Every bit is set half of the time, and no two bits, counters or keys go together."""
    counter = np.arange(1 << 16, dtype=np.uint32)
    rows = []
    for key in nnx.random.step_keys(0, 0, 3).tolist():
        words = nnx.random.hash_bits(np, counter, *key)
        rows.append((words[:, None] >> np.arange(32, dtype=np.uint32)) & 1)
    bits = np.concatenate(rows, axis=1).astype(float) - 0.5  # (counters, 3 keys x 32 bits)
    limit = 5 * 0.5 / np.sqrt(len(counter))  # five standard deviations
    assert np.abs(bits.mean(axis=0)).max() < limit
    together = np.abs(bits.T @ bits / len(counter) * 2 - np.eye(96) / 2)
    assert together.max() < limit
    lagged = np.abs(bits[1:].T @ bits[:-1] / len(counter) * 2)
    assert lagged.max() < limit
