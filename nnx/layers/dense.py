"""A fully connected layer: every output is a weighted sum of all inputs,

y = activation(x @ kernel + bias).
"""

from nnx import activations, initializers, regularizers
from nnx.layers.base import Layer, Weight, expect_features, positive_int, register, size


@register("dense")
class Dense(Layer):
    """Fully connected layer: (batch, ..., features) -> (batch, ..., units).

    Parameters
    ----------
    units : int
        Number of outputs.
    activation : str or Activation, optional
        Applied to the output; None for none.
    use_bias : bool
        Whether a bias is added.
    kernel_initializer, bias_initializer : str or Initializer
        Starting weights: kernel (features, units), bias (units,).
    kernel_regularizer, bias_regularizer, activity_regularizer : str or Regularizer, optional
        Penalties on the weights or on the output (the latter divided by the number of samples).

    Examples
    --------
    >>> import nnx
    >>> layer = nnx.layers.Dense(2, kernel_initializer="ones", bias_initializer="ones")
    >>> nnx.apply(layer, [[1.0, 2.0, 3.0]])
    array([[7., 7.]], dtype=float32)
    """

    supports_masking = True

    def __init__(
        self,
        units: int,
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
        self.units = positive_int(self, "units", units)
        self.activation = activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.activity_regularizer = regularizers.get(activity_regularizer)

    def declare_weights(self):
        yield Weight.of(self, "kernel", lambda in_shape: (in_shape[-1], self.units))
        if self.use_bias:
            yield Weight.of(self, "bias", (self.units,))

    def out_shape(self, in_shape):
        expect_features(self, in_shape)
        return (*in_shape[:-1], self.units)

    def forward(self, ctx, params, x):
        xp, kernel = ctx.xp, params["kernel"]
        rows = x if x.ndim == 2 else xp.reshape(x, (-1, x.shape[-1]))
        product = xp.matmul(rows, kernel)
        y, saved = self.activation.run(ctx, product, params.get("bias"), overwrite=0)

        def pullback(dy):
            dy = dy if dy.ndim == 2 else xp.reshape(dy, (-1, self.units))
            if self.activity_regularizer is not None:
                dy = dy + self.activity_regularizer.gradient(xp, y) / x.shape[0]
            dz = self.activation.pull(ctx, dy, saved)
            grads = {"kernel": xp.matmul(rows.T, dz)}
            if self.use_bias:
                grads["bias"] = xp.sum(dz, axis=0)
            if not ctx.needs_input_gradient:
                return None, grads
            dx = xp.matmul(dz, kernel.T)
            return dx if x.ndim == 2 else xp.reshape(dx, x.shape), grads

        if self.activity_regularizer is not None:
            ctx.add_penalty(self.activity_regularizer.penalty(xp, y) / x.shape[0])
        return y if x.ndim == 2 else xp.reshape(y, (*x.shape[:-1], self.units)), pullback

    def flops(self, in_shape):
        rows = size(in_shape[:-1])
        return rows * self.units * (2 * in_shape[-1] + (1 if self.use_bias else 0))
