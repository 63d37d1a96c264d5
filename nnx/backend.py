"""What nnx asks of an array library, and the registry that finds one at run time.

A backend adapts one array library. Its `xp` is that library's array-API namespace, in which all
layers, losses and optimizers are written; its methods cover what the array-API standard leaves
out (copies from and to the host, running a step many times, ...). Backends are found through the
entry-point group `nnx.backends`, so one of your own is installed, not patched in.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnx import log, tree
from nnx.distributed.ranks import LAUNCH, Communicator
from nnx.registry import suggest

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

GROUP = "nnx.backends"
# `NNX_BACKEND=auto` takes the first of these that can run.
AUTOMATIC = ("cupy", "jax", "numpy")


class BackendError(RuntimeError):
    """A backend was asked for that does not exist or cannot run here; says what to do about it."""


@dataclass(frozen=True)
class BackendInfo:
    """What `nnx.available_backends()` tells about one backend."""

    name: str
    usable: bool
    version: str = ""
    device: str = ""
    memory: str = ""
    reason: str = ""
    """Why it cannot run, and the remedy; empty when it can."""


class Backend:
    """The protocol, with implementations that suit any eager array library.

    A subclass must set `name` and `xp` and define `asarray` and `to_numpy`. Its `__init__` imports
    the library and raises `BackendError`, naming the remedy, if it cannot run on this machine.
    """

    name: str
    xp: Any
    is_accelerated: bool = False
    """Whether it runs on something faster than the CPU: what `auto` looks for."""

    # Arrays

    def asarray(self, value, dtype: str | None = None) -> Any:
        """Return `value`, an array of the host or of this backend, as an array on the device."""
        raise NotImplementedError

    def padded(self, rows: int) -> int:
        """Return the number of rows, `rows` or more, that arrays had better have.

        It is `rows` unless each shape is compiled for itself: then one of few numbers.
        """
        return rows

    def place(self, array: np.ndarray, rows: int) -> Any:
        """Return an array of the host on the device, maybe with further rows up to `rows`, which nothing reads."""
        return self.asarray(array)

    def to_numpy(self, array) -> np.ndarray:
        """Return a copy of `array` on the host that later steps cannot change."""
        raise NotImplementedError

    def copy(self, array) -> Any:
        """Return a copy of `array` on the device that later steps cannot change."""
        return self.xp.asarray(array, copy=True)

    def zeros(self, shape, dtype: str) -> Any:
        """Return an array of zeros on the device."""
        return self.asarray(np.zeros(shape, dtype))

    def full_like(self, array, value: float) -> Any:
        """Return an array of the shape and dtype of `array` that holds one value."""
        return self.xp.full_like(array, value)

    def arange(self, count: int, dtype: str) -> Any:
        """Return 0, 1, ..., count - 1 on the device."""
        return self.xp.arange(count, dtype=getattr(self.xp, dtype))

    def gather(self, array, index) -> Any:
        """Return the rows of `array` that `index` numbers, all of which exist."""
        return self.xp.take(array, index, axis=0)

    def free_memory(self) -> int | None:
        """Return the bytes free on the device, or None where that is the host or cannot be told."""
        return None

    def out_of_memory(self, error: Exception) -> str | None:
        """Return what the library says, in one line, if an exception tells that memory ran out."""
        return str(error) or "no memory is left" if isinstance(error, MemoryError) else None

    def foreign_array(self, error: Exception) -> str | None:
        """Return what the library says, in one line, if it met an array of another library."""
        return None

    def transfer(self, batches) -> Generator:
        """Yield each of some batches, trees of host arrays, on the device.

        Copies may run some batches ahead, beside the computation. The host arrays of a batch may be
        written to once the next batch is asked for: what is yielded stays as it is.
        """
        for batch in batches:
            yield tree.map(lambda part: self.asarray(np.array(part)), batch)

    def scatter_add(self, indices, values, length: int) -> Any:
        """Return (length, width): row i is the sum of those rows of `values` whose index is i.

        `indices` (rows,) are integers from 0 to length - 1, each as often as it comes; `values` is
        (rows, width).
        """
        xp, parts = self.xp, []
        step = max(1, 2**20 // max(1, indices.shape[0]))  # one-hot matrices of a few megabytes
        for start in range(0, length, step):
            numbers = self.arange(min(step, length - start), "int32") + start
            one_hot = xp.reshape(numbers, (-1, 1)) == xp.reshape(indices, (1, -1))
            parts.append(xp.matmul(xp.astype(one_hot, values.dtype), values))
        return xp.concat(parts, axis=0)

    def convolve(self, windows, x, kernel, groups: int = 1, transposed: bool = False) -> tuple | None:
        """Return a convolution and its pullback by the library's own means, or None: then by patches.

        x (batch, *spatial, channels) and kernel (*size, channels / groups, filters) give (batch,
        *counts, filters); `pullback(dy)` gives dx and dkernel. If transposed, it is the gradient of a
        convolution by its input: x (batch, *counts, channels) and kernel (*size, filters, channels)
        give (batch, *spatial, filters).
        """
        return None

    patch_bytes: int = 4 << 20
    """Bytes of patches that a convolution forms at a time: on a CPU what stays in a core's cache."""

    def in_pieces(self, function, arrays: tuple, length: int) -> tuple:
        """Return what `function(*parts)` gives for `length` samples of `arrays` at a time.

        It gives two arrays, each of which may be None: the first is joined along its first axis, the
        second summed.
        """
        count = arrays[0].shape[0]
        if count <= length:
            return function(*arrays)
        places = [slice(start, min(start + length, count)) for start in range(0, count, length)]
        pieces = [function(*(array[place, ...] for array in arrays)) for place in places]
        joined, summed = zip(*pieces, strict=True)
        return (
            None if joined[0] is None else self.xp.concat(joined, axis=0),
            None if summed[0] is None else functools.reduce(operator.add, summed),
        )

    def patches(self, x, windows) -> Any:
        """Return the elements of each window of x side by side: (batch, *counts, elements * channels).

        `windows` are `nnx.layers.windows.Windows` over x, (batch, *spatial, channels).
        """
        parts = windows.slices(self, x)
        return parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=-1)

    def from_patches(self, gradients, windows) -> Any:
        """Return the gradient of x from that of its patches, each element added where it came from."""
        elements = math.prod(windows.size)
        channels = gradients.shape[-1] // elements
        parts = [gradients[..., i * channels : (i + 1) * channels] for i in range(elements)]
        return windows.unslice(self, parts if elements > 1 else [gradients])

    score_bytes: int = 1 << 40
    """Bytes of scores that attention forms at a time: on a CPU what stays in its caches."""

    def pad(self, x, widths, value: float = 0.0) -> Any:
        """Return `x` inside an array of `value`: `widths` has (before, after) for each axis."""
        shape = [n + before + after for n, (before, after) in zip(x.shape, widths, strict=True)]
        padded = self.xp.full(tuple(shape), value, dtype=x.dtype, device=x.device)
        padded[tuple(slice(b, b + n) for n, (b, _) in zip(x.shape, widths, strict=True))] = x
        return padded

    def unslice(self, shape, parts, keys) -> Any:
        """Return zeros with each part added where its key cuts: the transpose of slicing.

        `keys` are indices of slices. A gradient of slices `x[key]` becomes that of x so.
        """
        total = self.xp.zeros(tuple(shape), dtype=parts[0].dtype, device=parts[0].device)
        for part, key in zip(parts, keys, strict=True):
            total[key] = total[key] + part
        return total

    # Running things

    def apart(self, function) -> Any:
        """Return `function()`, a tree of arrays, whose other arrays are out of memory when it is done.

        That is so by itself where each call runs at once. In a compiled program it keeps the compiler from
        mixing one part of a step with another.
        """
        return function()

    def kernel(self, function, *arrays, overwrite: int | None = None) -> Any:
        """Run `function(xp, *arrays)`, a pure elementwise function, as fast as the library can.

        `overwrite` numbers the argument whose memory may be used for the result: only ever an
        array that the caller has just made and will not look at again.
        """
        return function(self.xp, *arrays)

    def scan(self, step, carry, xs, fixed=(), reverse: bool = False) -> tuple:
        """Run a recurrence over the first axis of arrays, and return the stacked results of all its steps.

        A step at t is one kernel, a pure elementwise function with several results:

            results = step(xp, *step.arguments(backend, fixed, carry, [x[t] for x in xs]))

        `step.join` says how many results after one another lie side by side, along the last axis, in
        each of the stacked arrays. The next step's carry is the first of these: as many as `carry` has,
        which is that of the first step. With `reverse` the steps are taken from the last t to the first.
        All that changes from call to call comes in as arrays; steps that are equal do the same.
        """
        times, found = range(xs[0].shape[0]), []
        for t in reversed(times) if reverse else times:
            arguments = step.arguments(self, fixed, carry, [x[t, ...] for x in xs])
            found.append(joined(self.xp, step.join, step(self.xp, *arguments)))
            carry = found[-1][: len(carry)]
        rows = found[::-1] if reverse else found
        return tuple(self.xp.stack(list(column)) for column in zip(*rows, strict=True))

    def compile(self, function, consume: bool = False) -> Callable:
        """Return `function` compiled, where the library can.

        With `consume`, the memory of its first argument may be reused for its result.
        """
        return function

    def stage(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """Return what `repeat` reads a row a step from, ready for the device.

        Matrices (the indices of the samples of each batch) go to the device. Vectors (one number
        a step: learning rate, random key) stay Python numbers, which never widen a dtype.
        """
        return {name: v.tolist() if v.ndim == 1 else self.asarray(v) for name, v in rows.items()}

    def fixed(self, values: dict) -> dict:
        """Return data that many runs of steps are given, arranged so that each run costs less. It must not change."""
        return values

    seconds_a_run: float = 0.1
    """How long a run of steps lasts, about: after each, bars move and Ctrl-C is heard."""

    def batch(self, row: dict, data: dict) -> dict:
        """Return `data` with those of `data["samples"]` that `row["index"]` numbers; all, if the row has none."""
        if "index" not in row:
            return data
        samples = tree.map(lambda array: self.gather(array, row["index"]), data["samples"])
        return {**data, "samples": samples}

    def add(self, totals, sums) -> Any:
        """Return totals plus the sums of one more step; the first totals are None.

        Totals are kept in float64: in float32 the sum over a million steps is off by a percent.
        """
        if totals is None:
            return tree.map(self._in_float64, sums)
        return tree.map(operator.add, totals, sums)

    def _in_float64(self, value):
        is_whole = self.xp.isdtype(value.dtype, ("bool", "integral"))
        return value if is_whole else self.xp.astype(value, self.xp.float64)

    def repeat(self, step) -> Callable:
        """Return `run(carry, totals, rows, data, start, stop) -> (carry, totals)`.

        It calls `step(carry, row, batch(row, data)) -> (carry, sums)` for rows start, ..., stop - 1
        of `rows` and adds the sums to the totals, one step after another: in how many runs an epoch
        is cut does not change a bit of them. The first totals are None. The carry that goes in is
        consumed: its memory may be reused for the one that comes out.
        """

        def run(carry, totals, rows, data, start, stop):
            for i in range(start, stop):
                row = {name: v[i] if isinstance(v, list) else v[i, ...] for name, v in rows.items()}
                carry, sums = step(carry, row, self.batch(row, data))
                totals = self.add(totals, sums)
            return carry, totals

        return run

    def one_step(self, step) -> Callable:
        """Return `run(carry, totals, numbers, batch) -> (carry, totals)`, as `repeat` but for one step.

        The batch is by itself on the device, and `numbers` are vectors of one element on the host,
        which does not wait for the step.
        """
        run = self.repeat(step)
        return lambda carry, totals, numbers, batch: run(carry, totals, self.stage(numbers), batch, 0, 1)

    def vjp(self, function, *arguments) -> tuple[Any, Callable] | None:
        """Return `function(*arguments)` and its derived pullback, or None if it cannot be derived."""
        return None

    def scope(self, dtype: str) -> contextlib.AbstractContextManager:
        """Return the context in which arrays of `dtype` can be made and computed with."""
        return contextlib.nullcontext()

    def read(self, values: list) -> list:
        """Return a list of trees with their arrays on the host, in one transfer if possible."""
        return [tree.map(self.to_numpy, value) for value in values]

    def synchronize(self, value) -> None:
        """Wait until `value` has been computed."""

    def snapshot(self, values) -> Callable[[], Any]:
        """Return a function that gives a copy of a tree as it is now, arranged as it is, at each call."""
        kept = tree.map(self.copy, values)
        return lambda: tree.map(self.copy, kept)

    def zero_or_nan(self, values) -> Any:
        """Return a number, on the device or the host: 0, or nan where any element of a tree is not finite."""
        # Zero times infinity is nan, and nan stays nan in a sum.
        return sum(self.xp.sum(array * 0.0) for array in self.flat(values))

    def check_process(self) -> None:
        """Raise a BackendError if it cannot run in this process, a fork of the one that started it."""

    # Precision

    dtypes: tuple[str, ...] = ("float32", "float64")
    """The precisions that models may compute in here."""

    def dtype(self, name: str) -> Any:
        """Return this library's dtype of that name."""
        return getattr(self.xp, name)

    def convert(self, values, dtype) -> Any:
        """Return a tree of arrays in another precision."""
        return tree.map(lambda leaf: self.xp.astype(leaf, dtype), values)

    def map_kernel(self, function, values, *arguments) -> Any:
        """Return a tree of `function(xp, leaf, *arguments)`, for a pure elementwise function."""
        return tree.map(lambda leaf: self.kernel(function, leaf, *arguments), values)

    def check_dtype(self, name: str) -> None:
        """Raise a BackendError if models cannot compute in this precision here."""
        if name not in self.dtypes:
            raise BackendError(
                f"dtype {name!r} is not to be had on {self.name}, which has {', '.join(self.dtypes)}: choose one of "
                f"these, or another backend, such as nnx.set_backend('jax')"
            )

    def flat(self, values) -> list:
        """Return arrays that hold together what the arrays of a tree hold."""
        return tree.leaves(values)

    # Optimizer updates

    def pack(self, values) -> Any:
        """Return a tree of device arrays arranged so that `update` is fast."""
        return values

    def update(self, kernel, params, grads, slots, scalars) -> tuple[Any, list]:
        """Run `kernel(xp, param, grad, *slots, **scalars) -> (param, *slots)` over all parameters.

        Consumes `params` and `slots`; returns the new ones.
        """
        rows = zip(tree.leaves(params), tree.leaves(grads), *map(tree.leaves, slots), strict=True)
        results = [kernel(self.xp, *row, **scalars) for row in rows]
        new_params = tree.rebuild(params, (result[0] for result in results))
        return new_params, [
            tree.rebuild(params, (result[i + 1] for result in results)) for i in range(len(slots))
        ]

    # Several processes

    def communicator(self, rank: int, size: int) -> Communicator:
        """Return what connects this process to others that train together; see `nnx.distributed`."""
        raise BackendError(
            f"the {self.name} backend does not train on several processes: run it without {LAUNCH}, "
            f"or with NNX_BACKEND=cupy or numpy"
        )

    def all_reduce(self, communicator, trees: list, scale=None) -> list:
        """Return trees of the sums over all ranks of `scale` times each array, by one all-reduce."""
        raise NotImplementedError

    def broadcast(self, communicator, values) -> None:
        """Overwrite the arrays of what a model carries by those of rank 0."""
        raise NotImplementedError

    # What it is

    def describe(self) -> BackendInfo:
        """Return name, version, device and memory, for people to read."""
        return BackendInfo(self.name, usable=True)

    def __reduce__(self):
        return as_backend, (self.name,)

    def __repr__(self):
        return f"<nnx backend {self.name!r}>"


def joined(xp, join, results) -> tuple:
    """Return results with those that belong together side by side; see `Backend.scan`."""
    rest = iter(results)
    groups = [list(itertools.islice(rest, count)) for count in join]
    return tuple(group[0] if len(group) == 1 else xp.concat(group, axis=-1) for group in groups)


# The registry. A backend is made once in a process, when it is first asked for.

_default: Backend | None = None
_chosen: ContextVar[Backend | None] = ContextVar("nnx_backend", default=None)


@functools.cache
def _entry_points() -> Mapping[str, Any]:
    import importlib.metadata  # a third of the time of `import nnx`, and not always needed

    points = {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
    if "numpy" in points:
        return points
    return {**_entry_points_of_clone(), **points}


def _entry_points_of_clone() -> dict[str, Any]:
    """Return the entry points of nnx where it runs from a clone that was never installed."""
    import importlib.metadata
    import tomllib

    try:
        project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return {}
    named = tomllib.loads(project).get("project", {}).get("entry-points", {}).get(GROUP, {})
    return {name: importlib.metadata.EntryPoint(name, value, GROUP) for name, value in named.items()}


_making = threading.RLock()


def _load(name: str) -> Backend:
    with _making:  # by one thread, and the others get what it made
        return _load_once(name)


@functools.cache
def _load_once(name: str) -> Backend:
    points = _entry_points()
    if not points:
        raise BackendError(
            "no backend is installed, not even NumPy's: nnx is imported from a folder that was never "
            "installed and has no pyproject.toml beside it. Run: pip install -e ."
        )
    if name not in points:
        raise BackendError(suggest("backend", name, [*points, "auto"]))
    return points[name].load()()


def host_memory() -> str:
    """Return the memory of this machine, for people to read; empty where it cannot be told."""
    if not hasattr(os, "sysconf"):
        return ""
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


def _automatic() -> Backend:
    """Return the first usable of CuPy, JAX on an accelerator, and NumPy."""
    for name in AUTOMATIC[:-1]:
        try:
            backend = _load(name)
        except BackendError as error:
            log.debug("backend auto: not %s: %s", name, error)
            continue
        if backend.is_accelerated:
            log.info("backend auto: %s", name)
            return backend
        log.debug("backend auto: not %s, which has no accelerator here", name)
    log.info("backend auto: %s, for want of an accelerator", AUTOMATIC[-1])
    return _load(AUTOMATIC[-1])


def as_backend(backend: "str | Backend | None") -> Backend:
    """Return the backend of this name (`"auto"` included), the backend itself, or the current one."""
    if backend is None:
        return get_backend()
    if isinstance(backend, Backend):
        return backend
    if not isinstance(backend, str):
        raise TypeError(f"backend must be a name such as 'numpy' or 'jax', got {backend!r}")
    return _automatic() if backend == "auto" else _load(backend)


def get_backend() -> Backend:
    """Return the current backend.

    That is the one this thread chose; else the one the main thread chose; else the one that the
    environment variable NNX_BACKEND names; else NumPy.

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
    found = as_backend(backend)
    if threading.current_thread() is threading.main_thread():
        _default = found
    else:
        _chosen.set(found)
    return found


@contextlib.contextmanager
def use_backend(backend: str | Backend) -> Iterator[Backend]:
    """Use a backend inside a `with` block, in this thread.

    >>> import nnx
    >>> with nnx.use_backend("numpy") as backend:
    ...     backend.name
    'numpy'
    """
    found = as_backend(backend)
    token = _chosen.set(found)
    try:
        yield found
    finally:
        _chosen.reset(token)


def available_backends() -> dict[str, BackendInfo]:
    """Return, by name, each installed backend: whether it can run here, and if not, why."""
    found = {}
    for name in sorted(_entry_points()):
        try:
            found[name] = _load(name).describe()
        except BackendError as error:
            found[name] = BackendInfo(name, usable=False, reason=str(error))
        except Exception as error:  # a broken plug-in must not hide the others
            found[name] = BackendInfo(name, usable=False, reason=f"cannot be loaded: {error!r}")
    return found
