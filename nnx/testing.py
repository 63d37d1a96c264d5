"""Proofs for layers and losses: public, so that authors of layers and backends can use them.

`check_layer` shows that a hand-written pullback is the derivative of its forward pass:

1. on NumPy in float64, against a directional derivative of the forward pass alone,
       (L(w + h v) - L(w - h v)) / 2h  =  <dL/dw, v>      for a random direction v;
2. against the gradients that `nnx.vjp` derives from the forward pass alone, which on JAX are JAX's own;
3. on every backend present, against NumPy's numbers;

and that the layer keeps its word: the shape it announced, gradients for all its weights, nothing
written into its arguments, the dtype it was given.
"""

import warnings

import numpy as np

from nnx import tree
from nnx.backend import as_backend, available_backends
from nnx.context import Context
from nnx.data.samples import rows_of
from nnx.graph.derivatives import derive
from nnx.graph.graph import GraphError
from nnx.layers.base import Layer, run
from nnx.shapes import as_shapes, map_shapes

__all__ = ["check_layer", "check_loss"]

KEY = (0x12345678, 0x0BADCAFE)


def check_layer(
    layer: Layer,
    in_shape,
    *,
    batch: int = 3,
    x=None,
    mask=None,
    modes=(False, True),
    backends=None,
    tolerance: float = 1e-9,
) -> None:
    """Raise an AssertionError unless the layer's pullback is right on every backend.

    Parameters
    ----------
    layer : Layer
    in_shape : tuple of int, or dict or tuple of such
        The shape of one sample.
    batch : int
        Number of samples.
    x : array, optional
        The input, (batch, *in_shape); by default drawn from a normal distribution.
    mask : array of bool, optional
        Which time steps count, (batch, time); for several inputs a tuple or dict of masks or None.
    modes : tuple of bool
        The values of `ctx.training` to check.
    backends : list of str, optional
        By default all that can run here.
    tolerance : float
        Of the comparison between backends, relative to the largest value.

    Examples
    --------
    >>> import nnx
    >>> check_layer(nnx.layers.Dense(3, activation="tanh"), (4,))
    """
    rng = np.random.default_rng(0)
    in_shape = as_shapes(in_shape)
    if x is None:
        x = map_shapes(lambda shape: rng.standard_normal((batch, *shape)), in_shape)
    x = tree.map(lambda part: np.asarray(part, dtype=np.float64), x)
    params, out_shape = layer.init(rng, in_shape)
    assert layer.out_shape(in_shape) == out_shape, (
        f"out_shape says {layer.out_shape(in_shape)}, init {out_shape}"
    )
    # Weights away from their special starting values (zero biases, unit scales).
    params = tree.map(lambda w: w + 0.1 * rng.standard_normal(w.shape), params)
    state = tree.map(lambda s: s + 0.1 * rng.random(s.shape), layer.init_state(in_shape))
    dy = map_shapes(lambda shape: rng.standard_normal((rows_of(x), *shape)), out_shape)

    cases = [_Case(layer, params, state, x, dy, training, mask) for training in modes]
    expected = [computed for computed, _ in _results(cases, as_backend("numpy"))]
    for case, numbers in zip(cases, expected, strict=True):
        _check_promises(case, numbers, out_shape)
        _check_directional_derivative(case, numbers, rng)
    for name in backends or [n for n, info in available_backends().items() if info.usable]:
        for (computed, derived), numbers in zip(_results(cases, as_backend(name)), expected, strict=True):
            _compare(f"{name} and numpy", computed, numbers, tolerance)
            if derived:
                written = {"dx": numbers["dx"], "grads": numbers["grads"]}
                _compare(f"pullback and derived gradient on {name}", written, derived, tolerance)


