"""Layers made of layers: one after another, and around.

Chain(f, g)      y = g(f(x))
Residual(f)      y = x + f(x)
"""

import copy

from nnx.errors import raised_by
from nnx.layers.base import Layer, Shape, describe_shape, register, run, size
from nnx.registry import snake_case
from nnx.shapes import elements, is_single

LARGEST_OUTPUT = 2**40
"""Numbers in one sample's output of a layer: 4 TiB in float32."""


class Container(Layer):
    """A layer that holds others, each under a key of its own in params and state."""

    layers: list[Layer]
    supports_masking = True

    def sublayers(self) -> dict[str, Layer]:
        """Return the layers by key: each layer's name, or its class in snake case, made unique."""
        keyed: dict[str, Layer] = {}
        counts: dict[str, int] = {}
        for layer in self.layers:
            keyed[new_key(layer, keyed, counts)] = layer
        return keyed


def new_key(layer: Layer, present, counts: dict[str, int]) -> str:
    """Return the key of one more layer, and note in `counts` how many have its name."""
    name = key = layer.name or snake_case(type(layer).__name__)
    while key in present:
        if layer.name:
            raise ValueError(f"two layers are called {name!r}: give each a name of its own")
        counts[name] = counts.get(name, 0) + 1
        key = f"{name}_{counts[name]}"
    return key


def expect_different(container: Container) -> None:
    """Raise a ValueError if a container holds one layer twice."""
    if len({id(layer) for layer in container.layers}) == len(container.layers):
        return
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
        self.layers = [as_layer(layer) for layer in layers]
        self._keys: set[str] = set()
        self._counts: dict[str, int] = {}
        self._keyed = [(self._new_key(layer), layer) for layer in self.layers]
        expect_different(self)

    def _new_key(self, layer: Layer) -> str:
        key = new_key(layer, self._keys, self._counts)
        self._keys.add(key)
        return key

    @property
    def categories(self):
        """That of the first layer that looks at the values."""
        return next((layer.categories for layer in self.layers if not layer.rearranges), None)

    def init(self, rng, in_shape):
        params = {}
        for key, layer in self._keyed:
            weights, in_shape = init_layer(key, layer, rng, in_shape)
            if weights:
                params[key] = weights
        return params, in_shape

    def out_shape(self, in_shape):
        return self.shapes(in_shape)[-1]

    def shapes(self, in_shape: Shape) -> list[Shape]:
        """Return the shape of one sample before the first layer and after each."""
        shapes = [in_shape]
        for _, layer in self._keyed:
            shapes.append(layer.out_shape(shapes[-1]))
        return shapes

    def init_state(self, in_shape):
        states = {}
        for (key, layer), shape in zip(self._keyed, self.shapes(in_shape), strict=False):
            if state := layer.init_state(shape):
                states[key] = state
        return states

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
                if not needed:  # nothing before this layer asks for a gradient
                    break
            return dy, grads

        return x, pullback_all

    def with_layer(self, index: int, layer: Layer) -> "Chain":
        """Return the same chain, weights included, with another layer in one place."""
        changed = copy.copy(self)
        changed._keyed = list(self._keyed)
        changed._keyed[index] = self._keyed[index][0], layer
        changed.layers = [layer for _, layer in changed._keyed]
        return changed

    def extended(self, layer: Layer) -> "Chain":
        """Return a new chain of the same layers and one more."""
        longer = copy.copy(self)
        longer._keys, longer._counts = self._keys.copy(), self._counts.copy()
        longer.layers, longer._keyed = [*self.layers, layer], [*self._keyed, (longer._new_key(layer), layer)]
        return longer

    def flops(self, in_shape):
        return sum(layer.flops(s) for (_, layer), s in zip(self._keyed, self.shapes(in_shape), strict=False))


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
        self.layers = [self.inner]
        (self._key,) = self.sublayers()

    def init(self, rng, in_shape):
        params, out_shape = init_layer(self._key, self.inner, rng, in_shape)
        if out_shape != in_shape:
            raise ValueError(
                f"Residual: the inner layers turn {describe_shape(in_shape)} into "
                f"{describe_shape(out_shape)}, which cannot be added to the input: end them with as many "
                f"features as they are given"
            )
        return {self._key: params} if params else {}, out_shape

    def out_shape(self, in_shape):
        return in_shape

    def init_state(self, in_shape):
        state = self.inner.init_state(in_shape)
        return {self._key: state} if state else {}

    def forward(self, ctx, params, x):
        inner, pull_inner = run(self.inner, ctx.at(self._key), params.get(self._key, {}), x)

        def pullback(dy):
            dx, grads = pull_inner(dy)
            return dy + dx, {self._key: grads} if grads else {}

        return x + inner, pullback

    def flops(self, in_shape):
        return self.inner.flops(in_shape) + size(in_shape)


def as_layer(what) -> Layer:
    """Return a layer: itself, a list of layers as a Chain, or the network of a model."""
    if isinstance(what, Layer):
        return what
    if isinstance(what, (list, tuple)):
        return Chain([*what])
    network = getattr(what, "network", None)
    if isinstance(network, Layer):
        if what.built:
            raise ValueError(
                f"the model {what.name!r} has weights of its own already, which would be lost in another model: "
                f"put its layers into the new model before it is built, and copy weights by set_weights"
            )
        network.input_shape = what.input_shape
        return network
    raise TypeError(f"expected a layer, a list of layers or a model, got {what!r}")


def init_layer(key, layer, rng, in_shape):
    """Return what `layer.init` does; an error says in which layer."""
    try:
        params, shape = layer.init(rng, in_shape)
        if elements(shape) > LARGEST_OUTPUT:
            raise ValueError(f"one output would be {describe_shape(shape)}, more than any machine can hold")
        return params, shape
    except ValueError as error:
        raise ValueError(f"layer {key!r}: {error}") from None
    except (TypeError, KeyError, IndexError):
        if is_single(in_shape):
            raise
        raise ValueError(
            f"layer {key!r}: {type(layer).__name__} takes one array, got {describe_shape(in_shape)}: give each input "
            f"layers of its own with nnx.layers.Inputs"
        ) from None
