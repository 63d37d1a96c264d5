"""Ways to merge arrays of several branches, as Keras's Concatenate, Add, Multiply, ... do.

y, split = MERGES[name](xp, outputs)        # split(dy): the gradient of each output
"""

import functools
import itertools
import operator


def _concat(xp, outputs):
    def split(dy):
        stops = list(itertools.accumulate(y.shape[-1] for y in outputs))
        return [dy[..., start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    return xp.concat(outputs, axis=-1), split


def _add(xp, outputs):
    return functools.reduce(operator.add, outputs), lambda dy: [dy] * len(outputs)


def _average(xp, outputs):
    share = 1 / len(outputs)
    return functools.reduce(operator.add, outputs) * share, lambda dy: [dy * share] * len(outputs)


def _multiply(xp, outputs):
    def split(dy):
        return [
            functools.reduce(operator.mul, outputs[:i] + outputs[i + 1 :], dy) for i in range(len(outputs))
        ]

    return functools.reduce(operator.mul, outputs), split


def _extreme(name):
    def merge(xp, outputs):
        y = functools.reduce(getattr(xp, name), outputs)

        def split(dy):
            # Equal outputs share the gradient.
            chosen = [xp.astype(output == y, dy.dtype) for output in outputs]
            share = dy / functools.reduce(operator.add, chosen)
            return [share * part for part in chosen]

        return y, split

    return merge


MERGES = {
    "concat": _concat,
    "add": _add,
    "multiply": _multiply,
    "average": _average,
    "maximum": _extreme("maximum"),
    "minimum": _extreme("minimum"),
}
