"""Processes that exchange arrays of NumPy through the loopback network: rank 0 adds and answers."""

import os
import time
from multiprocessing.connection import Client, Listener
from typing import Any

import numpy as np

from nnx.distributed import LAUNCH, Communicator, DistributedError, address

# Ranks that are slower than this to start are given up.
SECONDS_TO_MEET = 300.0


class SocketCommunicator(Communicator):
    """For NumPy's arrays. The processes show one another a key that the launcher gave them."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self.address = address()
        self.key = bytes.fromhex(os.environ.get("NNX_KEY", ""))
        if not self.key:
            raise DistributedError(f"NNX_KEY is not set: start the processes with {LAUNCH}")

        self._peers: list[Any] = []

    @property
    def peers(self) -> list[Any]:
        """The connections to the other ranks, in their order, for rank 0; to rank 0 for the others."""
        self._peers = self._peers or self._meet()
        return self._peers

    def _meet(self) -> list[Any]:
        if self.rank > 0:
            peer = connect(self.address, self.key)
            peer.send_bytes(np.asarray([self.rank, self.size]).tobytes())
            return [peer]
        found = {}
        with Listener(self.address, backlog=self.size, authkey=self.key) as listener:
            while len(found) < self.size - 1:
                peer = listener.accept()
                rank, size = np.frombuffer(peer.recv_bytes(), dtype=int).tolist()
                if size != self.size or rank in found:
                    peer.close()
                    raise DistributedError(
                        f"rank {rank} of {size} came to meet rank 0 of {self.size}: start all with one {LAUNCH}"
                    )
                found[rank] = peer
        return [found[rank] for rank in sorted(found)]

    def all_reduce(self, array):
        self._exchange(array, adds=True)

    def broadcast(self, array):
        self._exchange(array, adds=False)

    def _exchange(self, array, adds):
        try:
            if self.rank > 0:
                if adds:
                    self.peers[0].send_bytes(array)
                self.peers[0].recv_bytes_into(array)
                return
            for peer in self.peers if adds else ():
                array += np.frombuffer(peer.recv_bytes(), array.dtype).reshape(array.shape)
            for peer in self.peers:
                peer.send_bytes(array)
        except (EOFError, OSError) as error:
            raise DistributedError(
                f"rank {self.rank} lost another process that it trains with ({type(error).__name__}): its own message "
                f"tells why"
            ) from None


def connect(address, key) -> Any:
    """Return a connection to rank 0, which may have yet to start."""
    deadline = time.monotonic() + SECONDS_TO_MEET
    while True:
        try:
            return Client(address, authkey=key)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise DistributedError(
                    f"rank 0 did not come to {address[0]}:{address[1]} within {SECONDS_TO_MEET:.0f} s"
                ) from None
            time.sleep(0.05)
