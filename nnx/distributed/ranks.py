"""Data-parallel training: several processes, each on its part of every batch, with equal weights.

Each of n processes, its rank a number from 0 to n - 1, computes the gradient of its part of a batch.
One all-reduce a step gives all of them the gradient of the whole batch,

    gradient = sum over the ranks of (share of the samples) * (mean gradient of the part),

and all take the same step. `python -m nnx launch` starts the processes; `fit` does the rest.
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
    """Processes that train together do not agree, or one of them is gone."""


class Communicator:
    """How the processes that train together exchange arrays: one object in each of them.

    Every rank makes the same calls in the same order, on contiguous arrays of equal size and dtype.
    """

    rank: int
    size: int

    def all_reduce(self, array) -> None:
        """Replace `array` by its sum over all ranks, in place, and without waiting for the device."""
        raise NotImplementedError

    def broadcast(self, array) -> None:
        """Replace `array` by that of rank 0, in place."""
        raise NotImplementedError


class Shard(NamedTuple):
    """What a rank computes of a batch: samples start, ..., stop - 1, this share of them all.

    A rank for which there is no sample computes one of another's, which does not count: share 0.
    """

    start: int
    stop: int
    share: float


def shard_of(count: int, communicator: Communicator | None) -> Shard:
    """Return the shard of `count` samples that this rank computes; all of them if it is alone."""
    if communicator is None:
        return Shard(0, count, 1.0)
    start, stop = (count * rank // communicator.size for rank in (communicator.rank, communicator.rank + 1))
    return Shard(start, stop, (stop - start) / count) if stop > start else Shard(0, 1, 0.0)


# Who this process is

_chosen: ContextVar[Communicator | None] = ContextVar("nnx_communicator", default=None)


def world() -> tuple[int, int]:
    """Return (rank, number of processes): as `use` says, else as the launcher does; else (0, 1)."""
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
    """Return the number of this process among those that train together; 0 if it is alone."""
    return world()[0]


def size() -> int:
    """Return how many processes train together."""
    return world()[1]


def local_rank() -> int:
    """Return the number of this process among those launched on this machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("RANK") or 0)


def address() -> tuple[str, int]:
    """Return host and port at which the processes meet."""
    port = os.environ.get("MASTER_PORT", "")
    if not port.isdecimal():
        raise DistributedError(
            f"MASTER_PORT={port!r} is no port to meet at: start the processes with {LAUNCH}"
        )
    return os.environ.get("MASTER_ADDR") or "127.0.0.1", int(port)


def communicator(backend) -> Communicator | None:
    """Return what connects this process to the others, or None if it is alone."""
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
    """Train with a communicator of one's own inside a `with` block, in this thread."""
    token = _chosen.set(communicator)
    try:
        yield communicator
    finally:
        _chosen.reset(token)


# The start of a training

_SEED_BITS = 2**63 - 1


def begin(model, communicator: Communicator, facts: dict[str, Any]) -> None:
    """Give all ranks the seed, weights and optimizer of rank 0, if they agree on `facts`.

    Raises
    ------
    DistributedError
        On every rank, if any of the numbers in `facts` is another on one of them.
    """
    if facts.get("batch_size", communicator.size) < communicator.size:
        raise ValueError(
            f"batch_size={facts['batch_size']} is smaller than the {communicator.size} processes that share each "
            f"batch: raise it, or launch fewer"
        )
    folder = os.environ.get("NNX_ARRIVALS")
    if folder and _chosen.get() is None:  # tells the launcher that this rank waits for the others from now on
        Path(folder, str(communicator.rank)).touch()
    backend = model.backend
    carry = {name: model.carry[name] for name in ("params", "state", "slots")}
    facts = {**facts, "number of weights": model.count_params(), "number of steps taken": model.step}
    mine = np.asarray(list(facts.values()), dtype=np.float64)
    first, seed = backend.asarray(mine.copy()), backend.asarray(np.asarray([model.seed & _SEED_BITS]))
    communicator.broadcast(first)
    communicator.broadcast(seed)
    differs = backend.asarray((backend.to_numpy(first) != mine).astype(np.float64))
    communicator.all_reduce(differs)
    for name, ranks in zip(facts, backend.to_numpy(differs), strict=True):
        if ranks:
            raise DistributedError(
                f"{name} of {ranks:.0f} of {communicator.size} processes differs from that of rank 0: all must run "
                f"the same program on the same data (give a seed to what is drawn at random)"
            )
    found = int(backend.to_numpy(seed)[0])
    if found != model.seed & _SEED_BITS:
        model.seed = found
    for array in tree.buffers(carry):
        communicator.broadcast(array)


def describe(samples) -> dict[str, Any]:
    """Return what ranks that are given the same samples agree on."""
    sums = {
        name: sum(np.sum(part, dtype=np.float64) for part in tree.leaves(arrays))
        for name, arrays in samples.glance().arrays().items()
    }
    return {
        "number of samples": len(samples),
        "X": sums["x"],
        "y": sums["y"],
        "sample_weight": sums["weight"],
    }
