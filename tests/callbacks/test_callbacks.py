"""Callbacks: Keras's hooks and rules."""

import csv
import math
import os
import signal
import threading

import numpy as np
import pytest

import nnx
from nnx import callbacks, layers

RNG = np.random.default_rng(0)
X = RNG.standard_normal((64, 3)).astype(np.float32)
Y = X.sum(axis=1)


def regressor(rate=0.05):
    model = nnx.Sequential([layers.Dense(8, "tanh"), layers.Dense(1)], seed=0)
    model.compile(nnx.optimizers.SGD(rate), "mse")
    return model


class Feeds(callbacks.Callback):
    """Puts given numbers into the logs, as if validation had found them, and keeps each epoch's weights."""

    def __init__(self, name, values):
        super().__init__()
        self.name, self.values, self.weights = name, values, []

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]
        self.weights.append(self.model.get_weights())


def run(callback, values, name="val_loss", epochs=None):
    model, feeds = regressor(), Feeds(name, values)
    model.fit(X, Y, epochs=epochs or len(values), verbose=0, callbacks=[feeds, callback])
    return model, feeds


# What Keras 3 does with the same numbers.
@pytest.mark.parametrize(
    ("values", "settings", "epochs", "best"),
    [
        ([5, 4, 3, 2, 1], {"patience": 1}, 5, 4),
        ([5, 4, 4.5, 4.2, 3], {"patience": 1}, 3, 1),
        ([5, 4, 4.5, 4.2, 3], {"patience": 2}, 4, 1),
        ([5, 4, 4.5, 3, 2.5], {"patience": 2}, 5, 4),
        ([5, 4.9, 4.8, 4.7], {"patience": 2, "min_delta": 0.5}, 3, 0),
        ([1, 2, 3, 4], {"patience": 2, "mode": "max"}, 4, 3),
        ([4, 3, 2, 1], {"patience": 2, "mode": "max"}, 3, 0),
        ([5, 4, 3, 2, 1], {"patience": 2, "baseline": 0.5}, 2, 1),
        ([5, 4, 9, 9, 9, 9], {"patience": 1, "start_from_epoch": 3}, 5, 3),
        ([math.nan, math.nan, math.nan], {"patience": 2}, 2, 0),
    ],
)
def test_early_stopping(values, settings, epochs, best):
    stopping = callbacks.EarlyStopping(restore_best_weights=True, **settings)
    model, feeds = run(stopping, values)
    assert len(model.history.epoch) == epochs
    assert stopping.best_epoch == best
    for a, b in zip(model.get_weights(), feeds.weights[best], strict=True):
        np.testing.assert_array_equal(a, b)


