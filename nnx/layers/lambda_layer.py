"""A function of one's own as a layer without weights: y = function(x)."""

from collections.abc import Callable
from typing import Any

from nnx.arguments import takes_namespace
from nnx.backend import get_backend
from nnx.layers.base import Layer, describe_shape


class Lambda(Layer):
    """Apply a pure function to a batch: (batch, *in_shape) -> (batch, *output_shape).

    A model with a Lambda cannot be saved, as a file holds no code: save its weights alone, or
    write the function as a layer class decorated with `@nnx.register`.

    Parameters
    ----------
    function : callable
        `function(x)` or `function(xp, x)`, with the array-API namespace of the backend. It returns
        y, or `(y, pullback)` where `pullback(dy)` is dL/dx. Without a pullback one is derived.
    output_shape : tuple of int, optional
        The shape of one output, without the batch axis; by default that of a trial on zeros.
    arguments : dict, optional
        Further arguments of the function, by name.

    Examples
    --------
    >>> import nnx
    >>> half = nnx.layers.Lambda(lambda x: (x / 2, lambda dy: dy / 2))
    >>> nnx.apply(half, [[1.0, 3.0]])
    array([[0.5, 1.5]], dtype=float32)
    >>> nnx.apply(nnx.layers.Lambda(lambda xp, x: xp.exp(x)), [[0.0]])
    array([[1.]], dtype=float32)
    """

    def __init__(self, function, output_shape=None, arguments: dict | None = None, **settings):
        super().__init__(**settings)
        if not callable(function):
            raise TypeError(
                f"Lambda: function must be callable, as function(x) or function(xp, x), got {function!r}"
            )
        self.function = function
        self.output_shape = (output_shape,) if isinstance(output_shape, int) else output_shape
        self.arguments = arguments
        self._takes_namespace = takes_namespace(function, arguments or {})

    def out_shape(self, in_shape):
        if self.output_shape is not None:
            return tuple(self.output_shape)
        backend = get_backend()
        try:
            with backend.scope("float32"):
                y, _ = self._call(backend.xp, backend.xp.zeros((1, *in_shape), dtype=backend.xp.float32))
                shape = tuple(y.shape)
        except Exception as error:
            raise ValueError(
                f"Lambda: the function fails on zeros of shape {describe_shape(in_shape)}, from which its output's "
                f"shape is found ({type(error).__name__}: {error}): correct it, or give output_shape="
            ) from error
        if shape[:1] != (1,):
            raise ValueError(
                f"Lambda: the function turns {describe_shape(in_shape)} into an array of shape {shape} for one "
                f"sample: its first axis must stay the batch"
            )
        return shape[1:]

    def forward(self, ctx, params, x) -> Any:
        y, pullback = self._call(ctx.xp, x)
        return y if pullback is None else (y, lambda dy: (pullback(dy), {}))

    def _call(self, xp, x) -> tuple[Any, Callable | None]:
        """Return what the function gives: y, and the pullback or None."""
        first = (xp,) if self._takes_namespace else ()
        result = self.function(*first, x, **(self.arguments or {}))
        if isinstance(result, tuple) and len(result) == 2 and callable(result[1]):
            return result
        return result, None

    def get_config(self):
        raise TypeError(
            f"cannot save a Lambda, whose function {self.function!r} is code: save the weights alone "
            f"(model.save_weights), or write it as a layer class decorated with @nnx.register"
        )
