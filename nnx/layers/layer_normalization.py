"""Normalisation of each sample, the same in training and inference:

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta

LayerNormalization takes mean and variance over the features, GroupNormalization over positions and a
group of channels; RMSNormalization divides by the root of the mean square, without subtracting a mean.

Sources: Ba, Kiros and Hinton, "Layer Normalization", 2016 (arXiv:1607.06450); Wu and He, "Group
Normalization", 2018 (arXiv:1803.08494); Zhang and Sennrich, "Root Mean Square Layer
Normalization", 2019 (arXiv:1910.07467).
"""

from nnx import initializers, kernels, regularizers
from nnx.arguments import expect_range
from nnx.layers.base import Layer, Weight, describe_shape, expect_features, register, size


class _SampleNormalization(Layer):
    """Base of normalisations with a learnt scale `gamma` and offset `beta` along some axes."""

    full_precision = True  # sums of squares overflow float16

    def __init__(
        self,
        axis=-1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer="zeros",
        gamma_initializer="ones",
        beta_regularizer=None,
        gamma_regularizer=None,
        **settings,
    ):
        super().__init__(**settings)
        self.axis = axis if isinstance(axis, int) else list(axis)
        expect_range(self, at_least=0, epsilon=epsilon)
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)

    def declare_weights(self):
        if self.scale:
            yield Weight.of(self, "gamma", lambda in_shape: _lengths(self, in_shape))
        if self.center:
            yield Weight.of(self, "beta", lambda in_shape: _lengths(self, in_shape))

    def out_shape(self, in_shape):
        _lengths(self, in_shape)
        return in_shape

    def forward(self, ctx, params, x):
        xp, learnt = ctx.xp, _axes(self.axis, x.ndim)
        gamma, beta = (params.get(name) for name in ("gamma", "beta"))
        normalised, pull_normalised = self.normalise(ctx, x)
        y = normalised
        if gamma is not None:
            y = y * _spread(xp, gamma, x, learnt)
        if beta is not None:
            y = y + _spread(xp, beta, x, learnt)

        def pullback(dy):
            grads, d = {}, dy
            if gamma is not None:
                grads["gamma"] = _gathered(xp, dy * normalised, gamma, learnt)
                d = dy * _spread(xp, gamma, x, learnt)
            if beta is not None:
                grads["beta"] = _gathered(xp, dy, beta, learnt)
            return (pull_normalised(d) if ctx.needs_input_gradient else None), grads

        return y, pullback

    def normalise(self, ctx, x):
        """Return x with zero mean and unit variance, and its pullback."""
        raise NotImplementedError

    def flops(self, in_shape):
        return 8 * size(in_shape)


@register("layer_normalization")
class LayerNormalization(_SampleNormalization):
    """Normalise each sample over its features: (batch, ..., features) -> the same shape.

    Parameters
    ----------
    axis : int or list of int
        The axes, counted with the batch axis, over which mean and variance are taken; `gamma` and `beta`
        have the shape of these axes.
    epsilon : float
        Added to the variance, so that a constant sample maps to `beta`.
    center, scale : bool
        Whether there is a learnt offset `beta`, and a learnt scale `gamma`.
    beta_initializer, gamma_initializer : str or Initializer
    beta_regularizer, gamma_regularizer : str or Regularizer, optional

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.LayerNormalization(epsilon=0.0), [[1.0, 3.0], [10.0, 30.0]])
    array([[-1.,  1.],
           [-1.,  1.]], dtype=float32)
    """

    supports_masking = True

    def normalise(self, ctx, x):
        return standardise(ctx, x, _axes(self.axis, x.ndim), self.epsilon)


