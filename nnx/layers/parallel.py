"""Parallel branches: with one input or several, with one output or several.

Parallel(f, g)                      y = f(x) and g(x) merged: concatenated, or their sum, product, mean, ...
Inputs({"a": f, "b": g})            y = f(x["a"]) and g(x["b"]) merged
Outputs({"a": f, "b": g})           y = {"a": f(x), "b": g(x)}
"""

import copy
import functools
import operator
from typing import Any

from nnx import tree
from nnx.layers.base import describe_shape, register, run, size
from nnx.layers.containers import Container, as_layer, expect_different, with_keys
from nnx.layers.merges import MERGES
from nnx.shapes import is_single


class _Branches(Container):
    """Several layers, in order or by name, whose outputs are merged unless `merge` is None."""

    merge: str | None
    named: bool

    def __init__(self, *branches, **settings):
        super().__init__(**settings)
        kind = type(self).__name__
        self.named = len(branches) == 1 and isinstance(branches[0], dict)
        if not branches or (self.named and not branches[0]):
            raise ValueError(f"{kind} needs at least one branch")
        if self.named:
            self._keyed = [(str(name), as_layer(branch)) for name, branch in branches[0].items()]
            self.branches: tuple = (dict(self._keyed),)
        else:
            self.branches = tuple(as_layer(branch) for branch in branches)
            self._keyed = with_keys(self.branches)
        expect_different(self)
        if self.merge is not None and self.merge not in MERGES:
            raise ValueError(f"{kind}: merge must be one of {', '.join(MERGES)}, got {self.merge!r}")

    @property
    def places(self) -> list:
        """The names of the branches, or their indices."""
        return [key for key, _ in self._keyed] if self.named else list(range(len(self._keyed)))

    def with_layers(self, layers):
        """Return the same container with other branches, under the same keys."""
        changed = copy.copy(self)
        changed._keyed = [(key, layer) for (key, _), layer in zip(self._keyed, layers, strict=True)]
        return changed

    def parts(self, whole) -> list:
        """Return the input, its shape or its mask for each branch."""
        return [whole] * len(self._keyed)

    def each(self, whole) -> list:
        """Return the entries of a dict or a tuple, one for each branch."""
        return [whole[key] for key, _ in self._keyed] if self.named else list(whole)

    def together(self, entries) -> Any:
        """Return a dict or a tuple of one entry for each branch."""
        if not self.named:
            return tuple(entries)
        return {key: entry for (key, _), entry in zip(self._keyed, entries, strict=True)}

    def in_shapes(self, in_shape):
        return self.parts(in_shape)

    def out_shape(self, in_shape):
        pairs = zip(self.layers, self.in_shapes(in_shape), strict=True)
        shapes: Any = [branch.out_shape(shape) for branch, shape in pairs]
        if self.merge is None:
            return self.together(shapes)
        joined = self.merge == "concat"
        single = all(map(is_single, shapes))
        if not single or len({shape[:-1] if joined else shape for shape in shapes}) != 1:
            listed = ", ".join(map(describe_shape, shapes))
            what = "equal but for the last axis" if joined else "equal"
            raise ValueError(
                f"{type(self).__name__}(merge={self.merge!r}) needs outputs of {what} shapes, got {listed}"
            )
        return (*shapes[0][:-1], sum(s[-1] for s in shapes)) if joined else shapes[0]

    def forward(self, ctx, params, x):
        needed, masks, runs = ctx.needs_input_gradient, [], []
        in_masks = [None] * len(self._keyed) if ctx.mask is None else self.parts(ctx.mask)
        for (key, branch), own_x, mask in zip(self._keyed, self.parts(x), in_masks, strict=True):
            inner = ctx.at(key, needed)
            inner.mask = mask
            runs.append(run(branch, inner, params.get(key, {}), own_x))
            masks.append(inner.mask)
        ctx.mask = self._merged_mask(ctx.xp, masks)
        outputs = [y for y, _ in runs]
        merge = MERGES[self.merge] if self.merge is not None else self._side_by_side
        y, split = merge(ctx.xp, outputs)

        def pullback(dy):
            dxs, grads = [], {}
            for (key, _), (_, pull), own_dy in zip(self._keyed, runs, split(dy), strict=True):
                dx, weights = pull(own_dy)
                dxs.append(dx)
                if weights:
                    grads[key] = weights
            return self.gather_gradients(dxs) if needed else None, grads

        return y, pullback

    def _side_by_side(self, xp, outputs):
        return self.together(outputs), self.each

    def _merged_mask(self, xp, masks):
        known = [mask for mask in masks if mask is not None]
        if self.merge is None:
            return self.together(masks) if known else None
        return functools.reduce(xp.logical_and, known) if known else None

    def gather_gradients(self, dxs) -> Any:
        """Return the gradient of the input from the gradients of the branches."""
        return functools.reduce(lambda a, b: tree.map(operator.add, a, b), dxs)

    def flops(self, in_shape):
        merged = 0
        if self.merge not in (None, "concat"):
            merged = (len(self.layers) - 1) * size(self.out_shape(in_shape))
        return super().flops(in_shape) + merged


