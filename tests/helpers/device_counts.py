"""What code asks of the device: kernels, products, copies, host syncs, counted on the emulated one.

A new layer states its counts in one line:

    assert_counts(layers.Dense(4), (3,), launches=3, products=3)
"""

import collections
import contextlib

import emulated_cuda
import numpy as np
import pytest

import nnx
from nnx import tree
from nnx.layers.base import run

KEY = (1, 2)


def device() -> emulated_cuda.Device:
    """Return the emulated device, or skip the test: a real one counts nothing."""
    found = emulated_cuda.installed()
    if found is None:
        pytest.skip("counted on the emulated device only: make test-cupy, where there is no GPU")
    return found


def device_counts(function) -> dict[str, int]:
    """Return what a call of `function` asks of the device, once compiled and in memory it has had before.

    The names are those of `emulated_cuda.Counters`; what is not asked for is left out.
    """
    counted = device()
    function()
    with counted.count() as counts:
        function()
    return {name: count for name, count in vars(counts).items() if count}


def stream_order(function) -> list[tuple[int, dict[int, int], dict[int, int]]]:
    """Return (stream, seen, begun) of each launch and asynchronous copy in a call of `function`.

    `begun` tells how many launches and copies had been put on each stream before it, and `seen` how
    many of these are sure to be done when it runs: those that waits for events put before it.
    """
    traced = device()
    traced.stream_trace, traced.trace_streams = [], True
    try:
        function()
    finally:
        traced.trace_streams = False
    begun: dict[int, int] = collections.Counter()
    seen: dict[int, dict[int, int]] = collections.defaultdict(collections.Counter)
    events: dict[int, dict[int, int]] = {}
    order = []
    for kind, stream, event in traced.stream_trace:
        if kind == "record":
            events[event] = {**seen[stream], stream: begun[stream]}
        elif kind == "wait":
            seen[stream] |= collections.Counter(events[event])
        else:
            order.append((stream, dict(seen[stream]), dict(begun)))
            begun[stream] += 1
    return order


def layer_counts(layer, in_shape, batch: int = 8) -> dict[str, int]:
    """Return what a forward and a backward pass of a layer in training ask of the device."""
    backend, rng = nnx.as_backend("cupy"), np.random.default_rng(0)
    params, out_shape = layer.init(rng, tuple(in_shape))
    place = lambda array: backend.asarray(np.asarray(array, "float32"))  # noqa: E731
    params, state = tree.map(place, params), tree.map(place, layer.init_state(tuple(in_shape)))
    x, dy = (place(rng.standard_normal((batch, *shape))) for shape in (in_shape, out_shape))

    def forward_and_backward():
        ctx = nnx.Context(backend, training=True, state=state, key=KEY)
        run(layer, ctx, params, x)[1](dy)

    with forbidden_sync():
        forward_and_backward()  # what the compilation of kernels keeps for a while is memory, too
        return device_counts(forward_and_backward)


def assert_counts(layer, in_shape, *, batch: int = 8, **expected: int) -> None:
    """Assert that a layer's forward and backward pass ask for just this of the device."""
    found = layer_counts(layer, in_shape, batch)
    expected = {name: count for name, count in expected.items() if count}
    assert found == expected, f"{type(layer).__name__} asks the device for {found}, not for {expected}"


def forbidden_sync() -> contextlib.AbstractContextManager:
    """Return a context in which waiting for the device raises HostSyncError."""
    return device().forbid_sync()
