"""Models in several threads come out as one after the other, bit for bit; one model is trained in one at a time."""

import importlib
import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import interrupted
import numpy as np
import pytest
from conftest import usable_or_skip

import nnx
from nnx import callbacks, layers, sharing

X, Y = interrupted.make_data()


@pytest.fixture(autouse=True)
def _switch_often():
    """Let Python change threads after ten microseconds, not after five milliseconds."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def train(backend, dtype="float32", seed=5, units=24, rate=0.02, epochs=3) -> list[bytes]:
    """Build a model, train it, and return the bits of its weights, predictions and losses."""
    model = nnx.Sequential(
        [
            layers.Dense(units, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(units, "tanh"),
            layers.Dense(3, "softmax"),
        ],
        seed=seed,
        dtype=dtype,
        backend=backend,
    )
    model.compile(nnx.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(X, Y, batch_size=16, epochs=epochs, validation_split=0.3, verbose=0)
    numbers = np.array([*history.history.values()])
    return [array.tobytes() for array in (*model.get_weights(), model.predict(X), numbers)]


def together(calls: list) -> list:
    """Return what functions give, each called in a thread of its own, all at once."""
    barrier = threading.Barrier(len(calls))

    def call(function):
        barrier.wait()
        return function()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


TRAININGS = {
    "equal settings": [{"seed": seed, "rate": 0.01 * seed} for seed in range(4)],
    "other settings": [{"units": 16}, {"units": 24}],
    "other precisions": [{"dtype": dtype} for dtype in ("float32", "float64") * 2],
}


@pytest.mark.parametrize("backend", ["numpy", "jax"])
@pytest.mark.parametrize("name", TRAININGS)
def test_as_one_after_the_other(backend, name):
    found = usable_or_skip(backend)
    calls = [lambda settings=settings: train(found, **settings) for settings in TRAININGS[name]]
    if backend == "jax":  # which takes seconds to compile each
        calls = calls[:2]
    expected = [call() for call in calls]
    for _ in range(8 if backend == "numpy" else 1):
        sharing._remembered.clear()  # all of them compile, and the first that has is used by all
        assert together(calls) == expected


def test_on_different_backends():
    names = [name for name in ("numpy", "jax", "array_api_strict") if nnx.available_backends()[name].usable]
    calls = [lambda name=name: train(name) for name in names]
    expected = [call() for call in calls]
    assert together(calls) == expected


def test_one_chooses_a_backend_for_itself():
    names = ["numpy", "array_api_strict"] * 2

    def choose(name):
        with nnx.use_backend(name):
            return [nnx.Sequential([layers.Dense(2)]).backend.name for _ in range(100)]

    assert together([lambda name=name: choose(name) for name in names]) == [[name] * 100 for name in names]


def test_each_model_gets_a_seed_of_its_own():
    nnx.utils.set_random_seed(3)
    seeds = together([lambda: [nnx.Sequential([]).seed for _ in range(200)] for _ in range(4)])
    nnx.utils.set_random_seed(3)
    assert sorted(itertools.chain(*seeds)) == sorted(nnx.Sequential([]).seed for _ in range(800))


def test_a_backend_is_made_once(monkeypatch):
    made = []

    class Slow(nnx.Backend):
        name = "slow"

        def __init__(self):
            threading.Event().wait(0.05)
            made.append(self)

    class Point:
        def load(self):
            return Slow

    monkeypatch.setattr("nnx.backend._entry_points", lambda: {"slow": Point()})
    assert set(together([lambda: nnx.as_backend("slow")] * 4)) == {*made}
    assert len(made) == 1


def test_what_is_remembered_may_be_forgotten_by_another_thread():
    made = {}
    remember = importlib.import_module("nnx.backends.remembered").remember
    together([lambda: [remember(made, i, i, most=3) for i in range(2000)] for _ in range(4)])
    assert len(made) == 3


def test_kernels_are_recorded_in_all_threads_at_once(monkeypatch):
    """More than are remembered, so that what one thread has just recorded is forgotten by another."""
    fusion_module = importlib.import_module("nnx.backends.numpy_fusion")
    monkeypatch.setattr(fusion_module, "MOST_PLANS", 3)
    fusion, array = fusion_module.Fusion(use_numba=False), np.arange(8, dtype=np.float32)
    kernels = [lambda xp, x, i=i: x * float(i) for i in range(9)]

    def run():
        return [fusion.run(kernel, (array,), (None,))[0][-1] for kernel in kernels * 500]

    assert together([run] * 4) == [[np.float32(7) * i for i in range(9)] * 500] * 4


class Waits(callbacks.Callback):
    """Lets another thread go on in the middle of a training, and waits for it."""

    def __init__(self):
        super().__init__()
        self.begun, self.over = threading.Event(), threading.Event()

    def on_progress(self, done, total):
        self.begun.set()
        assert self.over.wait(60)


def test_one_model_in_two_threads_is_an_error(any_backend):
    model, waits = interrupted.make_model(any_backend), Waits()
    thread = threading.Thread(target=model.fit, args=(X, Y), kwargs={"verbose": 0, "callbacks": [waits]})
    thread.start()
    assert waits.begun.wait(60)
    calls = {
        "fit": lambda: model.fit(X, Y),
        "train_on_batch": lambda: model.train_on_batch(X, Y),
        "evaluate": lambda: model.evaluate(X, Y),
        "predict": lambda: model.predict(X),
        "__call__": lambda: model(X),
        "to": lambda: model.to("numpy"),
    }
    for call in calls.values():
        with pytest.raises(
            RuntimeError, match=r"^this model is being trained in another thread: wait for that"
        ):
            call()
    waits.over.set()
    thread.join()
    assert model.step == 5
    model.fit(X, Y, verbose=0)


def test_a_training_inside_a_training_of_the_same_thread():
    model = interrupted.make_model("numpy")
    inner = callbacks.LambdaCallback(on_epoch_end=lambda *_: model.train_on_batch(X, Y))
    model.fit(X, Y, verbose=0, callbacks=[inner])
    assert model.step == 6
    assert model.trained_in is None


def test_many_threads_predict_with_one_model(any_backend):
    model = interrupted.make_model(any_backend)
    model.build(X.shape[1:])
    expected = model.predict(X).tobytes()
    assert together([lambda: model.predict(X).tobytes()] * 4) == [expected] * 4
