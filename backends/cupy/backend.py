"""CuPy: arrays on a CUDA GPU, elementwise kernels fused into one launch each."""

import contextlib
import functools
import importlib
import math
import operator
from typing import Any

import numpy as np
from nnx.backends.cupy.kernels import TEMPLATES, CudaKernel
from nnx.backends.cupy.windows import WindowKernels, geometry
from nnx.backends.cupy.writer import CupyWriter
from nnx.backends.shared import replay
from nnx.backends.shared.eager import EagerBackend
from nnx.backends.shared.prefetch import prefetch

from nnx import tree
from nnx.backend import BackendError, BackendInfo
from nnx.distributed import ranks
from nnx.graph.fingerprint import kernel_key
from nnx.graph.recording import NotRecordableError, record
from nnx.graph.tracing import TracingNamespace, untraced
from nnx.lru_cache import Recent

# Kernels cached: a kernel that is created at each call must not fill the memory.
MOST_KERNELS = 1024
REMEDY = "pip install 'nnx-engine[cuda12]' (or cuda13, to match the driver that nvidia-smi shows)"


def in_one_line(error: Exception) -> str:
    """Return the line of a message of CuPy that names the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" =")]
    if "Original error:" in lines[:-1]:
        return lines[lines.index("Original error:") + 1]
    return lines[0] if lines else type(error).__name__


class CupyBackend(EagerBackend):
    """Adapter for CuPy, through array-api-compat, which fills its gaps in the standard."""

    name = "cupy"
    is_accelerated = True
    dtypes = ("float16", "float32", "float64")
    writer = CupyWriter

    def __init__(self):
        try:
            import array_api_compat.cupy as xp

            # Not `import cupy`: type checkers take it for this folder where CuPy is not installed.
            cupy: Any = importlib.import_module("cupy")
        except ImportError as error:
            raise BackendError(
                f"the cupy backend needs CuPy and array-api-compat, and cannot import them ({in_one_line(error)}). "
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
        local_rank = ranks.local_rank()
        if local_rank >= count:
            raise BackendError(
                f"process {local_rank} of those launched needs a GPU of its own, and there are {count}: launch with "
                f"--gpus {count}"
            )
        if local_rank > 0:
            cupy.cuda.Device(local_rank).use()
        try:  # CuPy loads the libraries of cuBLAS and of kernels at their first use
            importlib.import_module("cupy_backends.cuda.libs.cublas")
            cupy.arange(2).sum()
        except (ImportError, RuntimeError, OSError) as error:
            raise BackendError(
                f"CuPy finds a CUDA device, but not what it needs to run on it ({in_one_line(error)}). "
                f"Install the CUDA libraries with: {REMEDY}"
            ) from None
        self.cupy, self.xp = cupy, TracingNamespace(xp)
        with contextlib.suppress(ImportError):
            import ml_dtypes

            vars(self.xp)["bfloat16"] = np.dtype(ml_dtypes.bfloat16)
            self.dtypes = ("float16", "bfloat16", "float32", "float64")
        self.window_kernels = WindowKernels(cupy)
        self.replays = replay.is_on()
        self._kernels = Recent(MOST_KERNELS)
        self.concatenate = cupy.concatenate
        self.reshapes = ("reshape", xp.reshape)
        self.made_from_shape = (xp.ones_like, xp.zeros_like, xp.full_like)
        ufuncs = {f: getattr(cupy, f.__name__, None) for f in TEMPLATES if isinstance(f, np.ufunc)}
        # CuPy's own functions take `out`.
        self._native = ufuncs | {
            operator.pow: cupy.power,
            np.matmul: cupy.matmul,
            xp.matmul: cupy.matmul,
            xp.sum: cupy.sum,
            xp.sign: cupy.sign,
        }
        self._operations = {mine: ufunc for ufunc, mine in ufuncs.items()}
        self._operations |= {cupy.where: "where", xp.astype: "astype", "astype": "astype"}

    def asarray(self, value, dtype=None):
        return self.cupy.asarray(value, dtype=dtype)

    def to_numpy(self, array):
        return self.cupy.asnumpy(array)

    def empty(self, shape, dtype):
        return self.cupy.empty(shape, dtype)

    def arange(self, count, dtype):
        return self.cupy.arange(count, dtype=dtype)

    def free_memory(self):
        pool = self.cupy.get_default_memory_pool()
        free = self.cupy.cuda.runtime.memGetInfo()[0] + pool.free_bytes()
        limit = pool.get_limit()
        return min(free, limit - pool.used_bytes()) if limit else free

    @functools.cached_property
    def copies(self):
        """The stream of copies that run beside the computation. Its memory pool is separate."""
        return self.cupy.cuda.Stream(non_blocking=True)

    def transfer(self, batches):
        compute, copies = self.cupy.cuda.get_current_stream(), self.copies

        def begin(batch):
            # A new batch may reuse the memory of an old one that queued steps still read.
            copies.wait_event(compute.record())
            with copies:
                # CuPy copies through pinned memory, which it keeps until the copy is done.
                placed = tree.map(self.asarray, batch)
            return placed, copies.record()

        for placed, copied in prefetch(batches, begin):
            compute.wait_event(copied)
            yield placed
            if not copied.done:  # so that the host does not queue batches without bound
                copied.synchronize()

    def is_array(self, value):
        return isinstance(value, self.cupy.ndarray)

    def share_memory(self, a, b):
        return a.data.mem is b.data.mem

    def native(self, function):
        return self._native.get(function, function)

    def operation(self, function) -> "np.ufunc | str | None":
        """Return the NumPy ufunc equivalent to an elementwise function of CuPy, or the name of another function."""
        return self._operations.get(function)

    def can_write(self, function):
        return function in (self.cupy.matmul, self.cupy.sum)

    def zero(self, shape, dtype):
        return self.cupy.zeros(shape, dtype)

    tile_bytes = EagerBackend.tile_bytes | {"patches": 256 << 20}  # few launches matter more than caches

    def patches(self, x, windows):
        if windows.is_whole:
            return x
        shape = (x.shape[0], *windows.counts, math.prod(windows.size) * x.shape[-1])
        return self.traced(self.window_kernels.patches, x, shape, geometry(windows))

    def from_patches(self, gradients, windows):
        if windows.is_whole:
            return gradients
        shape = (gradients.shape[0], *windows.spatial, gradients.shape[-1] // math.prod(windows.size))
        return self.traced(self.window_kernels.from_patches, gradients, shape, geometry(windows))

    # Kernels

    def plan(self, function, arguments, into):
        function_key = kernel_key(function)
        if function_key is None:
            return None
        kinds = tuple(a.dtype if hasattr(a, "dtype") else type(a) for a in untraced(arguments))
        # False: it cannot be recorded. `None` would be computed again.
        kernel = self._kernels.get(
            (function_key, kinds, into), lambda: self.cuda_kernel(function, kinds, into) or False
        )
        return kernel or None

    def cuda_kernel(self, function, kinds, into) -> CudaKernel | None:
        """Return an elementwise function as one launch, or None if it cannot be recorded."""
        try:
            program = record(function, kinds, [isinstance(kind, np.dtype) for kind in kinds])
            return CudaKernel(self.cupy, program, kinds, into, getattr(function, "__name__", "kernel"))
        except (
            NotRecordableError,
            TypeError,
            AttributeError,
        ):  # the kernel itself raises a better error, if it is wrong
            return None

    def run_kernel(self, function, overwrite, *arrays):
        kernel = self.plan(function, arrays, (None,))
        return function(self.xp, *arrays) if kernel is None else kernel(*arrays)

    def kernel_into(self, function, arguments, count):
        into = tuple(range(len(arguments), len(arguments) + count))
        kernel = self.plan(function, arguments, into)
        if kernel is None:
            return super().kernel_into(function, arguments, count)
        shape = max((a.shape for a in arguments if self.is_array(a)), key=math.prod)
        return shape, kernel.result_dtypes, lambda given, results: kernel(*given, *results)

    def run_scatter_add(self, indices, values, length):
        half = values.dtype.itemsize == 2  # not all GPUs add it atomically
        total = self.cupy.zeros((length, values.shape[1]), "float32" if half else values.dtype)
        self.cupy.add.at(total, indices, values.astype(total.dtype, copy=False))
        return total.astype(values.dtype, copy=False)

    def run_update(self, rule, into, *arguments):
        kernel = self.plan(rule, arguments, into)
        if kernel is not None:
            kernel(*arguments)
            return
        for i, result in zip(into, rule(self.xp, *arguments), strict=True):
            arguments[i][...] = result

    def read(self, values):
        """Copy all arrays asynchronously into pinned memory, and wait once."""
        import cupyx

        def start(array):
            out = cupyx.empty_pinned(array.shape, array.dtype)
            return array.get(out=out, blocking=False)

        copies = [tree.map(start, value) for value in values]
        self.cupy.cuda.get_current_stream().synchronize()
        return copies

    def synchronize(self, value):
        self.cupy.cuda.get_current_stream().synchronize()

    def communicator(self, rank, size):
        from nnx.backends.cupy.nccl import NcclCommunicator  # only needed for several processes

        return NcclCommunicator(rank, size)

    def describe(self):
        runtime = self.cupy.cuda.runtime
        name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
        free, total = runtime.memGetInfo()
        memory = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        return BackendInfo("cupy", True, self.cupy.__version__, name, memory)
