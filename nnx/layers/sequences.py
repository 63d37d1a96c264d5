"""Layers for sequences.

Bidirectional(f)     y = f(x) and f(x in reverse order), merged
TimeDistributed(f)   y[t] = f(x[t])
Masking(v)           masks the time steps whose features all equal v
"""

import copy
from typing import Any

from nnx.layers.base import Layer, describe_shape, register, run, size
from nnx.layers.containers import Container, as_layer, with_keys
from nnx.layers.merges import MERGES
from nnx.layers.recurrent import Recurrent
from nnx.registry import snake_case
from nnx.shapes import is_single

_MERGE_MODES = {"concat": "concat", "sum": "add", "mul": "multiply", "ave": "average"}


@register("bidirectional")
class Bidirectional(Container):
    """Read a sequence forwards and backwards with two recurrent layers, each with its own weights.

    (batch, time, features) -> (batch, 2 * units), or (batch, time, 2 * units) with `return_sequences`.
    The outputs of the backward layer are returned in the order of time; at masked time steps the outputs of
    both are 0. Initial and returned states are those of the forward layer, then those of the backward layer.

    Source: Schuster and Paliwal, "Bidirectional recurrent neural networks", 1997.

    Parameters
    ----------
    layer : SimpleRNN, LSTM or GRU
    merge_mode : {"concat", "sum", "mul", "ave"}, optional
        How the two outputs are merged; None returns both, as a tuple.
    weights : None
        Only None: use `model.set_weights`.
    backward_layer : SimpleRNN, LSTM or GRU, optional
        The layer that reads backwards, made with `go_backwards=True`; by default a copy of `layer`.

    Examples
    --------
    >>> import nnx
    >>> both = nnx.layers.Bidirectional(nnx.layers.GRU(4, return_sequences=True))
    >>> nnx.apply(both, [[[1.0], [2.0], [3.0]]]).shape
    (1, 3, 8)
    """

    _fixed = ("layer", "backward_layer", "weights")

    def __init__(
        self, layer, merge_mode: str | None = "concat", weights=None, backward_layer=None, **settings
    ):
        super().__init__(**settings)
        for given in (layer,) if backward_layer is None else (layer, backward_layer):
            if not isinstance(given, Recurrent):
                raise ValueError(f"Bidirectional takes a SimpleRNN, LSTM or GRU, got {given!r}")
        if merge_mode is not None and merge_mode not in _MERGE_MODES:
            raise ValueError(
                f"Bidirectional: merge_mode must be one of {', '.join(_MERGE_MODES)}, or None, got {merge_mode!r}"
            )
        if weights is not None:
            raise ValueError("Bidirectional: weights must be None: use model.set_weights(weights) instead")
        self.layer, self.merge_mode, self.weights = layer, merge_mode, None
        self.backward_layer = backward_layer
        forward, backward = copy.copy(layer), copy.copy(backward_layer or layer)
        if backward_layer is None:
            backward.go_backwards = True
        for name in ("return_sequences", "return_state"):
            if getattr(forward, name) != getattr(backward, name):
                raise ValueError(f"Bidirectional: both layers must have the same {name}")
        if forward.go_backwards == backward.go_backwards:
            raise ValueError(
                f"Bidirectional: one of its layers must have go_backwards=True and the other False, got "
                f"{forward.go_backwards} for both"
            )
        self._keyed = []
        for direction, each in (("forward", forward), ("backward", backward)):
            each.zero_output_for_mask = True
            self._keyed.append((f"{direction}_{each.name or snake_case(type(each).__name__)}", each))

    def _parts(self, whole: Any) -> tuple:
        """Return the input, its shape or its mask for each layer."""
        if not isinstance(whole, tuple) or all(isinstance(n, int) for n in whole):
            return whole, whole
        x, *states = whole
        half = len(states) // 2
        return (x, *states[:half]), (x, *states[half:])

    def _merged(self, results: list, merge) -> Any:
        """Return the output: the outputs of both layers, merged by a function, and their states."""
        results = results if self.layer.return_state else [(result,) for result in results]
        (y, *states), (y_back, *states_back) = results
        merged = [y, y_back] if self.merge_mode is None else [merge([y, y_back])]
        outputs = [*merged, *states, *states_back]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def in_shapes(self, in_shape):
        return self._parts(in_shape)

    def out_shape(self, in_shape):
        pairs = zip(self.layers, self._parts(in_shape), strict=True)
        return self._merged([layer.out_shape(shape) for layer, shape in pairs], self._merged_shape)

    def _merged_shape(self, shapes):
        first, second = shapes
        if self.merge_mode == "concat":
            return (*first[:-1], first[-1] + second[-1])
        if first != second:
            raise ValueError(
                f"Bidirectional(merge_mode={self.merge_mode!r}) needs outputs of equal shapes, got "
                f"{describe_shape(first)} and {describe_shape(second)}"
            )
        return first

    def forward(self, ctx, params, x):
        xp, masks, runs = ctx.xp, [], []
        for (key, layer), part, mask in zip(self._keyed, self._parts(x), self._parts(ctx.mask), strict=True):
            inner = ctx.at(key, ctx.needs_input_gradient)
            inner.mask = mask
            runs.append(run(layer, inner, params[key], part))
            masks.append(inner.mask)
        sequences = self.layer.return_sequences
        outputs = [runs[0][0], self._flipped(xp, runs[1][0]) if sequences else runs[1][0]]
        split = None

        def merge(pair):
            nonlocal split
            y, split = MERGES[_MERGE_MODES[str(self.merge_mode)]](xp, pair)
            return y

        y = self._merged(outputs, merge)
        mask = masks[0][0] if isinstance(masks[0], tuple) else masks[0]
        if isinstance(y, tuple) and mask is not None:
            first = (mask, mask) if self.merge_mode is None else (mask,)
            mask = (*first, *[None] * (len(y) - len(first)))
        ctx.mask = mask

        def pullback(dy):
            dys = list(dy) if isinstance(dy, tuple) else [dy]
            pair = [dys.pop(0), dys.pop(0)] if split is None else split(dys.pop(0))
            if self.layer.return_state:
                half = len(dys) // 2
                pair = [(pair[0], *dys[:half]), (pair[1], *dys[half:])]
            pair[1] = self._flipped(xp, pair[1]) if sequences else pair[1]
            (dx, grads), (dx_back, grads_back) = (pull(d) for (_, pull), d in zip(runs, pair, strict=True))
            both = {key: g for (key, _), g in zip(self._keyed, (grads, grads_back), strict=True)}
            if not ctx.needs_input_gradient:
                return None, both
            if isinstance(dx, tuple):
                return (dx[0] + dx_back[0], *dx[1:], *dx_back[1:]), both
            return dx + dx_back, both

        return y, pullback

    def _flipped(self, xp, y):
        """Return the output of the backward layer with its time steps in reverse order."""
        if isinstance(y, tuple):
            return (xp.flip(y[0], axis=1), *y[1:])
        return xp.flip(y, axis=1)

    def flops(self, in_shape):
        shape = self.out_shape(in_shape)
        merged = 0 if self.merge_mode in (None, "concat") else size(shape if is_single(shape) else shape[0])
        return super().flops(in_shape) + merged


