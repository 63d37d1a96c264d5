"""Observation of a training step: host copies of the outputs and gradients of each layer.

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
"""Where an array was computed: "forward" or "backward", the path of the layer, and the kind of array."""


class Observer:
    """The outputs and gradients of the layers of one pass, in the order of computation.

    Attributes
    ----------
    records : dict of Key to (dict of name to array)
        Outputs, gradients of the input and of the weights; the gradients of a layer's kernel and bias are
        under one key. The loss is called "loss".
    layers : dict of str to Layer
        The layers by path.
    failed : tuple of str, optional
        The stage and the layer in which an error was raised.
    """

    def __init__(self, backend: Backend):
        self.backend = backend
        self.records: dict[Key, dict] = {}
        self.layers: dict[str, Layer] = {}
        self.failed: tuple[str, str] | None = None
        self._pulling = 0

    def __call__(self, layer: Layer | Loss, ctx, compute):
        """Return `compute()`, output and pullback, and record the arrays that both return."""
        # While a backend derives a gradient, x is abstract. The output of a Chain is that of its last layer.
        if self._pulling or isinstance(layer, Chain):
            return compute()
        name, inner = "loss", {}
        if isinstance(layer, Layer):
            name, inner = ctx.path[1:] or snake_case(type(layer).__name__), layer.sublayers()
            self.layers[name] = layer
        output, pullback = self._run("forward", name, compute)
        self._record("forward", name, "output", output)

        def observed(dy):
            self._pulling += 1
            try:
                result = self._run("backward", name, lambda: pullback(dy))
            finally:
                self._pulling -= 1
            dx, grads = result if isinstance(result, tuple) else (result, {})
            own = {key: gradient for key, gradient in grads.items() if key not in inner}
            if own:
                self._record("backward", name, "dL/dweights", own)
            if dx is not None:
                self._record("backward", name, "dL/dinput", dx)
            return result

        return output, observed

    def _run(self, stage, name, call):
        try:
            return call()
        except Exception:
            self.failed = self.failed or (stage, name)
            raise

    def _record(self, stage, name, what, arrays):
        count = sum(key[:2] == (stage, name) and key[2].split(" #")[0] == what for key in self.records)
        key = (stage, name, f"{what} #{count + 1}" if count else what)  # a layer may run twice in one pass
        self.records[key] = tree.map(self.backend.to_numpy, _by_place(arrays))


def _by_place(value, name: str = "") -> dict:
    """Return the arrays of a dict or tuple by path; a single array is named "".

    >>> _by_place((1, {"a": 2}))
    {'0': 1, '1/a': 2}
    """
    if not isinstance(value, (dict, tuple)):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, inner in items for k, v in _by_place(inner, f"{name}/{key}".strip("/")).items()}