def test_early_stopping_without_restoring_keeps_the_last_weights():
    model, feeds = run(callbacks.EarlyStopping(patience=1), [1, 2, 3])
    for a, b in zip(model.get_weights(), feeds.weights[-1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_early_stopping_knows_that_accuracy_should_rise():
    model, _ = run(callbacks.EarlyStopping("val_accuracy", patience=1), [0.1, 0.2, 0.3], "val_accuracy")
    assert len(model.history.epoch) == 3


class Unknown(nnx.metrics.MeanSquaredError):
    """A metric that does not say what is better."""

    higher_is_better = None


@pytest.mark.parametrize(
    ("metric", "monitor", "rises"),
    [
        (nnx.metrics.AUC(name="roc_auc"), "val_roc_auc", True),
        (nnx.metrics.MeanSquaredError(name="accuracy_gap"), "val_accuracy_gap", False),
        ("accuracy", "accuracy", True),
        ("mae", "val_loss", False),
    ],
)
def test_the_metric_says_what_is_better(metric, monitor, rises):
    model = nnx.Sequential([nnx.layers.Dense(1, "sigmoid", input_shape=(2,))], seed=0)
    model.compile("sgd", "binary_crossentropy", metrics=[metric])
    for callback in (callbacks.EarlyStopping(monitor), callbacks.ModelCheckpoint("x", monitor)):
        callback.set_model(model)
        assert callback.rises is rises


def test_a_metric_of_one_of_several_outputs_says_what_is_better():
    heads = {"out": nnx.layers.Dense(1, "sigmoid"), "size": nnx.layers.Dense(1)}
    model = nnx.Sequential([nnx.layers.Outputs(heads)], seed=0)
    model.compile("sgd", {"out": "bce", "size": "mse"}, metrics={"out": ["accuracy"], "size": ["mae"]})
    found = {}
    for monitor in ("val_out_accuracy", "val_size_mae", "val_out_loss"):
        callback = callbacks.ReduceLROnPlateau(monitor)
        callback.set_model(model)
        found[monitor] = callback.rises
    assert found == {"val_out_accuracy": True, "val_size_mae": False, "val_out_loss": False}


@pytest.mark.parametrize("monitor", ["unknown", "score"])
@pytest.mark.parametrize("kind", [callbacks.EarlyStopping, callbacks.ReduceLROnPlateau])
def test_an_unknown_direction_asks_for_the_mode(monitor, kind):
    scores = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(score=1.0))
    model = nnx.Sequential([nnx.layers.Dense(1)], seed=0)
    model.compile("sgd", "mse", metrics=[Unknown()])
    with pytest.raises(ValueError, match=f"{monitor}' is better is not known.*mode='max' or mode='min'"):
        model.fit(X, Y, verbose=0, callbacks=[scores, kind(monitor)])
    model.fit(X, Y, verbose=0, callbacks=[scores, kind(monitor, mode="max")])


def test_no_warning_between_two_validations(tmp_path):
    watching = [
        callbacks.EarlyStopping(patience=3),
        callbacks.ReduceLROnPlateau(),
        callbacks.ModelCheckpoint(tmp_path / "best.nnx", save_best_only=True),
    ]
    regressor().fit(X, Y, epochs=4, validation_split=0.5, validation_freq=2, verbose=0, callbacks=watching)
    with pytest.warns(UserWarning, match="val_los'"):
        regressor().fit(
            X, Y, epochs=2, validation_split=0.5, validation_freq=2, verbose=0,
            callbacks=[callbacks.EarlyStopping("val_los")],
        )  # fmt: skip


def test_a_worse_model_of_a_later_fit_does_not_replace_the_best(tmp_path):
    keep = callbacks.ModelCheckpoint(tmp_path / "best.nnx", "loss", save_best_only=True)
    model = regressor()
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[keep])
    best, saved = keep.best, (tmp_path / "best.nnx").read_bytes()
    model.set_weights([100 * weight for weight in model.get_weights()])
    model.fit(X, Y, verbose=0, callbacks=[keep])
    assert keep.best == best
    assert (tmp_path / "best.nnx").read_bytes() == saved


def test_a_first_model_must_be_better_than_the_threshold(tmp_path):
    keep = callbacks.ModelCheckpoint(
        tmp_path / "best.nnx", "loss", save_best_only=True, initial_value_threshold=-1.0
    )
    regressor().fit(X, Y, verbose=0, callbacks=[keep])
    assert not (tmp_path / "best.nnx").exists()


def test_a_path_of_numbers_that_are_not_reported_says_which_are(tmp_path):
    keep = callbacks.ModelCheckpoint(f"{tmp_path}/{{val_acc}}.nnx")
    with pytest.raises(ValueError, match=r"cannot be filled in .'val_acc'.. Epoch 1 reports loss, epoch"):
        regressor().fit(X, Y, verbose=0, callbacks=[keep])


def test_a_log_is_not_continued_with_other_columns(tmp_path):
    path, model = tmp_path / "log.csv", regressor()
    model.fit(X, Y, verbose=0, callbacks=[callbacks.CSVLogger(path)])
    before = path.read_text()
    with pytest.raises(
        ValueError, match="has the columns epoch, loss, while this training reports epoch, loss, val"
    ):
        model.fit(X, Y, validation_split=0.5, verbose=0, callbacks=[callbacks.CSVLogger(path, append=True)])
    assert path.read_text() == before
    model.fit(X, Y, verbose=0, callbacks=[callbacks.CSVLogger(path, append=True)])
    assert len(path.read_text().splitlines()) == 3


def test_a_column_that_comes_later_is_told_of(tmp_path):
    def add(epoch, logs):
        if epoch:
            logs["late"] = 1.0

    later = callbacks.LambdaCallback(on_epoch_end=add)
    with pytest.warns(UserWarning, match="epoch 2 reports late, for which"):
        regressor().fit(
            X, Y, epochs=3, verbose=0, callbacks=[later, callbacks.CSVLogger(tmp_path / "log.csv")]
        )


@pytest.mark.parametrize("rate", [None, "0.1", -1.0, math.nan, [0.1]])
def test_a_scheduler_that_returns_no_rate(rate):
    def halved(epoch):
        return rate

    with pytest.raises(ValueError, match=r"halved\(0\) must return a learning rate"):
        regressor().fit(X, Y, verbose=0, callbacks=[callbacks.LearningRateScheduler(halved)])


def test_watching_what_is_not_reported_warns_with_what_is():
    with pytest.warns(
        UserWarning, match="watches 'val_los', which this training does not report. It reports: loss"
    ):
        regressor().fit(X, Y, verbose=0, callbacks=[callbacks.EarlyStopping("val_los")])


