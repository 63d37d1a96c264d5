"""Any network as a scikit-learn estimator: its conventions, labels, parameters, errors."""

import subprocess
import sys

import numpy as np
import pytest

import nnx
from nnx import layers

pytest.importorskip("sklearn")

import joblib
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from nnx.estimators import Classifier, Regressor


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@pytest.mark.filterwarnings("ignore:SCIPY_ARRAY_API")
@parametrize_with_checks([Classifier(), Regressor()])
def test_scikit_learn_conventions(estimator, check):
    check(estimator)


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_layers_compute_in_the_precision_of_the_samples_and_models_in_their_own(kind):
    X, y = load_iris(return_X_y=True)
    X = X.astype(kind)
    assert Classifier(dense, epochs=1).fit(X, y).model_.dtype == kind
    assert Classifier(dense, epochs=1, dtype="float64").fit(X, y).model_.dtype == "float64"
    model = Classifier(lambda outputs: nnx.Sequential(dense(outputs)), epochs=1).fit(X, y).model_
    assert model.dtype == "float32"
    assert Regressor(epochs=1).fit(X.astype(int), y).model_.dtype == "float32"


def dense(outputs, units=8, activation="relu"):
    return [layers.Dense(units, activation), layers.Dense(outputs, "softmax")]


def one_sigmoid():
    return nnx.Sequential([layers.Dense(8, "tanh"), layers.Dense(1, "sigmoid")])


def image_network(outputs, filters=4):
    return nnx.Sequential(
        [
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(filters, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(outputs, "softmax"),
        ]
    )


FAST = {"optimizer__learning_rate": 0.02, "random_state": 0}


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return (X - X.mean(axis=0)) / X.std(axis=0), y


@pytest.fixture(scope="module")
def two_classes(iris):
    X, y = iris
    return X[y > 0], y[y > 0]


def test_runs_on_every_backend(any_backend, iris):
    X, y = iris
    classifier = Classifier(dense, epochs=15, backend=any_backend.name, **FAST).fit(X, y)
    assert classifier.model_.backend is any_backend
    assert classifier.score(X, y) > 0.9
    assert classifier.predict_proba(X).sum(axis=1) == pytest.approx(1)


# Labels


@pytest.mark.parametrize(
    "labels",
    [np.array(["setosa", "versicolor", "virginica"]), np.array([7, -1, 40]), np.array([0.0, 2.0, 1.0]),
     np.array(["b", "a", "c"], dtype=object)],
    ids=["text", "numbers", "floats", "objects"],
)  # fmt: skip
def test_labels_of_any_kind(iris, labels):
    X, y = iris
    classifier = Classifier(dense, epochs=20, **FAST).fit(X, labels[y])
    assert classifier.classes_.tolist() == sorted(labels.tolist())
    assert np.mean(classifier.predict(X) == labels[y]) > 0.9
    assert classifier.predict(X).dtype == labels.dtype
    best = classifier.classes_[classifier.predict_proba(X).argmax(axis=1)]
    assert best.tolist() == classifier.predict(X).tolist()


@pytest.mark.parametrize(
    ("build", "loss"),
    [
        (one_sigmoid, None),
        (one_sigmoid, "binary_focal_crossentropy"),
        (lambda: [layers.Dense(1)], nnx.losses.BinaryCrossentropy(from_logits=True)),
        (lambda: [layers.Dense(2)], nnx.losses.SparseCategoricalCrossentropy(from_logits=True)),
        (dense, None),
        (dense, "categorical_crossentropy"),
        (lambda: [layers.Dense(2, "sigmoid")], "binary_crossentropy"),
    ],
    ids=["sigmoid", "focal", "one logit", "two logits", "softmax", "one-hot", "two sigmoids"],
)
def test_two_classes_by_networks_and_losses_of_each_kind(two_classes, build, loss):
    X, y = two_classes
    classifier = Classifier(build, loss=loss, epochs=80, **FAST).fit(X, y == 2)
    assert classifier.classes_.tolist() == [False, True]
    assert classifier.score(X, y == 2) > 0.9
    p = classifier.predict_proba(X)
    assert p.shape == (100, 2)
    assert p.sum(axis=1) == pytest.approx(1)
    assert ((p[:, 1] > 0.5) == classifier.predict(X)).all()


def test_hinge_predicts_by_the_sign_and_has_no_probabilities(two_classes):
    X, y = two_classes
    classifier = Classifier(lambda: [layers.Dense(1)], loss="hinge", epochs=40, **FAST).fit(X, y)
    assert classifier.score(X, y) > 0.9
    with pytest.raises(ValueError, match="outputs are no probabilities, they go from -"):
        classifier.predict_proba(X)


# Networks


def test_convolution_on_images():
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 8, 8) / 16
    classifier = Classifier(image_network, build__filters=8, epochs=6, **FAST).fit(X[:800], y[:800])
    assert classifier.model_.layers[1].filters == 8
    assert classifier.score(X[800:], y[800:]) > 0.85
    with pytest.raises(ValueError, match=r"the model expects X of shape \(batch, 8, 8\), got \(2, 8, 4\)"):
        classifier.predict(X[:2, :, :4])


