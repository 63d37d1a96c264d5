"""Depthwise convolution, which filters each channel separately,

    y[b, p, c, m] = sum over k of x[b, p * strides + k * dilation_rate, c] * kernel[k, c, m];

and separable convolution, which follows it by a weighted sum over all channels at each position.
Source: Chollet, "Xception: Deep learning with depthwise separable convolutions", 2017 (arXiv:1610.02357).
"""

import math

from nnx import initializers, kernels, regularizers
from nnx.layers.base import Weight, positive_int, register
from nnx.layers.conv import Convolution, convolve_by_library


def convolve_depthwise(ctx, x, kernel, windows):
    """Return (batch, *counts, channels * multiplier) of the convolution, and its pullback.

    x : (batch, *spatial, channels); kernel : (*size, channels, multiplier).
    """
    xp, (channels, multiplier) = ctx.xp, kernel.shape[-2:]
    grouped = xp.reshape(kernel, (*kernel.shape[:-2], 1, channels * multiplier))
    if (result := convolve_by_library(ctx, x, grouped, windows, groups=channels)) is not None:
        rows, pull = result

        def pull_rows(dz):
            dx, dkernel = pull(dz)
            return dx, xp.reshape(dkernel, kernel.shape)

        return xp.reshape(rows, (x.shape[0], *windows.counts, channels * multiplier)), pull_rows
    weights = xp.reshape(kernel, (-1, channels * multiplier))
    weights = [weights[i, ...] for i in range(weights.shape[0])]

    def slices():
        parts = windows.slices(ctx.backend, x)
        if multiplier == 1:
            return parts
        spread = [xp.broadcast_to(part[..., None], (*part.shape, multiplier)) for part in parts]
        return [xp.reshape(part, (*part.shape[:-2], -1)) for part in spread]

    def pullback(dz):
        dz = xp.reshape(dz, (x.shape[0], *windows.counts, channels * multiplier))
        flat = (-1, channels * multiplier)
        dweights = [
            xp.sum(xp.reshape(ctx.kernel(kernels.multiply, part, dz), flat), axis=0) for part in slices()
        ]
        dkernel = xp.reshape(xp.concat(dweights), kernel.shape)
        if not ctx.needs_input_gradient:
            return None, dkernel
        parts = [ctx.kernel(kernels.multiply, dz, weight) for weight in weights]
        if multiplier > 1:
            parts = [xp.sum(xp.reshape(p, (*p.shape[:-1], channels, multiplier)), axis=-1) for p in parts]
        return windows.unslice(ctx.backend, parts), dkernel

    y = ctx.kernel(kernels.weighted_sum, *slices(), *weights)
    return y, pullback


class _Depthwise(Convolution):
    depth_multiplier: int

    def _depthwise_kernel(self, name: str) -> Weight:
        size, multiplier = self.kernel_size, self.depth_multiplier
        return Weight.of(self, name, lambda in_shape: (*size, in_shape[-1], multiplier), "depthwise")

    def _channels(self, in_shape):
        """Return the shape of one sample after the depthwise convolution, or raise a ValueError."""
        return (*self.windows(in_shape).counts, in_shape[-1] * self.depth_multiplier)

    def _depthwise_flops(self, in_shape):
        return 2 * math.prod(self._channels(in_shape)) * math.prod(self.kernel_size)


@register("depthwise_conv2d")
class DepthwiseConv2D(_Depthwise):
    """Filter each channel separately: (batch, height, width, channels) -> (batch, new height, new width, outputs).

    The outputs are channels * depth_multiplier.

    Parameters
    ----------
    kernel_size, strides, dilation_rate, padding, data_format
        As in `Conv2D`.
    depth_multiplier : int
        Filters of each channel; the outputs of one channel are neighbours.
    activation : str or Activation, optional
    use_bias : bool
    depthwise_initializer, bias_initializer : str or Initializer
        Starting weights: kernel (height, width, channels, multiplier), bias (channels * multiplier,).
    depthwise_regularizer, bias_regularizer, activity_regularizer : str or Regularizer, optional
        As in `Dense`.

    Examples
    --------
    >>> import nnx
    >>> layer = nnx.layers.DepthwiseConv2D(2, depthwise_initializer="ones")
    >>> nnx.apply(layer, [[[[1.0, 5.0], [2.0, 6.0]], [[3.0, 7.0], [4.0, 8.0]]]])
    array([[[[10., 26.]]]], dtype=float32)
    """

    def __init__(
        self,
        kernel_size,
        strides=1,
        padding="valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate=1,
        activation=None,
        use_bias: bool = True,
        depthwise_initializer="glorot_uniform",
        bias_initializer="zeros",
        depthwise_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        **settings,
    ):
        super().__init__(**settings)
        self._set_window(kernel_size, strides, padding, data_format, dilation_rate)
        self.depth_multiplier = positive_int(self, "depth_multiplier", depth_multiplier)
        self.depthwise_initializer = initializers.get(depthwise_initializer)
        self.depthwise_regularizer = regularizers.get(depthwise_regularizer)
        self._set_output(activation, use_bias, bias_initializer, bias_regularizer, activity_regularizer)

    def declare_weights(self):
        yield self._depthwise_kernel("kernel")
        yield from super().declare_weights()

    def out_shape(self, in_shape):
        return self._channels(in_shape)

    def convolve(self, ctx, x, kernel, windows):
        return convolve_depthwise(ctx, x, kernel, windows)

    def flops(self, in_shape):
        added = math.prod(self.out_shape(in_shape)) if self.use_bias else 0
        return self._depthwise_flops(in_shape) + added


