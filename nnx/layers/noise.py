"""Noise that regularises: drawn at each training step, absent in inference.

    GaussianNoise      y = x + stddev * z                                       z standard normal
    GaussianDropout    y = x * (1 + sqrt(rate / (1 - rate)) * z)
    AlphaDropout       y = a * (x where kept, else selu's lower limit) + b      mean and variance kept

Sources: Srivastava et al., "Dropout", JMLR 2014, section 10; Klambauer et al., "Self-normalizing
neural networks", 2017 (arXiv:1706.02515).
"""

import math

from nnx import activations, kernels
from nnx.arguments import expect_range
from nnx.layers.base import Layer, register
from nnx.layers.dropout import Dropout


@register("gaussian_noise")
class GaussianNoise(Layer):
    """Add normally distributed noise while training: any shape -> the same shape.

    The noise is a function of the model's seed, the step and the layer's path in the model, and is the
    same on every backend.

    Parameters
    ----------
    stddev : float
        Standard deviation of the noise.
    seed : int, optional
        Makes this layer's noise differ from that of another layer with the same name.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.GaussianNoise(0.1), [[1.0, 2.0]])
    array([[1., 2.]], dtype=float32)
    """

    full_precision = True  # its random numbers have 31 bits
    supports_masking = True

    def __init__(self, stddev: float, seed: int | None = None, **settings):
        super().__init__(**settings)
        expect_range(self, at_least=0, stddev=stddev)
        self.stddev = stddev
        self.seed = seed

    def forward(self, ctx, params, x):
        def pullback(dy):
            return dy, {}

        if not ctx.training or self.stddev == 0:
            return x, pullback
        bits = ctx.random_bits(x.shape, salt=self.seed)
        return ctx.kernel(kernels.gaussian_noise, x, bits, self.stddev), pullback


@register("gaussian_dropout")
class GaussianDropout(Dropout):
    """Multiply by normally distributed noise of mean 1 while training: any shape -> the same shape.

    Parameters
    ----------
    rate : float
        0 <= rate < 1: the noise has the variance rate / (1 - rate), like that of `Dropout`.
    seed : int, optional
        As for `Dropout`.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.GaussianDropout(0.1), [[1.0, 2.0]])
    array([[1., 2.]], dtype=float32)
    """

    full_precision = True  # its random numbers have 31 bits

    def drop(self, ctx, x, bits):
        stddev = math.sqrt(self.rate / (1 - self.rate))

        def pullback(dy):
            return ctx.kernel(kernels.gaussian_dropout, dy, bits, stddev)

        return pullback(x), pullback  # it is linear


@register("alpha_dropout")
class AlphaDropout(Dropout):
    """Dropout that keeps the mean 0 and variance 1 of `selu` networks: any shape -> the same shape.

    Training sets elements to the lower limit of selu, and scales and shifts all of them.

    Parameters
    ----------
    rate, seed
        As for `Dropout`.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.AlphaDropout(0.1), [[1.0, 2.0]])
    array([[1., 2.]], dtype=float32)
    """

    def drop(self, ctx, x, bits):
        lowest = -activations.SELU.alpha * activations.SELU.scale
        scale = ((1 - self.rate) * (1 + self.rate * lowest**2)) ** -0.5
        offset = -scale * lowest * self.rate
        bits, threshold = bits >> 1, round(self.rate * 2**31)

        def pullback(dy):
            return ctx.kernel(kernels.dropout_gradient, dy, bits, threshold, scale)

        return ctx.kernel(kernels.alpha_dropout, x, bits, threshold, lowest, scale, offset), pullback
