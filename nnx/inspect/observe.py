"""Observe a training pass: host copies of what each layer returns, forward and backward.

An `Observer` is the `ctx.observer` of a pass: `layers.base.run` and `Loss.total` call it with each
layer and loss.
"""

from nnx import tree
from nnx.backend import Backend
from nnx.layers.base import Layer
from nnx.layers.containers import Chain
from nnx.losses import Loss
from nnx.registry import snake_case

Key = tuple[str, str, str]
"""Where in a pass an array was computed: "forward" or "backward", the layer's path, and which array it is."""


class Observer:
    """The outputs and gradients of the layers of one pass, in the order of computation.

    Attributes
    ----------
    kept : dict of Key to (dict of name to array)
        Outputs, gradients by the input and by the weights. Arrays under one key belong together:
        a layer's kernel and bias. The loss is called "loss".
    layers : dict of str to Layer
        The layers by path.
    failed : tuple of str, optional
        The stage and the layer in which an error was raised.
    """

    def __init__(self, backend: Backend):
        self.backend = backend
        self.kept: dict[Key, dict] = {}
        self.layers: dict[str, Layer] = {}
        self.failed: tuple[str, str] | None = None
        self._pulling = 0

    def __call__(self, layer: Layer | Loss, ctx, compute):
        """Return `compute()`, output and pullback, and keep the arrays that both return."""
        # While a gradient is derived, x stands for any input. The output of a Chain is that of its last layer.
        if self._pulling or isinstance(layer, Chain):
            return compute()
        name, inner = "loss", {}
        if isinstance(layer, Layer):
            name, inner = ctx.path[1:] or snake_case(type(layer).__name__), layer.sublayers()
            self.layers[name] = layer
        output, pullback = self._guarded("forward", name, compute)
        self._keep("forward", name, "output", output)

        def observed(dy):
            self._pulling += 1
            try:
                result = self._guarded("backward", name, lambda: pullback(dy))
            finally:
                self._pulling -= 1
            dx, grads = result if isinstance(result, tuple) else (result, {})
            own = {key: gradient for key, gradient in grads.items() if key not in inner}
            if own:
                self._keep("backward", name, "dL/dweights", own)
            if dx is not None:
                self._keep("backward", name, "dL/dinput", dx)
            return result

        return output, observed

    def _guarded(self, stage, name, call):
        try:
            return call()
        except Exception:
            self.failed = self.failed or (stage, name)
            raise

    def _keep(self, stage, name, what, arrays):
        count = sum(key[:2] == (stage, name) and key[2].split(" #")[0] == what for key in self.kept)
        key = (stage, name, f"{what} #{count + 1}" if count else what)  # a layer used again in one pass
        self.kept[key] = tree.map(self.backend.to_numpy, _by_place(arrays))


def _by_place(value, name: str = "") -> dict:
    """Return the arrays of a dict or tuple by their place in it; one array under the empty name.

    >>> _by_place((1, {"a": 2}))
    {'0': 1, '1/a': 2}
    """
    if not isinstance(value, (dict, tuple)):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, part in items for k, v in _by_place(part, f"{name}/{key}".strip("/")).items()}
