"""What goes wrong on a device is told in one line, and the model stays usable."""

import gc
import os
import re
import subprocess
import sys
import traceback

import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.training.runner import StepRunner

RNG = np.random.default_rng(0)
X = RNG.standard_normal((600, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 600)


def build(backend=None, *inner, units=8):
    model = nnx.Sequential(
        [layers.Dense(units, "relu"), *inner, layers.Dense(3, "softmax")], seed=0, backend=backend
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.build((6,))
    return model


def told(call, kind, message):
    """Assert that a call fails with a message of one line and a short traceback; return the error."""
    with pytest.raises(kind) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(traceback.extract_tb(caught.value.__traceback__)) <= 10
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def is_usable(model):
    assert np.isfinite(model.fit(X, Y, batch_size=32, verbose=0).history["loss"]).all()
    assert np.isfinite(model.predict(X[:5], batch_size=5)).all()


# CuPy that cannot run


CUPY = '''
raise ImportError("""
================================================================
Failed to import CuPy.

Original error:
  ImportError: libcudart.so.13: cannot open shared object file: No such file or directory
================================================================
""")
'''


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "raise ModuleNotFoundError(\"No module named 'cupy'\")",
            r"cannot import them \(No module named 'cupy'\)",
        ),
        (CUPY, r"cannot import them \(ImportError: libcudart.so.13: cannot open shared object file: No such"),
    ],
)
def test_cupy_cannot_be_imported(tmp_path, source, message):
    (tmp_path / "cupy.py").write_text(source)
    (tmp_path / "array_api_compat").mkdir()
    for name in ("__init__", "cupy"):
        (tmp_path / f"array_api_compat/{name}.py").write_text("import cupy" if name == "cupy" else "")
    program = "import nnx; nnx.set_backend('cupy')"
    found = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("nnx.backend.BackendError: the cupy backend needs CuPy and array-api-compat")
    assert re.search(message, last)
    assert last.endswith("nvidia-smi shows)")


@pytest.fixture
def cupy():
    """CuPy with its device, if there is one."""
    info = nnx.available_backends()["cupy"]
    if not info.usable:
        pytest.skip(f"cupy: {info.reason}")
    return nnx.as_backend("cupy").cupy


def new_cupy_backend():
    return type(nnx.as_backend("cupy"))()


def test_cupy_finds_no_device(cupy, monkeypatch):
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    told(
        new_cupy_backend,
        nnx.BackendError,
        "^CuPy is installed, but no CUDA device: run with NNX_BACKEND=numpy",
    )

    def fail():
        raise cupy.cuda.runtime.CUDARuntimeError(35)

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", fail)
    told(new_cupy_backend, nnx.BackendError, "^CuPy is installed, but no CUDA device: cuda.*nvidia-smi")


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        (
            "importlib.import_module",
            ImportError("libcublas.so.13: no\n  listdir(...)"),
            "libcublas.so.13: no",
        ),
        (
            "cupy.arange",
            RuntimeError("CuPy failed to load libnvrtc.so.13: OSError"),
            "CuPy failed to load libnvrtc",
        ),
    ],
)
def test_cuda_libraries_are_missing(cupy, monkeypatch, place, error, message):
    def fail(*arguments):
        if arguments == ("cupy",):  # CuPy itself can be imported
            return cupy
        raise error

    monkeypatch.setattr(place, fail)
    told(
        new_cupy_backend,
        nnx.BackendError,
        rf"^CuPy finds a CUDA device, but not what it needs to run on it \({message}.*pip install 'nnx-engine\[cuda",
    )


# Memory that runs out


@pytest.fixture
def limited(cupy):
    """Return a function that leaves so many bytes of device memory."""
    pool = cupy.get_default_memory_pool()

    def limit(free, in_one_piece=False):
        gc.collect()
        pool.free_all_blocks()
        # What earlier tests still hold may lie scattered, so that the room between is of little use.
        held = pool.total_bytes() if in_one_piece else pool.used_bytes()
        pool.set_limit(held + free)

    yield limit
    pool.set_limit(0)


