"""A training that tests kill: `python killed.py FOLDER BACKEND [FILE_STEP]`; started again it goes on.

With FILE_STEP = n it kills itself right before the n-th thing that it does to a file.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np

import nnx
from nnx import callbacks, layers

EPOCHS = 24
SETTINGS = {"epochs": EPOCHS, "batch_size": 16, "verbose": 0}


def make_model(backend, dtype="float32"):
    model = nnx.Sequential(
        [
            layers.Dense(24, "relu", input_shape=(6,)),
            layers.BatchNormalization(momentum=0.9),
            layers.Dropout(0.3),
            layers.Dense(3, "softmax"),
        ],
        seed=5,
        dtype=dtype,
        backend=backend,
    )
    model.compile(nnx.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def make_data():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((150, 6)).astype(np.float32)
    return X, (X[:, 0] + X[:, 1] ** 2 + rng.normal(0, 1, 150) > 0.5).astype(int) + (X[:, 2] > 1)


def make_callbacks(folder):
    """Callbacks that count: all of them change the course of the training."""
    return [
        callbacks.ModelCheckpoint(folder / "best.nnx", save_best_only=True, save_state=True),
        callbacks.EarlyStopping(patience=9, restore_best_weights=True),
        callbacks.ReduceLROnPlateau(patience=2, factor=0.6, cooldown=1),
        callbacks.CSVLogger(folder / "log.csv"),
    ]


def train(folder, backend, **settings):
    """Train, or go on, and return the model."""
    model = make_model(backend)
    X, y = make_data()
    given = {
        **SETTINGS,
        "validation_split": 0.3,
        "callbacks": make_callbacks(folder),
        "resume": folder,
        **settings,
    }
    model.fit(X, y, **given)
    return model


def outcome(model, folder) -> dict:
    """Return all that must be as if the training had never been killed, bit for bit."""
    slots = [
        model.backend.to_numpy(a).tobytes().hex()
        for slot in model.slots.values()
        for a in nnx.tree.leaves(slot)
    ]
    return {
        "weights": [weights.tobytes().hex() for weights in model.get_weights()],
        "slots": slots,
        "step": model.step,
        "learning_rate": model.optimizer.learning_rate,
        "history": model.history.history,
        "epochs": model.history.epoch,
        "log": (folder / "log.csv").read_text(),
        "best": [weights.tobytes().hex() for weights in nnx.load(folder / "best.nnx").get_weights()],
    }


def die_at(step: int):
    """Kill this process right before the `step`-th change of a file."""
    left = iter(range(step, -1, -1))

    def note(event, arguments):
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (writes or event in ("os.rename", "os.chmod", "os.remove", "os.truncate")) and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)
    flush = os.fsync

    def fsync(descriptor):
        note("os.rename", ())
        flush(descriptor)

    os.fsync = fsync


if __name__ == "__main__":
    here = Path(sys.argv[1])
    if len(sys.argv) > 3:
        die_at(int(sys.argv[3]))
    done = outcome(train(here, sys.argv[2]), here)
    (here / "done.json").write_text(json.dumps(done))
