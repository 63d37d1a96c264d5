"""What raises an error in a training is named on it, and all that was begun is ended."""

import copy
import traceback

import interrupted
import pytest

import nnx
from nnx import callbacks, layers


class OwnError(Exception):
    """What a user's code raises."""


def fails(*arguments, **settings):
    raise OwnError("the disk is full")


HOOKS = ["set_model", "set_params", *(hook for hook in vars(callbacks.Callback) if hook.startswith("on_"))]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_is_named(hook, tmp_path):
    class Mine(callbacks.Callback):
        pass

    setattr(Mine, hook, fails)
    model, ended = interrupted.make_model("numpy"), []
    log, bar = callbacks.CSVLogger(tmp_path / "log.csv"), callbacks.ProgressBar(bar=True)
    ends = callbacks.LambdaCallback(on_train_end=lambda logs: ended.append(True))
    with pytest.raises(OwnError) as caught:
        model.fit(*interrupted.make_data(), epochs=3, verbose=0, callbacks=[log, bar, ends, Mine()])
    error = caught.value
    epoch = {"on_train_end": 3}.get(hook, 1)
    where = "" if hook in ("set_model", "set_params", "on_train_begin") else f" in epoch {epoch}"
    assert error.__notes__ == [f"raised by callback Mine.{hook}{where}"]
    assert str(error) == "the disk is full"
    assert traceback.format_exception(error)[-1] == f"{error.__notes__[0]}\n"
    assert ended == ([] if hook.startswith("set_") else [True])
    assert log._file is None
    assert bar._bar is None
    model.fit(*interrupted.make_data(), verbose=0)


def test_the_epoch_is_that_of_the_hook(tmp_path):
    def fail_late(epoch, logs):
        if epoch == 2:
            raise OwnError

    model, log = interrupted.make_model("numpy"), callbacks.CSVLogger(tmp_path / "log.csv")
    with pytest.raises(OwnError) as caught:
        model.fit(
            *interrupted.make_data(),
            epochs=9,
            verbose=0,
            callbacks=[log, callbacks.LambdaCallback(on_epoch_end=fail_late)],
        )
    assert caught.value.__notes__ == ["raised by callback LambdaCallback.on_epoch_end in epoch 3"]
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 4
    assert model.history.epoch == [0, 1]


def test_all_callbacks_end_if_several_raise_at_the_end():
    ended = []

    class Mine(callbacks.Callback):
        def on_train_end(self, logs=None):
            ended.append(self)
            raise OwnError

    with pytest.raises(OwnError):
        interrupted.make_model("numpy").fit(
            *interrupted.make_data(), verbose=0, callbacks=[Mine(), Mine(), Mine()]
        )
    assert len(ended) == 3


class Scale(layers.Layer):
    def __init__(self, fails_at_once=False, **settings):
        super().__init__(**settings)
        self.fails_at_once = fails_at_once

    def forward(self, ctx, params, x):
        if self.fails_at_once and ctx.training:
            fails()
        return x, fails


class OwnLoss(nnx.losses.Loss):
    def forward(self, ctx, target, output):
        fails()


class OwnLossGradient(nnx.losses.MeanSquaredError):
    def forward(self, ctx, target, output):
        return super().forward(ctx, target, output)[0], fails


def own_loss(y_true, y_pred):
    fails()


class OwnMetric(nnx.metrics.Metric):
    update = fails


class OwnResult(nnx.metrics.MeanSquaredError):
    result = fails


class OwnSchedule(nnx.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1 if step < 3 else fails()


SETTINGS = {"optimizer": "sgd", "loss": "mse", "metrics": []}


@pytest.mark.parametrize(
    ("inner", "settings", "note"),
    [
        (Scale(fails_at_once=True), {}, "layer Scale"),
        (Scale(fails_at_once=True, name="half"), {}, "layer Scale 'half'"),
        (Scale(), {}, "layer Scale 'scale', in its pullback"),
        (layers.Residual(Scale(fails_at_once=True)), {}, "layer Scale"),
        (layers.Residual([layers.Dense(3), Scale()]), {}, "layer Scale 'scale', in its pullback"),
        (None, {"loss": OwnLoss()}, "loss OwnLoss"),
        (None, {"loss": own_loss}, "loss own_loss"),
        (None, {"loss": OwnLossGradient()}, "loss OwnLossGradient, in its pullback"),
        (None, {"metrics": [OwnMetric()]}, "metric OwnMetric"),
        (None, {"metrics": [OwnResult()]}, "metric OwnResult"),
        (
            None,
            {"optimizer": nnx.optimizers.SGD(OwnSchedule())},
            "learning-rate schedule OwnSchedule at step 3",
        ),
        (None, {"optimizer": nnx.optimizers.SGD(fails)}, "learning-rate schedule fails at step 0"),
    ],
)
def test_what_is_compiled_is_named(any_backend, inner, settings, note):
    between = [layers.Dense(3), copy.deepcopy(inner)] if inner else []
    model = nnx.Sequential([*between, layers.Dense(1)], seed=0, backend=any_backend)
    model.compile(**{**SETTINGS, **settings})
    X, y = interrupted.make_data()
    with pytest.raises(OwnError) as caught:
        model.fit(X, y, batch_size=10, verbose=0)
    assert [n for n in caught.value.__notes__ if n.startswith("raised by")] == [f"raised by {note}"]
    model.compile("sgd", "mse")
    if inner is None:
        model.fit(X, y, verbose=0)
    model.predict(X)


def test_out_of_memory_keeps_the_name():
    def no_room(epoch, logs):
        raise MemoryError

    with pytest.raises(nnx.OutOfMemoryError) as caught:
        interrupted.make_model("numpy").fit(
            *interrupted.make_data(), verbose=0, callbacks=[callbacks.LambdaCallback(on_epoch_end=no_room)]
        )
    assert caught.value.__notes__ == ["raised by callback LambdaCallback.on_epoch_end in epoch 1"]
