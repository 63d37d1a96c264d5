"""The layer contract: a layer is a pure function that returns its output and its pullback.

    y, pullback = layer.forward(ctx, params, x)
    dx, grads = pullback(dy)        # dy = dL/dy; dx = dL/dx; grads = dL/dparams

Forward and backward stand side by side, and the closure holds what the backward pass needs. A
layer object holds settings only: its weights come in as `params`, its moving averages as
`ctx.state`. It never writes into its arguments.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from nnx import activations, initializers, regularizers, tree
from nnx.context import Context
from nnx.errors import raised_by
from nnx.graph.derivatives import derive
from nnx.random import generator
from nnx.registry import REGISTRIES, Configurable, init_arguments, suggest
from nnx.shapes import Shape, as_shapes, describe_shape
from nnx.tree import Tree

register = REGISTRIES["layer"].register

Pullback = Callable[[Any], tuple[Any, Tree]]

HALF = ("float16", "bfloat16")
"""The half precisions: see `nnx.training.mixed_precision`."""


class Weight(NamedTuple):
    """One weight of a layer: its name, its shape, what draws its starting value, and its penalty.

    The name is its path in `params`, such as "query/kernel". A shape that depends on the input is a
    function of the input's shape.
    """

    name: str
    shape: tuple[int, ...] | Callable[[Any], tuple[int, ...]]
    initializer: Callable
    regularizer: regularizers.Regularizer | None = None

    @classmethod
    def of(cls, layer: "Layer", name: str, shape, settings: str | None = None) -> "Weight":
        """Return a weight whose initializer and regularizer are the layer's settings of that name.

        `settings` is the start of these names, by default the name of the weight: `kernel_initializer`
        and `kernel_regularizer` belong to "kernel".
        """
        start = settings or name
        initializer = getattr(layer, f"{start}_initializer")
        return cls(name, shape, initializer, getattr(layer, f"{start}_regularizer", None))

    def draw(self, rng, in_shape: Shape):
        """Return a starting value, for input of a shape."""
        return self.initializer(rng, self.shape(in_shape) if callable(self.shape) else self.shape)


class Layer(Configurable):
    """Base of all layers.

    Parameters
    ----------
    name : str, optional
        The key of its weights in the model; by default the class name in snake case.
    input_shape : tuple of int, optional
        The shape of one sample, if this layer is the first of a model.
    """

    kind = "layer"

    full_precision = False
    """Whether it computes in float32 where the model computes in half precision."""

    supports_masking = False
    """Whether time step t of its output comes from time step t of its input, so that the mask stays valid."""

    rearranges = False
    """Whether its output only rearranges values of its input."""

    _fixed: tuple[str, ...] = ()
    """Settings from which `__init__` makes other layers: they cannot be changed afterwards."""

    def __setattr__(self, name, value):
        if name in self._fixed and name in vars(self):
            raise AttributeError(
                f"{type(self).__name__}.{name} cannot be changed after the layer was made: make a new "
                f"{type(self).__name__}({name}={value!r})"
            )
        if isinstance(value, str) and (get := _GET.get(name.rpartition("_")[2])) is not None:
            value = get(value)
        super().__setattr__(name, value)

    @property
    def categories(self) -> Any:
        """The number of categories, if the input holds category indices from 0 on; else None.

        Of several inputs, a dict or a tuple.
        """
        return None

    other_arguments = ("input_dim", "trainable")

    def __init__(self, name: str | None = None, input_shape=None, **others):
        if "input_dim" in others:  # Keras's older spelling
            input_shape = (others.pop("input_dim"),)
        self.trainable = others.pop("trainable", True)
        if others:
            raise TypeError(
                suggest(f"argument of {type(self).__name__}", next(iter(others)), init_arguments(type(self)))
            )
        if name is not None and "/" in name:
            raise ValueError(f"a layer's name must not contain '/', got {name!r}")
        self.name = name
        self.input_shape: Any = None if input_shape is None else as_shapes(input_shape)

    @property
    def trainable(self) -> bool:
        """True: layers cannot be frozen yet."""
        return True

    @trainable.setter
    def trainable(self, value: bool):
        if not value:
            raise ValueError(
                f"{type(self).__name__}: layers cannot be frozen yet (trainable=False): all weights are trained"
            )

    def declare_weights(self) -> Iterator[Weight]:
        """Yield the weights of this layer, in the order in which they are drawn."""
        yield from ()

    def init(self, rng, in_shape: Shape) -> tuple[Tree, Shape]:
        """Return starting weights, drawn on the host from `rng`, and the shape of one output."""
        out_shape, declared = self.out_shape(in_shape), list(self.declare_weights())
        values = [weight.draw(rng, in_shape) for weight in declared]
        return tree.from_paths([weight.name.split("/") for weight in declared], values), out_shape

    def out_shape(self, in_shape: Shape) -> Shape:
        """Return the shape of one output; by default that of `init`."""
        if type(self).init is Layer.init:
            return in_shape
        return self.init(generator(0), in_shape)[1]

    def init_state(self, in_shape: Shape) -> Tree:
        """Return starting values, on the host, of what changes without a gradient."""
        return {}

    def forward(self, ctx: Context, params: Tree, x) -> tuple[Any, Pullback]:
        """Return the output and the pullback.

        A layer of your own may return the output alone: its pullback is then derived.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(ctx, params, x)")

    def regularizers(self) -> dict[str, regularizers.Regularizer]:
        """Return the penalties on this layer's weights, by name of the weight: its path, such as "query/kernel"."""
        declared = self.declare_weights()
        return {weight.name: weight.regularizer for weight in declared if weight.regularizer is not None}

    def sublayers(self) -> "dict[str, Layer]":
        """Return the layers inside this one, by the key of their weights."""
        return {}

    def without_activation(self) -> "Layer":
        """Return the same layer, weights included, with no activation."""
        changed = copy.copy(self)
        vars(changed)["activation"] = activations.linear
        return changed

    def flops(self, in_shape: Shape) -> int:
        """Return the floating-point operations of one sample's forward pass."""
        return 0


