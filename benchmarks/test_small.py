"""Small things people feel: import, time to the first epoch, one prediction, peak memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import networks
from .measure import interleave

IMPORT = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"

FIRST_EPOCH = """
import time; t = time.perf_counter()
import numpy as np, nnx
model = nnx.Sequential([nnx.layers.Dense(64, "relu"), nnx.layers.Dense(32, "relu"),
                        nnx.layers.Dense(10, "softmax")], backend={!r}, seed=0)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
rng = np.random.default_rng(0)
model.fit(rng.random((1797, 64)), rng.integers(0, 10, 1797), batch_size=32, epochs=1, verbose=0)
print(time.perf_counter() - t)
"""

# The child says how far a fit raised its peak of resident memory, and what the fit must hold.
PEAK_MEMORY = """
import re, json
import numpy as np, nnx
from nnx import tree

def kilobytes(name):
    return int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read()).group(1))

def make():
    layers = [nnx.layers.Dense(256, "relu"), nnx.layers.Dense(128, "relu"), nnx.layers.Dense(10, "softmax")]
    model = nnx.Sequential(layers, backend={!r}, seed=0)
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model

rng, batch = np.random.default_rng(0), 512
make().fit(rng.random((8, 784), "float32"), rng.integers(0, 10, 8), verbose=0)  # what is loaded only once
before = kilobytes("VmRSS")
X, y = rng.random((40_000, 784), "float32"), rng.integers(0, 10, 40_000)
model = make()
model.fit(X, y, batch_size=batch, epochs=1, verbose=0)
params = 4 * model.count_params()
activations = 4 * batch * (784 + 2 * (256 + 128 + 10))
must = {{"data": X.nbytes + y.nbytes, "parameters and gradients": 2 * params, "slots": 2 * params,
        "activations": activations}}
print(json.dumps({{"peak": 1024 * (kilobytes("VmHWM") - before), "must": must}}))
"""


def child(code: str) -> str:
    """Run code in a Python of its own, which keeps what it compiles as an installation does; return what it prints."""
    folder = Path(__file__).parents[1]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder, env=env
    ).stdout


def child_seconds(code: str) -> float:
    return float(child(code).splitlines()[-1])


def test_import(benchmark):
    benchmark.group = "import (whole process)"
    codes = {f"import {name}": IMPORT.format(name) for name in ("nnx", "numpy")}
    runs = {name: lambda code=code: child_seconds(code) for name, code in codes.items()}
    measured = interleave(runs, repeats=11, benchmark=benchmark, clock=lambda run: run())
    benchmark.extra_info |= {
        "kind": "small",
        "title": "Import",
        "base": "import numpy",
        "times": measured.table("import numpy"),
    }


def test_time_to_first_epoch(benchmark, backends):
    benchmark.group = "import, build, compile and one epoch on digits (whole process)"
    codes = {f"nnx, {b.name}": FIRST_EPOCH.format(b.name) for b in backends}
    runs = {name: lambda code=code: child_seconds(code) for name, code in codes.items()}
    measured = interleave(runs, repeats=5, benchmark=benchmark, clock=lambda run: run())
    benchmark.extra_info |= {
        "kind": "small",
        "title": "From `import nnx` to the end of the first epoch (1,797 samples, 64-64-32-10, batch 32)",
        "base": next(iter(runs)),
        "times": measured.table(next(iter(runs))),
    }


def test_predict_one_row(benchmark, backends):
    network = networks.WIDE
    benchmark.group = f"predict one row, {network.name}"
    row = network.data(1)[0]
    models = {f"nnx, {b.name}": network.model(b) for b in backends}
    runs = {name: lambda model=model: model.predict(row) for name, model in models.items()}
    measured = interleave(runs, repeats=40, settle=True, benchmark=benchmark)
    benchmark.extra_info |= {
        "kind": "small",
        "title": f"`predict` of one row, {network.name}",
        "base": next(iter(runs)),
        "times": measured.table(next(iter(runs))),
    }


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_peak_memory(benchmark, backend):
    benchmark.group = "peak memory of a fit (whole process)"
    printed = benchmark.pedantic(child, args=(PEAK_MEMORY.format(backend.name),), rounds=1)
    found = json.loads(printed.splitlines()[-1])
    needed = sum(found["must"].values())
    benchmark.extra_info |= {
        "kind": "memory",
        "backend": backend.name,
        **found,
        "needed": needed,
        "ratio": found["peak"] / needed,
    }
