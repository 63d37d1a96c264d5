"""Finding, choosing and refusing backends."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from paths import TESTS

import nnx
from nnx import layers


def test_available_backends_gives_a_reason_for_each_that_cannot_run():
    found = nnx.available_backends()
    assert {"numpy", "jax", "cupy", "array_api_strict"} <= set(found)
    assert found["numpy"].usable
    assert found["numpy"].version == np.__version__
    for info in found.values():
        assert info.usable == (info.reason == "")
        assert info.usable == bool(info.version)


def test_unknown_backend_suggests_the_nearest():
    with pytest.raises(
        nnx.BackendError, match=r"unknown backend 'nunpy': did you mean 'numpy'\? Known: .*auto"
    ):
        nnx.set_backend("nunpy")


def test_backend_of_a_wrong_type():
    with pytest.raises(TypeError, match="backend must be a name"):
        nnx.set_backend(3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("blocked", "backend", "message"),
    [
        ("jax", "jax", "pip install 'nnx-engine[jax]'"),
        ("cupy", "cupy", "pip install 'nnx-engine[cuda12]'"),
    ],
)
def test_missing_library_names_the_extra_to_install(blocked, backend, message):
    code = f"""
import sys
sys.modules[{blocked!r}] = None
import nnx
assert not nnx.available_backends()[{backend!r}].usable
try:
    nnx.set_backend({backend!r})
except nnx.BackendError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert message in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_cupy_without_a_device_says_so():
    code = """
import sys, types
class CUDARuntimeError(RuntimeError): pass
def count(): raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
runtime = types.SimpleNamespace(CUDARuntimeError=CUDARuntimeError, getDeviceCount=count)
sys.modules["cupy"] = types.ModuleType("cupy")
sys.modules["cupy"].cuda = types.SimpleNamespace(runtime=runtime)
compat = types.ModuleType("array_api_compat")
compat.cupy = types.ModuleType("array_api_compat.cupy")
sys.modules.update({"array_api_compat": compat, "array_api_compat.cupy": compat.cupy})
import nnx
print(nnx.available_backends()["cupy"].reason)
print(nnx.as_backend("auto").name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    reason, automatic = done.stdout.splitlines()
    assert "installed, but no CUDA device: cudaErrorNoDevice" in reason
    assert "NNX_BACKEND=numpy" in reason
    assert automatic == "numpy"


@pytest.mark.parametrize(
    ("value", "expected"), [("jax", "jax"), ("numpy", "numpy"), ("", "numpy"), ("auto", "numpy")]
)
def test_environment_variable(value, expected):
    code = "import nnx; m = nnx.Sequential([nnx.layers.Dense(1, input_shape=(1,))]); print(m.backend.name)"
    env = {"NNX_BACKEND": value, "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == expected


def test_use_backend_is_undone():
    before = nnx.get_backend()
    with nnx.use_backend("jax"):
        assert nnx.get_backend().name == "jax"
        with nnx.use_backend("numpy"):
            assert nnx.get_backend().name == "numpy"
        assert nnx.get_backend().name == "jax"
    assert nnx.get_backend() is before


def test_threads_do_not_disturb_each_other():
    code = """
import threading, nnx
nnx.set_backend("jax")
seen, barrier = {}, threading.Barrier(3)
def work(name, choice):
    if choice:
        nnx.set_backend(choice)
    barrier.wait()
    seen[name] = nnx.get_backend().name
