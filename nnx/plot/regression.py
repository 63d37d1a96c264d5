"""Predictions of a regression, and their residuals."""

import math

import numpy as np

from nnx.plot.axes import BLUE, GREY, new_axes, some_of, tidy


def predicted_against_true(y_true, y_pred, unit: str | None = None, ax=None):
    """Draw predictions of a regression against true values, and the line where both are equal.

    Parameters
    ----------
    y_true, y_pred : array, (samples,) or (samples, 1)
        Finite numbers. At most 20,000 samples are drawn; the title describes all.
    unit : str, optional
        Unit of both, for the labels.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import nnx
    >>> nnx.plot.predicted_against_true([1.0, 2.0, 3.0], [1.0, 2.0, 2.0], unit="kg").get_title()
    'R² = 0.500, RMSE = 0.5774 kg'
    """
    true, predicted = _pairs(y_true, y_pred)
    mse, variance = np.mean((predicted - true) ** 2), np.var(true)
    r2 = 1 - mse / variance if variance else math.nan
    ax = tidy(new_axes((4.5, 4.5)) if ax is None else ax)
    ax.axline((true[0], true[0]), slope=1, color=GREY, linewidth=1, label="predicted = true", zorder=1)
    _scatter(ax, true, predicted)
    suffix = f" ({unit})" if unit else ""
    ax.set(xlabel=f"true value{suffix}", ylabel=f"predicted value{suffix}")
    ax.set(title=f"R² = {r2:.3f}, RMSE = {math.sqrt(mse):.4g}{' ' + unit if unit else ''}")
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(frameon=False, loc="upper left")
    return ax


def residuals(y_true, y_pred, unit: str | None = None, ax=None):
    """Draw the residuals of a regression against its predictions, and the line of no error.

    A good model leaves a cloud without structure; a bend shows a missed curve, a funnel an error that
    grows with the prediction.

    Parameters
    ----------
    y_true, y_pred, unit, ax
        As for `predicted_against_true`.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import nnx
    >>> nnx.plot.residuals([1.0, 2.0, 3.0], [1.0, 2.0, 2.0], unit="kg").get_title()
    'Residuals: mean 0.3333 kg, standard deviation 0.4714 kg'
    """
    true, predicted = _pairs(y_true, y_pred)
    errors, suffix, after = true - predicted, f" ({unit})" if unit else "", f" {unit}" if unit else ""
    ax = tidy(new_axes() if ax is None else ax)
    ax.axhline(0, color=GREY, linewidth=1, label="no error", zorder=1)
    _scatter(ax, predicted, errors)
    ax.set(xlabel=f"predicted value{suffix}", ylabel=f"true - predicted value{suffix}")
    ax.set_title(f"Residuals: mean {errors.mean():.4g}{after}, standard deviation {errors.std():.4g}{after}")
    ax.legend(frameon=False)
    return ax


def _scatter(ax, x, y):
    index, label = some_of(len(x))
    ax.scatter(x[index], y[index], color=BLUE, alpha=0.6, edgecolors="white", linewidths=0.5, label=label)


def _pairs(y_true, y_pred):
    true, predicted = (np.asarray(y, float).ravel() for y in (y_true, y_pred))
    if true.shape != predicted.shape:
        raise ValueError(f"y_true has {true.size} values, y_pred has {predicted.size}")
    if not true.size:
        raise ValueError("there are no samples to draw: y_true is empty")
    for name, values in (("y_true", true), ("y_pred", predicted)):
        if not np.isfinite(values).all():
            count = np.count_nonzero(~np.isfinite(values))
            raise ValueError(f"{name} has {count} values that are not finite: leave out such samples")
    return true, predicted
