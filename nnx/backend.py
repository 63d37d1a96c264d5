"""What nnx asks of an array library, and the choice of one at run time.

A backend adapts one array library. Its `xp` is that library's array-API namespace, in which all layers,
losses and optimizers are written; its methods cover what the standard leaves out.

The module itself runs on the host, with NumPy for host arrays.
"""

import contextlib
import functools
import itertools
import math
import operator
import os
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np

from nnx import log, tree
from nnx.backend_loading import BackendError, BackendInfo, available_backends, load

__all__ = [
    "Backend",
    "BackendError",
    "BackendInfo",
    "as_backend",
    "available_backends",
    "get_backend",
    "set_backend",
    "use_backend",
]


class Backend:
    """The protocol, with implementations that suit any eager array library.

    A subclass must set `name` and `xp` and define `asarray` and `to_numpy`. Its `__init__` imports
    the library and raises `BackendError`, naming the remedy, if it cannot run on this machine.
    """

    name: str
    xp: Any
    is_accelerated: bool = False
    """Whether it runs on something faster than the CPU. `auto` looks for such a backend."""
    dtypes: tuple[str, ...] = ("float32", "float64")
    """The precisions in which models can compute."""

    # Copies between host and device

    def asarray(self, value, dtype: str | None = None) -> Any:
        """Return a host array, or an array of this backend, as an array on the device."""
        raise NotImplementedError

    def to_numpy(self, array) -> np.ndarray:
        """Return a copy of `array` on the host that later steps cannot change."""
        raise NotImplementedError

    def read(self, values: list) -> list:
        """Return a list of trees with their arrays on the host, in one transfer if possible."""
        return [tree.map(self.to_numpy, value) for value in values]

    def copy(self, values) -> Any:
        """Return a copy of a tree of arrays on the device that later steps cannot change."""
        return tree.map(lambda array: self.xp.asarray(array, copy=True), values)

    def padded(self, rows: int) -> int:
        """Return how many rows to pad an array of `rows` rows to, so that few different shapes are compiled."""
        return rows

    def put_samples(self, samples, rows: int | None = None) -> Any:
        """Return a tree of host arrays on the device, for many steps to read; it must not change.

        The arrays may be padded to `rows` rows of any content.
        """
        return tree.map(self.asarray, samples)

    def device_put(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return the inputs of `repeat` that have one row per step, on the device where that helps.

        Matrices (the indices of the samples of each batch) go to the device. Vectors (one scalar
        per step: learning rate, random key) stay Python scalars, which never widen a dtype.
        """
        return {name: v.tolist() if v.ndim == 1 else self.asarray(v) for name, v in rows.items()}

    def transfer(self, batches) -> Generator:
        """Yield batches, trees of host arrays, on the device.

        Copies may run some batches ahead of the computation. The host arrays of a batch may be
        overwritten once the next batch is asked for: what was yielded does not change.
        """
        for batch in batches:
            yield tree.map(lambda array: self.asarray(np.array(array)), batch)

    # Array functions that the standard lacks

    def full_like(self, array, value: float) -> Any:
        """Return an array of the shape and dtype of `array`, filled with `value`."""
        return self.xp.full_like(array, value)

    def arange(self, count: int, dtype: str) -> Any:
        """Return 0, 1, ..., count - 1 on the device."""
        return self.xp.arange(count, dtype=getattr(self.xp, dtype))

    def gather(self, array, index) -> Any:
        """Return the rows of `array` at the indices `index`, all of which are in range."""
        return self.xp.take(array, index, axis=0)

    def scatter_add(self, indices, values, length: int) -> Any:
        """Return (length, width): row i is the sum of the rows of `values` whose index is i.

        `indices` (rows,) are integers from 0 to length - 1, repeated or not; `values` is (rows, width).
        """
        xp, parts = self.xp, []
        block = max(1, 2**20 // max(1, indices.shape[0]))  # one-hot matrices of a few megabytes
        for start in range(0, length, block):
            rows = self.arange(min(block, length - start), "int32") + start
            one_hot = xp.reshape(rows, (-1, 1)) == xp.reshape(indices, (1, -1))
            parts.append(xp.matmul(xp.astype(one_hot, values.dtype), values))
        return xp.concat(parts, axis=0)

    def pad(self, x, widths, value: float = 0.0) -> Any:
        """Return `x` padded with `value`: `widths` has (before, after) for each axis."""
        shape = [n + before + after for n, (before, after) in zip(x.shape, widths, strict=True)]
        padded = self.xp.full(tuple(shape), value, dtype=x.dtype, device=x.device)
        padded[tuple(slice(b, b + n) for n, (b, _) in zip(x.shape, widths, strict=True))] = x
        return padded

    def unslice(self, shape, parts, keys) -> Any:
        """Return zeros of `shape` with each part added at its key: the transpose of slicing.

        `keys` are tuples of slices. It turns the gradients of `x[key]` into the gradient of x.
        """
        total = self.xp.zeros(tuple(shape), dtype=parts[0].dtype, device=parts[0].device)
        for part, key in zip(parts, keys, strict=True):
            total[key] = total[key] + part
        return total

    # Convolution and attention

    tile_bytes: Mapping[str, int] = {"patches": 4 << 20, "scores": 1 << 40}
    """How much of a convolution's patches, and of attention's scores, is computed at a time: on a CPU, what
    fits in a core's cache."""

    def map_tiles(self, function, arrays: tuple, length: int) -> tuple:
        """Return `function(*arrays)`, computed for `length` samples at a time.

        It returns two arrays, each of which may be None: those of the tiles are concatenated along the
        first axis for the first, and summed for the second.
        """
        if (count := arrays[0].shape[0]) <= length:
            return function(*arrays)
        tiles = [slice(start, min(start + length, count)) for start in range(0, count, length)]
        rows, terms = zip(*(function(*(a[tile, ...] for a in arrays)) for tile in tiles), strict=True)
        return (
            None if rows[0] is None else self.xp.concat(rows, axis=0),
            None if terms[0] is None else functools.reduce(operator.add, terms),
        )

    def convolve(self, windows, x, kernel, groups: int = 1, transposed: bool = False) -> tuple | None:
        """Return a convolution by the library and its pullback, or None to have it computed from patches.

        x (batch, *spatial, channels) and kernel (*size, channels / groups, filters) give (batch, *counts,
        filters); `pullback(dy)` gives dx and dkernel. If transposed, it is the gradient of a convolution
        by its input: x (batch, *counts, channels) and kernel (*size, filters, channels) give (batch,
        *spatial, filters).
        """
        return None

    def patches(self, x, windows) -> Any:
        """Return the elements of each window of x as one row: (batch, *counts, elements * channels).

        `windows` are `nnx.layers.windows.Windows` over x, (batch, *spatial, channels).
        """
        parts = windows.slices(self, x)
        return parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=-1)

    def from_patches(self, gradients, windows) -> Any:
        """Return the gradient of x from the gradient of its patches: the transpose of `patches`."""
        elements = math.prod(windows.size)
        channels = gradients.shape[-1] // elements
        parts = [gradients[..., i * channels : (i + 1) * channels] for i in range(elements)]
        return windows.unslice(self, parts if elements > 1 else [gradients])

    # Elementwise kernels

    def kernel(self, function, *arrays, overwrite: int | None = None) -> Any:
        """Run `function(xp, *arrays)`, a pure elementwise function, as fast as the library can.

        `overwrite` is the index of an argument whose memory may be reused for the result: an array
        that the caller has just made and does not read again.
        """
        return function(self.xp, *arrays)

    def pack(self, values) -> Any:
        """Return a tree of device arrays arranged so that `map` over it is fast.

        If one array holds all leaves, it is the tree's attribute `buffer`; see `nnx.tree.buffers`.
        """
        return values

    def map(self, function, *trees, scalars: dict[str, Any] | None = None, overwrite=()) -> Any:
        """Return the tree of `function(xp, *leaves, **scalars)`, a pure elementwise function.

        With `overwrite`, indices into `trees`, the function returns one result for each of them. Their
        memory may be reused: they are consumed, and a tuple of trees is returned in their place.
        """
        rows = zip(*map(tree.leaves, trees), strict=True)
        results = [function(self.xp, *row, **(scalars or {})) for row in rows]
        if not overwrite:
            return tree.rebuild(trees[0], results)
        return tuple(tree.rebuild(trees[0], [result[k] for result in results]) for k in range(len(overwrite)))

    def scan(self, step, carry, xs, fixed=(), reverse: bool = False) -> tuple:
        """Run a recurrence over the first axis of arrays, and return the stacked results of all time steps.

        A time step is one kernel, a pure elementwise function with several results:

            results = step(xp, *step.arguments(backend, fixed, carry, [x[t] for x in xs]))

        `step.join` says how many consecutive results are concatenated, along the last axis, in each of
        the stacked arrays. The first results are the next carry; `carry` is that of the first time step.
        With `reverse`, time runs backwards. All that changes from call to call is in the arrays; steps
        that compare equal compute the same.
        """
        times, rows = range(xs[0].shape[0]), []
        for t in reversed(times) if reverse else times:
            arguments = step.arguments(self, fixed, carry, [x[t, ...] for x in xs])
            rows.append(joined(self.xp, step.join, step(self.xp, *arguments)))
            carry = rows[-1][: len(carry)]
        rows = rows[::-1] if reverse else rows
        return tuple(self.xp.stack(list(column)) for column in zip(*rows, strict=True))

    # Whole steps

    seconds_a_run: float = 0.1
    """About how long one call of `repeat`'s function should take: progress and Ctrl-C are handled after it."""

    def compile(self, function, consume: bool = False) -> Callable:
        """Return `function` compiled, where the library can.

        With `consume`, the memory of its first argument may be reused for its result.
        """
        return function

    def repeat(self, step) -> Callable:
        """Return `run(carry, totals, rows, data, start, stop) -> (carry, totals)`.

        It calls `step(carry, row, batch_of(self, row, data)) -> (carry, sums)` for rows start, ..., stop - 1
        of `rows`, in order, and adds the sums to the totals, which are None at first. How the steps are
        divided into runs does not change a bit of the result. The carry is consumed: its memory may be reused.
        """

        def run(carry, totals, rows, data, start, stop):
            for i in range(start, stop):
                row = {name: v[i] if isinstance(v, list) else v[i, ...] for name, v in rows.items()}
                carry, sums = step(carry, row, batch_of(self, row, data))
                totals = self.add(totals, sums)
            return carry, totals

        return run

    def add(self, totals, sums) -> Any:
        """Return the totals plus the sums of one more step; the first totals are None.

        Totals are float64: in float32 the sum over a million steps is off by a percent.
        """
        return tree.map(self._in_float64, sums) if totals is None else tree.map(operator.add, totals, sums)

    def _in_float64(self, value):
        is_exact = self.xp.isdtype(value.dtype, ("bool", "integral"))
        return value if is_exact else self.xp.astype(value, self.xp.float64)

    def isolate(self, function) -> Any:
        """Return `function()`, a tree of arrays, with the memory of its intermediate arrays freed.

        Eager calls do that by themselves. In a compiled program it keeps the compiler from interleaving
        one part of a step with another.
        """
        return function()

    @property
    def base(self) -> "Backend":
        """The backend itself; of one that records what is computed, the backend that computes."""
        return self

    def vjp(self, function, *arrays) -> tuple[Any, Callable] | None:
        """Return `function(self, *arrays)` and its pullback, a list of gradients, or None if the library has none."""
        return None

    def stop_gradient(self, x) -> Any:
        """Return an array as a constant for `vjp`."""
        return x

    def scope(self, dtype: str) -> contextlib.AbstractContextManager:
        """Return the context in which to compute with arrays of `dtype`.

        Raises BackendError if the backend cannot run in this process, a fork of the one that made it.
        """
        return contextlib.nullcontext()

    def synchronize(self, value) -> None:
        """Wait until `value` has been computed."""

    # Checks and descriptions

    def zero_or_nan(self, values) -> Any:
        """Return a scalar, on the device or the host: 0, or nan if any element of a tree is not finite."""
        # Zero times infinity is nan, and nan stays nan in a sum.
        return sum(self.xp.sum(array * 0.0) for array in tree.buffers(values))

    def free_memory(self) -> int | None:
        """Return the bytes free on the device, or None if that is the host or unknown."""
        return None

    def translate(self, error: Exception) -> Exception | None:
        """Return an exception of the library as Python's, with its message in one line, else None.

        A MemoryError if memory ran out; a TypeError if it was given an array of another library.
        """
        return MemoryError(str(error) or "no memory is left") if isinstance(error, MemoryError) else None

    def describe(self) -> BackendInfo:
        """Return name, version, device and memory, for people to read."""
        return BackendInfo(self.name, usable=True)

    # Several processes

    def communicator(self, rank: int, size: int) -> Any:
        """Return the `nnx.distributed.Communicator` that connects this process to the others."""
        raise BackendError(
            f"the {self.name} backend does not train on several processes: run it without python -m nnx launch, "
            f"or with NNX_BACKEND=cupy or numpy"
        )

    def all_reduce(self, communicator, trees: list, scale=None) -> list:
        """Return trees of the sums over all ranks of `scale` times each array, by one all-reduce."""
        raise NotImplementedError

    def __reduce__(self):
        return as_backend, (self.name,)

    def __repr__(self):
        return f"<nnx backend {self.name!r}>"


