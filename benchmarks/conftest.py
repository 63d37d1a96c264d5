"""Options and fixtures of the benchmarks: backends, precision, and what the saved JSON says."""

import importlib.metadata
import os

import pytest

import nnx

LIBRARIES = (
    "nnx-engine",
    "numpy",
    "numba",
    "jax",
    "jaxlib",
    "cupy",
    "scikit-learn",
    "torch",
    "keras",
    "optax",
)
# Each peer has habits of its own; nnx's warnings stay errors.
FOREIGN_WARNINGS = (
    "ignore:Stochastic Optimizer. Maximum iterations:UserWarning",
    "ignore::DeprecationWarning:keras",
    "ignore::DeprecationWarning:torch",
    "ignore::DeprecationWarning:optax",
)


def pytest_addoption(parser):
    parser.addoption(
        "--dtype", default="float32", choices=nnx.models.model.DTYPES, help="precision of the steps"
    )


def usable_backends() -> list[nnx.Backend]:
    """Return the backend that NNX_BACKEND names, else all that can run here."""
    if os.environ.get("NNX_BACKEND"):
        return [nnx.get_backend()]
    usable = nnx.available_backends()
    return [nnx.as_backend(name) for name in ("numpy", "jax", "cupy") if usable[name].usable]


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", usable_backends(), ids=lambda backend: backend.name)


def pytest_collection_modifyitems(items):
    for item in items:
        for text in FOREIGN_WARNINGS:
            item.add_marker(pytest.mark.filterwarnings(text))


@pytest.fixture
def dtype(request):
    return request.config.getoption("--dtype")


@pytest.fixture(scope="session")
def backends():
    """All backends to measure."""
    return usable_backends()


def pytest_benchmark_update_machine_info(config, machine_info):
    """Say what ran: versions of the libraries and the devices of the backends."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    machine_info["libraries"] = versions
    machine_info["devices"] = {backend.name: backend.describe().device for backend in usable_backends()}
    machine_info["memory"] = nnx.backend.host_memory()
    machine_info["usable_cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    machine_info.pop("node", None)
