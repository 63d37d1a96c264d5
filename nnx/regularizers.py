"""Penalties on the size of weights or activities, added to the loss.

L1: l1 * sum |w|        L2: l2 * sum w**2        L1L2: both
"""

from typing import Any

from nnx.arguments import expect_range
from nnx.registry import REGISTRIES, Configurable

__all__ = ["L1", "L1L2", "L2", "Regularizer", "get", "l1", "l1_l2", "l2"]

_registry = REGISTRIES["regularizer"]


class Regularizer(Configurable):
    """Base of all regularizers.

    >>> import nnx, numpy as np
    >>> float(nnx.regularizers.L2(0.1).penalty(np, np.array([1.0, 2.0])))
    0.5
    """

    kind = "regularizer"
    per_sample = False
    """Whether the samples of a batch share the penalty: it is then divided by `Loss.divisor`."""

    def penalty(self, xp, w):
        """Return the scalar that is added to the loss."""
        raise NotImplementedError

    def gradient(self, xp, w, share: Any = 1.0):
        """Return its derivative by w, times `share`."""
        raise NotImplementedError


@_registry.register("l1l2", "l1_l2")
class L1L2(Regularizer):
    """l1 * sum |w| + l2 * sum w**2"""

    def __init__(self, l1: float = 0.0, l2: float = 0.0):
        expect_range(self, at_least=0, l1=l1, l2=l2)
        self.l1, self.l2 = l1, l2

    def penalty(self, xp, w):
        return self.l1 * xp.sum(xp.abs(w)) + self.l2 * xp.sum(w * w)

    def gradient(self, xp, w, share=1.0):
        return (share * self.l1) * xp.sign(w) + (share * 2 * self.l2) * w


@_registry.register("l1")
class L1(L1L2):
    """l1 * sum |w|: drives weights to exactly zero."""

    def __init__(self, l1: float = 0.01):
        super().__init__(l1=l1)


@_registry.register("l2")
class L2(L1L2):
    """l2 * sum w**2: keeps weights small."""

    def __init__(self, l2: float = 0.01):
        super().__init__(l2=l2)


l1, l2, l1_l2 = L1, L2, L1L2  # the names of Keras's first versions, still common


def get(regularizer) -> Regularizer | None:
    """Return the regularizer of this name, or None for None."""
    return None if regularizer is None else _registry.get(regularizer, Regularizer)