def batch_of(backend: Backend, row, data) -> dict:
    """Return `data` with the samples at the indices `row["index"]`; all, if the row has none."""
    if "index" not in row:
        return data
    samples = tree.map(lambda array: backend.gather(array, row["index"]), data["samples"])
    return {**data, "samples": samples}


def joined(xp, join, results) -> tuple:
    """Return results with groups of them concatenated; see `Backend.scan`."""
    rest = iter(results)
    groups = [list(itertools.islice(rest, count)) for count in join]
    return tuple(group[0] if len(group) == 1 else xp.concat(group, axis=-1) for group in groups)


# The choice of a backend

_default: Backend | None = None
_chosen: ContextVar[Backend | None] = ContextVar("nnx_backend", default=None)


def _automatic() -> Backend:
    """Return the first usable of CuPy, JAX on an accelerator, and NumPy."""
    for name in ("cupy", "jax"):
        try:
            backend = load(name)
        except BackendError as error:
            log.debug("backend auto: not %s: %s", name, error)
            continue
        if backend.is_accelerated:
            log.info("backend auto: %s", name)
            return backend
        log.debug("backend auto: not %s, which has no accelerator here", name)
    log.info("backend auto: numpy, for want of an accelerator")
    return load("numpy")


def as_backend(backend: "str | Backend | None") -> Backend:
    """Return the backend of this name (`"auto"` included), the backend itself, or the current one."""
    if backend is None:
        return get_backend()
    if isinstance(backend, Backend):
        return backend
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a name such as 'numpy' or 'jax', got {backend!r}")
    return _automatic() if backend == "auto" else load(backend)


