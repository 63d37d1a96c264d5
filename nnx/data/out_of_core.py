"""Samples larger than memory: an epoch reads them from where they are, a window at a time.

To read single rows in a random order is slow in a file, and worse in one of compressed chunks. So an epoch
visits blocks of neighbouring rows in a random order; a window of several blocks is read, its rows are
shuffled, and batches are cut from it, while a thread reads the next window. Which blocks share a window is
drawn anew each epoch. Memory holds about two windows, whatever the size of the file.
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

# A block is read at once from a file; a window is what is shuffled together.
BLOCK_BYTES = 512 << 10
WINDOW_BYTES = 16 << 20
# So many samples, evenly spaced, tell whether a file is the one it was.
GLANCED_AT = 64


class OutOfCore(Samples):
    """Samples of which some arrays are `Rows`: read, checked and brought into shape some at a time.

    Parameters
    ----------
    x, y, weight
        As of `Samples`, with `Rows` among them.
    finish : function of Samples
        Checks and converts what was read.
    places : range
        The rows that the samples are in.
    """

    stays_on_host = True

    def __init__(self, x, y, weight, finish, places: range):
        self.x, self.y, self.weight = x, y, weight
        self.finish, self.places = finish, places
        self.block, self.window = _sizes([*tree.leaves(x), *tree.leaves(y)], len(places))

    def __len__(self):
        return len(self.places)

    def part(self, start, stop) -> "OutOfCore":
        return OutOfCore(self.x, self.y, self.weight, self.finish, self.places[start:stop])

    def then(self, function) -> "OutOfCore":
        finish = self.finish
        return OutOfCore(self.x, self.y, self.weight, lambda part: function(finish(part)), self.places)

    def targets(self):
        places = slice(self.places.start, self.places.stop)
        return None if lazy_arrays.in_any(self.y) else tree.map(lambda y: y[places], self.y)

    def arrays(self) -> dict[str, Any]:
        return self.read(np.arange(len(self))).arrays()

    def glance(self) -> Samples:
        """Return some samples, evenly spaced, from the first to the last."""
        return self.read(np.unique(np.linspace(0, len(self) - 1, GLANCED_AT).astype(int)))

    def read(self, index: np.ndarray) -> Samples:
        """Return the samples of these numbers, in their order."""
        numbers, back = np.unique(index, return_inverse=True)
        numbers += self.places.start
        parts = self._each(lambda leaf: _take(leaf, numbers))
        try:
            found = self.finish(parts)
        except ValueError as error:
            raise lazy_arrays.renumbered(error, numbers)  # noqa: B904 - it is the error itself
        in_order = np.array_equal(back, np.arange(len(back)))
        return found if in_order else found._each(lambda array: np.take(array, back, axis=0))

    def order(self, shuffle=False, rng=None) -> Iterator[np.ndarray]:
        """Yield, window by window, the numbers of the samples in the order that an epoch visits them in."""
        count = len(self)
        if callable(shuffle):
            chosen = checked_order(shuffle(np.arange(count)), count)
            yield from (chosen[start : start + self.window] for start in range(0, len(chosen), self.window))
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
        """Yield the samples in this order, cut into batches, while a thread reads the next window."""
        rest = None
        with contextlib.closing(ahead(map(self.read, order))) as windows:
            for window in windows:
                start = 0
                if rest is not None:  # a batch that lies in two windows
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


def _take(leaf, numbers):
    return leaf.take(numbers) if isinstance(leaf, lazy_arrays.Rows) else np.take(leaf, numbers, axis=0)


def _sizes(leaves, count: int) -> tuple[int, int]:
    """Return how many rows a block and a window have; a block is made of whole chunks of the files."""
    sources = [leaf for leaf in leaves if isinstance(leaf, lazy_arrays.Rows)]
    row_bytes = sum(int(np.prod(leaf.shape[1:])) * max(4, leaf.dtype.itemsize) for leaf in sources)
    window = max(1, WINDOW_BYTES // max(1, row_bytes))
    chunks = (getattr(leaf.source, "chunks", None) for leaf in sources)
    chunk = max((c[0] for c in chunks if c and isinstance(c[0], int)), default=1)
    block = -(-max(1, BLOCK_BYTES // max(1, row_bytes)) // chunk) * chunk
    return min(block, window, count), window


def as_out_of_core(x, y, sample_weight, loss, out_shape, dtype) -> Samples:
    """Return what `as_samples` does of arrays some of which are `Rows`.

    Shapes and what is in memory are checked at once, the rest as it is read.
    """
    count = rows_of(x)
    check = functools.partial(as_targets, loss=loss, out_shape=out_shape, dtype=dtype)
    if not lazy_arrays.in_any(y):
        y, check = check(y, count), lambda targets, count: targets
    for targets in tree.leaves(y):
        if len(targets) != count:
            raise ValueError(f"X has {count} samples, y has {len(targets)}: they must be as many")
    weight = np.broadcast_to(1.0, count) if sample_weight is None else as_weight(sample_weight, count)

    def finish(part: Samples) -> Samples:
        return Samples(part.x, check(part.y, len(part)), part.weight.astype(dtype))

    return OutOfCore(x, y, weight, finish, range(count))