def test_early_stopping_says_so(capsys):
    run(callbacks.EarlyStopping(patience=1, verbose=1, restore_best_weights=True), [1, 2, 3])
    assert capsys.readouterr().out.splitlines() == [
        "epoch 2: early stopping",
        "restoring the weights of the best epoch, 1",
    ]


@pytest.mark.parametrize(
    ("values", "settings", "rates"),
    [
        ([5, 4, 4, 4, 4], {"factor": 0.5, "patience": 2}, [1, 1, 1, 0.5, 0.5]),
        ([5, 4, 4, 4, 4, 4, 4], {"factor": 0.5, "patience": 1}, [1, 1, 0.5, 0.25, 0.125, 0.0625, 0.03125]),
        (
            [5, 4, 4, 4, 4, 4, 4],
            {"factor": 0.5, "patience": 1, "cooldown": 2},
            [1, 1, 0.5, 0.5, 0.25, 0.25, 0.125],
        ),
        ([5, 5, 5, 5], {"factor": 0.1, "patience": 1, "min_lr": 0.05}, [1, 0.1, 0.05, 0.05]),
        ([5, 4.9999, 4.9998], {"factor": 0.5, "patience": 1, "min_delta": 0.01}, [1, 0.5, 0.25]),
    ],
)
def test_reduce_on_plateau(values, settings, rates):
    model, feeds = regressor(0.001), Feeds("val_loss", values)
    seen = []
    record = callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(model.optimizer.learning_rate)
    )
    plateau = callbacks.ReduceLROnPlateau(**{**settings, "min_lr": settings.get("min_lr", 0) * 0.001})
    model.fit(X, Y, epochs=len(values), verbose=0, callbacks=[feeds, plateau, record])
    np.testing.assert_allclose(np.array(seen) / 0.001, rates)
    np.testing.assert_allclose(model.history.history["learning_rate"], np.array([1, *rates[:-1]]) * 0.001)


def test_a_changed_rate_reaches_the_step(any_backend):
    model = nnx.Sequential([layers.Dense(1)], seed=0, backend=any_backend)
    model.compile(nnx.optimizers.SGD(0.1), "mse")
    model.build((3,))
    stop = callbacks.LearningRateScheduler(lambda epoch: 0.1 if epoch == 0 else 0.0)
    kept = []
    keep = callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: kept.append(model.get_weights()[0]))
    model.fit(X, Y, epochs=2, verbose=0, callbacks=[stop, keep])
    np.testing.assert_array_equal(kept[0], kept[1])
    assert model.history.history["learning_rate"] == [0.1, 0.0]


def test_scheduler_may_take_the_present_rate():
    model = regressor(1e-3)
    model.fit(
        X, Y, epochs=3, verbose=0, callbacks=[callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)]
    )
    np.testing.assert_allclose(model.history.history["learning_rate"], [5e-4, 2.5e-4, 1.25e-4])


@pytest.mark.parametrize(
    "callback", [callbacks.ReduceLROnPlateau(), callbacks.LearningRateScheduler(lambda e: 0.1)]
)
def test_a_schedule_and_a_callback_do_not_go_together(callback):
    with pytest.raises(ValueError, match="use one or the other"):
        regressor(nnx.schedules.ExponentialDecay(0.1, 10, 0.5)).fit(X, Y, verbose=0, callbacks=[callback])


def test_schedules_count_steps(any_backend):
    model = nnx.Sequential(
        [layers.Dense(1, kernel_initializer="zeros", use_bias=False)], backend=any_backend, seed=0
    )
    model.compile(nnx.optimizers.SGD(lambda step: [1.0, 0.0, 0.0, 0.5][step]), "mse")
    x, y = np.ones((2, 1), np.float32), np.full(2, 1.0, np.float32)
    model.fit(x, y, batch_size=1, epochs=2, verbose=0)  # w: 0 -> 2 -> 2 -> 2 -> 1
    assert model.get_weights()[0].item() == pytest.approx(1.0)


def test_checkpoint(tmp_path):
    path = tmp_path / "runs" / "net-{epoch:02d}-{val_loss:.1f}.nnx"
    _, feeds = run(callbacks.ModelCheckpoint(path, save_best_only=True), [3.0, 4.0, 2.0])
    assert sorted(p.name for p in path.parent.iterdir()) == ["net-01-3.0.nnx", "net-03-2.0.nnx"]
    loaded = nnx.load(tmp_path / "runs" / "net-03-2.0.nnx")
    for a, b in zip(loaded.get_weights(), feeds.weights[2], strict=True):
        np.testing.assert_array_equal(a, b)
    run(callbacks.ModelCheckpoint(tmp_path / "weights.safetensors", save_weights_only=True), [1.0])
    with pytest.raises(ValueError, match="holds weights only"):
        nnx.load(tmp_path / "weights.safetensors")