def test_sequences_of_tokens():
    """Which of two words comes more often; whole numbers, which an Embedding takes."""

    def build(outputs):
        return [
            layers.Embedding(5, 4),
            layers.Conv1D(8, 3, activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(outputs, "softmax"),
        ]

    X = np.random.default_rng(0).integers(0, 5, (400, 12))
    y = np.where((X == 1).sum(axis=1) > (X == 2).sum(axis=1), "one", "two")
    assert Classifier(build, epochs=20, **FAST).fit(X[:300], y[:300]).score(X[300:], y[300:]) > 0.9


def test_several_targets_of_any_shape():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 3))
    for target in (X @ rng.standard_normal((3, 2)), X[:, :1], X[:, 0]):
        regressor = Regressor(build__units=(16,), epochs=40, **FAST).fit(X, target)
        assert regressor.predict(X).shape == target.shape
        assert regressor.score(X, target) > 0.95
    grid = X.reshape(200, 1, 3)
    regressor = Regressor(lambda: [layers.Dense(3)], epochs=40, **FAST).fit(grid, 2 * grid)
    assert regressor.predict(grid).shape == (200, 1, 3)
    assert np.abs(regressor.predict(grid) - 2 * grid).max() < 0.5


def test_build_is_given_what_the_data_says(iris):
    given = []

    def build(input_shape, outputs, **others):
        given.append((input_shape, outputs, others))
        return layers.Dense(outputs, "softmax")

    Classifier(build, epochs=1, build__anything=3).fit(*iris)
    assert given == [((4,), 3, {"anything": 3})]


def test_a_model_that_build_returns_twice_is_trained_once_by_each_fit(iris):
    """Else a fold of a cross-validation would start from the weights of the one before."""
    model = nnx.Sequential(dense(3), seed=3)
    model.build((4,))
    start = model.get_weights()
    classifier = Classifier(lambda: model, epochs=2)
    first, second = (clone(classifier).fit(*iris).model_.get_weights() for _ in range(2))
    for mine, a, b, now in zip(start, first, second, model.get_weights(), strict=True):
        assert np.array_equal(a, b)
        assert np.array_equal(now, mine)
        assert not np.array_equal(a, mine)


def test_what_build_compiled_holds_unless_the_estimator_says_otherwise(iris):
    def build():
        model = nnx.Sequential(dense(3))
        model.compile(nnx.optimizers.SGD(0.3, momentum=0.5), "categorical_crossentropy", metrics=["accuracy"])
        return model

    model = Classifier(build, epochs=2, optimizer__learning_rate=0.2).fit(*iris).model_
    assert repr(model.optimizer) == "SGD(learning_rate=0.2, momentum=0.5)"
    assert type(model.loss) is nnx.losses.CategoricalCrossentropy
    assert model.metrics_names == ["loss", "accuracy"]
    model = Classifier(build, epochs=1, optimizer="adam", metrics=[]).fit(*iris).model_
    assert type(model.optimizer) is nnx.optimizers.Adam
    assert model.metrics_names == ["loss"]


