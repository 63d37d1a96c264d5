"""The emulated device against NumPy, what it counts, and what it refuses."""

import itertools
import os
import pathlib
import subprocess
import sys
import time

import numpy
import pytest

import emulated_cuda

if emulated_cuda.installed() is None:
    pytest.skip("needs the emulated device, where there is no GPU: make test-cupy", allow_module_level=True)
device = emulated_cuda.install()

import cupy  # noqa: E402
import cupy.cublas  # noqa: E402
import cupyx  # noqa: E402
from cupyx import jit  # noqa: E402

rng = numpy.random.default_rng(0)
MATRIX = rng.standard_normal((5, 7)).astype("f4")
OTHER = rng.standard_normal((7, 4)).astype("f4")
POSITIVE = abs(MATRIX) + 0.1
IMAGES = rng.standard_normal((2, 3, 6, 6)).astype("f4")
BATCH = rng.standard_normal((3, 5, 7)).astype("f4")
ROWS = rng.integers(0, 5, (3, 2))
COLUMNS = rng.integers(0, 7, (5, 1))


def check(function, tolerance=1e-5):
    """`function(xp)` must give the same with CuPy as with NumPy."""
    expected, actual = function(numpy), function(cupy)
    if not isinstance(expected, (tuple, list)):
        expected, actual = [expected], [actual]
    assert len(expected) == len(actual)
    for wanted, got in zip(expected, actual, strict=False):
        assert isinstance(got, cupy.ndarray)
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        numpy.testing.assert_allclose(got.get(), wanted, rtol=tolerance, atol=tolerance)


# ---- array functions ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "exp",
        "log",
        "tanh",
        "sqrt",
        "negative",
        "abs",
        "square",
        "sign",
        "floor",
        "sin",
        "cos",
        "log1p",
        "expm1",
        "reciprocal",
        "isnan",
        "isfinite",
        "logical_not",
    ],
)
def test_unary(name):
    check(lambda xp: getattr(xp, name)(xp.asarray(POSITIVE)))


@pytest.mark.parametrize(
    "name",
    [
        "add",
        "subtract",
        "multiply",
        "divide",
        "maximum",
        "minimum",
        "power",
        "greater",
        "equal",
        "logaddexp",
        "floor_divide",
        "remainder",
        "arctan2",
    ],
)
def test_binary_broadcasts(name):
    check(lambda xp: getattr(xp, name)(xp.asarray(POSITIVE), xp.asarray(POSITIVE[:1])))
    check(lambda xp: getattr(xp, name)(xp.asarray(POSITIVE)[:, :1], xp.asarray(POSITIVE)))


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i4", "i8", "f2", "f4", "f8", "c8", "c16"])
def test_dtypes(dtype):
    check(lambda xp: xp.asarray(POSITIVE * 5).astype(dtype))
    check(lambda xp: xp.asarray(POSITIVE.astype(dtype)) * xp.asarray(POSITIVE.astype(dtype)), 1e-3)
    check(lambda xp: xp.sum(xp.asarray(POSITIVE.astype(dtype)), axis=0), 1e-2 if dtype == "f2" else 1e-5)


def test_complex_functions():
    values = (MATRIX + 1j * MATRIX[::-1]).astype("c8")
    for name in ("exp", "log", "sqrt", "tanh", "conj", "angle", "real", "abs"):
        check(lambda xp, name=name: getattr(xp, name)(xp.asarray(values)), 1e-4)


@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize(
    "name", ["sum", "mean", "var", "std", "max", "min", "prod", "any", "all", "argmax", "argmin"]
)
def test_reduction(name, axis):
    check(lambda xp: xp.asarray(getattr(xp, name)(xp.asarray(MATRIX), axis=axis)))


def test_reduction_over_several_axes_and_long_ones():
    check(lambda xp: xp.sum(xp.asarray(IMAGES), axis=(0, 2, 3), keepdims=True))
    check(lambda xp: xp.mean(xp.asarray(IMAGES), axis=(1, 3)))
    long = rng.standard_normal((3, 5000)).astype("f4")
    check(lambda xp: xp.sum(xp.asarray(long), axis=1), 1e-4)
    check(lambda xp: xp.max(xp.asarray(long), axis=0))


