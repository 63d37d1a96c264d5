"""Batches made ahead by a thread: nothing lost, nothing swallowed, no thread left, no waiting for ever."""

import contextvars
import faulthandler
import gc
import signal
import threading
import time

import numpy as np
import pytest

import nnx
from nnx import callbacks, layers
from nnx.data import lazy_arrays, out_of_core
from nnx.data.prefetch import NAME, ahead
from nnx.utils import Prefetch

RNG = np.random.default_rng(0)
X = RNG.standard_normal((110, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 110)
BATCHES = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 110, 20)]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Fail if a thread outlives the test, or if the test takes so long that something must wait for ever."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    assert left() == []


def each(function, items):
    for item in items:
        function(item)


def left():
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def build(*more, backend=None):
    model = nnx.Sequential(
        [layers.Dense(8, "relu"), *more, layers.Dense(3, "softmax")], seed=1, backend=backend
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.build((6,))
    return model


def fit(model, *data, **settings):
    return model.fit(*data, epochs=3, batch_size=20, verbose=0, **settings).history


# The thread


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_comes_in_order_and_no_more_is_made_than_said(count):
    made = []

    def items():
        for number in range(50):
            made.append(number)
            yield number

    for number in ahead(items(), count):
        time.sleep(0.0005)
        assert number <= made[-1] <= number + count + 1
    assert made == list(range(50))


def test_one_is_made_while_another_is_used():
    begun = threading.Event()

    def items():
        yield 0
        begun.set()
        yield 1

    numbers = ahead(items())
    assert next(numbers) == 0
    assert begun.wait(60)
    assert list(numbers) == [1]


def test_an_exception_comes_after_what_was_made_before_it_with_the_frames_of_whoever_raised_it():
    class Broken(Exception):
        pass

    error = Broken("page 3")

    def of_the_user():
        raise error

    def items():
        yield from range(3)
        of_the_user()

    taken = []
    with pytest.raises(Broken) as caught:
        each(taken.append, ahead(items(), 5))
    assert taken == [0, 1, 2]
    assert caught.value is error
    assert "of_the_user" in [entry.name for entry in caught.traceback]
    assert left() == []  # although the exception, and so its frames, are still there


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError])
def test_exceptions_of_any_kind_come_through(error):
    def items():
        yield 0
        raise error

    with pytest.raises(error):
        list(ahead(items()))

    class NoIterator:
        def __iter__(self):
            raise error

    with pytest.raises(error):
        list(ahead(NoIterator()))


def test_what_is_raised_as_an_iterator_is_closed_is_told():
    class Items:
        def __iter__(self):
            try:
                yield from range(10)
            finally:
                raise OSError("cannot close")

    numbers = ahead(Items())
    next(numbers)
    numbers.close()  # there is nobody to be told, and it must not be waited for
    with pytest.raises(OSError, match="cannot close"):
        list(ahead(Items()))


def test_iterators_made_here_are_closed_in_their_thread_and_those_of_others_are_not():
    ended_in = []

    def items():
        try:
            yield from range(10)
        finally:
            ended_in.append(threading.current_thread().name)

    class Items:
        def __iter__(self):
            return items()

    numbers = ahead(Items())
    next(numbers)
    numbers.close()
    assert ended_in == [NAME]
    mine = items()
    numbers = ahead(mine)
    next(numbers)
    numbers.close()
    assert ended_in == [NAME]
    assert next(mine) > 0  # goes on


def test_it_sees_the_context_of_whoever_asked():
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)
    assert list(ahead(variable.get() for _ in range(2))) == [7, 7]


@pytest.mark.parametrize("way", ["end", "break", "raise", "close", "never begun", "garbage", "cycle"])
def test_it_ends_in_whatever_way_the_loop_does(way):
    for repeat in range(20 if way == "cycle" else 200):
        numbers = ahead(range(5), 1 + repeat % 3)
        if way == "end":
            assert list(numbers) == list(range(5))
        elif way == "break":
            for number in numbers:
                if number == repeat % 5:
                    break
            numbers.close()
        elif way == "raise":
            with pytest.raises(Broken):
                each(breaks, numbers)
            numbers.close()
        elif way == "close":
            next(numbers)
            numbers.close()
        elif way in ("garbage", "cycle"):
            next(numbers)
            if way == "cycle":
                loop = [numbers]
                loop.append(loop)
                del loop
        del numbers
        if way == "cycle":
            gc.collect()
        assert left() == []


def test_many_at_once():
    numbers = [ahead(range(20), 1 + i % 4) for i in range(50)]
    assert [sum(column) for column in zip(*numbers, strict=True)] == [50 * i for i in range(20)]


# Streams


def test_prefetched_batches_train_alike(any_backend):
    expected = fit(build(backend=any_backend), BATCHES)
    assert fit(build(backend=any_backend), Prefetch(BATCHES)) == expected
    endless = Prefetch(batch for _ in iter(int, 1) for batch in BATCHES)
    assert fit(build(backend=any_backend), endless, steps_per_epoch=6) == expected
    model = build(backend=any_backend)
    assert model.evaluate(Prefetch(BATCHES), verbose=0) == model.evaluate(BATCHES, verbose=0)
    found = fit(model, X, Y, validation_data=Prefetch(BATCHES))
    assert found == fit(build(backend=any_backend), X, Y, validation_data=BATCHES)


def test_a_prefetched_stream_goes_on_where_it_was_cut_off(tmp_path):
    def run(folder, epochs):
        model, endless = build(), Prefetch(batch for _ in iter(int, 1) for batch in BATCHES)
        saving = callbacks.ModelCheckpoint(tmp_path / folder / "best.nnx", "loss", save_state=True)
        settings = {"steps_per_epoch": 4, "verbose": 0, "callbacks": [saving], "resume": tmp_path / folder}
        return model.fit(endless, epochs=epochs, **settings).history

    expected = run("whole", 4)
    run("parts", 2)
    assert run("parts", 4) == expected


