"""What a classifier does at every threshold: ROC and precision-recall curves, by scikit-learn."""

import numpy as np

from nnx.plot.axes import CLASS_COLOURS, GREY, new_axes, tidy
from nnx.plot.confusion import as_labels


def roc_curve(y_true, y_prob, class_names=None, ax=None):
    """Draw the share of positives found against the share of false alarms, over all thresholds.

    With more than two classes one curve each, against all others; of more than 10 the legend names those of
    the smallest areas. The area under the curve (AUC) is
    the chance that a positive sample gets a higher probability than a negative one.

    Parameters
    ----------
    y_true : array
        Labels, (samples,), or one-hot, (samples, classes).
    y_prob : array
        Probabilities of the second of two classes, (samples,) or (samples, 1), or of each class,
        (samples, classes), in the order of the sorted labels.
    class_names : list of str, optional
        By default the labels themselves.
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
    ax = _square(ax)
    areas = [metrics.roc_auc_score(truth, p) for _, truth, p, _ in curves]
    labels = _labels("AUC", curves, areas)
    for (_, truth, p, colour), label in zip(curves, labels, strict=True):
        false_alarms, found, _ = metrics.roc_curve(truth, p)
        ax.plot(false_alarms, found, color=colour, label=label)
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":", label="chance")
    ax.set(xlabel="false positive rate", ylabel="true positive rate (recall)")
    ax.set_title(_title("ROC curve", y_true, class_names, curves))
    ax.legend(loc="lower right", frameon=False, title=_legend_title(curves))
    return ax


def precision_recall_curve(y_true, y_prob, class_names=None, ax=None):
    """Draw the share of right alarms against the share of positives found, over all thresholds.

    Tells more than the ROC curve where positives are rare. AP is the average precision, the mean of
    the precision over the recall. Parameters as of `roc_curve`.

    Examples
    --------
    >>> import nnx
    >>> ax = nnx.plot.precision_recall_curve([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.8])
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['AP 0.833', 'chance']
    """
    from sklearn import metrics

    curves = _one_against_rest(y_true, y_prob, class_names)
    ax = _square(ax)
    areas = [metrics.average_precision_score(truth, p) for _, truth, p, _ in curves]
    labels = _labels("AP", curves, areas)
    for (_, truth, p, colour), label in zip(curves, labels, strict=True):
        precision, recall, _ = metrics.precision_recall_curve(truth, p)
        ax.plot(recall, precision, color=colour, drawstyle="steps-post", label=label)
    if len(curves) == 1:
        ax.axhline(curves[0][1].mean(), color=GREY, linewidth=1, linestyle=":", label="chance")
    ax.set(xlabel="recall", ylabel="precision")
    ax.set_title(_title("Precision-recall curve", y_true, class_names, curves))
    ax.legend(loc="lower left", frameon=False, title=_legend_title(curves))
    return ax


def _one_against_rest(y_true, y_prob, class_names) -> list[tuple]:
    """Return of each curve: the start of its label, whether samples are of its class, their probability, colour."""
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
"""Curves that the legend names."""


def _labels(number: str, curves, areas) -> list[str]:
    """Return a label for each curve, of many for those with the smallest areas alone."""
    named = set(np.argsort(areas, kind="stable")[:MOST_NAMED].tolist())
    return [
        f"{name}{number} {area:.3f}" if k in named else "_"  # which a legend leaves out
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


def _square(ax):
    ax = tidy(new_axes((4.8, 4.8)) if ax is None else ax)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    return ax
