"""Fixtures that run a test on every backend present; one that is missing is a counted skip.

With `--cupy` (see plugins/nnx_cupy.py) that is CuPy alone.
"""

import gc
import os
import signal
import sys

import numpy as np
import pytest
from every_backend import BACKENDS, full_of_nan, usable_or_skip
from hypothesis import settings
from nnx.backends.numpy import backend as numpy_backend
from paths import ROOT

import nnx

pytest_plugins = ["nnx_cupy"]
collect_ignore_glob = ["emulated_cuda/[!t]*.py"]  # no doctests: to import it changes CuPy

# A shell starts jobs in the background with Ctrl-C ignored; some tests send it to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples every time: a red run can be repeated.
settings.register_profile("few", deadline=None, derandomize=True, max_examples=3)
settings.register_profile("many", settings.get_profile("few"), max_examples=8)
settings.load_profile("few")

# Most of the time of a run, XLA compiles small programs: three times as fast if it hardly optimizes them. Set
# XLA_FLAGS to nothing for the programs that users get, as `make test-slow` and `make test-lowest` do.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1",
)

# What XLA compiles is kept for later runs, and for the programs that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(params=BACKENDS)
def any_backend(request):
    """Each backend in turn, in its natural precision."""
    found = usable_or_skip(request.param)
    with nnx.use_backend(found):
        yield found


@pytest.fixture
def backend(any_backend):
    """Each backend in turn, ready to compute in float64."""
    with any_backend.scope("float64"):
        yield any_backend


@pytest.fixture(scope="session", autouse=True)
def _one_thread_a_worker():
    """Each worker of pytest-xdist has one core: more threads of BLAS would wait for each other, and spin."""
    threadpoolctl = sys.modules.get("threadpoolctl")  # which scikit-learn brings
    if threadpoolctl is None or "PYTEST_XDIST_WORKER" not in os.environ:
        yield
        return
    with threadpoolctl.threadpool_limits(1):
        yield


@pytest.fixture(scope="session", autouse=True)
def _unwritten_buffers():
    """What a step on NumPy reads before it wrote it is no number: buffers start full of nan."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numpy_backend.NumpyBackend, "empty", staticmethod(full_of_nan(np.empty)))
        patch.setattr(nnx.as_backend("numpy"), "fusion", numpy_backend.Fusion(empty=full_of_nan(np.empty)))
        yield


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_freed():
    """JAX keeps all that it compiled and traced, gigabytes in a run of all tests."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def _clean_choice(monkeypatch, pytestconfig):
    """No test inherits a choice of backend from the environment or from another test."""
    if "NNX_BACKEND" in os.environ:
        monkeypatch.delenv("NNX_BACKEND")
    if pytestconfig.getoption("--cupy"):
        only = {"cupy": nnx.as_backend("cupy").describe()}
        monkeypatch.setattr(nnx.testing, "available_backends", lambda: only)
    with nnx.use_backend("cupy" if pytestconfig.getoption("--cupy") else "numpy"):
        yield