def test_scans_and_searches():
    check(lambda xp: xp.cumsum(xp.asarray(MATRIX), axis=1))
    check(lambda xp: xp.cumprod(xp.asarray(MATRIX)), 1e-4)
    check(lambda xp: xp.nonzero(xp.asarray(MATRIX) > 0))
    check(lambda xp: xp.asarray(MATRIX)[xp.asarray(MATRIX) > 0])
    check(lambda xp: xp.searchsorted(xp.arange(5), xp.asarray(ROWS)))
    check(lambda xp: xp.bincount(xp.asarray(ROWS.ravel())))


MATMULS = {
    "matrices": lambda xp: xp.asarray(MATRIX) @ xp.asarray(OTHER),
    "transposed left": lambda xp: xp.asarray(MATRIX).T @ xp.asarray(MATRIX),
    "transposed right": lambda xp: xp.asarray(MATRIX) @ xp.asarray(MATRIX).T,
    "sliced": lambda xp: xp.asarray(MATRIX)[:, ::2] @ xp.asarray(OTHER)[:4],
    "vector": lambda xp: xp.asarray(MATRIX) @ xp.asarray(OTHER)[:, 0],
    "dot of vectors": lambda xp: xp.asarray(xp.dot(xp.asarray(MATRIX[0]), xp.asarray(MATRIX[1]))),
    "batch by matrix": lambda xp: xp.matmul(xp.asarray(BATCH), xp.asarray(OTHER)),
    "batch by batch": lambda xp: xp.matmul(xp.asarray(BATCH), xp.asarray(BATCH).swapaxes(1, 2)),
    "two batch axes": lambda xp: xp.matmul(xp.asarray(IMAGES), xp.asarray(IMAGES).swapaxes(-1, -2)),
    "double": lambda xp: xp.asarray(MATRIX.astype("f8")) @ xp.asarray(OTHER.astype("f8")),
    "complex": lambda xp: xp.asarray(MATRIX * 1j) @ xp.asarray(OTHER + 1j),
    "integers": lambda xp: xp.asarray(ROWS) @ xp.asarray(ROWS.T),
    "einsum": lambda xp: xp.einsum("bij,jk->bik", xp.asarray(BATCH), xp.asarray(OTHER)),
    "attention einsum": lambda xp: xp.einsum("bhqd,bhkd->bhqk", xp.asarray(IMAGES), xp.asarray(IMAGES)),
    "tensordot": lambda xp: xp.tensordot(xp.asarray(BATCH), xp.asarray(OTHER), 1),
    "outer": lambda xp: xp.outer(xp.asarray(MATRIX[0]), xp.asarray(OTHER[:, 0])),
}


@pytest.mark.parametrize("name", MATMULS)
def test_matmul(name):
    check(MATMULS[name])


def test_matmul_half_and_out():
    check(lambda xp: xp.asarray(MATRIX.astype("f2")) @ xp.asarray(OTHER.astype("f2")), 5e-3)
    check(lambda xp: xp.matmul(xp.asarray(BATCH.astype("f2")), xp.asarray(OTHER.astype("f2"))), 5e-3)
    check(lambda xp: xp.matmul(xp.asarray(MATRIX), xp.asarray(OTHER), out=xp.zeros((5, 4), "f4")))


@pytest.mark.filterwarnings("error")
def test_matmul_does_not_warn_as_numpy_does():
    huge = cupy.full((4, 4), 6e4, "f2")
    assert cupy.isinf(huge @ huge).all()


def test_convolution_by_sliding_windows():
    def convolve(xp):
        windows = xp.lib.stride_tricks.sliding_window_view(xp.asarray(IMAGES), (3, 3), axis=(2, 3))
        kernels = xp.asarray(IMAGES[:, :, :3, :3])
        return (
            xp.einsum("bchwij,ocij->bohw", windows, kernels),
            xp.tensordot(windows, kernels, ((1, 4, 5), (1, 2, 3))),
        )

    check(convolve, 1e-4)


