"""The weight of each sample by its class, for `class_weight`."""

import numpy as np
from sklearn.utils import compute_class_weight

from nnx.data.classes import check_weight


def named(class_weight: dict, y, classes) -> np.ndarray:
    """Return the weight of each label's class, 1 for a class not named."""
    if unknown := [label for label in class_weight if label not in classes]:
        raise ValueError(f"class_weight names {unknown[0]!r}, which is not one of the classes {classes}")
    weights = np.ones(len(y))
    for label, weight in class_weight.items():
        weights[np.asarray(y) == label] = check_weight(label, weight)
    return weights


def balanced(class_weight, y, sample_weight) -> np.ndarray:
    """Return weights that give each class the same total weight; for several labels a sample, their product.

    Unlike scikit-learn's for "balanced", each sample counts by its own weight.
    """
    weights, counted = np.ones(len(y)), sample_weight > 0  # ignore classes that only have samples of weight 0
    for labels in y.reshape(len(y), -1).T:
        classes = np.unique(labels[counted])
        factors = compute_class_weight(
            class_weight, classes=classes, y=labels[counted], sample_weight=sample_weight[counted]
        )
        weights[counted] *= factors[np.searchsorted(classes, labels[counted])]
    return weights
