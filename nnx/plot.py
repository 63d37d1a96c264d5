"""Pictures of training and of predictions, by matplotlib.

Each function draws into the axes it is given, or into a new figure's, and returns them. Save with
`ax.figure.savefig("picture.png")`. Nothing outside these axes is changed: no style, no other figure.
Colours are those of Okabe and Ito (jfly.uni-koeln.de/color), told apart with any colour vision.
"""

import math

import numpy as np

from nnx import activations
from nnx.callbacks import EarlyStopping

__all__ = [
    "activation_gallery",
    "confusion_matrix",
    "decision_boundary",
    "learning_curves",
    "predicted_against_true",
]

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#6B6B6B"
CLASS_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#333333")
CLASS_MARKERS = "os^Dv<>P"


def learning_curves(history, metric: str = "loss", ax=None):
    """Draw a number over the epochs, on training and validation data, with the best epoch marked.

    Parameters
    ----------
    history : History or dict of str to list of float
        What `fit` returned, or its `history`.
    metric : str
        Which number, without `val_`.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    numbers = getattr(history, "history", history)
    if metric not in numbers:
        known = ", ".join(name for name in numbers if not name.startswith("val_"))
        raise ValueError(f"the history has no {metric!r}. It has: {known}")
    training, validation = (np.asarray(numbers.get(name, []), float) for name in (metric, f"val_{metric}"))
    first = next(iter(getattr(history, "epoch", [])), 0) + 1
    epochs = np.arange(first, first + len(training))
    ax = _tidy(_new_axes() if ax is None else ax)
    marker = "o" if len(training) == 1 else None
    ax.plot(epochs, training, color=BLUE, marker=marker, label="training")
    if len(validation):
        every = len(training) // len(validation)  # the validation_freq of `fit`
        epochs = epochs[every - 1 :: every][: len(validation)]
        ax.plot(epochs, validation, color=ORANGE, label="validation")
    if np.isfinite(validation).any():
        find_best = np.nanargmax if EarlyStopping(metric).rises else np.nanargmin
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


def activation_gallery(names=None, axes=None):
    """Draw activation functions and their derivatives, a panel each.

    Parameters
    ----------
    names : list of str or Activation, optional
        By default all that work element by element.
    axes : array of matplotlib Axes, optional
        At least one for each name.

    Returns
    -------
    array of matplotlib Axes, as given; by default (rows, columns), the legend in the first free one
    """
    if names is None:
        names = [name for name in activations.names() if activations.get(name).elementwise]
    found = [activations.get(name) for name in names]
    for activation in found:
        if not activation.elementwise:
            raise ValueError(f"{activation!r} works along an axis: it has no curve of one number to draw")
    if axes is None:
        columns = min(5, len(found))
        rows = math.ceil(len(found) / columns)
        axes = _new_axes((2.1 * columns, 1.8 * rows), rows, columns, squeeze=False)
        for ax in axes[:, 1:].flat:
            ax.tick_params(labelleft=False)
        for ax in axes[-1]:
            ax.set_xlabel("x")
    panels = np.ravel(axes)
    if len(panels) < len(found):
        raise ValueError(f"{len(found)} activations need as many axes, got {len(panels)}")
    x = np.linspace(-4, 4, 400)
    for name, activation, ax in zip(names, found, panels, strict=False):
        y = activation.forward(np, x)
        slope = activation.gradient(np, np.ones_like(x), x if activation.needs_input else y)
        _tidy(ax)
        for axis_line in (ax.axhline, ax.axvline):
            axis_line(0, color=GREY, linewidth=0.6)
        ax.plot(x, y, color=BLUE, label="function")
        ax.plot(x, slope, color=ORANGE, linestyle="--", label="derivative")
        ax.set(title=name if isinstance(name, str) else repr(name), xlim=(-4, 4), ylim=(-2, 3))
    spare = panels[len(found) :]
    for ax in spare:
        ax.set_axis_off()
    curves = panels[0].get_lines()[-2:]
    if len(spare):
        spare[0].legend(handles=curves, frameon=False, loc="center left")
    else:
        panels[0].legend(handles=curves, frameon=False, loc="upper left", fontsize="small", borderpad=0.1)
    return axes


def confusion_matrix(y_true, y_pred=None, class_names=None, ax=None):
    """Draw how often each class was predicted as each, with the counts in the cells.

    Parameters
    ----------
    y_true : array
        Labels, (samples,) or one-hot; or, without `y_pred`, the matrix of counts, (classes, classes),
        with a row for each true class.
    y_pred : array, optional
        Labels; or probabilities of each class, (samples, classes), or of the second of two,
        (samples, 1).
    class_names : list of str, optional
        By default the labels themselves.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    counts, labels = _count(y_true, y_pred, class_names)
    names = labels if class_names is None else class_names
    if len(names) != len(counts):
        raise ValueError(f"class_names has {len(names)} names, the matrix has {len(counts)} classes")
    ax = _new_axes(2 * [2.2 + 0.38 * len(counts)]) if ax is None else ax
    picture = ax.imshow(counts, cmap="Blues", vmin=0)
    for (row, column), count in np.ndenumerate(counts):
        *rgb, _ = picture.cmap(picture.norm(count))
        dark = np.dot(rgb, (0.299, 0.587, 0.114)) < 0.55
        colour = "white" if dark else GREY if count == 0 else "black"
        ax.text(column, row, f"{count:g}", ha="center", va="center", color=colour)
    ax.set_yticks(range(len(counts)), names)
    ax.set_xticks(range(len(counts)), names)
    if max(len(str(name)) for name in names) * len(names) > 20:
        ax.tick_params(axis="x", rotation=45)
        for text in ax.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    right = np.trace(counts) / max(counts.sum(), 1)
    ax.set(xlabel="predicted class", ylabel="true class", title=f"{right:.1%} of {counts.sum():g} right")
    return ax


