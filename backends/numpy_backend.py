"""NumPy on the CPU: needs nothing else, and is the reference for all others."""

import ctypes
import functools
import os
import sys

import numpy as np

from nnx.backend import BackendInfo, host_memory

from . import numpy_namespace, numpy_replay
from .flat import FlatBackend
from .numpy_fusion import BLOCK, Fusion
from .numpy_trace import Traced, trace_of, untraced


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
        self.replays = numpy_replay.is_on()

    def asarray(self, value, dtype=None):
        return np.asarray(value, dtype=dtype)

    def to_numpy(self, array):
        return np.array(array)

    def copy(self, array):
        return np.array(array)

    def repeat(self, step):
        plain = super().repeat(step)
        return numpy_replay.Replay(step, plain) if self.replays else plain

    def kernel(self, function, *arrays, overwrite=None):
        trace = trace_of(arrays)
        if trace is None:
            return self._kernel(function, overwrite, *arrays)
        if overwrite is not None and type(arrays[overwrite]) is not Traced:
            overwrite = None  # a constant, which the next step needs again
        writes = () if overwrite is None else (arrays[overwrite],)
        plan = self._small_plan(function, arrays, (overwrite,))
        if plan is None:
            return trace.call(self._kernel, (function, overwrite, *arrays), writes=writes)
        run = functools.partial(self._kernel, function, overwrite)
        return trace.call(function, arrays, writes=writes, plan=plan, run=run)

    def _kernel(self, function, overwrite, *arrays):
        if max(getattr(a, "size", 1) for a in arrays) > BLOCK:
            results = self.fusion.run(function, arrays, (overwrite,))
            if results is not None:
                return results[0]
        return function(self.xp, *arrays)

    def update_in_place(self, kernel, buffers, scalars):
        rule, arguments = self._positional(kernel, tuple(scalars)), (*buffers, *scalars.values())
        into = (0, *range(2, len(buffers)))
        trace = trace_of(arguments)
        if trace is None:
            self._update(rule, into, *arguments)
            return
        writes = tuple(arguments[i] for i in into)
        plan = self._small_plan(rule, arguments, into)
        if plan is None:
            trace.call(self._update, (rule, into, *arguments), writes=writes)
        else:
            trace.call(
                rule, arguments, writes=writes, plan=plan, run=functools.partial(self._update, rule, into)
            )

    def _update(self, rule, into, *arguments) -> None:
        if arguments[0].size > BLOCK and self.fusion.run(rule, arguments, into) is not None:
            return
        for i, result in zip(into, rule(self.xp, *arguments), strict=True):
            arguments[i][...] = result

    def _small_plan(self, function, arguments, into):
        """Return the plan of a traced kernel whose operations may run on whole arrays, or None."""
        arguments = untraced(arguments)
        is_small = max(getattr(a, "size", 1) for a in arguments) <= BLOCK
        return self.fusion.find(function, arguments, into) if is_small else None

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