INDEXING = {
    "take": lambda xp: xp.take(xp.asarray(MATRIX), xp.asarray(ROWS), axis=0),
    "take_along_axis": lambda xp: xp.take_along_axis(xp.asarray(MATRIX), xp.asarray(COLUMNS), 1),
    "rows": lambda xp: xp.asarray(MATRIX)[xp.asarray(ROWS)],
    "one per row": lambda xp: xp.asarray(MATRIX)[xp.arange(5), xp.asarray(COLUMNS[:, 0])],
    "one hot": lambda xp: xp.eye(5, dtype="f4")[xp.asarray(ROWS)],
    "concatenate": lambda xp: xp.concatenate([xp.asarray(MATRIX), xp.asarray(MATRIX)], 1),
    "stack": lambda xp: xp.stack([xp.asarray(MATRIX)] * 3),
    "split": lambda xp: xp.split(xp.asarray(OTHER), 2, axis=1),
    "pad": lambda xp: xp.pad(xp.asarray(IMAGES), ((0, 0), (0, 0), (1, 1), (2, 0))),
    "where": lambda xp: xp.where(xp.asarray(MATRIX) > 0, xp.asarray(MATRIX), xp.float32(0.5)),
    "clip": lambda xp: xp.clip(xp.asarray(MATRIX), -0.5, 0.5),
    "transpose": lambda xp: xp.ascontiguousarray(xp.transpose(xp.asarray(IMAGES), (0, 2, 3, 1))),
    "fortran order": lambda xp: xp.asfortranarray(xp.asarray(MATRIX)),
    "broadcast_to": lambda xp: xp.broadcast_to(xp.asarray(MATRIX[0]), (3, 7)) + 1,
    "repeat": lambda xp: xp.repeat(xp.asarray(MATRIX), 2, axis=0),
    "roll and flip": lambda xp: xp.flip(xp.roll(xp.asarray(MATRIX), 1, 1), 0),
    "tril": lambda xp: xp.tril(xp.asarray(MATRIX)),
    "linspace": lambda xp: xp.linspace(0, 1, 5, dtype="f4"),
    "sort": lambda xp: xp.sort(xp.asarray(MATRIX), axis=0),
    "argsort": lambda xp: xp.argsort(xp.asarray(MATRIX), axis=1),
    "lexsort": lambda xp: xp.lexsort(
        xp.stack([xp.asarray(MATRIX[0]), xp.asarray(MATRIX[1] > 0).astype("f4")])
    ),
    "partition": lambda xp: xp.sort(xp.partition(xp.asarray(MATRIX), 2, axis=1)[:, :3], axis=1),
    "unique": lambda xp: xp.unique(xp.asarray(ROWS)),
}


@pytest.mark.parametrize("name", INDEXING)
def test_indexing(name):
    check(INDEXING[name])


def test_in_place_updates():
    def update(xp):
        array = xp.asarray(MATRIX).copy()
        array *= xp.float32(0.5)
        array[1:3] = 0
        array[:, ::2] -= xp.asarray(MATRIX[:, ::2])
        array[xp.asarray([0, 4])] = 2
        return xp.multiply(array, 2, out=array)

    check(update)


@pytest.mark.filterwarnings("ignore:.*scatter_add.*is deprecated")
def test_scatter_add():
    def scatter(xp, add):
        target = xp.zeros((5, 7), "f4")
        add(target, xp.asarray(ROWS[:, 0]), xp.asarray(MATRIX[:3]))
        return target

    check(lambda xp: scatter(xp, xp.add.at))
    check(lambda xp: scatter(xp, numpy.add.at if xp is numpy else cupyx.scatter_add))


# ---- kernels -----------------------------------------------------------------------


def test_fuse():
    @cupy.fuse()
    def gelu(x):
        return x * 0.5 * (1 + cupy.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))

    expected = MATRIX * 0.5 * (1 + numpy.tanh(0.7978845608 * (MATRIX + 0.044715 * MATRIX**3)))
    array = cupy.asarray(MATRIX)
    with device.count() as counts:
        result = gelu(array)
    assert counts.launches == 1
    numpy.testing.assert_allclose(result.get(), expected, rtol=1e-5, atol=1e-6)


def test_elementwise_and_reduction_kernels():
    bias_relu = cupy.ElementwiseKernel("T x, T b", "T y", "y = max(x + b, (T)0)", "bias_relu")
    row_norm = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "row_norm")
    array = cupy.asarray(MATRIX)
    numpy.testing.assert_allclose(bias_relu(array, array[0]).get(), numpy.maximum(MATRIX + MATRIX[0], 0))
    numpy.testing.assert_allclose(row_norm(array, axis=1).get(), numpy.linalg.norm(MATRIX, axis=1), rtol=1e-6)


