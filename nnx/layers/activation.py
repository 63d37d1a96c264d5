"""Activation functions as layers: y = f(x), element by element (softmax: along the last axis)."""

from nnx import activations
from nnx.layers.base import Layer, register


@register("activation")
class Activation(Layer):
    """Apply an activation function: any shape -> the same shape.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.Activation("relu"), [[-1.0, 2.0]])
    array([[0., 2.]], dtype=float32)
    """

    supports_masking = True

    def __init__(self, activation, **settings):
        super().__init__(**settings)
        self.activation = activations.get(activation)

    def forward(self, ctx, params, x):
        y, saved = self.activation.run(ctx, x)

        def pullback(dy):
            return self.activation.pull(ctx, dy, saved), {}

        return y, pullback


class OfActivation:
    """A setting that the layer shares with its activation: `negative_slope = OfActivation()`."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, layer, owner=None):
        return self if layer is None else getattr(layer.activation, self.name)

    def __set__(self, layer, value):
        setattr(layer.activation, self.name, value)


class _Named(Activation):
    """Base of the activation layers without settings."""

    function = "linear"

    def __init__(self, name: str | None = None, input_shape=None):
        super().__init__(self.function, name=name, input_shape=input_shape)


@register("linear")
class Linear(_Named):
    """y = x"""


@register("sigmoid")
class Sigmoid(_Named):
    """y = 1 / (1 + exp(-x))"""

    function = "sigmoid"


@register("tanh")
class Tanh(_Named):
    """y = tanh(x)"""

    function = "tanh"


@register("relu")
class ReLU(_Named):
    """y = max(x, 0)"""

    function = "relu"


@register("leaky_relu")
class LeakyReLU(Activation):
    """y = x where x > 0, else negative_slope * x."""

    negative_slope = OfActivation()

    def __init__(self, negative_slope: float = 0.3, name: str | None = None, input_shape=None):
        super().__init__(activations.LeakyReLU(negative_slope), name=name, input_shape=input_shape)


@register("elu")
class ELU(Activation):
    """y = x where x > 0, else alpha * (exp(x) - 1)."""

    alpha = OfActivation()

    def __init__(self, alpha: float = 1.0, name: str | None = None, input_shape=None):
        super().__init__(activations.ELU(alpha), name=name, input_shape=input_shape)


@register("selu")
class SELU(_Named):
    """y = scale * elu(x, alpha), self-normalising."""

    function = "selu"


@register("gelu")
class GELU(Activation):
    """y = x * Phi(x), exactly or by the tanh approximation."""

    approximate = OfActivation()

    def __init__(self, approximate: bool = False, name: str | None = None, input_shape=None):
        super().__init__(activations.GELU(approximate), name=name, input_shape=input_shape)


@register("silu", "swish")
class SiLU(_Named):
    """y = x * sigmoid(x), also called swish."""

    function = "silu"


@register("softplus")
class Softplus(_Named):
    """y = log(1 + exp(x))"""

    function = "softplus"


@register("softsign")
class Softsign(_Named):
    """y = x / (1 + |x|)"""

    function = "softsign"


@register("hard_sigmoid")
class HardSigmoid(_Named):
    """y = min(max(x / 6 + 1/2, 0), 1)"""

    function = "hard_sigmoid"


@register("mish")
class Mish(_Named):
    """y = x * tanh(softplus(x))"""

    function = "mish"


@register("softmax")
class Softmax(_Named):
    """y = exp(x) / sum(exp(x)) along the last axis."""

    function = "softmax"


@register("log_softmax")
class LogSoftmax(_Named):
    """y = x - log(sum(exp(x))) along the last axis."""

    function = "log_softmax"
