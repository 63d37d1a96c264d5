"""Arrays that stay where they are, in a file or behind an interface: rows are read when they are needed.

What is read is checked as it comes; an error names the row in the whole array.
"""

import math
import re

import numpy as np

from nnx import tree

# What takes at most this many bytes is read once, as a whole.
READ_WHOLE = 256 << 20


class Rows:
    """An array of which only slices of rows are read: (rows, ...).

    Parameters
    ----------
    source : numpy.memmap, h5py.Dataset, zarr.Array or alike
        Anything with `shape`, `dtype` and slices.
    what : str
        What messages call it.
    check : function, optional
        Returns what was read, checked and converted, or raises a ValueError.
    shape : tuple of int, optional
        The shape after `check`, if that is another.

    Examples
    --------
    >>> rows = Rows(np.arange(6.0).reshape(3, 2), "X", check=lambda part: part * 10)
    >>> rows[1:3].tolist()
    [[20.0, 30.0], [40.0, 50.0]]
    """

    def __init__(self, source, what: str, check=None, shape=None):
        self.source, self.what, self.check = source, what, check
        self.shape: tuple[int, ...] = tuple(source.shape) if shape is None else shape
        self.ndim, self.dtype = len(self.shape), np.dtype(source.dtype)

    def checked(self, check, shape) -> "Rows":
        """Return the same rows, each part of them put through `check` when it is read."""
        return Rows(self.source, self.what, check, shape)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.take(np.arange(*part.indices(len(self))))

    def take(self, numbers: np.ndarray) -> np.ndarray:
        """Return the rows of these numbers, which rise."""
        if isinstance(self.source, np.ndarray) and len(numbers) < _span(numbers):
            found = np.asarray(self.source[numbers])
        else:
            parts = [self._between(int(run[0]), int(run[-1]) + 1) for run in runs(numbers)]
            found = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.check is None:
            return found
        try:
            return self.check(found)
        except ValueError as error:
            raise renumbered(error, numbers)  # noqa: B904 - it is the error itself

    def _between(self, start: int, stop: int) -> np.ndarray:
        part = np.asarray(self.source[start:stop])
        expected = (stop - start, *tuple(self.source.shape)[1:])
        if part.shape != expected:
            raise ValueError(
                f"{self.what}[{start}:{stop}] gave an array of shape {part.shape}, not {expected}"
            )
        return part


def _span(numbers: np.ndarray) -> int:
    return int(numbers[-1] - numbers[0]) + 1 if len(numbers) else 0


def runs(numbers: np.ndarray) -> list[np.ndarray]:
    """Return rising numbers cut where they skip one: what a slice reads.

    >>> [run.tolist() for run in runs(np.asarray([3, 4, 5, 8, 9]))]
    [[3, 4, 5], [8, 9]]
    """
    return np.split(numbers, np.flatnonzero(np.diff(numbers) != 1) + 1)


def renumbered(error: ValueError, numbers: np.ndarray) -> ValueError:
    """Return an error about rows of a part, told as one about those of the whole."""
    text = re.sub(r"\bat row (\d+)", lambda found: f"at row {numbers[int(found[1])]}", str(error))
    error.args = (text,)
    return error


def is_large(source) -> bool:
    """Whether an array takes too much memory to be read as a whole."""
    return math.prod(source.shape) * np.dtype(source.dtype).itemsize > READ_WHOLE


def is_read_by_slices(value) -> bool:
    """Whether a value is no array, but gives parts of one: an HDF5 data set, a Zarr array and the like."""
    return all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__")) and len(value.shape) > 0


def in_any(*trees) -> bool:
    """Whether any leaf of some trees is `Rows`."""
    return any(
        isinstance(each, Rows)
        or (isinstance(each, (dict, tuple)) and any(isinstance(leaf, Rows) for leaf in tree.leaves(each)))
        for each in trees
    )