# Parameters


def test_arguments_of_build_and_optimizer_are_parameters():
    classifier = Classifier(dense, build__units=3, optimizer="sgd")
    parameters = classifier.get_params()
    assert parameters["build__units"] == 3
    assert parameters["build__activation"] == "relu"
    assert parameters["optimizer__momentum"] == 0.0
    assert "build__outputs" not in parameters
    copied = clone(classifier).set_params(build__activation="tanh", optimizer__momentum=0.9, epochs=2)
    assert copied.get_params(deep=False).items() >= {
        "build__units": 3, "build__activation": "tanh", "optimizer__momentum": 0.9
    }.items()  # fmt: skip
    assert classifier.get_params()["build__activation"] == "relu"
    assert "build__units=3" in repr(classifier)


def test_parameters_reach_the_network_and_the_optimizer(iris):
    schedule = nnx.schedules.ExponentialDecay(0.1, 10, 0.5)
    model = Classifier(build__units=(5, 4), build__activation="tanh", optimizer="nadam",
                       optimizer__learning_rate=schedule, epochs=1).fit(*iris).model_  # fmt: skip
    assert [layer.units for layer in model.layers] == [5, 4, 3]
    assert isinstance(model.optimizer, nnx.optimizers.Nadam)
    assert model.optimizer.learning_rate is schedule


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [({"build__unit": 3}, "build__units"), ({"optimizer__momentum": 0.9}, "optimizer__"), ({"epoch": 3}, "epochs")],
)  # fmt: skip
def test_a_parameter_that_there_is_not(iris, wrong, hint):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"unknown parameter of Classifier '{name}': did you mean '{hint}"):
        Classifier(dense, **wrong).fit(*iris)
    with pytest.raises(ValueError, match=name):
        Classifier(dense).set_params(**wrong)


def test_the_same_random_state_gives_the_same_bits(iris):
    first, second, other = (
        Classifier(epochs=3, validation_split=0.2, random_state=s).fit(*iris) for s in (1, 1, 2)
    )
    assert np.array_equal(first.predict_proba(iris[0]), second.predict_proba(iris[0]))
    assert first.history_.history == second.history_.history
    assert not np.array_equal(first.predict_proba(iris[0]), other.predict_proba(iris[0]))


def test_callbacks_are_copied_so_that_a_fit_changes_no_parameter(iris):
    stop = nnx.callbacks.EarlyStopping("loss", patience=0, min_delta=10)
    classifier = Classifier(callbacks=stop, epochs=30).fit(*iris)
    assert len(classifier.history_.epoch) == 2
    assert stop.best is None


# Samples


def test_validation_samples_hold_each_class_in_its_share(iris, monkeypatch):
    """The samples are sorted by class: the last of them would be all of one."""
    given, fit = {}, nnx.Model.fit

    def spied(model, x, y, *others, **settings):
        given.update(x=x, y=y, kept=settings["validation_data"], weight=settings["sample_weight"])
        return fit(model, x, y, *others, **settings)

    monkeypatch.setattr(nnx.Model, "fit", spied)
    weights = np.linspace(0.5, 1.5, 150)
    Classifier(dense, epochs=1, validation_split=0.2, random_state=0).fit(*iris, sample_weight=weights)
    x, y, weight = given["kept"]
    assert np.bincount(y).tolist() == [10, 10, 10]
    assert np.bincount(given["y"]).tolist() == [40, 40, 40]
    of = {tuple(row): label for row, label in zip(*iris, strict=True)}
    for rows, labels in ((x, y), (given["x"], given["y"])):
        assert [of[tuple(row)] for row in rows] == labels.tolist()
    assert weight.sum() + given["weight"].sum() == pytest.approx(150)


