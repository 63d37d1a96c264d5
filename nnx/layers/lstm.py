"""Long short-term memory: a second state c besides h, which gates write and read.

Source: Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers et al., 2000.
"""

from nnx.layers.base import register
from nnx.layers.cells import Cell, activate, activation_value
from nnx.layers.recurrent import GatedRecurrent


class LSTMCell(Cell):
    """c' = forget * c + input * candidate;  h' = output * activation(c')"""

    gates = products = 4
    saved = 5
    states = 2

    def forward(self, xp, x, recurrent, states, extra):
        before_i, before_f, before_g, before_o = (a + b for a, b in zip(x, recurrent, strict=True))
        i, saved_i = activate(self.recurrent_activation, xp, before_i)
        f, saved_f = activate(self.recurrent_activation, xp, before_f)
        g, saved_g = activate(self.activation, xp, before_g)
        o, saved_o = activate(self.recurrent_activation, xp, before_o)
        c = f * states[1] + i * g
        y, saved_y = activate(self.activation, xp, c)
        return (o * y, c), (saved_i, saved_f, saved_g, saved_o, saved_y)

    def backward(self, xp, dstates, states, saved, extra):
        act, gate = self.activation, self.recurrent_activation
        (dh, dc), (i, f, o) = dstates, (activation_value(gate, xp, saved[k]) for k in (0, 1, 3))
        g, y = (activation_value(act, xp, saved[k]) for k in (2, 4))
        dc = dc + act.gradient(xp, dh * o, saved[4])
        dgates = (
            gate.gradient(xp, dc * g, saved[0]),
            gate.gradient(xp, dc * states[1], saved[1]),
            act.gradient(xp, dc * i, saved[2]),
            gate.gradient(xp, dh * y, saved[3]),
        )
        return dgates, (dc * f,), ()


@register("lstm")
class LSTM(GatedRecurrent):
    """Long short-term memory: (batch, time, features) -> (batch, units), or (batch, time, units).

        i, f, g, o = columns of x @ kernel + h @ recurrent_kernel + bias
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')

    The input may be a tuple (x, h, c) of the sequence and the initial states, each (batch, units); by
    default these are 0. A masked time step repeats the states before it.

    Parameters
    ----------
    units : int
        Length of the state, and of the output.
    activation, recurrent_activation : str or Activation, optional
        In place of tanh and sigmoid; None for none. They must be elementwise.
    use_bias : bool
    kernel_initializer, recurrent_initializer, bias_initializer : str or Initializer
        Starting weights: kernel (features, 4 * units), recurrent_kernel (units, 4 * units), bias (4 * units,).
    unit_forget_bias : bool
        Whether the bias of f starts from 1.
    kernel_regularizer, recurrent_regularizer, bias_regularizer, activity_regularizer : str or Regularizer, optional
        Penalties on the weights or on the output (the latter divided by the number of samples).
    dropout, recurrent_dropout : float
        Share of the features, and of h in the gates, that is zeroed in training. A sequence has one mask of
        each for all time steps and gates. (Keras draws one for each gate if `recurrent_dropout` is not 0.)
    seed : int, optional
        Makes this layer's dropout differ from that of another layer with the same name.
    return_sequences : bool
        Whether to return the output of all time steps, not only of the last.
    return_state : bool
        Whether to return a tuple (output, h, c) with the last states.
    go_backwards : bool
        Whether the sequence is read from its end; the outputs are then in reverse order too.
    stateful : bool
        Only False: states are inputs and outputs of the layer.
    unroll : bool
        Has no effect.
    zero_output_for_mask : bool
        Whether, with `return_sequences`, outputs at masked time steps are 0.

    Examples
    --------
    >>> import nnx
    >>> x = [[[1.0], [2.0], [3.0]]]
    >>> nnx.apply(nnx.layers.LSTM(4), x).shape
    (1, 4)
    >>> y, h, c = nnx.apply(nnx.layers.LSTM(4, return_sequences=True, return_state=True), x)
    >>> y.shape, h.shape
    ((1, 3, 4), (1, 4))
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
        unit_forget_bias: bool = True,
        **settings,
    ):
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
        self.unit_forget_bias = unit_forget_bias

    def make_cell(self):
        return LSTMCell(self.activation, self.recurrent_activation)

    def declare_bias(self, width):
        return super().declare_bias(width)._replace(initializer=self._draw_bias)

    def _draw_bias(self, rng, shape):
        bias = self.bias_initializer(rng, shape).copy()
        if self.unit_forget_bias:
            bias[self.units : 2 * self.units] = 1.0
        return bias
