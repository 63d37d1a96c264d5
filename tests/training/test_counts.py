"""What can be counted instead of timed: compilations, host reads, optimizer passes, dispatches."""

import gc
import weakref

import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.training.runner import StepRunner

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


def build_small():
    """Return a model of JAX that is compiled in little time."""
    model = nnx.Sequential([layers.Dense(3, "softmax")], seed=0, backend="jax")
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.build((6,))
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


def test_jax_compiles_few_programs_for_many_numbers_of_samples(compilations):
    model = build_small()
    settings = {"batch_size": 32, "verbose": 0}
    model.fit(X[:128], Y[:128], **settings)
    compilations.clear()
    model.fit(X[:96], Y[:96], **settings)  # three steps of 96 rows
    assert len(compilations) == 1
    compilations.clear()
    for n in range(100, 121, 2):
        model.fit(X[:n], Y[:n], **settings)
    # Three steps of 112 and of 128 rows; of the last batch one program for each of its 11 lengths.
    assert len(compilations) == 2 + 11


def test_jax_compiles_few_programs_for_many_numbers_of_rows_to_predict(compilations):
    model = build_small()
    compilations.clear()
    for n in range(1, 51):
        assert len(model.predict(X[:n])) == n
    # 1 to 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56
    assert len(compilations) == 19
    for rows in (model.predict(X[:n], batch_size=40) for n in (9, 43, 50)):
        np.testing.assert_allclose(rows, model.predict(X)[: len(rows)], rtol=1e-5, atol=1e-6)
    compilations.clear()
    list(map(model.predict, (X[:49], X[:50], X[:53], X[:56])))
    assert compilations == []


def live_programs():
    import jax

    model = build_small()
    model.predict(X[:1])  # what was dropped is freed at the next call
    gc.collect()
    return len(jax.devices()[0].client.live_executables())


def test_jax_keeps_few_programs_of_all_that_it_compiled():
    model = build_small()
    model.fit(X[:60], Y[:60], verbose=0)
    model.predict(X[:1])
    before = live_programs()
    for n in range(1, 13):
        model.predict(X[:100], batch_size=n)
        model.train_on_batch(X[:n], Y[:n])
    assert live_programs() - before <= 8  # four of each function


class Own(layers.Layer):
    """A layer of one's own, so that its model shares no steps."""

    def forward(self, ctx, params, x):
        return x * 2.0, lambda dy: (dy * 2.0, {})


def test_jax_forgets_the_programs_of_models_that_are_gone():
    before = live_programs()
    gone = []
    for units in range(2, 6):
        model = nnx.Sequential([Own(), layers.Dense(units, "softmax")], seed=0, backend="jax")
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.fit(X[:20], Y[:20] % 2, verbose=0)
        model.predict(X[:5])
        gone += [weakref.ref(model), weakref.ref(StepRunner(model).steps)]
    del model
    gc.collect()
    assert [found for ref in gone if (found := ref()) is not None] == []
    assert live_programs() <= before


def test_programs_that_are_asked_for_again_are_kept_after_all(compilations):
    model = build_small()
    sizes = range(1, 7)  # more than are kept at first
    for _ in range(3):
        compilations.clear()
        for n in sizes:
            model.train_on_batch(X[:n], Y[:n])
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
    original = any_backend.put_samples

    def counted(samples, rows):
        placed.extend(array.shape for array in nnx.tree.leaves(samples))
        return original(samples, rows)

    model = build(any_backend)
    model.build((6,))
    monkeypatch.setattr(any_backend, "put_samples", counted)
    model.fit(X, Y, epochs=4, verbose=0)
    assert sorted(placed) == [(200,), (200,), (200, 6)]  # labels, weights, features


def test_jax_runs_many_steps_in_one_dispatch(monkeypatch):
    model = build("jax")
    model.fit(X, Y, batch_size=10, epochs=3, verbose=0)
    runs = []
    train = StepRunner(model).steps.train
    monkeypatch.setattr(StepRunner(model).steps, "train", lambda *a: (runs.append(a[5] - a[4]), train(*a))[1])
    model._compiled_steps.steps_a_run = 1000
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
