"""Processes that exchange NumPy arrays over the loopback network: rank 0 adds them up and sends the sum."""

import os
import queue
import socket
import struct
import threading
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

import numpy as np

from nnx.distributed.ranks import LAUNCH, Communicator, DistributedError, address

# How long to wait for all ranks to start.
SECONDS_TO_MEET = 300.0
# The timeout of each message of the authentication.
SECONDS_TO_GREET = 30.0


class SocketCommunicator(Communicator):
    """A communicator for NumPy arrays. The processes authenticate with a key from the launcher."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self.address = address()
        self.key = bytes.fromhex(os.environ.get("NNX_KEY", ""))
        if not self.key:
            raise DistributedError(f"NNX_KEY is not set: start the processes with {LAUNCH}")

        self._peers: list[Any] = []

    @property
    def peers(self) -> list[Any]:
        """The connections: of rank 0 to all others, in order; of another rank to rank 0."""
        self._peers = self._peers or self._meet()
        return self._peers

    def _meet(self) -> list[Any]:
        deadline = time.monotonic() + SECONDS_TO_MEET
        if self.rank > 0:
            peer = connect(self.address, self.key, deadline)
            peer.send_bytes(np.asarray([self.rank, self.size]).tobytes())
            return [peer]
        peers = self._meet_all(deadline)
        return [peers[rank] for rank in sorted(peers)]

    def _meet_all(self, deadline) -> dict[int, Any]:
        """Return the connection to each other rank; connections that fail to authenticate are closed."""
        peers: dict[int, Any] = {}
        accepted: queue.SimpleQueue[tuple[Any, int, int]] = queue.SimpleQueue()
        try:
            server = socket.create_server(self.address, backlog=2 * self.size + 8)
        except OSError as error:
            raise DistributedError(
                f"rank 0 cannot listen at {self.address[0]}:{self.address[1]} ({error.strerror}): start again"
            ) from None
        with server:
            server.settimeout(0.02)
            while len(peers) < self.size - 1:
                try:
                    other = server.accept()[0]
                    threading.Thread(target=self._greet, args=(other, accepted), daemon=True).start()
                except TimeoutError:
                    missing = [str(rank) for rank in range(1, self.size) if rank not in peers]
                    if time.monotonic() > deadline:
                        raise DistributedError(
                            f"rank {', '.join(missing)} did not come to meet rank 0 within {SECONDS_TO_MEET:.0f} s: "
                            f"all ranks must call fit"
                        ) from None
                while not accepted.empty():
                    peer, rank, size = accepted.get()
                    if size != self.size or rank in peers:
                        peer.close()
                        raise DistributedError(
                            f"rank {rank} of {size} came to meet rank 0 of {self.size}: start all with one {LAUNCH}"
                        )
                    peers[rank] = peer
        return peers

    def _greet(self, other: socket.socket, accepted) -> None:
        """Put a connection that authenticates into a queue, with its rank and size, and close any other."""
        peer = with_deadline(other)
        try:
            deliver_challenge(peer, self.key)
            answer_challenge(peer, self.key)
            rank, size = np.frombuffer(peer.recv_bytes(), dtype=int).tolist()
            set_deadline(other, 0.0)
        except (EOFError, OSError, ValueError, AuthenticationError):
            peer.close()
        else:
            accepted.put((peer, rank, size))
        other.close()

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


def connect(address, key, deadline) -> Any:
    """Return a connection to rank 0, which may not have started yet."""
    where = f"{address[0]}:{address[1]}"
    while True:
        try:
            with socket.create_connection(address, SECONDS_TO_GREET) as other:
                peer = with_deadline(other)
                answer_challenge(peer, key)
                deliver_challenge(peer, key)
                set_deadline(other, 0.0)
                return peer
        except AuthenticationError:
            raise DistributedError(f"another program than rank 0 listens at {where}: start again") from None
        except (EOFError, OSError):
            if time.monotonic() > deadline:
                raise DistributedError(
                    f"rank 0 did not come to {where} within {SECONDS_TO_MEET:.0f} s"
                ) from None
            time.sleep(0.05)


def with_deadline(other: socket.socket) -> Connection:
    """Return a socket as a connection whose reads and writes fail after `SECONDS_TO_GREET`."""
    other.settimeout(None)
    set_deadline(other, SECONDS_TO_GREET)
    return Connection(os.dup(other.fileno()))


def set_deadline(other: socket.socket, seconds: float) -> None:
    """Set the timeout of reads and writes; 0.0 means none."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        other.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), 0))
