"""What nnx tells Python's `logging`, and that it keeps quiet where nobody asked."""

import logging
import subprocess
import sys

import numpy as np
import pytest

import nnx
from nnx import callbacks, layers

X = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
Y = X.sum(axis=1)


def regressor(*inner, backend=None):
    model = nnx.Sequential([layers.Dense(4, "tanh"), *inner, layers.Dense(1)], seed=0, backend=backend)
    model.compile("sgd", "mse")
    return model


@pytest.fixture
def told(caplog):
    """What was told, as text, from DEBUG on."""
    caplog.set_level(logging.DEBUG, "nnx")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "nnx"]


def test_a_fit_tells_where_it_runs_and_where_its_data_lies(told, caplog):
    regressor().fit(X, Y, epochs=3, batch_size=20, verbose=0)
    messages = told()
    assert messages[:2] == [
        "40 samples, 0.0 MiB, placed on numpy",
        "training on numpy in float32: epochs 1 to 3",
    ]
    assert any(message.startswith("step on numpy compiled: ") for message in messages)
    assert caplog.records[1].levelname == "INFO"
    assert caplog.records[1].pathname.endswith("trainer.py")  # where it happened, not nnx/log.py


def test_data_that_does_not_fit_tells_that_it_is_streamed(told, monkeypatch):
    backend = nnx.as_backend("numpy")
    monkeypatch.setattr(backend, "free_memory", lambda: 2**8)
    model = regressor(backend=backend)
    model.fit(X, Y, verbose=0)
    model.predict(X, batch_size=10)
    assert "40 samples, 0.0 MiB, streamed batch by batch: 0.0 MiB are free on numpy" in told()
    assert "outputs fetched every 3 of 4 batches, for want of memory" in told()


def test_a_step_that_cannot_be_compiled_tells_why(told):
    class Counting(layers.Layer):
        calls = 0.0

        def forward(self, ctx, params, x):
            self.calls += 1
            return x * self.calls, lambda dy: (dy * self.calls, {})

    regressor(Counting()).fit(X, Y, verbose=0, batch_size=8)
    assert "steps on numpy run as Python, not compiled: layers.Counting changes in a step" in told()

    class Looks(layers.Layer):
        def forward(self, ctx, params, x):
            factor = 2.0 if float(x[0, 0]) > 0 else 3.0
            return x * factor, lambda dy: (dy * factor, {})

    regressor(Looks()).fit(X, Y, verbose=0, batch_size=8)
    assert "step on numpy is not compiled: NotTraceableError: the value of an array" in told()


def test_files_and_going_on(told, tmp_path):
    def fit(epochs):
        saving = callbacks.ModelCheckpoint(tmp_path / "best.nnx", "loss", save_state=True)
        regressor().fit(X, Y, epochs=epochs, callbacks=[saving], resume=tmp_path, verbose=0)

    fit(2)
    assert f"there is no {tmp_path / 'state.nnx'} yet: training starts anew" in told()
    assert f"wrote {tmp_path / 'best.nnx'}, 0.00 MiB" in told()
    fit(3)
    assert f"going on from {tmp_path / 'state.nnx'}, written after 2 epochs, step 4" in told()
    assert told().count("training on numpy in float32: epochs 3 to 3") == 1


def test_the_automatic_choice_tells_what_it_chose(told):
    chosen = nnx.as_backend("auto").name
    assert [message for message in told() if message.startswith(f"backend auto: {chosen}")]


PROGRAM = """
import sys
import nnx
{before}
import numpy as np
model = nnx.Sequential([nnx.layers.Dense(1)], seed=0)
model.compile("sgd", "mse")
model.fit(np.ones((8, 2)), np.ones(8), verbose=0)
assert ("logging" in sys.modules) is {imported}
"""


@pytest.mark.parametrize(
    ("before", "lines"),
    [
        ("", 0),
        ("import logging", 0),
        ("import logging; logging.basicConfig(level='WARNING')", 0),
        ("import logging; logging.basicConfig(level='INFO')", 2),
    ],
    ids=["not imported", "not set up", "warnings", "info"],
)
def test_silent_unless_asked(before, lines):
    program = [sys.executable, "-c", PROGRAM.format(before=before, imported=before != "")]
    ran = subprocess.run(program, capture_output=True, text=True, check=True)
    assert ran.stdout == ""
    assert [line.split(":")[:2] for line in ran.stderr.splitlines()] == [["INFO", "nnx"]] * lines
