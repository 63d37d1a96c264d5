"""Small problems to minimise, with gradients in plain NumPy: shared by the script that makes the
reference numbers and by the test that compares nnx with them.

A problem is a pair: `start`, the parameters it starts from, and `gradient(params) -> grads`.
"""

import numpy as np

_SCALES = {"steep": np.array([100.0, 1.0, 0.01]), "flat": np.array([10.0, 0.1])}

_INPUTS = np.array([[0.5, -1.0], [1.5, 0.3], [-0.7, 0.8], [-1.2, -0.4], [0.1, 1.9]])
_TARGETS = np.array([[0.9], [-0.2], [1.4], [0.3], [-1.1]])


def _quadratic_gradient(params):
    """Return the gradient of sum(scale * param**2) / 2."""
    return {name: scale * params[name] for name, scale in _SCALES.items()}


def _regression_gradient(params):
    """Return the gradient of mean((tanh(inputs @ hidden) @ output - targets)**2)."""
    activity = np.tanh(_INPUTS @ params["hidden"])
    error = 2 * (activity @ params["output"] - _TARGETS) / len(_TARGETS)
    before_tanh = error @ params["output"].T * (1 - activity**2)
    return {"hidden": _INPUTS.T @ before_tanh, "output": activity.T @ error}


PROBLEMS = {
    "quadratic": (
        {"steep": np.array([1.0, -2.0, 3.0]), "flat": np.array([0.5, -1.5])},
        _quadratic_gradient,
    ),
    "regression": (
        {
            "hidden": np.array([[0.4, -0.9, 0.2], [0.7, 0.1, -0.6]]),
            "output": np.array([[0.8], [-0.5], [0.3]]),
        },
        _regression_gradient,
    ),
}
