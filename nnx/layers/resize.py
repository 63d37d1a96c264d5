"""Layers without weights that change the size of images and sequences: padding, cropping and up-sampling."""

from nnx.layers.base import Layer, describe_shape, register
from nnx.layers.windows import channels_last, expect_spatial, pairs, spread


class _ZeroPadding(Layer):
    rank = 2

    def __init__(self, padding=1, data_format: str | None = None, **settings):
        super().__init__(**settings)
        self.padding = pairs(self, "padding", padding, self.rank)
        self.data_format = channels_last(self, data_format)

    def out_shape(self, in_shape):
        expect_spatial(self, in_shape, self.rank)
        lengths = zip(in_shape, self.padding, strict=False)
        return (*(before + n + after for n, (before, after) in lengths), in_shape[-1])

    def forward(self, ctx, params, x):
        inside = [slice(b, b + n) for n, (b, _) in zip(x.shape[1:-1], self.padding, strict=True)]

        def pullback(dy):
            return dy[(slice(None), *inside, ...)], {}

        return ctx.backend.pad(x, ((0, 0), *self.padding, (0, 0))), pullback


@register("zero_padding1d")
class ZeroPadding1D(_ZeroPadding):
    """Pad with zeros before and after: (batch, steps, channels) -> (batch, more steps, channels).

    Parameters
    ----------
    padding : int or (int, int)
        Steps to add before and after.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.ZeroPadding1D((1, 2)), [[[5.0]]])[0, :, 0]
    array([0., 5., 0., 0.], dtype=float32)
    """

    rank = 1


@register("zero_padding2d")
class ZeroPadding2D(_ZeroPadding):
    """Pad images with zeros: (batch, height, width, channels) -> (batch, larger height, larger width, channels).

    Parameters
    ----------
    padding : int, (int, int) or ((int, int), (int, int))
        For all sides; for each axis; or ((top, bottom), (left, right)).
    data_format : "channels_last", optional
        The only format.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.ZeroPadding2D((0, 1)), [[[[5.0]]]])[0, :, :, 0]
    array([[0., 5., 0.]], dtype=float32)
    """


class _Cropping(Layer):
    rank = 2
    data_format: str | None

    def _set(self, cropping, data_format=None):
        self.cropping = pairs(self, "cropping", cropping, self.rank)
        self.data_format = channels_last(self, data_format)

    def out_shape(self, in_shape):
        expect_spatial(self, in_shape, self.rank)
        spatial = tuple(
            n - before - after for n, (before, after) in zip(in_shape, self.cropping, strict=False)
        )
        if min(spatial) < 1:
            raise ValueError(
                f"{type(self).__name__}: cropping {self.cropping} leaves nothing of input of shape "
                f"{describe_shape(in_shape)}: crop less"
            )
        return (*spatial, in_shape[-1])

    def forward(self, ctx, params, x):
        kept = [slice(b, n - a) for n, (b, a) in zip(x.shape[1:-1], self.cropping, strict=True)]

        def pullback(dy):
            return ctx.backend.pad(dy, ((0, 0), *self.cropping, (0, 0))), {}

        return x[(slice(None), *kept, ...)], pullback


@register("cropping1d")
class Cropping1D(_Cropping):
    """Remove steps at both ends: (batch, steps, channels) -> (batch, fewer steps, channels).

    Parameters
    ----------
    cropping : int or (int, int)
        Steps to remove before and after.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.Cropping1D((1, 0)), [[[5.0], [6.0]]])
    array([[[6.]]], dtype=float32)
    """

    rank = 1

    def __init__(self, cropping=(1, 1), **settings):
        super().__init__(**settings)
        self._set(cropping)


@register("cropping2d")
class Cropping2D(_Cropping):
    """Crop images: (batch, height, width, channels) -> (batch, smaller height, smaller width, channels).

    Parameters
    ----------
    cropping : int, (int, int) or ((int, int), (int, int))
        For all sides; for each axis; or ((top, bottom), (left, right)).
    data_format : "channels_last", optional
        The only format.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.Cropping2D(((0, 0), (1, 0))), [[[[5.0], [6.0]]]])
    array([[[[6.]]]], dtype=float32)
    """

    def __init__(self, cropping=((0, 0), (0, 0)), data_format: str | None = None, **settings):
        super().__init__(**settings)
        self._set(cropping, data_format)


@register("up_sampling2d")
class UpSampling2D(Layer):
    """Repeat each element: (batch, height, width, channels) -> (batch, height * size, width * size, channels).

    Parameters
    ----------
    size : int or (int, int)
        Copies along each axis.
    data_format : "channels_last", optional
        The only format.
    interpolation : "nearest"
        The only method.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.UpSampling2D((1, 2)), [[[[5.0], [6.0]]]])[0, :, :, 0]
    array([[5., 5., 6., 6.]], dtype=float32)
    """

    def __init__(self, size=2, data_format: str | None = None, interpolation: str = "nearest", **settings):
        super().__init__(**settings)
        self.size = spread(self, "size", size, 2)
        self.data_format = channels_last(self, data_format)
        if interpolation != "nearest":
            raise ValueError(
                f"UpSampling2D: interpolation must be 'nearest', got {interpolation!r}: for a smooth one use "
                f"Conv2DTranspose, which learns it"
            )
        self.interpolation = interpolation

    def out_shape(self, in_shape):
        expect_spatial(self, in_shape, 2)
        height, width, channels = in_shape
        return (height * self.size[0], width * self.size[1], channels)

    def forward(self, ctx, params, x):
        xp, (batch, height, width, channels) = ctx.xp, x.shape
        blocks = (batch, height, self.size[0], width, self.size[1], channels)

        def pullback(dy):
            return xp.sum(xp.reshape(dy, blocks), axis=(2, 4)), {}

        y = xp.broadcast_to(x[:, :, None, :, None, :], blocks)
        return xp.reshape(y, (batch, *self.out_shape(x.shape[1:]))), pullback
