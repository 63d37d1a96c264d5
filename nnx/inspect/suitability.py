"""Whether the output of a network suits its loss: what its last activation gives, and what the loss expects.

A softmax in front of a loss `from_logits`, a sigmoid for targets up to 20: such programs run and learn little.
`unsuited` says so from the configuration and the targets on the host. `fit` warns of it once, and
`nnx.diagnose` repeats it.
"""

import math
from typing import Any

import numpy as np

from nnx import activations, layers, losses
from nnx.layers.base import Layer
from nnx.layers.conv import Convolution
from nnx.layers.noise import GaussianNoise
from nnx.layers.pooling import _GlobalPooling, _Pooling
from nnx.layers.recurrent import Recurrent
from nnx.losses.outputs import OutputLosses, output_name
from nnx.registry import is_builtin
from nnx.shapes import is_single

_RANGES = {
    **dict.fromkeys((activations.Sigmoid, activations.HardSigmoid, activations.Softmax), (0.0, 1.0)),
    **dict.fromkeys((activations.Tanh, activations.Softsign), (-1.0, 1.0)),
    **dict.fromkeys((activations.ReLU, activations.Softplus, activations.Exponential), (0.0, math.inf)),
    **dict.fromkeys((activations.GELU, activations.GELUTanh), (-0.17, math.inf)),
    activations.SELU: (-1.7581, math.inf),
    activations.SiLU: (-0.2785, math.inf),
    activations.Mish: (-0.3089, math.inf),
    activations.LogSoftmax: (-math.inf, 0.0),
}
"""The least and the largest value of activations whose range is limited."""

TOLERANCE = 1e-2
"""By how much a target may lie outside: noise."""

_WITH_ACTIVATION = (layers.Dense, layers.Activation, Convolution, Recurrent)
"""Layers whose output is that of their activation (of a recurrent one: no larger than it)."""

_KEEPING = (layers.Dropout, GaussianNoise, _Pooling, _GlobalPooling)
"""Layers behind which the range of values is, in inference, that of before."""

_REGRESSION = (
    losses.MeanSquaredError, losses.MeanAbsoluteError, losses.Huber, losses.LogCosh, losses.Quantile,
    losses.Poisson, losses.Hinge,
)  # fmt: skip
_OF_PROBABILITIES = (losses.BinaryCrossentropy, losses.CategoricalCrossentropy, losses.KLDivergence)
_ONE_EACH = (activations.Sigmoid, activations.HardSigmoid)


def unsuited(network: Layer, loss, out_shape, y=None, weight=None) -> list[str]:
    """Return a sentence, with the remedy, for each output of a network that does not suit its loss.

    Parameters
    ----------
    network : Layer
    loss : Loss
    out_shape : shape
        Of one output of the network.
    y : array, or a dict or tuple of them, optional
        Targets, as the loss takes them.
    weight : array, (samples,), optional
        Samples of weight 0 are ignored.
    """
    path = _in_a_row(network)
    if not path:
        return []
    if y is not None and _has_masks(network):  # what stands where time steps are left out means nothing
        y = None
    if isinstance(loss, OutputLosses) and type(path[-1]) is layers.Outputs:
        last: layers.Outputs = path[-1]
        sentences = []
        for place, branch in zip(last.places, last.layers, strict=True):
            if place in loss.each:
                targets = None if y is None else y[place]
                text = _unsuited(
                    [*path[:-1], *_in_a_row(branch)], loss.each[place], out_shape[place], targets, weight
                )
                sentences += [f"Output {output_name(place)!r}: {text}"] if text else []
        return sentences
    if not is_single(out_shape):
        return []
    text = _unsuited(path, loss, out_shape, y, weight)
    return [text] if text else []


def _unsuited(path: list[Layer], loss, out_shape, y, weight) -> str | None:
    activation = _last_activation(path)
    if activation is None or not is_builtin(loss):
        return None
    text = _of_configuration(activation, loss, out_shape)
    if text is None and y is not None:
        text = _of_targets(activation, loss, _counted(np.asarray(y), weight))
    return text


# What the output is


def _in_a_row(layer: Layer) -> list[Layer]:
    """Return the layers that a layer runs one after another, those of chains in it included."""
    if type(layer) is not layers.Chain:
        return [layer]
    return [inner_layer for inner in layer.layers for inner_layer in _in_a_row(inner)]


def _last_activation(path: list[Layer]) -> activations.Activation | None:
    """Return the activation that the output comes out of; None if that is not known."""
    for layer in reversed(path):
        if not is_builtin(layer):
            return None
        if type(layer) is layers.TimeDistributed:
            return _last_activation(_in_a_row(layer.layer))
        if type(layer) is layers.Parallel and layer.merge == "concat":
            ends = [_last_activation(_in_a_row(branch)) for branch in layer.layers]
            alike = not any(isinstance(a, activations.Softmax) for a in ends)  # two of them sum to 2
            return ends[0] if alike and len({type(activation) for activation in ends}) == 1 else None
        activation: Any = getattr(layer, "activation", None)
        if isinstance(layer, _WITH_ACTIVATION):
            if isinstance(layer, layers.Activation) and type(activation) is activations.Linear:
                continue
            return activation if is_builtin(activation) else None
        if not layer.rearranges and not isinstance(layer, _KEEPING):
            return None
    return None


