"""A training pass observed: host copies of what each layer returns, forward and backward.

The layers' code is not changed: on a private copy of the network, each layer's `forward` is
replaced by one that runs it, and its pullback, and keeps what they return.
"""

import copy

from nnx import tree
from nnx.backend import Backend
from nnx.layers.base import Layer, run
from nnx.layers.containers import Chain
from nnx.registry import snake_case
from nnx.training.step import Steps

Key = tuple[str, str, str]
"""Where in a pass something was computed: "forward" or "backward", the layer's path, what it is."""


class Observer:
    """What the layers of one pass returned, in the order in which they did.

    Attributes
    ----------
    kept : dict of Key to (dict of name to array)
        Outputs, gradients by the input and by the weights. Arrays under one key belong together:
        a layer's kernel and bias.
    failed : tuple of str, optional
        The stage and the layer in which an error was raised.
    """

    def __init__(self, backend: Backend):
        self.backend = backend
        self.forget()

    def forget(self) -> None:
        """Make ready for the next pass."""
        self.kept: dict[Key, dict] = {}
        self.failed: tuple[str, str] | None = None
        self._pulling = 0

    def observe(self, steps: Steps) -> Steps:
        """Return the same step functions, with their network and their loss observed."""
        observed = copy.copy(steps)
        observed.network, observed.loss = copy.deepcopy((steps.network, steps.loss))
        self._observe_layer(observed.network)
        loss = copy.copy(observed.loss)
        vars(observed.loss)["forward"] = lambda ctx, target, output: self._run(
            "loss", lambda: loss.forward(ctx, target, output)
        )
        return observed

    def _observe_layer(self, layer: Layer) -> None:
        inside = layer.sublayers()
        for sublayer in inside.values():
            self._observe_layer(sublayer)
        # What a Chain returns, its last and first layer have returned already.
        if isinstance(layer, Chain) or "forward" in vars(layer):
            return
        inner = copy.copy(layer)

        def forward(ctx, params, x):
            if self._pulling:  # a gradient is being derived: x stands for any input
                return inner.forward(ctx, params, x)
            name = ctx.path[1:] or snake_case(type(inner).__name__)
            return self._run(name, lambda: run(inner, ctx, params, x), tuple(inside))

        vars(layer)["forward"] = forward

    def _run(self, name: str, forward, inside=()):
        """Return what `forward()` does, output and pullback, and keep what both give."""
        output, pullback = self._guarded("forward", name, forward)
        self._keep("forward", name, "output", _named(output))

        def observed(dy):
            self._pulling += 1
            try:
                found = self._guarded("backward", name, lambda: pullback(dy))
            finally:
                self._pulling -= 1
            dx, grads = found if isinstance(found, tuple) else (found, {})
            own = {key: gradient for key, gradient in grads.items() if key not in inside}
            if own:
                self._keep("backward", name, "dL/dweights", _named(own))
            if dx is not None:
                self._keep("backward", name, "dL/dinput", _named(dx))
            return found

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
        self.kept[key] = tree.map(self.backend.to_numpy, arrays)


def _named(value, name: str = "") -> dict:
    """Return the arrays of a dict or tuple by their place in it; one array under the empty name.

    >>> _named((1, {"a": 2}))
    {'0': 1, '1/a': 2}
    """
    if not isinstance(value, (dict, tuple)):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {k: v for key, part in items for k, v in _named(part, f"{name}/{key}".strip("/")).items()}