threads = [threading.Thread(target=work, args=a) for a in (("a", "numpy"), ("b", "array_api_strict"), ("c", None))]
[t.start() for t in threads]; [t.join() for t in threads]
print(seen["a"], seen["b"], seen["c"], nnx.get_backend().name)
"""
    import os

    env = {**os.environ, "PYTHONPATH": str(TESTS / "plugins")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["numpy", "array_api_strict", "jax", "jax"]


def small_model(backend):
    model = nnx.Sequential([layers.Dense(8, "tanh"), layers.Dense(1)], seed=1, backend=backend)
    model.compile("adam", "mse")
    return model


def test_models_on_two_backends_train_side_by_side_in_two_threads():
    x = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    y = x.sum(axis=1)
    models = {name: small_model(name) for name in ("numpy", "jax")}
    alone = small_model("numpy").fit(x, y, epochs=10, verbose=0).history["loss"]
    threads = [
        threading.Thread(target=m.fit, args=(x, y), kwargs={"epochs": 10, "verbose": 0})
        for m in models.values()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, model in models.items():
        assert model.backend.name == name
        np.testing.assert_allclose(model.history.history["loss"], alone, rtol=1e-4)


def test_update_over_flat_buffers_equals_update_leaf_by_leaf():
    rng = np.random.default_rng(0)
    backend = nnx.as_backend("numpy")
    host = {
        "a": {"w": rng.standard_normal((300, 200)), "b": rng.standard_normal(200)},
        "c": rng.standard_normal(5),
    }
    grads = nnx.tree.map(lambda w: rng.standard_normal(w.shape), host)
    for optimizer in (
        nnx.optimizers.Adam(0.1),
        nnx.optimizers.SGD(0.1),
        nnx.optimizers.RMSprop(momentum=0.5),
    ):
        results = []
        for pack in (backend.pack, lambda values: values):
            params = pack(nnx.tree.map(np.copy, host))
            slots = [pack(slot) for slot in optimizer.init(params, backend)]
            for step in range(3):
                params, slots = optimizer.update(grads, slots, params, step, backend)
            results.append(nnx.tree.leaves(params))
        for a, b in zip(*results, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_numpy_kernel_in_blocks_equals_the_plain_kernel():
    rng = np.random.default_rng(0)
    backend = nnx.as_backend("numpy")
    for shape in ((40_000,), (300, 200), (2, 50_000), (1, 70_000), (5, 7, 999)):
        x, bias = rng.standard_normal(shape), rng.standard_normal(shape[-1:])
        expected = np.tanh(x + bias)
        again = backend.kernel(lambda xp, x, bias: xp.tanh(x + bias), x, bias, overwrite=0)
        assert again is x
        np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(9,), (6, 4), (60, 3), (300, 1), (300, 5), (300, 40), (7, 5, 3)], ids=str)
@pytest.mark.parametrize("special", [None, np.nan, np.inf])
def test_numpy_without_wrappers_reduces_as_numpy_does(dtype, shape, special):
    xp, x = nnx.as_backend("numpy").xp, np.random.default_rng(0).standard_normal(shape).astype(dtype)
    if special is not None:
        x[(2,) * x.ndim if len(shape) != 2 else (2, 0)] = special
    for name in ("sum", "mean", "max"):
        for axis in {None, 0, -1, x.ndim - 1, tuple(range(x.ndim))}:
            for keepdims in (False, True):
                found = getattr(xp, name)(x, axis=axis, keepdims=keepdims)
                expected = getattr(np, name)(x, axis=axis, keepdims=keepdims)
                eps = 0 if name == "max" else 50 * np.finfo(dtype).eps
                np.testing.assert_allclose(found, expected, rtol=eps, atol=eps)
                assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert xp.sum(np.zeros((2, 3, 0), dtype), axis=-1).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_without_wrappers_gives_the_same_bits(dtype):
    xp, x = nnx.as_backend("numpy").xp, np.random.default_rng(0).standard_normal((7, 5, 3)).astype(dtype)
    indices = np.array([3, 0, 3])
    np.testing.assert_array_equal(xp.take(x, indices, axis=0), np.take(x, indices, axis=0))
    np.testing.assert_array_equal(xp.argmax(x, axis=-1), np.argmax(x, axis=-1))
    for other in (x[0, 0], x[0].T, x[1].T[None]):
        for one in (x[0, 1], x[2], x):
            np.testing.assert_array_equal(xp.matmul(one, other), np.matmul(one, other))
    assert xp.reshape(x, (-1, 3)).shape == (35, 3)
    assert xp.astype(x > 0, xp.float32).dtype == np.float32
    assert xp.random is np.random
