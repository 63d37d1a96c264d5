"""Pooling: each window is reduced to one value a channel, its maximum or its mean,

    y[b, p, c] = max over k of x[b, p * strides + k, c]      (or the mean),

over windows of `pool_size`, or over all positions (global pooling). The first of equal maxima in a
window gets the gradient. Padding is ignored.
"""

import math

from nnx import kernels
from nnx.layers.base import Layer, register, size
from nnx.layers.windows import Windows, channels_last, expect_spatial, padding_argument, spread, windows_of


class _Pooling(Layer):
    rank = 2

    def __init__(self, pool_size, strides=None, padding="valid", data_format=None, **settings):
        super().__init__(**settings)
        self.pool_size = spread(self, "pool_size", pool_size, self.rank)
        self.strides = self.pool_size if strides is None else spread(self, "strides", strides, self.rank)
        self.padding = padding_argument(self, padding, self.rank)
        self.data_format = channels_last(self, data_format)

    def windows(self, in_shape) -> Windows:
        """Return the windows over samples of `in_shape`."""
        return windows_of(self, in_shape, self.pool_size, self.strides, (1,) * self.rank, self.padding)

    def out_shape(self, in_shape):
        return (*self.windows(in_shape).counts, in_shape[-1])

    def flops(self, in_shape):
        return size(self.out_shape(in_shape)) * math.prod(self.pool_size)


class _MaxPooling(_Pooling):
    def __init__(self, pool_size=2, strides=None, padding="valid", data_format=None, **settings):
        super().__init__(pool_size, strides, padding, data_format, **settings)

    def forward(self, ctx, params, x):
        windows = self.windows(x.shape[1:])
        slices = windows.slices(ctx.backend, x, value=-math.inf)
        y = slices[0] if len(slices) == 1 else ctx.kernel(kernels.maximum, *slices)

        def pullback(dy):
            # The first slice that equals the maximum takes the gradient: none is left for later slices.
            gradients, left = [], dy
            for piece in slices:
                gradients.append(ctx.kernel(kernels.where_equal, left, piece, y))
                left = left if piece is slices[-1] else ctx.kernel(kernels.subtract, left, gradients[-1])
            return windows.unslice(ctx.backend, gradients), {}

        return y, pullback


class _AveragePooling(_Pooling):
    full_precision = True  # sums overflow float16

    def forward(self, ctx, params, x):
        windows = self.windows(x.shape[1:])
        slices = windows.slices(ctx.backend, x)
        share = self._share(ctx, windows, x.dtype)
        y = ctx.kernel(kernels.scaled_sum, share, *slices)

        def pullback(dy):
            gradient = ctx.kernel(kernels.multiply, dy, share)
            return windows.unslice(ctx.backend, [gradient] * len(slices)), {}

        return y, pullback

    def _share(self, ctx, windows, dtype):
        """Return 1 / (elements of each window that are not padding): a scalar, or (*counts, 1)."""
        share = 1.0 / math.prod(self.pool_size)
        if not windows.is_padded:
            return share
        for axis, (before, _) in enumerate(windows.padding):
            start = ctx.arange(windows.counts[axis], "int32") * windows.strides[axis] - before
            inside = ctx.kernel(kernels.overlap, start, windows.size[axis], windows.spatial[axis])
            inside = ctx.xp.astype(inside, dtype) / windows.size[axis]
            share = share / ctx.xp.reshape(inside, (-1, *(1,) * (self.rank - axis)))
        return share


class _GlobalPooling(Layer):
    rank = 2

    def __init__(self, data_format=None, keepdims: bool = False, **settings):
        super().__init__(**settings)
        self.data_format = channels_last(self, data_format)
        self.keepdims = keepdims

    def out_shape(self, in_shape):
        expect_spatial(self, in_shape, self.rank)
        return (*(1,) * self.rank, in_shape[-1]) if self.keepdims else in_shape[-1:]

    def flops(self, in_shape):
        return size(in_shape)


class _GlobalMaxPooling(_GlobalPooling):
    def forward(self, ctx, params, x):
        xp, axes = ctx.xp, tuple(range(1, self.rank + 1))
        largest = xp.max(x, axis=axes, keepdims=True)

        def pullback(dy):
            # Equal maxima share the gradient.
            chosen = xp.astype(x == largest, x.dtype)
            return chosen * (xp.reshape(dy, largest.shape) / xp.sum(chosen, axis=axes, keepdims=True)), {}

        return xp.reshape(largest, (x.shape[0], *self.out_shape(x.shape[1:]))), pullback