@register("time_distributed")
class TimeDistributed(Container):
    """Run a layer on each time step: (batch, time, ...) -> (batch, time, ...).

    The time steps of all samples form one large batch. (Keras runs the layer once for each time step. So
    batch normalisation inside takes its mean over all time steps here, and in Keras over each by itself.)

    Parameters
    ----------
    layer : Layer, or list of layers run one after another

    Examples
    --------
    >>> import nnx
    >>> each = nnx.layers.TimeDistributed(nnx.layers.Flatten())
    >>> nnx.apply(each, [[[[1.0], [2.0]], [[3.0], [4.0]]]])
    array([[[1., 2.],
            [3., 4.]]], dtype=float32)
    """

    _fixed = ("layer",)

    def __init__(self, layer, **settings):
        super().__init__(**settings)
        self.layer = as_layer(layer)
        self._keyed = with_keys([self.layer])

    def with_layer(self, layer):
        """Return the same container with another layer inside, under the same key."""
        changed = copy.copy(self)
        vars(changed).update(layer=layer, _keyed=[(self._keyed[0][0], layer)])
        return changed

    def in_shapes(self, in_shape):
        if not is_single(in_shape) or len(in_shape) < 2 or in_shape[0] == 0:
            raise ValueError(
                f"TimeDistributed expects input of shape (batch, time, ...) with at least one axis behind time, got "
                f"{describe_shape(in_shape)}"
            )
        return [in_shape[1:]]

    def out_shape(self, in_shape):
        (step_shape,) = self.in_shapes(in_shape)
        shape = self.layer.out_shape(step_shape)
        if not is_single(shape):
            raise ValueError(f"TimeDistributed: its layer must return one array, got {describe_shape(shape)}")
        return (in_shape[0], *shape)

    def forward(self, ctx, params, x):
        xp, (batch, steps), ((key, layer),) = ctx.xp, x.shape[:2], self._keyed
        inner = ctx.at(key, ctx.needs_input_gradient)
        inner.mask = None
        y, pull = run(layer, inner, params.get(key, {}), xp.reshape(x, (batch * steps, *x.shape[2:])))

        def pullback(dy):
            dx, grads = pull(xp.reshape(dy, y.shape))
            return None if dx is None else xp.reshape(dx, x.shape), {key: grads} if grads else {}

        return xp.reshape(y, (batch, steps, *y.shape[1:])), pullback

    def flops(self, in_shape):
        return in_shape[0] * super().flops(in_shape)


@register("masking")
class Masking(Layer):
    """Mask time steps whose features all equal a value: (batch, time, features) -> the same shape.

    Later layers get the mask, and zeros at these time steps.

    Parameters
    ----------
    mask_value : float

    Examples
    --------
    >>> import nnx
    >>> ctx = nnx.Context()
    >>> y, _ = nnx.layers.Masking(-1.0).forward(ctx, {}, ctx.backend.asarray([[[1.0, -1.0], [-1.0, -1.0]]]))
    >>> y
    array([[[ 1., -1.],
            [ 0.,  0.]]])
    >>> ctx.mask
    array([[ True, False]])
    """

    supports_masking = True

    def __init__(self, mask_value: float = 0.0, **settings):
        super().__init__(**settings)
        self.mask_value = mask_value

    def out_shape(self, in_shape):
        if not is_single(in_shape) or len(in_shape) != 2:
            raise ValueError(
                f"Masking expects input of shape (batch, time, features), got {describe_shape(in_shape)}: put a "
                f"Reshape before it"
            )
        return in_shape

    def forward(self, ctx, params, x):
        xp = ctx.xp
        ctx.mask = xp.any(x != self.mask_value, axis=-1)
        counts = ctx.mask[..., None]

        def pullback(dy):
            return dy * xp.astype(counts, dy.dtype), {}

        return xp.where(counts, x, 0.0), pullback