def test_a_prefetched_generator_may_reuse_its_buffer():
    x, y = np.empty((20, 6), np.float32), np.empty(20, np.int64)

    def reusing():
        for _ in range(3):
            for batch in BATCHES[:-1]:
                x[:], y[:] = batch
                yield x, y

    assert fit(build(), Prefetch(reusing()), steps_per_epoch=5) == fit(build(), BATCHES[:-1])


def test_a_stream_is_advanced_by_the_thread_that_trains_unless_asked_otherwise():
    seen = set()

    def batches():
        seen.add(threading.current_thread())
        yield from BATCHES

    class Again:
        def __iter__(self):
            return batches()

    fit(build(), Again())
    assert seen == {threading.current_thread()}
    seen.clear()
    fit(build(), Prefetch(Again()))
    assert threading.current_thread() not in seen
    assert len(seen) == 3


def test_arguments_of_prefetch_that_make_no_sense():
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"ahead must be a positive whole number, got {wrong}"):
            Prefetch(BATCHES, wrong)
    with pytest.raises(TypeError, match=r"batches must be an iterable of \(x, y\), got 3"):
        Prefetch(3)


# The ways out of fit


class Broken(Exception):
    pass


def sources():
    """Return data of each kind for which a thread works."""
    return {
        "stream": (Prefetch(BATCHES * 5),),
        "endless": (Prefetch(BATCHES[0] for _ in iter(int, 1)),),
        "file": (Slices(X), Y),
    }


class Slices:
    """An array that is read by slices, one of which may be missing."""

    def __init__(self, values, missing=None):
        self.values, self.shape, self.dtype, self.missing = values, values.shape, values.dtype, missing

    def __getitem__(self, part):
        if self.missing is not None and part.start <= self.missing < part.stop:
            raise Broken
        return self.values[part]


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(lazy_arrays, "READ_WHOLE", 0)
    monkeypatch.setattr(out_of_core, "WINDOW_BYTES", 30 * 24)


def at_batch(action):
    return callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: action() if batch == 2 else None)


def breaks(*_):
    raise Broken


class Fragile(layers.Layer):
    """A layer that fails."""

    def init(self, rng, in_shape):
        return {}, in_shape

    def forward(self, ctx, params, x):
        breaks()


class Picky(nnx.losses.SparseCategoricalCrossentropy):
    """A loss that takes no batch of 10."""

    def check_target(self, y, out_shape):
        return breaks() if len(y) == 10 else super().check_target(y, out_shape)


@pytest.mark.parametrize("source", ["stream", "endless", "file"])
@pytest.mark.parametrize("way", ["end", "callback", "epoch", "stop", "ctrl-c", "layer"])
def test_no_thread_is_left_whatever_ends_a_fit(small_windows, source, way):
    for _ in range(10):
        model, data, kept = build(), sources()[source], None
        settings = {"steps_per_epoch": 4} if source == "endless" else {}
        if way == "end":
            fit(model, *data, **settings)
        elif way == "stop":
            stop = at_batch(lambda model=model: setattr(model, "stop_training", True))
            fit(model, *data, callbacks=[stop], **settings)
            assert model.step == 3
        else:
            hook = {
                "callback": at_batch(breaks),
                "epoch": callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: breaks()),
                "ctrl-c": at_batch(lambda: signal.raise_signal(signal.SIGINT)),
                "layer": callbacks.LambdaCallback(),
            }[way]
            model = build(Fragile()) if way == "layer" else model
            with pytest.raises(KeyboardInterrupt if way == "ctrl-c" else Broken) as kept:
                fit(model, *data, callbacks=[hook], **settings)
        assert left() == [], kept  # while the exception lives


@pytest.mark.parametrize("source", ["stream", "file"])
def test_no_thread_is_left_when_reading_fails(small_windows, source):
    def broken():
        yield from BATCHES[:3]
        raise Broken

    for _ in range(20):
        model = build()
        data = (Prefetch(broken()),) if source == "stream" else (Slices(X, missing=95), Y)
        with pytest.raises(Broken) as kept:
            fit(model, *data, shuffle=False)
        assert left() == [], kept
        assert model.step == (3 if source == "stream" else 4)
    wrong = Prefetch([*BATCHES[:2], (X[:, :3], Y), *BATCHES * 5])
    with pytest.raises(ValueError, match="6 features") as kept:
        fit(build(), wrong)
    assert left() == [], kept
    model = build()
    model.compile("adam", Picky())
    with pytest.raises(Broken) as kept:
        fit(model, Prefetch(BATCHES * 5))
    assert left() == [], kept
    with pytest.raises(Broken) as kept:
        build().predict(Slices(X, missing=95), 20)
    assert left() == [], kept
    with pytest.raises(Broken) as kept:
        build(Fragile()).predict(Slices(X), 20)
    assert left() == [], kept


def test_ctrl_c_while_the_thread_is_waited_for():
    """A second Ctrl-C is not held back by a source that does not answer."""
    answer, model = threading.Event(), build()

    def silent():
        yield BATCHES[0]
        for _ in range(2):
            time.sleep(0.05)
            signal.raise_signal(signal.SIGINT)  # Python hears it in the main thread
        answer.wait(60)

    timer = threading.Timer(1, answer.set)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        fit(model, Prefetch(silent()))
    timer.join()
    assert np.isfinite(fit(model, BATCHES)["loss"]).all()
