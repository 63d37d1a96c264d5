"""The network of a multilayer perceptron: dense layers, with scikit-learn's starting weights.

Each weight of a layer is drawn uniformly within sqrt(6 / (inputs + outputs)), or sqrt(2 / ...) for
the logistic function, biases too. Source: Glorot and Bengio, 2010.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np

from nnx import activations, tree
from nnx.estimators.losses import penalty
from nnx.layers import Activation, BatchNormalization, Dense, Dropout, Layer

# scikit-learn's names of activations that have another name in nnx.
NAMES = {"identity": "linear", "logistic": "sigmoid", "exp": "exponential"}


def activation(name) -> activations.Activation:
    """Return the activation that scikit-learn or nnx calls so."""
    return activations.get(NAMES.get(name, name) if isinstance(name, str) else name)


def for_each(value, count: int, name: str) -> list:
    """Return one value for each of `count` hidden layers; a value that is not a list is repeated."""
    if not isinstance(value, (list, tuple)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} values for {count} hidden layers: give one for each layer")
    return list(value)


def layers(sizes, chosen, out_activation, *, alpha, dropout, batch_norm) -> list[Layer]:
    """Return the layers: `sizes` has the units of each dense layer, `chosen` the hidden activations."""
    # `starting_weights` replaces the zeros.
    settings: Any = {"kernel_initializer": "zeros", "kernel_regularizer": penalty(alpha)}
    layers: list[Layer] = []
    rates = for_each(dropout, len(chosen), "dropout")
    for i, (units, function, rate) in enumerate(zip(sizes[:-1], chosen, rates, strict=True)):
        layers.append(Dense(units, None if batch_norm else function, name=f"hidden_{i}", **settings))
        if batch_norm:
            layers += [BatchNormalization(), Activation(function)]
        if rate:
            layers.append(Dropout(rate))
    return [*layers, Dense(sizes[-1], out_activation, name="output", **settings)]


def starting_weights(rng, sizes, chosen, dtype) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return kernels and biases, drawn from a NumPy `RandomState` as scikit-learn draws them."""
    coefs, intercepts = [], []
    # The output layer is drawn like the last hidden layer.
    functions = [*chosen, *chosen[-1:]] or [None]
    for shape, function in zip(pairwise(sizes), functions, strict=True):
        bound = math.sqrt((2.0 if isinstance(function, activations.Sigmoid) else 6.0) / sum(shape))
        coefs.append(rng.uniform(-bound, bound, shape).astype(dtype, copy=False))
        intercepts.append(rng.uniform(-bound, bound, shape[1]).astype(dtype, copy=False))
    return coefs, intercepts


def dense_paths(params) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Return the paths of the kernels and of the biases, from the first layer to the last."""
    hidden = sum(name.startswith("hidden_") for name in params)
    names = [*(f"hidden_{i}" for i in range(hidden)), "output"]
    return [(name, "kernel") for name in names], [(name, "bias") for name in names]


def with_dense(params, coefs, intercepts) -> dict:
    """Return a tree like `params` with these kernels and biases."""
    kernels, biases = dense_paths(params)
    new = dict(zip([*kernels, *biases], [*coefs, *intercepts], strict=True))
    paths = tree.paths(params)
    return tree.from_paths(paths, [new.get(path, tree.at(params, path)) for path in paths])
