"""Trainings that tests press Ctrl-C in: `python interrupted.py BACKEND FOLDER` does one for each line it is sent.

After each it looks whether the model is that of a whole number of steps, and goes on; it prints how it ended.
"""

import hashlib
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np

import nnx
from nnx import callbacks, layers
from nnx.training import step_cache

EPOCHS = 5
SETTINGS = {"epochs": EPOCHS, "batch_size": 16, "verbose": 0, "validation_split": 0.3}


def make_model(backend):
    model = nnx.Sequential(
        [
            layers.Dense(24, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(3, "softmax"),
        ],
        seed=5,
        backend=backend,
    )
    model.compile(nnx.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def make_data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((150, 6)).astype(np.float32)
    return X, (X[:, 0] > 0.5).astype(int) + (X[:, 2] > 1)


def digest(model) -> str:
    """Return a checksum of all weights, moving averages and optimizer slots."""
    slots = [np.asarray(a) for slot in model.slots.values() for a in nnx.tree.leaves(slot)]
    content = b"".join(array.tobytes() for array in [*model.get_weights(), *slots])
    return hashlib.blake2b(content, digest_size=8).hexdigest()


class Digests(callbacks.Callback):
    """Keeps the checksum after each run of steps."""

    def __init__(self):
        super().__init__()
        self.found = {}

    def on_epoch_begin(self, epoch, logs=None):
        self.on_progress(0, None)

    def on_progress(self, done, total):
        self.found[self.model.step] = digest(self.model)


def whole_steps(backend) -> dict[int, str]:
    """Return the checksum after each number of steps of a training that nothing interrupts."""
    seen, model = Digests(), make_model(backend)
    usual, model.backend.seconds_a_run = model.backend.seconds_a_run, 0.0  # runs of one step
    model.fit(*make_data(), **SETTINGS, callbacks=[seen])
    model.backend.seconds_a_run = usual
    assert list(seen.found) == list(range(7 * EPOCHS + 1))
    return seen.found


def make_callbacks(folder):
    """Callbacks that write files, and a progress bar."""
    return [
        callbacks.ModelCheckpoint(folder / "best.nnx", save_best_only=True, save_state=True),
        callbacks.EarlyStopping(patience=99),
        callbacks.CSVLogger(folder / "log.csv"),
        callbacks.ProgressBar(bar=True),
    ]


def expect_usable(model, whole: dict[int, str], folder) -> None:
    """Raise an AssertionError unless the model is that of a whole number of steps, and goes on."""
    X, y = make_data()
    if model.built:
        assert digest(model) == whole[model.step], f"step {model.step} is no whole step"
    epochs, numbers = model.history.epoch, model.history.history
    assert all(len(values) == len(epochs) for values in numbers.values()), (epochs, numbers)
    assert len(epochs) <= model.step / 7 <= EPOCHS
    assert list(folder.glob("*.partial")) == []
    if (folder / "best.nnx").exists():
        nnx.load(folder / "best.nnx")
    assert np.isfinite(model.fit(X, y, verbose=0).history["loss"]).all()
    assert np.isfinite(model.predict(X)).all()
    model.save(folder / "after.nnx")
    assert digest(nnx.load(folder / "after.nnx", backend=model.backend)) == digest(model)


def main(backend, folder) -> None:
    """Train once for each line of the standard input; after "cold" with nothing compiled before."""
    ready, sys.stdout = sys.stdout, sys.stderr
    whole, data = whole_steps(backend), make_data()
    for line in sys.stdin:
        if line.strip() == "cold":
            step_cache._remembered.clear()
        model, outcome = make_model(backend), {"error": "none"}
        print("train", file=ready, flush=True)
        began = time.perf_counter()
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                model.fit(*data, **SETTINGS, callbacks=make_callbacks(folder))
            except KeyboardInterrupt as error:
                outcome = {"error": "KeyboardInterrupt", "message": str(error)}
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        except KeyboardInterrupt:  # between one line and the other
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        outcome |= {"step": model.step, "seconds": time.perf_counter() - began}
        if "half a step" not in outcome.get("message", ""):
            expect_usable(model, whole, folder)
        print(json.dumps(outcome), file=ready, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(sys.argv[1], Path(sys.argv[2]))
