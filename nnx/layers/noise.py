"""Noise that regularises: drawn anew at each step of training, absent otherwise.

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

    The noise is a function of the model's seed, the step and the layer's place in the model, the
    same on every backend.

    Parameters
    ----------
    stddev : float
        Standard deviation of the noise.
    seed : int, optional
        Sets this layer's noise apart from that of another with the same name.

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
        0 <= rate < 1: the noise has the variance rate / (1 - rate), as that of `Dropout` has.
    seed : int, optional
        As for `Dropout`.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.GaussianDropout(0.1), [[1.0, 2.0]])
    array([[1., 2.]], dtype=float32)
    """

    full_precision = True  # its random numbers have 31 bits

    def forward(self, ctx, params, x):
        if not ctx.training or self.rate == 0:
            return x, lambda dy: (dy, {})
        bits, stddev = ctx.random_bits(x.shape, salt=self.seed), math.sqrt(self.rate / (1 - self.rate))

        def pullback(dy):
            return ctx.kernel(kernels.gaussian_dropout, dy, bits, stddev), {}

        return ctx.kernel(kernels.gaussian_dropout, x, bits, stddev), pullback


@register("alpha_dropout")
class AlphaDropout(Dropout):
    """Dropout for networks of `selu`, whose mean 0 and variance 1 it keeps: any shape -> the same shape.

    While training, elements are set to the lower limit of selu, and all are scaled and shifted.

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

    def forward(self, ctx, params, x):
        if not ctx.training or self.rate == 0:
            return x, lambda dy: (dy, {})
        lowest = -activations.SELU.alpha * activations.SELU.scale
        scale = ((1 - self.rate) * (1 + self.rate * lowest**2)) ** -0.5
        offset = -scale * lowest * self.rate
        bits, threshold = ctx.random_bits(x.shape, salt=self.seed) >> 1, round(self.rate * 2**31)

        def pullback(dy):
            return ctx.kernel(kernels.dropout_gradient, dy, bits, threshold, scale), {}

        return ctx.kernel(kernels.alpha_dropout, x, bits, threshold, lowest, scale, offset), pullback
