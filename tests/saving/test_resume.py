"""A training that is killed goes on, bit for bit, as if it never had been."""

import importlib.util
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import killed
import numpy as np
import pytest
from paths import ROOT

import nnx
from nnx import callbacks, layers

PROGRAM = [sys.executable, killed.__file__]


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return json.loads(json.dumps(killed.outcome(killed.train(folder, "numpy"), folder)))


def kill_once_under_way(command, folder, seconds):
    """Start a program, kill it so long after its first state was saved, and return its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (folder / "state.nnx").exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    return process.wait()


def kill_under_way(command, folder, seconds=0.0):
    """Start a program in a fresh folder and kill it so long after its first state was saved."""
    for _ in range(20):  # where this process is not let run in time, the program ends first
        if kill_once_under_way(command, folder, seconds) == -signal.SIGKILL:
            return
        shutil.rmtree(folder)
    pytest.fail(f"{command} ended 20 times before it was killed")


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, never_killed):
    rng, codes = random.Random(0), []
    for _ in range(6):
        command = [*PROGRAM, tmp_path, "numpy"]
        codes.append(kill_once_under_way(command, tmp_path, rng.uniform(0, 0.1)))
    subprocess.run([*PROGRAM, tmp_path, "numpy"], check=True)
    assert json.loads((tmp_path / "done.json").read_text()) == never_killed
    assert -signal.SIGKILL in codes
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 18, 19, 160, 190, 220])
def test_killed_before_a_change_of_a_file(tmp_path, never_killed, step):
    assert subprocess.run([*PROGRAM, tmp_path, "numpy", str(step)]).returncode == -signal.SIGKILL
    whole = killed.train(tmp_path, "numpy")
    assert json.loads(json.dumps(killed.outcome(whole, tmp_path))) == never_killed
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_killed_under_jax(tmp_path):
    pytest.importorskip("jax")
    folders = [tmp_path / "whole", tmp_path / "killed"]
    wanted = killed.outcome(killed.train(folders[0], "jax"), folders[0])
    kill_under_way([*PROGRAM, folders[1], "jax"], folders[1], 0.02)
    assert killed.outcome(killed.train(folders[1], "jax"), folders[1]) == wanted


@pytest.mark.parametrize("first", ["numpy", "jax", "array_api_strict"])
@pytest.mark.parametrize("second", ["numpy", "jax", "array_api_strict"])
def test_goes_on_on_another_backend(tmp_path, first, second, never_killed):
    settings = {"epochs": 5, "callbacks": killed.make_callbacks(tmp_path)[:1]}
    killed.train(tmp_path, first, **settings)
    model = killed.train(tmp_path, second, epochs=9, callbacks=killed.make_callbacks(tmp_path)[:1])
    whole = killed.train(tmp_path, second, epochs=9, callbacks=[], resume=None)
    assert model.backend.name == second
    assert model.step == whole.step
    for name, values in whole.history.history.items():
        np.testing.assert_allclose(model.history.history[name], values, rtol=2e-3)
    for mine, other in zip(model.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-2, atol=1e-3)


class CutOff(callbacks.Callback):
    """Ends a training as a kill would, for the files: in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.last = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.last:
            raise OSError("cut off")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize(
    "optimizer", ["sgd", "adam", nnx.optimizers.Adam(nnx.schedules.CosineDecay(0.02, 60))]
)
def test_optimizers_schedules_and_precisions(tmp_path, dtype, optimizer):
    X, y = killed.make_data()

    def train(epoch=None, **settings):
        model = killed.make_model("numpy", dtype)
        model.compile(optimizer, "sparse_categorical_crossentropy")
        saving = callbacks.ModelCheckpoint(tmp_path / "net.nnx", save_state=True)
        model.fit(X, y, epochs=6, verbose=0, callbacks=[saving, CutOff(epoch)], **settings)
        return model

    whole = train()
    with pytest.raises(OSError, match="cut off"):
        train(epoch=4)
    again = train(resume=tmp_path)
    assert again.history.history == whole.history.history
    for mine, other in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_batches_that_have_no_end(tmp_path):
    X, y = killed.make_data()

    def train(epoch=None, **settings):
        model = killed.make_model("numpy")
        batches = ((X[i : i + 10] * (1 + i), y[i : i + 10]) for i in itertools.count())
        batches = (batch for batch in batches if len(batch[0]) == 10)
        saving = callbacks.ModelCheckpoint(tmp_path / "net.nnx", save_state=True)
        model.fit(
            batches, epochs=5, steps_per_epoch=7, verbose=0, callbacks=[saving, CutOff(epoch)], **settings
        )
        return model

    whole = train()
    with pytest.raises(OSError, match="cut off"):
        train(epoch=3)
    assert train(resume=tmp_path).history.history == whole.history.history


