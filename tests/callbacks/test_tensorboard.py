"""Event files for TensorBoard, read back record by record."""

import struct
import sys

import numpy as np
import pytest

import nnx
from nnx import callbacks, layers

pytest.importorskip("tensorboardX")

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 3)).astype(np.float32)
Y = X.sum(axis=1)


def fit(folder, epochs=3, histogram_freq=0, rate=0.01, more=(), **settings):
    model = nnx.Sequential([layers.Dense(4, "tanh", input_shape=(3,)), layers.Dense(1)], seed=0)
    model.compile(nnx.optimizers.SGD(rate), "mse", metrics=["mae"])
    board = callbacks.TensorBoard(folder / "tb", histogram_freq)
    settings = {"validation_split": 0.25, "verbose": 0, **settings}
    model.fit(X, Y, epochs=epochs, callbacks=[*more, board], **settings)
    return model


def events(folder):
    """Yield the events of a folder's files, file after file, each checked to be whole."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            assert len(data) >= 16 + length
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def curves(folder) -> dict:
    """Return what TensorBoard draws: {name: {epoch: value}}."""
    found: dict[str, dict] = {}
    for event in events(folder):
        if event.HasField("session_log") and event.session_log.status == event.session_log.START:
            for curve in found.values():  # this file replaces what was there from its first step on
                for step in [step for step in curve if step >= event.step]:
                    del curve[step]
        for value in event.summary.value:
            shown = value.histo if value.HasField("histo") else value.simple_value
            found.setdefault(value.tag, {})[event.step] = shown
    return found


def test_numbers_of_each_epoch_under_the_names_of_keras(tmp_path):
    history = fit(tmp_path).history.history
    train, validation = curves(tmp_path / "tb" / "train"), curves(tmp_path / "tb" / "validation")
    assert set(train) == {"epoch_loss", "epoch_mae", "epoch_learning_rate"}
    assert set(validation) == {"epoch_loss", "epoch_mae"}
    for name in ("loss", "mae"):
        assert list(train[f"epoch_{name}"].values()) == pytest.approx(history[name])
        assert validation[f"epoch_{name}"] == pytest.approx(dict(enumerate(history[f"val_{name}"])))


def test_learning_rate_of_a_schedule_and_of_a_callback(tmp_path):
    fit(tmp_path / "a", rate=lambda step: 0.1 / (1 + step))
    assert curves(tmp_path / "a" / "tb" / "train")["epoch_learning_rate"] == pytest.approx(
        {0: 0.1 / 2, 1: 0.1 / 3, 2: 0.1 / 4}
    )
    changed = callbacks.LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)
    fit(tmp_path / "b", more=[changed])
    assert curves(tmp_path / "b" / "tb" / "train")["epoch_learning_rate"] == pytest.approx(
        {0: 0.1, 1: 0.05, 2: 0.025}
    )


def test_histograms_of_the_weights(tmp_path):
    model = fit(tmp_path, epochs=4, histogram_freq=2)
    train = curves(tmp_path / "tb" / "train")
    weights = dict(zip(model.weight_paths(), model.get_weights(), strict=True))
    assert {name for name in train if not name.startswith("epoch_")} == {
        "/".join(path) for _, path in weights
    }
    for (_, path), values in weights.items():
        histograms = train["/".join(path)]
        assert list(histograms) == [1, 3]
        assert histograms[3].num == values.size
        assert (histograms[3].min, histograms[3].max) == pytest.approx((values.min(), values.max()))


def test_weights_that_are_not_finite_are_left_out(tmp_path):
    model = nnx.Sequential([layers.Dense(1, input_shape=(3,))], seed=0)
    model.compile("sgd", "mse")
    model.set_weights([np.full((3, 1), np.nan, "float32"), np.zeros(1, "float32")])
    hooks = [callbacks.TensorBoard(tmp_path, histogram_freq=1), callbacks.TerminateOnNaN()]
    model.fit(X, Y, callbacks=hooks, verbose=0)
    assert set(curves(tmp_path / "train")) == {"epoch_loss", "epoch_learning_rate", "dense/bias"}


def test_going_on_goes_on_with_the_curves(tmp_path):
    class PowerCut(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise ConnectionError

    def saving():
        return callbacks.ModelCheckpoint(tmp_path / "best.nnx", save_state=True)

    with pytest.raises(ConnectionError):
        fit(tmp_path, 5, more=[saving(), PowerCut()], resume=tmp_path)
    assert list(curves(tmp_path / "tb" / "train")["epoch_loss"]) == [0, 1, 2]
    history = fit(tmp_path, 5, more=[saving()], resume=tmp_path).history.history
    for folder, name in (("train", "loss"), ("validation", "val_loss")):
        drawn = curves(tmp_path / "tb" / folder)["epoch_loss"]
        assert drawn == pytest.approx(dict(enumerate(history[name])))


def test_epochs_that_are_done_again_and_new_fits_replace_what_was_there(tmp_path):
    fit(tmp_path, rate=0.05)
    first = curves(tmp_path / "tb" / "train")["epoch_loss"]
    second = fit(tmp_path, epochs=3, initial_epoch=1, rate=0.01).history.history["loss"]
    drawn = curves(tmp_path / "tb" / "train")["epoch_loss"]
    assert drawn == pytest.approx({0: first[0], 1: second[0], 2: second[1]})
    third = fit(tmp_path, epochs=2).history.history["loss"]
    assert curves(tmp_path / "tb" / "train")["epoch_loss"] == pytest.approx(dict(enumerate(third)))


def test_without_a_writer_the_error_says_what_to_install(tmp_path, monkeypatch):
    for name in ("tensorboardX", "torch", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        fit(tmp_path)


def test_a_frequency_that_is_none():
    with pytest.raises(ValueError, match="histogram_freq must be 0 or a number of epochs, got -1"):
        callbacks.TensorBoard(histogram_freq=-1)
