"""Dropout: training zeroes each element with probability `rate`, and scales the others up so that the
expected value stays the same; inference changes nothing,

    y = x * mask / (1 - rate).

Spatial dropout zeroes whole feature maps, whose neighbouring values are strongly correlated.

Sources: Srivastava et al., "Dropout", JMLR 2014; Tompson et al., "Efficient object localization
using convolutional networks", 2015 (arXiv:1411.4280).
"""

from nnx import kernels
from nnx.arguments import expect_range
from nnx.layers.base import Layer, describe_shape, register


@register("dropout")
class Dropout(Layer):
    """Randomly zero elements while training: any shape -> the same shape.

    The mask is a function of the model's seed, the step and the layer's path in the model, and is the
    same on every backend.

    Parameters
    ----------
    rate : float
        Share of elements to zero, 0 <= rate < 1.
    seed : int, optional
        Makes this layer's masks differ from those of another layer with the same name.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.Dropout(0.5), [[1.0, 2.0]])
    array([[1., 2.]], dtype=float32)
    """

    supports_masking = True

    def __init__(self, rate: float, seed: int | None = None, **settings):
        super().__init__(**settings)
        expect_range(self, at_least=0, below=1, rate=rate)
        self.rate = rate
        self.seed = seed

    def mask_shape(self, shape):
        """Return the shape of the mask for a batch of this shape."""
        return shape

    def forward(self, ctx, params, x):
        if not ctx.training or self.rate == 0:
            return x, lambda dy: (dy, {})
        y, pull = self.drop(ctx, x, ctx.random_bits(self.mask_shape(x.shape), salt=self.seed))
        return y, lambda dy: (pull(dy), {})

    def drop(self, ctx, x, bits):
        """Return x after dropout by random bits, and the pullback."""
        return drop(ctx, x, bits, self.rate)


def drop(ctx, x, bits, rate):
    """Return x with a share `rate` of its elements zeroed by random bits, and the pullback."""
    # Bits are uniform over 0 .. 2**32 - 1. Compare the upper 31, which fit into every library's integers.
    threshold, scale = round(rate * 2**31), 1 / (1 - rate)
    bits = bits >> 1

    def pullback(dy):
        return ctx.kernel(kernels.dropout_gradient, dy, bits, threshold, scale)

    return ctx.kernel(kernels.dropout, x, bits, threshold, scale), pullback


@register("spatial_dropout1d")
class SpatialDropout1D(Dropout):
    """Randomly zero whole channels while training: (batch, steps, channels) -> the same shape.

    Parameters
    ----------
    rate, seed
        As for `Dropout`.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.SpatialDropout1D(0.5), [[[1.0, 2.0], [3.0, 4.0]]], training=True)
    array([[[0., 4.],
            [0., 8.]]], dtype=float32)
    """

    axes = "steps, channels"
    """The axes of one sample."""

    def out_shape(self, in_shape):
        if len(in_shape) != len(self.axes.split(", ")):
            raise ValueError(
                f"{type(self).__name__} expects input of shape (batch, {self.axes}), got "
                f"{describe_shape(in_shape)}: put a Reshape before it, or use Dropout"
            )
        return in_shape

    def mask_shape(self, shape):
        return (shape[0], *(1 for _ in shape[2:]), shape[-1])


@register("spatial_dropout2d")
class SpatialDropout2D(SpatialDropout1D):
    """Randomly zero whole channels of images while training: (batch, rows, columns, channels) -> the same.

    Parameters
    ----------
    rate, seed
        As for `Dropout`.
    data_format : {"channels_last", "channels_first"}, optional
        The position of the channel axis; None means "channels_last".

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.SpatialDropout2D(0.5), [[[[1.0, 2.0]]]])
    array([[[[1., 2.]]]], dtype=float32)
    """

    def __init__(self, rate: float, data_format: str | None = None, seed: int | None = None, **settings):
        super().__init__(rate, seed, **settings)
        if data_format not in (None, "channels_last", "channels_first"):
            raise ValueError(
                f"SpatialDropout2D: data_format must be 'channels_last' or 'channels_first', got {data_format!r}"
            )
        self.data_format = data_format

    @property
    def axes(self):
        first = self.data_format == "channels_first"
        return "channels, rows, columns" if first else "rows, columns, channels"

    def mask_shape(self, shape):
        return (*shape[:2], 1, 1) if self.data_format == "channels_first" else super().mask_shape(shape)