def test_validation_data_with_labels_and_weights(iris):
    X, y = iris
    names = np.array(["a", "b", "c"])[y]
    weights = (y == 0).astype(float)
    seen = {}
    for given in ((X, names), (X, names, weights)):
        classifier = Classifier(dense, epochs=2, random_state=0).fit(X, names, validation_data=given)
        seen[len(given)] = classifier.history_.history["val_loss"][-1]
        expected = nnx.losses.SparseCategoricalCrossentropy()(
            y, classifier.predict_proba(X), *([weights] * (len(given) - 2))
        )
        assert seen[len(given)] == pytest.approx(float(expected), rel=1e-5)
    assert seen[2] != seen[3]
    with pytest.raises(ValueError, match="previously unseen labels"):
        Classifier(dense, epochs=1).fit(X, names, validation_data=(X, y.astype(str)))


def test_only_ratios_of_weights_count(iris):
    X, y = iris
    weights = np.random.default_rng(0).random(150)
    a, b = (Classifier(epochs=3, random_state=0).fit(X, y, sample_weight=c * weights) for c in (1, 256))
    assert a.predict_proba(X) == pytest.approx(b.predict_proba(X), abs=1e-6)
    with pytest.raises(ValueError, match="at least one non-zero"):
        Classifier(epochs=1).fit(X, y, sample_weight=np.zeros(150))


def test_class_weights(two_classes):
    X, y = two_classes
    X, y = X[:60], np.array(["rare" if label == 2 else "often" for label in y[:60]])
    X = X[:, :1]  # hard to tell apart
    plain, balanced, one_sided = (
        Classifier(dense, epochs=40, class_weight=weight, **FAST).fit(X, y).predict(X)
        for weight in (None, "balanced", {"rare": 1000.0})
    )
    counts = [np.sum(found == "rare") for found in (plain, balanced, one_sided)]
    assert counts[0] < counts[1] < counts[2] == 60
    with pytest.raises(ValueError, match="class_weight names 'seldom', which is not one of the classes"):
        Classifier(class_weight={"seldom": 2}).fit(X, y)


def test_balanced_class_weights_and_sample_weights_multiply(iris):
    X, y = iris
    X, y = X[:120], y[:120]
    given = np.linspace(0.5, 1.5, 120)
    by_class = (given.sum() / (3 * np.bincount(y, weights=given)))[y]
    a = Classifier(epochs=3, class_weight="balanced", random_state=0).fit(X, y, sample_weight=given)
    b = Classifier(epochs=3, random_state=0).fit(X, y, sample_weight=given * by_class)
    assert a.predict_proba(X) == pytest.approx(b.predict_proba(X), abs=1e-6)


def test_partial_fit_goes_on_where_training_stands(iris):
    X, y = iris
    fitted = Classifier(dense, epochs=4, random_state=0).fit(X, y)
    partly, epochs = Classifier(dense, random_state=0), []
    for _ in range(4):
        partly.partial_fit(X, y)
        epochs += partly.history_.epoch
    assert epochs == [0, 1, 2, 3]
    assert np.array_equal(partly.predict_proba(X), fitted.predict_proba(X))
    regressor = Regressor(random_state=0)
    for _ in range(3):
        regressor.partial_fit(X, y)
    assert regressor.history_.epoch == [2]


def test_partial_fit_with_classes_that_come_later(iris):
    X, y = iris
    classifier = Classifier(dense, random_state=0).partial_fit(X[:50], y[:50], classes=[0, 1, 2])
    assert classifier.partial_fit(X[50:], y[50:]).predict_proba(X).shape == (150, 3)
    with pytest.raises(ValueError, match="previously unseen labels"):
        classifier.partial_fit(X, y + 1)


def test_data_frames_keep_their_names(iris):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(iris[0], columns=["a", "b", "c", "d"])
    classifier = Classifier(epochs=1).fit(frame, pandas.Series(iris[1], name="kind"))
    assert classifier.feature_names_in_.tolist() == ["a", "b", "c", "d"]
    assert classifier.n_features_in_ == 4
    with pytest.raises(ValueError, match="feature names should match"):
        classifier.predict(frame[["b", "a", "c", "d"]])


