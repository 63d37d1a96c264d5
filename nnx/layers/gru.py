"""The gated recurrent unit: an update gate decides how much of the state is kept, a reset gate how much of it
enters the new value.

Sources: Cho et al., 2014 (arXiv:1406.1078); for `reset_after` NVIDIA's cuDNN.
"""

from nnx.layers.base import Weight, register
from nnx.layers.cells import Cell, activate, activation_value, columns
from nnx.layers.recurrent import GatedRecurrent


class GRUCell(Cell):
    """h' = update * h + (1 - update) * activation(x + reset * (h @ kernel + bias))

    The inner bias, if there is one, is `extra`.
    """

    gates = products = 3
    saved = 4
    keeps_state = True
    splits_gradient = True

    def forward(self, xp, x, recurrent, states, extra):
        z, saved_z = activate(self.recurrent_activation, xp, x[0] + recurrent[0])
        r, saved_r = activate(self.recurrent_activation, xp, x[1] + recurrent[1])
        inner = recurrent[2] + extra[0] if extra else recurrent[2]
        g, saved_g = activate(self.activation, xp, x[2] + r * inner)
        return (z * states[0] + (1.0 - z) * g,), (saved_z, saved_r, saved_g, inner)

    def backward(self, xp, dstates, states, saved, extra):
        act, gate, dh = self.activation, self.recurrent_activation, dstates[0]
        z, r = (activation_value(gate, xp, saved[k]) for k in (0, 1))
        dg = act.gradient(xp, dh * (1.0 - z), saved[2])
        dz = gate.gradient(xp, dh * (states[0] - activation_value(act, xp, saved[2])), saved[0])
        dr = gate.gradient(xp, dg * saved[3], saved[1])
        return (dz, dr, dg * r), (dh * z,), (dz, dr, dg)


class ResetFirstGRUCell(Cell):
    """h' = update * h + (1 - update) * activation(x + (reset * h) @ kernel): the GRU of 2014.

    The second product needs the reset gate: a step takes two products and two kernels, forward and backward.
    """

    gates = 3
    products = 4
    saved = 4
    keeps_state = True

    def recurrent(self, backend, kernel, h, x):
        units = h.shape[-1]
        z, r = columns(backend.xp.matmul(h, kernel[:, : 2 * units]), 2)
        left = backend.kernel(self._reset, x[1], r, h)
        return [z, r, backend.xp.matmul(left, kernel[:, 2 * units :]), left]

    def recurrent_gradient(self, backend, kernel, dgates):
        two = 2 * kernel.shape[0]
        return backend.xp.matmul(dgates[..., :two], kernel[:, :two].T)

    def kernel_gradient(self, xp, h, saved, dgates):
        two = 2 * h.shape[-1]
        dgate, dcandidate = xp.matmul(h.T, dgates[:, :two]), xp.matmul(saved[3].T, dgates[:, two:])
        return xp.concat([dgate, dcandidate], axis=1)

    def _reset(self, xp, x, recurrent, h):
        return self.recurrent_activation.forward(xp, x + recurrent) * h

    def forward(self, xp, x, recurrent, states, extra):
        z, saved_z = activate(self.recurrent_activation, xp, x[0] + recurrent[0])
        _, saved_r = activate(self.recurrent_activation, xp, x[1] + recurrent[1])
        g, saved_g = activate(self.activation, xp, x[2] + recurrent[2])
        return (z * states[0] + (1.0 - z) * g,), (saved_z, saved_r, saved_g, recurrent[3])

    def inner(self, xp, dstates, states, saved, extra):
        z = activation_value(self.recurrent_activation, xp, saved[0])
        return self.activation.gradient(xp, dstates[0] * (1.0 - z), saved[2])

    def backward(self, xp, dstates, states, saved, extra):
        gate, dh = self.recurrent_activation, dstates[0]
        z, r = (activation_value(gate, xp, saved[k]) for k in (0, 1))
        dleft, *keep = extra
        for factor in keep:
            dleft = dleft * factor
        dz = gate.gradient(xp, dh * (states[0] - activation_value(self.activation, xp, saved[2])), saved[0])
        dr = gate.gradient(xp, dleft * states[0], saved[1])
        return (dz, dr, self.inner(xp, dstates, states, saved, extra)), (dh * z + dleft * r,), ()


@register("gru")
class GRU(GatedRecurrent):
    """Gated recurrent unit: (batch, time, features) -> (batch, units), or (batch, time, units).

        z, r, g = columns of x @ kernel + bias[0];  z_h, r_h, g_h = columns of h @ recurrent_kernel + bias[1]
        h' = u * h + (1 - u) * tanh(g + sigmoid(r + r_h) * g_h),  u = sigmoid(z + z_h)

    With `reset_after=False` the reset gate is applied before the product,
    (sigmoid(r + r_h) * h) @ recurrent_kernel, and there is one bias; a time step takes two products, not one.

    Parameters
    ----------
    reset_after : bool
        If True the bias is (2, 3 * units), else (3 * units,).
    **others
        As for `LSTM`; the only state is h, and there is no `unit_forget_bias`.

    Examples
    --------
    >>> import nnx
    >>> nnx.apply(nnx.layers.GRU(4), [[[1.0], [2.0], [3.0]]]).shape
    (1, 4)
    """

    def __init__(
        self,
        units: int,
        activation="tanh",
        recurrent_activation="sigmoid",
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        recurrent_initializer="orthogonal",
        bias_initializer="zeros",
        *,
        reset_after: bool = True,
        **settings,
    ):
        self.reset_after = reset_after
        super().__init__(
            units,
            activation,
            recurrent_activation,
            use_bias,
            kernel_initializer,
            recurrent_initializer,
            bias_initializer,
            **settings,
        )

    def make_cell(self):
        kind = GRUCell if self.reset_after else ResetFirstGRUCell
        return kind(self.activation, self.recurrent_activation)

    def declare_bias(self, width):
        return Weight.of(self, "bias", (2, width) if self.reset_after else (width,))

    def split_bias(self, xp, params):
        if not (self.use_bias and self.reset_after):
            return params.get("bias"), ()
        x_bias, h_bias = params["bias"][0, :], params["bias"][1, :]
        two = 2 * self.units
        return xp.concat([x_bias[:two] + h_bias[:two], x_bias[two:]], axis=0), (h_bias[two:],)

    def bias_gradient(self, xp, dgates_x, dgates_h):
        if not self.reset_after:
            return super().bias_gradient(xp, dgates_x, dgates_h)
        return xp.stack([xp.sum(dgates_x, axis=0), xp.sum(dgates_h, axis=0)])
