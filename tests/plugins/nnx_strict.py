"""array_api_strict as a backend: refuses whatever the array-API standard does not promise.

Its arrays live on a device that is not the default one, so that mixing in a host array, or reading
one implicitly, raises. Registered through an entry point, as anybody's own backend would be.
"""

from typing import Any

import array_api_strict
import numpy as np

from nnx.backend import Backend, BackendInfo
from nnx.graph.graph import Symbol

Array: Any = type(array_api_strict.empty(0))
_CHECK = "_check_type_device" if hasattr(Array, "_check_type_device") else "_check_device"


def _leaving_symbols(check):
    """Return a check of the other operand that leaves a Symbol to its own operators, as all libraries do."""
    return lambda self, other: None if isinstance(other, Symbol) else check(self, other)


setattr(Array, _CHECK, _leaving_symbols(getattr(Array, _CHECK)))

HOST = array_api_strict.Device("CPU_DEVICE")
DEVICE = array_api_strict.Device("device1")


class StrictBackend(Backend):
    """The smallest backend there can be: a namespace and copies to and from the host."""

    name = "array_api_strict"
    xp = array_api_strict

    def asarray(self, value, dtype=None):
        dtype = None if dtype is None else getattr(array_api_strict, dtype)
        if isinstance(value, Array):
            return array_api_strict.astype(value, dtype) if dtype is not None else value
        return array_api_strict.asarray(np.asarray(value), dtype=dtype, device=DEVICE, copy=True)

    def to_numpy(self, array):
        return np.array(np.from_dlpack(array.to_device(HOST)))

    def arange(self, count, dtype):
        return array_api_strict.arange(count, dtype=getattr(array_api_strict, dtype), device=DEVICE)

    def describe(self):
        return BackendInfo(self.name, True, array_api_strict.__version__, str(DEVICE))
