"""Sparse samples: made dense whole where that is small, else a batch at a time."""

import numpy as np

from nnx.data.samples import batch_indices

# Samples that take at most this much memory when dense are made so once.
DENSE_BYTES = 256 << 20


def is_sparse(x) -> bool:
    """Whether `x` is a matrix or array of scipy.sparse."""
    return hasattr(x, "toarray")


def is_small(x) -> bool:
    """Whether sparse samples are small enough to be dense."""
    return x.shape[0] * x.shape[1] * x.dtype.itemsize <= DENSE_BYTES


def rows(x, start: int, stop: int) -> np.ndarray:
    """Return samples start, ..., stop - 1 as a dense array."""
    return x[start:stop].toarray() if is_sparse(x) else x[start:stop]


class SparseBatches:
    """Dense batches of sparse samples: iterated once an epoch, each time in the order that `order` gives."""

    def __init__(self, x, y, weight, batch_size: int, order):
        self.x, self.y, self.batch_size, self.order = x.tocsr(), y, batch_size, order
        self.weight = np.ones(len(y)) if weight is None else weight

    def __iter__(self):
        for part in batch_indices(self.order(np.arange(len(self.y))), self.batch_size):
            for index in part:
                yield self.x[index].toarray(), self.y[index], self.weight[index]
