"""Scores of a search over settings, from the `cv_results_` of scikit-learn's searches."""

import numpy as np

from nnx.plot.axes import BLUE, MOST_LABELS, ORANGE, label, new_axes, tidy, write_cells
from nnx.registry import suggest


def validation_curve(search, parameter: str, ax=None):
    """Draw the scores of a search against one parameter, with the best value marked.

    Each value shows its best setting. Bands are one standard deviation over the folds, above and below.
    Training scores are drawn if the search has them (`return_train_score=True`): a gap between them and
    the validation scores shows overfitting.

    Parameters
    ----------
    search : fitted search, or its `cv_results_`
        Such as `GridSearchCV` or `RandomizedSearchCV`.
    parameter : str
        The name of the parameter, for example `build__units`.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes, with a logarithmic scale if the values span a factor of 20 or more

    Examples
    --------
    >>> import nnx
    >>> results = {"param_units": [4, 16, 64], "mean_test_score": [0.8, 0.9, 0.85], "std_test_score": [0.1] * 3}
    >>> ax = nnx.plot.validation_curve(results, "units")
    >>> ax.get_legend().get_texts()[-1].get_text()
    'best: 0.9 at 16'
    """
    results = _results(search, [parameter])
    values, best = _best_by(results, [parameter])
    names = [value for (value,) in values]
    numeric = all(isinstance(name, (int, float)) and not isinstance(name, bool) for name in names)
    x = np.asarray(names, float) if numeric else np.arange(len(names))
    ax = tidy(new_axes() if ax is None else ax)
    for kind, colour, name in (("train", BLUE, "training"), ("test", ORANGE, "validation")):
        if f"mean_{kind}_score" in results:
            mean, std = (
                np.asarray(results[f"{statistic}_{kind}_score"])[best] for statistic in ("mean", "std")
            )
            ax.plot(x, mean, color=colour, marker="o", markersize=4, label=name)
            ax.fill_between(x, mean - std, mean + std, color=colour, alpha=0.15, linewidth=0)
    mean = np.asarray(results["mean_test_score"], float)[best]
    k = np.nanargmax(mean)
    shown = f"{names[k]:.4g}" if numeric else _short(names[k])
    ax.plot(x[k], mean[k], "o", color=ORANGE, markeredgecolor="black", zorder=3,
            label=f"best: {mean[k]:.4g} at {shown}")  # fmt: skip
    if numeric and x.min() > 0 and x.max() >= 20 * x.min():
        ax.set_xscale("log")
    if len(names) <= 12:
        ax.set_xticks(x, [_short(name) for name in names])
        ax.set_xticks([], minor=True)
    elif not numeric:
        label(ax.xaxis, [_short(name) for name in names])
        ax.tick_params(axis="x", rotation=90)
    ax.set(xlabel=_short_name(parameter), ylabel="score", title=f"Score over {_short_name(parameter)}")
    ax.legend(frameon=False)
    return ax


def search_heatmap(search, x: str, y: str, ax=None):
    """Draw the scores of a grid search over two parameters as cells, with the best one framed.

    Each cell shows its best setting. For more than 25 values there are only some labels, and a colour bar
    in place of the scores.

    Parameters
    ----------
    search : fitted search, or its `cv_results_`
    x, y : str
        Names of the parameters in columns and in rows.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import nnx
    >>> results = {"param_units": [4, 4, 8, 8], "param_rate": [0.1, 0.2, 0.1, 0.2],
    ...            "mean_test_score": [0.7, 0.8, 0.75, 0.95]}
    >>> ax = nnx.plot.search_heatmap(results, "units", "rate")
    >>> [text.get_text() for text in ax.texts]
    ['0.700', '0.750', '0.800', '0.950']
    """
    results = _results(search, [x, y])
    pairs, best = _best_by(results, [x, y])
    columns, rows = (_in_order([pair[axis] for pair in pairs]) for axis in (0, 1))
    scores = np.full((len(rows), len(columns)), np.nan)
    for (column, row), k in zip(pairs, best, strict=True):
        scores[rows.index(row), columns.index(column)] = results["mean_test_score"][k]
    width, height = (min(len(values), MOST_LABELS) for values in (columns, rows))
    ax = new_axes((2.4 + 0.62 * width, 1.8 + 0.42 * height)) if ax is None else ax
    picture = ax.imshow(scores, cmap="Blues", aspect="auto", origin="lower")
    write_cells(ax, picture, scores, lambda score: "" if np.isnan(score) else f"{score:.3f}")
    row, column = np.unravel_index(np.nanargmax(scores), scores.shape)
    ax.add_patch(_frame(column, row))
    label(ax.xaxis, [_short(value) for value in columns])
    label(ax.yaxis, [_short(value) for value in rows])
    if len(columns) > MOST_LABELS:
        ax.tick_params(axis="x", rotation=90)
    ax.spines[:].set_visible(False)
    ax.set(xlabel=_short_name(x), ylabel=_short_name(y), title=f"Score, at best {np.nanmax(scores):.3f}")
    return ax


def _results(search, parameters) -> dict:
    """Return the `cv_results_` of a search, or raise a ValueError if it lacks these parameters."""
    results = getattr(search, "cv_results_", search)
    if not hasattr(results, "keys") or "mean_test_score" not in results:
        raise ValueError(
            f"expected a fitted search or its cv_results_, with a mean_test_score, got {search!r}"
        )
    if not np.isfinite(np.asarray(results["mean_test_score"], float)).any():
        raise ValueError("no setting of the search has a score: all fits have failed, or none was made")
    known = [name.removeprefix("param_") for name in results if name.startswith("param_")]
    for parameter in parameters:
        if parameter not in known:
            raise ValueError(suggest("parameter of the search", parameter, known))
    return results


def _best_by(results, parameters) -> tuple[list[tuple], list[int]]:
    """Return each combination of values of these parameters, in order, and the index of its best setting."""
    best: dict[tuple, int] = {}
    scores = np.asarray(results["mean_test_score"], float)
    columns = [list(results[f"param_{parameter}"]) for parameter in parameters]
    for k, values in enumerate(zip(*columns, strict=True)):
        key = tuple(value.item() if hasattr(value, "item") else value for value in values)
        if key not in best or scores[k] > scores[best[key]] or np.isnan(scores[best[key]]):
            best[key] = k
    keys = _in_order(list(best))
    return keys, [best[key] for key in keys]


def _in_order(values: list) -> list:
    """Return the distinct values, sorted if possible, else in their original order."""
    distinct = list(dict.fromkeys(values))
    try:
        return sorted(distinct)
    except TypeError:
        return distinct


def _short(value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return getattr(value, "__name__", None) or str(value)


def _short_name(parameter: str) -> str:
    """Return the readable last part of a name such as `step__build__units`."""
    return parameter.rpartition("__")[2].replace("_", " ")


def _frame(column, row):
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor="#D55E00", linewidth=2)
