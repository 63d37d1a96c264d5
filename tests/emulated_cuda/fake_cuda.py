"""The CUDA runtime and driver: memory, streams, modules and launches.

Methods are named and called like CuPy's wrappers of the CUDA functions.  Device
memory is host memory, and every operation has finished when it returns.
"""

import bisect
import ctypes
import os
import time

from cupy_backends.cuda.api.runtime import CUDARuntimeError, PointerAttributes

ERROR_INVALID_VALUE, ERROR_MEMORY_ALLOCATION, ERROR_INVALID_DEVICE = 1, 2, 101
HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = 1, 2, 3, 4
HOST_MEMORY, DEVICE_MEMORY = 1, 2
MAX_GRID, MAX_BLOCK, MAX_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024
DEFAULT_SHARED_BYTES, MAX_SHARED_BYTES = 48 * 1024, 227 * 1024
FUNCTION_MAX_THREADS, FUNCTION_DYNAMIC_SHARED = 0, 8

_libc = ctypes.CDLL(None)
_libc.aligned_alloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
_libc.aligned_alloc.restype = ctypes.c_void_p
_libc.free.argtypes = [ctypes.c_void_p]


class Memory:
    """The allocated blocks of one kind of memory."""

    def __init__(self, limit):
        self.limit, self.used = limit, 0
        self._starts, self._sizes = [], {}

    def allocate(self, size):
        rounded = (size + 511) // 512 * 512
        address = _libc.aligned_alloc(512, rounded) if self.used + size <= self.limit else None
        if address is None:
            raise CUDARuntimeError(ERROR_MEMORY_ALLOCATION)
        ctypes.memset(address, 0xFF, rounded)  # poison: NaN, or -1
        bisect.insort(self._starts, address)
        self._sizes[address] = size
        self.used += size
        return address

    def free(self, address):
        if address not in self._sizes:
            raise CUDARuntimeError(ERROR_INVALID_VALUE)
        self.used -= self._sizes.pop(address)
        self._starts.remove(address)
        _libc.free(address)

    def contains(self, address, size=1):
        """Whether all `size` bytes at `address` belong to one block."""
        index = bisect.bisect_right(self._starts, address) - 1
        return index >= 0 and address + size <= self._starts[index] + self._sizes[self._starts[index]]


class FakeRuntime:
    """Stands in for cupy_backends.cuda.api.runtime."""

    LABEL = "CUDA runtime"
    LEFT_AS_IS = {"check_status", "runtimeGetVersion", "_getCUDAMajorVersion"}
    CONSTANTS = {
        "getDeviceCount": 1,
        "getDevice": 0,
        "_ensure_context": None,
        "driverGetVersion": 13020,
        "deviceCanAccessPeer": 0,
        "deviceGetPCIBusId": "0000:00:00.0",
        "streamDestroy": None,
        "streamQuery": 0,
        "streamIsCapturing": 0,
        "eventQuery": 0,
        "profilerStart": None,
        "profilerStop": None,
    }
    # By the numbers of cudaDeviceAttr; all others are 0.
    ATTRIBUTES = {
        1: MAX_THREADS,
        2: MAX_BLOCK[0],
        3: MAX_BLOCK[1],
        4: MAX_BLOCK[2],
        5: MAX_GRID[0],
        6: MAX_GRID[1],
        7: MAX_GRID[2],
        8: DEFAULT_SHARED_BYTES,
        10: 32,
        16: 4,
        39: 2048,
        75: 9,
        76: 0,
        97: MAX_SHARED_BYTES,
    }

    def __init__(self, device, memory_limit):
        self._device = device
        self._memory, self._pinned = Memory(memory_limit), Memory(memory_limit)
        self._last_handle = 0x1000
        self._event_times = {}

    def setDevice(self, device):
        if device != 0:
            raise CUDARuntimeError(ERROR_INVALID_DEVICE)

    def deviceGetAttribute(self, attribute, device):
        return self.ATTRIBUTES.get(attribute, 0)

    def getDeviceProperties(self, device):
        return {
            "name": b"emulated device (no GPU)",
            "major": 9,
            "minor": 0,
            "warpSize": 32,
            "multiProcessorCount": 4,
            "maxThreadsPerBlock": MAX_THREADS,
            "sharedMemPerBlock": DEFAULT_SHARED_BYTES,
            "totalGlobalMem": self._memory.limit,
        }

    def memGetInfo(self):
        return self._memory.limit - self._memory.used, self._memory.limit

    # ---- memory ----------------------------------------------------------------

    def malloc(self, size):
        self._device.counters.mallocs += 1
        return self._memory.allocate(size)

    def free(self, address):
        self._memory.free(address)

    def hostAlloc(self, size, flags):
        return self._pinned.allocate(size)

    def freeHost(self, address):
        self._pinned.free(address)

    def pointerGetMemoryType(self, address):
        return (
            DEVICE_MEMORY
            if self._memory.contains(address)
            else HOST_MEMORY
            if self._pinned.contains(address)
            else 0
        )

    def pointerGetAttributes(self, address):
        kind = self.pointerGetMemoryType(address)
        return PointerAttributes(0 if kind else -2, address if kind == DEVICE_MEMORY else 0, address, kind)

    def memset(self, address, value, size, stream=0):
        if not self._memory.contains(address, size):
            raise CUDARuntimeError(ERROR_INVALID_VALUE)
        ctypes.memset(address, value, size)

    memsetAsync = memset

    def memcpy(self, destination, source, size, kind):
        if self._direction(destination, source, size) != DEVICE_TO_DEVICE:
            self._device.note_sync("memcpy between host and device")
        self._copy(destination, source, size, kind)

    def memcpyAsync(self, destination, source, size, kind, stream):
        # CUDA waits for such a copy, too.  It is not counted as a sync because
        # CuPy synchronizes the stream right after it, which is.
        if self._direction(destination, source, size) == DEVICE_TO_HOST and not self._pinned.contains(
            destination
        ):
            self._device.check_sync_allowed(
                "copy to host memory that is not pinned (get, item, float, print, ...)"
            )
        self._device.note_on_stream("copy", stream)
        self._copy(destination, source, size, kind)

    def _direction(self, destination, source, size):
        to_device, from_device = self._memory.contains(destination, size), self._memory.contains(source, size)
        return {
            (True, False): HOST_TO_DEVICE,
            (False, True): DEVICE_TO_HOST,
            (True, True): DEVICE_TO_DEVICE,
            (False, False): 0,
        }[to_device, from_device]

    def _copy(self, destination, source, size, kind):
        direction, counters = self._direction(destination, source, size), self._device.counters
        host = {HOST_TO_DEVICE: source, DEVICE_TO_HOST: destination}.get(direction)
        counters.pageable_copies += host is not None and not self._pinned.contains(host, size)
        if kind not in (direction, DEFAULT):  # an address on the wrong side, or past the end of a block
            raise CUDARuntimeError(ERROR_INVALID_VALUE)
        if direction == HOST_TO_DEVICE:
            counters.host_to_device_copies += 1
            counters.host_to_device_bytes += size
        elif direction == DEVICE_TO_HOST:
            counters.device_to_host_copies += 1
            counters.device_to_host_bytes += size
        else:
            counters.device_to_device_copies += 1
        ctypes.memmove(destination, source, size)

    # ---- streams and events: everything has already happened ---------------------

    def streamCreateWithPriority(self, *flags):
        self._last_handle += 16
        return self._last_handle

    streamCreate = streamCreateWithFlags = eventCreate = eventCreateWithFlags = streamCreateWithPriority

    def deviceSynchronize(self):
        self._device.note_sync("device synchronization")

    def streamSynchronize(self, stream):
        self._device.note_sync("stream synchronization")

    def eventSynchronize(self, event):
        self._device.note_sync("event synchronization")

    def streamWaitEvent(self, stream, event, flags=0):
        self._device.note_on_stream("wait", stream, event)

    def eventRecord(self, event, stream):
        self._device.note_on_stream("record", stream, event)
        self._event_times[event] = time.perf_counter()

    def eventElapsedTime(self, start, end):
        return (self._event_times[end] - self._event_times[start]) * 1e3

    def eventDestroy(self, event):
        self._event_times.pop(event, None)

    def launchHostFunc(self, stream, callback, argument):
        callback(argument)


