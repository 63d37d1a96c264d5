"""Checks and conversion of the user's data into the form that steps expect, before anything is computed."""

from collections.abc import Iterator
from typing import Any

from nnx import log, tree
from nnx.data import lazy_arrays
from nnx.data.classes import warn_of_untrained, with_class_weights
from nnx.data.out_of_core import as_out_of_core
from nnx.data.samples import Samples, as_inputs, as_samples, as_several, check_share, split_last
from nnx.data.sources import on_host
from nnx.data.streams import as_validation, end_of, expect_end, is_stream
from nnx.inspect.suitability import unsuited
from nnx.layers.containers import Chain
from nnx.layers.parallel import Inputs
from nnx.losses.outputs import expect_outputs
from nnx.shapes import as_column, is_single, map_shapes
from nnx.training.arguments import FitArguments, FitData


def prepared(model, x, y, sample_weight=None) -> Samples:
    """Return checked samples for a compiled model; a model that is not built is built for them.

    Raises
    ------
    ValueError
        If they do not fit the model; the message names value, expectation and remedy.
    """
    backend, dtype, declared = model.backend, model.weight_dtype, model.input_shape
    x, y = on_host(x, "X", backend), on_host(y, "y", backend)
    sample_weight = on_host(sample_weight, "sample_weight", backend)
    if declared is None:
        x = as_several(x, y, begins_with_inputs(model))
    x = as_inputs(x, declared, dtype, model.network.categories)
    was_built = model.built
    if not was_built:
        model._make_weights(tree.map(lambda a: a.shape[1:], x))
    try:
        expect_outputs(model.loss, model.metrics_used, model.output_shape)
        check = as_out_of_core if lazy_arrays.any_lazy(x, y) else as_samples
        return check(x, y, sample_weight, model.loss, map_shapes(as_column, model.output_shape), dtype)
    except ValueError:
        if not was_built:  # invalid data must not determine the input shape
            model._unbuild(declared)
        raise


def prepared_for_training(model, x, y, sample_weight=None) -> Samples:
    """Return checked samples; the first call after `compile` warns if the model's output does not suit the loss."""
    samples = prepared(model, x, y, sample_weight)
    if not model._loss_is_checked:
        model._loss_is_checked = True
        # Of a file only the first samples: the others are checked as they are read.
        some = (
            samples.part(0, min(len(samples), 32)) if samples.stays_on_host else samples
        ).identifying_samples()
        for text in unsuited(model.network, model.loss, model.output_shape, some.y, some.weight):
            log.warn(text)
    return samples


def fit_data(
    model, arguments: FitArguments, x, y, sample_weight, class_weight, validation_split, validation_data
) -> FitData:
    """Return the data to train and validate on, from the arguments of `fit`."""
    validation_split = check_share("validation_split", validation_split)
    samples, stream, validation = None, None, None
    if is_stream_of_batches(x, y):
        if validation_split or class_weight is not None or sample_weight is not None:
            raise ValueError(
                "validation_split, class_weight and sample_weight need arrays, not an iterable of batches"
            )
        stream = x
    else:
        if arguments.steps_per_epoch is not None:
            raise ValueError("steps_per_epoch is for an iterable of batches; with arrays give batch_size")
        samples = prepared_for_training(model, x, y, sample_weight)
        if validation_split and validation_data is None:
            samples, validation = split_last(samples, validation_split)
            warn_of_untrained(samples, validation)
        samples = with_class_weights(samples, class_weight, model.output_shape)
    if validation_data is not None:
        validation = _validation(model, arguments, validation_data)
    if arguments.validation_steps is not None and validation is None:
        raise ValueError("validation_steps needs validation_data, or validation_split")
    if isinstance(validation, Samples):
        size = arguments.validation_batch_size
        stop = end_of("validation_steps", arguments.validation_steps, size, len(validation))
        validation = validation.part(0, stop) if stop < len(validation) else validation
    return FitData(samples, stream, validation)


def _validation(model, arguments: FitArguments, given) -> Any:
    takes_several = (
        begins_with_inputs(model) if model.input_shape is None else not is_single(model.input_shape)
    )
    validation = as_validation(given, takes_several)
    if isinstance(validation, tuple):
        return prepared(model, *validation)
    freq = arguments.validation_freq
    validations = arguments.epochs // freq - arguments.initial_epoch // freq
    expect_end(validation, arguments.validation_steps, validations, arguments.steps_per_epoch is not None)
    return validation


def begins_with_inputs(model) -> bool:
    """Whether the model's first layer takes several inputs."""
    first = model.network
    while isinstance(first, Chain) and first.layers:
        first = first.layers[0]
    return isinstance(first, Inputs)


def is_stream_of_batches(x, y) -> bool:
    """Whether fit or evaluate was given an iterable of batches."""
    if y is not None and isinstance(x, Iterator):
        raise ValueError(
            f"x is an iterable of batches, a {type(x).__name__}, which gives the targets itself: leave y out"
        )
    return y is None and is_stream(x)
