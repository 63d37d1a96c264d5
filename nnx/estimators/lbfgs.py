"""L-BFGS on all samples at once: SciPy's optimizer with nnx's gradients."""

import math
from itertools import accumulate, pairwise

import numpy as np
import scipy.optimize

from nnx import tree
from nnx.estimators.perceptron import dense_paths


def minimize(model, x, y, weight, *, max_iter: int, max_fun: int, tol: float):
    """Minimise the loss of a compiled model in place.

    Returns SciPy's result, and the kernels and biases in float64.
    """
    runner, backend = model.engine, model.backend
    paths = [path for kind in dense_paths(model.params) for path in kind]
    shapes = [tree.at(model.params, path).shape for path in paths]
    bounds = list(pairwise(accumulate(map(math.prod, shapes), initial=0)))

    def unpacked(flat) -> list:
        return [flat[i:j].reshape(shape) for (i, j), shape in zip(bounds, shapes, strict=True)]

    def packed(values):
        return np.concatenate([np.ravel(tree.at(values, path)) for path in paths])

    with backend.scope(model.dtype):
        batch = runner.place(model.check_batch((x, y, weight)))

        def loss_and_gradient(flat):
            params = tree.from_paths(paths, [backend.asarray(array) for array in unpacked(flat)])
            result = runner.steps.loss_and_gradients({"params": params, "state": model.state}, batch)
            (values,) = backend.read([result])
            return float(values["loss"]), packed(values["gradients"])

        start = packed(tree.map(backend.to_numpy, model.params))
        options = {"maxfun": max_fun, "maxiter": max_iter, "gtol": tol}
        result = scipy.optimize.minimize(
            loss_and_gradient, start, method="L-BFGS-B", jac=True, options=options
        )
    arrays = unpacked(result.x)
    model.params = tree.from_paths(paths, arrays)
    return result, arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]
