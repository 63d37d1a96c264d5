"""Metrics: what each says of itself, and numbers where they are hard to get right."""

import copy
from typing import Any

import numpy as np
import pytest

import nnx
from nnx import metrics
from nnx.layers import (
    Activation,
    Chain,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    Input,
    Masking,
    Permute,
    Reshape,
    Sigmoid,
    TimeDistributed,
)
from nnx.losses.outputs import OutputMetric
from nnx.registry import REGISTRIES

ERRORS = {"mean_squared_error", "mean_absolute_error", "root_mean_squared_error"}


@pytest.mark.parametrize("name", REGISTRIES["metric"].names())
def test_each_metric_knows_whether_higher_is_better(name):
    assert nnx.metrics.get(name).higher_is_better is (name not in ERRORS)


def test_a_metric_of_ones_own_may_say_so_and_one_of_several_outputs_says_what_its_metric_does():
    class Skill(nnx.metrics.Metric):
        pass

    class RocAuc(nnx.metrics.AUC):
        pass

    assert Skill().higher_is_better is None
    assert RocAuc().higher_is_better is True
    for metric in (Skill(), nnx.metrics.AUC(), nnx.metrics.MeanSquaredError()):
        assert OutputMetric("kind", metric).higher_is_better is metric.higher_is_better


RNG = np.random.default_rng(0)


def evaluated(metric, target, output, loss: Any = "mse", **settings):
    """Return a metric of a model whose output is its input."""
    model = nnx.Sequential([Activation("linear", input_shape=output.shape[1:])])
    model.compile("sgd", loss, metrics=[metric])
    return model.evaluate(output, target, verbose=0, **settings)[1]


def test_f1_score_takes_the_largest_output_and_gives_one_value_for_each_class():
    sk = pytest.importorskip("sklearn.metrics")
    p, classes = RNG.dirichlet(np.ones(3), 40), RNG.integers(0, 3, 40)
    expected = sk.f1_score(classes, p.argmax(axis=1), average=None)
    one_hot = np.eye(3)[classes]
    np.testing.assert_allclose(metrics.F1Score()(one_hot, p), expected)
    np.testing.assert_allclose(metrics.F1Score()(classes[:, None], p), expected)
    found = evaluated("f1_score", one_hot, p, "categorical_crossentropy", batch_size=7)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for average in ("micro", "macro", "weighted"):
        expected = sk.f1_score(classes, p.argmax(axis=1), average=average)
        assert metrics.F1Score(average)(one_hot, p) == pytest.approx(expected)
    with pytest.warns(UserWarning, match="threshold=0.5"):
        metrics.F1Score()([[1], [0]], [[0.9], [0.1]])


def test_accuracy_of_soft_labels_and_real_targets_is_that_of_equal_numbers():
    assert metrics.BinaryAccuracy()([[0.9], [1.0], [0.0]], [[0.8], [0.8], [0.2]]) == pytest.approx(2 / 3)
    assert evaluated("accuracy", np.array([[2.5], [7.0]]), np.array([[2.5], [7.0]])) == 0


@pytest.mark.parametrize("cls", [metrics.Precision, metrics.Recall])
def test_several_thresholds_and_weights_of_each_shape(cls):
    sk = pytest.importorskip("sklearn.metrics")
    y, p, w = RNG.integers(0, 2, 30), RNG.random(30), RNG.random(30)
    score = getattr(sk, f"{cls.__name__.lower()}_score")
    expected = [score(y, p > t, sample_weight=w) for t in (0.2, 0.6)]
    for weight in (w, w[:, None]):
        np.testing.assert_allclose(cls([0.2, 0.6])(y[:, None], p, weight), expected)
    y, p, w = y.reshape(10, 3), p.reshape(10, 3), w.reshape(10, 3)
    expected = score(y.ravel(), p.ravel() > 0.5, sample_weight=w.ravel())
    assert cls()(y, p, w) == pytest.approx(expected)
    with pytest.raises(ValueError, match="sample_weight of shape"):
        cls()(y, p, w[:, :2])


@pytest.mark.parametrize("name", ["accuracy", "sparse_categorical_accuracy"])
def test_class_numbers_may_be_a_column(name):
    p = np.eye(3)[[0, 1, 1, 2]]
    assert metrics.get(name)([[0], [1], [2], [2]], p) == 0.75


@pytest.mark.parametrize("name", ["accuracy", "binary_accuracy", "precision", "recall", "auc"])
def test_logits_become_probabilities_where_the_loss_says_so(name, any_backend):
    y, logits = np.array([[1.0], [1.0], [0.0], [0.0]]), np.array([[0.3], [2.0], [0.1], [-1.0]])
    loss = nnx.losses.BinaryCrossentropy(from_logits=True)
    expected = metrics.get(name)(y, 1 / (1 + np.exp(-logits)))
    assert evaluated(name, y, logits, loss) == pytest.approx(expected)
    assert evaluated("mse", y, logits, loss) == pytest.approx(np.mean((y - logits) ** 2))


def test_auc_of_rare_and_of_one_class():
    sk = pytest.importorskip("sklearn.metrics")
    y = (RNG.random(4000) < 0.003).astype(float)
    for scale in (1.0, 1e-3, 1e-7):
        p = scale / (1 + np.exp(-RNG.normal(size=4000) - y))
        assert metrics.AUC()(y, p) == pytest.approx(sk.roc_auc_score(y, p), abs=0.01)
        assert metrics.AUC()(1 - y, 1 - p) == pytest.approx(sk.roc_auc_score(y, p), abs=0.01)
    assert np.isnan(metrics.AUC()([1, 1], [0.2, 0.4]))
    with pytest.raises(ValueError, match="expects probabilities"):
        metrics.AUC()([0, 1], [-1.0, 2.0])


