"""Ctrl-C anywhere in a training leaves a usable model."""

import json
import math
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import interrupted
import pytest
from every_backend import usable_or_skip

import nnx
from nnx import callbacks, layers
from nnx.interrupt import Interrupt

PROGRAM = Path(interrupted.__file__)


def presses(backend, folder, count: int, seed: int = 0) -> list[dict]:
    """Let a child train, pressing Ctrl-C up to four times, until so many were interrupted; return all outcomes."""
    rng, outcomes, seconds, hits = random.Random(seed), [], {}, 0
    command = [sys.executable, str(PROGRAM), backend, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        try:
            for number in range(20 * count):
                kind = "warm" if number % 10 else "cold"
                child.stdin.write(f"{kind}\n")
                child.stdin.flush()
                if child.stdout.readline() != "train\n":
                    break
                if kind in seconds:  # once each without, to see how long it takes here
                    time.sleep(rng.uniform(0, seconds[kind]))
                    for _ in range(rng.choice([1, 1, 2, 2, 3, 4])):
                        child.send_signal(signal.SIGINT)
                        time.sleep(rng.choice([0, 0.0005, 0.002]))
                if not (line := child.stdout.readline()):
                    break
                outcomes.append(json.loads(line))
                hits += outcomes[-1]["error"] == "KeyboardInterrupt"
                if outcomes[-1]["error"] == "none":  # the press came too late: the next ones come earlier
                    seconds[kind] = min(outcomes[-1]["seconds"], seconds.get(kind, math.inf))
                if hits == count:
                    break
            child.stdin.close()
            errors = child.stderr.read()
            assert child.wait(60) == 0, errors
        finally:
            child.kill()
    return outcomes


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "count"), [("numpy", 24), ("jax", 8)])
def test_pressed_at_random_moments(backend, count, tmp_path):
    usable_or_skip(backend)
    outcomes = presses(backend, tmp_path, count)
    assert [outcome["step"] for outcome in outcomes[:2]] == [7 * interrupted.EPOCHS] * 2
    assert len([outcome for outcome in outcomes if outcome["error"] == "KeyboardInterrupt"]) == count


def press(*_):
    signal.raise_signal(signal.SIGINT)


def fit(model, **settings):
    return model.fit(*interrupted.make_data(), **{**interrupted.SETTINGS, **settings})


def test_pressed_at_any_call_of_a_function(tmp_path):
    """At the n-th function that Python calls in `fit`, and again soon after, for many n."""
    whole = interrupted.whole_steps("numpy")

    def train(first: float, second: float):
        count, presses, model = 0, [], interrupted.make_model("numpy")

        def count_call(frame, event, argument):
            nonlocal count
            if event == "call":
                count += 1
                if count in (first, second):
                    presses.append(count)
                    press()

        calls = interrupted.make_callbacks(tmp_path)[:3]
        with Interrupt():  # so that a press on the last line of `fit` is held back too
            try:
                sys.setprofile(count_call)
                fit(model, epochs=2, callbacks=calls)
            except KeyboardInterrupt:
                assert presses
            finally:
                sys.setprofile(None)
                Interrupt.current().presses = 0
        interrupted.expect_usable(model, whole, tmp_path)
        return count

    train(math.inf, math.inf)
    calls = train(math.inf, math.inf)
    rng = random.Random(0)
    for number in range(60):
        first = 1 + number * calls // 60 + rng.randrange(calls // 60)
        train(first, first + rng.choice([math.inf, 1, 2, 5, 20, 100]))


class Presses(callbacks.Callback):
    """Presses Ctrl-C so often at the end of the second epoch, and looks how far it came."""

    def __init__(self, times):
        super().__init__()
        self.times, self.pressed = times, 0

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            for _ in range(self.times):
                press()
                self.pressed += 1