def _count(y_true, y_pred, class_names):
    """Return the matrix of counts and the labels of its rows and columns."""
    if y_pred is None:
        counts = np.asarray(y_true)
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
            raise ValueError(
                f"expected a square matrix of counts, or y_true and y_pred; got shape {counts.shape}"
            )
        return counts, range(len(counts))
    true, predicted = _as_labels(y_true), _as_labels(y_pred)
    if len(true) != len(predicted):
        raise ValueError(f"y_true has {len(true)} samples, y_pred has {len(predicted)}")
    labels = np.union1d(true, predicted)
    if class_names is not None and labels.dtype.kind in "iu":
        labels = np.union1d(labels, np.arange(len(class_names)))  # a class that never occurs has a row too
    counts = np.zeros((len(labels), len(labels)), int)
    np.add.at(counts, (np.searchsorted(labels, true), np.searchsorted(labels, predicted)), 1)
    return counts, labels.tolist()


def _as_labels(y):
    """Return labels, of one-hot rows and of probabilities too."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] > 1:
        return y.argmax(axis=1)
    y = y.ravel()
    if y.dtype.kind != "f":
        return y.astype(int) if y.dtype.kind == "b" else y
    return (y >= 0.5).astype(int) if (y != np.round(y)).any() else y.astype(int)


def decision_boundary(model, X, y, ax=None):
    """Draw what a model of two features predicts everywhere, and the samples.

    The colour is the class, mixed where the model is unsure; lines part the classes.

    Parameters
    ----------
    model : Model
        Anything whose `predict` gives probabilities: of the second of two classes, (samples, 1), or of
        each class, (samples, classes).
    X : array, (samples, 2)
    y : array
        Class numbers, (samples,), or one-hot.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    feature_names = getattr(X, "columns", ("feature 1", "feature 2"))
    X, y = np.asarray(X, float), _as_labels(y)
    if X.ndim != 2 or X.shape[1] != 2:
        raise ValueError(f"decision_boundary draws a plane: X must have shape (samples, 2), got {X.shape}")
    low, high = X.min(axis=0), X.max(axis=0)
    margin = np.where(high > low, 0.1 * (high - low), 1.0)
    xs, ys = (np.linspace(a, b, 200) for a, b in zip(low - margin, high + margin, strict=True))
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)
    p = np.asarray(model.predict(grid.reshape(-1, 2))).reshape(200, 200, -1)
    p = np.concatenate([1 - p, p], axis=-1) if p.shape[-1] == 1 else p
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[-1]:
        raise ValueError(
            f"y must be class numbers from 0 to {p.shape[-1] - 1}, as the model has, got {np.unique(y)}"
        )
    colours, markers = (np.resize(list(c), p.shape[-1]) for c in (CLASS_COLOURS, CLASS_MARKERS))

    ax = _new_axes() if ax is None else ax
    extent = (xs[0], xs[-1], ys[0], ys[-1])
    ax.imshow(_blend(p, colours), extent=extent, origin="lower", aspect="auto", interpolation="bilinear")
    for k in range(p.shape[-1] if p.shape[-1] > 2 else 1):
        lead = p[..., k] - np.delete(p, k, axis=-1).max(axis=-1)
        if lead.min() < 0 < lead.max():
            ax.contour(xs, ys, lead, levels=[0], colors="black", linewidths=1)
    for k in np.unique(y):
        style = {"c": colours[k], "marker": markers[k], "edgecolors": "white", "linewidths": 0.8}
        ax.scatter(*X[y == k].T, s=36, label=f"class {k}", zorder=3, **style)
    ax.set(xlim=extent[:2], ylim=extent[2:], title="Predicted class and samples")
    ax.set(xlabel=feature_names[0], ylabel=feature_names[1])
    ax.legend(edgecolor="none", framealpha=0.85)
    return ax


