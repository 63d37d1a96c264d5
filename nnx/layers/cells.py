"""One time step of each recurrent layer, forward and backward, as elementwise formulas.

What a step adds to the state before it comes from two products, x @ kernel and h @ recurrent_kernel.
The first is taken of all time steps at once; the second, and these formulas, run step after step
(`Backend.scan`): a product and one kernel each.

    gates of x, gates of h, states  ->  new states, saved                   forward
    dL/d(new states), states, saved ->  dL/d(gates), dL/dstates             backward

Sources: Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers et
al., 2000; Cho et al., 2014 (arXiv:1406.1078), and for `reset_after` NVIDIA's cuDNN, for the GRU.
"""

import itertools
from dataclasses import dataclass
from typing import Any


def columns(array, count: int) -> list:
    """Return the parts of equal width of the last axis, as views where the library has them."""
    width = array.shape[-1] // count
    return [array[..., k * width : (k + 1) * width] for k in range(count)]


class Cell:
    """Base of all cells.

    Parameters
    ----------
    activation, recurrent_activation : Activation
        Functions of the state and of the gates; all work element by element.
    """

    gates: int
    """How many numbers x @ kernel has for each unit."""
    products: int
    """How many arrays `recurrent` gives."""
    saved: int
    """How many arrays the backward pass needs of each step."""
    states = 1
    keeps_state = False
    """Whether the new h has a share of the old one beside what the gates see of it."""
    splits_gradient = False
    """Whether the gradients of the gates of x are others than those of h."""

    def __init__(self, activation, recurrent_activation=None):
        self.activation: Any = activation
        self.recurrent_activation: Any = recurrent_activation

    def recurrent(self, backend, kernel, h, x) -> list:
        """Return what the step takes from h by matrix products."""
        return columns(backend.xp.matmul(h, kernel), self.gates)

    def recurrent_gradient(self, backend, kernel, dgates):
        """Return dL/dh by the product that all gates of h come from."""
        return backend.xp.matmul(dgates, kernel.T)

    def kernel_gradient(self, xp, h, saved, dgates):
        """Return dL/dkernel, where all arrays have the rows of all time steps."""
        return xp.matmul(h.T, dgates)

    def forward(self, xp, x, recurrent, states, extra) -> tuple[tuple, tuple]:
        """Return the new states, and what the backward pass needs."""
        raise NotImplementedError

    def backward(self, xp, dstates, states, saved, extra) -> tuple:
        """Return the gradients of the gates of h, of the states before, and of the gates of x.

        The first of the states is left out unless `keeps_state`, the last unless `splits_gradient`.
        """
        raise NotImplementedError

    inner: Any = None
    """The gradient, a formula like `backward`, of which `backward` is given a product with the kernel."""


def _run(activation, xp, x):
    """Return activation(x), and what its gradient needs."""
    y = activation.forward(xp, x)
    return y, (x if activation.needs_input else y)


def _value(activation, xp, saved):
    """Return activation(x) again from what was saved."""
    return activation.forward(xp, saved) if activation.needs_input else saved


class SimpleCell(Cell):
    """h' = activation(x + recurrent)"""

    gates = products = saved = 1

    def forward(self, xp, x, recurrent, states, extra):
        h, saved = _run(self.activation, xp, x[0] + recurrent[0])
        return (h,), (saved,)

    def backward(self, xp, dstates, states, saved, extra):
        return (self.activation.gradient(xp, dstates[0], saved[0]),), (), ()


