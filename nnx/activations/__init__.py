"""Activation functions, each with its derivative.

An activation is a pair of elementwise formulas: `forward(xp, x) -> y`, and `gradient`, which
turns dL/dy into dL/dx from the output y alone (so that a layer need not keep x) or, where
`needs_input` is set, from the input x. Softmax and log-softmax work along the last axis.

They are named in layers as `activation="relu"`, and called on arrays as `nnx.activations.relu(x)`.
A function of your own, `activation=function`, has its derivative derived.

May import: core, graph.
"""

import math

from nnx import kernels
from nnx.activations.base import Activation, FunctionActivation, register
from nnx.arguments import expect_range
from nnx.registry import REGISTRIES

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "Activation",
    "Exponential",
    "GELUTanh",
    "HardSigmoid",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "Mish",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
    "elu",
    "exponential",
    "gelu",
    "gelu_tanh",
    "get",
    "hard_sigmoid",
    "leaky_relu",
    "linear",
    "log_softmax",
    "mish",
    "names",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "swish",
    "tanh",
]

_registry = REGISTRIES["activation"]


def _mask(xp, condition, like):
    # A product with a 0/1 mask takes a tenth of the time of `where` on NumPy.
    return xp.astype(condition, like.dtype)


def _sigmoid(xp, x):
    # By tanh: no overflow, and one transcendental function.
    return xp.tanh(x * 0.5) * 0.5 + 0.5


@register("linear")
class Linear(Activation):
    """y = x"""

    def forward(self, xp, x):
        return x

    def gradient(self, xp, dy, saved):
        return dy

    def forward_with_bias(self, xp, x, bias):
        return x + bias

    def run(self, ctx, x, bias=None, overwrite=None):
        y = x if bias is None else ctx.kernel(self.forward_with_bias, x, bias, overwrite=overwrite)
        return y, y

    def pull(self, ctx, dy, saved):
        return dy


