"""L-BFGS on all samples at once: SciPy's search with nnx's gradients."""

import math
from itertools import accumulate, pairwise

import numpy as np
import scipy.optimize

from nnx import tree
from nnx.estimators.perceptron import dense_paths


def minimize(model, x, y, weight, *, max_iter: int, max_fun: int, tol: float):
    """Minimise the loss of a compiled model in place.

    Returns what SciPy says about it, and the kernels and biases in double precision.
    """
    runner, backend, shapes = model.engine, model.backend, tree.map(lambda p: p.shape, model.params)
    paths = [path for part in dense_paths(shapes) for path in part]
    sizes = [math.prod(tree.at(shapes, path)) for path in paths]
    places = list(pairwise(accumulate(sizes, initial=0)))

    def unpacked(flat):
        arrays = [
            flat[start:stop].reshape(tree.at(shapes, path))
            for path, (start, stop) in zip(paths, places, strict=True)
        ]
        return tree.from_paths(paths, arrays)

    def packed(values):
        return np.concatenate([np.ravel(tree.at(values, path)) for path in paths])

    with backend.scope(model.dtype):
        batch = runner.place(model.check_batch((x, y, weight)))

        def loss_and_gradient(flat):
            params = tree.map(backend.asarray, unpacked(flat))
            found = runner.steps.loss_and_gradients({"params": params, "state": model.state}, batch)
            (read,) = backend.read([found])
            return float(read["loss"]), packed(read["gradients"])

        start = packed(tree.map(backend.to_numpy, model.params))
        options = {"maxfun": max_fun, "maxiter": max_iter, "gtol": tol}
        found = scipy.optimize.minimize(
            loss_and_gradient, start, method="L-BFGS-B", jac=True, options=options
        )
    model.params = unpacked(found.x)
    arrays = [
        found.x[start:stop].reshape(tree.at(shapes, path))
        for path, (start, stop) in zip(paths, places, strict=True)
    ]
    return found, arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]
