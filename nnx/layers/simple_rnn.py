"""The simplest recurrent layer: its state is an activation of the input and the previous state."""

from nnx.layers.base import register
from nnx.layers.cells import Cell, activate
from nnx.layers.recurrent import Recurrent


class SimpleCell(Cell):
    """h' = activation(x + recurrent)"""

    gates = products = saved = 1

    def forward(self, xp, x, recurrent, states, extra):
        h, saved = activate(self.activation, xp, x[0] + recurrent[0])
        return (h,), (saved,)

    def backward(self, xp, dstates, states, saved, extra):
        return (self.activation.gradient(xp, dstates[0], saved[0]),), (), ()


@register("simple_rnn")
class SimpleRNN(Recurrent):
    """h' = activation(x @ kernel + h @ recurrent_kernel + bias).

    (batch, time, features) -> (batch, units), or (batch, time, units) with `return_sequences`. For the
    arguments see `LSTM`.

    Examples
    --------
    >>> import nnx
    >>> layer = nnx.layers.SimpleRNN(1, "linear", kernel_initializer="ones", recurrent_initializer="ones")
    >>> nnx.apply(layer, [[[1.0], [2.0], [3.0]]])
    array([[6.]], dtype=float32)
    """

    def make_cell(self):
        return SimpleCell(self.activation)