class LSTMCell(Cell):
    """c' = forget * c + input * candidate;  h' = output * activation(c')"""

    gates = products = 4
    saved = 5
    states = 2

    def forward(self, xp, x, recurrent, states, extra):
        before_i, before_f, before_g, before_o = (a + b for a, b in zip(x, recurrent, strict=True))
        i, saved_i = _run(self.recurrent_activation, xp, before_i)
        f, saved_f = _run(self.recurrent_activation, xp, before_f)
        g, saved_g = _run(self.activation, xp, before_g)
        o, saved_o = _run(self.recurrent_activation, xp, before_o)
        c = f * states[1] + i * g
        y, saved_y = _run(self.activation, xp, c)
        return (o * y, c), (saved_i, saved_f, saved_g, saved_o, saved_y)

    def backward(self, xp, dstates, states, saved, extra):
        act, gate = self.activation, self.recurrent_activation
        (dh, dc), (i, f, o) = dstates, (_value(gate, xp, saved[k]) for k in (0, 1, 3))
        g, y = (_value(act, xp, saved[k]) for k in (2, 4))
        dc = dc + act.gradient(xp, dh * o, saved[4])
        dgates = (
            gate.gradient(xp, dc * g, saved[0]),
            gate.gradient(xp, dc * states[1], saved[1]),
            act.gradient(xp, dc * i, saved[2]),
            gate.gradient(xp, dh * y, saved[3]),
        )
        return dgates, (dc * f,), ()


class GRUCell(Cell):
    """h' = update * h + (1 - update) * activation(x + reset * (h @ kernel + bias))

    The bias inside, if there is one, is `extra`.
    """

    gates = products = 3
    saved = 4
    keeps_state = True
    splits_gradient = True

    def forward(self, xp, x, recurrent, states, extra):
        z, saved_z = _run(self.recurrent_activation, xp, x[0] + recurrent[0])
        r, saved_r = _run(self.recurrent_activation, xp, x[1] + recurrent[1])
        inner = recurrent[2] + extra[0] if extra else recurrent[2]
        g, saved_g = _run(self.activation, xp, x[2] + r * inner)
        return (z * states[0] + (1.0 - z) * g,), (saved_z, saved_r, saved_g, inner)

    def backward(self, xp, dstates, states, saved, extra):
        act, gate, dh = self.activation, self.recurrent_activation, dstates[0]
        z, r = (_value(gate, xp, saved[k]) for k in (0, 1))
        dg = act.gradient(xp, dh * (1.0 - z), saved[2])
        dz = gate.gradient(xp, dh * (states[0] - _value(act, xp, saved[2])), saved[0])
        dr = gate.gradient(xp, dg * saved[3], saved[1])
        return (dz, dr, dg * r), (dh * z,), (dz, dr, dg)


