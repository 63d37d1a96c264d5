"""On a real CUDA GPU only: times, TF32, masks, memory, asynchronous copies. Run: pytest -m gpu -s

An emulated device says nothing about these; there, and without a GPU, they are counted skips.
"""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.training.preparation import prepared
from nnx.training.runner import StepRunner

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4096, 64)).astype(np.float32)
Y = (X @ RNG.standard_normal((64, 10))).argmax(axis=1)


@pytest.fixture
def gpu():
    info = nnx.available_backends()["cupy"]
    if not info.usable:
        pytest.skip(f"cupy: {info.reason}")
    with nnx.use_backend("cupy") as backend:
        yield backend


def build(backend, dtype="float32", units=256):
    model = nnx.Sequential(
        [
            layers.Dense(units, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(10, "softmax"),
        ],
        seed=0,
        dtype=dtype,
        backend=backend,
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def fit(model, epochs=1, batch_size=256):
    return model.fit(X, Y, epochs=epochs, batch_size=batch_size, verbose=0).history["loss"]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-9)])
def test_losses_of_many_steps_are_those_of_numpy(gpu, dtype, tolerance):
    found, expected = fit(build(gpu, dtype), 5), fit(build("numpy", dtype), 5)
    np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_masks_are_those_of_numpy_and_drop_their_share(gpu):
    count, rate = 4_000_000, 0.3
    masks = {}
    for backend in (gpu, nnx.as_backend("numpy")):
        ctx = nnx.Context(backend, training=True, key=(1, 2))
        ones = backend.asarray(np.ones(count, dtype=np.float32))
        masks[backend.name] = backend.to_numpy(layers.Dropout(rate).forward(ctx, {}, ones)[0])
    np.testing.assert_array_equal(masks["cupy"] == 0, masks["numpy"] == 0)
    dropped = masks["cupy"] == 0
    deviation = np.sqrt(rate * (1 - rate) / count)
    assert abs(dropped.mean() - rate) < 5 * deviation
    together = np.mean(dropped[1:] & dropped[:-1])  # neighbours are independent
    assert abs(together - rate**2) < 5 * np.sqrt(rate**2 * (1 - rate**2) / count) * 2
    assert masks["cupy"].mean() == pytest.approx(1, abs=0.01)


def test_memory_does_not_grow(gpu):
    pool, model = gpu.cupy.get_default_memory_pool(), build(gpu)
    fit(model, 2)
    model.predict(X)
    reserved = pool.total_bytes()
    fit(model, 5)
    model.predict(X)
    assert pool.total_bytes() == reserved


def test_steps_are_queued_not_waited_for(gpu):
    """The host runs ahead: to queue steps takes less time than they do."""
    model = build(gpu, units=8192)
    samples = StepRunner(model).place(prepared(model, X, Y, None))
    StepRunner(model).train_on(samples)
    gpu.synchronize(None)
    start = time.perf_counter()
    for _ in range(10):
        StepRunner(model).train_on(samples)
    queued = time.perf_counter() - start
    gpu.synchronize(None)
    done = time.perf_counter() - start
    print(
        f"\n10 steps of 64-8192-10 at batch 4096: queued in {queued * 1e3:.1f} ms, done in {done * 1e3:.1f} ms"
    )
    assert queued < done


def test_copies_from_pinned_memory_run_beside_computation(gpu):
    cupy, cupyx = gpu.cupy, pytest.importorskip("cupyx")
    host = cupyx.empty_pinned((64 << 20,), np.uint8)
    host[:] = 7
    a = cupy.ones((8192, 8192), dtype=np.float32)
    target, stream = cupy.empty(host.shape, np.uint8), cupy.cuda.Stream(non_blocking=True)
    a @ a
    gpu.synchronize(None)

    def seconds(copy, compute):
        start = time.perf_counter()
        if compute:
            for _ in range(4):
                a @ a
        if copy:
            target.set(host, stream=stream)
        queued = time.perf_counter() - start
        stream.synchronize()
        gpu.synchronize(None)
        return queued, time.perf_counter() - start

    (copy_queued, copy), (_, compute), (_, both) = (
        seconds(True, False),
        seconds(False, True),
        seconds(True, True),
    )
    print(f"\ncopy {copy * 1e3:.1f} ms, products {compute * 1e3:.1f} ms, both {both * 1e3:.1f} ms")
    assert copy_queued < copy / 2
    assert both < 0.9 * (copy + compute)
    assert (target == 7).all()


