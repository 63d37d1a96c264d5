"""Relu with a learnt slope: y = x where x > 0, else alpha * x.

Source: He et al., "Delving deep into rectifiers", 2015 (arXiv:1502.01852).
"""

from nnx import initializers, regularizers
from nnx.layers.base import Layer, Weight, describe_shape, expect_features, register, size


@register("prelu")
class PReLU(Layer):
    """Relu with a learnt slope below zero for each feature: any shape -> the same shape.

    Parameters
    ----------
    alpha_initializer : str or Initializer
        Starting slopes: alpha, of the shape of one sample, 1 along the shared axes.
    alpha_regularizer : str or Regularizer, optional
    shared_axes : int or list of int, optional
        Axes, counted with the batch axis, that share slopes: [1, 2] gives one slope for each channel of
        an image.

    Examples
    --------
    >>> import nnx
    >>> slope = nnx.initializers.Constant(0.1)
    >>> nnx.apply(nnx.layers.PReLU(slope), [[-1.0, 2.0]])
    array([[-0.1,  2. ]], dtype=float32)
    """

    supports_masking = True

    def __init__(self, alpha_initializer="Zeros", alpha_regularizer=None, shared_axes=None, **settings):
        super().__init__(**settings)
        self.alpha_initializer = initializers.get(alpha_initializer)
        self.alpha_regularizer = regularizers.get(alpha_regularizer)
        axes = [shared_axes] if isinstance(shared_axes, int) else shared_axes
        self.shared_axes = None if axes is None else list(axes)

    def declare_weights(self):
        yield Weight.of(self, "alpha", self._slopes)

    def _slopes(self, in_shape):
        shared = self.shared_axes or []
        return tuple(1 if axis in shared else n for axis, n in enumerate(in_shape, start=1))

    def out_shape(self, in_shape):
        expect_features(self, in_shape)
        shared = self.shared_axes or []
        if not all(1 <= axis <= len(in_shape) for axis in shared):
            raise ValueError(
                f"PReLU: shared_axes={shared} names an axis that input of shape {describe_shape(in_shape)} does not "
                f"have: count from 1, the first after the batch, to {len(in_shape)}"
            )
        return in_shape

    def forward(self, ctx, params, x):
        alpha = params["alpha"]

        def pullback(dy):
            axes = (0, *(self.shared_axes or ()))
            total = ctx.xp.sum(ctx.kernel(_slope_gradient, dy, x), axis=axes)
            grads = {"alpha": ctx.xp.reshape(total, alpha.shape)}
            return (ctx.kernel(_gradient, dy, x, alpha) if ctx.needs_input_gradient else None), grads

        return ctx.kernel(_prelu, x, alpha), pullback

    def flops(self, in_shape):
        return 3 * size(in_shape)


def _prelu(xp, x, alpha):
    return xp.maximum(x, 0.0) + xp.minimum(x, 0.0) * alpha


def _gradient(xp, dy, x, alpha):
    above = xp.astype(x > 0, dy.dtype)
    return dy * (above + (1.0 - above) * alpha)


def _slope_gradient(xp, dy, x):
    return dy * xp.minimum(x, 0.0)
