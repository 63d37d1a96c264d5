"""Recurrent layers: a state goes from one time step to the next, and each step's output is the state.

    h[t] = step(x[t], h[t - 1])

The products of the inputs with their kernel are one matrix product over all time steps. What is left
for each step is a product with the recurrent kernel and one elementwise kernel (`cells`). Backward,
the steps give the gradients of the gates, and each weight's gradient is again one product over all.
Sources are named in `cells`; dropout that is the same at all time steps is from Gal and Ghahramani,
2016 (arXiv:1512.05287).
"""

from typing import Any

from nnx import activations, initializers, kernels, regularizers
from nnx.arguments import expect_range
from nnx.layers.base import Layer, describe_shape, positive_int, register
from nnx.layers.cells import (
    Backward,
    Cell,
    Forward,
    GRUCell,
    LSTMCell,
    ResetFirstGRUCell,
    SimpleCell,
    columns,
)
from nnx.layers.dropout import drop
from nnx.shapes import is_single


class Recurrent(Layer):
    """Base of the recurrent layers: (batch, time, features) -> (batch, units), or (batch, time, units).

    What they have in common; for the arguments see `LSTM`.
    """

    supports_masking = True

    def __init__(
        self,
        units: int,
        activation="tanh",
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        recurrent_initializer="orthogonal",
        bias_initializer="zeros",
        *,
        kernel_regularizer=None,
        recurrent_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        **settings,
    ):
        super().__init__(**settings)
        self.units = positive_int(self, "units", units)
        self.activation = self._elementwise("activation", activation)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.recurrent_initializer = initializers.get(recurrent_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.recurrent_regularizer = regularizers.get(recurrent_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.activity_regularizer = regularizers.get(activity_regularizer)
        expect_range(self, at_least=0, below=1, dropout=dropout, recurrent_dropout=recurrent_dropout)
        if stateful:
            raise ValueError(
                f"{type(self).__name__}: stateful=True is not supported: a layer keeps nothing between batches. With "
                f"return_state=True it returns its states, and given (x, *states) it starts from them"
            )
        self.dropout, self.recurrent_dropout, self.seed = dropout, recurrent_dropout, seed
        self.return_sequences, self.return_state = return_sequences, return_state
        self.go_backwards, self.stateful, self.unroll = go_backwards, stateful, unroll
        self.zero_output_for_mask = zero_output_for_mask
        self._cell: Cell | None = None

    def _elementwise(self, argument, activation):
        found = activations.get(activation)
        if not found.elementwise:
            raise ValueError(
                f"{type(self).__name__}: {argument} must work element by element, got {activation!r}: put it into a "
                f"layer of its own behind this one"
            )
        return found

    @property
    def cell(self) -> Cell:
        """The formulas of a time step: the same object as long as the settings are the same."""
        made = self.make_cell()
        if self._cell is None or type(made) is not type(self._cell) or vars(made) != vars(self._cell):
            self._cell = made
        return self._cell

    def make_cell(self) -> Cell:
        """Return the formulas of a time step for the settings of now."""
        raise NotImplementedError

    # Shapes and weights

    def init(self, rng, in_shape) -> tuple[Any, Any]:
        features, width = self._expect(in_shape)[-1], self.cell.gates * self.units
        params = {
            "kernel": self.kernel_initializer(rng, (features, width)),
            "recurrent_kernel": self.recurrent_initializer(rng, (self.units, width)),
        }
        if self.use_bias:
            params["bias"] = self.init_bias(rng, width)
        return params, self.out_shape(in_shape)

    def init_bias(self, rng, width: int):
        """Return the starting bias."""
        return self.bias_initializer(rng, (width,))

    def out_shape(self, in_shape) -> Any:
        steps = self._expect(in_shape)[0]
        y = (steps, self.units) if self.return_sequences else (self.units,)
        return (y, *[(self.units,)] * self.cell.states) if self.return_state else y

    def _expect(self, in_shape):
        """Return the shape of the sequence."""
        sequence = in_shape if is_single(in_shape) or isinstance(in_shape, dict) else in_shape[0]
        kind, states = type(self).__name__, self.cell.states
        if isinstance(sequence, dict) or not is_single(sequence) or len(sequence) != 2 or 0 in sequence:
            raise ValueError(
                f"{kind} expects input of shape (batch, time, features) with at least one time step, got "
                f"{describe_shape(in_shape)}: put a Reshape before it"
            )
        if sequence is not in_shape and tuple(in_shape[1:]) != ((self.units,),) * states:
            wanted = describe_shape((sequence, *[(self.units,)] * states))
            raise ValueError(
                f"{kind} expects, beside the sequence, what its states start from, {wanted}, got "
                f"{describe_shape(in_shape)}"
            )
        return sequence

    def regularizers(self):
        found = {
            "kernel": self.kernel_regularizer,
            "recurrent_kernel": self.recurrent_regularizer,
            "bias": self.bias_regularizer if self.use_bias else None,
        }
        return {name: penalty for name, penalty in found.items() if penalty is not None}

    # The pass

    def forward(self, ctx, params, x):
        xp, cell = ctx.xp, self.cell
        (x, *given), mask = x if isinstance(x, tuple) else (x,), ctx.mask
        mask = mask[0] if isinstance(mask, tuple) else mask
        batch, steps, features = x.shape
        # Within the layer time comes first: what a step reads and writes is then one piece of memory.
        # It takes a copy of x, which is the smallest array here; the output is a view, and the next
        # recurrent layer turns it back for nothing.
        x, pull_dropout = self._drop_features(ctx, self._in_order(xp, x))
        rows = xp.reshape(x, (steps * batch, features))
        kernel, recurrent_kernel = params["kernel"], params["recurrent_kernel"]
        bias, extra = self.split_bias(xp, params)
        gates = xp.matmul(rows, kernel)
        if bias is not None:
            gates = ctx.kernel(kernels.add, gates, bias, overwrite=0)
        gates = xp.reshape(gates, (steps, batch, -1))
        parts = columns(gates, cell.gates)

        zeros = xp.zeros_like(parts[0][0, ...])
        start = tuple(given) or (zeros,) * cell.states
        keep = self._keep(ctx, zeros)
        seen = tuple(ctx.kernel(kernels.multiply, start[0], factor) for factor in keep)
        counts = () if mask is None else (self._counts(xp, mask, parts[0].shape),)
        settings = cell, bool(counts), bool(keep)
        stacks = ctx.backend.scan(
            Forward(*settings), (*start, *seen), (*parts, *counts), (recurrent_kernel, *extra, *keep)
        )
        states, saved = stacks[: cell.states], stacks[cell.states + len(seen) :]

        hidden = states[0]
        zeroed = counts if self.zero_output_for_mask and self.return_sequences else ()
        for counted in zeroed:
            hidden = hidden * xp.astype(counted, hidden.dtype)
        y = _swapped(xp, hidden) if self.return_sequences else hidden[-1, ...]
        outputs = (y, *(state[-1, ...] for state in states)) if self.return_state else (y,)
        ctx.mask = self._out_mask(xp, mask)

        flat = (steps * batch, gates.shape[-1])

        def pullback(dy):
            douts = dy if isinstance(dy, tuple) else (dy,)
            if self.activity_regularizer is not None:
                more = [self.activity_regularizer.gradient(xp, out) / batch for out in outputs]
                douts = [a + b for a, b in zip(douts, more, strict=True)]
            dhidden = _swapped(xp, douts[0]) if self.return_sequences else _at_end(ctx, douts[0], steps)
            for counted in zeroed:
                dhidden = dhidden * xp.astype(counted, dhidden.dtype)
            dlast = tuple(douts[1:]) or (zeros,) * cell.states
            step = Backward(*settings)
            if not step.passes:
                dhidden = dhidden + _at_end(ctx, dlast[0], steps) if self.return_state else dhidden
                dlast = dlast[1:]
            before = [_before(xp, *pair) for pair in zip(start, states, strict=True)]
            dgates, *rest = ctx.backend.scan(
                step,
                (xp.zeros_like(gates[0, ...]), *dlast),  # behind the last step there are no gates
                (dhidden, *before, *saved, *counts),
                (recurrent_kernel, *keep),
                reverse=True,
            )

            by_h = xp.reshape(dgates, flat)
            by_x = xp.reshape(rest[-1], flat) if cell.splits_gradient else by_h
            h = _before(xp, seen[0], stacks[cell.states]) if keep else before[0]
            h, *saved_rows = (xp.reshape(array, (steps * batch, self.units)) for array in (h, *saved))
            grads = {
                "kernel": xp.matmul(rows.T, by_x),
                "recurrent_kernel": cell.kernel_gradient(xp, h, saved_rows, by_h),
            }
            if self.use_bias:
                grads["bias"] = self.bias_gradient(xp, by_x, by_h)
            if not ctx.needs_input_gradient:
                return None, grads
            dx = pull_dropout(xp.reshape(xp.matmul(by_x, kernel.T), (steps, batch, features)))
            dx = _swapped(xp, xp.flip(dx, axis=0) if self.go_backwards else dx)
            if not given:
                return dx, grads
            dstart = cell.recurrent_gradient(ctx.backend, recurrent_kernel, dgates[0, ...])
            for factor in keep:
                dstart = dstart * factor
            dpassed = [stack[0, ...] for stack in rest[: cell.states - 1 + step.passes]]
            if step.passes:
                dstart = dstart + dpassed.pop(0)
            return (dx, dstart, *dpassed), grads

        if self.activity_regularizer is not None:
            for out in outputs:
                ctx.add_penalty(self.activity_regularizer.penalty(xp, out) / batch)
        return outputs if self.return_state else y, pullback

    def split_bias(self, xp, params) -> tuple[Any, tuple]:
        """Return the bias of the gates of x, and what else the cell takes."""
        return params.get("bias"), ()

    def bias_gradient(self, xp, by_x, by_h):
        """Return dL/dbias from the gradients of the gates of x and of h."""
        return xp.sum(by_x, axis=0)

    def _in_order(self, xp, x):
        """Return (time, batch, ...) in the order in which the steps are taken."""
        return xp.flip(_swapped(xp, x), axis=0) if self.go_backwards else _swapped(xp, x)

    def _counts(self, xp, mask, shape):
        """Return the mask as it lies beside the states of all steps."""
        return xp.broadcast_to(self._in_order(xp, mask)[..., None], shape)

    def _out_mask(self, xp, mask):
        if mask is None or not self.return_sequences:
            return None
        mask = xp.flip(mask, axis=1) if self.go_backwards else mask
        return (mask, *[None] * self.cell.states) if self.return_state else mask

    def _drop_features(self, ctx, x):
        """Return (time, batch, features) with dropout, and its pullback."""
        if not ctx.training or self.dropout == 0:
            return x, lambda dx: dx
        return drop(ctx, x, ctx.random_bits(x.shape[1:], salt=self.seed), self.dropout)

    def _keep(self, ctx, zeros) -> tuple:
        """Return the factors by which dropout multiplies the state, if there is any."""
        if not ctx.training or self.recurrent_dropout == 0:
            return ()
        bits = ctx.random_bits(zeros.shape, salt=f"{self.seed} recurrent")
        return (drop(ctx, ctx.xp.ones_like(zeros), bits, self.recurrent_dropout)[0],)

    def flops(self, in_shape):
        steps, features = self._expect(in_shape)
        return steps * self.cell.gates * self.units * (2 * (features + self.units) + 5)


def _swapped(xp, x):
    """Return x with its first two axes exchanged."""
    return xp.permute_dims(x, (1, 0, *range(2, x.ndim)))


def _before(xp, start, states):
    """Return the states before each step from those after it."""
    return xp.concat([start[None, ...], states[:-1, ...]], axis=0)


def _at_end(ctx, array, steps: int):
    """Return (steps, ...), 0 but for the last step."""
    return ctx.backend.pad(array[None, ...], ((steps - 1, 0), *[(0, 0)] * array.ndim))


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


class _Gated(Recurrent):
    """A recurrent layer with gates, whose activation is another."""

    def __init__(
        self,
        units: int,
        activation="tanh",
        recurrent_activation="sigmoid",
        use_bias: bool = True,
        kernel_initializer="glorot_uniform",
        recurrent_initializer="orthogonal",
        bias_initializer="zeros",
        **settings,
    ):
        self.recurrent_activation = self._elementwise("recurrent_activation", recurrent_activation)
        super().__init__(
            units,
            activation,
            use_bias,
            kernel_initializer,
            recurrent_initializer,
            bias_initializer,
            **settings,
        )


@register("lstm")
class LSTM(_Gated):
    """Long short-term memory: (batch, time, features) -> (batch, units), or (batch, time, units).

        i, f, g, o = columns of x @ kernel + h @ recurrent_kernel + bias
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')

    The input may be a tuple (x, h, c) of the sequence and what the states start from, each (batch,
    units); else they start from 0. A time step that the mask leaves out repeats the states before it.

    Parameters
    ----------
    units : int
        Length of the state, and of the output.
    activation, recurrent_activation : str or Activation, optional
        In place of tanh, and of sigmoid; None for none. They must work element by element.
    use_bias : bool
    kernel_initializer, recurrent_initializer, bias_initializer : str or Initializer
        Starting weights: kernel (features, 4 * units), recurrent_kernel (units, 4 * units), bias (4 * units,).
    unit_forget_bias : bool
        Whether the bias of f starts from 1.
    kernel_regularizer, recurrent_regularizer, bias_regularizer, activity_regularizer : str or Regularizer, optional
        Penalties on the weights or on what the layer returns (the latter divided by the number of samples).
    dropout, recurrent_dropout : float
        Share of the features, and of h as the gates see it, that is zero in training. A sequence has one
        mask of each, for all time steps and gates. (Keras draws one for each gate if `recurrent_dropout`
        is not 0.)
    seed : int, optional
        Sets this layer's masks of dropout apart from those of another with the same name.
    return_sequences : bool
        Whether the output is that of all time steps, not of the last alone.
    return_state : bool
        Whether a tuple (output, h, c), with the last states, is returned.
    go_backwards : bool
        Whether the sequence is read from its end; its outputs, too, then come in reverse order.
    stateful : bool
        Only False: states go in and out as arrays.
    unroll : bool
        Changes nothing.
    zero_output_for_mask : bool
        Whether, with `return_sequences`, outputs at time steps that the mask leaves out are 0.

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

    def init_bias(self, rng, width):
        bias = super().init_bias(rng, width).copy()
        if self.unit_forget_bias:
            bias[self.units : 2 * self.units] = 1.0
        return bias


@register("gru")
class GRU(_Gated):
    """Gated recurrent unit: (batch, time, features) -> (batch, units), or (batch, time, units).

        z, r, g = columns of x @ kernel + bias[0];  z_h, r_h, g_h = columns of h @ recurrent_kernel + bias[1]
        h' = u * h + (1 - u) * tanh(g + sigmoid(r + r_h) * g_h),  u = sigmoid(z + z_h)

    With `reset_after=False` the reset gate comes before the product, (sigmoid(r + r_h) * h) @ recurrent_kernel,
    and there is one bias; it takes two products a time step in place of one.

    Parameters
    ----------
    reset_after : bool
        With it the bias is (2, 3 * units), else (3 * units,).
    **others
        As for `LSTM`; the state is h alone, and there is no `unit_forget_bias`.

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

    def init_bias(self, rng, width):
        return self.bias_initializer(rng, (2, width) if self.reset_after else (width,))

    def split_bias(self, xp, params):
        if not (self.use_bias and self.reset_after):
            return params.get("bias"), ()
        of_x, of_h = params["bias"][0, :], params["bias"][1, :]
        two = 2 * self.units
        return xp.concat([of_x[:two] + of_h[:two], of_x[two:]], axis=0), (of_h[two:],)

    def bias_gradient(self, xp, by_x, by_h):
        if not self.reset_after:
            return super().bias_gradient(xp, by_x, by_h)
        return xp.stack([xp.sum(by_x, axis=0), xp.sum(by_h, axis=0)])
