"""Data-parallel training: several processes with equal weights, each on its shard of every batch.

Each of n processes, with a rank from 0 to n - 1, computes the gradient of its shard of a batch. One
all-reduce a step gives all processes the gradient of the whole batch,

    gradient = sum over the ranks of (share of the samples) * (mean gradient of the shard),

and all make the same update. `python -m nnx launch` starts the processes; `fit` does the rest.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnx import tree

__all__ = ["Communicator", "DistributedError", "local_rank", "rank", "size", "use"]

LAUNCH = "python -m nnx launch"


class DistributedError(RuntimeError):
    """Processes that train together do not agree, or one of them has ended."""


class Communicator:
    """Exchanges arrays between the processes that train together; each process has one.

    Every rank makes the same calls in the same order, on contiguous arrays of equal size and dtype.
    """

    rank: int
    size: int

    def all_reduce(self, array) -> None:
        """Replace `array` by its sum over all ranks, in place, without waiting for the device."""
        raise NotImplementedError

    def broadcast(self, array) -> None:
        """Replace `array` by the array of rank 0, in place."""
        raise NotImplementedError


class Shard(NamedTuple):
    """The shard of a batch that a rank computes: samples start, ..., stop - 1, and their share of the batch.

    If there are fewer samples than ranks, a rank without one computes sample 0 with share 0.
    """

    start: int
    stop: int
    share: float


def shard_of(count: int, communicator: Communicator | None) -> Shard:
    """Return the shard of `count` samples that this rank computes; all samples if there is one process."""
    if communicator is None:
        return Shard(0, count, 1.0)
    start, stop = (count * rank // communicator.size for rank in (communicator.rank, communicator.rank + 1))
    return Shard(start, stop, (stop - start) / count) if stop > start else Shard(0, 1, 0.0)


# The rank of this process

_chosen: ContextVar[Communicator | None] = ContextVar("nnx_communicator", default=None)


def world() -> tuple[int, int]:
    """Return (rank, number of processes), from `use` or the launcher; by default (0, 1)."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen.rank, chosen.size
    names = ("RANK", "WORLD_SIZE")
    texts = [os.environ.get(name, default) for name, default in zip(names, "01", strict=True)]
    if not all(text.isdecimal() for text in texts) or not int(texts[0]) < int(texts[1]):
        given = " and ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True))
        raise DistributedError(
            f"{given} do not say which of how many processes this is: start it with {LAUNCH}"
        )
    return int(texts[0]), int(texts[1])


def rank() -> int:
    """Return the rank of this process among those that train together; 0 if there is one."""
    return world()[0]


def size() -> int:
    """Return the number of processes that train together."""
    return world()[1]


def local_rank() -> int:
    """Return the rank of this process among those on this machine: the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or 0)


def address() -> tuple[str, int]:
    """Return the host and port at which the processes connect."""
    port = os.environ.get("MASTER_PORT", "")
    if not port.isdecimal():
        raise DistributedError(
            f"MASTER_PORT={port!r} is no port to meet at: start the processes with {LAUNCH}"
        )
    return os.environ.get("MASTER_ADDR") or "127.0.0.1", int(port)


def communicator(backend) -> Communicator | None:
    """Return the communicator of this process, or None if there are no others."""
    chosen = _chosen.get()
    if chosen is not None:
        return chosen
    rank, size = world()
    return _communicator(backend, rank, size) if size > 1 else None


@functools.cache
def _communicator(backend, rank, size):
    return backend.communicator(rank, size)


@contextlib.contextmanager
def use(communicator: Communicator) -> Iterator[Communicator]:
    """Train with a given communicator inside a `with` block, in this thread."""
    token = _chosen.set(communicator)
    try:
        yield communicator
    finally:
        _chosen.reset(token)


# The start of a training

_SEED_BITS = 2**63 - 1


def begin(model, communicator: Communicator, metadata: dict[str, Any]) -> None:
    """Give all ranks the seed, weights and optimizer of rank 0, if their `metadata` are equal.

    Raises
    ------
    DistributedError
        On every rank, if a value in `metadata` differs between ranks.
    """
    if metadata.get("batch_size", communicator.size) < communicator.size:
        raise ValueError(
            f"batch_size={metadata['batch_size']} is smaller than the {communicator.size} processes that share each "
            f"batch: raise it, or launch fewer"
        )
    folder = os.environ.get("NNX_ARRIVALS")
    if folder and _chosen.get() is None:  # the launcher then knows that this rank waits for the others
        Path(folder, str(communicator.rank)).touch()
    backend = model.backend
    carry = {name: model.carry[name] for name in ("params", "state", "slots")}
    metadata = {**metadata, "number of weights": model.count_params(), "number of steps taken": model.step}
    own = np.asarray(list(metadata.values()), dtype=np.float64)
    first, seed = backend.asarray(own.copy()), backend.asarray(np.asarray([model.seed & _SEED_BITS]))
    communicator.broadcast(first)
    communicator.broadcast(seed)
    differs = backend.asarray((backend.to_numpy(first) != own).astype(np.float64))
    communicator.all_reduce(differs)
    for name, ranks in zip(metadata, backend.to_numpy(differs), strict=True):
        if ranks:
            raise DistributedError(
                f"{name} of {ranks:.0f} of {communicator.size} processes differs from that of rank 0: all must run "
                f"the same program on the same data (give a seed to what is drawn at random)"
            )
    first_seed = int(backend.to_numpy(seed)[0])
    if first_seed != model.seed & _SEED_BITS:
        model.seed = first_seed
    for array in tree.buffers(carry):
        communicator.broadcast(array)


def describe(samples) -> dict[str, Any]:
    """Return the metadata of samples, which are equal on ranks with the same data."""
    sums = {
        name: sum(np.sum(array, dtype=np.float64) for array in tree.leaves(arrays))
        for name, arrays in samples.identifying_samples().arrays().items()
    }
    return {
        "number of samples": len(samples),
        "X": sums["x"],
        "y": sums["y"],
        "sample_weight": sums["weight"],
    }
