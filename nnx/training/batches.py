"""Sources of the batches of an epoch: samples on the device, or a stream that is copied there batch by batch."""

import collections
import contextlib
import functools
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

import numpy as np

from nnx import log
from nnx.data.samples import Samples, batch_indices
from nnx.distributed.ranks import Communicator, Shard, shard_of
from nnx.random import SHUFFLE, generator

# Samples stay on the device if they take at most this share of its free memory: the rest is for weights,
# gradients and activations.
DATA_SHARE = 0.5
# Samples of more bytes are not padded (see `Backend.padded`): padding would cost more than compiling again.
PADDED = 256 << 20


class Batches(NamedTuple):
    """Batches of equal size on the device, for consecutive steps."""

    samples: dict
    """The arrays x, y and weight."""
    steps: int
    batch_size: int
    """Samples a step, of all processes together."""
    shard: Shard
    """The samples of a step that this process computes."""
    indices: np.ndarray | None = None
    """(steps, shard): the indices of the samples of each step. By default a step uses all samples in order."""
    is_streamed: bool = False
    """Whether the arrays hold only this batch, and are dropped after it."""

    def one_by_one(self) -> Iterator["Batches"]:
        """Yield the batch of each step."""
        for i in range(self.steps):
            yield self._replace(steps=1, indices=None if self.indices is None else self.indices[i : i + 1])


class PlacedSamples:
    """Samples that are all on the device; each step gathers its batch there.

    Parameters
    ----------
    samples : Samples
    arrays : dict
        The samples on the device, see `place_if_it_fits`.
    batch_size : int
    shuffle : bool or function
        As for `fit`.
    seed : int
        The seed of the shuffles.
    communicator : Communicator, optional
        The communicator of processes that train together.
    """

    def __init__(
        self,
        samples: Samples,
        arrays: dict,
        batch_size: int,
        shuffle: Any = False,
        seed: int = 0,
        communicator: Communicator | None = None,
    ):
        self.samples, self.arrays, self.batch_size = samples, arrays, batch_size
        self.shuffle, self.seed, self.communicator = shuffle, seed, communicator
        self.steps = -(-len(samples) // batch_size)
        self.uses_all = uses_all(samples, batch_size, shuffle, communicator)

    def epoch(self, step: int = 0) -> Generator[Batches]:
        """Yield the batches of an epoch that begins at a step, which determines the order."""
        order = self.samples.order(self.shuffle, functools.partial(generator, self.seed, SHUFFLE, step))
        for index in batch_indices(order, self.batch_size):
            shard = shard_of(index.shape[1], self.communicator)
            indices = None if self.uses_all else index[:, shard.start : shard.stop]
            yield Batches(self.arrays, len(index), index.shape[1], shard, indices)


class Stream:
    """Batches that are checked on the host and copied to the device one by one, before their steps.

    Parameters
    ----------
    backend : Backend
    batches : function
        `batches(step)` returns a generator of batches, as `Samples`, for an epoch that begins at a step.
    steps : int, optional
        Batches an epoch, if that is known.
    communicator : Communicator, optional
        The communicator of processes that train together.
    """

    def __init__(
        self,
        backend,
        batches: Callable[[int], Generator[Samples]],
        steps: int | None = None,
        communicator: Communicator | None = None,
    ):
        self.backend, self.batches, self.steps, self.communicator = backend, batches, steps, communicator

    def epoch(self, step: int = 0) -> Generator[Batches]:
        """Yield the batches of an epoch that begins at a step."""
        batches, sizes = self.batches(step), collections.deque()

        def shards():
            for samples in batches:
                shard = shard_of(len(samples), self.communicator)
                sizes.append((len(samples), shard))
                yield samples.part(shard.start, shard.stop).arrays()

        with contextlib.closing(batches), contextlib.closing(self.backend.transfer(shards())) as placed:
            for arrays in placed:
                yield Batches(arrays, 1, *sizes.popleft(), is_streamed=True)


def source_of(
    backend, samples: Samples, batch_size: int, shuffle: Any = False, seed: int = 0, communicator=None
) -> PlacedSamples | Stream:
    """Return the samples on the device if they fit there, else as a stream."""
    arrays = place_if_it_fits(backend, samples, uses_all(samples, batch_size, shuffle, communicator))
    if arrays is not None:
        return PlacedSamples(samples, arrays, batch_size, shuffle, seed, communicator)

    def batches(step):
        order = samples.order(shuffle, functools.partial(generator, seed, SHUFFLE, step))
        return samples.batches(order, batch_size)

    return Stream(backend, batches, -(-len(samples) // batch_size), communicator)


def uses_all(samples: Samples, batch_size: int, shuffle, communicator) -> bool:
    """Whether each step uses all samples in order, so that nothing is gathered."""
    return not shuffle and batch_size >= len(samples) and communicator is None


def place_if_it_fits(backend, samples: Samples, exact: bool = False) -> dict | None:
    """Return the samples on the device, or None if they must be streamed.

    Unless `exact`, the arrays may be padded with unused samples.
    """
    if samples.stays_on_host:
        log.info("%s samples, read a window at a time from where they are", f"{len(samples):,}")
        return None
    free = backend.free_memory()
    size = f"{len(samples):,} samples, {samples.nbytes / 2**20:,.1f} MiB"
    if free is not None and samples.nbytes > DATA_SHARE * free:
        log.info("%s, streamed batch by batch: %.1f MiB are free on %s", size, free / 2**20, backend.name)
        return None
    try:
        is_padded = not exact and samples.nbytes <= PADDED
        length = backend.padded(len(samples)) if is_padded else len(samples)
        arrays = backend.put_samples(samples.arrays(), length)
        log.info("%s, placed on %s", size, backend.name)
        return arrays
    except Exception as error:  # the free memory may be fragmented, or used by another program
        if free is None or not isinstance(backend.translate(error), MemoryError):
            raise
        log.info("%s, streamed batch by batch: no room on %s", size, backend.name)
    return None
