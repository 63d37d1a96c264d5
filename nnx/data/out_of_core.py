"""Samples larger than memory: an epoch reads them from their file, one window at a time.

Reading single samples of a file in a random order is slow, and slower if its chunks are compressed. So an
epoch visits blocks of neighbouring samples in a random order: it reads a window of several blocks, shuffles
its samples and splits them into batches, while a thread reads the next window. Each epoch combines other
blocks into windows. Memory holds about two windows, whatever the size of the file.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from nnx import tree
from nnx.data import lazy_arrays
from nnx.data.prefetch import ahead
from nnx.data.samples import Samples, as_targets, as_weight, checked_order, rows_of

BLOCK_BYTES = 512 << 10  # neighbouring samples that stay together
WINDOW_BYTES = 16 << 20  # samples that are shuffled together
IDENTIFYING_SAMPLES = 64


class OutOfCore(Samples):
    """Samples with lazy arrays: a few at a time are read, checked and converted.

    Parameters
    ----------
    x, y, weight
        As for `Samples`; some are `LazyArray`.
    finish : function of Samples
        Checks and converts samples that were read.
    indices : range
        The indices of the samples in the arrays.
    """

    stays_on_host = True

    def __init__(self, x, y, weight, finish, indices: range):
        self.x, self.y, self.weight = x, y, weight
        self.finish, self.indices = finish, indices
        self.block, self.window = _sizes([*tree.leaves(x), *tree.leaves(y)], len(indices))

    def __len__(self):
        return len(self.indices)

    def part(self, start, stop) -> "OutOfCore":
        return OutOfCore(self.x, self.y, self.weight, self.finish, self.indices[start:stop])

    def transformed(self, function) -> "OutOfCore":
        finish = self.finish
        return OutOfCore(self.x, self.y, self.weight, lambda loaded: function(finish(loaded)), self.indices)

    def targets(self):
        own = slice(self.indices.start, self.indices.stop)
        return None if lazy_arrays.any_lazy(self.y) else tree.map(lambda y: y[own], self.y)

    def arrays(self) -> dict[str, Any]:
        return self.read(np.arange(len(self))).arrays()

    def identifying_samples(self) -> Samples:
        """Return some evenly spaced samples, from the first to the last."""
        return self.read(np.unique(np.linspace(0, len(self) - 1, IDENTIFYING_SAMPLES).astype(int)))

    def read(self, index: np.ndarray) -> Samples:
        """Return the samples of some indices, in their order."""
        unique, inverse = np.unique(index, return_inverse=True)
        unique += self.indices.start
        loaded = self.map_arrays(lambda leaf: _take(leaf, unique))
        try:
            samples = self.finish(loaded)
        except ValueError as error:
            raise lazy_arrays.renumbered(error, unique)  # noqa: B904 - it is the same error
        in_order = np.array_equal(inverse, np.arange(len(inverse)))
        return samples if in_order else samples.map_arrays(lambda array: np.take(array, inverse, axis=0))

    def order(self, shuffle=False, rng=None) -> Iterator[np.ndarray]:
        """Yield, window by window, the sample indices of an epoch in order."""
        count = len(self)
        if callable(shuffle):
            order = checked_order(shuffle(np.arange(count)), count)
            yield from (order[start : start + self.window] for start in range(0, len(order), self.window))
            return
        starts, draw = np.arange(0, count, self.block), rng() if shuffle and rng is not None else None
        if draw is not None:
            draw.shuffle(starts)
        blocks = max(1, self.window // self.block)
        for first in range(0, len(starts), blocks):
            index = np.concatenate(
                [np.arange(s, min(s + self.block, count)) for s in starts[first : first + blocks]]
            )
            if draw is not None:
                draw.shuffle(index)
            yield index

    def batches(self, order, batch_size: int):
        """Yield the samples in this order, split into batches, while a thread reads the next window."""
        rest = None
        with contextlib.closing(ahead(map(self.read, order))) as windows:
            for window in windows:
                start = 0
                if rest is not None:  # a batch may need samples of several windows
                    start = batch_size - len(rest)
                    rest = _joined(rest, window.part(0, start))
                    if len(rest) < batch_size:
                        continue
                    yield rest
                stop = start + (len(window) - start) // batch_size * batch_size
                for first in range(start, stop, batch_size):
                    yield window.part(first, first + batch_size)
                rest = window.part(stop, len(window)) if stop < len(window) else None
        if rest is not None:
            yield rest


def _joined(first: Samples, second: Samples) -> Samples:
    pairs = ((first.x, second.x), (first.y, second.y), (first.weight, second.weight))
    return Samples(*(tree.map(lambda a, b: np.concatenate([a, b]), *pair) for pair in pairs))


def _take(leaf, indices):
    return leaf.take(indices) if isinstance(leaf, lazy_arrays.LazyArray) else np.take(leaf, indices, axis=0)


def _sizes(leaves, count: int) -> tuple[int, int]:
    """Return the number of samples of a block and of a window; a block is a multiple of the chunks of the file."""
    lazy = [leaf for leaf in leaves if isinstance(leaf, lazy_arrays.LazyArray)]
    sample_bytes = sum(int(np.prod(leaf.shape[1:])) * max(4, leaf.dtype.itemsize) for leaf in lazy)
    window = max(1, WINDOW_BYTES // max(1, sample_bytes))
    chunks = (getattr(leaf.source, "chunks", None) for leaf in lazy)
    chunk = max((c[0] for c in chunks if c and isinstance(c[0], int)), default=1)
    block = -(-max(1, BLOCK_BYTES // max(1, sample_bytes)) // chunk) * chunk
    return min(block, window, count), window


def as_out_of_core(x, y, sample_weight, loss, out_shape, dtype) -> Samples:
    """Return the same as `as_samples`, of arrays some of which are lazy.

    Shapes and arrays in memory are checked at once, lazy arrays as they are read.
    """
    count = rows_of(x)
    check = functools.partial(as_targets, loss=loss, out_shape=out_shape, dtype=dtype)
    if not lazy_arrays.any_lazy(y):
        y, check = check(y, count), lambda targets, count: targets
    for targets in tree.leaves(y):
        if len(targets) != count:
            raise ValueError(f"X has {count} samples, y has {len(targets)}: they must be as many")
    weight = np.broadcast_to(1.0, count) if sample_weight is None else as_weight(sample_weight, count)

    def finish(loaded: Samples) -> Samples:
        return Samples(loaded.x, check(loaded.y, len(loaded)), loaded.weight.astype(dtype))

    return OutOfCore(x, y, weight, finish, range(count))
