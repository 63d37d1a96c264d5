"""Positions of time steps, which attention by itself ignores.

SinusoidalPositions   y[t] = x[t] + sin and cos of t at wavelengths from 2 pi to 2 pi max_wavelength
PositionEmbedding     y[t] = x[t] + a learnt vector
RotaryPositions       each pair of features (a, b) is rotated by an angle proportional to t:
                      (a cos - b sin, a sin + b cos), so that products depend only on distances

Sources: Vaswani et al., "Attention is all you need", 2017 (arXiv:1706.03762), section 3.5; Su et al.,
"RoFormer", 2021 (arXiv:2104.09864).
"""

import math

from nnx import initializers, kernels, regularizers
from nnx.arguments import expect_range
from nnx.layers.base import HALF, Layer, Weight, describe_shape, positive_int, register, size


class _Positions(Layer):
    """Base of layers that add positions to time steps: (batch, time, features) -> the same shape."""

    supports_masking = True

    def out_shape(self, in_shape):
        if len(in_shape) != 2:
            raise ValueError(
                f"{type(self).__name__} expects input of shape (batch, time, features), got {describe_shape(in_shape)}"
            )
        return in_shape

    def flops(self, in_shape):
        return size(in_shape)


@register("sinusoidal_positions")
class SinusoidalPositions(_Positions):
    """Add sines and cosines of the position: (batch, time, features) -> the same shape.

    Feature 2i of step t gets sin(t / max_wavelength**(2i / features)), feature 2i + 1 the cosine.

    Parameters
    ----------
    max_wavelength : float
        2 pi times this is about the wavelength of the last features.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.SinusoidalPositions(), [[[0.0, 0.0], [0.0, 0.0]]])[0].round(2)
    array([[0.  , 1.  ],
           [0.84, 0.54]], dtype=float32)
    """

    def __init__(self, max_wavelength: float = 10000.0, **settings):
        super().__init__(**settings)
        expect_range(self, above=0, max_wavelength=max_wavelength)
        self.max_wavelength = max_wavelength

    def forward(self, ctx, params, x):
        xp, (_, steps, features) = ctx.xp, x.shape
        angles = _angles(ctx, x, steps, features, (features + 1) // 2, self.max_wavelength)
        pairs = xp.stack([xp.sin(angles), xp.cos(angles)], axis=-1)
        waves = xp.reshape(pairs, (steps, -1))[:, :features]
        return ctx.kernel(kernels.add, x, xp.astype(waves, x.dtype)), lambda dy: (dy, {})


@register("position_embedding")
class PositionEmbedding(_Positions):
    """Add a learnt vector for each position: (batch, time, features) -> the same shape.

    Parameters
    ----------
    max_length : int
        The largest number of time steps of a sample.
    embeddings_initializer : str or Initializer
        Starting vectors: embeddings (max_length, features).
    embeddings_regularizer : str or Regularizer, optional

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.PositionEmbedding(5, "ones"), [[[0.0, 0.0], [1.0, 2.0]]])
    array([[[1., 1.],
            [2., 3.]]], dtype=float32)
    """

    def __init__(
        self,
        max_length: int,
        embeddings_initializer="glorot_uniform",
        embeddings_regularizer=None,
        **settings,
    ):
        super().__init__(**settings)
        self.max_length = positive_int(self, "max_length", max_length)
        self.embeddings_initializer = initializers.get(embeddings_initializer)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)

    def declare_weights(self):
        yield Weight.of(self, "embeddings", lambda in_shape: (self.max_length, in_shape[1]))

    def out_shape(self, in_shape):
        if super().out_shape(in_shape)[0] > self.max_length:
            raise ValueError(
                f"PositionEmbedding: samples of {in_shape[0]} time steps are longer than max_length={self.max_length}: "
                f"enlarge max_length, or cut them"
            )
        return in_shape

    def forward(self, ctx, params, x):
        xp, table, steps = ctx.xp, params["embeddings"], x.shape[1]

        def pullback(dy):
            total, left = xp.sum(dy, axis=0), self.max_length - steps
            return dy, {"embeddings": ctx.backend.pad(total, ((0, left), (0, 0))) if left else total}

        return ctx.kernel(kernels.add, x, table[:steps, :]), pullback


@register("rotary_positions")
class RotaryPositions(_Positions):
    """Rotate pairs of features by angles proportional to the position: (batch, time, features) -> the same.

    Feature i is paired with feature i + features/2, as in KerasHub, GPT-NeoX and LLaMA, and the pair
    at step t is rotated by t / max_wavelength**(2i / features). `MultiHeadAttention(rotary=True)` rotates
    the queries and keys of each head in this way.

    Parameters
    ----------
    max_wavelength : float
        As for `SinusoidalPositions`.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.RotaryPositions(), [[[1.0, 0.0], [1.0, 0.0]]])[0].round(2)
    array([[1.  , 0.  ],
           [0.54, 0.84]], dtype=float32)
    """

    def __init__(self, max_wavelength: float = 10000.0, **settings):
        super().__init__(**settings)
        expect_range(self, above=0, max_wavelength=max_wavelength)
        self.max_wavelength = max_wavelength

    def out_shape(self, in_shape):
        if super().out_shape(in_shape)[1] % 2:
            raise ValueError(
                f"RotaryPositions needs an even number of features, got {describe_shape(in_shape)}"
            )
        return in_shape

    def forward(self, ctx, params, x):
        y, rotate_back = rotate(ctx, x, self.max_wavelength)
        return y, lambda dy: (rotate_back(dy), {})

    def flops(self, in_shape):
        return 3 * size(in_shape)


def rotate(ctx, x, max_wavelength):
    """Return x, (batch, time, ..., features), rotated by its positions, and the pullback."""
    xp, steps, half = ctx.xp, x.shape[1], x.shape[-1] // 2
    angles = _angles(ctx, x, steps, 2 * half, half, max_wavelength)
    angles = xp.reshape(angles, (steps, *(1 for _ in x.shape[3:]), half))
    cos, sin = xp.astype(xp.cos(angles), x.dtype), xp.astype(xp.sin(angles), x.dtype)

    def turn(x, sin):
        a, b = x[..., :half], x[..., half:]
        return xp.concat([a * cos - b * sin, b * cos + a * sin], axis=-1)

    return turn(x, sin), lambda dy: turn(dy, -sin)


def _angles(ctx, x, steps, features, count, max_wavelength):
    """Return t / max_wavelength**(2i / features) for t < steps and i < count, in float32 if x is half precision."""
    xp = ctx.xp
    dtype = xp.float32 if str(x.dtype).split(".")[-1] in HALF else x.dtype
    times, indices = (xp.astype(ctx.arange(n, "int32"), dtype) for n in (steps, count))
    frequencies = xp.exp(indices * (-2 * math.log(max_wavelength) / features))
    return xp.reshape(times, (-1, 1)) * xp.reshape(frequencies, (1, -1))
