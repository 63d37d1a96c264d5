"""Lazy arrays: arrays in a file or behind another interface, of which samples are read when they are needed.

Samples are checked as they are read; errors name the row in the whole array.
"""

import math
import re

import numpy as np

from nnx import tree

# Arrays of at most this many bytes are read as a whole.
READ_WHOLE = 256 << 20


class LazyArray:
    """An array that is read slice by slice: (samples, ...).

    Parameters
    ----------
    source : numpy.memmap, h5py.Dataset, zarr.Array or similar
        Any object with `shape`, `dtype` and slices.
    what : str
        Its name in messages.
    check : function, optional
        Checks and converts the samples that were read, or raises a ValueError.
    shape : tuple of int, optional
        The shape after `check`, if it differs.

    Examples
    --------
    >>> lazy = LazyArray(np.arange(6.0).reshape(3, 2), "X", check=lambda samples: samples * 10)
    >>> lazy[1:3].tolist()
    [[20.0, 30.0], [40.0, 50.0]]
    """

    def __init__(self, source, what: str, check=None, shape=None):
        self.source, self.what, self.check = source, what, check
        self.shape: tuple[int, ...] = tuple(source.shape) if shape is None else shape
        self.ndim, self.dtype = len(self.shape), np.dtype(source.dtype)

    def checked(self, check, shape) -> "LazyArray":
        """Return the same array with another `check`."""
        return LazyArray(self.source, self.what, check, shape)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, key: slice) -> np.ndarray:
        return self.take(np.arange(*key.indices(len(self))))

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Return the samples of increasing indices."""
        ranges = consecutive(indices)
        if isinstance(self.source, np.ndarray) and len(ranges) > 1:
            samples = np.asarray(self.source[indices])
        else:
            slices = [self._read(int(r[0]), int(r[-1]) + 1) for r in ranges]
            samples = slices[0] if len(slices) == 1 else np.concatenate(slices)
        if self.check is None:
            return samples
        try:
            return self.check(samples)
        except ValueError as error:
            raise renumbered(error, indices)  # noqa: B904 - it is the same error

    def _read(self, start: int, stop: int) -> np.ndarray:
        samples = np.asarray(self.source[start:stop])
        expected = (stop - start, *tuple(self.source.shape)[1:])
        if samples.shape != expected:
            raise ValueError(
                f"{self.what}[{start}:{stop}] gave an array of shape {samples.shape}, not {expected}"
            )
        return samples


def consecutive(indices: np.ndarray) -> list[np.ndarray]:
    """Return increasing indices split into consecutive ones, which one slice reads.

    >>> [r.tolist() for r in consecutive(np.asarray([3, 4, 5, 8, 9]))]
    [[3, 4, 5], [8, 9]]
    """
    return np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)


def renumbered(error: ValueError, indices: np.ndarray) -> ValueError:
    """Return an error about the samples at some indices with its row numbers replaced by these indices."""
    text = re.sub(r"\bat row (\d+)", lambda match: f"at row {indices[int(match[1])]}", str(error))
    error.args = (text,)
    return error


def is_large(source) -> bool:
    """Whether an array is too large to be read as a whole."""
    return math.prod(source.shape) * np.dtype(source.dtype).itemsize > READ_WHOLE


def is_read_by_slices(value) -> bool:
    """Whether a value is not an array but can be sliced like one, as an HDF5 dataset or a Zarr array."""
    return all(hasattr(value, name) for name in ("shape", "dtype", "__getitem__")) and len(value.shape) > 0


def any_lazy(*trees) -> bool:
    """Whether any leaf of some trees is a `LazyArray`."""
    return any(
        isinstance(leaf, LazyArray)
        for each in trees
        for leaf in (tree.leaves(each) if isinstance(each, (dict, tuple)) else [each])
    )
