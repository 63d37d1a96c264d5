"""NumPy on the CPU: needs nothing else, and is the reference for all others."""

import ctypes
import os
import sys

import numpy as np

from nnx.backend import BackendInfo, host_memory

from .flat import FlatBackend

# Elements a block: a few arrays of this many float32 stay in a core's L2 cache. Measured for
# Adam over 670k parameters: 2.4 ms in blocks, 3 to 20 ms as one expression.
BLOCK = 16_384


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
    xp = np

    def __init__(self):
        keep_memory()

    def asarray(self, value, dtype=None):
        return np.asarray(value, dtype=dtype)

    def to_numpy(self, array):
        return np.array(array)

    def copy(self, array):
        return np.array(array)

    def kernel(self, function, *arrays, overwrite=None):
        if overwrite is None or (out := arrays[overwrite]).size <= BLOCK or not out.flags.c_contiguous:
            return function(np, *arrays)
        rows = max(1, BLOCK * len(out) // out.size)
        split = [getattr(a, "ndim", 0) == out.ndim and len(a) == len(out) for a in arrays]
        for start in range(0, len(out), rows):
            block = slice(start, start + rows)
            parts = [a[block] if cut else a for a, cut in zip(arrays, split, strict=True)]
            out[block] = function(np, *parts)
        return out

    def update_in_place(self, kernel, buffers, scalars):
        param, _, *slots = buffers
        for start in range(0, param.size, BLOCK):
            block = slice(start, start + BLOCK)
            results = kernel(np, *(buffer[block] for buffer in buffers), **scalars)
            for buffer, result in zip((param, *slots), results, strict=True):
                buffer[block] = result

    def describe(self):
        return BackendInfo("numpy", True, np.__version__, f"cpu ({os.cpu_count()} cores)", host_memory())

    def scope(self, dtype):
        # As on the other backends, overflow gives infinity, which the loss then shows.
        return np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")
