"""The predictions of a classifier of two features, over the plane."""

import numpy as np

from nnx.plot.axes import CLASS_COLOURS, CLASS_MARKERS, MOST_LABELS, new_axes, some_of
from nnx.plot.confusion import as_labels


def decision_boundary(model, X, y, ax=None):
    """Draw the predictions of a model of two features over the plane, and the samples.

    Colours show the classes, mixed by probability; lines separate the classes. There is no legend for more
    than 25 classes, which repeat colours. At most 20,000 samples are drawn.

    Parameters
    ----------
    model : Model or scikit-learn classifier
        Any object whose `predict_proba`, or else `predict`, returns probabilities: of the second of two
        classes, (samples, 1), or of each class, (samples, classes).
    X : array, (samples, 2)
    y : array
        Labels in the model's `classes_`; for a model without it class indices, (samples,), or one-hot.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import nnx
    >>> model = nnx.Sequential([nnx.layers.Dense(1, "sigmoid", input_shape=(2,))], seed=0)
    >>> ax = nnx.plot.decision_boundary(model, [[0.0, 0.0], [1.0, 1.0]], [0, 1])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['class 0', 'class 1']
    """
    feature_names = getattr(X, "columns", ("feature 1", "feature 2"))
    X, y = np.asarray(X, float), as_labels(y)
    names = getattr(model, "classes_", None)
    if names is not None and np.isin(y, names).all():
        y = np.searchsorted(names, y)
    if X.ndim != 2 or X.shape[1] != 2:
        raise ValueError(f"decision_boundary draws a plane: X must have shape (samples, 2), got {X.shape}")
    if not len(X):
        raise ValueError(
            "decision_boundary needs samples to know which part of the plane to draw: X is empty"
        )
    if not np.isfinite(X).all():
        raise ValueError(f"X has the value {X[~np.isfinite(X)][0]}: leave out such samples")
    if len(X) != len(y):
        raise ValueError(f"X has {len(X)} samples, y has {len(y)}")
    low, high = X.min(axis=0), X.max(axis=0)
    margin = np.where(high > low, 0.1 * (high - low), 1.0)
    xs, ys = (np.linspace(a, b, 200) for a, b in zip(low - margin, high + margin, strict=True))
    grid = np.stack(np.meshgrid(xs, ys), axis=-1)
    predict = getattr(model, "predict_proba", model.predict)
    p = np.asarray(predict(grid.reshape(-1, 2))).reshape(200, 200, -1)
    p = np.concatenate([1 - p, p], axis=-1) if p.shape[-1] == 1 else p
    if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= p.shape[-1]:
        raise ValueError(
            f"y must be class numbers from 0 to {p.shape[-1] - 1}, as the model has, got {np.unique(y)}"
        )
    colours, markers = (np.resize(list(c), p.shape[-1]) for c in (CLASS_COLOURS, CLASS_MARKERS))

    ax = new_axes() if ax is None else ax
    extent = (xs[0], xs[-1], ys[0], ys[-1])
    ax.imshow(_blend(p, colours), extent=extent, origin="lower", aspect="auto", interpolation="bilinear")
    for k in range(p.shape[-1] if p.shape[-1] > 2 else 1):
        lead = p[..., k] - np.delete(p, k, axis=-1).max(axis=-1)
        if lead.min() < 0 < lead.max():
            ax.contour(xs, ys, lead, levels=[0], colors="black", linewidths=1)
    index, _ = some_of(len(y))
    X, y = X[index], y[index]
    for k in np.unique(y):
        style = {"c": colours[k], "marker": markers[k], "edgecolors": "white", "linewidths": 0.8}
        ax.scatter(
            *X[y == k].T, s=36, label=f"class {k}" if names is None else str(names[k]), zorder=3, **style
        )
    ax.set(xlim=extent[:2], ylim=extent[2:], title="Predicted class and samples")
    ax.set(xlabel=feature_names[0], ylabel=feature_names[1])
    if p.shape[-1] <= MOST_LABELS:
        ax.legend(edgecolor="none", framealpha=0.85)
    return ax


def _blend(p, colours):
    """Return pale colours of the classes, mixed by probability: (..., classes) -> (..., 3)."""
    from matplotlib.colors import to_rgb

    return 1 - 0.35 * (1 - np.clip(p, 0, 1) @ np.asarray([to_rgb(colour) for colour in colours]))
