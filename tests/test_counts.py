"""What can be counted instead of timed: compilations, host reads, optimizer passes, dispatches."""

import numpy as np
import pytest

import nnx
from nnx import layers

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 200)


def build(backend, learning_rate=0.01):
    model = nnx.Sequential(
        [
            layers.Dense(16, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(3, "softmax"),
        ],
        seed=0,
        backend=backend,
    )
    model.compile(nnx.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture
def compilations():
    """Return a list that grows by one at each compilation by XLA."""
    import jax

    seen = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_jax_compiles_nothing_twice(compilations):
    model = build("jax")
    settings = {"batch_size": 32, "verbose": 0, "validation_split": 0.2}
    model.fit(X, Y, epochs=1, **settings)
    assert compilations
    model.predict(X)
    model.evaluate(X, Y, batch_size=32, verbose=0)
    compilations.clear()
    model.fit(X, Y, epochs=3, **settings)
    assert compilations == []  # another epoch, another fit, other numbers of steps in a run
    model.predict(X)
    model.evaluate(X, Y, batch_size=32, verbose=0)
    model.optimizer.learning_rate = 0.5
    model.fit(X, Y, epochs=1, **settings)
    assert compilations == []


def test_jax_compiles_once_for_models_that_differ_in_learning_rate_only(compilations):
    build("jax", 0.011).fit(X, Y, verbose=0)
    compilations.clear()
    for rate in (0.1, 0.2, nnx.schedules.ExponentialDecay(0.1, 10, 0.5)):
        build("jax", rate).fit(X, Y, verbose=0)
    assert compilations == []


def test_one_host_read_an_epoch(any_backend, monkeypatch):
    reads = []
    for name in ("read", "to_numpy"):
        original = getattr(any_backend, name)
        monkeypatch.setattr(any_backend, name, lambda v, f=original, n=name: (reads.append(n), f(v))[1])
    model = build(any_backend)
    model.fit(X, Y, batch_size=16, epochs=3, verbose=0)
    assert reads.count("read") == 3
    reads.clear()
    model.fit(X, Y, batch_size=16, epochs=3, verbose=0, validation_data=(X, Y))
    assert reads.count("read") == 6  # one more for the validation
    reads.clear()
    model.predict(X, batch_size=50)
    assert reads.count("read") == 1


def test_numpy_updates_all_weights_in_one_pass(monkeypatch):
    backend = type(nnx.as_backend("numpy"))()
    backend.replays = False  # what compiled steps do is seen in test_replay
    model = build(backend)
    passes = []
    update = type(model.backend).update_in_place
    monkeypatch.setattr(
        type(model.backend), "update_in_place", lambda *a: (passes.append(a[2][0].size), update(*a))[1]
    )
    model.fit(X, Y, batch_size=20, epochs=2, verbose=0)
    assert passes == [sum(leaf.size for leaf in nnx.tree.leaves(model.params))] * 20


def test_weights_stay_in_one_buffer_on_numpy():
    model = build("numpy")
    model.build((6,))
    model.fit(X, Y, verbose=0)
    model.set_weights(model.get_weights())
    buffer = model.params.buffer
    model.fit(X, Y, verbose=0)
    assert model.params.buffer is buffer
    assert all(np.shares_memory(leaf, buffer) for leaf in nnx.tree.leaves(model.params))


def test_data_is_placed_once_for_all_epochs(any_backend, monkeypatch):
    placed = []
    original = any_backend.asarray

    def counted(value, dtype=None):
        if np.shape(value)[:1] == (200,):
            placed.append(np.shape(value))
        return original(value, dtype)

    model = build(any_backend)
    model.build((6,))
    monkeypatch.setattr(any_backend, "asarray", counted)
    model.fit(X, Y, epochs=4, verbose=0)
    assert sorted(placed) == [(200,), (200,), (200, 6)]  # labels, weights, features


def test_jax_runs_many_steps_in_one_dispatch(monkeypatch):
    model = build("jax")
    model.fit(X, Y, batch_size=10, epochs=3, verbose=0)
    runs = []
    train = model.engine.steps.train
    monkeypatch.setattr(model.engine.steps, "train", lambda *a: (runs.append(a[5] - a[4]), train(*a))[1])
    model.engine.steps_a_run = 1000
    model.fit(X, Y, batch_size=10, epochs=1, verbose=0)
    assert runs == [20]


def test_a_step_makes_no_gradient_for_the_data(monkeypatch):
    """Three products a layer, less the one for the input of the first."""
    model = build("numpy")
    model.build((6,))
    products = []
    matmul = model.backend.xp.matmul
    monkeypatch.setattr(model.backend.xp, "matmul", lambda *a: (products.append(a[0].shape), matmul(*a))[1])
    model.train_on_batch(X, Y)
    assert len(products) == 3 * 2 - 1
