"""CuPy on a machine without a GPU: the real wheel on a device that g++ and NumPy emulate.

    import emulated_cuda
    device = emulated_cuda.install()  # before anything imports cupy
    import cupy

README.md says what is faithful, what is not, and how it works.
"""

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys

from .build_cache import NATIVE, BuildCache, CannotEmulateError
from .device import Counters, Device, HostSyncError, NotEmulatedError

__all__ = [
    "CannotEmulateError",
    "Counters",
    "Device",
    "HostSyncError",
    "NotEmulatedError",
    "has_gpu",
    "install",
    "installed",
]

# It replaces private parts of CuPy, so it goes with one version; see README.md to move to another.
CUPY = "cupy-cuda13x"
CUPY_VERSION = "14.2.0"
_CUBLAS_NOT_SUPPORTED = 15
_device = None


def install(check_with_nvrtc: bool = False, memory_limit: int = 4 << 30) -> Device:
    """Emulate a CUDA device for this process, and import CuPy.

    To be called before anything else imports CuPy; further calls change nothing.

    Parameters
    ----------
    check_with_nvrtc : bool
        Also compile every kernel with NVIDIA's own compiler, which needs no GPU, and raise its
        errors.
    memory_limit : int
        Bytes of device memory.

    Returns
    -------
    Device
        Its counters, launches, and the guard against host syncs.

    Raises
    ------
    CannotEmulateError
        In one line that names the remedy: on another system than Linux, with another CuPy, or
        without g++.
    """
    global _device
    if _device is None:
        _check_environment(check_with_nvrtc)
        cache, device = BuildCache(CUPY_VERSION), Device()
        _replace_cuda(device, cache, memory_limit)
        _import_cupy()
        _patch_cupy(device, cache, check_with_nvrtc)
        _device = device
    return _device


def installed() -> Device | None:
    """Return the emulated device of this process, or None if there is none."""
    return _device


def has_gpu() -> bool:
    """Ask the CUDA driver whether there is a device, without importing CuPy."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


def _check_environment(check_with_nvrtc):
    if sys.platform != "linux":
        raise CannotEmulateError(f"emulated_cuda runs on Linux only, not on {sys.platform}: use a container")
    if {"cupy", "cupy_backends"} & set(sys.modules):
        raise CannotEmulateError("emulated_cuda.install() must be called before cupy is imported")
    try:
        found = importlib.metadata.version(CUPY)
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found != CUPY_VERSION:
        raise CannotEmulateError(
            f"emulated_cuda needs {CUPY} {CUPY_VERSION}, found {found}: pip install '{CUPY}=={CUPY_VERSION}'"
        )
    if check_with_nvrtc:
        _require_nvrtc()


def _require_nvrtc():
    from cuda import pathfinder

    try:
        pathfinder.load_nvidia_dynamic_lib("nvrtc")
        found = pathfinder.find_nvidia_header_directory("cudart") is not None
    except pathfinder.DynamicLibNotFoundError:
        found = False
    if not found:
        raise CannotEmulateError(
            "checking kernels with NVRTC needs: pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"
        )


def _replace_cuda(device, cache, memory_limit):
    """Put the fakes where CuPy looks for CUDA, before it looks."""
    # Global, because the compiled kernels refer to its symbols.
    scheduler = (NATIVE / "thread_scheduler.cpp").read_text()
    ctypes.CDLL(str(cache.build("thread_scheduler.so", scheduler, "-std=c++17")), ctypes.RTLD_GLOBAL)
    from cupy_backends.cuda.api import driver, runtime

    from . import entry_points, fake_cuda, fake_libraries

    entry_points.replace_functions(
        [(runtime, fake_cuda.FakeRuntime(device, memory_limit)), (driver, fake_cuda.FakeDriver(device))],
        cache,
    )
    # Only now, as importing these copies entries of the tables just changed.
    cublas = _import_without_library("cupy_backends.cuda.libs.cublas", "libcublas.so.13", cache)
    curand = _import_without_library("cupy_backends.cuda.libs.curand", "libcurand.so.10", cache)
    entry_points.replace_functions(
        [(cublas, fake_libraries.FakeCublas(device)), (curand, fake_libraries.FakeCurand(device))], cache
    )
    _make_unavailable("cupy_backends.cuda.libs.cusolver", "cupy_backends.cuda.libs.cusparse")


def _import_without_library(module_name, soname, cache):
    """Import CuPy's wrapper of a CUDA library with a shell of that library.

    The shell has the symbols the dynamic linker insists on; none is called.
    """
    wrapper = importlib.util.find_spec(module_name).origin
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", wrapper], check=True, capture_output=True, text=True
    )
    names = [
        line.split()[-1].partition("@")[0] for line in listing.stdout.splitlines() if f"@{soname}" in line
    ]
    source = "".join(f"int {name}(void) {{ return {_CUBLAS_NOT_SUPPORTED}; }}\n" for name in names)
    shell = cache.build(f"{soname}.so", source, f"-Wl,-soname,{soname}", "-Wl,--default-symver", language="c")
    ctypes.CDLL(str(shell), ctypes.RTLD_GLOBAL)
    return importlib.import_module(module_name)


def _make_unavailable(*module_names):
    from .fake_libraries import UnavailableModule

    for module_name in module_names:
        parent, _, name = module_name.rpartition(".")
        sys.modules[module_name] = UnavailableModule(module_name)
        setattr(sys.modules[parent], name, sys.modules[module_name])


def _import_cupy():
    os.environ["CUPY_ACCELERATORS"] = ""  # CUB is precompiled GPU code
    os.environ["CUPY_NVRTC_USE_PCH"] = "1"  # precompiled headers: a third less time for the check
    from cuda import pathfinder

    find = pathfinder.find_nvidia_header_directory
    # CuPy insists on a folder of CUDA headers; for g++ ours will do.
    pathfinder.find_nvidia_header_directory = lambda name: find(name) or str(NATIVE)
    importlib.import_module("cupy")


def _patch_cupy(device, cache, check_with_nvrtc):
    """Replace CuPy's kernel compiler and what it ships as compiled GPU code."""
    import cupy

    from . import entry_points, fake_libraries, kernel_compiler

    kernel_compiler.KernelCompiler(device, cache, check_with_nvrtc).install()
    entry_points.replace_python_functions(
        [(cupy.cuda.thrust, fake_libraries.FakeThrust(device)), (cupy.cuda.cub, fake_libraries.FakeCub())]
    )
    _make_unavailable("cupy.cuda.cufft", "cupyx.cusolver")
    for name in ("default_rng", "Generator", "BitGenerator", "XORWOW", "MRG32k3a", "Philox4x3210"):
        advice = "it is precompiled GPU code; use cupy.random.RandomState or the functions of cupy.random"
        setattr(cupy.random, name, fake_libraries.unavailable_class(f"cupy.random.{name}", advice))