@pytest.mark.parametrize(("times", "pressed"), [(1, 1), (2, 1)])
def test_a_callback_is_cut_by_the_second(times, pressed):
    model, presses = interrupted.make_model("numpy"), Presses(times)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(model, callbacks=[presses])
    assert presses.pressed == pressed
    assert model.step == 14
    assert len(traceback.extract_tb(caught.value.__traceback__)) <= 3
    assert caught.value.__context__ is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_stream_that_waits_is_cut_by_the_first():
    def batches():
        yield from [(X[:16], y[:16])] * 3
        press()
        pytest.fail("it was not heard")

    (X, y), model = interrupted.make_data(), interrupted.make_model("numpy")
    with pytest.raises(KeyboardInterrupt):
        model.fit(batches(), verbose=0)
    assert model.step == 3


class PressesInAStep(layers.Layer):
    """Presses Ctrl-C three times in the second step."""

    steps = 0

    def forward(self, ctx, params, x):
        PressesInAStep.steps += 1
        if PressesInAStep.steps == 2:
            for _ in range(3):
                press()
        return x, lambda dy: (dy, {})


def test_a_step_is_cut_by_the_third_which_says_so():
    model = nnx.Sequential([PressesInAStep(), layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    message = (
        "in the middle of StepRunner.train: the weights may be those of half a step, so build the model anew"
    )
    with pytest.raises(KeyboardInterrupt, match=message):
        fit(model)


@pytest.mark.parametrize("hook", ["on_train_begin", "on_epoch_begin", "on_progress", "on_train_end"])
def test_none_is_lost(hook):
    model = interrupted.make_model("numpy")
    with pytest.raises(KeyboardInterrupt):
        fit(model, epochs=1, callbacks=[callbacks.LambdaCallback(**{hook: press})])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fit(model)


def test_a_fit_inside_a_fit_hears_it_too():
    inner, outer = (interrupted.make_model("numpy") for _ in range(2))
    once = callbacks.LambdaCallback(on_epoch_end=press)
    with pytest.raises(KeyboardInterrupt):
        fit(outer, callbacks=[callbacks.LambdaCallback(on_epoch_end=lambda *_: fit(inner, callbacks=[once]))])
    assert (inner.step, outer.step) == (7, 7)


def test_a_loop_of_ones_own():
    (X, y), model = interrupted.make_data(), interrupted.make_model("numpy")

    def loop():
        with Interrupt() as interrupt:
            for step in range(9):
                model.train_on_batch(X, y)
                if step == 2:
                    press()
                interrupt.check()

    with pytest.raises(KeyboardInterrupt):
        loop()
    assert model.step == 3


def test_a_handler_of_the_program_stays(monkeypatch):
    heard, model = [], interrupted.make_model("numpy")
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(model.step))
    try:
        fit(model, callbacks=[Presses(1)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert (heard, model.step) == ([14], 35)


def test_in_another_thread_it_does_nothing_and_stop_training_does(any_backend):
    model, begun = interrupted.make_model(any_backend), threading.Event()
    begins = callbacks.LambdaCallback(on_progress=lambda *_: begun.set())
    thread = threading.Thread(target=fit, args=(model,), kwargs={"epochs": 10**6, "callbacks": [begins]})
    thread.start()
    assert begun.wait(60)
    with pytest.raises(KeyboardInterrupt):
        press()
    assert thread.is_alive()
    model.stop_training = True
    thread.join(60)
    assert not thread.is_alive()
    assert model.step > 0
    fit(model)


def test_stop_training_is_heard_in_the_middle_of_an_epoch(any_backend, monkeypatch):
    model = interrupted.make_model(any_backend)
    monkeypatch.setattr(model.backend, "seconds_a_run", 0.0)  # runs of one step
    stops = callbacks.LambdaCallback(
        on_progress=lambda done, total: setattr(model, "stop_training", done == 3)
    )
    history = fit(model, callbacks=[stops])
    assert (model.step, history.epoch) == (3, [0])


def test_sigterm_is_not_held_back():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    seen = callbacks.LambdaCallback(on_epoch_end=lambda *_: handlers.append(signal.getsignal(signal.SIGTERM)))
    handlers = []
    fit(interrupted.make_model("numpy"), callbacks=[seen])
    assert {*handlers} == {signal.SIG_DFL}
