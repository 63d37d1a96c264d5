"""CuPy from the outside: how it is labelled, train.py, moving a model to the device and back."""

import csv
import importlib.util
import json
import os
import subprocess
import sys

import emulated_cuda
import killed
import numpy as np
import pytest
from paths import ROOT

import nnx
from nnx import layers
from nnx.__main__ import main
from nnx.compare.trial import trial_model

X = np.random.default_rng(0).standard_normal((120, 6)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)

INFO = nnx.available_backends()["cupy"]
pytestmark = pytest.mark.skipif(not INFO.usable, reason=f"cupy: {INFO.reason}")


def build(backend, dtype="float64"):
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
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def test_results_on_an_emulated_device_are_labelled(capsys):
    is_emulated = emulated_cuda.installed() is not None
    assert (INFO.device == "emulated device (no GPU)") == is_emulated
    assert main(["info"]) == 0
    assert INFO.device in capsys.readouterr().out


def test_a_model_goes_to_the_device_and_back_in_the_midst_of_training():
    def fit(model, epochs, initial_epoch=0):
        return model.fit(X, Y, epochs=epochs, initial_epoch=initial_epoch, batch_size=16, verbose=0)

    whole = build("numpy")
    curve = fit(whole, 6).history["loss"]
    model, found = build("numpy"), []
    for epoch, place in enumerate(["numpy", "cupy", "numpy", "cupy", "cupy", "numpy"]):
        assert model.to(place).backend.name == place
        found += fit(model, epoch + 1, epoch).history["loss"]
    np.testing.assert_allclose(found, curve, rtol=1e-9)
    np.testing.assert_allclose(model.predict(X), whole.predict(X), rtol=1e-7)


def test_what_is_saved_on_the_device_is_read_without_one(tmp_path):
    model = build("cupy", "float32")
    model.fit(X, Y, epochs=1, verbose=0)
    model.save(tmp_path / "model.nnx")
    program = """
import sys, numpy, nnx
sys.modules["cupy"] = None
model = nnx.models.load_model(sys.argv[1])
numpy.save(sys.argv[2], model.predict(numpy.load(sys.argv[3])))
"""
    np.save(tmp_path / "x.npy", X)
    names = [str(tmp_path / name) for name in ("model.nnx", "y.npy", "x.npy")]
    subprocess.run([sys.executable, "-c", program, *names], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model.predict(X), atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
def test_train_py_on_digits(tmp_path):
    """The program itself, in a process of its own: as on NumPy, but for rounding."""
    emulation = ["-m", "emulated_cuda"] if emulated_cuda.installed() else []
    losses = {}
    for backend in ("numpy", "cupy"):
        options = ["--epochs", "3", "--hidden", "32", "--batch-size", "64", "--out", str(tmp_path / backend)]
        subprocess.run(
            [sys.executable, *emulation, str(ROOT / "train.py"), *options],
            check=True,
            env={**os.environ, "NNX_BACKEND": backend, "PYTHONPATH": str(ROOT / "tests")},
            capture_output=True,
        )
        with (tmp_path / backend / "history.csv").open() as file:
            losses[backend] = [float(row["val_loss"]) for row in csv.DictReader(file)]
    config = json.loads((tmp_path / "cupy/config.json").read_text())
    assert (config["backend"]["name"], config["backend"]["device"]) == ("cupy", INFO.device)
    assert losses["cupy"] == pytest.approx(losses["numpy"], rel=1e-4)
    assert len(losses["cupy"]) == 3
    assert (tmp_path / "cupy/confusion_matrix.png").stat().st_size > 1000


def test_compare_finds_no_difference_from_numpy():
    """Layer by layer, and as fit runs it, on a network that has every layer."""
    found = nnx.compare.compare(trial_model, ["numpy", "cupy"], steps=2)
    assert found.agree, str(found)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_estimators_train_on_it():
    pytest.importorskip("sklearn")
    from nnx.estimators import Classifier, MLPClassifier

    with nnx.use_backend("cupy"):
        found = MLPClassifier(max_iter=30, random_state=0, batch_size=20).fit(X, Y)
        assert Classifier(epochs=2, random_state=0).fit(X, Y).predict(X).shape == Y.shape
    with nnx.use_backend("numpy"):
        expected = MLPClassifier(max_iter=30, random_state=0, batch_size=20).fit(X, Y)
    assert found.loss_curve_ == pytest.approx(expected.loss_curve_, rel=1e-3)


def test_a_model_is_exported_from_it(tmp_path):
    onnx = pytest.importorskip("onnxruntime")
    model = build("cupy", "float32")
    model.fit(X, Y, verbose=0)
    nnx.onnx.export(model, tmp_path / "net.onnx")
    session = onnx.InferenceSession(tmp_path / "net.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: X})
    np.testing.assert_allclose(found, model.predict(X), rtol=1e-4, atol=1e-6)


def test_a_training_that_was_cut_off_goes_on(tmp_path):
    cut = nnx.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: [0, 0][epoch])
    folders = [tmp_path / "whole", tmp_path / "cut"]
    wanted = killed.outcome(killed.train(folders[0], "cupy", epochs=4), folders[0])
    with pytest.raises(IndexError):
        killed.train(folders[1], "cupy", epochs=4, callbacks=[*killed.make_callbacks(folders[1]), cut])
    # The same callbacks by their names; this one cuts nothing off.
    going_on = nnx.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: None)
    found = killed.train(
        folders[1], "cupy", epochs=4, callbacks=[*killed.make_callbacks(folders[1]), going_on]
    )
    assert killed.outcome(found, folders[1]) == wanted
