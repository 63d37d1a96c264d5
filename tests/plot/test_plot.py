"""Pictures: what is drawn, where, and that nothing else is touched."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

import nnx
from nnx import plot

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
pyplot = pytest.importorskip("matplotlib.pyplot")

HISTORY = {
    "loss": [3.0, 2.0, 1.0],
    "val_loss": [3.0, 1.5, 2.5],
    "acc": [0.1, 0.2, 0.3],
    "val_acc": [0, 0.4, 0.1],
}


@pytest.fixture(autouse=True)
def close_figures():
    pyplot.close("all")  # those of doctests
    yield
    pyplot.close("all")


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def cells_of(ax):
    return [text.get_text() for text in ax.texts]


class Halves:
    """Predicts class 1 where the first feature is positive, or three classes by thirds."""

    def __init__(self, classes=2):
        self.classes = classes

    def predict(self, X):
        if self.classes == 2:
            return 1 / (1 + np.exp(-5 * X[:, :1]))
        scores = np.exp(-5 * (X[:, :1] - np.array([-1, 0, 1])) ** 2)
        return scores / scores.sum(axis=1, keepdims=True)


SEARCH = {
    "param_net__units": np.ma.array([2, 2, 40, 40, 8, 8]),
    "param_rate": [0.1, 0.2, 0.1, 0.2, 0.1, 0.2],
    "mean_test_score": np.array([0.1, 0.2, 0.6, 0.5, 0.8, 0.7]),
    "std_test_score": np.full(6, 0.05),
}


def network(activation="tanh", depth=1):
    hidden = [nnx.layers.Dense(8, activation) for _ in range(depth)]
    model = nnx.Sequential([nnx.Input((2,)), *hidden, nnx.layers.Dropout(0.5), nnx.layers.Dense(1)], seed=0)
    model.compile("sgd", "mse")
    return model


PLANE = np.array([[-1.0, 0], [-1, 1], [0, 0], [0, 1], [1, 0], [1, 1]])
DRAWINGS = {
    "learning_curves": lambda **to: plot.learning_curves(HISTORY, **to),
    "confusion_matrix": lambda **to: plot.confusion_matrix([0, 1, 1], [0, 1, 0], **to),
    "decision_boundary": lambda **to: plot.decision_boundary(Halves(), PLANE, [0, 0, 0, 1, 1, 1], **to),
    "predicted_against_true": lambda **to: plot.predicted_against_true([1, 2, 3], [1, 2, 2], **to),
    "residuals": lambda **to: plot.residuals([1, 2, 3], [1, 2, 2], **to),
    "validation_curve": lambda **to: plot.validation_curve(SEARCH, "net__units", **to),
    "search_heatmap": lambda **to: plot.search_heatmap(SEARCH, "net__units", "rate", **to),
    "weight_histograms": lambda **to: plot.weight_histograms(network(), **to),
    "gradient_histograms": lambda **to: plot.gradient_histograms(network(), PLANE, PLANE[:, 0], **to),
}
if importlib.util.find_spec("sklearn"):
    DRAWINGS["roc_curve"] = lambda **to: plot.roc_curve([0, 1, 1, 0], [0.2, 0.9, 0.4, 0.5], **to)
    DRAWINGS["precision_recall_curve"] = lambda **to: plot.precision_recall_curve([0, 1], [0.2, 0.9], **to)


def test_everything_public_is_tested_here():
    assert set(DRAWINGS) == set(plot.__all__) - {"activation_gallery"}


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_draws_into_the_axes_it_is_given_and_returns_them(draw):
    _, (left, right) = pyplot.subplots(1, 2)
    current, settings = pyplot.gcf(), dict(matplotlib.rcParams)
    assert draw(ax=left) is left
    assert left.has_data()
    assert left.get_xlabel()
    assert left.get_ylabel()
    assert left.get_title()
    assert not right.has_data()
    assert not right.get_title()
    assert pyplot.get_fignums() == [current.number]
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("draw", DRAWINGS.values(), ids=DRAWINGS)
def test_makes_a_figure_of_its_own_and_closes_none(draw, tmp_path):
    mine = pyplot.figure()
    ax = draw()
    assert ax.figure is not mine
    assert len(pyplot.get_fignums()) == 2
    ax.figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_learning_curves():
    ax = plot.learning_curves(HISTORY)
    training, validation, _, best = ax.get_lines()
    assert training.get_xdata().tolist() == [1, 2, 3]
    assert validation.get_ydata().tolist() == [3.0, 1.5, 2.5]
    assert (best.get_xdata(), best.get_ydata()) == ([2], [1.5])
    assert legend_of(ax) == ["training", "validation", "best: 1.5 in epoch 2"]


def test_learning_curves_of_a_score_mark_the_highest():
    assert legend_of(plot.learning_curves(HISTORY, "acc"))[-1] == "best: 0.4 in epoch 2"


def test_learning_curves_of_what_fit_returns():
    X = np.random.default_rng(0).standard_normal((12, 2))
    model = nnx.Sequential([nnx.layers.Dense(1)], seed=0)
    model.compile("sgd", "mse")
    history = model.fit(X, X[:, 0], epochs=5, initial_epoch=2, validation_split=0.25, verbose=0)
    training, validation, *_ = plot.learning_curves(history).get_lines()
    assert training.get_xdata().tolist() == validation.get_xdata().tolist() == [3, 4, 5]
    assert training.get_ydata().tolist() == history.history["loss"]


def test_learning_curves_of_training_alone():
    ax = plot.learning_curves({"loss": [2.0, 1.0]})
    assert legend_of(ax) == ["training"]


def test_learning_curves_with_validation_every_other_epoch():
    ax = plot.learning_curves({"loss": [5.0, 4, 3, 2, 1], "val_loss": [4.0, 2.0]})
    assert ax.get_lines()[1].get_xdata().tolist() == [2, 4]


def test_learning_curves_of_a_run_that_diverged():
    ax = plot.learning_curves({"loss": [1.0, np.nan], "val_loss": [np.nan, np.nan]})
    assert legend_of(ax) == ["training", "validation"]


def test_learning_curves_say_what_the_history_has():
    with pytest.raises(ValueError, match=r"no 'accuracy'. It has: loss, acc$"):
        plot.learning_curves(HISTORY, "accuracy")


def test_gallery_has_a_panel_for_each_elementwise_activation():
    axes = plot.activation_gallery()
    titles = [ax.get_title() for ax in axes.flat if ax.get_title()]
    assert titles == [name for name in nnx.activations.names() if "softmax" not in name]
    assert sum(ax.get_legend() is not None for ax in axes.flat) == 1


def test_gallery_draws_function_and_derivative():
    numpy = nnx.as_backend("numpy").xp
    _, axes = pyplot.subplots(1, 3)
    assert plot.activation_gallery(["tanh", "gelu"], axes=axes) is axes
    for ax, name in zip(axes, ["tanh", "gelu"], strict=False):
        function, slope = ax.get_lines()[-2:]
        x, y = function.get_data()
        assert y == pytest.approx(nnx.activations.get(name).forward(numpy, x), abs=1e-6)
        assert slope.get_ydata() == pytest.approx(np.gradient(y, x), abs=0.02)
    assert not axes[2].axison
    assert len(pyplot.get_fignums()) == 1


def test_gallery_takes_one_activation_with_settings_and_one_panel():
    ax = pyplot.figure().add_subplot()
    plot.activation_gallery([nnx.activations.LeakyReLU(0.5)], axes=ax)
    assert ax.get_lines()[-2].get_ydata()[0] == pytest.approx(-2)
    assert legend_of(ax) == ["function", "derivative"]


def test_gallery_refuses_too_few_axes_and_softmax():
    with pytest.raises(ValueError, match="2 activations need as many axes, got 1"):
        plot.activation_gallery(["relu", "tanh"], axes=pyplot.figure().add_subplot())
    with pytest.raises(ValueError, match="along an axis"):
        plot.activation_gallery(["softmax"])


def test_confusion_matrix_counts():
    ax = plot.confusion_matrix([0, 0, 1, 1, 1], [0, 1, 1, 1, 1])
    assert cells_of(ax) == ["1", "1", "0", "3"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted class", "true class")
    assert ax.get_title() == "80.0% of 5 right"


@pytest.mark.parametrize(
    ("y_true", "y_pred"),
    [
        ([0, 1, 2, 2], [0, 1, 1, 2]),
        (np.eye(3)[[0, 1, 2, 2]], [[0.9, 0.1, 0], [0, 1, 0], [0.1, 0.8, 0.1], [0, 0, 1]]),
        ([0.0, 1.0, 2.0, 2.0], np.array([[0], [1], [1], [2]])),
        (["a", "b", "c", "c"], ["a", "b", "b", "c"]),
    ],
    ids=["numbers", "one-hot and probabilities", "columns", "text"],
)
def test_confusion_matrix_takes_labels_in_any_form(y_true, y_pred):
    assert cells_of(plot.confusion_matrix(y_true, y_pred)) == ["1", "0", "0", "0", "1", "0", "0", "1", "1"]


def test_confusion_matrix_of_probabilities_of_two_classes():
    assert cells_of(plot.confusion_matrix([0, 1, 1], [[0.2], [0.7], [0.4]])) == ["1", "0", "1", "1"]


def test_confusion_matrix_has_a_row_for_a_named_class_that_never_occurs():
    ax = plot.confusion_matrix([0, 2], [0, 2], class_names=["setosa", "versicolor", "virginica"])
    assert len(cells_of(ax)) == 9
    assert [text.get_text() for text in ax.get_yticklabels()] == ["setosa", "versicolor", "virginica"]


def test_confusion_matrix_can_be_read_on_dark_and_light_cells():
    ax = plot.confusion_matrix([[90, 2], [0, 3]])
    for text, shade in zip(ax.texts, ax.images[0].to_rgba([90, 2, 0, 3]), strict=True):
        letter = np.array(matplotlib.colors.to_rgb(text.get_color()))
        assert abs(letter.mean() - shade[:3].mean()) > 0.35


def test_confusion_matrix_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match=r"square matrix of counts.*\(2, 3\)"):
        plot.confusion_matrix(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="3 samples, y_pred has 2"):
        plot.confusion_matrix([0, 1, 1], [0, 1])
    with pytest.raises(ValueError, match="class_names has 1 names, the matrix has 2 classes"):
        plot.confusion_matrix([0, 1], [0, 1], class_names=["one"])


def test_decision_boundary_of_two_classes_is_one_line_where_both_are_equal():
    ax = plot.decision_boundary(Halves(), PLANE, np.array([0, 0, 0, 1, 1, 1]))
    (image,) = ax.images
    left, right = image.get_array()[100, 0], image.get_array()[100, -1]
    assert left[2] > left[0]  # class 0 is blue
    assert right[0] > right[2]  # class 1 is orange
    lines, *points = ax.collections
    assert lines.get_paths()[0].vertices[:, 0] == pytest.approx(0, abs=1e-6)
    assert [len(group.get_offsets()) for group in points] == [3, 3]
    assert legend_of(ax) == ["class 0", "class 1"]


def test_decision_boundary_of_several_classes():
    ax = plot.decision_boundary(Halves(3), PLANE, np.eye(3)[[0, 0, 1, 1, 2, 2]])
    assert len(ax.collections) == 3 + 3  # lines around each class, samples of each
    assert legend_of(ax) == ["class 0", "class 1", "class 2"]


def test_decision_boundary_of_a_model_and_a_data_frame_like_input():
    class Frame:
        columns = ("length in cm", "width in cm")

        def __array__(self, dtype=None, copy=None):
            return PLANE

    model = nnx.Sequential([nnx.layers.Dense(1, "sigmoid", input_shape=(2,))], seed=0)
    ax = plot.decision_boundary(model, Frame(), [0, 1, 0, 1, 0, 1])
    assert (ax.get_xlabel(), ax.get_ylabel()) == Frame.columns


def test_decision_boundary_refuses_labels_the_model_does_not_have():
    with pytest.raises(ValueError, match=r"class numbers from 0 to 1, as the model has, got \[0 1 2\]"):
        plot.decision_boundary(Halves(), PLANE, [0, 1, 2, 0, 1, 2])


def test_decision_boundary_needs_two_features():
    with pytest.raises(ValueError, match=r"X must have shape \(samples, 2\), got \(4, 3\)"):
        plot.decision_boundary(Halves(), np.zeros((4, 3)), [0, 1, 0, 1])


def test_predicted_against_true():
    pytest.importorskip("sklearn")
    y_true, y_pred = [1.0, 2.0, 3.0, 4.0], [[1.5], [2.0], [2.5], [4.5]]
    ax = plot.predicted_against_true(y_true, y_pred, unit="kg")
    (line,) = ax.get_lines()
    assert line.get_slope() == 1
    assert ax.collections[0].get_offsets().tolist() == [[1, 1.5], [2, 2], [3, 2.5], [4, 4.5]]
    numbers = nnx.metrics.regression_metrics(y_true, y_pred)
    assert ax.get_title() == f"R² = {numbers['r2']:.3f}, RMSE = {numbers['rmse']:.4g} kg"
    assert ax.get_xlabel() == "true value (kg)"


def test_predicted_against_true_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="y_true has 3 values, y_pred has 2"):
        plot.predicted_against_true([1, 2, 3], [1, 2])


def test_residuals():
    ax = plot.residuals([1.0, 2.0, 4.0], [[1.5], [2.0], [2.5]], unit="kg")
    assert ax.collections[0].get_offsets().tolist() == [[1.5, -0.5], [2, 0], [2.5, 1.5]]
    assert ax.get_ylabel() == "true - predicted value (kg)"
    with pytest.raises(ValueError, match="y_true has 3 values, y_pred has 2"):
        plot.residuals([1, 2, 3], [1, 2])


def test_decision_boundary_of_an_estimator_names_its_labels():
    pytest.importorskip("sklearn")
    y = np.array(["no", "no", "no", "yes", "yes", "yes"])
    ax = plot.decision_boundary(nnx.estimators.Classifier(epochs=1).fit(PLANE, y), PLANE, y)
    assert legend_of(ax) == ["no", "yes"]


# Over all thresholds


@pytest.mark.parametrize(
    ("y", "p"),
    [
        ([0, 1, 1, 0, 1], [0.2, 0.9, 0.4, 0.5, 0.6]),
        (["a", "b", "b", "a", "b"], np.array([[0.2], [0.9], [0.4], [0.5], [0.6]])),
        ([-1, 1, 1, -1, 1], np.array([[0.8, 0.2], [0.1, 0.9], [0.6, 0.4], [0.5, 0.5], [0.4, 0.6]])),
    ],
    ids=["numbers", "text", "signs"],
)
def test_curves_of_two_classes(y, p):
    pytest.importorskip("sklearn")
    ax = plot.roc_curve(y, p)
    curve, chance = ax.get_lines()
    # By hand: from the highest probability down, positives are 0.9, 0.6 and 0.4, negatives 0.5 and 0.2.
    assert curve.get_xydata()[[0, -1]].tolist() == [[0, 0], [1, 1]]
    assert {(0, 2 / 3), (0.5, 1)} <= {tuple(point) for point in curve.get_xydata()}
    assert chance.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert legend_of(ax) == ["AUC 0.833", "chance"]
    assert ax.get_title() == f"ROC curve of {'b' if 'b' in y else 'class 1'}"
    ax = plot.precision_recall_curve(y, p)
    curve, chance = ax.get_lines()
    assert {(1, 0.75), (2 / 3, 1)} <= {tuple(point) for point in curve.get_xydata()}
    assert chance.get_ydata() == [0.6, 0.6]
    assert legend_of(ax) == ["AP 0.917", "chance"]


def test_curves_of_several_classes():
    sklearn = pytest.importorskip("sklearn.metrics")
    y = np.array([0, 1, 2, 2, 1, 0, 2])
    p = np.random.default_rng(0).dirichlet([1, 1, 1], 7)
    area = [sklearn.roc_auc_score(y == k, p[:, k]) for k in range(3)]
    mean = [sklearn.average_precision_score(y == k, p[:, k]) for k in range(3)]
    for true in (y, np.eye(3)[y]):
        ax = plot.roc_curve(true, p, class_names=["x", "y", "z"])
        assert legend_of(ax) == [*(f"{k}: AUC {a:.3f}" for k, a in zip("xyz", area, strict=True)), "chance"]
        assert legend_of(plot.precision_recall_curve(true, p)) == [
            f"class {k}: AP {mean[k]:.3f}" for k in range(3)
        ]


def test_curves_refuse_what_does_not_fit():
    pytest.importorskip("sklearn")
    with pytest.raises(
        ValueError, match="y_prob has 3 classes, y_true has samples of 2: a curve needs samples of each"
    ):
        plot.roc_curve([0, 1, 1], np.full((3, 3), 1 / 3))
    with pytest.raises(ValueError, match="y_true has 3 samples, y_prob has 2"):
        plot.roc_curve([0, 1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="class_names has 1 names, y_prob has 2 classes"):
        plot.precision_recall_curve([0, 1], [0.1, 0.2], class_names=["one"])


# Searches


def test_validation_curve_takes_the_best_of_each_value():
    ax = plot.validation_curve(SEARCH, "net__units")
    validation, best = ax.get_lines()
    assert validation.get_xydata().tolist() == [[2, 0.2], [8, 0.8], [40, 0.6]]
    assert best.get_xydata().tolist() == [[8, 0.8]]
    assert legend_of(ax) == ["validation", "best: 0.8 at 8"]
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == "units"
    assert plot.validation_curve(SEARCH, "rate").get_xscale() == "linear"


def test_validation_curve_of_names_and_with_training_scores():
    results = {
        "param_build": [np.mean, np.sum, None],
        "mean_test_score": [0.5, np.nan, 0.7],
        "std_test_score": [0, np.nan, 0],
        "mean_train_score": [0.6, 0.8, 0.7],
        "std_train_score": [0, 0, 0],
    }
    ax = plot.validation_curve(results, "build")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["mean", "sum", "None"]
    assert legend_of(ax) == ["training", "validation", "best: 0.7 at None"]


def test_search_heatmap_of_a_real_search():
    model_selection = pytest.importorskip("sklearn.model_selection")
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 2))
    grid = {"build__units": [1, 4], "optimizer__learning_rate": [0.0, 0.1], "epochs": [1, 2]}
    search = model_selection.GridSearchCV(nnx.estimators.Regressor(random_state=0), grid, cv=2).fit(
        X, X[:, 0]
    )
    ax = plot.search_heatmap(search, "build__units", "optimizer__learning_rate")
    cells = np.array(ax.images[0].get_array()).ravel()
    assert cells.max() == pytest.approx(search.best_score_)
    assert ax.get_title() == f"Score, at best {search.best_score_:.3f}"
    (frame,) = ax.patches
    place = (round(frame.get_x() + 0.48), round(frame.get_y() + 0.46))
    found = search.best_params_
    assert place == ([1, 4].index(found["build__units"]), [0.0, 0.1].index(found["optimizer__learning_rate"]))


def test_search_pictures_say_what_is_wrong():
    with pytest.raises(
        ValueError,
        match=r"unknown parameter of the search 'unit': .*Known: net__units, rate",
    ):
        plot.validation_curve(SEARCH, "unit")
    with pytest.raises(ValueError, match="expected a fitted search or its cv_results_"):
        plot.search_heatmap(object(), "a", "b")


# Weights


def areas_of(ax):
    return [float(np.sum(np.diff(step.get_data().edges) * (step.get_data().values - step.get_data().baseline)))
            for step in ax.patches]  # fmt: skip


def test_weight_histograms_count_each_weight():
    model = network()
    ax = plot.weight_histograms(model)
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == ["dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"]
    kernel = model.get_weights()[0]
    step = ax.patches[0].get_data()
    heights = step.values - step.baseline
    counts, _ = np.histogram(kernel, step.edges)
    assert heights / heights.max() == pytest.approx(counts / counts.max())
    assert step.edges[[0, -1]] == pytest.approx(
        [min(map(np.min, model.get_weights())), max(map(np.max, model.get_weights()))]
    )


def test_gradient_histograms_are_those_of_the_next_step(any_backend):
    model = network().to(any_backend)
    before, y = model.get_weights(), PLANE[:, :1] ** 2
    ax = plot.gradient_histograms(model, PLANE, y)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.step == 0
    model.compile(nnx.optimizers.SGD(1.0), "mse")
    model.train_on_batch(PLANE, y)
    sizes = [np.abs(a - b).ravel() for a, b in zip(before, model.get_weights(), strict=True)]
    edges = ax.patches[0].get_data().edges
    largest = max(size.max() for size in sizes)
    assert edges[-1] == pytest.approx(largest, rel=1e-3)
    zeros = [float(np.mean(size == 0)) for size in sizes]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert [f"{share:.0%} are 0" in label for share, label in zip(zeros, labels, strict=True)] == [
        z > 0 for z in zeros
    ]


def test_gradients_of_a_deep_network_of_sigmoids_vanish_towards_its_input():
    ax = plot.gradient_histograms(network("sigmoid", depth=6), PLANE, PLANE[:, 0])
    first, last = (ax.patches[k].get_data() for k in (0, -4))
    means = [
        np.average((d.edges[1:] * d.edges[:-1]) ** 0.5, weights=d.values - d.baseline) for d in (first, last)
    ]
    assert means[0] < means[1] / 100


def test_histograms_of_equal_weights_and_of_none():
    model = nnx.Sequential([nnx.layers.Dense(2, kernel_initializer="zeros", input_shape=(2,))])
    assert plot.weight_histograms(model).get_xlim()[0] < 0
    model.compile("sgd", "mse")
    assert (
        plot.gradient_histograms(model, PLANE, 0 * PLANE)
        .get_yticklabels()[0]
        .get_text()
        .endswith("100% are 0")
    )
    with pytest.raises(ValueError, match="no weights to draw"):
        plot.weight_histograms(nnx.Sequential([nnx.layers.Flatten(input_shape=(2, 2))]))


# Many of them


def drawn(ax):
    """Return how many texts a picture has, and how many pixels at its longer side."""
    ax.figure.draw_without_rendering()
    return len(ax.findobj(matplotlib.text.Text)), max(ax.figure.canvas.get_width_height())


@pytest.mark.parametrize("classes", [26, 229, 500])
def test_confusion_matrix_of_many_classes_has_no_texts_in_its_cells(classes):
    names = [f"class number {k}" for k in range(classes)]
    ax = plot.confusion_matrix(np.eye(classes, dtype=int), class_names=names)
    texts, pixels = drawn(ax)
    assert cells_of(ax) == []
    assert texts < 200
    assert pixels < 1600
    shown = [text.get_text() for text in ax.get_yticklabels()]
    assert 10 <= len(shown) <= 25
    assert shown == [names[round(place)] for place in ax.get_yticks()]
    assert shown == [text.get_text() for text in ax.get_xticklabels()]


def test_confusion_matrix_of_25_classes_has_all_texts():
    ax = plot.confusion_matrix(np.eye(25))
    assert len(cells_of(ax)) == 625
    assert len(ax.get_yticklabels()) == 25


def test_few_mistakes_among_many_classes_can_be_seen():
    counts = 50 * np.eye(40, dtype=int)
    counts[3, 30] = 1
    (picture,) = plot.confusion_matrix(counts).images
    paper, mistake = (picture.to_rgba(n)[:3] for n in (0, 1))
    assert np.abs(np.subtract(paper, mistake)).max() > 0.1


def test_a_heatmap_of_many_values():
    a, b = (values.ravel() for values in np.meshgrid(np.arange(70), np.arange(60)))
    results = {"param_a": a, "param_b": b, "mean_test_score": a * 1.0 + b, "std_test_score": 0.0 * a}
    ax = plot.search_heatmap(results, "a", "b")
    texts, pixels = drawn(ax)
    assert cells_of(ax) == []
    assert texts < 100
    assert pixels < 2400
    assert [text.get_text() for text in ax.get_xticklabels()] == [str(n) for n in range(0, 70, 5)]


def test_a_validation_curve_of_many_names_shows_names():
    names = [f"f{k}" for k in range(60)]
    results = {"param_a": names, "mean_test_score": np.arange(60.0), "std_test_score": np.zeros(60)}
    shown = [text.get_text() for text in plot.validation_curve(results, "a").get_xticklabels()]
    assert shown == sorted(names)[::5]


def test_curves_of_many_classes_name_the_lowest():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)
    y, p = np.arange(200) % 40, rng.random((200, 40))
    p[np.arange(200), y] += 0.9 * (y != 7)
    for draw, number in ((plot.roc_curve, "AUC"), (plot.precision_recall_curve, "AP")):
        ax = draw(y, p)
        named = [text for text in legend_of(ax) if text != "chance"]
        assert len(named) == 10
        assert any(text.startswith(f"class 7: {number}") for text in named)
        assert ax.get_legend().get_title().get_text() == "the lowest 10 of 40"
        assert len(ax.get_lines()) >= 40


def test_histograms_of_many_layers():
    hidden = [nnx.layers.Dense(1) for _ in range(100)]
    ax = plot.weight_histograms(nnx.Sequential([nnx.layers.Input((1,)), *hidden], seed=0))
    assert drawn(ax)[1] < 3000
    assert len(ax.patches) == 200
    shown = [text.get_text() for text in ax.get_yticklabels()]
    assert len(shown) <= 60
    assert shown[0] == "dense/kernel"
    assert ax.get_yticks()[0] == 199  # at the top


def test_many_samples_are_drawn_in_part():
    y = np.arange(50_000.0)
    for draw, number in ((plot.residuals, "mean -1"), (plot.predicted_against_true, "RMSE = 1")):
        ax = draw(y, y + 1)
        assert len(ax.collections[0].get_offsets()) == 20_000
        assert "20,000 of 50,000 samples" in legend_of(ax)
        assert number in ax.get_title()
    X = np.random.default_rng(0).normal(size=(50_000, 2))
    ax = plot.decision_boundary(Halves(), X, (X[:, 0] > 0).astype(int))
    assert sum(len(group.get_offsets()) for group in ax.collections[1:]) == 20_000


def test_a_plane_of_many_classes_has_no_legend():
    class Many:
        def predict(self, X):
            return np.exp(-((X[:, :1] - np.linspace(-1, 1, 30)) ** 2))

    assert plot.decision_boundary(Many(), PLANE, [0, 1, 2, 3, 4, 29]).get_legend() is None


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plot.confusion_matrix([], []), "there are no samples, and no classes"),
        (lambda: plot.residuals([], []), "there are no samples to draw"),
        (lambda: plot.predicted_against_true([1, np.nan], [1, 2]), "y_true has 1 values that are not finite"),
        (lambda: plot.residuals([1, 2], [np.inf, np.nan]), "y_pred has 2 values that are not finite"),
        (lambda: plot.decision_boundary(Halves(), np.zeros((0, 2)), []), "X is empty"),
        (lambda: plot.decision_boundary(Halves(), [[np.nan, 1.0]], [0]), "X has the value nan"),
        (lambda: plot.decision_boundary(Halves(), PLANE, [0]), "X has 6 samples, y has 1"),
        (lambda: plot.activation_gallery([]), "names is empty"),
        (
            lambda: plot.search_heatmap({**SEARCH, "mean_test_score": [np.nan] * 6}, "rate", "rate"),
            "no setting",
        ),
        (lambda: plot.validation_curve({**SEARCH, "mean_test_score": [np.nan] * 6}, "rate"), "no setting"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_one_line(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'nnx-engine\[plot\]'"):
        plot.learning_curves(HISTORY)


def test_importing_nnx_and_its_plot_does_not_import_matplotlib():
    program = "import sys, nnx, nnx.plot; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