class ResetFirstGRUCell(Cell):
    """h' = update * h + (1 - update) * activation(x + (reset * h) @ kernel): the GRU of 2014.

    Its second product needs the reset gate, so that a step is two products and two kernels, either way.
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
        z, saved_z = _run(self.recurrent_activation, xp, x[0] + recurrent[0])
        _, saved_r = _run(self.recurrent_activation, xp, x[1] + recurrent[1])
        g, saved_g = _run(self.activation, xp, x[2] + recurrent[2])
        return (z * states[0] + (1.0 - z) * g,), (saved_z, saved_r, saved_g, recurrent[3])

    def inner(self, xp, dstates, states, saved, extra):
        z = _value(self.recurrent_activation, xp, saved[0])
        return self.activation.gradient(xp, dstates[0] * (1.0 - z), saved[2])

    def backward(self, xp, dstates, states, saved, extra):
        gate, dh = self.recurrent_activation, dstates[0]
        z, r = (_value(gate, xp, saved[k]) for k in (0, 1))
        dleft, *keep = extra
        for factor in keep:
            dleft = dleft * factor
        dz = gate.gradient(xp, dh * (states[0] - _value(self.activation, xp, saved[2])), saved[0])
        dr = gate.gradient(xp, dleft * states[0], saved[1])
        return (dz, dr, self.inner(xp, dstates, states, saved, extra)), (dh * z + dleft * r,), ()


@dataclass(frozen=True)
class Step:
    """A time step of a cell, for `Backend.scan`: equal ones are compiled once."""

    cell: Cell
    masked: bool
    dropped: bool


class Forward(Step):
    """A cell's step forward, for `Backend.scan`.

    carry: the states, and h as dropout leaves it if `dropped`
    xs: the gates of x, and the mask if `masked`
    fixed: the recurrent kernel, what else the cell takes, and the factors of dropout if `dropped`
    """

    @property
    def join(self) -> tuple[int, ...]:
        return (1,) * (self.cell.states + self.dropped + self.cell.saved)

    def arguments(self, backend, fixed, carry, x):
        """Return what the kernel of a step is given."""
        seen = carry[-1] if self.dropped else carry[0]
        recurrent = self.cell.recurrent(backend, fixed[0], seen, x)
        return (*recurrent, *carry[: self.cell.states], *x, *fixed[1:])

    def __call__(self, xp, *arrays):
        cell, rest = self.cell, iter(arrays)
        recurrent, states, x = (_next(rest, n) for n in (cell.products, cell.states, cell.gates))
        mask, extra = _next(rest, self.masked), list(rest)
        keep = [extra.pop()] if self.dropped else []
        new, saved = cell.forward(xp, x, recurrent, states, extra)
        if mask:
            new = tuple(xp.where(mask[0], a, b) for a, b in zip(new, states, strict=True))
        return (*new, *(new[0] * factor for factor in keep), *saved)


class Backward(Step):
    """A cell's step backward, for `Backend.scan`.

    carry: the gradients of all gates of h, side by side; of the states, of h only if `passes`
    xs: dL/dh from outside, the states before the step, what it saved, and the mask if `masked`
    fixed: the recurrent kernel, and the factors of dropout if `dropped`
    """

    @property
    def passes(self) -> bool:
        """Whether h has a gradient by the h before it that no gate sees."""
        return self.cell.keeps_state or self.masked

    @property
    def join(self) -> tuple[int, ...]:
        states = self.cell.states - 1 + self.passes
        return (self.cell.gates, *(1,) * states, *(self.cell.gates,) * self.cell.splits_gradient)

    def arguments(self, backend, fixed, carry, x):
        """Return what the kernel of a step is given."""
        by_gates = self.cell.recurrent_gradient(backend, fixed[0], carry[0])
        given = (by_gates, *carry[1:], *x, *fixed[1:])
        if self.cell.inner is None:
            return given
        units = fixed[0].shape[0]
        inner = backend.kernel(InnerGradient(self.cell, self.masked, self.dropped), *given)
        return (*given, backend.xp.matmul(inner, fixed[0][:, -units:].T))

    def read(self, xp, arrays) -> tuple:
        """Return (gradients of the new states, what of them passes the step by, states, saved, extra)."""
        cell, rest = self.cell, iter(arrays)
        (by_gates,), passed = _next(rest, 1), _next(rest, cell.states - 1 + self.passes)
        (dh,), states, saved = (_next(rest, n) for n in (1, cell.states, cell.saved))
        mask, keep = _next(rest, self.masked), _next(rest, self.dropped)
        for factor in keep:
            by_gates = by_gates * factor
        dh = dh + by_gates
        dstates = [dh + passed[0], *passed[1:]] if self.passes else [dh, *passed]
        skipped = []
        if mask:
            counts = xp.astype(mask[0], dh.dtype)
            skipped = [d * (1.0 - counts) for d in dstates]
            dstates = [d * counts for d in dstates]
        return dstates, skipped, states, saved, [*rest, *keep]

    def __call__(self, xp, *arrays):
        dstates, skipped, states, saved, extra = self.read(xp, arrays)
        dgates, dbefore, dx = self.cell.backward(xp, dstates, states, saved, extra)
        if skipped:
            added = skipped if self.cell.keeps_state else skipped[1:]
            dbefore = tuple(a + b for a, b in zip(dbefore, added, strict=True))
            dbefore = dbefore if self.cell.keeps_state else (skipped[0], *dbefore)
        return (*dgates, *dbefore, *dx)


class InnerGradient(Backward):
    """The kernel of `Cell.inner`, on what the kernel of the step is given."""

    def __call__(self, xp, *arrays):
        dstates, _, states, saved, extra = self.read(xp, arrays)
        return self.cell.inner(xp, dstates, states, saved, extra)


def _next(values, count: int) -> list:
    """Return the next `count` of an iterator."""
    return list(itertools.islice(values, int(count)))
