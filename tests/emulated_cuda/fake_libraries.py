"""cuBLAS, cuRAND and Thrust on NumPy; the other CUDA libraries refuse."""

import contextlib
import ctypes
import functools
import types

import numpy

from .device import NotEmulatedError

CUDA_DTYPES = {
    0: numpy.dtype("f4"),
    1: numpy.dtype("f8"),
    2: numpy.dtype("f2"),
    4: numpy.dtype("c8"),
    5: numpy.dtype("c16"),
}
with contextlib.suppress(ImportError):  # without it CuPy has no bfloat16 either
    import ml_dtypes

    CUDA_DTYPES[14] = numpy.dtype(ml_dtypes.bfloat16)
HALF_OR_INTEGER_COMPUTE_TYPES = {64, 65, 72, 73}


def memory_view(address, dtype, shape, strides=None):
    """A NumPy array over device memory; strides count elements."""
    dtype = numpy.dtype(dtype)
    if strides is None:
        strides = [int(numpy.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    last = sum((length - 1) * stride for length, stride in zip(shape, strides, strict=False))
    buffer = (ctypes.c_char * ((last + 1) * dtype.itemsize)).from_address(address)
    return numpy.ndarray(shape, dtype, buffer, strides=[stride * dtype.itemsize for stride in strides])


def blas_matrices(address, dtype, rows, columns, leading, operation=0, count=1, stride=0):
    """op(A) for a batch of matrices that BLAS stores column by column."""
    strides = (stride, leading, 1) if operation else (stride, 1, leading)
    view = memory_view(address, dtype, (count, rows, columns), strides)
    return view.conj() if operation == 2 else view


def blas_dtype(code):
    if code not in CUDA_DTYPES:
        raise NotEmulatedError(f"cuBLAS: data type {code} is not emulated")
    return CUDA_DTYPES[code]


class FakeCublas:
    """Stands in for cupy_backends.cuda.libs.cublas: matrix products only."""

    LABEL = "cuBLAS"
    LEFT_AS_IS = {"check_status"}
    CONSTANTS = {
        "create": 1,
        "destroy": None,
        "getVersion": 130200,
        "setStream": None,
        "getStream": 0,
        "setMathMode": None,
        "getMathMode": 0,
        "setPointerMode": None,
        "getPointerMode": 0,
    }

    def __init__(self, device):
        self._device = device

    @numpy.errstate(all="ignore")  # a GPU gives no warnings
    def gemmStridedBatchedEx(
        self,
        handle,
        op_a,
        op_b,
        m,
        n,
        k,
        alpha,
        a,
        a_type,
        lda,
        stride_a,
        b,
        b_type,
        ldb,
        stride_b,
        beta,
        c,
        c_type,
        ldc,
        stride_c,
        count,
        compute_type,
        algorithm=0,
    ):
        """C = alpha op(A) op(B) + beta C, for each matrix of a batch."""
        if compute_type in HALF_OR_INTEGER_COMPUTE_TYPES:
            raise NotEmulatedError(f"cuBLAS: compute type {compute_type} is not emulated")
        result = blas_matrices(c, blas_dtype(c_type), m, n, ldc, 0, count, stride_c)
        # Halves are accumulated in single precision, as by cuBLAS; the two
        # factors have the precision of the computation.
        working = numpy.result_type(result.dtype, "f4")
        left = blas_matrices(a, blas_dtype(a_type), m, k, lda, op_a, count, stride_a)
        right = blas_matrices(b, blas_dtype(b_type), k, n, ldb, op_b, count, stride_b)
        product = numpy.matmul(left.astype(working, copy=False), right.astype(working, copy=False))
        alpha, beta = (memory_view(factor, working, ())[()] for factor in (alpha, beta))
        result[...] = alpha * product + beta * result if beta else alpha * product
        self._device.counters.products += 1

    def gemmEx(
        self,
        handle,
        op_a,
        op_b,
        m,
        n,
        k,
        alpha,
        a,
        a_type,
        lda,
        b,
        b_type,
        ldb,
        beta,
        c,
        c_type,
        ldc,
        compute_type,
        algorithm=0,
    ):
        self.gemmStridedBatchedEx(
            handle,
            op_a,
            op_b,
            m,
            n,
            k,
            alpha,
            a,
            a_type,
            lda,
            0,
            b,
            b_type,
            ldb,
            0,
            beta,
            c,
            c_type,
            ldc,
            0,
            1,
            compute_type,
        )

    def _gemm(self, code, handle, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        self.gemmEx(handle, op_a, op_b, m, n, k, alpha, a, code, lda, b, code, ldb, beta, c, code, ldc, code)

    def _gemmBatched(
        self, code, handle, op_a, op_b, m, n, k, alpha, a_array, lda, b_array, ldb, beta, c_array, ldc, count
    ):
        pointers = [memory_view(array, "u8", (count,)).tolist() for array in (a_array, b_array, c_array)]
        for a, b, c in zip(*pointers, strict=False):
            self._gemm(code, handle, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc)
        self._device.counters.products -= count - 1  # it is one call

    def _geam(self, code, handle, op_a, op_b, m, n, alpha, a, lda, beta, b, ldb, c, ldc):
        """C = alpha op(A) + beta op(B), which CuPy uses to transpose."""
        dtype, total = CUDA_DTYPES[code], 0
        for factor, matrix, leading, operation in ((alpha, a, lda, op_a), (beta, b, ldb, op_b)):
            factor = memory_view(factor, dtype, ())[()]
            if factor:  # with a zero factor the matrix is not read
                total = total + factor * blas_matrices(matrix, dtype, m, n, leading, operation)
        blas_matrices(c, dtype, m, n, ldc)[...] = total


for _name in ("gemm", "gemmBatched", "geam"):
    for _prefix, _code in {"s": 0, "d": 1, "c": 4, "z": 5}.items():
        setattr(FakeCublas, _prefix + _name, functools.partialmethod(getattr(FakeCublas, "_" + _name), _code))


class FakeCurand:
    """Stands in for cupy_backends.cuda.libs.curand.

    The distributions are right, the sequences are not those of any GPU.
    """

    LABEL = "cuRAND"
    LEFT_AS_IS = {"check_status"}
    CONSTANTS = {
        "destroyGenerator": None,
        "getVersion": 10400,
        "setStream": None,
        "setGeneratorOffset": None,
        "setGeneratorOrdering": None,
    }

    def __init__(self, device):
        self._device = device
        self._generators = {}

    def createGenerator(self, method):
        handle = len(self._generators) + 1
        self.setPseudoRandomGeneratorSeed(handle, 0)
        return handle

    def setPseudoRandomGeneratorSeed(self, handle, seed):
        self._generators[handle] = numpy.random.Generator(numpy.random.Philox(seed))

    def _fill(self, handle, address, count, dtype, draw):
        memory_view(address, dtype, (count,))[...] = draw(self._generators[handle])
        self._device.counters.library_calls += 1

    def generate(self, handle, address, count):
        self._fill(handle, address, count, "u4", lambda rng: rng.integers(2**32, size=count, dtype="u4"))

    def _uniform(self, dtype, handle, address, count):
        # cuRAND's interval excludes 0 and includes 1.
        self._fill(handle, address, count, dtype, lambda rng: 1 - rng.random(count, dtype=dtype))

    def _normal(self, dtype, handle, address, count, mean, deviation):
        self._fill(handle, address, count, dtype, lambda rng: rng.normal(mean, deviation, count))

    def _log_normal(self, dtype, handle, address, count, mean, deviation):
        self._fill(handle, address, count, dtype, lambda rng: rng.lognormal(mean, deviation, count))

    def generatePoisson(self, handle, address, count, mean):
        self._fill(handle, address, count, "u4", lambda rng: rng.poisson(mean, count))

    generateUniform = functools.partialmethod(_uniform, numpy.float32)
    generateUniformDouble = functools.partialmethod(_uniform, numpy.float64)
    generateNormal = functools.partialmethod(_normal, numpy.float32)
    generateNormalDouble = functools.partialmethod(_normal, numpy.float64)
    generateLogNormal = functools.partialmethod(_log_normal, numpy.float32)
    generateLogNormalDouble = functools.partialmethod(_log_normal, numpy.float64)


class FakeThrust:
    """Stands in for cupy.cuda.thrust; arrays are sorted along their last axis."""

    LABEL = "Thrust"
    LEFT_AS_IS = {"get_build_version"}
    CONSTANTS = {}

    def __init__(self, device):
        self._device = device

    def sort(self, dtype, data, keys, shape):
        memory_view(data, dtype, shape).sort(axis=-1)
        self._device.counters.library_calls += 1

    def argsort(self, dtype, indices, data, keys, shape):
        order = numpy.argsort(memory_view(data, dtype, shape), axis=-1, kind="stable")
        memory_view(indices, numpy.intp, shape)[...] = order
        self._device.counters.library_calls += 1

    def lexsort(self, dtype, indices, keys, key_count, length):
        memory_view(indices, numpy.intp, (length,))[...] = numpy.lexsort(
            memory_view(keys, dtype, (key_count, length))
        )
        self._device.counters.library_calls += 1


class FakeCub:
    """Stands in for cupy.cuda.cub: precompiled kernels, all refused."""

    LABEL = "CUB"
    LEFT_AS_IS = {"get_build_version"}
    CONSTANTS = {}


class UnavailableModule(types.ModuleType):
    """A module any use of which raises NotEmulatedError."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotEmulatedError(f"{self.__name__} is not emulated (asked for {name})")


def unavailable_class(name, advice):
    def refuse(self, *arguments, **options):
        raise NotEmulatedError(f"{name} is not emulated: {advice}")

    return type(name.rpartition(".")[2], (), {"__init__": refuse})
