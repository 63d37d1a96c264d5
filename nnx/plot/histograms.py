"""Histograms of weights and gradients by layer, from the input at the top to the output at the bottom."""

import numpy as np

from nnx import tree
from nnx.plot.axes import BLUE, GREY, label, new_axes, tidy


def weight_histograms(model, ax=None):
    """Draw a histogram of each weight array of a model, all on the same scale.

    Parameters
    ----------
    model : Model
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import nnx
    >>> model = nnx.Sequential([nnx.layers.Dense(8, input_shape=(4,)), nnx.layers.Dense(1)], seed=0)
    >>> ax = nnx.plot.weight_histograms(model)
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['dense/kernel', 'dense/bias', 'dense_1/kernel', 'dense_1/bias']
    """
    ax = _draw(_named(model, model.params), ax)
    ax.set(xlabel="weight", title="Weights by layer")
    return ax


def gradient_histograms(model, X, y, ax=None):
    """Draw a histogram of absolute gradients for each weight array, all on the same scale.

    Gradients that shrink from the output at the bottom to the input at the top vanish, as in deep networks
    of sigmoids; gradients that grow explode. The label gives the share of gradients that are 0, such as
    those of units that are off for all samples.

    Parameters
    ----------
    model : Model
        Compiled; it is not changed.
    X, y : array
        The samples of one training step.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes, with the size on a logarithmic scale

    Examples
    --------
    >>> import nnx
    >>> model = nnx.Sequential([nnx.layers.Dense(8, input_shape=(4,)), nnx.layers.Dense(1)], seed=0)
    >>> model.compile("sgd", "mse")
    >>> ax = nnx.plot.gradient_histograms(model, [[1.0, 2.0, 3.0, 4.0]], [1.0])
    >>> ax.get_xlabel(), ax.get_xscale()
    ('size of the gradient', 'log')
    """
    runner, samples = model.engine, model.check_batch((X, y, None))
    scalars = runner.scalars(model.step, model.step + 1)
    with model.backend.scope(model.dtype):
        scalars = {name: values[0] for name, values in model.backend.device_put(scalars).items()}
        grads, _, _ = runner.steps.gradients(model.params, model.state, runner.place(samples), scalars)
    named = {}
    for name, grad in _named(model, grads).items():
        zeros = np.mean(grad == 0)
        named[f"{name}\n{zeros:.0%} are 0" if zeros else name] = np.abs(grad)
    ax = _draw(named, ax, logarithmic=True)
    ax.set(xlabel="size of the gradient", title="Gradients by layer")
    return ax


def _named(model, arrays) -> dict[str, np.ndarray]:
    """Return the arrays of a tree like `model.params`, flat and on the host, by path."""
    paths = [path for kind, path in model.weight_paths() if kind == "params"]
    with model.backend.scope(model.dtype):
        return {
            "/".join(path): np.asarray(model.backend.to_numpy(tree.at(arrays, path)), float).ravel()
            for path in paths
        }


MOST_ROWS = 60
"""The most histograms with a label each; larger pictures do not grow further."""


def _draw(named: dict[str, np.ndarray], ax, logarithmic: bool = False):
    """Draw histograms in rows, each scaled to the height of its row."""
    if not named:
        raise ValueError("the model has no weights to draw")
    ax = tidy(new_axes((6.0, 1.2 + 0.38 * min(len(named), MOST_ROWS))) if ax is None else ax)
    values = [array[np.isfinite(array) & (array > 0 if logarithmic else True)] for array in named.values()]
    everything = np.concatenate([*values, np.zeros(0)])
    everything = everything if everything.size else np.ones(1)
    low, high = everything.min(), everything.max()
    if low == high:
        low, high = (low / 10, high * 10) if logarithmic else (low - 1, high + 1)
    edges = np.geomspace(low, high, 61) if logarithmic else np.linspace(low, high, 61)
    rows = np.arange(len(named))[::-1]
    for row, array in zip(rows, values, strict=True):
        counts, _ = np.histogram(array, edges)
        ax.stairs(
            row + 0.85 * counts / max(counts.max(), 1), edges, baseline=row, fill=True, color=BLUE, alpha=0.85
        )
        ax.axhline(row, color=GREY, linewidth=0.6)
    label(ax.yaxis, list(named), rows, MOST_ROWS)
    ax.set(ylim=(-0.1, len(named)), ylabel="how many, by layer", xscale="log" if logarithmic else "linear")
    return ax
