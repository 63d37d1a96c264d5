"""CuPy: arrays on a CUDA GPU, elementwise kernels fused into one launch each."""

import functools

import numpy as np

from nnx import tree
from nnx.backend import BackendError, BackendInfo

from .flat import FlatBackend

REMEDY = "pip install 'nnx-engine[cuda12]' (or cuda13, to match the driver that nvidia-smi shows)"


class FusedNamespace:
    """CuPy as a kernel sees it while `cupy.fuse` traces it: `cupy.astype` refuses traced arrays."""

    def __init__(self, cupy):
        self._cupy = cupy

    def __getattr__(self, name):
        return getattr(self._cupy, name)

    def astype(self, x, dtype):
        return x.astype(dtype)


class CupyBackend(FlatBackend):
    """Adapter for CuPy, through array-api-compat, which fills its gaps in the standard."""

    name = "cupy"
    is_accelerated = True

    def __init__(self):
        try:
            import array_api_compat.cupy as xp
            import cupy
        except ImportError as error:
            raise BackendError(
                f"the cupy backend needs CuPy and array-api-compat, and cannot import them ({error}). "
                f"Install them with: {REMEDY}"
            ) from None
        try:
            count = cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise BackendError(
                f"CuPy is installed, but no CUDA device: {error}. Check the driver with nvidia-smi, "
                f"or run with NNX_BACKEND=numpy"
            ) from None
        if count < 1:
            raise BackendError("CuPy is installed, but no CUDA device: run with NNX_BACKEND=numpy")
        self.cupy, self.xp = cupy, xp

    def asarray(self, value, dtype=None):
        return self.cupy.asarray(value, dtype=dtype)

    def to_numpy(self, array):
        return self.cupy.asnumpy(array)

    def copy(self, array):
        return array.copy()

    def zeros(self, shape, dtype):
        return self.cupy.zeros(shape, dtype)

    def kernel(self, function, *arrays, overwrite=None):
        scalar = self._scalar_type(arrays)
        return self._fused(function)(*map(scalar, arrays))

    def update_in_place(self, kernel, buffers, scalars):
        scalar = self._scalar_type(buffers)
        values = self._fused(kernel, tuple(scalars))(*buffers, *map(scalar, scalars.values()))
        for buffer, value in zip((buffers[0], *buffers[2:]), values, strict=True):
            buffer[...] = value

    @functools.cache  # noqa: B019 - one backend a process
    def _fused(self, function, names=()):
        xp = FusedNamespace(self.cupy)

        def call(*arguments):
            split = len(arguments) - len(names)
            return function(xp, *arguments[:split], **dict(zip(names, arguments[split:], strict=True)))

        return self.cupy.fuse(call)

    @staticmethod
    def _scalar_type(arrays):
        """Return a function that gives a Python number the precision of the arrays.

        A bare one would widen a fused kernel to 64 bits.
        """
        real = next((a.dtype.type for a in arrays if hasattr(a, "dtype") and a.dtype.kind == "f"), np.float32)

        def scalar(value):
            if isinstance(value, int):
                return np.uint32(value)
            return real(value) if isinstance(value, float) else value

        return scalar

    def read(self, values):
        """Copy all arrays while the host goes on, into memory it may not move, and wait once."""
        import cupyx

        def start(array):
            out = cupyx.empty_pinned(array.shape, array.dtype)
            return array.get(out=out, blocking=False)

        copies = [tree.map(start, value) for value in values]
        self.cupy.cuda.get_current_stream().synchronize()
        return copies

    def synchronize(self, value):
        self.cupy.cuda.get_current_stream().synchronize()

    def describe(self):
        runtime = self.cupy.cuda.runtime
        name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        free, total = runtime.memGetInfo()
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        return BackendInfo("cupy", True, self.cupy.__version__, name, memory)
