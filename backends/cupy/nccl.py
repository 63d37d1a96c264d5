"""GPUs that exchange arrays through NCCL, by `cupyx.distributed`; not tested on GPUs so far."""

import contextlib
import multiprocessing
import socket
import time
import warnings
from collections.abc import Iterator
from typing import Any

from nnx.backend import BackendError
from nnx.distributed.ranks import Communicator, DistributedError, address

# How long to wait for all ranks to start; CuPy itself waits for 25 s.
SECONDS_TO_MEET = 300.0


class NcclCommunicator(Communicator):
    """A communicator for CuPy arrays, on the current stream. The processes connect when the first array is sent."""

    def __init__(self, rank: int, size: int):
        with warnings.catch_warnings(action="ignore"):  # about a missing library: an error follows
            from cupy.cuda import nccl
        if not nccl.available:
            raise BackendError(
                "training on several GPUs needs NCCL, which CuPy cannot load: pip install nvidia-nccl-cu12 "
                "(or nvidia-nccl-cu13, as your CuPy)"
            )
        self.rank, self.size = rank, size
        self.address = address()
        self._group: Any = None

    @property
    def group(self) -> Any:
        """CuPy's communicator."""
        if self._group is None:
            self._group = self._meet()
        return self._group

    def _meet(self) -> Any:
        from cupyx.distributed import init_process_group

        host, port = self.address
        if self.rank > 0:
            wait_for_rank_0(self.address)
        with forking():
            group = init_process_group(self.size, self.rank, host=host, port=port)
        group.stop()  # the server that connected them
        return group

    def all_reduce(self, array):
        self.group.all_reduce(array, array)

    def broadcast(self, array):
        self.group.broadcast(array)


def wait_for_rank_0(address) -> None:
    """Wait until rank 0 listens at this address."""
    deadline = time.monotonic() + SECONDS_TO_MEET
    while True:
        try:
            socket.create_connection(address).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise DistributedError(
                    f"rank 0 did not come to {address[0]}:{address[1]} within {SECONDS_TO_MEET:.0f} s"
                ) from None
            time.sleep(0.05)


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """Start processes by fork: CuPy's server cannot start by another method, as is the default of Python 3.14."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("fork", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)