def check_loss(loss, target, output, *, backends=None, tolerance: float = 1e-9) -> None:
    """Raise an AssertionError unless the loss's gradient is right on every backend.

    Parameters
    ----------
    loss : Loss
    target, output : array
        As `loss.forward` takes them.

    Examples
    --------
    >>> import nnx
    >>> check_loss(nnx.losses.MeanSquaredError(), [[1.0], [2.0]], [[3.0], [0.5]])
    """
    weight = np.random.default_rng(0).uniform(0.5, 1.5, np.shape(output)[:-1])
    check_layer(
        _LossLayer(loss, target, weight),
        np.shape(output)[1:],
        x=output,
        modes=(True,),
        backends=backends,
        tolerance=tolerance,
    )


class _LossLayer(Layer):
    """A loss seen as a layer: from the output to one value for each sample."""

    def __init__(self, loss, target, weight):
        super().__init__()
        self.loss, self.target, self.weight = loss, np.asarray(target), weight

    def out_shape(self, in_shape):
        return self.weight.shape[1:]

    def forward(self, ctx, params, x):
        target = self.target
        if target.dtype.kind == "f":
            target = target.astype(np.float32 if x.dtype == ctx.xp.float32 else np.float64)
        values, pullback = self.loss.run(ctx, ctx.backend.asarray(target), x)
        return values, lambda dvalues: (pullback(dvalues), {})


class _Case:
    """One layer with weights, input and output gradient, all on the host in float64."""

    def __init__(self, layer, params, state, x, dy, training, mask=None):
        self.layer, self.params, self.state = layer, params, state
        self.x, self.dy, self.training, self.mask = x, dy, training, mask

    def context(self, backend, state, **settings) -> Context:
        mask = tree.map(lambda m: None if m is None else backend.asarray(np.asarray(m)), self.mask)
        return Context(backend, training=self.training, state=state, key=KEY, mask=mask, **settings)

    def place(self, backend, dtype="float64"):
        """Return params, state, x and dy on the device."""

        def put(array):
            return backend.asarray(np.array(array, dtype=dtype))

        return tuple(tree.map(put, part) for part in (self.params, self.state, self.x, self.dy))

    def compute(self, backend, params, state, x, dy) -> dict:
        """Return output, gradients and new state as the layer computes them."""
        ctx = self.context(backend, state)
        y, pullback = run(self.layer, ctx, params, x)
        dx, grads = pullback(dy)
        return {"y": y, "dx": dx, "grads": grads, "state": ctx.state}

    def objective(self, backend, params, state, x, dy):
        """Return L = <y, dy> plus the layer's penalties, a scalar of the backend."""
        ctx = self.context(backend, state)
        y, _ = run(self.layer, ctx, params, x)
        products = tree.leaves(tree.map(lambda a, b: backend.xp.sum(a * b), y, dy))
        return sum(ctx.penalties + products[1:], products[0])

    def derive(self, backend, params, state, x, dy) -> dict:
        """Return the derived gradients, or nothing, with a warning, if an operation has no known derivative."""

        def objective(backend, params, x):
            return self.objective(backend, params, state, x, dy)

        try:
            value, pullback = derive(backend, objective, params, x)
            grads, dx = pullback(backend.xp.ones_like(value))
        except GraphError as error:
            warnings.warn(f"the pullback is not compared with a derived one: {error}", stacklevel=4)
            return {}
        return {"dx": dx, "grads": grads}


def _results(cases: list[_Case], backend) -> tuple:
    """Return what each case computes and what the backend derives, on the host.

    The cases differ in their mode alone. One program for all is compiled sooner than one for each.
    """

    def everything(*arrays):
        return tuple((case.compute(backend, *arrays), case.derive(backend, *arrays)) for case in cases)

    with backend.scope("float64"):
        return tree.map(backend.to_numpy, backend.compile(everything)(*cases[0].place(backend)))