def test_csv_logger(tmp_path):
    path = tmp_path / "log.csv"
    for append in (False, True):
        regressor().fit(X, Y, epochs=2, verbose=0, callbacks=[callbacks.CSVLogger(path, append=append)])
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "0", "1"]
    assert float(rows[0]["loss"]) == regressor().fit(X, Y, verbose=0).history["loss"][0]


@pytest.mark.parametrize(("too_short", "bars"), [(math.inf, 1), (0.0, 3)])
def test_epochs_too_short_to_see_have_no_moving_bar(too_short, bars, monkeypatch, capsys):
    monkeypatch.setattr(callbacks.reporting, "SECONDS_TO_SEE", too_short)
    regressor().fit(X, Y, epochs=3, verbose=0, callbacks=[callbacks.ProgressBar(bar=True)])
    out = capsys.readouterr().out
    assert sum(f"epoch {i}/3:   0%" in out for i in (1, 2, 3)) == bars
    assert all(f"epoch {i}/3  loss" in out for i in (1, 2, 3))


def test_terminate_on_nan(capsys):
    model = regressor(rate=1e30)
    with np.errstate(all="ignore"):
        model.fit(X, Y, epochs=20, verbose=0, callbacks=[callbacks.TerminateOnNaN()])
    assert len(model.history.epoch) < 20
    assert "try a smaller learning rate" in capsys.readouterr().out


def test_hooks_come_in_keras_order():
    calls = []
    hooks = (
        "on_train_begin",
        "on_epoch_begin",
        "on_train_batch_begin",
        "on_train_batch_end",
        "on_epoch_end",
        "on_train_end",
    )
    made = {
        name: (lambda *a, name=name: calls.append((name, *(v for v in a if isinstance(v, int)))))
        for name in hooks
    }
    regressor().fit(X, Y, epochs=1, batch_size=32, verbose=0, callbacks=[callbacks.LambdaCallback(**made)])
    assert calls == [
        ("on_train_begin",),
        ("on_epoch_begin", 0),
        ("on_train_batch_begin", 0),
        ("on_train_batch_end", 0),
        ("on_train_batch_begin", 1),
        ("on_train_batch_end", 1),
        ("on_epoch_end", 0),
        ("on_train_end",),
    ]


def test_batch_hooks_change_nothing_but_see_the_loss(any_backend):
    losses = []

    class Watches(callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            losses.append(logs["loss"])

    results = []
    for given in ([], [Watches()]):
        model = regressor()
        model.to(any_backend)
        model.fit(X, Y, epochs=2, batch_size=20, verbose=0, callbacks=given)
        results.append(model.history.history["loss"])
    np.testing.assert_allclose(*results, rtol=1e-5)
    assert len(losses) == 8
    assert losses[3] == pytest.approx(results[0][0], rel=1e-5)


def test_a_batch_hook_can_stop_training():
    model = regressor()

    class Stops(callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 1

    model.fit(X, Y, epochs=5, batch_size=8, verbose=0, callbacks=[Stops()])
    assert model.step == 2


def test_unknown_hook():
    with pytest.raises(TypeError, match="LambdaCallback 'on_epoch_finish': did you mean 'on_epoch_"):
        callbacks.LambdaCallback(on_epoch_finish=print)


def test_a_callback_that_raises_leaves_a_usable_model():
    def fails(epoch, logs):
        raise RuntimeError("disk is full")

    model, ended = regressor(), []
    hooks = [callbacks.LambdaCallback(on_epoch_end=fails, on_train_end=lambda logs: ended.append(True))]
    with pytest.raises(RuntimeError, match="disk is full"):
        model.fit(X, Y, epochs=3, verbose=0, callbacks=hooks)
    assert ended == [True]
    model.fit(X, Y, verbose=0)


def test_ctrl_c_is_heard_between_steps_and_keeps_what_was_learnt(any_backend):
    model = regressor()
    model.to(any_backend)
    before = signal.getsignal(signal.SIGINT)
    presses = callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epoch == 2 and os.kill(os.getpid(), signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y, epochs=100, verbose=0, callbacks=[presses])
    assert signal.getsignal(signal.SIGINT) is before
    assert len(model.history.epoch) == 3
    assert model.step == 6
    assert np.isfinite(model.predict(X)).all()
    model.fit(X, Y, verbose=0)


def test_fit_in_another_thread_leaves_signals_alone():
    model = regressor()
    thread = threading.Thread(target=model.fit, args=(X, Y), kwargs={"verbose": 0})
    thread.start()
    thread.join()
    assert len(model.history.epoch) == 1
