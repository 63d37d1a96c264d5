"""The backends that tests run on, and memory that is full of nan."""

import numpy as np
import pytest

import nnx

BACKENDS = ("numpy", "jax", "array_api_strict", "cupy")


def usable_or_skip(name: str) -> nnx.Backend:
    """Return the backend of this name, or skip the test with the reason it cannot run."""
    try:
        return nnx.as_backend(name)
    except nnx.BackendError as error:
        pytest.skip(f"{name}: {error}")


def full_of_nan(empty):
    """Return a function like `numpy.empty` whose arrays hold nan, or the largest of their whole numbers."""

    def filled(shape, dtype=float):
        made = empty(shape, dtype)
        if made.dtype.kind in "iu":
            made.fill(np.iinfo(made.dtype).max)
        else:
            made.fill(np.nan)
        return made

    return filled
