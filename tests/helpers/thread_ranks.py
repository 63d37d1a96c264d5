"""Ranks of a data-parallel training as threads of one process."""

import threading
from concurrent.futures import ThreadPoolExecutor

import nnx
from nnx.distributed import Communicator


class ThreadCommunicator(Communicator):
    """A rank that is a thread: arrays are left where all ranks find them."""

    def __init__(self, rank, arrays, barrier):
        self.rank, self.size = rank, len(arrays)
        self.arrays, self.barrier = arrays, barrier
        self.reduced = []  # the size of each array

    def all_reduce(self, array):
        self.reduced.append(array.size)
        array[...] = sum(self.exchanged(array))

    def broadcast(self, array):
        array[...] = self.exchanged(array)[0]

    def exchanged(self, array):
        self.arrays[self.rank] = array.copy()
        self.barrier.wait(20)
        found = list(self.arrays)
        self.barrier.wait(20)
        return found


def on_ranks(size, function) -> list:
    """Return what `function(communicator)` returns on each rank."""
    arrays, barrier = [None] * size, threading.Barrier(size)
    kind = type(nnx.get_backend())

    def one(rank):
        communicator = ThreadCommunicator(rank, arrays, barrier)
        try:
            with nnx.distributed.use(communicator), nnx.use_backend(kind()):
                return function(communicator)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(one, rank) for rank in range(size)]
    errors = [f.exception() for f in futures if f.exception() is not None]
    own = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (own or errors)[0]
    return [future.result() for future in futures]