_GET = {"activation": activations.get, "initializer": initializers.get, "regularizer": regularizers.get}
"""The function that turns a name into its object, by the last word of the setting."""


def run(layer: Layer, ctx: Context, params: Tree, x, observed: bool = False) -> tuple[Any, Pullback]:
    """Return output and pullback of `layer`, deriving the pullback if the layer defines none.

    Every layer of a pass runs through here, so that `ctx.observer` sees each.
    """
    if layer.full_precision and str(x.dtype) in HALF:
        return _run_in_full_precision(layer, ctx, params, x)
    if ctx.observer is not None and not observed:
        return ctx.observer(layer, ctx, lambda: run(layer, ctx, params, x, observed=True))
    mask, state = ctx.mask, tree.copy(ctx.state)
    try:
        result = layer.forward(ctx, params, x)
    except Exception as error:
        raised_by(error, "layer", layer, f" {layer.name!r}" if layer.name else "")
        raise
    if mask is not None and ctx.mask is mask and not layer.supports_masking:
        ctx.mask = None
        _warn_of_lost_mask(layer)
    if isinstance(result, tuple) and len(result) == 2 and callable(result[1]):
        return result

    def forward_only(backend, params, x):
        inner = ctx.on(backend, state, mask)
        return layer.forward(inner, params, x), tuple(inner.penalties)

    def pullback(dy):
        # What the forward pass computes again, a compiled step drops.
        (_, penalties), pull = derive(ctx.backend, forward_only, params, x)
        grads, dx = pull((dy, tuple(map(ctx.xp.ones_like, penalties))))
        return dx, grads

    return result, pullback


def _warn_of_lost_mask(layer):
    warnings.warn(
        f"{type(layer).__name__} does not pass the mask of its input on: behind it padding counts like the rest. "
        f"If time step t of its output comes from time step t of its input, let it say supports_masking = True",
        stacklevel=3,
    )


def _run_in_full_precision(layer, ctx, params, x):
    """Run a layer in float32 where those around it compute in half precision."""
    xp, half = ctx.xp, x.dtype

    def convert(values, dtype):
        return tree.map(lambda array: xp.astype(array, dtype), values)

    y, pullback = run(layer, ctx, convert(params, xp.float32), xp.astype(x, xp.float32))

    def pullback_from_half(dy):
        dx, grads = pullback(xp.astype(dy, xp.float32))
        return None if dx is None else xp.astype(dx, half), convert(grads, half)

    return xp.astype(y, half), pullback_from_half


def expect_features(layer: Layer, in_shape: Shape) -> None:
    """Raise a ValueError unless samples have at least one axis and no axis of length 0."""
    if not in_shape or 0 in in_shape:
        raise ValueError(
            f"{type(layer).__name__} expects input of shape (batch, ..., features) with at least one "
            f"feature, got {describe_shape(in_shape)}"
        )


def positive_int(layer: Layer, argument: str, value) -> int:
    """Return `value` if it is a positive whole number, else raise a ValueError that names it."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{type(layer).__name__}: {argument} must be a positive whole number, got {value!r}")
    return int(value)


def size(shape: Shape) -> int:
    """Return the number of elements of one sample."""
    return math.prod(shape)