SOFTMAX = r"""
extern "C" __global__ void softmax(float* y, const float* x, const int columns) {
    __shared__ float partial[64];
    extern __shared__ float row[];
    const int t = threadIdx.x;
    float largest = -1e30f, total = 0;
    for (int j = t; j < columns; j += blockDim.x) largest = fmaxf(largest, row[j] = x[blockIdx.x * columns + j]);
    partial[t] = largest;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) partial[t] = fmaxf(partial[t], partial[t + half]);
        __syncthreads();
    }
    largest = partial[0];
    __syncthreads();
    for (int j = t; j < columns; j += blockDim.x) total += row[j] = expf(row[j] - largest);
    partial[t] = total;
    __syncthreads();
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (t < half) partial[t] += partial[t + half];
        __syncthreads();
    }
    for (int j = t; j < columns; j += blockDim.x) y[blockIdx.x * columns + j] = row[j] / partial[0];
}
"""


def test_raw_kernel_with_shared_memory_and_barriers():
    x = rng.standard_normal((9, 200)).astype("f4")
    y = cupy.empty_like(cupy.asarray(x))
    cupy.RawKernel(SOFTMAX, "softmax")((9,), (64,), (y, cupy.asarray(x), numpy.int32(200)), shared_mem=800)
    expected = numpy.exp(x - x.max(1, keepdims=True))
    numpy.testing.assert_allclose(y.get(), expected / expected.sum(1, keepdims=True), rtol=1e-5)


# The first warp shuffles while the second already waits at the barrier.
WARP_SUM = r"""
extern "C" __global__ void warp_sum(int* out) {
    __shared__ int total;
    int value = threadIdx.x;
    if (threadIdx.x < 32) {
        for (int step = 16; step; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
        if (threadIdx.x == 0) total = value;
    }
    __syncthreads();
    out[threadIdx.x] = total + __popc(__ballot_sync(0xffffffffu, threadIdx.x % 4 == 0));
}
"""


def test_raw_kernel_with_warp_intrinsics():
    out = cupy.zeros(64, "i4")
    cupy.RawKernel(WARP_SUM, "warp_sum")((1,), (64,), (out,))
    assert (out == 31 * 32 // 2 + 8).all()


def test_deadlock_is_an_error():
    source = 'extern "C" __global__ void stuck() { if (threadIdx.x == 0) __shfl_sync(3u, 1, 0); else __syncthreads(); }'
    with pytest.raises(RuntimeError, match="deadlock"):
        cupy.RawKernel(source, "stuck")((1,), (2,), ())
    test_raw_kernel_with_warp_intrinsics()  # the scheduler has recovered


@pytest.mark.filterwarnings("ignore:cupyx.jit.rawkernel is experimental")
def test_raw_module_with_templates_and_jit():
    source = "template <class T> __global__ void fill(T* x, T v) { x[threadIdx.x] = v; }"
    module = cupy.RawModule(code=source, name_expressions=["fill<float>", "fill<int>"])
    out = cupy.zeros(4, "i4")
    module.get_function("fill<int>")((1,), (4,), (out, numpy.int32(7)))
    assert (out == 7).all()

    @jit.rawkernel()
    def square(x, y, size):
        start = jit.blockIdx.x * jit.blockDim.x + jit.threadIdx.x
        for index in range(start, size, jit.gridDim.x * jit.blockDim.x):
            y[index] = x[index] * x[index]

    x, y = cupy.arange(35, dtype="f4"), cupy.zeros(35, "f4")
    square[2, 16](x, y, numpy.int32(35))
    assert (y == x * x).all()


def test_bad_launches_and_kernels_are_errors():
    fill = cupy.RawKernel('extern "C" __global__ void fill(int* x) { x[threadIdx.x] = 1; }', "fill")
    for grid, block, shared in (((1,), (1025,), 0), ((1, 70000), (1,), 0), ((1,), (1,), 50_000)):
        with pytest.raises(RuntimeError, match="INVALID_VALUE"):
            fill(grid, block, (cupy.zeros(1, "i4"),), shared_mem=shared)
    with pytest.raises(cupy.cuda.compiler.CompileException, match="undeclared_name"):
        cupy.RawKernel('extern "C" __global__ void bad(int* x) { x[0] = undeclared_name; }', "bad")(
            (1,), (1,), ()
        )


# ---- streams, memory, random numbers -------------------------------------------------


def test_streams_and_events():
    called = []
    with cupy.cuda.Stream(non_blocking=True) as stream:
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        doubled = cupy.asarray(MATRIX) * 2
        end.record()
        stream.wait_event(end)
        stream.launch_host_func(called.append, "argument")
        stream.synchronize()
    assert called == ["argument"]
    assert stream.done
    assert cupy.cuda.get_elapsed_time(start, end) > 0
    assert (doubled.get() == MATRIX * 2).all()


def test_pinned_memory_copies_without_sync():
    pinned = cupyx.empty_pinned(MATRIX.shape, "f4")
    pinned[...] = MATRIX
    back = cupyx.empty_pinned(MATRIX.shape, "f4")
    with device.forbid_sync(), device.count() as counts:
        array = cupy.empty(MATRIX.shape, "f4")
        array.set(pinned)
        array.get(out=back, blocking=False)
    assert (back == MATRIX).all()
    assert (counts.host_to_device_bytes, counts.device_to_host_bytes) == (MATRIX.nbytes, MATRIX.nbytes)


def test_memory_pool():
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    array = cupy.zeros(1000, "f4")
    assert pool.used_bytes() - before == 4096
    del array
    assert pool.used_bytes() == before
    with device.count() as counts:
        cupy.empty(1000, "f4")
    assert counts.mallocs == 0  # served by the pool
    pool.free_all_blocks()
    with device.count() as counts:
        assert numpy.isnan(cupy.empty(123_456, "f4").get()).all()  # fresh memory is poisoned
    assert counts.mallocs == 1


def test_memory_limit():
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.empty(5 << 30, "u1")
    free, total = cupy.cuda.Device().mem_info
    assert total == 4 << 30
    assert 0 < free <= total


def test_there_is_one_device():
    assert cupy.cuda.runtime.getDeviceCount() == 1
    assert cupy.cuda.Device().compute_capability == "90"
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="invalid device"):
        cupy.cuda.Device(1).use()