def _blend(p, colours):
    """Return the classes' colours mixed by probability, made pale: (..., classes) -> (..., 3)."""
    from matplotlib.colors import to_rgb

    return 1 - 0.35 * (1 - np.clip(p, 0, 1) @ np.asarray([to_rgb(colour) for colour in colours]))


def predicted_against_true(y_true, y_pred, unit: str | None = None, ax=None):
    """Draw predictions of a regression against the truth, and the line where both are equal.

    Parameters
    ----------
    y_true, y_pred : array, (samples,) or (samples, 1)
    unit : str, optional
        Of both, for the labels.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    true, predicted = (np.asarray(y, float).ravel() for y in (y_true, y_pred))
    if true.shape != predicted.shape:
        raise ValueError(f"y_true has {true.size} values, y_pred has {predicted.size}")
    mse, variance = np.mean((predicted - true) ** 2), np.var(true)
    r2 = 1 - mse / variance if variance else math.nan
    ax = _tidy(_new_axes((4.5, 4.5)) if ax is None else ax)
    ax.axline((true[0], true[0]), slope=1, color=GREY, linewidth=1, label="predicted = true", zorder=1)
    ax.scatter(true, predicted, color=BLUE, alpha=0.6, edgecolors="white", linewidths=0.5, label="sample")
    suffix = f" ({unit})" if unit else ""
    ax.set(xlabel=f"true value{suffix}", ylabel=f"predicted value{suffix}")
    ax.set(title=f"R² = {r2:.3f}, RMSE = {math.sqrt(mse):.4g}{' ' + unit if unit else ''}")
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(frameon=False, loc="upper left")
    return ax


def _new_axes(size=(6.0, 4.0), rows=1, columns=1, squeeze=True):
    """Return the axes of a new figure of this size, in inches."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        message = f"nnx.plot needs matplotlib ({error}). Install it with: pip install 'nnx-engine[plot]'"
        raise ImportError(message) from error
    return pyplot.subplots(rows, columns, figsize=size, squeeze=squeeze, layout="constrained", dpi=120)[1]


def _tidy(ax):
    """Take away what is no data: the frame above and to the right, and a heavy grid."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="#E6E6E6", linewidth=0.6)
    ax.set_axisbelow(True)
    return ax