def _name(activation) -> str:
    """Return what an activation is called in a layer."""
    return next(name for name in activations.names() if type(activations.get(name)) is type(activation))


def _range(activation) -> tuple[float, float]:
    """Return the least and the largest value of an activation."""
    if isinstance(activation, activations.ELU):
        return -activation.alpha, math.inf
    return _RANGES.get(type(activation), (-math.inf, math.inf))


def _has_masks(layer: Layer) -> bool:
    return (
        isinstance(layer, layers.Masking)
        or getattr(layer, "mask_zero", False)
        or any(_has_masks(inner) for inner in layer.sublayers().values())
    )


# What the loss expects


def _of_configuration(activation, loss, out_shape) -> str | None:
    low, high = _range(activation)
    name, kind, units = (
        type(loss).__name__,
        _name(activation),
        out_shape[-1] if out_shape else 1,
    )
    categorical = isinstance(loss, losses.CategoricalCrossentropy)
    if isinstance(activation, activations.Softmax) and units == 1:
        return (
            "A softmax over one unit is always 1, and nothing is learnt: give the last layer activation='sigmoid', "
            "or a unit for each class"
        )
    if loss.from_logits:
        if high <= 1 and low == 0:
            return (
                f"{name}(from_logits=True) expects the values before the {kind} that the network ends in, which would "
                f"be applied twice: take the activation off the last layer, or leave from_logits out"
            )
        if low >= 0 and not categorical:
            return (
                f"{name}(from_logits=True) expects logits of either sign, while {kind} gives none below 0, which is "
                f"a probability of at least 1/2: take the activation off the last layer"
            )
        return None
    wanted = "softmax" if categorical or isinstance(loss, losses.KLDivergence) else "sigmoid"
    if isinstance(loss, _OF_PROBABILITIES) and (
        low < 0 or (high > 1 and not _is_positive(activation, categorical))
    ):
        logits = "" if isinstance(loss, losses.KLDivergence) else ", or the loss from_logits=True"
        return (
            f"{name} expects probabilities, while the network ends in {kind}, whose values go from "
            f"{_number(low)} to {_number(high)}: give the last layer activation={wanted!r}{logits}"
        )
    if categorical and isinstance(activation, _ONE_EACH) and units > 1:
        return (
            f"{name} is for classes that exclude each other, while {kind} gives each of {units} a probability of its "
            f"own: give the last layer activation='softmax', or for several labels at a time use 'binary_crossentropy'"
        )
    if isinstance(loss, losses.Poisson) and low < 0:
        return (
            f"Poisson expects positive outputs, the expected counts, while {kind} gives values from {_number(low)} to "
            f"{_number(high)}: give the last layer activation='softplus' or 'exponential'"
        )
    return None


def _is_positive(activation, categorical: bool) -> bool:
    """Whether values above 1 are right: positive ones, which a categorical loss divides by their sum."""
    return categorical and isinstance(activation, (activations.Softplus, activations.Exponential))


def _of_targets(activation, loss, y) -> str | None:
    if not y.size:
        return None
    least, largest = float(y.min()), float(y.max())
    low, high = _range(activation)
    kind = _name(activation)
    if isinstance(activation, activations.Softmax) and type(loss) is losses.BinaryCrossentropy:
        if y.ndim > 1 and not loss.from_logits and float(y.sum(axis=-1).max()) > 1.001:
            return (
                "Some samples have several labels, while a softmax shares a probability of 1 among all of them: give "
                "the last layer activation='sigmoid'"
            )
        return None
    if isinstance(loss, losses.Poisson) and least < 0:
        return f"Poisson expects counts, which are not negative, while the targets go down to {least:.4g}: use 'mse'"
    if isinstance(loss, losses.Hinge):
        least = -1.0 if least <= 0 else least  # 0 is read as -1
    if not isinstance(loss, _REGRESSION) or (least >= low - TOLERANCE and largest <= high + TOLERANCE):
        return None
    or_else = "take tanh" if isinstance(loss, losses.Hinge) else "scale the targets"
    return (
        f"Targets go from {least:.4g} to {largest:.4g}, which the network cannot reach: its last activation, {kind}, "
        f"gives values from {_number(low)} to {_number(high)}. Take the activation off the last layer, "
        f"or {or_else}"
    )


def _counted(y: np.ndarray, weight) -> np.ndarray:
    return y if weight is None or np.all(weight) else y[np.asarray(weight) != 0]


def _number(limit: float) -> str:
    return {math.inf: "infinity", -math.inf: "-infinity"}.get(limit, f"{limit:.4g}")
