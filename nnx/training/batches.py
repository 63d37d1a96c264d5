"""Where the batches of an epoch come from: samples on the device, or a stream that is placed there batch by batch."""

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

# Samples stay on the device if they take at most this share of the memory that is free there: the
# rest is for weights, gradients and activations.
DATA_SHARE = 0.5
# Samples of more bytes are placed as they are, see `Backend.padded`: compiling takes less than they do.
PADDED = 256 << 20


class Batches(NamedTuple):
    """Batches of equal size on the device, for consecutive steps."""

    samples: dict
    """The arrays x, y and weight."""
    steps: int
    batch_size: int
    """Samples a step, of all processes together."""
    shard: Shard
    """Which of them this process computes."""
    indices: np.ndarray | None = None
    """(steps, shard): the indices of the samples of each step. By default a step takes all as they lie."""
    is_streamed: bool = False
    """Whether the arrays hold this one batch only, and are dropped after it."""

    def one_by_one(self) -> Iterator["Batches"]:
        """Yield the batch of each step."""
        for i in range(self.steps):
            yield self._replace(steps=1, indices=None if self.indices is None else self.indices[i : i + 1])


class PlacedSamples:
    """Samples that are on the device as a whole; each step gathers its batch there.

    Parameters
    ----------
    samples : Samples
    arrays : dict
        The same on the device, see `place_if_it_fits`.
    batch_size : int
    shuffle : bool or function
        As `fit` takes it.
    seed : int
        Of the shuffles.
    communicator : Communicator, optional
        Of processes that train together.
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
        self.samples, self.arrays, self.batch_size, self.communicator = (
            samples,
            arrays,
            batch_size,
            communicator,
        )
        self.shuffle, self.seed = shuffle, seed
        self.steps = -(-len(samples) // batch_size)
        self.takes_all = takes_all(samples, batch_size, shuffle, communicator)

    def epoch(self, step: int = 0) -> Generator[Batches]:
        """Yield the batches of an epoch that begins at a step; the step decides the order."""
        order = self.samples.order(self.shuffle, functools.partial(generator, self.seed, SHUFFLE, step))
        for index in batch_indices(order, self.batch_size):
            shard = shard_of(index.shape[1], self.communicator)
            gathered = None if self.takes_all else index[:, shard.start : shard.stop]
            yield Batches(self.arrays, len(index), index.shape[1], shard, gathered)


class Stream:
    """Batches that are checked on the host and copied to the device one after another, ahead of their steps.

    Parameters
    ----------
    backend : Backend
    batches : function
        `batches(step)` returns a generator of `Samples`, a batch each, for an epoch that begins at a step.
    steps : int, optional
        Batches an epoch, if that is known.
    communicator : Communicator, optional
        Of processes that train together.
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
    whole = takes_all(samples, batch_size, shuffle, communicator)
    arrays = place_if_it_fits(backend, samples, whole)
    if arrays is not None:
        return PlacedSamples(samples, arrays, batch_size, shuffle, seed, communicator)

    def batches(step):
        order = samples.order(shuffle, functools.partial(generator, seed, SHUFFLE, step))
        return samples.batches(order, batch_size)

    return Stream(backend, batches, -(-len(samples) // batch_size), communicator)


def takes_all(samples: Samples, batch_size: int, shuffle, communicator) -> bool:
    """Whether each step takes all samples as they lie, so that none are gathered."""
    return not shuffle and batch_size >= len(samples) and communicator is None


def place_if_it_fits(backend, samples: Samples, as_they_lie: bool = False) -> dict | None:
    """Return the samples on the device, or None: then they are to be streamed.

    The arrays may be padded with unused rows, unless every step uses the whole data set in order (`as_they_lie`).
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
        is_padded = not as_they_lie and samples.nbytes <= PADDED
        rows = backend.padded(len(samples)) if is_padded else len(samples)
        placed = backend.put_samples(samples.arrays(), rows)
        log.info("%s, placed on %s", size, backend.name)
        return placed
    except Exception as error:  # the free memory may be fragmented, or taken by another program by now
        if free is None or not isinstance(backend.translate(error), MemoryError):
            raise
        log.info("%s, streamed batch by batch: no room on %s", size, backend.name)
    return None
