"""Batch normalisation: each feature is normalised to zero mean and unit variance over the batch, then
gets a learnt scale and offset,

    y = gamma * (x - mean) / sqrt(variance + epsilon) + beta.

Training uses mean and variance of the batch, and updates moving averages of them; inference uses the
moving averages. Masked time steps are normalised too, but do not count in mean and variance.

Source: Ioffe and Szegedy, "Batch Normalization", 2015 (arXiv:1502.03167).
"""

from nnx import initializers, kernels
from nnx.arguments import expect_range
from nnx.layers.base import Layer, Weight, describe_shape, expect_features, register, size
from nnx.random import generator


@register("batch_normalization")
class BatchNormalization(Layer):
    """Normalise each feature over the batch: (batch, ..., features) -> the same shape.

    Parameters
    ----------
    axis : int
        The axis of features, counted with the batch axis; mean and variance are over all other axes.
    momentum : float
        Share of its old value that a moving average keeps at each step.
    epsilon : float
        Added to the variance, so that a constant feature maps to `beta`.
    center, scale : bool
        Whether there is a learnt offset `beta`, and a learnt scale `gamma`.

    Examples
    --------
    >>> import nnx
    >>> x = [[1.0, 10.0], [3.0, 30.0]]
    >>> nnx.apply(nnx.layers.BatchNormalization(epsilon=0.0), x, training=True)
    array([[-1., -1.],
           [ 1.,  1.]], dtype=float32)
    """

    supports_masking = True
    full_precision = True  # sums over a batch overflow float16

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer="zeros",
        gamma_initializer="ones",
        moving_mean_initializer="zeros",
        moving_variance_initializer="ones",
        **settings,
    ):
        super().__init__(**settings)
        expect_range(self, at_least=0, at_most=1, momentum=momentum)
        expect_range(self, at_least=0, epsilon=epsilon)
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)

    def _features(self, in_shape):
        expect_features(self, in_shape)
        rank = len(in_shape) + 1
        if self.axis in (0, -rank) or not -rank < self.axis < rank:
            raise ValueError(
                f"BatchNormalization: axis {self.axis} names no feature axis of input of shape "
                f"{describe_shape(in_shape)}"
            )
        return ((0, *in_shape)[self.axis],)

    def declare_weights(self):
        if self.scale:
            yield Weight.of(self, "gamma", self._features)
        if self.center:
            yield Weight.of(self, "beta", self._features)

    def out_shape(self, in_shape):
        self._features(in_shape)
        return in_shape

    def init_state(self, in_shape):
        features = self._features(in_shape)
        rng = generator(0)
        return {
            "moving_mean": self.moving_mean_initializer(rng, features),
            "moving_variance": self.moving_variance_initializer(rng, features),
        }

    def forward(self, ctx, params, x):
        xp, axis = ctx.xp, self.axis % x.ndim
        others = tuple(i for i in range(x.ndim) if i != axis)
        broadcast = tuple(n if i == axis else 1 for i, n in enumerate(x.shape))
        gamma, beta = (
            None if w is None else xp.reshape(w, broadcast) for w in map(params.get, ("gamma", "beta"))
        )

        n, weight = size(x.shape) // x.shape[axis], None
        if ctx.training:
            if ctx.mask is None:
                mean = xp.mean(x, axis=others, keepdims=True)
                variance = xp.mean((x - mean) ** 2, axis=others, keepdims=True)
            else:
                weight = _weight(xp, ctx.mask, x)
                n = xp.maximum(xp.sum(weight, axis=others, keepdims=True), 1.0)
                mean = xp.sum(x * weight, axis=others, keepdims=True) / n
                variance = xp.sum((x - mean) ** 2 * weight, axis=others, keepdims=True) / n
            for name, batch in (("moving_mean", mean), ("moving_variance", variance)):
                old, new = ctx.state[name], xp.reshape(batch, ctx.state[name].shape)
                ctx.state[name] = old * self.momentum + new * (1 - self.momentum)
        else:
            mean = xp.reshape(ctx.state["moving_mean"], broadcast)
            variance = xp.reshape(ctx.state["moving_variance"], broadcast)

        inverse = 1.0 / xp.sqrt(variance + self.epsilon)
        normalised = ctx.kernel(kernels.centre_and_scale, x, mean, inverse, 0.0)
        y = normalised
        if gamma is not None:
            y = y * gamma
        if beta is not None:
            y = y + beta

        def pullback(dy):
            grads, scale = {}, inverse if gamma is None else inverse * gamma
            total = xp.sum(dy, axis=others, keepdims=True)
            along = xp.sum(dy * normalised, axis=others, keepdims=True)
            if gamma is not None:
                grads["gamma"] = xp.reshape(along, (-1,))
            if beta is not None:
                grads["beta"] = xp.reshape(total, (-1,))
            if not ctx.training:
                return dy * scale, grads
            # Mean and variance depend on x too: remove from the gradient its mean and its component
            # along the normalised input.
            through_statistics = total / n + normalised * (along / n)
            if weight is not None:
                through_statistics = through_statistics * weight
            return (dy - through_statistics) * scale, grads

        return y, pullback

    def flops(self, in_shape):
        return 4 * size(in_shape)


def _weight(xp, mask, x):
    """Return 1 for each element of x where a mask, (batch, time), is True, else 0."""
    counts = xp.reshape(mask, (*mask.shape, *(1,) * (x.ndim - mask.ndim)))
    return xp.astype(xp.broadcast_to(counts, x.shape), x.dtype)
