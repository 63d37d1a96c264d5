"""Data of other libraries as host arrays: tables, tensors, files.

Copies are avoided: a tensor on the CPU shares its memory. Files too large to be read as a whole become
`nnx.data.lazy_arrays.LazyArray`.
"""

from typing import Any

import numpy as np

from nnx.data import dataframes, lazy_arrays


def on_host(value: Any, what: str, backend) -> Any:
    """Return X, y or weights, or a dict, tuple or list of them, as host arrays and lazy arrays.

    Numbers and lists of numbers are not changed.

    Raises
    ------
    TypeError
        If it is an array of another library on a device.
    ValueError
        If it is a table that does not only hold numbers, or a sparse matrix.
    """
    if value is None or type(value) is np.ndarray:
        return value
    if isinstance(value, dict):
        return {name: on_host(part, f"{what}[{name!r}]", backend) for name, part in value.items()}
    if isinstance(value, tuple) or (isinstance(value, list) and value and hasattr(value[0], "shape")):
        return type(value)(on_host(part, f"{what}[{i}]", backend) for i, part in enumerate(value))
    if isinstance(value, np.ndarray):
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            row = int(np.argwhere(np.ma.getmaskarray(value))[0][0])
            raise ValueError(f"{what} has a masked value at row {row}: fill or drop such samples first")
        is_lazy = isinstance(value, np.memmap) and lazy_arrays.is_large(value)
        return lazy_arrays.LazyArray(value, what) if is_lazy else value
    if dataframes.is_table(value):
        return dataframes.as_array(value, what)
    if hasattr(value, "__dlpack__"):
        return _tensor(value, what, backend)
    if hasattr(value, "toarray"):
        raise ValueError(
            f"{what} is a sparse matrix: give {what}.toarray(), or, if that is too large, an iterable of dense batches"
        )
    if lazy_arrays.is_read_by_slices(value):
        return lazy_arrays.LazyArray(value, what) if lazy_arrays.is_large(value) else np.asarray(value[:])
    return np.asarray(value) if hasattr(value, "__array__") else value


def _tensor(value, what: str, backend) -> np.ndarray:
    """Return an array of another library as a host array, in the same memory if that is possible."""
    try:
        if type(value) is type(backend.asarray(0.0)):
            return backend.to_numpy(value)
        if hasattr(value, "detach"):  # a tensor of PyTorch
            value = value.detach()
            value = value.float() if "bfloat16" in str(value.dtype) else value
        array = np.asarray(value) if hasattr(value, "__array__") else np.from_dlpack(value)
        return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    except Exception:  # each library raises another error
        kind = f"{type(value).__module__}.{type(value).__name__}"
        copy = ".get()" if hasattr(value, "get") else ".detach().cpu().numpy()"
    raise TypeError(
        f"{what} is a {kind} on a device, but data is checked on the host and copied from there to the model's "
        f"backend, here {backend.name}: give {what}{copy}"
    )