class FakeDriver:
    """Stands in for cupy_backends.cuda.api.driver.

    A loaded module is a shared library made by kernel_compiler.py; the "image"
    that CuPy hands over is its path.
    """

    LABEL = "CUDA driver"
    LEFT_AS_IS = {"check_status", "get_build_version"}
    CONSTANTS = {
        "ctxGetCurrent": 1,
        "ctxGetDevice": 0,
        "ctxSetCurrent": None,
        "moduleUnload": None,
        "occupancyMaxActiveBlocksPerMultiprocessor": 2,
    }

    def __init__(self, device):
        self._device = device
        self._modules, self._kernels = [None], [None]  # handles are indices, and 0 is none

    def moduleLoadData(self, image):
        # PyDLL keeps Python's lock while a kernel runs: the scheduler of CUDA
        # threads is shared, so kernels must run one at a time.
        self._modules.append(ctypes.PyDLL(os.fsdecode(image)))
        return len(self._modules) - 1

    def moduleGetFunction(self, module, name):
        try:
            entry = self._modules[module]["launch_" + name]
        except AttributeError:
            raise RuntimeError(f"CUDA_ERROR_NOT_FOUND: no kernel named {name}") from None
        entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
        entry.restype = ctypes.c_char_p
        self._kernels.append({"name": name, "entry": entry, "max_shared": DEFAULT_SHARED_BYTES})
        return len(self._kernels) - 1

    def funcGetAttribute(self, attribute, function):
        return {
            FUNCTION_MAX_THREADS: MAX_THREADS,
            FUNCTION_DYNAMIC_SHARED: self._kernels[function]["max_shared"],
        }.get(attribute, 0)

    def funcSetAttribute(self, function, attribute, value):
        if attribute == FUNCTION_DYNAMIC_SHARED:
            self._kernels[function]["max_shared"] = min(value, MAX_SHARED_BYTES)

    def launchKernel(
        self,
        function,
        grid_x,
        grid_y,
        grid_z,
        block_x,
        block_y,
        block_z,
        shared_bytes,
        stream,
        arguments,
        extra,
    ):
        kernel, grid, block = self._kernels[function], (grid_x, grid_y, grid_z), (block_x, block_y, block_z)
        sizes_fit = all(
            1 <= size <= limit for size, limit in zip(grid + block, MAX_GRID + MAX_BLOCK, strict=False)
        )
        if not sizes_fit or block_x * block_y * block_z > MAX_THREADS or shared_bytes > kernel["max_shared"]:
            raise RuntimeError(
                f"CUDA_ERROR_INVALID_VALUE: kernel {kernel['name']}, grid {grid}, block {block}, "
                f"{shared_bytes} bytes of dynamic shared memory (at most {kernel['max_shared']})"
            )
        self._device.note_launch(kernel["name"], grid, block, stream)
        error = kernel["entry"]((ctypes.c_uint * 6)(*grid, *block), arguments, shared_bytes)
        if error:
            raise RuntimeError(f"kernel {kernel['name']}: {error.decode()}")
