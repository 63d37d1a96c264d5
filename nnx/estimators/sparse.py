"""Sparse samples: made dense as a whole if that takes little memory, else batch by batch."""

import numpy as np

from nnx.data.samples import batch_indices

# Samples that take at most this many bytes when dense are made dense as a whole.
DENSE_BYTES = 256 << 20


def is_sparse(x) -> bool:
    """Whether `x` is a matrix or array of scipy.sparse."""
    return hasattr(x, "toarray")


def is_small(x) -> bool:
    """Whether sparse samples are small enough to be made dense as a whole."""
    return x.shape[0] * x.shape[1] * x.dtype.itemsize <= DENSE_BYTES


def dense(x) -> np.ndarray:
    """Return samples as a dense array."""
    return x.toarray() if is_sparse(x) else x


class SparseBatches:
    """Dense batches of sparse samples; each iteration, one epoch, asks `order` for a new order."""

    def __init__(self, x, y, weight, batch_size: int, order):
        self.x, self.y, self.batch_size, self.order = x.tocsr(), y, batch_size, order
        self.weight = np.ones(len(y)) if weight is None else weight

    def __iter__(self):
        for part in batch_indices(self.order(np.arange(len(self.y))), self.batch_size):
            for index in part:
                yield self.x[index].toarray(), self.y[index], self.weight[index]
