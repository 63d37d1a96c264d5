"""Sliding windows over the spatial axes of a batch, for convolution and pooling.

A window of `size` starts at every `strides`-th position; its elements are `dilation` apart. The k-th
elements of all windows form one strided slice of the input. So there are as many slices as a window has
elements, and no loop over pixels.
Source: Dumoulin and Visin, "A guide to convolution arithmetic", 2016 (arXiv:1603.07285).
"""

import itertools
import math

from nnx.layers.base import Layer, Shape, describe_shape, positive_int

PADDINGS = ("valid", "same")


class Windows:
    """Windows over input of one shape (*spatial, channels), an entry for each spatial axis.

    Attributes
    ----------
    size, strides, dilation : tuple of int
    padding : tuple of (int, int)
        Elements added before and after the input.
    counts : tuple of int
        Number of windows: the spatial shape of the output.
    """

    def __init__(self, spatial: Shape, size, strides, dilation, padding, counts=None):
        self.spatial, self.size, self.strides, self.dilation = spatial, size, strides, dilation
        self.padding = padding
        self.counts = counts or tuple(
            (n + before + after - reach) // stride + 1
            for n, (before, after), reach, stride in zip(spatial, padding, self.reach, strides, strict=True)
        )

    @property
    def reach(self) -> Shape:
        """The length that a window spans."""
        return reach(self.size, self.dilation)

    @property
    def is_padded(self) -> bool:
        """Whether the input is padded."""
        return any(width for pair in self.padding for width in pair)

    @property
    def is_whole(self) -> bool:
        """Whether the windows are the elements of the input: those of a 1x1 convolution."""
        return not self.is_padded and self.counts == self.spatial and math.prod(self.size) == 1

    def keys(self) -> list[tuple]:
        """Return, for each element of a window, the index that selects it in all windows."""
        axes = [
            [slice(i * step, i * step + (count - 1) * stride + 1, stride) for i in range(length)]
            for length, step, stride, count in zip(
                self.size, self.dilation, self.strides, self.counts, strict=True
            )
        ]
        return [(slice(None), *key, ...) for key in itertools.product(*axes)]

    def pad(self, backend, x, value: float = 0.0):
        """Return the input with its padding: (batch, *spatial, channels) -> (batch, *padded, channels)."""
        return backend.pad(x, ((0, 0), *self.padding, (0, 0)), value) if self.is_padded else x

    def crop(self, x):
        """Return padded input without its padding."""
        pairs = zip(self.padding, self.spatial, strict=True)
        return x[(slice(None), *(slice(b, b + n) for (b, _), n in pairs), ...)] if self.is_padded else x

    def slices(self, backend, x, value: float = 0.0) -> list:
        """Return, for each element of a window, its values in all windows, (batch, *counts, channels)."""
        if self.is_whole:
            return [x]
        x = self.pad(backend, x, value)
        return [x[key] for key in self.keys()]

    def unslice(self, backend, gradients):
        """Return the gradient of the input from those of its slices: the transpose of `slices`."""
        if self.is_whole:
            return gradients[0]
        batch, *_, channels = gradients[0].shape
        padded = [n + before + after for n, (before, after) in zip(self.spatial, self.padding, strict=True)]
        return self.crop(backend.unslice((batch, *padded, channels), gradients, self.keys()))


def reach(size, dilation) -> Shape:
    """Return the length that a window spans."""
    return tuple((length - 1) * step + 1 for length, step in zip(size, dilation, strict=True))


def windows_of(layer: Layer, in_shape: Shape, size, strides, dilation, padding) -> Windows:
    """Return the windows of a layer over samples of `in_shape`.

    Raises
    ------
    ValueError
        If the shape has the wrong number of axes, or the window is larger than the padded input.
    """
    expect_spatial(layer, in_shape, len(size))
    spatial, lengths = in_shape[:-1], reach(size, dilation)
    pairs = _padding_of(padding, spatial, strides, lengths)
    for n, (before, after), length in zip(spatial, pairs, lengths, strict=True):
        if n + before + after < length:
            raise ValueError(
                f"{type(layer).__name__}: a window of {lengths} does not fit into input of shape "
                f"{describe_shape(in_shape)}: make the window smaller, or use padding='same'"
            )
    return Windows(spatial, size, strides, dilation, pairs)


