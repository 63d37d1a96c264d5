"""What tests let run in processes forked from one in which JAX runs: `python forked.py` prints how each ended."""

import multiprocessing
import os
import warnings

import numpy as np

import nnx
from nnx import layers

X = np.ones((64, 300), np.float32)


def make_model(backend):
    model = nnx.Sequential(
        [layers.Dense(300, input_shape=(300,)), layers.Dense(300)], seed=0, backend=backend
    )
    model.compile("sgd", "mse")
    model.fit(X, X, verbose=0)
    return model


MODELS = {name: make_model(name) for name in ("jax", "numpy")}


def train(backend):
    """Train on with a model of the parent."""
    return MODELS[backend].fit(X, X, verbose=0).history["loss"][0]


def build(backend):
    """Build a new model."""
    return float(make_model(backend).predict(X)[0, 0])


def predict(model):
    """Predict with a model that was sent."""
    return float(model.predict(X)[0, 0])


def describe(backend):
    """Tell what there is."""
    info = nnx.available_backends()[backend]
    return str(info.usable or info.reason)


def ended(call, *arguments):
    """Return what a call returns or raises, as text."""
    try:
        return str(call(*arguments))
    except nnx.BackendError as error:
        return f"BackendError: {error}"


def fork(call, *arguments):
    """Call in a child made by `os.fork`."""
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.write(write, ended(call, *arguments).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for backend in MODELS:
            print("train", backend, fork(train, backend))
            print("build", backend, fork(build, backend))
            print("describe", backend, fork(describe, backend))
            with multiprocessing.get_context("fork").Pool(1) as pool:
                print("pool", backend, ended(pool.apply, predict, (MODELS[backend],)))
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print("spawn", backend, ended(pool.apply, predict, (MODELS[backend],)))
    print("warnings from", sorted({str(warning.message).partition(". ")[0] for warning in caught}))
    print("parent", "jax", ended(train, "jax"))
