"""Layers that contain layers.

Chain(f, g)      y = g(f(x))
Residual(f)      y = x + f(x)
"""

import copy
from collections.abc import Iterable

from nnx.errors import raised_by
from nnx.layers.base import Layer, describe_shape, register, run, size
from nnx.registry import snake_case
from nnx.shapes import elements, is_single

LARGEST_OUTPUT = 2**40
"""The most elements in one sample's output of a layer: 4 TiB in float32."""


class Container(Layer):
    """A layer that contains others; their weights and states are in `params` and `state`, each under its key."""

    supports_masking = True

    _keyed: list[tuple[str, Layer]]
    """The layers, each after its key."""

    @property
    def layers(self) -> list[Layer]:
        """The layers inside this one."""
        return [layer for _, layer in self._keyed]

    def sublayers(self) -> dict[str, Layer]:
        return dict(self._keyed)

    def in_shapes(self, in_shape) -> Iterable:
        """Return the input shape of each layer; by default all layers get the container's input."""
        return [in_shape] * len(self._keyed)

    def out_shape(self, in_shape):
        raise NotImplementedError(f"{type(self).__name__} must define out_shape(in_shape)")

    def init(self, rng, in_shape):
        params = {}
        for (key, layer), shape in zip(self._keyed, self.in_shapes(in_shape), strict=False):
            if weights := init_layer(key, layer, rng, shape):
                params[key] = weights
        return params, self.out_shape(in_shape)

    def init_state(self, in_shape):
        states = {}
        for (key, layer), shape in zip(self._keyed, self.in_shapes(in_shape), strict=False):
            if state := layer.init_state(shape):
                states[key] = state
        return states

    def flops(self, in_shape):
        return sum(
            layer.flops(shape) for layer, shape in zip(self.layers, self.in_shapes(in_shape), strict=False)
        )


def with_keys(layers: Iterable[Layer]) -> list[tuple[str, Layer]]:
    """Return each layer after its key: its name, or else its class in snake case, with a number if repeated."""
    keyed: dict[str, Layer] = {}
    counts: dict[str, int] = {}
    for layer in layers:
        name = key = layer.name or snake_case(type(layer).__name__)
        while key in keyed:
            if layer.name:
                raise ValueError(f"two layers are called {name!r}: give each a name of its own")
            counts[name] = counts.get(name, 0) + 1
            key = f"{name}_{counts[name]}"
        keyed[key] = layer
    return list(keyed.items())


def expect_different(container: Container) -> None:
    """Raise a ValueError if a container contains the same layer twice."""
    seen = set()
    for key, layer in container.sublayers().items():
        if id(layer) in seen:
            raise ValueError(
                f"{type(container).__name__}: layer {key!r}, {layer!r}, is there twice, and would have two sets of "
                f"weights: sharing is not possible yet. Make a layer for each place, such as copy.deepcopy(layer)"
            )
        seen.add(id(layer))


