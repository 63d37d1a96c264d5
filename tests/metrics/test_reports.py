"""Reports on predictions: every number against its formula, written out."""

import math

import numpy as np
import pytest

from nnx.metrics import classification_metrics, regression_metrics

pytest.importorskip("sklearn")

TRUE = np.array([0, 1, 1, 0, 1, 0, 0, 1])
PROBABLE = np.array([0.2, 0.9, 0.4, 0.1, 0.8, 0.6, 0.3, 0.3])


def rank_share(positive, negative):
    """The share of pairs that are in the right order; ties count half."""
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("threshold", [0.5, 0.35, 0.95])
def test_two_classes(threshold):
    report = classification_metrics(TRUE, PROBABLE, threshold)
    predicted = threshold <= PROBABLE
    tp, fp = np.sum(predicted & (TRUE == 1)), np.sum(predicted & (TRUE == 0))
    fn, tn = np.sum(~predicted & (TRUE == 1)), np.sum(~predicted & (TRUE == 0))
    precision, recall = tp / max(tp + fp, 1), tp / (tp + fn)
    assert report["confusion_matrix"].tolist() == [[tn, fp], [fn, tp]]
    assert report["accuracy"] == (tp + tn) / 8
    assert report["precision"] == pytest.approx(precision)
    assert report["recall"] == pytest.approx(recall)
    assert report["f1"] == pytest.approx(2 * precision * recall / max(precision + recall, 1e-9))
    assert report["auc"] == pytest.approx(rank_share(PROBABLE[TRUE == 1], PROBABLE[TRUE == 0]))


@pytest.mark.parametrize(
    ("y_true", "y_prob"),
    [
        (TRUE[:, None], PROBABLE[:, None]),
        (TRUE == 1, PROBABLE),
        (TRUE.astype(float), np.stack([1 - PROBABLE, PROBABLE], axis=1)),
        (np.eye(2)[TRUE], PROBABLE),
    ],
    ids=["columns", "booleans", "two columns", "one-hot"],
)
def test_two_classes_in_any_shape(y_true, y_prob):
    report, expected = classification_metrics(y_true, y_prob), classification_metrics(TRUE, PROBABLE)
    assert report.pop("confusion_matrix").tolist() == expected.pop("confusion_matrix").tolist()
    assert report == pytest.approx(expected)


@pytest.mark.parametrize("one_hot", [False, True])
def test_several_classes(one_hot):
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet([1, 1, 1, 1], 40), rng.integers(0, 4, 40)
    predicted = p.argmax(axis=1)
    report = classification_metrics(np.eye(4)[y] if one_hot else y, p)
    matrix = np.array([[np.sum((y == i) & (predicted == j)) for j in range(4)] for i in range(4)])
    right, precision, recall = (
        matrix.diagonal(),
        matrix.diagonal() / matrix.sum(0),
        matrix.diagonal() / matrix.sum(1),
    )
    assert report["confusion_matrix"].tolist() == matrix.tolist()
    assert report["accuracy"] == right.sum() / 40
    assert report["precision"] == pytest.approx(precision.mean())
    assert report["recall"] == pytest.approx(recall.mean())
    assert report["f1"] == pytest.approx(np.mean(2 * right / (matrix.sum(0) + matrix.sum(1))))
    assert report["auc"] == pytest.approx(np.mean([rank_share(p[y == k, k], p[y != k, k]) for k in range(4)]))


def test_a_class_without_samples():
    report = classification_metrics([0, 1, 1], [[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.5, 0.2, 0.3]])
    assert math.isnan(report["auc"])
    assert report["confusion_matrix"].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert report["recall"] == pytest.approx((1 + 0.5 + 0) / 3)


@pytest.mark.parametrize(("y_true", "shown"), [(["a", "b"], "'a'"), ([1, 2], "2"), ([0, -1], "-1")])
def test_labels_that_are_no_class_numbers(y_true, shown):
    with pytest.raises(
        ValueError, match=f"class numbers from 0 to 1, .*got {shown}: number other labels with"
    ):
        classification_metrics(y_true, [0.1, 0.9])


def test_classification_needs_a_probability_for_each_sample():
    with pytest.raises(ValueError, match="y_true has 3 samples, y_prob has 2"):
        classification_metrics([0, 1, 1], [0.1, 0.9])


@pytest.mark.parametrize("shape", [(12,), (12, 1), (4, 3)])
def test_regression(shape):
    rng = np.random.default_rng(0)
    y_true, y_pred = rng.standard_normal((2, *shape))
    report = regression_metrics(y_true, y_pred)
    off = y_pred - y_true
    assert report["mse"] == pytest.approx(np.mean(off**2))
    assert report["rmse"] == pytest.approx(math.sqrt(np.mean(off**2)))
    assert report["mae"] == pytest.approx(np.mean(np.abs(off)))
    spread = np.sum((y_true - y_true.mean(axis=0)) ** 2, axis=0)
    assert report["r2"] == pytest.approx(np.mean(1 - np.sum(off**2, axis=0) / spread))


def test_regression_takes_columns_and_refuses_other_shapes():
    assert regression_metrics([1.0, 2.0], [[1.0], [4.0]])["mse"] == 2
    with pytest.raises(ValueError, match=r"y_true has shape \(3, 2\), y_pred has \(2, 3\)"):
        regression_metrics(np.ones((3, 2)), np.ones((2, 3)))