def test_copies_to_wrong_addresses_are_errors():
    array = cupy.zeros(4, "f4")
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cupy.cuda.runtime.memcpy(MATRIX.ctypes.data, array.data.ptr, 16, cupy.cuda.runtime.memcpyHostToDevice)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        cupy.cuda.runtime.memset(array.data.ptr, 0, 1 << 30)


def test_random_state():
    state = cupy.random.RandomState(0)
    uniform, normal = state.random_sample(20_000).get(), state.standard_normal(20_000, dtype="f4").get()
    assert uniform.min() >= 0
    assert uniform.max() <= 1
    assert abs(uniform.mean() - 0.5) < 0.01
    assert abs(normal.mean()) < 0.03
    assert abs(normal.std() - 1) < 0.03
    assert (numpy.bincount(state.randint(0, 4, 8000).get(), minlength=4) > 1800).all()
    assert abs(state.binomial(10, 0.3, 5000).mean() - 3) < 0.1
    assert abs(state.lognormal(0, 0.5, 20_000).mean() - numpy.exp(0.125)) < 0.03
    assert sorted(state.permutation(50).get()) == list(range(50))
    assert len(set(state.choice(50, 20, replace=False).get().tolist())) == 20
    again = cupy.random.RandomState(0).random_sample(20_000)
    assert (again.get() == uniform).all()


UNAVAILABLE = {
    "default_rng": lambda: cupy.random.default_rng(0),
    "bit generator": lambda: cupy.random.Philox4x3210(1),
    "cuSOLVER": lambda: cupy.linalg.solve(cupy.eye(3), cupy.ones(3)),
    "cuSOLVER svd": lambda: cupy.linalg.svd(cupy.eye(3)),
    "cuSOLVER eigh": lambda: cupy.linalg.eigh(cupy.eye(3)),
    "cuSPARSE": lambda: cupyx.scipy.sparse.csr_matrix(cupy.eye(3)).dot(cupy.ones(3)),
    "cuFFT": lambda: cupy.fft.fft(cupy.ones(4)),
    "cuBLAS other than gemm": lambda: cupy.cublas.nrm2(cupy.ones(3)),
    "CUB": lambda: cupy.cuda.cub.device_reduce(cupy.ones(3), 0, (0,), None, None, False),
    "asynchronous pool": lambda: cupy.cuda.runtime.mallocAsync(8, 0),
    "graph capture": lambda: cupy.cuda.Stream(non_blocking=True).begin_capture(),
}


@pytest.mark.parametrize("name", UNAVAILABLE)
def test_what_is_not_emulated_raises(name):
    with pytest.raises(emulated_cuda.NotEmulatedError):
        UNAVAILABLE[name]()