def test_joblib_keeps_what_was_learnt(iris, tmp_path):
    X, y = iris
    classifier = Classifier(dense, build__units=5, epochs=3, **FAST).fit(X, y)
    joblib.dump(classifier, tmp_path / "classifier.joblib")
    loaded = joblib.load(tmp_path / "classifier.joblib")
    assert np.array_equal(loaded.predict_proba(X), classifier.predict_proba(X))
    assert loaded.get_params() == classifier.get_params()
    loaded.partial_fit(X, y)
    classifier.partial_fit(X, y)
    assert np.array_equal(loaded.predict_proba(X), classifier.predict_proba(X))


def test_float64_is_computed_in_float64():
    X, y = load_diabetes(return_X_y=True)
    regressor = Regressor(epochs=1, dtype="float64", random_state=0).fit(X, y)
    assert regressor.model_.get_weights()[0].dtype == np.float64
    assert regressor.predict(X.astype("float32")).dtype == np.float64


# Errors


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"build": nnx.Sequential(dense(3))}, "build must be a function that returns a new network at each call"),
        ({"build": lambda: None}, "build must return an nnx model, a layer or a list of layers, got None"),
        ({"build": list}, r"build must return an nnx model, a layer or a list of layers, got \[\]"),
    ],
)  # fmt: skip
def test_what_is_no_network(iris, parameters, message):
    with pytest.raises(TypeError, match=message):
        Classifier(**parameters).fit(*iris)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"build": lambda: dense(4)}, r"y has 3 classes, but the output of the network that build returned has shape "
                                      r"\(batch, 4\): end it in Dense\(3, 'softmax'\)"),
        ({"build": one_sigmoid}, r"y has 3 classes, .* shape \(batch, 1\)"),
        ({"build": lambda: [layers.Dense(3)]}, "takes probabilities, but .* give that activation='softmax', or the "
                                               "loss from_logits=True"),
        ({"dtype": "float8"}, "dtype must be float16, bfloat16, float32, float64, or None; got 'float8'"),
        ({"epochs": 0}, "epochs must be a positive whole number, got 0"),
        ({"batch_size": -1}, "batch_size must be a positive whole number, got -1"),
        ({"optimizer": "adamm"}, "did you mean 'adam'"),
        ({"loss": "crossentropy"}, "unknown loss"),
    ],
)  # fmt: skip
def test_what_does_not_fit(iris, parameters, message):
    with pytest.raises(ValueError, match=message):
        Classifier(**parameters).fit(*iris)


def test_softmax_over_one_output_is_refused(two_classes):
    with pytest.raises(ValueError, match="give that activation='sigmoid'"):
        Classifier(lambda: [layers.Dense(1, "softmax")]).fit(*two_classes)


def test_targets_that_do_not_fit_the_network(iris):
    with pytest.raises(ValueError, match=r"output has shape \(batch, 1\), got y of shape \(150, 4\)"):
        Regressor(lambda: [layers.Dense(1)]).fit(iris[0], iris[0])


def test_samples_of_another_shape_than_the_network_declares(iris):
    with pytest.raises(ValueError, match=r"expects X of shape \(batch, 5\), got \(150, 4\)"):
        Classifier(lambda: [layers.Dense(3, "softmax", input_shape=(5,))]).fit(*iris)


def test_a_model_with_weights_keeps_its_precision(iris):
    def build():
        model = nnx.Sequential(dense(3))
        model.build((4,))
        return model

    with pytest.raises(
        ValueError, match="dtype must be float32, that of its weights, or None; got 'float64'"
    ):
        Classifier(build, dtype="float64").fit(*iris)


def test_before_fit_it_says_so():
    with pytest.raises(NotFittedError):
        Classifier().predict([[1.0, 2.0]])


def test_importing_nnx_does_not_import_scikit_learn_and_without_it_estimators_say_what_to_install():
    program = (
        "import sys, nnx; assert 'sklearn' not in sys.modules; sys.modules['sklearn'] = None\n"
        "try: nnx.estimators\n"
        "except ImportError as error: assert 'nnx-engine[sklearn]' in str(error)\n"
        "else: sys.exit(1)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
