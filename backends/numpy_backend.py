"""NumPy on the CPU: needs nothing else, and is the reference for all others."""

import ctypes
import functools
import os
import sys

import numpy as np

from nnx.backend import BackendInfo, host_memory

from . import numpy_namespace
from .flat import FlatBackend
from .numpy_fusion import BLOCK, Fusion


def keep_memory() -> bool:
    """Tell the C library to keep freed memory for the next array; return whether it listened.

    By default glibc hands large arrays back to the system, and each step faults their pages in
    again: the training step of a 784-512-512-10 network on 8192 samples took 231 ms so, 199 with
    its memory kept (the matrix products alone 187). The environment variable NNX_KEEP_MEMORY=0
    turns this off. Elsewhere than on glibc nothing is done.
    """
    if os.environ.get("NNX_KEEP_MEMORY") == "0" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, mmap_threshold, longest = -1, -3, 32 << 20  # names and limit of malloc.h
    return mallopt is not None and bool(
        mallopt(mmap_threshold, longest) and mallopt(trim_threshold, 2**31 - 1)
    )


class NumpyBackend(FlatBackend):
    """Adapter for NumPy 2, whose main namespace follows the array-API standard itself."""

    name = "numpy"
    xp = numpy_namespace.make()

    def __init__(self):
        keep_memory()
        self.fusion = Fusion()

    def asarray(self, value, dtype=None):
        return np.asarray(value, dtype=dtype)

    def to_numpy(self, array):
        return np.array(array)

    def copy(self, array):
        return np.array(array)

    def kernel(self, function, *arrays, overwrite=None):
        if max(getattr(a, "size", 1) for a in arrays) > BLOCK:
            results = self.fusion.run(function, arrays, (overwrite,))
            if results is not None:
                return results[0]
        return function(self.xp, *arrays)

    def update_in_place(self, kernel, buffers, scalars):
        names = tuple(scalars)
        arguments = (*buffers, *scalars.values())
        param, _, *slots = range(len(buffers))
        if buffers[0].size > BLOCK:
            rule = self._positional(kernel, names)
            if self.fusion.run(rule, arguments, (param, *slots)) is not None:
                return
        results = kernel(self.xp, *buffers, **scalars)
        for number, result in zip((param, *slots), results, strict=True):
            buffers[number][...] = result

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def _positional(kernel, names):
        """Return `kernel` with its scalars as positional arguments."""

        def call(xp, *arguments):
            split = len(arguments) - len(names)
            return kernel(xp, *arguments[:split], **dict(zip(names, arguments[split:], strict=True)))

        return call

    def describe(self):
        return BackendInfo("numpy", True, np.__version__, f"cpu ({os.cpu_count()} cores)", host_memory())

    def scope(self, dtype):
        # As on the other backends, overflow gives infinity, which the loss then shows.
        return np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")