MIB = 1 << 20
ACTIONS = {
    "fit": (lambda m: m.fit(X, Y, batch_size=512, verbose=0), "Try batch_size=256, half of the present 512"),
    "fit with a large batch_size": (lambda m: m.fit(X, Y, batch_size=10**6, verbose=0), "Try batch_size=300, half of the present 600"),
    "fit on batches": (lambda m: m.fit([(X, Y)], verbose=0), "Give smaller batches"),
    "evaluate": (lambda m: m.evaluate(X, Y, batch_size=600, verbose=0), "Try batch_size=300, half of the present 600"),
    "predict": (lambda m: m.predict(X), "Try batch_size=300, half of the present 600"),
    "train_on_batch": (lambda m: m.train_on_batch(X, Y), "Try 300 samples at a time, half of the present 600"),
    "__call__": (lambda m: m(X), "Try 300 samples at a time"),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIONS)
def test_device_memory_runs_out(cupy, limited, name):
    call, advice = ACTIONS[name]
    model = build("cupy", units=4096)
    is_usable(model)
    before = model.get_weights()
    limited(5 * MIB)
    pool = cupy.get_default_memory_pool()
    used = pool.used_bytes()
    error = told(
        lambda: call(model),
        nnx.OutOfMemoryError,
        rf"^{name.split()[0]} on the cupy backend ran out of memory: Out of memory allocating [\d,]+ bytes "
        rf"\(.*\); \d MiB are free on the device\. {advice}",
    )
    assert isinstance(error, MemoryError)
    assert isinstance(error, nnx.BackendError)
    assert pool.used_bytes() - used < MIB  # the error keeps nothing of the step alive
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    is_usable(model)


def test_weights_that_do_not_fit_on_the_device(limited):
    limited(MIB)
    told(
        lambda: build("cupy", units=1 << 16),
        nnx.OutOfMemoryError,
        "^build on the cupy .* The model takes more than there is: make it smaller, or run it elsewhere",
    )
    model = build("numpy", units=1 << 16)
    told(lambda: model.to("cupy"), nnx.OutOfMemoryError, "^to on the cupy backend ran out of memory")


def test_data_and_outputs_larger_than_the_device(cupy, limited):
    x = RNG.standard_normal((120_000, 6)).astype(np.float32)  # 2.7 MiB, and 1.4 of outputs
    y = RNG.integers(0, 3, len(x))
    model, expected = build("cupy"), build("numpy")
    limited(
        2 * MIB, in_one_piece=True
    )  # twice what the steps themselves need, however the memory pool is cut up
    found = model.fit(x, y, batch_size=1000, verbose=0).history["loss"]
    np.testing.assert_allclose(
        found, expected.fit(x, y, batch_size=1000, verbose=0).history["loss"], rtol=1e-5
    )
    np.testing.assert_allclose(model.predict(x), expected.predict(x), atol=1e-5)


def test_data_that_should_fit_but_does_not_is_streamed(any_backend, monkeypatch):
    model = build(any_backend)
    monkeypatch.setattr(any_backend, "free_memory", lambda: 1 << 40)

    def place(samples):
        raise MemoryError("it is in pieces")

    monkeypatch.setattr(StepRunner(model), "place", place)
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()


class Greedy(layers.Layer):
    """Asks for more memory than any machine has."""

    def forward(self, ctx, params, x):
        if self.is_greedy:
            self.take(ctx)
        return x, lambda dy: (dy, {})

    is_greedy = True

    def take(self, ctx):
        ctx.xp.zeros((1 << 45,), dtype=ctx.xp.float32)


def test_memory_of_the_host_or_device_runs_out(any_backend, monkeypatch):
    if any_backend.name == "jax":  # XLA does not compute what is not used, and kills the process if it is

        def take(self, ctx):
            raise any_backend.jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 140737488355328 bytes.\nDetails: ..."
            )

        monkeypatch.setattr(Greedy, "take", take)
    model = build(any_backend, Greedy())
    for call, name, advice in (
        (
            lambda: model.fit(X, Y, batch_size=32, verbose=0),
            "fit",
            "Try batch_size=16, half of the present 32",
        ),
        (lambda: model.predict(X), "predict", "Try batch_size=300"),
        (lambda: model.fit(X, Y, batch_size=1, verbose=0), "fit", "The model takes more than there is"),
    ):
        told(
            call,
            nnx.OutOfMemoryError,
            rf"^{name} on the {any_backend.name} backend ran out of memory: .*{advice}",
        )
    monkeypatch.setattr(Greedy, "is_greedy", False)
    is_usable(model)