def _padding_of(padding, spatial, strides, lengths) -> tuple[tuple[int, int], ...]:
    if padding == "valid":
        return ((0, 0),) * len(spatial)
    if padding == "causal":
        return tuple((length - 1, 0) for length in lengths)
    if padding == "same":
        missing = [
            max((math.ceil(n / stride) - 1) * stride + length - n, 0)
            for n, stride, length in zip(spatial, strides, lengths, strict=True)
        ]
        return tuple((total // 2, total - total // 2) for total in missing)
    return padding


def expect_spatial(layer: Layer, in_shape: Shape, rank: int) -> None:
    """Raise a ValueError unless samples have shape (*spatial, channels), with `rank` spatial axes."""
    if len(in_shape) == rank + 1 and 0 not in in_shape:
        return
    wanted = "(batch, steps, channels)" if rank == 1 else "(batch, height, width, channels)"
    remedy = {
        rank: ": add a channel axis: x[..., None]",
        rank - 1: ": give each sample its spatial axes and channels, such as by a Reshape layer before",
    }.get(len(in_shape), "")
    raise ValueError(
        f"{type(layer).__name__} expects input of shape {wanted}, got {describe_shape(in_shape)}{remedy}"
    )


# Arguments of layers


def spread(layer: Layer, argument: str, value, rank: int, least: int = 1) -> tuple[int, ...]:
    """Return a whole number for each spatial axis, given one for all or one for each."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank
    if len(values) != rank:
        raise ValueError(
            f"{type(layer).__name__}: {argument} must be a whole number or {rank} of them, got {value!r}"
        )
    if least == 0 and all(map(_is_width, values)):
        return tuple(map(int, values))
    return tuple(positive_int(layer, argument, n) for n in values)


def pairs(layer: Layer, argument: str, value, rank: int) -> tuple[tuple[int, int], ...]:
    """Return (before, after) for each spatial axis, given one number, one an axis, or pairs."""
    values = list(value) if isinstance(value, (tuple, list)) else [value] * rank
    if rank == 1 and len(values) == 2:
        values = [values]
    pairs = [tuple(v) if isinstance(v, (tuple, list)) else (v, v) for v in values]
    if len(pairs) != rank or any(len(pair) != 2 for pair in pairs) or not all(map(_is_width, sum(pairs, ()))):
        example = "1 or (1, 2)" if rank == 1 else "1, (1, 2) or ((1, 2), (3, 4))"
        raise ValueError(
            f"{type(layer).__name__}: {argument} must be whole numbers from 0 on, such as {example}, got {value!r}"
        )
    return tuple((int(before), int(after)) for before, after in pairs)


def _is_width(n) -> bool:
    return hasattr(n, "__index__") and not isinstance(n, bool) and n >= 0


def padding_argument(layer: Layer, padding, rank: int, names=PADDINGS):
    """Return the checked padding: one of the names, or (before, after) for each spatial axis."""
    if not isinstance(padding, str):
        return pairs(layer, "padding", padding, rank)
    if padding.lower() not in names:
        known = ", ".join(map(repr, names))
        raise ValueError(f"{type(layer).__name__}: padding must be one of {known}, got {padding!r}")
    return padding.lower()


def channels_last(layer: Layer, data_format: str | None) -> str | None:
    """Return `data_format` if it is None or "channels_last", else raise a ValueError."""
    if data_format not in (None, "channels_last"):
        raise ValueError(
            f"{type(layer).__name__}: data_format must be 'channels_last', got {data_format!r}: "
            f"move the channels of your data last, np.moveaxis(x, 1, -1)"
        )
    return data_format