def test_a_training_that_had_ended_stays_ended(tmp_path, never_killed):
    first = killed.train(tmp_path, "numpy")
    again = killed.train(tmp_path, "numpy")
    assert len(first.history.epoch) < killed.EPOCHS  # stopped early
    assert killed.outcome(again, tmp_path) == killed.outcome(first, tmp_path)


def test_a_seed_drawn_at_random_is_kept(tmp_path):
    X, y = killed.make_data()
    losses = []
    for epochs, resume in ((6, None), (3, None), (6, tmp_path)):
        nnx.utils.set_random_seed(1 if resume is None else 2)
        model = nnx.Sequential([layers.Dense(8, "relu"), layers.Dropout(0.5), layers.Dense(3, "softmax")])
        model.compile("adam", "sparse_categorical_crossentropy")
        saving = callbacks.ModelCheckpoint(tmp_path / "net.nnx", save_state=True)
        losses.append(
            model.fit(X, y, epochs=epochs, verbose=0, callbacks=[saving], resume=resume).history["loss"]
        )
    assert losses[2] == losses[0]


# What does not fit is said


def test_no_state(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no .*state.nnx to go on from. For a program that starts"
    ):
        killed.train(tmp_path / "elsewhere", "numpy", callbacks=[])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 8}, r"another batch_size \(16, now 8\)"),
        ({"shuffle": False}, r"another shuffle \(True, now False\)"),
        ({"validation_split": 0.2}, "another training data"),
        (
            {"callbacks": []},
            "other callbacks: they differ in CSVLogger, EarlyStopping, ModelCheckpoint, ReduceLROnPlateau",
        ),
    ],
)
def test_another_program(tmp_path, settings, message):
    killed.train(tmp_path, "numpy", epochs=2)
    with pytest.raises(ValueError, match=message):
        killed.train(tmp_path, "numpy", **settings)


def test_another_model(tmp_path):
    killed.train(tmp_path, "numpy", epochs=2)
    X, y = killed.make_data()
    for changed, message in (
        (lambda model: model.compile("adam", "sparse_categorical_crossentropy"), r"metrics"),
        (
            lambda model: model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"]),
            "optimizer",
        ),
        (lambda model: model.add(layers.Activation("linear")), "network"),
        (lambda model: setattr(model.optimizer, "learning_rate", 0.5), r"learning rate \(0.02, now 0.5\)"),
    ):
        model = killed.make_model("numpy")
        changed(model)
        given = {**killed.SETTINGS, "callbacks": killed.make_callbacks(tmp_path), "resume": tmp_path}
        with pytest.raises(ValueError, match=f"of a run with another {message}"):
            model.fit(X, y, validation_split=0.3, **given)


def test_a_damaged_state(tmp_path):
    killed.train(tmp_path, "numpy", epochs=2)
    path = tmp_path / "state.nnx"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"state.nnx is damaged: its content is not what its checksum says"):
        killed.train(tmp_path, "numpy")
    killed.make_model("numpy").save(path)
    with pytest.raises(ValueError, match=r"is no state of a run"):
        killed.train(tmp_path, "numpy")


def test_a_log_that_was_cut(tmp_path):
    killed.train(tmp_path, "numpy", epochs=2)
    (tmp_path / "log.csv").write_text("")
    with pytest.raises(
        ValueError, match=r"log.csv is shorter than when the state of this training was saved"
    ):
        killed.train(tmp_path, "numpy")


def test_one_folder_for_all_epochs():
    with pytest.raises(ValueError, match="save_state=True needs one folder for all epochs"):
        callbacks.ModelCheckpoint(Path("runs") / "{epoch}" / "net.nnx", save_state=True)


# train.py


@pytest.mark.slow
def test_train_py_goes_on(tmp_path, capsys):
    script = ROOT / "train.py"
    spec = importlib.util.spec_from_file_location("train_script", script)
    assert spec
    assert spec.loader
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)

    options = ["--data", "iris", "--hidden", "8", "--dropout", "0.2", "--epochs", "40", "--out"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train.main([*options, str(whole)]) == 0
    kill_under_way([sys.executable, script, *options, cut], cut)
    assert not (cut / "metrics.json").exists()
    assert train.main(["--resume", str(cut)]) == 0
    assert (cut / "history.csv").read_bytes() == (whole / "history.csv").read_bytes()
    for name in ("model.nnx", "weights.safetensors"):
        mine, other = (nnx.saving.files.read(folder / name)[0] for folder in (cut, whole))
        assert mine.keys() == other.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], other[key])
    capsys.readouterr()
    for folder, further, message in (
        (cut, ["--lr", "0.5"], "of a run with another learning rate (0.001, now 0.5)"),
        (tmp_path / "none", [], "config.json does not hold the options of a run"),
    ):
        with pytest.raises(SystemExit, match="2"):
            train.main(["--resume", str(folder), *further])
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
