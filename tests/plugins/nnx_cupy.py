"""`pytest --cupy`: the tests that touch arrays, on CuPy.

CuPy runs on the GPU or, where there is none, on an emulated device (see tests/emulated_cuda). Tests
of every backend run on CuPy alone, others take CuPy for the current backend, and those that concern
the host or another backend are left out: `pytest` without the option runs them.
"""

import importlib.metadata

import emulated_cuda
import pytest
from paths import TESTS

import nnx

# What touches no device, or one of its own choice, or whose subject is not on it (`test_cupy` has one of each).
HOST_ONLY = (
    "backends/numpy", "compare", "data/test_datasets", "data/test_prefetch", "data/test_sources", "estimators",
    "export", "graph/test_random_networks", "layers/test_defaults", "optimizers/test_schedules", "plot",
    "project/test_architecture", "project/test_command_line", "project/test_train", "saving/test_hostile_files",
    "saving/test_resume", "test_initializers", "test_log",
)  # fmt: skip
LAUNCHES = "launches on the emulated device"


def pytest_addoption(parser):
    parser.addoption(
        "--cupy",
        action="store_true",
        help="run what touches arrays, and only that, on CuPy: on the GPU, or else on an emulated device",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if not config.getoption("--cupy"):
        return
    import nnx  # imports no cupy

    try:
        if not emulated_cuda.has_gpu():
            emulated_cuda.install(check_with_nvrtc=True)  # before anything imports cupy
        nnx.as_backend("cupy")
    except (emulated_cuda.CannotEmulateError, nnx.BackendError) as error:
        raise pytest.UsageError(f"--cupy: {error}") from None


def pytest_report_header(config):
    if not config.getoption("--cupy"):
        return None
    info = nnx.as_backend("cupy").describe()
    header = f"CuPy {info.version} on: {info.device}"
    if emulated_cuda.installed():
        version = importlib.metadata.version("nvidia-cuda-nvrtc")
        header += f"; NVRTC {version} compiles every kernel too, for sm_80 and sm_90"
    return header


def touches_cupy(item) -> bool:
    file = item.path.with_suffix("")
    if isinstance(item, pytest.DoctestItem) or any(file.is_relative_to(TESTS / place) for place in HOST_ONLY):
        return False
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    backend = parameters.get("any_backend") or parameters.get("backend") or "cupy"
    return backend == "cupy" and not item.name.startswith(("test_numpy_", "test_jax_"))


def pytest_collection_modifyitems(config, items):
    if not emulated_cuda.has_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; an emulated one will not do"))
    if config.getoption("--cupy"):
        config.hook.pytest_deselected(items=[item for item in items if not touches_cupy(item)])
        items[:] = [item for item in items if touches_cupy(item)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Note how many kernels and products a test launched on the emulated device."""
    device = emulated_cuda.installed()
    if device is None:
        return (yield)
    before = device.counters.launches + device.counters.products
    try:
        return (yield)
    finally:
        item.user_properties.append((LAUNCHES, device.counters.launches + device.counters.products - before))


def pytest_terminal_summary(terminalreporter, config):
    if not emulated_cuda.installed():
        return
    reports = [
        r for group in terminalreporter.stats.values() for r in group if isinstance(r, pytest.TestReport)
    ]
    launches = [
        value for r in reports if r.when == "call" for name, value in r.user_properties if name == LAUNCHES
    ]
    terminalreporter.write_line(
        f"CuPy on an emulated device (no GPU): {sum(map(bool, launches))} of {len(launches)} tests launched "
        f"something on it, {sum(launches)} times in all"
    )