@pytest.mark.parametrize("middle", [0.0, -1e4, 3e4])
def test_r2_far_from_zero(middle, any_backend):
    y = RNG.normal(size=(300, 2)) + [middle, 1.0]
    p = y + 0.3 * RNG.normal(size=y.shape)
    y, p = y.astype("float32"), p.astype("float32")
    expected = metrics.R2Score()(y, p)
    assert 0.8 < expected < 1
    assert evaluated("r2_score", y, p, batch_size=32) == pytest.approx(expected, abs=2e-3)


def test_r2_is_scikit_learns_with_weights():
    sk = pytest.importorskip("sklearn.metrics")
    y, w = RNG.normal(size=(50, 3)), RNG.random(50)
    p = y + RNG.normal(size=y.shape)
    assert metrics.R2Score()(y, p, w) == pytest.approx(sk.r2_score(y, p, sample_weight=w))


def test_loss_and_metric_under_a_mask_are_means_over_time_steps(any_backend):
    x = np.full((2, 9, 1), -1.0)
    x[0, :2], x[1] = 3.0, 0.5
    model = nnx.Sequential(
        [Masking(-1.0, input_shape=(9, 1)), Dense(1, kernel_initializer="ones", kernel_regularizer="l2")]
    )
    model.compile("sgd", "mse", metrics=["mse"])
    expected = (2 * 3.0**2 + 9 * 0.5**2) / 11
    for size in (1, 2):
        loss, metric = model.evaluate(x, np.zeros((2, 9, 1)), batch_size=size, verbose=0)
        assert (loss, metric) == pytest.approx((expected + 0.01, expected), rel=1e-5)


def test_parts_of_the_loss_under_a_mask_are_means_over_time_steps():
    x = np.full((2, 4, 1), -1.0)
    x[0, :1], x[1] = 3.0, 0.5
    heads = {key: Dense(1, kernel_initializer="ones") for key in ("a", "b")}
    model = nnx.Sequential([Masking(-1.0, input_shape=(4, 1)), nnx.layers.Outputs(heads)])
    model.compile("sgd", {"a": "mse", "b": "mae"}, loss_weights={"a": 2.0})
    y, squared, absolute = np.zeros((2, 4, 1)), (9 + 4 * 0.25) / 5, (3 + 4 * 0.5) / 5
    for size in (1, 2):
        logs = model.evaluate(x, {"a": y, "b": y}, batch_size=size, return_dict=True, verbose=0)
        expected = {"loss": 2 * squared + absolute, "a_loss": squared, "b_loss": absolute}
        assert logs == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([Dense(1, "sigmoid"), Flatten()], (4,)),
        ([Dense(1), Sigmoid(), Reshape((1, 1)), Permute((2, 1))], (4,)),
        ([Chain([Chain([Dense(1, "sigmoid")]), Activation("linear")]), Dropout(0.0)], (4,)),
        ([TimeDistributed(Dense(1, "sigmoid"))], (1, 4)),
        ([Conv2D(1, (1, 4), activation="sigmoid"), Flatten()], (1, 4, 1)),
    ],
    ids=["flatten", "reshape", "chain", "time_distributed", "convolution"],
)
def test_a_sigmoid_that_is_wrong_and_certain_has_a_gradient(layers, shape):
    assert step_of(layers, shape, "binary_crossentropy", [[0.0]]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "layers",
    [
        [Dense(2, "softmax"), Flatten()],
        [Dense(2, "softmax"), Reshape((2,))],
        [Chain([Dense(2), Activation("softmax")]), Dropout(0.1)],
    ],
    ids=["flatten", "reshape", "dropout"],
)
@pytest.mark.parametrize("loss", ["categorical_crossentropy", "kl_divergence"])
def test_a_softmax_that_is_wrong_and_certain_has_a_gradient(layers, loss):
    assert step_of(layers, (4,), loss, [[1.0, 0.0]]) == pytest.approx(1.0)


def step_of(layers, shape, loss, y):
    """Return by how much a step changes the weights of a last layer that is certain, and wrong."""
    model = nnx.Sequential(copy.deepcopy(layers), seed=0)
    model.build(shape)
    first, *rest = model.get_weights()
    first = np.full_like(first, 5.0) * (1 if first.shape[-1] == 1 else [-1, 1])
    model.set_weights([first, *(w * 0 for w in rest)])
    model.compile(nnx.optimizers.SGD(1.0), loss)
    y = np.reshape(y, (1, *model.output_shape))
    model.train_on_batch(np.ones((1, *shape)), y)
    return np.abs(model.get_weights()[0] - first).max()


def test_log_cosh_of_small_and_of_large_errors(any_backend):
    errors = np.array([[1e-5], [1e-3], [1.0], [30.0], [1e4]], "float32")
    found = any_backend.to_numpy(nnx.losses.log_cosh(np.zeros_like(errors), errors))
    exact = errors.astype("float64").ravel()
    expected = np.logaddexp(exact, -exact) - np.log(2)
    expected[:2] = exact[:2] ** 2 / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_numpy_losses_and_metrics_of_whole_numbers():
    assert metrics.MeanSquaredError()([1, 2], [2, 4]) == 2.5
    np.testing.assert_allclose(nnx.losses.mean_absolute_error([[1], [2]], np.array([[2], [4]])), [1, 2])
    assert float(nnx.losses.BinaryCrossentropy()([True, False], [True, False])) < 1e-6


def test_means_in_half_precision_do_not_overflow():
    model = nnx.Sequential([Input((32, 32, 1)), GlobalAveragePooling2D()], dtype="float16")
    assert model.predict(np.full((1, 32, 32, 1), 70.0)).item() == 70.0
