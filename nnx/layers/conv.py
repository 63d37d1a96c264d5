"""Convolution: each output is a weighted sum of the inputs in a window, with the same weights at every
position,

    y[b, p, f] = activation(sum over k, c of x[b, p * strides + k * dilation_rate, c] * kernel[k, c, f] + bias[f]).

The elements of each window form a row (a patch): the sum is then one matrix product, and so are both
gradients.
Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998; the product
over patches: Chellapilla, Puri and Simard, 2006.
"""

import math

from nnx import activations, initializers, regularizers
from nnx.layers.base import Layer, Weight, positive_int, register, size
from nnx.layers.windows import PADDINGS, Windows, channels_last, padding_argument, spread, windows_of


def convolve(ctx, x, kernel, windows: Windows):
    """Return rows (batch * windows, filters) of the convolution, and its pullback.

    x : (batch, *spatial, channels); kernel : (*size, channels, filters). The pullback returns dx, or
    None if it is not needed, and dkernel.

    Patches are many times as large as the input. They are formed for a few samples at a time, as
    `ctx.backend.tile_bytes` allows, and again for the pullback.
    """
    xp, filters = ctx.xp, kernel.shape[-1]
    if (result := convolve_by_library(ctx, x, kernel, windows)) is not None:
        return result
    matrix = xp.reshape(kernel, (-1, filters))
    rows = math.prod(windows.counts)
    length = _samples_at_a_time(
        x.shape[0], rows * matrix.shape[0], ctx.backend.tile_bytes["patches"], windows
    )

    def patches(x):
        return xp.reshape(ctx.backend.patches(x, windows), (-1, matrix.shape[0]))

    def pull_piece(x, dz):
        dz = xp.reshape(dz, (-1, filters))
        dx = _from_patches(ctx, xp.matmul(dz, matrix.T), windows) if ctx.needs_input_gradient else None
        return dx, xp.matmul(patches(x).T, dz)

    def pullback(dz):
        dz = xp.reshape(dz, (x.shape[0], rows, filters))
        dx, dmatrix = ctx.backend.map_tiles(pull_piece, (x, dz), length)
        return dx, xp.reshape(dmatrix, kernel.shape)

    return ctx.backend.map_tiles(lambda x: (xp.matmul(patches(x), matrix), None), (x,), length)[0], pullback


def convolve_by_library(ctx, x, kernel, windows: Windows, groups: int = 1):
    """Return what `convolve` returns, for any number of groups, or None if the library is not faster."""
    result = ctx.backend.convolve(windows, x, kernel, groups)
    if result is None:
        return None
    y, pull = result

    def pullback(dz):
        dx, dkernel = pull(ctx.xp.reshape(dz, y.shape))
        return dx if ctx.needs_input_gradient else None, dkernel

    return ctx.xp.reshape(y, (-1, y.shape[-1])), pullback


def convolve_transposed(ctx, x, kernel, windows: Windows):
    """Return (batch, *windows.spatial, filters) of the transposed convolution, and its pullback.

    x : (batch, *windows.counts, channels); kernel : (*size, filters, channels).
    """
    if (result := ctx.backend.convolve(windows, x, kernel, transposed=True)) is not None:
        y, pull = result
        return y, lambda dy: pull(ctx.xp.reshape(dy, y.shape))
    xp, (filters, channels) = ctx.xp, kernel.shape[-2:]
    matrix = xp.reshape(kernel, (-1, channels))
    rows = xp.reshape(x, (-1, channels))

    def pullback(dy):
        dy = xp.reshape(dy, (x.shape[0], *windows.spatial, filters))
        patches = xp.reshape(ctx.backend.patches(dy, windows), (-1, matrix.shape[0]))
        dkernel = xp.reshape(xp.matmul(patches.T, rows), kernel.shape)
        if not ctx.needs_input_gradient:
            return None, dkernel
        return xp.reshape(xp.matmul(patches, matrix), x.shape), dkernel

    return _from_patches(ctx, xp.matmul(rows, matrix.T), windows), pullback