@register("group_normalization")
class GroupNormalization(_SampleNormalization):
    """Normalise each group of channels of each sample: (batch, ..., channels) -> the same shape.

    Parameters
    ----------
    groups : int
        Number of groups of channels: 1 normalises the whole sample; -1, or the number of channels,
        normalises each channel separately (instance normalisation).
    axis : int
        The axis of channels, counted with the batch axis.
    epsilon, center, scale, ...
        As for `LayerNormalization`.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.GroupNormalization(2, epsilon=0.0), [[1.0, 3.0, 10.0, 30.0]])
    array([[-1.,  1., -1.,  1.]], dtype=float32)
    """

    def __init__(self, groups: int = 32, axis: int = -1, epsilon: float = 1e-3, **settings):
        super().__init__(axis, epsilon, **settings)
        if groups != -1 and groups < 1:
            raise ValueError(
                f"GroupNormalization: groups must be positive, or -1 for one a channel, got {groups}"
            )
        self.groups = groups

    def _groups_of(self, channels):
        return channels if self.groups == -1 else self.groups

    def out_shape(self, in_shape):
        (channels,) = _lengths(self, in_shape)
        if channels % self._groups_of(channels):
            raise ValueError(
                f"GroupNormalization: {channels} channels, of input {describe_shape(in_shape)}, cannot be divided "
                f"into {self.groups} groups: choose groups that divides {channels}"
            )
        return in_shape

    def normalise(self, ctx, x):
        (axis,) = _axes(self.axis, x.ndim)
        groups = self._groups_of(x.shape[axis])
        divided = (*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
        others = tuple(i for i in range(1, x.ndim + 1) if i != axis)
        normalised, pull = standardise(ctx, ctx.xp.reshape(x, divided), others, self.epsilon)

        def pullback(d):
            return ctx.xp.reshape(pull(ctx.xp.reshape(d, divided)), x.shape)

        return ctx.xp.reshape(normalised, x.shape), pullback


@register("rms_normalization")
class RMSNormalization(Layer):
    """Divide each sample by its root mean square: y = scale * x / sqrt(mean(x**2) + epsilon).

    (batch, ..., features) -> the same shape.

    Parameters
    ----------
    axis : int or list of int
        The axes, counted with the batch axis, over which the mean is taken; `scale` has their shape.
    epsilon : float
        Added to the mean square, so that zeros stay zeros.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.RMSNormalization(epsilon=0.0), [[1.0, 7.0]])
    array([[0.2, 1.4]], dtype=float32)
    """

    full_precision = True  # sums of squares overflow float16
    supports_masking = True

    def __init__(self, axis=-1, epsilon: float = 1e-6, **settings):
        super().__init__(**settings)
        self.axis = axis if isinstance(axis, int) else list(axis)
        expect_range(self, at_least=0, epsilon=epsilon)
        self.epsilon = epsilon

    def declare_weights(self):
        yield Weight("scale", lambda in_shape: _lengths(self, in_shape), initializers.get("ones"))

    def out_shape(self, in_shape):
        _lengths(self, in_shape)
        return in_shape

    def forward(self, ctx, params, x):
        xp, axes = ctx.xp, _axes(self.axis, x.ndim)
        scale = _spread(xp, params["scale"], x, axes)
        inverse = 1.0 / xp.sqrt(xp.mean(x * x, axis=axes, keepdims=True) + self.epsilon)
        normalised = x * inverse

        def pullback(dy):
            grads = {"scale": _gathered(xp, dy * normalised, params["scale"], axes)}
            if not ctx.needs_input_gradient:
                return None, grads
            # The mean square depends on x too: remove from the gradient its component along x.
            d = dy * scale
            return (d - normalised * xp.mean(d * normalised, axis=axes, keepdims=True)) * inverse, grads

        return normalised * scale, pullback

    def flops(self, in_shape):
        return 4 * size(in_shape)


def standardise(ctx, x, axes, epsilon):
    """Return x with zero mean and unit variance over some axes, and the pullback."""
    xp = ctx.xp
    mean = xp.mean(x, axis=axes, keepdims=True)
    inverse = 1.0 / xp.sqrt(xp.mean((x - mean) ** 2, axis=axes, keepdims=True) + epsilon)
    normalised = ctx.kernel(kernels.centre_and_scale, x, mean, inverse, 0.0)

    def pullback(d):
        # Mean and variance depend on x too: remove from the gradient its mean and its component along
        # the normalised input.
        along = xp.mean(d * normalised, axis=axes, keepdims=True)
        return (d - xp.mean(d, axis=axes, keepdims=True) - normalised * along) * inverse

    return normalised, pullback


def _axes(axis, rank: int) -> tuple[int, ...]:
    """Return one axis or several, counted from the first, in increasing order."""
    return tuple(sorted(i % rank for i in ([axis] if isinstance(axis, int) else axis)))


def _lengths(layer, in_shape) -> tuple[int, ...]:
    """Return the lengths of the layer's axes, or raise a ValueError if it has no such axes."""
    expect_features(layer, in_shape)
    rank, axes = len(in_shape) + 1, [layer.axis] if isinstance(layer.axis, int) else layer.axis
    inside = [i for i in axes if -rank < i < rank and i != 0]
    if not axes or len({i % rank for i in inside}) < len(axes):
        raise ValueError(
            f"{type(layer).__name__}: axis={layer.axis} does not fit input of shape {describe_shape(in_shape)}: name "
            f"each axis once, from 1 to {rank - 1} or from the end, -1 for the last; axis 0 is the batch"
        )
    return tuple(in_shape[i - 1] for i in _axes(layer.axis, rank))


def _spread(xp, weight, x, axes):
    """Return a weight of the shape of some axes of x, reshaped to broadcast with x."""
    return xp.reshape(weight, tuple(n if i in axes else 1 for i, n in enumerate(x.shape)))


def _gathered(xp, values, weight, axes):
    """Return the sum of values over all axes but some, in the shape of the weight."""
    others = tuple(i for i in range(values.ndim) if i not in axes)
    return xp.reshape(xp.sum(values, axis=others), weight.shape)
