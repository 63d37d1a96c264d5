"""Models in several threads come out as one after the other, bit for bit; one model is trained in one at a time."""

import copy
import importlib
import itertools
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import interrupted
import numpy as np
import pytest
from every_backend import usable_or_skip

import nnx
from nnx import callbacks, layers, threads
from nnx.lru_cache import Recent
from nnx.training import step_cache

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


@pytest.mark.optimized
@pytest.mark.parametrize("backend", ["numpy", "jax"])
@pytest.mark.parametrize("name", TRAININGS)
def test_as_one_after_the_other(backend, name):
    found = usable_or_skip(backend)
    calls = [lambda settings=settings: train(found, **settings) for settings in TRAININGS[name]]
    if backend == "jax":  # which takes seconds to compile each
        calls = calls[:2]
    expected = [call() for call in calls]
    for _ in range(8 if backend == "numpy" else 1):
        step_cache._remembered.clear()  # all of them compile, and the first that has is used by all
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

    monkeypatch.setattr("nnx.backend_loading.entry_points", lambda: {"slow": Point()})
    assert set(together([lambda: nnx.as_backend("slow")] * 4)) == {*made}
    assert len(made) == 1


def test_a_cache_stays_bounded_in_all_threads():
    cache = Recent(3)
    together([lambda: [cache.get(i, object) for i in range(2000)] for _ in range(4)])
    assert len(cache.values) == 3


def test_kernels_are_recorded_in_all_threads_at_once(monkeypatch):
    """More than are remembered, so that what one thread has just recorded is forgotten by another."""
    fusion_module = importlib.import_module("nnx.backends.numpy.fusion")
    monkeypatch.setattr(fusion_module, "MOST_PLANS", 3)
    fusion, array = fusion_module.Fusion(use_numba=False), np.arange(8, dtype=np.float32)
    kernels = [lambda xp, x, i=i: x * float(i) for i in range(9)]

    def run():
        return [fusion.run(kernel, (array,), (None,))[0][-1] for kernel in kernels * 100]

    assert together([run] * 4) == [[np.float32(7) * i for i in range(9)] * 100] * 4


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


def test_a_model_is_neither_read_nor_changed_beside_its_training(any_backend, tmp_path):
    model, waits = interrupted.make_model(any_backend), Waits()
    model.build(X.shape[1:])
    model.save_weights(tmp_path / "weights.nnx")
    weights, kept, slots = model.get_weights(), model.snapshot(), list(model.slots.values())
    params, state = model.params, model.state
    thread = threading.Thread(target=model.fit, args=(X, Y), kwargs={"verbose": 0, "callbacks": [waits]})
    thread.start()
    assert waits.begun.wait(60)
    calls = [
        model.get_weights, model.snapshot, lambda: model.params, lambda: model.state, lambda: model.slots,
        lambda: copy.deepcopy(model), lambda: copy.copy(model), lambda: pickle.dumps(model),
        lambda: model.save(tmp_path / "net.nnx"), lambda: model.save_weights(tmp_path / "net.nnx"),
        model.to_numpy_function, lambda: model.set_weights(weights), lambda: model.restore(kept),
        lambda: model.load_weights(tmp_path / "weights.nnx"), lambda: model.compile("sgd", "mse"),
        lambda: model.build(X.shape[1:]), lambda: model.add(layers.Dense(2)), model.pop,
        lambda: model.set_slots(slots), lambda: setattr(model, "params", params),
        lambda: setattr(model, "state", state),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(
            RuntimeError, match=r"^this model is being trained in another thread: wait for that"
        ):
            call()
    assert model.count_params() > 0  # what no step changes is told
    model.summary(print_fn=lambda text: None)
    waits.over.set()
    thread.join()
    assert model.step == 5
    assert [path.name for path in tmp_path.iterdir()] == ["weights.nnx"]
    model.set_weights(weights)


def test_callbacks_read_and_change_the_model_that_they_are_called_for(tmp_path):
    model = interrupted.make_model("numpy")

    def use(*_):
        model.save(tmp_path / "net.nnx")
        kept = copy.deepcopy(model).snapshot()
        model.set_weights(pickle.loads(pickle.dumps(model)).get_weights())
        model.restore(kept)

    model.fit(X, Y, verbose=0, callbacks=[callbacks.LambdaCallback(on_epoch_end=use)])
    assert model.trained_in is None
    assert nnx.load(tmp_path / "net.nnx").step == 5


def test_a_training_begins_when_others_have_read():
    """What a thread is reading stays as it is until it has read it."""
    model = interrupted.make_model("numpy")
    model.build(X.shape[1:])
    before, in_between = model.get_weights(), []
    thread = threading.Thread(target=model.fit, args=(X, Y), kwargs={"verbose": 0})
    with threads.reading(model):
        thread.start()
        while model.trained_in is None:
            threading.Event().wait(0.001)
        in_between.append(model.get_weights())
        in_between.append([model.step])
    thread.join()
    for mine, other in zip(in_between[0], before, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert in_between[1] == [0]
    assert model.step == 5
