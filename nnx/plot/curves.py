"""ROC and precision-recall curves of a classifier, computed by scikit-learn."""

import numpy as np

from nnx.plot.axes import CLASS_COLOURS, GREY, new_axes, tidy
from nnx.plot.confusion import as_labels


def roc_curve(y_true, y_prob, class_names=None, ax=None):
    """Draw the true positive rate against the false positive rate, over all thresholds.

    More than two classes have one curve each, against all others; the legend names at most 10, those with
    the smallest areas. The area under the curve (AUC) is the probability that a positive sample gets a
    higher score than a negative one.

    Parameters
    ----------
    y_true : array
        Labels, (samples,), or one-hot, (samples, classes).
    y_prob : array
        Probabilities of the second of two classes, (samples,) or (samples, 1), or of each class,
        (samples, classes), in the order of the sorted labels.
    class_names : list of str, optional
        By default the labels.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import nnx
    >>> ax = nnx.plot.roc_curve([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.8])
    >>> ax.get_title()
    'ROC curve of class 1'
    >>> ax.get_legend().get_texts()[0].get_text()
    'AUC 0.750'
    """
    from sklearn import metrics

    curves = _one_against_rest(y_true, y_prob, class_names)
    ax = _draw(curves, "AUC", metrics.roc_auc_score, lambda truth, p: metrics.roc_curve(truth, p)[:2], ax)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
    ax.set(xlabel="false positive rate", ylabel="true positive rate (recall)")
    ax.set_title(_title("ROC curve", y_true, class_names, curves))
    ax.legend(loc="lower right", frameon=False, title=_legend_title(curves))
    return ax


def precision_recall_curve(y_true, y_prob, class_names=None, ax=None):
    """Draw precision against recall, over all thresholds.

    It shows more than the ROC curve if positives are rare. AP is the average precision, the mean of
    the precision over the recall. Parameters as for `roc_curve`.

    Examples
    --------
    >>> import nnx
    >>> ax = nnx.plot.precision_recall_curve([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.8])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['AP 0.833', 'chance']
    """
    from sklearn import metrics

    def points(truth, p):
        precision, recall, _ = metrics.precision_recall_curve(truth, p)
        return recall, precision

    curves = _one_against_rest(y_true, y_prob, class_names)
    ax = _draw(curves, "AP", metrics.average_precision_score, points, ax, drawstyle="steps-post")
    if len(curves) == 1:
        ax.axhline(curves[0][1].mean(), color=GREY, linewidth=1, linestyle=":", label="chance")
    ax.set(xlabel="recall", ylabel="precision")
    ax.set_title(_title("Precision-recall curve", y_true, class_names, curves))
    ax.legend(loc="lower left", frameon=False, title=_legend_title(curves))
    return ax


def _draw(curves, name: str, area, points, ax, **style):
    """Draw each curve; `name` and `area` are those of the summary in the legend."""
    ax = tidy(new_axes((4.8, 4.8)) if ax is None else ax)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    labels = _labels(name, curves, [area(truth, p) for _, truth, p, _ in curves])
    for (_, truth, p, colour), label in zip(curves, labels, strict=True):
        ax.plot(*points(truth, p), color=colour, label=label, **style)
    return ax


def _one_against_rest(y_true, y_prob, class_names) -> list[tuple]:
    """Return (start of the label, whether each sample is positive, probabilities, colour) for each curve."""
    y, p = as_labels(y_true), np.asarray(y_prob, float)
    p = p.reshape(len(p), -1)
    classes = max(p.shape[1], 2)
    labels = np.arange(classes)
    if len(y) != len(p):
        raise ValueError(f"y_true has {len(y)} samples, y_prob has {len(p)}")
    if not np.isin(y, labels).all():
        labels, y = np.unique(y, return_inverse=True)
    if len(np.unique(y)) != classes:
        raise ValueError(
            f"y_prob has {classes} classes, y_true has samples of {len(np.unique(y))}: a curve needs samples of each"
        )
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"class_names has {len(class_names)} names, y_prob has {classes} classes")
    if classes == 2:
        return [("", y == 1, p[:, -1], CLASS_COLOURS[0])]
    names = [_name(label) for label in labels.tolist()] if class_names is None else class_names
    colours = np.resize(list(CLASS_COLOURS), classes)
    return [(f"{names[k]}: ", y == k, p[:, k], colours[k]) for k in range(classes)]


MOST_NAMED = 10
"""The most curves that the legend names."""


def _labels(summary: str, curves, areas) -> list[str]:
    """Return a label for each of the curves with the smallest areas, and "_", which legends skip, for others."""
    named = set(np.argsort(areas, kind="stable")[:MOST_NAMED].tolist())
    return [
        f"{name}{summary} {area:.3f}" if k in named else "_"
        for k, ((name, *_), area) in enumerate(zip(curves, areas, strict=True))
    ]


def _legend_title(curves) -> str | None:
    return f"the lowest {MOST_NAMED} of {len(curves)}" if len(curves) > MOST_NAMED else None


def _name(label) -> str:
    return label if isinstance(label, str) else f"class {label}"


def _title(title: str, y_true, class_names, curves) -> str:
    if len(curves) > 1:
        return f"{title}s"
    return f"{title} of {_name(np.unique(as_labels(y_true)).tolist()[-1]) if class_names is None else class_names[1]}"