# ---- counters and the sync guard -----------------------------------------------------


def test_counters():
    x = cupy.asarray(MATRIX)
    x[0] + 1, x @ x.T, cupy.sort(x)  # compile first
    with device.count() as counts:
        float(x[0, 0])
    assert (counts.syncs, counts.device_to_host_copies, counts.device_to_host_bytes) == (1, 1, 4)
    assert counts.launches == counts.host_to_device_copies == 0
    with device.count() as counts:
        cupy.asarray(MATRIX)
    assert (counts.host_to_device_copies, counts.host_to_device_bytes, counts.syncs) == (1, MATRIX.nbytes, 0)
    with device.count() as counts:
        x + 1
        x @ x.T
        cupy.copyto(cupy.empty_like(x), x)
    assert (counts.launches, counts.products, counts.device_to_device_copies, counts.syncs) == (1, 1, 1, 0)


def test_launch_trace():
    device.trace_launches, device.launches = True, []
    cupy.exp(cupy.zeros(300, "f4"))
    device.trace_launches = False
    assert device.launches[-1] == ("cupy_exp__float32_float32", (3, 1, 1), (128, 1, 1))


def test_operands_of_numpy_are_rejected():
    for operation in (
        lambda: cupy.asarray(MATRIX) + MATRIX,
        lambda: numpy.add(cupy.asarray(MATRIX), MATRIX),
        lambda: cupy.exp(MATRIX),
        lambda: numpy.asarray(cupy.asarray(MATRIX)),
    ):
        with pytest.raises(TypeError):
            operation()


SYNCS = {
    "float": float,
    "item": lambda x: x.item(),
    "get": lambda x: x.get(),
    "bool": lambda x: bool(x > 0),
    "print": str,
    "numpy": cupy.asnumpy,
    "stream": lambda x: cupy.cuda.Stream.null.synchronize(),
    "device": lambda x: cupy.cuda.Device().synchronize(),
    "boolean mask": lambda x: x[x > 0],
}


@pytest.mark.parametrize("name", SYNCS)
def test_forbid_sync(name):
    x = cupy.asarray(MATRIX)[0, 0]
    with device.forbid_sync():
        with pytest.raises(emulated_cuda.HostSyncError) as caught:
            SYNCS[name](x)
        (x + 1) * 2  # no sync, allowed
    assert any(entry.path == pathlib.Path(__file__) for entry in caught.traceback)
    SYNCS[name](x)  # allowed again


# ---- a training step -----------------------------------------------------------------


def train_step(xp, weights, x, labels, rate):
    activations = [x]
    for weight in weights[:-1]:
        activations.append(xp.maximum(activations[-1] @ weight, 0))
    scores = activations[-1] @ weights[-1]
    exponentials = xp.exp(scores - scores.max(1, keepdims=True))
    gradient = exponentials / exponentials.sum(1, keepdims=True)
    rows = xp.arange(len(x))
    loss = -xp.log(gradient[rows, labels]).mean()
    gradient[rows, labels] -= 1
    gradient /= len(x)
    for weight, activation in zip(reversed(weights), reversed(activations), strict=False):
        weight_gradient = activation.T @ gradient
        gradient = (gradient @ weight.T) * (activation > 0)
        weight -= rate * weight_gradient
    return loss


def test_training_step_of_a_perceptron():
    sizes = (784, 512, 512, 10)
    weights = [(rng.standard_normal(shape) / 28).astype("f4") for shape in itertools.pairwise(sizes)]
    x, labels, rate = (
        rng.standard_normal((128, 784)).astype("f4"),
        rng.integers(0, 10, 128),
        numpy.float32(0.1),
    )
    on_device = [cupy.asarray(weight) for weight in weights]
    batch = cupy.asarray(x), cupy.asarray(labels)
    losses = [train_step(cupy, on_device, *batch, rate)]  # compiles the kernels
    with device.count() as counts, device.forbid_sync():
        start = time.perf_counter()
        losses.append(train_step(cupy, on_device, *batch, rate))
        seconds = time.perf_counter() - start
    expected = [train_step(numpy, weights, x, labels, rate) for _ in range(2)]
    numpy.testing.assert_allclose([float(loss) for loss in losses], expected, rtol=1e-4)
    for actual, wanted in zip(on_device, weights, strict=False):
        numpy.testing.assert_allclose(actual.get(), wanted, rtol=1e-3, atol=1e-5)
    print(f"{seconds:.3f} s, {counts}")
    assert seconds < 0.5
    assert counts.products == 9
    assert counts.host_to_device_copies == 0


