"""Data that does not fit on the device is streamed: the same numbers, and nothing left behind."""

import signal

import numpy as np
import pytest

import nnx
from nnx import callbacks, layers, tree

RNG = np.random.default_rng(0)
X = RNG.standard_normal((110, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 110)
BATCHES = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 110, 20)]


def build(backend, dtype="float32"):
    model = nnx.Sequential(
        [
            layers.Dense(16, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(3, "softmax"),
        ],
        seed=1,
        dtype=dtype,
        backend=backend,
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.build((6,))
    return model


def fit(model, *data, epochs=3, **settings):
    return model.fit(*(data or (X, Y)), batch_size=20, epochs=epochs, verbose=0, **settings).history


def same(backend, found, expected):
    """Assert that two runs gave the same bits; on JAX, where XLA compiles another program, nearly so."""
    if backend.name == "jax":
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    else:
        np.testing.assert_array_equal(found, expected)


def same_histories(backend, found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        same(backend, found[name], values)


def same_weights(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        same(model.backend, one, two)


@pytest.fixture
def transferred(any_backend, monkeypatch):
    """Let no data fit; return a list of the numbers of samples of the batches that are streamed."""
    seen, transfer = [], any_backend.transfer

    def noted(batches):
        for batch in transfer(batches):
            seen.append(batch["x"].shape[0])
            yield batch

    monkeypatch.setattr(any_backend, "free_memory", lambda: 1)
    monkeypatch.setattr(any_backend, "transfer", noted)
    return seen


@pytest.mark.parametrize("shuffle", [True, False])
def test_streamed_training_is_that_on_resident_data_bit_for_bit(
    any_backend, transferred, shuffle, monkeypatch
):
    settings = {"shuffle": shuffle, "validation_data": (X[:50], Y[:50]), "validation_batch_size": 20}
    streamed, resident = build(any_backend), build(any_backend)
    found = fit(streamed, **settings)
    epoch = [20, 20, 20, 20, 20, 10, 20, 20, 10]
    assert transferred == 3 * epoch
    evaluated = streamed.evaluate(X, Y, batch_size=20, verbose=0)
    assert transferred == 3 * epoch + epoch[:6]
    monkeypatch.setattr(any_backend, "free_memory", lambda: 10**9)
    same_histories(any_backend, found, fit(resident, **settings))
    same(any_backend, evaluated, resident.evaluate(X, Y, batch_size=20, verbose=0))
    assert len(transferred) == 3 * 9 + 6
    same_weights(streamed, resident)


def test_data_is_streamed_if_it_takes_more_than_half_of_the_free_memory(
    any_backend, transferred, monkeypatch
):
    nbytes = len(X) * (6 * 4 + 4 + 4)  # features, labels, weights
    for free, streams in ((2 * nbytes, False), (2 * nbytes - 1, True)):
        transferred.clear()
        monkeypatch.setattr(any_backend, "free_memory", lambda free=free: free)
        fit(build(any_backend), epochs=1)
        assert bool(transferred) == streams


def test_callbacks_at_each_batch_see_the_same_of_streamed_data(any_backend, transferred, monkeypatch):
    def losses():
        seen = []
        hook = callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: seen.append((batch, logs["loss"]))
        )
        fit(build(any_backend), epochs=2, callbacks=[hook])
        return seen

    found = losses()
    assert [batch for batch, _ in found] == 2 * [*range(6)]
    monkeypatch.setattr(any_backend, "free_memory", lambda: None)
    same(any_backend, losses(), found)


def test_an_exception_of_a_generator_comes_in_its_turn(any_backend):
    """After the batches before it, on every backend, and as it is."""

    class BrokenFile(Exception):
        pass

    error = BrokenFile("page 3")

    def broken():
        yield from BATCHES[:3]
        raise error

    model, expected = build(any_backend), build(any_backend)
    with pytest.raises(BrokenFile) as caught:
        fit(model, broken())
    assert caught.value is error
    assert model.step == 3
    fit(expected, BATCHES[:3], epochs=1)
    same_weights(model, expected)
    with pytest.raises(ValueError, match="it was built for 6 features"):
        fit(model, [*BATCHES[:2], (X[:, :3], Y)])
    assert model.step == 5
    assert np.isfinite(fit(model, BATCHES)["loss"]).all()


def test_a_generator_may_reuse_its_buffer(any_backend):
    x = np.empty((32, 6), np.float32)
    start = (
        -x.ctypes.data % 64 // 4
    )  # JAX uses memory of the host, if it begins at a multiple of 64, as it is
    x = x.reshape(-1)[start : start + 120].reshape(20, 6)
    y = np.empty(20, np.int64)

    def reusing():
        for batch in BATCHES[:-1] * 3:
            x[:], y[:] = batch
            yield x, y
        x[:] = 1e6

    found = fit(build(any_backend), reusing(), steps_per_epoch=5)
    assert found == fit(build(any_backend), BATCHES[:-1])  # also on JAX: the same program


def test_jax_puts_batches_on_an_accelerator_two_ahead(monkeypatch):
    backend, begun = nnx.as_backend("jax"), []
    expected = fit(build(backend), BATCHES)
    put = backend.jax.device_put
    monkeypatch.setattr(backend, "is_accelerated", True)
    monkeypatch.setattr(
        backend.jax,
        "device_put",
        lambda given: (begun.append(given) if "x" in given else None, put(given))[1],
    )
    arrays = [{"x": x, "y": y} for x, y in BATCHES]
    assert [len(begun) for _ in backend.transfer(arrays)] == [3, 4, 5, 6, 6, 6]
    assert fit(build(backend), BATCHES) == expected


def test_jax_batches_are_copies():
    """JAX reads the memory it is given when it comes to it: what a generator writes later must not show."""
    [batch] = nnx.as_backend("jax").transfer([{"x": X}])
    assert not np.shares_memory(np.asarray(batch["x"]), X)


def test_no_batch_of_an_endless_generator_is_skipped_between_epochs(any_backend):
    def endless():
        while True:
            yield from BATCHES

    found = fit(build(any_backend), endless(), steps_per_epoch=6)
    assert found == fit(build(any_backend), BATCHES)


@pytest.mark.parametrize("streams", [True, False])
def test_training_that_stops_early_leaves_the_model_usable(any_backend, streams, monkeypatch):
    data = (BATCHES,) if streams else (X, Y)
    monkeypatch.setattr(any_backend, "free_memory", lambda: 1)

    def at_second_batch(action):
        def act(batch, logs):
            if batch == 1:
                action(model)

        return callbacks.LambdaCallback(on_train_batch_end=act)

    def interrupt(model):
        signal.raise_signal(signal.SIGINT)

    model = build(any_backend)
    with pytest.raises(KeyboardInterrupt):
        fit(model, *data, callbacks=[at_second_batch(interrupt)])
    assert model.step == 2
    fit(model, *data, callbacks=[at_second_batch(lambda model: setattr(model, "stop_training", True))])
    assert model.step == 4
    assert np.isfinite(fit(model, *data)["loss"]).all()
    assert all(np.isfinite(any_backend.to_numpy(leaf)).all() for leaf in tree.leaves(model.params))
