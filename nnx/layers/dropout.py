"""Dropout: in training each element is zeroed with probability `rate`, and the others are scaled
up so that the expected value stays the same; otherwise nothing happens,

    y = x * mask / (1 - rate).

Source: Srivastava et al., "Dropout", JMLR 2014.
"""

from nnx import kernels
from nnx.layers.base import Layer, register


@register("dropout")
class Dropout(Layer):
    """Randomly zero elements while training: any shape -> the same shape.

    The mask is a function of the model's seed, the step and the layer's place in the model, and
    has the same bits on every backend.

    Parameters
    ----------
    rate : float
        Share of elements to zero, 0 <= rate < 1.
    seed : int, optional
        Sets this layer's masks apart from those of another with the same name.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.Dropout(0.5), [[1.0, 2.0]])
    array([[1., 2.]], dtype=float32)
    """

    def __init__(self, rate: float, seed: int | None = None, **settings):
        super().__init__(**settings)
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout: rate must be at least 0 and below 1, got {rate}")
        self.rate = rate
        self.seed = seed

    def forward(self, ctx, params, x):
        if not ctx.training or self.rate == 0:
            return x, lambda dy: (dy, {})
        bits = ctx.random_bits(x.shape, salt=self.seed)
        # Bits are uniform over 0 .. 2**32 - 1: compare their upper 31, which every library's
        # integers can hold a bound of.
        threshold, scale = round(self.rate * 2**31), 1 / (1 - self.rate)
        bits = bits >> 1

        def pullback(dy):
            return ctx.kernel(kernels.dropout_gradient, dy, bits, threshold, scale), {}

        return ctx.kernel(kernels.dropout, x, bits, threshold, scale), pullback
