"""Recurrent layers: each time step computes a state from its input and the previous state, and returns it.

    h[t] = step(x[t], h[t - 1])

The products of the inputs with their kernel are one matrix product over all time steps. Each step then
needs a product with the recurrent kernel and one elementwise kernel (`cells`). In the backward pass the
steps compute the gradients of the gates, and each weight's gradient is one product over all steps.
Dropout with the same mask at all time steps: Gal and Ghahramani, 2016 (arXiv:1512.05287).
"""

from typing import Any

from nnx import activations, initializers, kernels, regularizers
from nnx.arguments import expect_range
from nnx.layers.base import Layer, Weight, describe_shape, positive_int
from nnx.layers.cells import Backward, Cell, Forward, columns
from nnx.layers.dropout import drop
from nnx.shapes import is_single


class Recurrent(Layer):
    """Base of the recurrent layers: (batch, time, features) -> (batch, units), or (batch, time, units).

    For the arguments see `LSTM`.
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
        function = activations.get(activation)
        if not function.elementwise:
            raise ValueError(
                f"{type(self).__name__}: {argument} must work element by element, got {activation!r}: put it into a "
                f"layer of its own behind this one"
            )
        return function

    @property
    def cell(self) -> Cell:
        """The formulas of a time step: the same object until a setting changes."""
        cell = self.make_cell()
        if self._cell is None or type(cell) is not type(self._cell) or vars(cell) != vars(self._cell):
            self._cell = cell
        return self._cell

    def make_cell(self) -> Cell:
        """Return the formulas of a time step for the current settings."""
        raise NotImplementedError

    # Shapes and weights

    def declare_weights(self):
        width = self.cell.gates * self.units
        yield Weight.of(self, "kernel", lambda in_shape: (self._expect(in_shape)[-1], width))
        yield Weight.of(self, "recurrent_kernel", (self.units, width), "recurrent")
        if self.use_bias:
            yield self.declare_bias(width)

    def declare_bias(self, width: int) -> Weight:
        """Return the bias of all gates, `width` values."""
        return Weight.of(self, "bias", (width,))

    def out_shape(self, in_shape) -> Any:
        steps = self._expect(in_shape)[0]
        y = (steps, self.units) if self.return_sequences else (self.units,)
        return (y, *[(self.units,)] * self.cell.states) if self.return_state else y

    def _expect(self, in_shape):
        """Return the shape of the sequence, or raise a ValueError."""
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
                f"{kind} expects, beside the sequence, its initial states, {wanted}, got "
                f"{describe_shape(in_shape)}"
            )
        return sequence

    # Forward and backward

    def forward(self, ctx, params, x):
        xp, cell = ctx.xp, self.cell
        (x, *initial), mask = x if isinstance(x, tuple) else (x,), ctx.mask
        mask = mask[0] if isinstance(mask, tuple) else mask
        batch, steps, features = x.shape
        # Inside the layer the time axis is first: a step then reads and writes contiguous memory. This copies
        # x, the smallest array here; the output is a view, which the next recurrent layer transposes at no cost.
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
        start = tuple(initial) or (zeros,) * cell.states
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
            dhidden = _swapped(xp, douts[0]) if self.return_sequences else _as_last_step(ctx, douts[0], steps)
            for counted in zeroed:
                dhidden = dhidden * xp.astype(counted, dhidden.dtype)
            dlast = tuple(douts[1:]) or (zeros,) * cell.states
            step = Backward(*settings)
            if not step.bypasses:
                dhidden = dhidden + _as_last_step(ctx, dlast[0], steps) if self.return_state else dhidden
                dlast = dlast[1:]
            before = [_before(xp, *pair) for pair in zip(start, states, strict=True)]
            dgates, *rest = ctx.backend.scan(
                step,
                (xp.zeros_like(gates[0, ...]), *dlast),  # no gates follow the last step
                (dhidden, *before, *saved, *counts),
                (recurrent_kernel, *keep),
                reverse=True,
            )

            dgates_h = xp.reshape(dgates, flat)
            dgates_x = xp.reshape(rest[-1], flat) if cell.splits_gradient else dgates_h
            h = _before(xp, seen[0], stacks[cell.states]) if keep else before[0]
            h, *saved_rows = (xp.reshape(array, (steps * batch, self.units)) for array in (h, *saved))
            grads = {
                "kernel": xp.matmul(rows.T, dgates_x),
                "recurrent_kernel": cell.kernel_gradient(xp, h, saved_rows, dgates_h),
            }
            if self.use_bias:
                grads["bias"] = self.bias_gradient(xp, dgates_x, dgates_h)
            if not ctx.needs_input_gradient:
                return None, grads
            dx = pull_dropout(xp.reshape(xp.matmul(dgates_x, kernel.T), (steps, batch, features)))
            dx = _swapped(xp, xp.flip(dx, axis=0) if self.go_backwards else dx)
            if not initial:
                return dx, grads
            dstart = cell.recurrent_gradient(ctx.backend, recurrent_kernel, dgates[0, ...])
            for factor in keep:
                dstart = dstart * factor
            direct = [stack[0, ...] for stack in rest[: cell.states - 1 + step.bypasses]]
            if step.bypasses:
                dstart = dstart + direct.pop(0)
            return (dx, dstart, *direct), grads

        if self.activity_regularizer is not None:
            for out in outputs:
                ctx.add_penalty(self.activity_regularizer.penalty(xp, out) / batch)
        return outputs if self.return_state else y, pullback

    def split_bias(self, xp, params) -> tuple[Any, tuple]:
        """Return the bias of the gates of x, and further arguments of the cell."""
        return params.get("bias"), ()

    def bias_gradient(self, xp, dgates_x, dgates_h):
        """Return dL/dbias from the gradients of the gates of x and of h."""
        return xp.sum(dgates_x, axis=0)

    def _in_order(self, xp, x):
        """Return (time, batch, ...) in the order in which the steps run."""
        return xp.flip(_swapped(xp, x), axis=0) if self.go_backwards else _swapped(xp, x)

    def _counts(self, xp, mask, shape):
        """Return the mask, broadcast to the states of all steps."""
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
        """Return the factors by which dropout multiplies the state, or () without dropout."""
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


def _as_last_step(ctx, array, steps: int):
    """Return (steps, ...) with the array as its last step, and 0 elsewhere."""
    return ctx.backend.pad(array[None, ...], ((steps - 1, 0), *[(0, 0)] * array.ndim))


class GatedRecurrent(Recurrent):
    """Base of the recurrent layers whose gates have a separate activation."""

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