def test_memory_that_a_generator_runs_out_of_is_its_own_affair(any_backend):
    error = MemoryError("the file is too large")

    def generator():
        yield X, Y
        raise error

    for call in (lambda m: m.fit(generator(), verbose=0), lambda m: m.evaluate(generator(), verbose=0)):
        model = build(any_backend)
        with pytest.raises(MemoryError) as caught:
            call(model)
        assert caught.value is error
        is_usable(model)


# Arrays of another library


class Constant(layers.Layer):
    """Adds what it is made of."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, ctx, params, x):
        return x + self.make(x), lambda dy: (dy, {})


def add_numpy(x):
    return x + np.ones(8, np.float32)


def to_numpy(x):
    return np.asarray(x)


@pytest.mark.parametrize("make", [add_numpy, to_numpy])
def test_cupy_layers_that_use_numpy_are_told(cupy, make):
    model = build("cupy", Constant(make))
    line = make.__code__.co_firstlineno + 1
    for call in (lambda: model.fit(X, Y, verbose=0), lambda: model.predict(X), lambda: model.evaluate(X, Y)):
        told(
            call,
            nnx.BackendError,
            rf"test_device_errors.py, line {line}: a layer, loss or metric on the cupy backend mixes in an array that is "
            r"none of its own: .*numpy\.ndarray|NumPy.* ctx\.xp\.asarray",
        )
    model.network.layers[1].make = lambda x: 1
    model.compile("adam", "sparse_categorical_crossentropy")
    is_usable(model)


def test_jax_layers_that_use_numpy_are_told():
    model = build("jax", Constant(to_numpy))
    line = to_numpy.__code__.co_firstlineno + 1
    told(
        lambda: model.fit(X, Y, verbose=0),
        nnx.BackendError,
        rf"test_device_errors.py, line {line}: .* on the jax backend .*: an array of JAX was given to a function of NumPy",
    )


def test_cupy_arrays_in_layers_on_numpy_are_told(cupy):
    model = build("numpy", Constant(lambda x: cupy.ones(8)))
    told(
        lambda: model.fit(X, Y, verbose=0), nnx.BackendError, "on the numpy backend .* CuPy in one operation"
    )


def test_data_on_a_device_is_refused_with_the_remedy(cupy):
    x, y, weight = cupy.asarray(X), cupy.asarray(Y), cupy.ones(len(X))
    model = build("numpy")
    for call, what in (
        (lambda: model.fit(x, Y), "X"),
        (lambda: model.fit(X, y), "y"),
        (lambda: model.fit(X, Y, sample_weight=weight), "sample_weight"),
        (lambda: model.fit(X, Y, validation_data=(x, Y)), "X"),
        (lambda: model.evaluate(X, y), "y"),
        (lambda: model.predict(x), "X"),
        (lambda: model(x), "X"),
    ):
        told(
            call,
            TypeError,
            rf"^{what} is a cupy.ndarray on a device, .* the model's backend, here numpy: give {what}\.get\(\)$",
        )
    is_usable(model)


def test_arrays_that_the_host_can_read_are_taken(any_backend):
    jax = pytest.importorskip("jax")
    model, expected = build(any_backend), build(any_backend)
    found = model.fit(jax.numpy.asarray(X), jax.numpy.asarray(Y), verbose=0).history["loss"]
    assert found == expected.fit(X, Y, verbose=0).history["loss"]


def test_arrays_on_the_device_of_the_model_are_taken(any_backend):
    with any_backend.scope("float32"):
        x, y, weight = (any_backend.asarray(a) for a in (X, Y.astype(np.int32), np.ones(len(X), np.float32)))
    model, expected = build(any_backend), build(any_backend)
    found = model.fit(x, y, sample_weight=weight, verbose=0).history["loss"]
    assert found == expected.fit(X, Y, verbose=0).history["loss"]
    np.testing.assert_array_equal(model.predict(x), expected.predict(X))