def test_streamed_training_is_that_on_resident_data(gpu, monkeypatch):
    """A step that does not wait for its batch, or a batch copied over one still in use, shows here.

    Copies take about as long as steps in one case, much longer or shorter in the others, and each
    batch has numbers of its own size.
    """
    x = (
        RNG.standard_normal((65536, 512)).astype(np.float32)
        * np.linspace(0.1, 4, 65536, dtype=np.float32)[:, None]
    )
    y = RNG.integers(0, 10, len(x))
    for units, batch_size in ((16, 16384), (1024, 4096), (4096, 512)):
        losses = {}
        for free in (None, 1):
            monkeypatch.setattr(gpu, "free_memory", lambda free=free: free)
            model, seen = build(gpu, units=units), []
            start = time.perf_counter()
            for _ in range(3):
                seen += model.fit(x, y, epochs=1, batch_size=batch_size, verbose=0).history["loss"]
            seen += list(map(float, model.get_weights()[0].ravel()[:1000]))
            print(f"\n512-{units}-10, batch {batch_size}, free {free}: {time.perf_counter() - start:.2f} s")
            losses[free] = seen
        np.testing.assert_array_equal(losses[1], losses[None])


def test_streaming_does_not_fill_the_memory(gpu, monkeypatch):
    """However far the host could run ahead, there are a few batches at a time on device and host."""
    monkeypatch.setattr(gpu, "free_memory", lambda: 1)
    pinned, pool, model = (
        gpu.cupy.get_default_pinned_memory_pool(),
        gpu.cupy.get_default_memory_pool(),
        build(gpu, units=4096),
    )
    fit(model, 2)
    blocks, reserved = pinned.n_free_blocks(), pool.total_bytes()
    fit(model, 5)
    gpu.synchronize(None)
    assert pool.total_bytes() == reserved
    assert pinned.n_free_blocks() <= blocks + 3


# CuPy reads CUPY_TF32 when it is imported: a process of its own for each setting.
PRODUCT = """
import time, numpy as np, cupy
a, b = (np.random.default_rng(i).standard_normal((4096, 4096), dtype=np.float32) for i in (0, 1))
x, y = cupy.asarray(a), cupy.asarray(b)
found = x @ y
cupy.cuda.Device().synchronize()
start = time.perf_counter()
for _ in range(20):
    x @ y
cupy.cuda.Device().synchronize()
seconds = (time.perf_counter() - start) / 20
expected = a[:64].astype(np.float64) @ b
print(np.abs(found[:64].get() - expected).max() / np.abs(expected).max(), 2 * 4096**3 / seconds / 1e12)
"""


def test_tf32_is_off_unless_asked_for(gpu):
    if int(gpu.cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("TF32 needs compute capability 8.0")
    errors = {}
    for setting in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", PRODUCT],
            env={**os.environ, "CUPY_TF32": setting},
            capture_output=True,
            text=True,
            check=True,
        )
        errors[setting], speed = map(float, done.stdout.split())
        print(f"\nCUPY_TF32={setting}: relative error {errors[setting]:.1e}, {speed:.0f} TFLOP/s")
    assert errors["0"] < 1e-5
    assert 1e-5 < errors["1"] < 1e-2
    default = subprocess.run(
        [sys.executable, "-c", PRODUCT],
        env={name: value for name, value in os.environ.items() if name != "CUPY_TF32"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(default.stdout.split()[0]) < 1e-5


@pytest.mark.parametrize("batch_size", [128, 2048])
def test_time_of_a_step(gpu, batch_size):
    """Prints; a speed is no pass or fail, but that the loss falls is."""
    model = build(gpu, units=512)
    fit(model, 2, batch_size)
    start = time.perf_counter()
    losses = fit(model, 5, batch_size)
    seconds = (time.perf_counter() - start) / (5 * -(-len(X) // batch_size))
    print(f"\n{gpu.describe().device}: 64-512-10, batch {batch_size}: {seconds * 1e6:.0f} µs a step")
    assert losses[-1] < losses[0]


SHARED = """
import sys, numpy as np, nnx
rng = np.random.default_rng(0)
X = rng.standard_normal((1000, 64)); Y = (X @ rng.standard_normal((64, 10))).argmax(axis=1)
inner = [nnx.layers.Dense(64, "relu"), nnx.layers.Dropout(0.3), nnx.layers.Dense(10, "softmax")]
model = nnx.Sequential(inner, seed=0, dtype="float64")
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(X, Y, epochs=3, batch_size=64, validation_split=0.2, verbose=0).history
if nnx.distributed.rank() == 0:
    print(*(value for values in history.values() for value in values))
    print(*(np.abs(w).sum() for w in model.get_weights()))
"""


def test_two_gpus_train_as_one_does(gpu, tmp_path):
    if gpu.cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two GPUs")
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    found = []
    for launch in ([], ["-m", "nnx", "launch", "--gpus", "2"]):
        done = subprocess.run(
            [sys.executable, *launch, str(script)],
            env={**os.environ, "NNX_BACKEND": "cupy"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found.append([float(number) for number in done.stdout.split()])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9)