@register("sigmoid")
class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x))"""

    def forward(self, xp, x):
        return _sigmoid(xp, x)

    def gradient(self, xp, dy, saved):
        return dy * saved * (1.0 - saved)


@register("tanh")
class Tanh(Activation):
    """y = tanh(x)"""

    def forward(self, xp, x):
        return xp.tanh(x)

    def gradient(self, xp, dy, saved):
        return dy * (1.0 - saved * saved)


@register("relu")
class ReLU(Activation):
    """y = max(x, 0)"""

    def forward(self, xp, x):
        return xp.maximum(x, 0.0)

    def gradient(self, xp, dy, saved):
        return dy * _mask(xp, saved > 0, dy)


@register("leaky_relu")
class LeakyReLU(Activation):
    """y = x where x > 0, else negative_slope * x. Source: Maas et al., 2013."""

    def __init__(self, negative_slope: float = 0.2):
        expect_range(self, at_least=0, at_most=1, negative_slope=negative_slope)
        self.negative_slope = negative_slope

    def forward(self, xp, x):
        return xp.maximum(x, x * self.negative_slope)

    def gradient(self, xp, dy, saved):
        return dy * (_mask(xp, saved > 0, dy) * (1.0 - self.negative_slope) + self.negative_slope)


@register("elu")
class ELU(Activation):
    """y = x where x > 0, else alpha * (exp(x) - 1). Source: Clevert et al., 2015 (arXiv:1511.07289)."""

    def __init__(self, alpha: float = 1.0):
        self.alpha = alpha

    def forward(self, xp, x):
        return xp.maximum(x, 0.0) + self.alpha * xp.expm1(xp.minimum(x, 0.0))

    def gradient(self, xp, dy, saved):
        return dy * xp.where(saved > 0, 1.0, saved + self.alpha)


@register("selu")
class SELU(Activation):
    """y = scale * elu(x, alpha), self-normalising. Source: Klambauer et al., 2017 (arXiv:1706.02515)."""

    alpha = 1.6732632423543772
    scale = 1.0507009873554805

    def forward(self, xp, x):
        return self.scale * (xp.maximum(x, 0.0) + self.alpha * xp.expm1(xp.minimum(x, 0.0)))

    def gradient(self, xp, dy, saved):
        return dy * xp.where(saved > 0, self.scale, saved + self.scale * self.alpha)


@register("gelu")
class GELU(Activation):
    """y = x * Phi(x), Phi the normal distribution function; approximately, by tanh, on request.

    Source: Hendrycks and Gimpel, 2016 (arXiv:1606.08415).
    """

    needs_input = True

    def __init__(self, approximate: bool = False):
        self.approximate = approximate

    def _inner(self, x):
        return math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)

    def forward(self, xp, x):
        if self.approximate:
            return 0.5 * x * (1.0 + xp.tanh(self._inner(x)))
        return 0.5 * x * (1.0 + kernels.erf(xp, x * math.sqrt(0.5)))

    def gradient(self, xp, dy, saved):
        x = saved
        if self.approximate:
            t = xp.tanh(self._inner(x))
            slope = math.sqrt(2 / math.pi) * (1.0 + 3 * 0.044715 * x * x)
            return dy * 0.5 * (1.0 + t + x * (1.0 - t * t) * slope)
        distribution = 0.5 * (1.0 + kernels.erf(xp, x * math.sqrt(0.5)))
        density = xp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
        return dy * (distribution + x * density)


@register("gelu_tanh")
class GELUTanh(GELU):
    """GELU by its tanh approximation, under a name of its own."""

    def __init__(self):
        super().__init__(approximate=True)


@register("silu", "swish")
class SiLU(Activation):
    """y = x * sigmoid(x), also called swish. Source: Elfwing et al., 2017 (arXiv:1702.03118)."""

    needs_input = True

    def forward(self, xp, x):
        return x * _sigmoid(xp, x)

    def gradient(self, xp, dy, saved):
        s = _sigmoid(xp, saved)
        return dy * s * (1.0 + saved * (1.0 - s))


@register("softplus")
class Softplus(Activation):
    """y = log(1 + exp(x))"""

    def forward(self, xp, x):
        return xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))

    def gradient(self, xp, dy, saved):
        return dy * -xp.expm1(-saved)  # sigmoid(x) = 1 - exp(-y)


@register("exponential")
class Exponential(Activation):
    """y = exp(x)"""

    def forward(self, xp, x):
        return xp.exp(x)

    def gradient(self, xp, dy, saved):
        return dy * saved


@register("softsign")
class Softsign(Activation):
    """y = x / (1 + |x|)"""

    def forward(self, xp, x):
        return x / (1.0 + xp.abs(x))

    def gradient(self, xp, dy, saved):
        return dy * (1.0 - xp.abs(saved)) ** 2


@register("hard_sigmoid")
class HardSigmoid(Activation):
    """y = min(max(x / 6 + 1/2, 0), 1)"""

    def forward(self, xp, x):
        return xp.minimum(xp.maximum(x * (1 / 6) + 0.5, 0.0), 1.0)

    def gradient(self, xp, dy, saved):
        inside = _mask(xp, saved > 0, dy) * _mask(xp, saved < 1, dy)
        return dy * inside * (1 / 6)


@register("mish")
class Mish(Activation):
    """y = x * tanh(softplus(x)). Source: Misra, 2019 (arXiv:1908.08681)."""

    needs_input = True

    def forward(self, xp, x):
        return x * xp.tanh(xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x))))

    def gradient(self, xp, dy, saved):
        t = xp.tanh(xp.maximum(saved, 0.0) + xp.log1p(xp.exp(-xp.abs(saved))))
        return dy * (t + saved * (1.0 - t * t) * _sigmoid(xp, saved))


@register("softmax")
class Softmax(Activation):
    """y = exp(x) / sum(exp(x)) along the last axis: probabilities of exclusive classes."""

    elementwise = False

    def forward(self, xp, x):
        exponentials = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
        return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)

    def gradient(self, xp, dy, saved):
        return saved * (dy - xp.sum(dy * saved, axis=-1, keepdims=True))


@register("log_softmax")
class LogSoftmax(Activation):
    """y = x - log(sum(exp(x))) along the last axis: logarithms of probabilities."""

    elementwise = False

    def forward(self, xp, x):
        centred = x - xp.max(x, axis=-1, keepdims=True)
        return centred - xp.log(xp.sum(xp.exp(centred), axis=-1, keepdims=True))

    def gradient(self, xp, dy, saved):
        return dy - xp.exp(saved) * xp.sum(dy, axis=-1, keepdims=True)


def get(activation) -> Activation:
    """Return the activation of this name (None: linear), of an activation layer, or made of a function."""
    if activation is None:
        return linear
    activation = getattr(activation, "activation", activation)
    if isinstance(activation, str) and activation in _instances:
        return _instances[activation]
    if callable(activation) and not isinstance(activation, (Activation, type)):
        return FunctionActivation(activation)
    return _registry.get(activation, Activation)


def names() -> list[str]:
    """Return the names of all activations."""
    return _registry.names()


# One instance of each under its name: `nnx.activations.relu(x)`, as in Keras.
_instances: dict[str, Activation] = {name: _registry.find(name)() for name in _registry.names()}
linear, sigmoid, tanh, relu = (_instances[name] for name in ("linear", "sigmoid", "tanh", "relu"))
leaky_relu, elu, selu, gelu = (_instances[name] for name in ("leaky_relu", "elu", "selu", "gelu"))
exponential = _instances["exponential"]
gelu_tanh, silu, softplus, softsign = (_instances[n] for n in ("gelu_tanh", "silu", "softplus", "softsign"))
hard_sigmoid, mish, softmax = (_instances[name] for name in ("hard_sigmoid", "mish", "softmax"))
log_softmax = _instances["log_softmax"]
swish = silu