@register("separable_conv2d")
class SeparableConv2D(_Depthwise):
    """Depthwise convolution, then a 1x1 convolution.

    (batch, height, width, channels) -> (batch, new height, new width, filters)

    Parameters
    ----------
    filters : int
        Number of output channels.
    kernel_size, strides, dilation_rate, padding, data_format
        As in `Conv2D`, for the depthwise convolution.
    depth_multiplier : int
        Filters of each channel in the depthwise convolution.
    activation : str or Activation, optional
    use_bias : bool
    depthwise_initializer, pointwise_initializer, bias_initializer : str or Initializer
        Starting weights: depthwise_kernel (height, width, channels, multiplier), pointwise_kernel
        (1, 1, channels * multiplier, filters), bias (filters,).
    depthwise_regularizer, pointwise_regularizer, bias_regularizer, activity_regularizer : optional
        As in `Dense`.

    Examples
    --------
    >>> import nnx
    >>> layer = nnx.layers.SeparableConv2D(1, 2, depthwise_initializer="ones", pointwise_initializer="ones")
    >>> nnx.apply(layer, [[[[1.0, 5.0], [2.0, 6.0]], [[3.0, 7.0], [4.0, 8.0]]]])
    array([[[[36.]]]], dtype=float32)
    """

    def __init__(
        self,
        filters: int,
        kernel_size,
        strides=1,
        padding="valid",
        data_format: str | None = None,
        dilation_rate=1,
        depth_multiplier: int = 1,
        activation=None,
        use_bias: bool = True,
        depthwise_initializer="glorot_uniform",
        pointwise_initializer="glorot_uniform",
        bias_initializer="zeros",
        depthwise_regularizer=None,
        pointwise_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        **settings,
    ):
        super().__init__(**settings)
        self.filters = positive_int(self, "filters", filters)
        self._set_window(kernel_size, strides, padding, data_format, dilation_rate)
        self.depth_multiplier = positive_int(self, "depth_multiplier", depth_multiplier)
        self.depthwise_initializer = initializers.get(depthwise_initializer)
        self.pointwise_initializer = initializers.get(pointwise_initializer)
        self.depthwise_regularizer = regularizers.get(depthwise_regularizer)
        self.pointwise_regularizer = regularizers.get(pointwise_regularizer)
        self._set_output(activation, use_bias, bias_initializer, bias_regularizer, activity_regularizer)

    def declare_weights(self):
        def pointwise(in_shape):
            return (1, 1, self._channels(in_shape)[-1], self.filters)

        yield self._depthwise_kernel("depthwise_kernel")
        yield Weight.of(self, "pointwise_kernel", pointwise, "pointwise")
        yield from super().declare_weights()

    def out_shape(self, in_shape):
        return (*self._channels(in_shape)[:-1], self.filters)

    def forward(self, ctx, params, x):
        xp, windows = ctx.xp, self.windows(x.shape[1:])
        between, pull_depthwise = convolve_depthwise(ctx, x, params["depthwise_kernel"], windows)
        rows = xp.reshape(between, (-1, between.shape[-1]))
        pointwise = xp.reshape(params["pointwise_kernel"], (-1, self.filters))
        y, pull_output = self.finish(ctx, params, xp.matmul(rows, pointwise), (*windows.counts, self.filters))

        def pullback(dy):
            dz, grads = pull_output(dy)
            grads["pointwise_kernel"] = xp.reshape(xp.matmul(rows.T, dz), params["pointwise_kernel"].shape)
            dx, grads["depthwise_kernel"] = pull_depthwise(xp.matmul(dz, pointwise.T))
            return dx, grads

        return y, pullback

    def flops(self, in_shape):
        *counts, between = self._channels(in_shape)
        each = self.filters * (2 * between + (1 if self.use_bias else 0))
        return self._depthwise_flops(in_shape) + math.prod(counts) * each
