"""Learning curves: loss and metrics by epoch."""

import numpy as np

from nnx.callbacks.monitors import is_higher_better
from nnx.plot.axes import BLUE, GREY, ORANGE, new_axes, tidy


def learning_curves(history, metric: str = "loss", ax=None):
    """Draw a metric by epoch, on training and validation data, with the best epoch marked.

    Parameters
    ----------
    history : History or dict of str to list of float
        The result of `fit`, or its `history`.
    metric : str
        The metric, without `val_`.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import nnx
    >>> ax = nnx.plot.learning_curves({"loss": [3.0, 2.0, 1.0], "val_loss": [3.0, 1.5, 2.5]})
    >>> ax.get_legend().get_texts()[-1].get_text()
    'best: 1.5 in epoch 2'
    """
    values = getattr(history, "history", history)
    if metric not in values:
        known = ", ".join(name for name in values if not name.startswith("val_"))
        raise ValueError(f"the history has no {metric!r}. It has: {known}")
    training, validation = (np.asarray(values.get(name, []), float) for name in (metric, f"val_{metric}"))
    first = next(iter(getattr(history, "epoch", [])), 0) + 1
    epochs = np.arange(first, first + len(training))
    ax = tidy(new_axes() if ax is None else ax)
    marker = "o" if len(training) == 1 else None
    ax.plot(epochs, training, color=BLUE, marker=marker, label="training")
    if len(validation):
        every = len(training) // len(validation)  # the validation_freq of `fit`
        epochs = epochs[every - 1 :: every][: len(validation)]
        ax.plot(epochs, validation, color=ORANGE, label="validation")
    rises = is_higher_better(metric, getattr(history, "model", None))
    if rises is not None and np.isfinite(validation).any():
        find_best = np.nanargmax if rises else np.nanargmin
        epoch, value = epochs[find_best(validation)], validation[find_best(validation)]
        label = f"best: {value:.4g} in epoch {epoch}"
        ax.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":")
        ax.plot(epoch, value, "o", color=ORANGE, markeredgecolor="white", zorder=3, label=label)
    name = metric.replace("_", " ")
    ax.set(xlabel="epoch", ylabel=name, title=f"{name.capitalize()} during training")
    ax.locator_params(axis="x", integer=True)
    ax.margins(x=0.02)
    ax.legend(frameon=False)
    return ax