def _check_promises(case: _Case, expected: dict, out_shape) -> None:
    backend, name = as_backend("numpy"), type(case.layer).__name__
    announced = map_shapes(lambda shape: (rows_of(case.x), *shape), out_shape)
    returned = tree.map(lambda y: y.shape, expected["y"])
    assert returned == announced, f"{name} announced outputs of shape {announced}, and returned {returned}"
    assert tree.paths(tree.copy(expected["grads"])) == tree.paths(tree.copy(case.params)), (
        f"{name} returned gradients for {tree.paths(expected['grads'])}, its weights are {tree.paths(case.params)}"
    )
    for dtype in ("float64", "float32"):
        given = params, state, x, dy = case.place(backend, dtype)
        before = [array.copy() for part in given for array in tree.leaves(part)]
        ctx = case.context(backend, state)
        y, pullback = run(case.layer, ctx, params, x)
        first, second = pullback(dy), pullback(dy)
        for a, b in zip(tree.leaves(_as_tree(first)), tree.leaves(_as_tree(second)), strict=True):
            assert np.array_equal(a, b), f"{name}: a second call of the pullback gives another result"
        after = [array for part in given for array in tree.leaves(part)]
        assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)), (
            f"{name} wrote into an array that it was given"
        )
        for what in (*tree.leaves(y), *tree.leaves(_as_tree(first)), *tree.leaves(ctx.state)):
            assert what.dtype == dtype, f"{name} makes {what.dtype} of {dtype}"
        ctx = case.context(backend, state, needs_input_gradient=False)
        grads = run(case.layer, ctx, params, x)[1](dy)[1]
        _compare("gradients without and with that of the input", grads, first[1], 1e-12)


def _as_tree(pair) -> dict:
    """Return (dx, grads) as one tree."""
    return {"dx": pair[0], "grads": pair[1]}


def _check_directional_derivative(case: _Case, expected: dict, rng) -> None:
    """Compare along three random directions; one must agree, as a kink may lie in the way of others."""
    backend = as_backend("numpy")
    params, state, x, dy = case.place(backend)
    errors = []
    for h in (1e-6, 1e-6, 1e-7):
        vx = tree.map(lambda part: rng.standard_normal(part.shape), x)
        vp = tree.map(lambda w: rng.standard_normal(w.shape), params)
        ends = [case.objective(backend, _moved(params, vp, s), state, _moved(x, vx, s), dy) for s in (h, -h)]
        numeric = float(ends[0] - ends[1]) / (2 * h)
        slopes = _products(expected["dx"], vx) + _products(expected["grads"], vp)
        largest = sum(float(np.sum(np.abs(part))) for part in _products(expected["y"], dy, np.multiply))
        size = max(1.0, float(np.sum(np.abs(slopes))), largest)
        errors.append(abs(numeric - float(np.sum(slopes))) / size)
    assert min(errors) < 1e-6, (
        f"{type(case.layer).__name__}'s pullback is not the derivative of its forward pass: along a random "
        f"direction they differ by {min(errors):.1e} of their size (training={case.training})"
    )


def _moved(values, direction, distance):
    return tree.map(lambda value, v: value + distance * v, values, direction)


def _products(a, b, function=np.vdot) -> list:
    """Return a function of each pair of leaves of two trees, by default the sum of their products."""
    return [function(u, v) for u, v in zip(tree.leaves(a), tree.leaves(b), strict=True)]


def _as_dicts(value):
    """Return a tree with dicts in place of its tuples."""
    if isinstance(value, tuple):
        value = {str(i): item for i, item in enumerate(value)}
    return {key: _as_dicts(item) for key, item in value.items()} if isinstance(value, dict) else value


def _compare(what: str, found: dict, expected: dict, tolerance: float) -> None:
    found, expected = _as_dicts(found), _as_dicts(expected)
    assert tree.paths(tree.copy(found)) == tree.paths(tree.copy(expected)), f"{what} differ in their keys"
    for path in tree.paths(tree.copy(expected)):
        if not path:
            continue
        a, b = (np.asarray(tree.at(t, path), dtype=np.float64) for t in (found, expected))
        assert a.shape == b.shape, f"{what} differ at {'/'.join(path)}: shapes {a.shape} and {b.shape}"
        limit = tolerance * max(1.0, float(np.max(np.abs(b), initial=0.0)))
        error = float(np.max(np.abs(a - b), initial=0.0))
        assert error <= limit, f"{what} differ at {'/'.join(path)} by {error:.1e}, more than {limit:.1e}"
