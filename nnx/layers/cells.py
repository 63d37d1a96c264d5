"""Cells: one time step of a recurrent layer, forward and backward, as elementwise formulas.

A step needs two products, x @ kernel and h @ recurrent_kernel. The first is computed for all time
steps at once; the second and the cell's formulas run step by step (`Backend.scan`), as one product
and one kernel per step.

    gates of x, gates of h, states  ->  new states, saved                   forward
    dL/d(new states), states, saved ->  dL/d(gates), dL/dstates             backward

The cells are defined beside their layers, in `simple_rnn`, `lstm` and `gru`.
"""

import itertools
from dataclasses import dataclass
from typing import Any


def columns(array, count: int) -> list:
    """Return the last axis split into `count` equal parts, as views where the library has them."""
    width = array.shape[-1] // count
    return [array[..., k * width : (k + 1) * width] for k in range(count)]


class Cell:
    """Base of all cells.

    Parameters
    ----------
    activation, recurrent_activation : Activation
        Functions of the state and of the gates; all are elementwise.
    """

    gates: int
    """Columns of x @ kernel for each unit."""
    products: int
    """Number of arrays that `recurrent` returns."""
    saved: int
    """Number of arrays that the backward pass needs from each step."""
    states = 1
    keeps_state = False
    """Whether the new h depends on the old h directly too, not only through the gates."""
    splits_gradient = False
    """Whether the gradients of the gates of x differ from those of h."""

    def __init__(self, activation, recurrent_activation=None):
        self.activation: Any = activation
        self.recurrent_activation: Any = recurrent_activation

    def recurrent(self, backend, kernel, h, x) -> list:
        """Return the products of h that the step uses."""
        return columns(backend.xp.matmul(h, kernel), self.gates)

    def recurrent_gradient(self, backend, kernel, dgates):
        """Return dL/dh through the gates."""
        return backend.xp.matmul(dgates, kernel.T)

    def kernel_gradient(self, xp, h, saved, dgates):
        """Return dL/dkernel; each array holds all time steps, (time * batch, ...)."""
        return xp.matmul(h.T, dgates)

    def forward(self, xp, x, recurrent, states, extra) -> tuple[tuple, tuple]:
        """Return the new states, and the arrays that the backward pass needs."""
        raise NotImplementedError

    def backward(self, xp, dstates, states, saved, extra) -> tuple:
        """Return the gradients of the gates of h, of the previous states, and of the gates of x.

        The gradient of the previous h is left out unless `keeps_state`; those of the gates of x are empty
        unless `splits_gradient`.
        """
        raise NotImplementedError

    inner: Any = None
    """A formula with the arguments of `backward`: a gradient whose product with the kernel `backward` needs."""


def activate(activation, xp, x):
    """Return activation(x), and the array that its gradient needs."""
    y = activation.forward(xp, x)
    return y, (x if activation.needs_input else y)


def activation_value(activation, xp, saved):
    """Return activation(x), computed from the saved array."""
    return activation.forward(xp, saved) if activation.needs_input else saved


@dataclass(frozen=True)
class Step:
    """A time step of a cell, for `Backend.scan`. Equal steps are compiled once."""

    cell: Cell
    masked: bool
    dropped: bool


class Forward(Step):
    """A cell's step forward, for `Backend.scan`.

    carry: the states, and h after dropout if `dropped`
    xs: the gates of x, and the mask if `masked`
    fixed: the recurrent kernel, further arguments of the cell, and the factors of dropout if `dropped`
    """

    @property
    def join(self) -> tuple[int, ...]:
        return (1,) * (self.cell.states + self.dropped + self.cell.saved)

    def arguments(self, backend, fixed, carry, x):
        """Return the arguments of the kernel of a step."""
        h = carry[-1] if self.dropped else carry[0]
        recurrent = self.cell.recurrent(backend, fixed[0], h, x)
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

    carry: the concatenated gradients of the gates of h; those of the states, of h only if `bypasses`
    xs: dL/dh from the output, the states before the step, its saved arrays, and the mask if `masked`
    fixed: the recurrent kernel, and the factors of dropout if `dropped`
    """

    @property
    def bypasses(self) -> bool:
        """Whether h depends on the previous h also directly, not only through the gates."""
        return self.cell.keeps_state or self.masked

    @property
    def join(self) -> tuple[int, ...]:
        states = self.cell.states - 1 + self.bypasses
        return (self.cell.gates, *(1,) * states, *(self.cell.gates,) * self.cell.splits_gradient)

    def arguments(self, backend, fixed, carry, x):
        """Return the arguments of the kernel of a step."""
        through_gates = self.cell.recurrent_gradient(backend, fixed[0], carry[0])
        arguments = (through_gates, *carry[1:], *x, *fixed[1:])
        if self.cell.inner is None:
            return arguments
        units = fixed[0].shape[0]
        inner = backend.kernel(InnerGradient(self.cell, self.masked, self.dropped), *arguments)
        return (*arguments, backend.xp.matmul(inner, fixed[0][:, -units:].T))

    def read(self, xp, arrays) -> tuple:
        """Return (gradients of the new states, their share that skips masked steps, states, saved, extra)."""
        cell, rest = self.cell, iter(arrays)
        (through_gates,), direct = _next(rest, 1), _next(rest, cell.states - 1 + self.bypasses)
        (dh,), states, saved = (_next(rest, n) for n in (1, cell.states, cell.saved))
        mask, keep = _next(rest, self.masked), _next(rest, self.dropped)
        for factor in keep:
            through_gates = through_gates * factor
        dh = dh + through_gates
        dstates = [dh + direct[0], *direct[1:]] if self.bypasses else [dh, *direct]
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
    """The kernel of `Cell.inner`; it takes the arguments of the step's kernel."""

    def __call__(self, xp, *arrays):
        dstates, _, states, saved, extra = self.read(xp, arrays)
        return self.cell.inner(xp, dstates, states, saved, extra)


def _next(values, count: int) -> list:
    """Return the next `count` items of an iterator."""
    return list(itertools.islice(values, int(count)))
