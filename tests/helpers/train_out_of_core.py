"""Trains on a file that does not fit into the memory this process may have; prints what that took.

    python tests/helpers/train_out_of_core.py FILE BACKEND LIMIT [read | compare]

LIMIT is how many MiB of memory of its own (`RLIMIT_DATA`) the process may take beyond what it has when all
is imported and a small training has run; 0 is no limit, for JAX, whose compiler does not do with one. With
`read` the array is first read as a whole, which must fail; with `compare` so too, without a limit, and visited
in the same order.
"""

import gc
import json
import resource
import sys
from pathlib import Path

import h5py
import numpy as np

import nnx
from nnx.data.samples import split_last
from nnx.random import SHUFFLE, generator
from nnx.training.preparation import prepared

EPOCHS, BATCH = 2, 500


def build(backend):
    model = nnx.Sequential(
        [nnx.layers.Dense(8, "relu"), nnx.layers.Dense(2, "softmax")], seed=0, backend=backend
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def memory(name) -> int:
    """Return bytes that the system tells of this process: "VmData" of its own, "VmHWM" the most that lay in memory."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) << 10


def main(path, backend, limit, mode=""):
    source = np.load(path, mmap_mode="r") if path.endswith("npy") else h5py.File(path)["X"]
    labels = np.arange(len(source)) % 2
    model = build(backend)
    few = np.array(source[: 4 * BATCH])
    build(backend).fit([(few, labels[: len(few)])], verbose=0)  # whatever is imported or compiled late
    build(backend).fit(few, labels[: len(few)], batch_size=BATCH, verbose=0)
    gc.collect()
    before = memory("VmHWM")
    if limit != "0":
        resource.setrlimit(resource.RLIMIT_DATA, (memory("VmData") + (int(limit) << 20),) * 2)
    data = np.array(source) if mode else source
    settings = {"shuffle": in_windows(model, source, labels)} if mode else {}
    history = model.fit(
        data, labels, batch_size=BATCH, epochs=EPOCHS, validation_split=0.1, verbose=0, **settings
    ).history
    predicted = model.predict(data)
    weights = [float(np.abs(w).sum(dtype=np.float64)) for w in model.get_weights()]
    told = [*history["loss"], *history["val_loss"], *weights, float(predicted.sum(dtype=np.float64))]
    print(json.dumps({"told": told, "bytes": source.nbytes, "grown": memory("VmHWM") - before}))


def in_windows(model, source, labels):
    """Return the function for `shuffle` that visits an array as `fit` visits the file."""
    samples = split_last(prepared(model, source, labels), 0.1)[0]

    def order(numbers):
        rng = generator(model.seed, SHUFFLE, model.step)
        return np.concatenate(list(samples.order(True, lambda: rng)))

    return order


if __name__ == "__main__":
    main(*sys.argv[1:])