# ---- installation, in processes of their own -----------------------------------------


TESTS = str(pathlib.Path(emulated_cuda.__file__).parents[1])


def run_python(*arguments, **environment):
    """Run Python with this package importable; return the finished process."""
    environment = {**os.environ, "PYTHONPATH": TESTS, **environment}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


INSTALL = "import emulated_cuda; emulated_cuda.install(check_with_nvrtc=True)"


@pytest.mark.parametrize(
    ("prepare", "environment", "message"),
    [
        ("import cupy", {}, "before cupy is imported"),
        ("import sys; sys.platform = 'darwin'", {}, "runs on Linux only, not on darwin"),
        (
            "import importlib.metadata as m; m.version = lambda name: '13.6.0'",
            {},
            "found 13.6.0: pip install 'cupy-cuda13x==14.2.0'",
        ),
        (
            "from cuda import pathfinder; pathfinder.find_nvidia_header_directory = lambda name: None",
            {},
            "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime",
        ),
        ("", {"PATH": "/nowhere"}, "g++, which was not found: apt-get install g++"),
    ],
    ids=["cupy imported", "system", "version", "nvrtc", "compiler"],
)
def test_install_refuses_in_one_line_with_the_remedy(prepare, environment, message):
    result = run_python("-c", f"{prepare}\n{INSTALL}", **environment)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("emulated_cuda.build_cache.CannotEmulateError: ")
    assert message in last


def test_command_line(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import sys, cupy, emulated_cuda\nprint(sys.argv[1:], float(cupy.arange(4.).sum()))\n"
        "assert emulated_cuda.install().counters.launches == 2\n"
    )
    result = run_python("-m", "emulated_cuda", "--summary", str(script), "-x", "y")
    assert result.stdout == "['-x', 'y'] 6.0\n"
    assert "CuPy on an emulated device" in result.stderr
    result = run_python("-m", "emulated_cuda", "-m", "nnx", "info")
    assert "emulated device (no GPU)" in result.stdout


def test_processes_that_compile_at_once_do_not_disturb_each_other(tmp_path):
    program = "import emulated_cuda; emulated_cuda.install(); import cupy; assert cupy.ones(6).size == 6"
    environment = {**os.environ, "PYTHONPATH": TESTS, "EMULATED_CUDA_CACHE": str(tmp_path)}
    processes = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith("tmp")]


def test_pytest_refuses_in_one_line_too():
    result = run_python("-m", "pytest", "--cupy", f"{TESTS}/test_cupy.py", PATH="/nowhere")
    assert result.returncode == 4
    [line] = result.stderr.split("\n\n")[0].splitlines()
    assert line.startswith("ERROR: --cupy: emulated_cuda compiles kernels with g++, which was not found")


# Each is accepted by g++ alone: it includes <utility> before every kernel, and knows no architecture.
PLANTED_ERRORS = {
    "no header": ("p[0] = std::pair<int, int>(1, 2).first;", 'has no member "pair"'),
    "8.0 only": ("\n#if __CUDA_ARCH__ == 800\n#error planted for 8.0\n#endif\n", "planted for 8.0"),
    "9.0 only": ("\n#if __CUDA_ARCH__ == 900\n#error planted for 9.0\n#endif\n", "planted for 9.0"),
}
PLANTED = 'extern "C" __global__ void planted(float* p) {{ {} }}'


@pytest.mark.parametrize("name", PLANTED_ERRORS)
def test_nvrtc_finds_a_planted_error(name):
    body, message = PLANTED_ERRORS[name]
    kernel = cupy.RawKernel(PLANTED.format(body), "planted")
    with pytest.raises(cupy.cuda.compiler.CompileException) as caught:
        kernel((1,), (1,), (cupy.ones(1, "f4"),))
    assert message in str(caught.value)


def test_gcc_alone_finds_none_of_them():
    kernels = [PLANTED.format(body) for body, _ in PLANTED_ERRORS.values()]
    program = f"""
import emulated_cuda
emulated_cuda.install()
import cupy
for source in {kernels!r}:
    cupy.RawKernel(source, "planted")((1,), (1,), (cupy.ones(1, "f4"),))
"""
    assert run_python("-c", program).returncode == 0