class _GlobalAveragePooling(_GlobalPooling):
    full_precision = True  # sums overflow float16

    def forward(self, ctx, params, x):
        if ctx.mask is not None and self.supports_masking:
            return self._masked(ctx, x)
        xp, axes = ctx.xp, tuple(range(1, self.rank + 1))

        def pullback(dy):
            share = xp.reshape(dy / size(x.shape[1:-1]), (x.shape[0], *(1,) * self.rank, -1))
            return xp.broadcast_to(share, x.shape), {}

        return xp.mean(x, axis=axes, keepdims=self.keepdims), pullback

    def _masked(self, ctx, x):
        """Return the mean over the time steps that are not masked, and its pullback."""
        xp, counts = ctx.xp, ctx.xp.astype(ctx.mask[..., None], x.dtype)
        ctx.mask = None
        share = counts / xp.maximum(xp.sum(counts, axis=1, keepdims=True), 1.0)

        def pullback(dy):
            return xp.reshape(dy, (x.shape[0], 1, -1)) * share, {}

        return xp.sum(x * share, axis=1, keepdims=self.keepdims), pullback


@register("max_pooling1d", "max_pool1d")
class MaxPooling1D(_MaxPooling):
    """Largest value of each window: (batch, steps, channels) -> (batch, new steps, channels).

    See `MaxPooling2D`.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.MaxPooling1D(2), [[[1.0], [3.0], [2.0], [0.0]]])[0, :, 0]
    array([3., 2.], dtype=float32)
    """

    rank = 1


@register("max_pooling2d", "max_pool2d")
class MaxPooling2D(_MaxPooling):
    """Largest value of each window: (batch, height, width, channels) -> (batch, new height, new width, channels).

    Parameters
    ----------
    pool_size : int or (int, int)
    strides : int or (int, int), optional
        The distance between windows; by default `pool_size`.
    padding : {"valid", "same"}, int, (int, int) or ((int, int), (int, int))
        As in `Conv2D`.
    data_format : "channels_last", optional
        The only format.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.MaxPooling2D(), [[[[1.0], [3.0]], [[2.0], [0.0]]]])
    array([[[[3.]]]], dtype=float32)
    """


@register("average_pooling1d", "avg_pool1d")
class AveragePooling1D(_AveragePooling):
    """Mean of each window: (batch, steps, channels) -> (batch, new steps, channels).

    See `MaxPooling2D` for the arguments.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.AveragePooling1D(2), [[[1.0], [3.0], [2.0], [0.0]]])[0, :, 0]
    array([2., 1.], dtype=float32)
    """

    rank = 1


@register("average_pooling2d", "avg_pool2d")
class AveragePooling2D(_AveragePooling):
    """Mean of each window: (batch, height, width, channels) -> (batch, new height, new width, channels).

    See `MaxPooling2D` for the arguments.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.AveragePooling2D(2), [[[[1.0], [3.0]], [[2.0], [0.0]]]])
    array([[[[1.5]]]], dtype=float32)
    """


@register("global_max_pooling1d", "global_max_pool1d")
class GlobalMaxPooling1D(_GlobalMaxPooling):
    """Largest value of each channel: (batch, steps, channels) -> (batch, channels); see `GlobalMaxPooling2D`."""

    rank = 1


@register("global_max_pooling2d", "global_max_pool2d")
class GlobalMaxPooling2D(_GlobalMaxPooling):
    """Largest value of each channel: (batch, height, width, channels) -> (batch, channels).

    Parameters
    ----------
    data_format : "channels_last", optional
        The only format.
    keepdims : bool
        Whether to keep the spatial axes, with length 1.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.GlobalMaxPooling2D(), [[[[1.0], [3.0]], [[2.0], [0.0]]]])
    array([[3.]], dtype=float32)
    """


@register("global_average_pooling1d", "global_avg_pool1d")
class GlobalAveragePooling1D(_GlobalAveragePooling):
    """Mean of each channel: (batch, steps, channels) -> (batch, channels); see `GlobalMaxPooling2D`.

    Masked time steps are ignored; the mean of none is 0 (nan in Keras).
    """

    rank = 1
    supports_masking = True


@register("global_average_pooling2d", "global_avg_pool2d")
class GlobalAveragePooling2D(_GlobalAveragePooling):
    """Mean of each channel: (batch, height, width, channels) -> (batch, channels).

    See `GlobalMaxPooling2D` for the arguments.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.GlobalAveragePooling2D(), [[[[1.0], [3.0]], [[2.0], [0.0]]]])
    array([[1.5]], dtype=float32)
    """
