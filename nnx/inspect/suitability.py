"""Check that the output of a network suits its loss: the range of its last activation, and that of the targets.

A softmax before a loss `from_logits`, or a sigmoid for targets up to 20: such models run, but learn little.
`unsuited` finds this from the configuration and the targets on the host. `fit` warns of it once, and
`nnx.diagnose` reports it.
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
"""The smallest and the largest value of activations with a limited range."""

TOLERANCE = 1e-2
"""How far noisy targets may be out of range."""

_WITH_ACTIVATION = (layers.Dense, layers.Activation, Convolution, Recurrent)
"""Layers whose output has the range of their activation (of a recurrent layer: at most that)."""

_KEEPING = (layers.Dropout, GaussianNoise, _Pooling, _GlobalPooling)
"""Layers that keep the range of their input in inference."""

_REGRESSION = (
    losses.MeanSquaredError, losses.MeanAbsoluteError, losses.Huber, losses.LogCosh, losses.Quantile,
    losses.Poisson, losses.Hinge,
)  # fmt: skip
_OF_PROBABILITIES = (losses.BinaryCrossentropy, losses.CategoricalCrossentropy, losses.KLDivergence)
_ONE_EACH = (activations.Sigmoid, activations.HardSigmoid)


def unsuited(network: Layer, loss, out_shape, y=None, weight=None) -> list[str]:
    """Return a sentence with a remedy for each output of a network that does not suit its loss.

    Parameters
    ----------
    network : Layer
    loss : Loss
    out_shape : shape
        The shape of one output of the network.
    y : array, or a dict or tuple of them, optional
        Targets, as the loss expects them.
    weight : array, (samples,), optional
        Samples of weight 0 are ignored.
    """
    path = _in_sequence(network)
    if not path:
        return []
    if y is not None and _has_masks(network):  # targets of masked time steps are arbitrary
        y = None
    if isinstance(loss, OutputLosses) and type(path[-1]) is layers.Outputs:
        last: layers.Outputs = path[-1]
        sentences = []
        for place, branch in zip(last.places, last.layers, strict=True):
            if place in loss.each:
                targets = None if y is None else y[place]
                own_path = [*path[:-1], *_in_sequence(branch)]
                text = _unsuited(own_path, loss.each[place], out_shape[place], targets, weight)
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
    text = _check_configuration(activation, loss, out_shape)
    if text is None and y is not None:
        y = np.asarray(y)
        text = _check_targets(activation, loss, y if weight is None else y[np.asarray(weight) != 0])
    return text


# The output


def _in_sequence(layer: Layer) -> list[Layer]:
    """Return the layers that a layer runs one after another, including those of inner chains."""
    if type(layer) is not layers.Chain:
        return [layer]
    return [inner_layer for inner in layer.layers for inner_layer in _in_sequence(inner)]


def _last_activation(path: list[Layer]) -> activations.Activation | None:
    """Return the activation that computes the output; None if that is not known."""
    for layer in reversed(path):
        if not is_builtin(layer):
            return None
        if type(layer) is layers.TimeDistributed:
            return _last_activation(_in_sequence(layer.layer))
        if type(layer) is layers.Parallel and layer.merge == "concat":
            ends = [_last_activation(_in_sequence(branch)) for branch in layer.layers]
            same = len({type(activation) for activation in ends}) == 1
            return ends[0] if same and not isinstance(ends[0], activations.Softmax) else None  # two sum to 2
        activation: Any = getattr(layer, "activation", None)
        if isinstance(layer, _WITH_ACTIVATION):
            if isinstance(layer, layers.Activation) and type(activation) is activations.Linear:
                continue
            return activation if is_builtin(activation) else None
        if not layer.rearranges and not isinstance(layer, _KEEPING):
            return None
    return None


def _name(activation) -> str:
    """Return the name of an activation."""
    return next(name for name in activations.names() if type(activations.get(name)) is type(activation))


def _range(activation) -> tuple[float, float]:
    """Return the smallest and the largest value of an activation."""
    if isinstance(activation, activations.ELU):
        return -activation.alpha, math.inf
    return _RANGES.get(type(activation), (-math.inf, math.inf))


def _has_masks(layer: Layer) -> bool:
    return (
        isinstance(layer, layers.Masking)
        or getattr(layer, "mask_zero", False)
        or any(_has_masks(inner) for inner in layer.sublayers().values())
    )


# The loss


def _check_configuration(activation, loss, out_shape) -> str | None:
    low, high = _range(activation)
    name, kind, units = (type(loss).__name__, _name(activation), out_shape[-1] if out_shape else 1)
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
    """Whether values above 1 are allowed: a categorical loss divides positive values by their sum."""
    return categorical and isinstance(activation, (activations.Softplus, activations.Exponential))


def _check_targets(activation, loss, y) -> str | None:
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


def _number(limit: float) -> str:
    return {math.inf: "infinity", -math.inf: "-infinity"}.get(limit, f"{limit:.4g}")
