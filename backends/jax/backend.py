"""JAX: whole training steps compiled by XLA for CPU, GPU or TPU."""

import functools
import operator
import os

import numpy as np
from nnx.backends.jax.jit_cache import JitCache
from nnx.backends.shared.prefetch import prefetch

from nnx import tree
from nnx.backend import Backend, BackendError, BackendInfo, batch_of, joined
from nnx.backend_loading import cpu_info
from nnx.lru_cache import Recent

# Smaller arrays, in bytes, are copied to the device by the call that reads them.
SMALL = 1 << 18
# Samples are gathered for several steps at a time, up to this many bytes, which fit in a core's cache.
GATHERED = 1 << 18
# On a CPU, JAX does not copy host arrays that are aligned to this many bytes.
ALIGNMENT = 64
# Programs are compiled for few numbers of rows: each number is rounded up, by less than a quarter.
STEPS_AN_OCTAVE = 4
# Initial totals cached for one step function, one for each shape of a sample.
MOST_ZEROS = 16


class JaxBackend(Backend):
    """Adapter for `jax.numpy`, which follows the array-API standard itself."""

    name = "jax"

    def __init__(self):
        try:
            import jax
        except ImportError as error:
            raise BackendError(
                f"the jax backend needs JAX, which cannot be imported ({error}). "
                f"Install it with: pip install 'nnx-engine[jax]'"
            ) from None
        try:
            self.device = jax.devices()[0]
        except RuntimeError as error:
            raise BackendError(f"JAX is installed, but finds no device to run on: {error}") from None
        _register_totals()
        self.jax = jax
        self.process = os.getpid()
        self.xp = jax.numpy
        self.is_accelerated = self.device.platform != "cpu"
        # On a CPU, XLA allocates the memory of the steps from the system in each run.
        self.seconds_a_run = 0.1 if self.is_accelerated else 0.5

    dtypes = ("float16", "bfloat16", "float32", "float64")

    def asarray(self, value, dtype=None):
        if isinstance(value, np.ndarray):  # jax.numpy would compile a copy for each shape
            return self.jax.device_put(np.array(value, dtype=dtype))
        return self.xp.asarray(value, dtype=dtype)

    def padded(self, rows):
        return _padded(rows)

    def put_samples(self, samples, rows=None):
        return tree.map(lambda array: self._put(array, len(array) if rows is None else rows), samples)

    def _put(self, array, rows):
        # On a CPU, JAX uses memory of this alignment without a copy.
        count, nbytes = len(array), array.nbytes // len(array) * rows
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        placed = memory[start : start + nbytes].view(array.dtype).reshape(rows, *array.shape[1:])
        placed[:count], placed[count:] = array, 0
        return self.jax.device_put(placed)

    def to_numpy(self, array):
        return np.array(array)

    def gather(self, array, index):
        # take() would check each index.
        return array.at[index].get(mode="promise_in_bounds")

    def free_memory(self):
        stats = (self.device.memory_stats() or {}) if self.is_accelerated else {}
        return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats else None

    def translate(self, error):
        text = str(error)
        if isinstance(error, self.jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:
            return MemoryError(text.splitlines()[0])
        if isinstance(error, self.jax.errors.TracerArrayConversionError):
            return TypeError("an array of JAX was given to a function of NumPy")
        return super().translate(error)

    def transfer(self, batches):
        # JAX reads host arrays asynchronously: they must not change, so they are copied.
        copied = (tree.map(np.array, batch) for batch in batches)
        # On a CPU, a step is twice as fast on host arrays.
        return prefetch(copied, self.jax.device_put) if self.is_accelerated else copied

    def convolve(self, windows, x, kernel, groups=1, transposed=False):
        if not self.is_accelerated:  # on a CPU, patches and matrix products are faster
            return None
        layout = ("NHWC", "HWIO", "NHWC") if len(windows.size) == 2 else ("NWC", "WIO", "NWC")

        def convolved(x, kernel):
            return self.jax.lax.conv_general_dilated(
                x, kernel, windows.strides, windows.padding, rhs_dilation=windows.dilation,
                dimension_numbers=layout, feature_group_count=groups,
            )  # fmt: skip

        def gradient(dy, kernel):
            like = self.xp.zeros((dy.shape[0], *windows.spatial, kernel.shape[-2]), dy.dtype)
            return self.jax.vjp(lambda x: convolved(x, kernel), like)[1](dy)[0]

        return self.jax.vjp(gradient if transposed else convolved, x, kernel)

    def map_tiles(self, function, arrays, length):
        # As a loop, whose time to compile does not depend on the number of tiles.
        count = len(arrays[0])
        # Tiles of two lengths are both compiled, so a shorter length that divides the count is better.
        even = max((n for n in range(1, length + 1) if count % n == 0), default=1)
        length = even if 2 * even > length else length
        count_of_tiles, lax = count // length, self.jax.lax
        if count_of_tiles < 2:
            return super().map_tiles(function, arrays, length)
        whole, rest = count_of_tiles * length, count % length

        def run(total, tile):
            rows, term = function(*tile)
            return self.jax.tree.map(operator.add, total, term), rows

        tiles = tuple(array[:whole].reshape(count_of_tiles, length, *array.shape[1:]) for array in arrays)
        shape = self.jax.eval_shape(lambda tile: function(*tile)[1], tuple(tile[0] for tile in tiles))
        zeros = self.jax.tree.map(lambda s: self.xp.zeros(s.shape, s.dtype), shape)
        total, rows = lax.scan(run, zeros, tiles)
        rows = None if rows is None else rows.reshape(-1, *rows.shape[2:])
        if rest:
            more = function(*(array[whole:] for array in arrays))
            rows = None if rows is None else self.xp.concat([rows, more[0]])
            total = None if total is None else total + more[1]
        return rows, total

    def pad(self, x, widths, value=0.0):
        value = self.xp.asarray(value, x.dtype)
        return self.jax.lax.pad(x, value, [(before, after, 0) for before, after in widths])

    def unslice(self, shape, parts, keys):
        # As a sum of padded parts, which XLA fuses; `.at[key].add` would be a scatter.
        def whole(part, key):
            places = _places(key, shape)
            between = zip(places, part.shape, shape, strict=True)
            widths = [(p.start, stop - p.start - (n - 1) * p.step - 1, p.step - 1) for p, n, stop in between]
            return self.jax.lax.pad(part, self.xp.zeros((), part.dtype), widths)

        return functools.reduce(operator.add, map(whole, parts, keys))

    def isolate(self, function):
        # XLA plans the memory of a branch separately if it cannot tell at compile time which branch is taken.
        lax = self.jax.lax
        always = lax.optimization_barrier(self.xp.int32(0)) == 0
        shapes = self.jax.eval_shape(function)
        return lax.cond(always, function, lambda: tree.map(lambda s: self.xp.zeros(s.shape, s.dtype), shapes))

    def device_put(self, rows):
        # Compiled steps take every scalar as an array: floats in the precision of the scope.
        real = "float64" if self._x64 else "float32"
        dtypes = {"f": real, "i": "int32", "u": "uint32"}
        count = max(map(len, rows.values()), default=0)
        length = _padded(count)
        rows = {name: _with_zeros(v, length, dtypes[v.dtype.kind]) for name, v in rows.items()}
        # Small arrays go to the device faster as arguments of the call that reads them.
        return self.jax.device_put(rows) if sum(v.nbytes for v in rows.values()) > SMALL else rows

    def scatter_add(self, indices, values, length):
        return self.xp.zeros((length, values.shape[1]), values.dtype).at[indices].add(values)

    def scan(self, step, carry, xs, fixed=(), reverse=False):
        def run(carry, x):
            results = step(self.xp, *step.arguments(self, fixed, carry, x))
            stacked = joined(self.xp, step.join, results)
            return stacked[: len(carry)], stacked

        return self.jax.lax.scan(run, tuple(carry), list(xs), reverse=reverse)[1]

    @property
    def _x64(self) -> bool:
        return self.jax.config.read("jax_enable_x64")

    def compile(self, function, consume=False):
        return JitCache(self.jax, function, donate_argnums=0 if consume else ())

    def repeat(self, step):
        jax = self.jax

        def is_single(rows):
            return all(len(values) == 1 for values in rows.values())

        def row_of(rows, i):
            return {name: values[i] for name, values in rows.items()}

        def first_step(carry, rows, data):
            row = row_of(rows, 0)
            return step(carry, row, batch_of(self, row, data))

        # Initial totals are host arrays, copied by the first call, which saves a dispatch per epoch.
        zeros, shapes = Recent(MOST_ZEROS), JitCache(jax, first_step)

        def first_totals(carry, rows, data):
            key = tuple((leaf.shape[1:], leaf.dtype) for leaf in tree.leaves(data))
            return zeros.get(key, lambda: tree.map(_zero, shapes.eval_shape(carry, rows, data)[1]))

        def run_one(row, data, carry_and_totals):
            carry, totals = carry_and_totals
            carry, sums = step(carry, row, data)
            return carry, self.add(totals, sums)

        def loop(carry, totals, rows, data, start, stop):
            many = self._batches_at_a_time(rows, data)

            def run_many(k, carry_and_totals):
                first = jax.numpy.minimum(k * many, len(rows["index"]) - many)
                index = jax.lax.dynamic_slice_in_dim(rows["index"], first, many)
                batches = batch_of(self, {"index": index}, data)["samples"]

                def run(i, carry_and_totals):
                    batch = tree.map(lambda array: array[i - first], batches)
                    return run_one(row_of(rows, i), {**data, "samples": batch}, carry_and_totals)

                begin, end = jax.numpy.maximum(start, k * many), jax.numpy.minimum(stop, (k + 1) * many)
                return jax.lax.fori_loop(begin, end, run, carry_and_totals)

            def run(i, carry_and_totals):
                row = row_of(rows, i)
                return run_one(row, batch_of(self, row, data), carry_and_totals)

            if is_single(rows):
                return run(0, (carry, totals))
            # Start and stop are arguments of the compiled program, which so runs any number of steps.
            if many > 1:
                return jax.lax.fori_loop(start // many, -(-stop // many), run_many, (carry, totals))
            return jax.lax.fori_loop(start, stop, run, (carry, totals))

        def shapes_of(carry, totals, rows, data, start, stop):
            return rows, data["samples"]

        compiled = JitCache(jax, loop, shapes_of, donate_argnums=(0, 1))

        def run(carry, totals, rows, data, start, stop):
            totals = first_totals(carry, rows, data) if totals is None else totals
            result = compiled(carry, totals, rows, data, start, stop)
            return result if is_single(rows) else jax.block_until_ready(result)

        return run

    def _batches_at_a_time(self, rows, data) -> int:
        """Return for how many steps the samples are gathered at once: on a CPU, that takes a third of the time."""
        if self.is_accelerated or "index" not in rows:
            return 1
        steps, batch_size = rows["index"].shape
        nbytes = sum(a.nbytes // a.shape[0] for a in tree.leaves(data["samples"])) * batch_size
        return min(steps, max(1, GATHERED // nbytes))

    def add(self, totals, sums):
        """Return totals plus sums: float32 totals are pairs of arrays; see `Total`."""
        if totals is None:
            return tree.map(lambda x: Total(x, self.xp.zeros_like(x)) if _is_real(x) else x, sums)
        return tree.map(operator.add, totals, sums)

    def vjp(self, function, *arrays):
        value, pullback = self.jax.vjp(functools.partial(function, self), *arrays)

        def pull(cotangents):
            return pullback(self.jax.tree.map(self._cotangent, value, cotangents))

        return value, pull

    def _cotangent(self, array, cotangent):
        """Return dL/d(array), for JAX: zeros in place of None, and of no dtype for integers."""
        if self.xp.issubdtype(array.dtype, self.xp.floating):
            return self.xp.zeros_like(array) if cotangent is None else self.xp.asarray(cotangent, array.dtype)
        return np.zeros(array.shape, self.jax.dtypes.float0)

    def stop_gradient(self, x):
        return self.jax.lax.stop_gradient(x)

    def _check_process(self):
        # JAX computes in threads, which a fork does not have: it would wait for them forever.
        if os.getpid() != self.process:
            raise BackendError(
                "JAX runs in the process that this one was forked from, and would hang here: start processes by "
                "multiprocessing.get_context('spawn') (joblib and scikit-learn: the backend 'loky'), or choose the "
                "numpy backend for what they do"
            )

    def scope(self, dtype):
        self._check_process()
        return self.jax.enable_x64(dtype == "float64")

    def synchronize(self, value):
        self.jax.block_until_ready(value)

    # On a CPU, NumPy reads and creates arrays faster than a dispatch takes.

    def read(self, values):
        if self.is_accelerated:
            values = self.jax.device_get(values)
        return [tree.map(np.asarray, value) for value in values]

    def full_like(self, array, value):
        if self.is_accelerated:
            return super().full_like(array, value)
        return self.jax.device_put(np.full(array.shape, value, array.dtype))

    def copy(self, values):
        if self.is_accelerated:
            return self._copy(values)
        return self.jax.device_put(tree.map(np.array, values))

    @functools.cached_property
    def _copy(self):
        return self.compile(super().copy)

    def zero_or_nan(self, values):
        if self.is_accelerated:
            return self._zero_or_nan(values)
        finite = all(np.isfinite(np.asarray(array)).all() for array in tree.leaves(values))
        return np.float32(0.0 if finite else np.nan)

    @functools.cached_property
    def _zero_or_nan(self):
        return self.compile(super().zero_or_nan)

    def describe(self):
        self._check_process()
        version = self.jax.__version__
        if not self.is_accelerated:
            return cpu_info("jax", version)
        limit = (self.device.memory_stats() or {}).get("bytes_limit")
        memory = f"{limit / 2**30:.0f} GiB" if limit else ""
        return BackendInfo(
            "jax", True, version, f"{self.device.platform} ({self.device.device_kind})", memory
        )


class Total:
    """A sum in twice the precision of its terms: `high`, and `low`, its rounding error.

    Source: Knuth, "The Art of Computer Programming", volume 2, section 4.2.2, theorem B.
    """

    def __init__(self, high, low):
        self.high, self.low = high, low

    def __add__(self, other):
        if isinstance(other, Total):
            return self + other.high + other.low
        total = self.high + other
        of_other = total - self.high
        lost = (self.high - (total - of_other)) + (other - of_other)
        return Total(total, self.low + lost)

    def __array__(self, dtype=None, copy=None):
        return np.asarray(np.asarray(self.high, np.float64) + np.asarray(self.low, np.float64), dtype)


@functools.cache
def _register_totals() -> None:
    """Register `Total` as a pytree."""
    import jax

    jax.tree_util.register_pytree_node(
        Total, lambda t: ((t.high, t.low), None), lambda _, parts: Total(*parts)
    )


def _zero(like):
    zero = np.zeros(like.shape, like.dtype)
    return Total(zero, zero) if _is_real(like) else zero


def _is_real(array) -> bool:
    return array.dtype not in ("bool", "int32", "int64", "uint32")


def _with_zeros(array: np.ndarray, rows: int, dtype: str) -> np.ndarray:
    """Return an array in a dtype, padded with rows of zeros; numpy.pad takes fifteen times as long."""
    padded = np.zeros((rows, *array.shape[1:]), dtype)
    padded[: len(array)] = array
    return padded


def _padded(count: int) -> int:
    """Return the number of rows, at least `count`, that a program is compiled for: 7, 8, 10, 12, 14, 16, 20, ..."""
    step = max(1, (1 << count.bit_length() - 1) // STEPS_AN_OCTAVE) if count else 1
    return -(-count // step) * step


def _places(key, shape) -> list[range]:
    """Return the indices along each axis that a tuple of slices, maybe with `...`, selects."""
    at = key.index(...) if ... in key else len(key)
    rest = (slice(None),) * (len(shape) - len(key) + (... in key))
    key = (*key[:at], *rest, *key[at + 1 :])
    return [range(*part.indices(length)) for part, length in zip(key, shape, strict=True)]
