"""Layers around sequences: read both ways, each time step alike, and which steps count.

Bidirectional(f)     y = f(x) and f(x read from its end), merged
TimeDistributed(f)   y[t] = f(x[t])
Masking(v)           leaves out the time steps whose features all equal v
"""

import copy
from typing import Any

from nnx.layers.base import Layer, describe_shape, register, run, size
from nnx.layers.containers import Container, as_layer, init_layer
from nnx.layers.merges import MERGES
from nnx.layers.recurrent import Recurrent
from nnx.registry import snake_case
from nnx.shapes import is_single

_MERGE_MODES = {"concat": "concat", "sum": "add", "mul": "multiply", "ave": "average"}


@register("bidirectional")
class Bidirectional(Container):
    """Read a sequence from its beginning and from its end by two recurrent layers with weights of their own.

    (batch, time, features) -> (batch, 2 * units), or (batch, time, 2 * units) with `return_sequences`.
    The outputs of the second layer are put back in the order of time; where the mask leaves out a time
    step, the outputs of both are 0. States given after the sequence, and those returned, are first the
    ones of the forward layer, then the ones of the backward layer.

    Source: Schuster and Paliwal, "Bidirectional recurrent neural networks", 1997.

    Parameters
    ----------
    layer : SimpleRNN, LSTM or GRU
    merge_mode : {"concat", "sum", "mul", "ave"}, optional
        How the two outputs are merged; None returns both, as a tuple.
    weights : None
        Only None: use `model.set_weights`.
    backward_layer : SimpleRNN, LSTM or GRU, optional
        That which reads from the end, made with `go_backwards=True`; by default one like `layer`.

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
        self.layer, self.merge_mode, self.weights, self.backward_layer = (
            layer,
            merge_mode,
            None,
            backward_layer,
        )
        forward, backward = _both_ways(layer, backward_layer)
        self.layers = [forward, backward]
        for name in ("return_sequences", "return_state"):
            if getattr(forward, name) != getattr(backward, name):
                raise ValueError(f"Bidirectional: both layers must have the same {name}")
        if forward.go_backwards == backward.go_backwards:
            raise ValueError(
                f"Bidirectional: one of its layers must have go_backwards=True and the other False, got "
                f"{forward.go_backwards} for both"
            )
        self._keyed = [
            (f"{way}_{layer.name or snake_case(type(layer).__name__)}", layer)
            for way, layer in zip(("forward", "backward"), self.layers, strict=True)
        ]

    def sublayers(self):
        return dict(self._keyed)

    def _parts(self, whole: Any) -> tuple:
        """Return the part of the input, or of its shape or masks, for each layer."""
        if not isinstance(whole, tuple) or all(isinstance(n, int) for n in whole):
            return whole, whole
        x, *states = whole
        half = len(states) // 2
        return (x, *states[:half]), (x, *states[half:])

    def _together(self, results: list, merge) -> Any:
        """Return the output, from the results of both layers and the function that merges their outputs."""
        results = results if self.layer.return_state else [(result,) for result in results]
        (y, *states), (y_back, *states_back) = results
        merged = [y, y_back] if self.merge_mode is None else [merge([y, y_back])]
        outputs = [*merged, *states, *states_back]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def init(self, rng, in_shape):
        params = {}
        for (key, layer), part in zip(self._keyed, self._parts(in_shape), strict=True):
            params[key], _ = init_layer(key, layer, rng, part)
        return params, self.out_shape(in_shape)

    def out_shape(self, in_shape):
        pairs = zip(self.layers, self._parts(in_shape), strict=True)
        return self._together([layer.out_shape(part) for layer, part in pairs], self._merged_shape)

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
        turned = self.layer.return_sequences
        outputs = [runs[0][0], self._turned(xp, runs[1][0]) if turned else runs[1][0]]
        split = None

        def merge(pair):
            nonlocal split
            y, split = MERGES[_MERGE_MODES[str(self.merge_mode)]](xp, pair)
            return y

        y = self._together(outputs, merge)
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
            pair[1] = self._turned(xp, pair[1]) if turned else pair[1]
            (dx, grads), (dx_back, grads_back) = (pull(d) for (_, pull), d in zip(runs, pair, strict=True))
            both = {key: g for (key, _), g in zip(self._keyed, (grads, grads_back), strict=True)}
            if not ctx.needs_input_gradient:
                return None, both
            if isinstance(dx, tuple):
                return (dx[0] + dx_back[0], *dx[1:], *dx_back[1:]), both
            return dx + dx_back, both

        return y, pullback

    def _turned(self, xp, y):
        """Return the output of the second layer with its time steps in reverse order."""
        if isinstance(y, tuple):
            return (xp.flip(y[0], axis=1), *y[1:])
        return xp.flip(y, axis=1)

    def flops(self, in_shape):
        shape = self.out_shape(in_shape)
        merged = 0 if self.merge_mode in (None, "concat") else size(shape if is_single(shape) else shape[0])
        parts = zip(self.layers, self._parts(in_shape), strict=True)
        return sum(layer.flops(part) for layer, part in parts) + merged


def _both_ways(layer: Recurrent, backward_layer: Recurrent | None) -> tuple[Recurrent, Recurrent]:
    """Return copies of the layers that read forwards and backwards, whose outputs are 0 where masked."""
    forward, backward = copy.copy(layer), copy.copy(backward_layer or layer)
    if backward_layer is None:
        backward.go_backwards = True
    for each in (forward, backward):
        each.zero_output_for_mask = True
    return forward, backward


@register("time_distributed")
class TimeDistributed(Container):
    """Run a layer on each time step: (batch, time, ...) -> (batch, time, ...).

    All time steps go through it as one large batch. (Keras runs it once for each time step: batch
    normalisation inside, which here uses the mean over all of them, then takes one for each.)

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
        self.layers = [self.layer]
        (self._key,) = self.sublayers()

    def with_layer(self, layer):
        """Return the same, weights included, with another layer in its place."""
        changed = copy.copy(self)
        vars(changed).update(layer=layer, layers=[layer])
        return changed

    def _step(self, in_shape):
        if not is_single(in_shape) or len(in_shape) < 2 or in_shape[0] == 0:
            raise ValueError(
                f"TimeDistributed expects input of shape (batch, time, ...) with at least one axis behind time, got "
                f"{describe_shape(in_shape)}"
            )
        return in_shape[1:]

    def init(self, rng, in_shape):
        params, _ = init_layer(self._key, self.layer, rng, self._step(in_shape))
        return {self._key: params} if params else {}, self.out_shape(in_shape)

    def out_shape(self, in_shape):
        shape = self.layer.out_shape(self._step(in_shape))
        if not is_single(shape):
            raise ValueError(f"TimeDistributed: its layer must return one array, got {describe_shape(shape)}")
        return (in_shape[0], *shape)

    def init_state(self, in_shape):
        state = self.layer.init_state(self._step(in_shape))
        return {self._key: state} if state else {}

    def forward(self, ctx, params, x):
        xp, (batch, steps) = ctx.xp, x.shape[:2]
        inner = ctx.at(self._key, ctx.needs_input_gradient)
        inner.mask = None
        rows = xp.reshape(x, (batch * steps, *x.shape[2:]))
        y, pull = run(self.layer, inner, params.get(self._key, {}), rows)

        def pullback(dy):
            dx, grads = pull(xp.reshape(dy, y.shape))
            dx = None if dx is None else xp.reshape(dx, x.shape)
            return dx, {self._key: grads} if grads else {}

        return xp.reshape(y, (batch, steps, *y.shape[1:])), pullback

    def flops(self, in_shape):
        return in_shape[0] * self.layer.flops(self._step(in_shape))


@register("masking")
class Masking(Layer):
    """Leave out time steps whose features all equal a value: (batch, time, features) -> the same shape.

    The layers behind are given the mask, and zeros in place of these time steps.

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
