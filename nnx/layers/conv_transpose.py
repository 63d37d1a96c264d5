"""Transposed convolution: each input is spread over a window of the output,

    y[b, p * strides + k * dilation_rate, f] += x[b, p, c] * kernel[k, f, c],

so its forward pass is the backward pass of a convolution, and the reverse.
Source: Zeiler et al., "Deconvolutional networks", 2010.
"""

import math

from nnx import initializers, regularizers
from nnx.layers.base import Weight, positive_int, register
from nnx.layers.conv import Convolution, convolve_transposed
from nnx.layers.windows import Windows, expect_spatial, reach, spread


@register("conv2d_transpose")
class Conv2DTranspose(Convolution):
    """Transposed convolution: (batch, height, width, channels) -> (batch, larger height, larger width, filters).

    Parameters
    ----------
    filters : int
        Number of output channels.
    kernel_size, strides, dilation_rate : int or (int, int)
        As in `Conv2D`.
    padding : {"valid", "same"}
        "valid" returns all windows in full; "same" an output strides times as large as the input.
    output_padding : int or (int, int), optional
        Elements added to the output, fewer than strides. By default `padding` decides.
    kernel_initializer, bias_initializer : str or Initializer
        Starting weights: kernel (height, width, filters, channels), bias (filters,).
    data_format, activation, use_bias, kernel_regularizer, ...
        As in `Conv2D`.

    Examples
    --------
    >>> import nnx
    >>> layer = nnx.layers.Conv2DTranspose(1, 2, strides=2, kernel_initializer="ones")
    >>> nnx.apply(layer, [[[[1.0], [2.0]]]])[0, :, :, 0]
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]], dtype=float32)
    """

    def __init__(
        self,
        filters: int,
        kernel_size,
        strides=1,
        padding="valid",
        output_padding=None,
        data_format: str | None = None,
        dilation_rate=1,
        activation=None,
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        **settings,
    ):
        super().__init__(**settings)
        self.filters = positive_int(self, "filters", filters)
        self._set_window(kernel_size, strides, padding, data_format, dilation_rate)
        if not isinstance(self.padding, str):
            raise ValueError(f"Conv2DTranspose: padding must be one of 'valid', 'same', got {padding!r}")
        self.output_padding = output_padding
        if output_padding is not None:
            self.output_padding = spread(self, "output_padding", output_padding, self.rank, least=0)
            if any(n >= stride for n, stride in zip(self.output_padding, self.strides, strict=True)):
                raise ValueError(
                    f"Conv2DTranspose: output_padding must be below strides, got {output_padding!r} and {strides!r}"
                )
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self._set_output(activation, use_bias, bias_initializer, bias_regularizer, activity_regularizer)

    def windows(self, in_shape) -> Windows:
        """Return the windows over the output, one for each position of the input."""
        expect_spatial(self, in_shape, self.rank)
        counts, lengths = in_shape[:-1], reach(self.kernel_size, self.dilation_rate)
        extra = self.output_padding or (None,) * self.rank
        spatial, padding = [], []
        for n, length, stride, more in zip(counts, lengths, self.strides, extra, strict=True):
            whole = (n - 1) * stride + length  # the length that all windows together span
            if more is None:
                out = whole + max(stride - length, 0) if self.padding == "valid" else n * stride
            else:
                out = whole + more - (0 if self.padding == "valid" else 2 * (length // 2))
            before = max(whole - out, 0) // 2
            spatial.append(out)
            padding.append((before, max(whole - before - out, 0)))
        sizes = self.kernel_size, self.strides, self.dilation_rate
        return Windows(tuple(spatial), *sizes, tuple(padding), counts)

    def declare_weights(self):
        yield Weight.of(self, "kernel", lambda in_shape: (*self.kernel_size, self.filters, in_shape[-1]))
        yield from super().declare_weights()

    def out_shape(self, in_shape):
        return (*self.windows(in_shape).spatial, self.filters)

    def convolve(self, ctx, x, kernel, windows):
        return convolve_transposed(ctx, x, kernel, windows)

    def flops(self, in_shape):
        added = math.prod(self.out_shape(in_shape)) if self.use_bias else 0
        return 2 * math.prod(in_shape) * math.prod(self.kernel_size) * self.filters + added
