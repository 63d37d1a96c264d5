"""NumPy on the CPU: needs nothing else, and is the reference for all others."""

import ctypes
import functools
import os
import sys

import numpy as np
from nnx.backends.numpy import namespace
from nnx.backends.numpy.fusion import BLOCK, Fusion, largest
from nnx.backends.numpy.writer import NumpyWriter, is_reduction
from nnx.backends.shared import replay
from nnx.backends.shared.eager import EagerBackend

from nnx import tree
from nnx.backend_loading import cpu_info
from nnx.graph.tracing import leaves, untraced


def _read_only(array):
    view = array.view()
    view.flags.writeable = False
    return view


def keep_memory() -> bool:
    """Let the C library keep freed memory for the next array; return whether it does.

    By default glibc returns the memory of large arrays to the system, and each step causes page faults for
    it again: the training step of a 784-512-512-10 network on 8192 samples takes 231 ms, and 199 with the
    memory kept (its matrix products 187). The environment variable NNX_KEEP_MEMORY=0 turns this off. It
    does nothing without glibc.
    """
    if os.environ.get("NNX_KEEP_MEMORY") == "0" or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, mmap_threshold, longest = -1, -3, 32 << 20  # names and limit of malloc.h
    return mallopt is not None and bool(
        mallopt(mmap_threshold, longest) and mallopt(trim_threshold, 2**31 - 1)
    )


class NumpyBackend(EagerBackend):
    """Adapter for NumPy 2, whose main namespace follows the array-API standard itself."""

    name = "numpy"
    xp = namespace.make()
    # float16 is computed in software, slowly: it is there to examine what a GPU does.
    dtypes = ("float16", "float32", "float64")
    writer = NumpyWriter
    empty, concatenate = staticmethod(np.empty), staticmethod(np.concatenate)
    reshapes = ("reshape", np.reshape)
    made_from_shape = (np.ones_like, np.zeros_like, np.full_like)

    # Causal self-attention of 32 x 4 x 128 steps takes 4.1 ms in tiles of 2 MiB, 12.6 as a whole.
    tile_bytes = EagerBackend.tile_bytes | {"scores": 2 << 20}

    def __init__(self):
        keep_memory()
        self.fusion = Fusion(empty=self.empty)
        self.replays = replay.is_on()

    def asarray(self, value, dtype=None):
        return np.asarray(value, dtype=dtype)

    def to_numpy(self, array):
        return np.array(array)

    def put_samples(self, samples, rows=None):
        """Return read-only arrays: they may be the user's own, and a custom layer may write in place."""
        return super().put_samples(tree.map(_read_only, samples))

    def is_array(self, value):
        return isinstance(value, np.ndarray)

    def share_memory(self, a, b):
        return np.may_share_memory(a, b)

    def run_without_writing(self, function, given, named):
        arrays = [a for a in leaves([given, named]) if isinstance(a, np.ndarray) and a.flags.writeable]
        for array in arrays:
            array.flags.writeable = False
        try:
            value = function(*given, **named)
        finally:
            for array in sorted(arrays, key=lambda a: not a.flags.owndata):  # a view after its base
                array.flags.writeable = True
        # A view of a read-only array would stay read-only, but later calls may write into it.
        is_view = any(isinstance(a, np.ndarray) and not a.flags.writeable for a in leaves(value))
        return function(*given, **named) if is_view else value

    def can_write(self, function):
        return function is np.dot or isinstance(function, np.ufunc) or is_reduction(function)

    def zero(self, shape, dtype):
        return np.zeros(shape, dtype)[()]

    def plan(self, function, arguments, into):
        arguments = untraced(arguments)
        # Larger arrays are faster in blocks.
        is_small = max(getattr(a, "size", 1) for a in arguments) <= BLOCK
        return self.fusion.find(function, arguments, into) if is_small else None

    def run_kernel(self, function, overwrite, *arrays):
        if max(getattr(a, "size", 1) for a in arrays) > BLOCK:
            results = self.fusion.run(function, arrays, (overwrite,))
            if results is not None:
                return results[0]
        return function(self.xp, *arrays)

    def kernel_into(self, function, arguments, count):
        plan = self.fusion.find(function, arguments, (None,) * count)
        if plan is None:
            return super().kernel_into(function, arguments, count)
        main = largest(arguments)
        length = len(main)
        step = max(1, min(length, BLOCK * length // max(main.size, 1)))
        return (
            main.shape,
            plan.result_dtypes,
            functools.partial(plan.run, length=length, step=step, empty=self.empty),
        )

    def run_scatter_add(self, indices, values, length):
        # Element by element takes 0.17 ms for 3200 rows of 32, row by row 0.75, and sorting 0.52.
        width = values.shape[1]
        total = np.zeros(length * width, values.dtype)
        np.add.at(total, (indices[:, None] * width + np.arange(width)).ravel(), values.ravel())
        return total.reshape(length, width)

    def run_update(self, rule, into, *arguments):
        if arguments[0].size > BLOCK and self.fusion.run(rule, arguments, into) is not None:
            return
        for i, result in zip(into, rule(self.xp, *arguments), strict=True):
            arguments[i][...] = result

    def zero_or_nan(self, values):
        finite = all(np.isfinite(array).all() for array in tree.buffers(values))
        return np.float32(0.0 if finite else np.nan)

    def communicator(self, rank, size):
        from nnx.backends.shared.sockets import SocketCommunicator  # only needed for several processes

        return SocketCommunicator(rank, size)

    def describe(self):
        return cpu_info("numpy", np.__version__)

    def scope(self, dtype):
        # As on other backends, overflow gives infinity without a warning; the loss shows it.
        return np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore")
