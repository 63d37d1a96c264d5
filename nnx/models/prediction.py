"""`predict`: outputs for samples or batches, read from the device many at a time."""

import contextlib
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from nnx import log, tree
from nnx.context import Context
from nnx.data import lazy_arrays
from nnx.data.prefetch import ahead
from nnx.data.samples import as_inputs, pad_samples, rows_of
from nnx.data.sources import on_host
from nnx.data.streams import as_part_of_stream, end_of, features_of, first, numbered
from nnx.errors import own_exceptions
from nnx.graph.fingerprint import Settings
from nnx.shapes import elements, is_single, map_shapes
from nnx.training.batches import DATA_SHARE
from nnx.training.mixed_precision import run_network
from nnx.training.purity import Guard
from nnx.training.trainer import NO_BATCH

IN_FLIGHT = 16
"""Batches of an iterable whose outputs `predict` reads at once."""


class CompiledForward:
    """The compiled forward pass of a model; it is compiled again if a setting of its layers changes."""

    def __init__(self):
        self.settings = Settings()
        self._forward: Callable | None = None

    def of(self, model) -> Callable:
        """Return `forward(weights, x)` for the current settings of the layers."""
        if self.settings.have_changed(model.network) or self._forward is None:
            run = Guard(model.backend, (model.network,)) if self.settings.is_users else model.backend
            self._forward = run.compile(_forward_of(model.backend, model.network, model.dtype))
        return self._forward


def _forward_of(backend, network, dtype) -> Callable:
    def forward(weights, x):
        return run_network(dtype, network, Context(backend, state=weights["state"]), weights["params"], x)[0]

    return forward


def predict_samples(model, x, shape, batch_size: int, steps: int | None) -> Any:
    """Return the outputs for samples of a shape on the host, (samples, ...), or a dict or tuple of them."""
    x = on_host(x, "X", model.backend)
    if _holds_no_sample(x, shape):
        return map_shapes(lambda s: np.zeros((0, *s), model.weight_dtype), model.output_shape)
    x = as_inputs(x, shape, model.weight_dtype, model.network.categories)
    starts, outputs = range(0, end_of("steps", steps, batch_size, rows_of(x)), batch_size), []
    for part in _parts_that_fit(model, starts, batch_size):
        batches = (tree.map(operator.itemgetter(slice(i, i + batch_size)), x) for i in part)
        with contextlib.closing(ahead(batches) if lazy_arrays.any_lazy(x) else batches) as read:
            outputs += _outputs(model, read, batch_size)
    return _joined(outputs)


def predict_stream(model, stream, shape, steps: int | None) -> Any:
    """Return the outputs for the first `steps` batches of an iterable, or all."""

    def checked(item):
        x = on_host(features_of(item), "X", model.backend)
        x = as_inputs(x, shape, model.weight_dtype, model.network.categories)
        return tree.map(lambda a: np.array(a[:]), x)  # the iterable may reuse its arrays

    outputs = []
    with contextlib.closing(own_exceptions(first(stream, steps))) as items:
        pairs = numbered(items, stream, steps, "steps")
        batches = (as_part_of_stream(checked, item, number) for number, item in pairs)
        while some := _outputs(model, itertools.islice(batches, IN_FLIGHT)):
            outputs += some
    if not outputs:
        raise ValueError(NO_BATCH)
    return _joined(outputs)


def _joined(outputs: list) -> Any:
    return tree.map(lambda *parts: np.concatenate(parts), *outputs)


def _outputs(model, batches, batch_size: int | None = None) -> list:
    """Return the outputs for batches of checked samples, of at most `batch_size`, on the host."""
    backend, weights = model.backend, {"params": model.params, "state": model.state}
    counts, outputs = [], []
    with backend.scope(model.dtype):
        forward = model._compiled_forward.of(model)
        for batch in batches:
            counts.append(count := rows_of(batch))
            # Padding is safe for layers of nnx, where samples are independent; in user code they may not be.
            rows = count if model._compiled_forward.settings.is_users else backend.padded(count)
            rows = rows if batch_size is None else min(rows, batch_size)
            placed = tree.map(lambda a, rows=rows: backend.asarray(pad_samples(a, rows)), batch)
            outputs.append(forward(weights, placed))
        read = backend.read(outputs)
    return [tree.map(lambda a, n=n: a[:n], output) for n, output in zip(counts, read, strict=True)]


def _parts_that_fit(model, starts: range, batch_size: int) -> list[range]:
    """Return the starts of batches in groups whose outputs fit on the device together."""
    free, bytes_a_batch = model.backend.free_memory(), np.dtype(model.weight_dtype).itemsize * batch_size
    bytes_a_batch *= elements(model.output_shape)
    count = len(starts) if free is None else max(1, int(DATA_SHARE * free) // bytes_a_batch)
    if count < len(starts):
        log.info("outputs fetched every %d of %d batches, for want of memory", count, len(starts))
    return [starts[i : i + count] for i in range(0, len(starts), count)]


def _holds_no_sample(x, shape) -> bool:
    if is_single(shape):
        return bool(np.ndim(x)) and len(x) == 0 and np.shape(x)[1:] == shape
    x = tuple(x) if isinstance(x, list) else x
    shapes = tree.map(np.shape, x) if isinstance(x, (dict, tuple)) else None
    return shapes == map_shapes(lambda s: (0, *s), shape)
