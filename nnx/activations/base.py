"""The base of all activations, and activations from plain functions."""

from nnx import kernels
from nnx.arguments import takes_namespace
from nnx.backend import Backend, get_backend
from nnx.graph.derivatives import derive
from nnx.registry import REGISTRIES, Configurable

register = REGISTRIES["activation"].register


class Activation(Configurable):
    """Base of all activations. Calling one applies it to an array.

    An activation of your own defines `forward`. Without a `gradient`, its derivative is derived.

    >>> import nnx
    >>> nnx.activations.get("relu")([-1.0, 2.0])
    array([0., 2.])
    """

    kind = "activation"
    needs_input = False
    """Whether `gradient` wants the input x; otherwise it gets the output y."""
    elementwise = True

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        if cls.gradient is Activation.gradient:
            cls.needs_input = True

    def forward(self, xp, x):
        """Return y."""
        raise NotImplementedError

    def gradient(self, xp, dy, saved):
        """Return dL/dx from dL/dy and what was saved: y, or x if `needs_input`."""
        return derive(_Namespace(xp), lambda backend, x: self.forward(backend.xp, x), saved)[1](dy)[0]

    def forward_with_bias(self, xp, x, bias):
        """Return the activation of x + bias, as one kernel."""
        return self.forward(xp, x + bias)

    def __call__(self, x):
        backend = get_backend()
        return self.forward(backend.xp, backend.asarray(x))

    def run(self, ctx, x, bias=None, overwrite=None):
        """Return (y, saved) on x, to which `bias` is added first; see `Backend.kernel`."""
        if self.needs_input and bias is not None:
            x, bias, overwrite = ctx.kernel(kernels.add, x, bias, overwrite=overwrite), None, None
        if not self.elementwise:
            y = self.forward(ctx.xp, x if bias is None else x + bias)
        elif bias is not None:
            y = ctx.kernel(self.forward_with_bias, x, bias, overwrite=overwrite)
        else:
            y = ctx.kernel(self.forward, x, overwrite=overwrite if not self.needs_input else None)
        return y, (x if self.needs_input else y)

    def pull(self, ctx, dy, saved):
        """Return dL/dx from dL/dy and what `run` saved."""
        if self.elementwise:
            return ctx.kernel(self.gradient, dy, saved)
        return self.gradient(ctx.xp, dy, saved)


class _Namespace(Backend):
    """A namespace as a backend, for derivatives of elementwise functions."""

    name = "namespace"

    def __init__(self, xp):
        self.xp = xp


class FunctionActivation(Activation):
    """An activation given as a function: `function(x)` or `function(xp, x)`."""

    elementwise = False  # unknown

    def __init__(self, function):
        self.function = function

    def forward(self, xp, x):
        return self.function(xp, x) if takes_namespace(self.function) else self.function(x)