@register("chain")
class Chain(Container):
    """Run layers one after another; the pullbacks run in reverse.

    Examples
    --------
    >>> import nnx
    >>> chain = nnx.layers.Chain([nnx.layers.Activation("relu"), nnx.layers.Flatten()])
    >>> nnx.apply(chain, [[[-1.0], [2.0]]])
    array([[0., 2.]], dtype=float32)
    """

    def __init__(self, layers: list, **settings):
        super().__init__(**settings)
        self._keyed = with_keys(map(as_layer, layers))
        expect_different(self)

    @property
    def categories(self):
        """Those of the first layer that uses the values of its input."""
        return next((layer.categories for layer in self.layers if not layer.rearranges), None)

    def in_shapes(self, in_shape):
        """Yield the shape of one sample before each layer, and after the last."""
        yield in_shape
        for _, layer in self._keyed:
            in_shape = layer.out_shape(in_shape)
            yield in_shape

    def out_shape(self, in_shape):
        *_, shape = self.in_shapes(in_shape)
        return shape

    def forward(self, ctx, params, x):
        steps, needed = [], ctx.needs_input_gradient
        for key, layer in self._keyed:
            inner = ctx.at(key, needed)
            x, pullback = run(layer, inner, params.get(key, {}), x)
            ctx.mask = inner.mask
            steps.append((key, layer, pullback, needed))
            needed = needed or key in params

        def pullback_all(dy):
            grads = {}
            for key, layer, pullback, needed in reversed(steps):
                try:
                    dy, weights = pullback(dy)
                except Exception as error:
                    raised_by(error, "layer", layer, f" {key!r}, in its pullback")
                    raise
                if weights:
                    grads[key] = weights
                if not needed:  # no earlier layer needs a gradient
                    break
            return dy, grads

        return x, pullback_all

    def with_layer(self, index: int, layer: Layer) -> "Chain":
        """Return a chain with `layer` in place of the one at `index`, under the same key."""
        changed = copy.copy(self)
        changed._keyed = list(self._keyed)
        changed._keyed[index] = self._keyed[index][0], layer
        return changed

    def extended(self, layer: Layer) -> "Chain":
        """Return a new chain of the same layers, followed by `layer`."""
        longer = copy.copy(self)
        longer._keyed = with_keys([*self.layers, layer])
        return longer


@register("residual")
class Residual(Container):
    """Add a layer's output to its input: y = x + inner(x), any shape that `inner` keeps.

    Source: He et al., "Deep Residual Learning", 2015 (arXiv:1512.03385).

    Parameters
    ----------
    inner : Layer, or list of layers run one after another

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.Residual(nnx.layers.Activation("relu")), [[-1.0, 2.0]])
    array([[-1.,  4.]], dtype=float32)
    """

    def __init__(self, inner, **settings):
        super().__init__(**settings)
        self.inner = as_layer(inner)
        self._keyed = with_keys([self.inner])

    def out_shape(self, in_shape):
        out_shape = self.inner.out_shape(in_shape)
        if out_shape != in_shape:
            raise ValueError(
                f"Residual: the inner layers turn {describe_shape(in_shape)} into "
                f"{describe_shape(out_shape)}, which cannot be added to the input: end them with as many "
                f"features as they are given"
            )
        return out_shape

    def forward(self, ctx, params, x):
        ((key, layer),) = self._keyed
        inner, pull_inner = run(layer, ctx.at(key), params.get(key, {}), x)

        def pullback(dy):
            dx, grads = pull_inner(dy)
            return dy + dx, {key: grads} if grads else {}

        return x + inner, pullback

    def flops(self, in_shape):
        return super().flops(in_shape) + size(in_shape)


def as_layer(value) -> Layer:
    """Return a layer: itself, a list of layers as a Chain, or the network of a model."""
    if isinstance(value, Layer):
        return value
    if isinstance(value, (list, tuple)):
        return Chain([*value])
    network = getattr(value, "network", None)
    if isinstance(network, Layer):
        if value.built:
            raise ValueError(
                f"the model {value.name!r} has weights of its own already, which would be lost in another model: "
                f"put its layers into the new model before it is built, and copy weights by set_weights"
            )
        network.input_shape = value.input_shape
        return network
    raise TypeError(f"expected a layer, a list of layers or a model, got {value!r}")


def init_layer(key, layer, rng, in_shape):
    """Return the starting weights of a layer; an error names the layer."""
    try:
        params, shape = layer.init(rng, in_shape)
        if elements(shape) > LARGEST_OUTPUT:
            raise ValueError(f"one output would be {describe_shape(shape)}, more than any machine can hold")
        return params
    except ValueError as error:
        raise ValueError(f"layer {key!r}: {error}") from None
    except (TypeError, KeyError, IndexError):
        if is_single(in_shape):
            raise
        raise ValueError(
            f"layer {key!r}: {type(layer).__name__} takes one array, got {describe_shape(in_shape)}: give each input "
            f"layers of its own with nnx.layers.Inputs"
        ) from None