@register("parallel")
class Parallel(_Branches):
    """Feed the input to several layers and merge their outputs.

    Parameters
    ----------
    *branches : Layer, or list of layers run one after another
        Or one dict of them.
    merge : {"concat", "add", "multiply", "average", "maximum", "minimum"}
        What Keras's Concatenate (along the last axis), Add, Multiply, Average, Maximum and Minimum
        do with the outputs.

    Examples
    --------
    >>> import nnx
    >>> both = nnx.layers.Parallel(nnx.layers.Activation("relu"), nnx.layers.Activation("linear"))
    >>> nnx.apply(both, [[-1.0, 2.0]])
    array([[ 0.,  2., -1.,  2.]], dtype=float32)
    """

    def __init__(self, *branches, merge: str | None = "concat", **settings):
        self.merge = merge
        super().__init__(*branches, **settings)
        if merge is None:
            raise ValueError("Parallel: merge must name a way to merge; for several outputs use Outputs")

    @property
    def categories(self):
        """The smallest count of any branch, if all take category indices."""
        return _fewest(self.layers)


def _fewest(branches):
    counts = [branch.categories for branch in branches]
    known = [count for count in counts if isinstance(count, int)]
    return min(known) if len(known) == len(counts) else None


@register("outputs")
class Outputs(_Branches):
    """Feed the input to several layers and return all their outputs, as the last layer of a model.

    Such a model is compiled with a loss for each output, and predicts a dict or a tuple of arrays.

    Parameters
    ----------
    *branches : dict of output name to Layer, or to a list of layers run one after another
        Or the layers alone: then the outputs are a tuple.

    Examples
    --------
    >>> import nnx
    >>> heads = nnx.layers.Outputs({"up": nnx.layers.ReLU(), "same": []})
    >>> nnx.apply(heads, [[-1.0, 2.0]])
    {'same': array([[-1.,  2.]], dtype=float32), 'up': array([[0., 2.]], dtype=float32)}
    """

    merge = None

    @property
    def categories(self):
        return _fewest(self.layers)


@register("inputs")
class Inputs(_Branches):
    """Feed each of several inputs to its own layers and merge their outputs, as the first layer of a model.

    The input of the model is a dict of arrays with these names, or a tuple of arrays.

    Parameters
    ----------
    *branches : dict of input name to Layer, or to a list of layers run one after another
        Or the layers alone: then the input is a tuple. An empty list leaves an input unchanged.
    merge : {"concat", "add", "multiply", "average", "maximum", "minimum"}, optional
        As in `Parallel`; None returns a dict or a tuple of outputs.

    Examples
    --------
    >>> import nnx
    >>> sides = nnx.layers.Inputs({"left": [], "right": nnx.layers.ReLU()})
    >>> nnx.apply(sides, {"left": [[1.0, 2.0]], "right": [[-3.0]]})
    array([[1., 2., 0.]], dtype=float32)
    """

    def __init__(self, *branches, merge: str | None = "concat", **settings):
        self.merge = merge
        super().__init__(*branches, **settings)

    @property
    def categories(self):
        """Those of each branch, if any branch has some."""
        counts = [branch.categories for branch in self.layers]
        return None if all(count is None for count in counts) else self.together(counts)

    def in_shapes(self, in_shape):
        names = [key for key, _ in self._keyed]
        if self.named and not (isinstance(in_shape, dict) and set(in_shape) == set(names)):
            raise ValueError(
                f"Inputs expects a dict of arrays with the names {', '.join(map(repr, names))}, got "
                f"{describe_shape(in_shape)}"
            )
        if not self.named and (
            is_single(in_shape) or len(in_shape) != len(names) or isinstance(in_shape, dict)
        ):
            raise ValueError(f"Inputs expects a tuple of {len(names)} arrays, got {describe_shape(in_shape)}")
        return self.each(in_shape)

    def parts(self, whole):
        return self.each(whole)

    def gather_gradients(self, dxs):
        return self.together(dxs)
