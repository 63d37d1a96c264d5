"""The confusion matrix of a classifier."""

import numpy as np

from nnx.plot.axes import MOST_LABELS, label, new_axes, write_cells


def confusion_matrix(y_true, y_pred=None, class_names=None, ax=None):
    """Draw how often each class was predicted as each, with the counts in the cells.

    For more than 25 classes there is a colour bar in place of the counts, and only some labels.

    Parameters
    ----------
    y_true : array
        Labels, (samples,) or one-hot; or, without `y_pred`, the matrix of counts, (classes, classes),
        with a row for each true class.
    y_pred : array, optional
        Labels; or probabilities of each class, (samples, classes), or of the second of two,
        (samples, 1).
    class_names : list of str, optional
        By default the labels.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes

    Examples
    --------
    >>> import nnx
    >>> nnx.plot.confusion_matrix([0, 0, 1, 1], [0, 1, 1, 1]).get_title()
    '75.0% of 4 right'
    """
    counts, labels = _count(y_true, y_pred, class_names)
    names = labels if class_names is None else class_names
    if len(names) != len(counts):
        raise ValueError(f"class_names has {len(names)} names, the matrix has {len(counts)} classes")
    if not len(counts):
        raise ValueError("there are no samples, and no classes, to draw")
    ax = new_axes(2 * [2.2 + 0.38 * min(len(counts), MOST_LABELS)]) if ax is None else ax
    picture = ax.imshow(counts, cmap="Blues", vmin=0)
    if len(counts) > MOST_LABELS:  # without text, make small counts of mistakes visible
        from matplotlib.colors import PowerNorm

        picture.set_norm(PowerNorm(0.5, vmin=0, vmax=max(counts.max(), 1)))
    write_cells(ax, picture, counts, "{:g}".format)
    label(ax.yaxis, names)
    label(ax.xaxis, names)
    if sum(len(text.get_text()) for text in ax.get_xticklabels()) > 20:
        ax.tick_params(axis="x", rotation=45)
        for text in ax.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
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
    true, predicted = as_labels(y_true), as_labels(y_pred)
    if len(true) != len(predicted):
        raise ValueError(f"y_true has {len(true)} samples, y_pred has {len(predicted)}")
    labels = np.union1d(true, predicted)
    if class_names is not None and labels.dtype.kind in "iu":
        labels = np.union1d(labels, np.arange(len(class_names)))  # a class that never occurs has a row too
    counts = np.zeros((len(labels), len(labels)), int)
    np.add.at(counts, (np.searchsorted(labels, true), np.searchsorted(labels, predicted)), 1)
    return counts, labels.tolist()


def as_labels(y):
    """Return labels, (samples,), given labels, one-hot labels or probabilities."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] > 1:
        return y.argmax(axis=1)
    y = y.ravel()
    if y.dtype.kind != "f":
        return y.astype(int) if y.dtype.kind == "b" else y
    return (y >= 0.5).astype(int) if (y != np.round(y)).any() else y.astype(int)
