"""The emulated device as tests see it: counters, launch trace, sync guard."""

import contextlib
import copy
import dataclasses


class NotEmulatedError(NotImplementedError):
    """CuPy asked for something this emulation cannot do faithfully."""


class HostSyncError(RuntimeError):
    """The host waited for the device inside `Device.forbid_sync()`."""


@dataclasses.dataclass
class Counters:
    """How often the device was asked for each thing."""

    kernels: int = 0  # made ready to be launched: compiled, or found in the cache
    launches: int = 0  # of kernels that CuPy compiled itself
    products: int = 0  # calls of cuBLAS gemm, each of one matrix product or a batch of them
    library_calls: int = 0  # sorts and random numbers: Thrust, cuRAND
    host_to_device_copies: int = 0
    host_to_device_bytes: int = 0
    device_to_host_copies: int = 0
    device_to_host_bytes: int = 0
    device_to_device_copies: int = 0
    pageable_copies: int = (
        0  # of these, between device and host memory that is not pinned: such a copy may wait
    )
    syncs: int = 0  # times the host waited for the device
    mallocs: int = 0  # cudaMalloc: what the memory pool had to ask for

    def __sub__(self, earlier):
        return Counters(**{name: count - getattr(earlier, name) for name, count in vars(self).items()})


class Device:
    """What `install()` returns.

    Attributes
    ----------
    counters : Counters
        Running totals since installation.
    trace_launches : bool
        While true, every launch is appended to `launches`.
    launches : list of (kernel name, grid, block)
    trace_streams : bool
        While true, what is put on a stream is appended to `stream_trace`.
    stream_trace : list of (kind, stream, event)
        Of kind "launch", "copy", "record" or "wait"; the event is None for the first two.
    """

    def __init__(self):
        self.counters = Counters()
        self.trace_launches = False
        self.launches = []
        self.trace_streams = False
        self.stream_trace = []
        self._sync_forbidden = False

    @contextlib.contextmanager
    def count(self):
        """Yield Counters that hold, after the block, what the block did."""
        before, difference = copy.copy(self.counters), Counters()
        try:
            yield difference
        finally:
            vars(difference).update(vars(self.counters - before))

    @contextlib.contextmanager
    def forbid_sync(self):
        """Make a host sync raise HostSyncError."""
        outer, self._sync_forbidden = self._sync_forbidden, True
        try:
            yield
        finally:
            self._sync_forbidden = outer

    def check_sync_allowed(self, reason):
        """Called by the fakes before the host waits."""
        if self._sync_forbidden:
            raise HostSyncError(f"host sync inside forbid_sync(): {reason}")

    def note_sync(self, reason):
        self.check_sync_allowed(reason)
        self.counters.syncs += 1

    def note_on_stream(self, kind, stream, event=None):
        if self.trace_streams:
            self.stream_trace.append((kind, stream, event))

    def note_launch(self, kernel, grid, block, stream):
        self.counters.launches += 1
        self.note_on_stream("launch", stream)
        if self.trace_launches:
            self.launches.append((kernel, grid, block))