def _from_patches(ctx, gradients, windows):
    """Return dL/dx from the gradients of its patches, (batch * windows, elements)."""
    gradients = ctx.xp.reshape(gradients, (-1, *windows.counts, gradients.shape[-1]))
    return ctx.backend.from_patches(gradients, windows)


def _samples_at_a_time(batch, elements, budget, windows) -> int:
    """Return for how many samples patches fit into a budget of bytes, at 4 bytes an element."""
    pieces = 1 if windows.is_whole else min(batch, math.ceil(4 * batch * elements / budget))
    return max(1, math.ceil(batch / max(pieces, 1)))


class Convolution(Layer):
    """Base of all convolutions: bias, activation and penalties, after the sum over the window."""

    rank = 2
    paddings = PADDINGS

    strides: tuple[int, ...]
    dilation_rate: tuple[int, ...]
    kernel_size: tuple[int, ...]

    def _set_window(self, kernel_size, strides, padding, data_format, dilation_rate):
        self.kernel_size = spread(self, "kernel_size", kernel_size, self.rank)
        self.strides = spread(self, "strides", strides, self.rank)
        self.padding = padding_argument(self, padding, self.rank, self.paddings)
        self.data_format = channels_last(self, data_format)
        self.dilation_rate = spread(self, "dilation_rate", dilation_rate, self.rank)

    def _set_output(self, activation, use_bias, bias_initializer, bias_regularizer, activity_regularizer):
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.bias_initializer = initializers.get(bias_initializer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.activity_regularizer = regularizers.get(activity_regularizer)

    def declare_weights(self):
        """Yield the bias; a subclass yields its kernels first."""
        if self.use_bias:
            yield Weight.of(self, "bias", lambda in_shape: self.out_shape(in_shape)[-1:])

    def windows(self, in_shape) -> Windows:
        """Return the windows over samples of `in_shape`."""
        return windows_of(self, in_shape, self.kernel_size, self.strides, self.dilation_rate, self.padding)

    def convolve(self, ctx, x, kernel, windows):
        """Return the sums over the windows, and their pullback to x and the kernel."""
        raise NotImplementedError

    def forward(self, ctx, params, x):
        sums, pull_sums = self.convolve(ctx, x, params["kernel"], self.windows(x.shape[1:]))
        y, pull_output = self.finish(ctx, params, sums, self.out_shape(x.shape[1:]))

        def pullback(dy):
            dz, grads = pull_output(dy)
            dx, dkernel = pull_sums(dz)
            return dx, {"kernel": dkernel, **grads}

        return y, pullback

    def finish(self, ctx, params, sums, out_shape):
        """Return activation(sums + bias) in the shape of the output, and its pullback to sums and bias."""
        xp, filters = ctx.xp, out_shape[-1]
        rows = sums if sums.ndim == 2 else xp.reshape(sums, (-1, filters))
        y, saved = self.activation.run(ctx, rows, params.get("bias"), overwrite=0)
        batch = rows.shape[0] // size(out_shape[:-1])

        def pullback(dy):
            dy = xp.reshape(dy, (-1, filters))
            if self.activity_regularizer is not None:
                dy = dy + self.activity_regularizer.gradient(xp, y) / batch
            dz = self.activation.pull(ctx, dy, saved)
            return dz, {"bias": xp.sum(dz, axis=0)} if self.use_bias else {}

        if self.activity_regularizer is not None:
            ctx.add_penalty(self.activity_regularizer.penalty(xp, y) / batch)
        return xp.reshape(y, (batch, *out_shape)), pullback


class _Conv(Convolution):
    """Convolution over `rank` axes, all channels of a group together."""

    def __init__(
        self,
        filters: int,
        kernel_size,
        strides=1,
        padding="valid",
        data_format: str | None = None,
        dilation_rate=1,
        groups: int = 1,
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
        self.groups = positive_int(self, "groups", groups)
        if self.filters % self.groups:
            raise ValueError(
                f"{type(self).__name__}: filters must be a multiple of groups, got filters={filters}, groups={groups}"
            )
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self._set_output(activation, use_bias, bias_initializer, bias_regularizer, activity_regularizer)

    def declare_weights(self):
        size, filters = self.kernel_size, self.filters
        yield Weight.of(self, "kernel", lambda in_shape: (*size, in_shape[-1] // self.groups, filters))
        yield from super().declare_weights()

    def out_shape(self, in_shape):
        counts = self.windows(in_shape).counts
        if in_shape[-1] % self.groups:
            raise ValueError(
                f"{type(self).__name__}: the input's channels must be a multiple of groups, got {in_shape[-1]} "
                f"channels and groups={self.groups}"
            )
        return (*counts, self.filters)

    def convolve(self, ctx, x, kernel, windows):
        if self.groups == 1:
            return convolve(ctx, x, kernel, windows)
        if (result := convolve_by_library(ctx, x, kernel, windows, self.groups)) is not None:
            return result
        xp, channels, filters = ctx.xp, kernel.shape[-2], self.filters // self.groups
        inputs = [slice(i * channels, (i + 1) * channels) for i in range(self.groups)]
        outputs = [slice(i * filters, (i + 1) * filters) for i in range(self.groups)]
        runs = [
            convolve(ctx, x[..., i], kernel[..., o], windows) for i, o in zip(inputs, outputs, strict=True)
        ]

        def pullback(dz):
            pairs = [pull(dz[..., o]) for (_, pull), o in zip(runs, outputs, strict=True)]
            dx = xp.concat([dx for dx, _ in pairs], axis=-1) if ctx.needs_input_gradient else None
            return dx, xp.concat([dkernel for _, dkernel in pairs], axis=-1)

        return xp.concat([rows for rows, _ in runs], axis=-1), pullback

    def flops(self, in_shape):
        *counts, filters = self.out_shape(in_shape)
        products = math.prod(self.kernel_size) * in_shape[-1] // self.groups
        return math.prod(counts) * filters * (2 * products + (1 if self.use_bias else 0))


@register("conv1d")
class Conv1D(_Conv):
    """Convolution over one axis: (batch, steps, channels) -> (batch, new steps, filters).

    Parameters
    ----------
    padding : {"valid", "same", "causal"}, int or (int, int)
        As in `Conv2D`; "causal" pads only in front, so that no output depends on later steps.
    filters, kernel_size, ...
        As in `Conv2D`, with one number in place of two.

    Examples
    --------
    >>> import nnx
    >>> layer = nnx.layers.Conv1D(1, 2, padding="causal", kernel_initializer="ones")
    >>> nnx.apply(layer, [[[1.0], [2.0], [3.0]]])[0, :, 0]
    array([1., 3., 5.], dtype=float32)
    """

    rank = 1
    paddings = (*PADDINGS, "causal")


@register("conv2d")
class Conv2D(_Conv):
    """Convolution over two axes: (batch, height, width, channels) -> (batch, new height, new width, filters).

    Parameters
    ----------
    filters : int
        Number of output channels.
    kernel_size, strides, dilation_rate : int or (int, int)
        The size of the window, the distance between windows, and between the elements of a window.
    padding : {"valid", "same"}, int, (int, int) or ((int, int), (int, int))
        Zeros around the input: none; enough for ceil(length / strides) outputs; or so many.
    data_format : "channels_last", optional
        The only format.
    groups : int
        Number of groups of channels and filters; the filters of a group see only its channels.
    activation : str or Activation, optional
    use_bias : bool
    kernel_initializer, bias_initializer : str or Initializer
        Starting weights: kernel (height, width, channels / groups, filters), bias (filters,).
    kernel_regularizer, bias_regularizer, activity_regularizer : str or Regularizer, optional
        As in `Dense`.

    Examples
    --------
    >>> import nnx
    >>> layer = nnx.layers.Conv2D(1, 3, padding="same", kernel_initializer="ones")
    >>> nnx.apply(layer, [[[[1.0], [1.0]], [[1.0], [1.0]]]])[0, :, :, 0]
    array([[4., 4.],
           [4., 4.]], dtype=float32)
    """