def get_backend() -> Backend:
    """Return the current backend.

    The one this thread chose; else the main thread's; else that of the environment variable NNX_BACKEND;
    else NumPy.

    >>> import nnx
    >>> nnx.get_backend().name
    'numpy'
    """
    chosen = _chosen.get() or _default
    return chosen if chosen is not None else as_backend(os.environ.get("NNX_BACKEND") or "numpy")


def set_backend(backend: str | Backend) -> Backend:
    """Choose the backend of models built from now on, and return it.

    In the main thread the choice holds for the process; in another thread for that thread alone.

    Parameters
    ----------
    backend : str or Backend
        `"numpy"`, `"cupy"`, `"jax"`, `"auto"`, or the name of an installed plug-in.

    Raises
    ------
    BackendError
        If there is no such backend or it cannot run here; the message names the remedy.
    """
    global _default
    chosen = as_backend(backend)
    if threading.current_thread() is threading.main_thread():
        _default = chosen
    else:
        _chosen.set(chosen)
    return chosen


@contextlib.contextmanager
def use_backend(backend: str | Backend) -> Iterator[Backend]:
    """Use a backend inside a `with` block, in this thread.

    >>> import nnx
    >>> with nnx.use_backend("numpy") as backend:
    ...     backend.name
    'numpy'
    """
    token = _chosen.set(chosen := as_backend(backend))
    try:
        yield chosen
    finally:
        _chosen.reset(token)
