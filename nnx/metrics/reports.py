"""Metrics of finished predictions, computed by scikit-learn."""

import math

import numpy as np


def classification_metrics(y_true, y_prob, threshold: float = 0.5) -> dict:
    """Return accuracy, precision, recall, F1, AUC and the confusion matrix of predicted probabilities.

    Parameters
    ----------
    y_true : array of class numbers, (samples,), or one-hot, (samples, classes)
    y_prob : array
        Probabilities of the second of two classes, (samples,) or (samples, 1), or of each class,
        (samples, classes).
    threshold : float
        The smallest probability for which the second of two classes is predicted.

    Returns
    -------
    dict
        For more than two classes precision, recall, F1 and AUC are means over the classes; AUC is that of
        each class against the rest, and nan if `y_true` lacks a class.

    Examples
    --------
    >>> report = classification_metrics([0, 1, 1, 0], [0.2, 0.9, 0.4, 0.1])
    >>> report["accuracy"], report["confusion_matrix"].tolist()
    (0.75, [[2, 0], [1, 1]])
    """
    from sklearn import metrics as sk

    y_true, y_prob = np.asarray(y_true), np.asarray(y_prob, dtype=np.float64)
    if y_true.ndim == 2:
        y_true = y_true.ravel() if y_true.shape[1] == 1 else y_true.argmax(axis=1)
    if len(y_true) != len(y_prob):
        raise ValueError(f"y_true has {len(y_true)} samples, y_prob has {len(y_prob)}")
    if y_prob.ndim == 2 and y_prob.shape[1] == 2:
        y_prob = y_prob[:, 1]
    binary = y_prob.ndim == 1 or y_prob.shape[1] == 1
    if binary:
        y_prob = y_prob.ravel()
        predicted, labels, average = (y_prob >= threshold).astype(int), [0, 1], "binary"
    else:
        predicted, labels, average = y_prob.argmax(axis=1), list(range(y_prob.shape[1])), "macro"
    _check_class_numbers(y_true, len(labels))
    settings = {"labels": labels, "average": average, "zero_division": 0}
    precision, recall, f1, _ = sk.precision_recall_fscore_support(y_true, predicted, **settings)
    complete = set(labels) <= set(np.unique(y_true).tolist())
    return {
        "accuracy": float(np.mean(predicted == y_true)),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auc": float(_auc(sk, y_true, y_prob, labels)) if complete else math.nan,
        "confusion_matrix": sk.confusion_matrix(y_true, predicted, labels=labels),
    }


def _check_class_numbers(y_true, classes) -> None:
    unknown = np.setdiff1d(y_true, np.arange(classes)) if y_true.dtype.kind in "buif" else y_true[:1]
    if len(unknown):
        raise ValueError(
            f"y_true must be class numbers from 0 to {classes - 1}, as many as y_prob has classes, got "
            f"{unknown[0].item()!r}: number other labels with classes, y_true = np.unique(y, return_inverse=True)"
        )


def _auc(sk, y_true, y_prob, labels):
    if len(labels) == 2:
        return sk.roc_auc_score(y_true, y_prob)
    return np.mean([sk.roc_auc_score(y_true == label, y_prob[:, label]) for label in labels])


def regression_metrics(y_true, y_pred) -> dict:
    """Return mean squared error, its root, mean absolute error and R2 of predictions.

    Parameters
    ----------
    y_true, y_pred : array, (samples,) or (samples, targets)
        Of several targets the means over all.

    Examples
    --------
    >>> regression_metrics([1.0, 2.0], [1.0, 4.0])
    {'mse': 2.0, 'rmse': 1.4142135623730951, 'mae': 1.0, 'r2': -7.0}
    """
    from sklearn import metrics as sk

    y_true = np.asarray(y_true, dtype=np.float64)
    y_pred = np.asarray(y_pred, dtype=np.float64)
    if y_true.squeeze().shape != y_pred.squeeze().shape:
        raise ValueError(f"y_true has shape {y_true.shape}, y_pred has {y_pred.shape}")
    y_pred = y_pred.reshape(y_true.shape)
    mse = float(sk.mean_squared_error(y_true, y_pred))
    return {
        "mse": mse,
        "rmse": math.sqrt(mse),
        "mae": float(sk.mean_absolute_error(y_true, y_pred)),
        "r2": float(sk.r2_score(y_true, y_pred)),
    }
