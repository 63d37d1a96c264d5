"""What fit, evaluate and predict take: class weights, batches, several inputs, counts; all else is an error."""

import itertools
import re

import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.data import streams
from nnx.estimators import Classifier, MLPClassifier

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 3))
SIGNS = (X[:, 0] > 0).astype(int)
REAL = X[:, :1] + 0.25


def model(units=2, activation="softmax", loss="sparse_categorical_crossentropy", **settings):
    made = nnx.Sequential([layers.Dense(units, activation)], seed=0, **settings)
    made.compile(nnx.optimizers.SGD(0.1), loss)
    return made


def linear(**settings):
    return model(1, None, "mse", **settings)


def endless():
    return itertools.repeat((X[:8], REAL[:8]))


# Class weights

WRONG_WEIGHTS = {
    "negative": (model, SIGNS, {0: -1.0}, "finite and not negative, got -1.0 for class 0"),
    "nan": (model, SIGNS, {0: np.nan}, "finite and not negative, got nan for class 0"),
    "text": (model, SIGNS, {0: "2"}, "finite and not negative, got '2' for class 0"),
    "a text key": (model, SIGNS, {"0": 2.0}, "class numbers as keys, such as 0 and 1, got the key '0'"),
    "no class": (model, SIGNS, {7: 2.0}, "names the class 7, but the model has 2 outputs"),
    "a list": (model, SIGNS, [1.0, 5.0], r"must be a dict .* got \[1.0, 5.0\].*dict\(enumerate\(weights\)\)"),
    "balanced": (model, SIGNS, "balanced", r"must be a dict .* got 'balanced'.*np.bincount\(y\)"),
    "real targets": (linear, REAL, {0: 2.0}, "needs classes as targets.*y has the value .* at row 0.*sample_weight"),
    "labels": (
        lambda: model(3, "sigmoid", "binary_crossentropy"),
        np.tile([[1, 0, 1], [0, 1, 0]], (10, 1)),
        {0: 2.0},
        r"one class a sample, but y has the labels \[1.0, 0.0, 1.0\] at row 0",
    ),
    "signs as 0 and 1": (lambda: model(1, "tanh", "hinge"), 2 * SIGNS - 1, {0: 2.0, 1: 1.0}, "the labels are -1, 1"),
    "two, of one output": (lambda: model(1, "sigmoid", "binary_crossentropy"), SIGNS, {2: 2.0}, "classes 0 and 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
@pytest.mark.parametrize("method", ["fit", "train_on_batch"])
def test_class_weights_that_mean_nothing_are_errors(name, method):
    make, y, weights, message = WRONG_WEIGHTS[name]
    settings = {"verbose": 0} if method == "fit" else {}
    with pytest.raises(ValueError, match=message) as caught:
        getattr(make(), method)(X, y, class_weight=weights, **settings)
    assert "class_weight" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "y", "weights"),
    [
        (model, SIGNS, {np.int64(1): 3.0}),
        (model, SIGNS, {1.0: np.float32(3.0)}),
        (lambda: model(2, "softmax", "categorical_crossentropy"), np.eye(2)[SIGNS], {1: 3.0}),
        (lambda: model(1, "sigmoid", "binary_crossentropy"), SIGNS, {True: 3.0}),
        (lambda: model(1, "tanh", "hinge"), 2 * SIGNS - 1, {1: 3.0, -1: 1.0}),
    ],
)
def test_class_weights_are_weights_of_the_samples(make, y, weights):
    by_class = make().fit(X, y, class_weight=weights, epochs=2, verbose=0).history
    by_sample = make().fit(X, y, sample_weight=np.where(SIGNS == 1, 3.0, 1.0), epochs=2, verbose=0).history
    assert by_class == by_sample


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_balanced_classes_of_an_estimator_count_the_weights_of_samples():
    """A sample of weight 2 is a sample that comes twice."""
    y, weight = np.where(X[:, 0] > 0.3, "b", "a"), np.arange(20) % 4
    rows = np.repeat(np.arange(20), weight)
    settings = {"solver": "lbfgs", "class_weight": "balanced", "random_state": 0, "max_iter": 10}
    weighted = MLPClassifier((4,), **settings).fit(X, y, weight.astype(float))
    repeated = MLPClassifier((4,), **settings).fit(X[rows], y[rows])
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-9)
    settings = {
        "class_weight": "balanced",
        "random_state": 0,
        "epochs": 2,
        "batch_size": 100,
        "shuffle": False,
    }
    losses = [
        Classifier(**settings).fit(*data).history_.history["loss"]
        for data in ((X, y, weight.astype(float)), (X[rows], y[rows]))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.parametrize("weights", [{"a": -1.0}, {"a": np.nan}, {"c": 2.0, "a": 1.0, "b": 1.0}])
@pytest.mark.parametrize("kind", [MLPClassifier, Classifier])
def test_estimators_check_class_weights(kind, weights):
    with pytest.raises(ValueError, match="class_weight"):
        kind(class_weight=weights).fit(X, np.where(SIGNS, "a", "b"))


def test_a_batch_without_a_class_that_has_a_weight():
    y = np.where(SIGNS, "a", "b")
    found = MLPClassifier(class_weight={"b": 5.0}).partial_fit(X, y, classes=["a", "b"])
    assert found.partial_fit(X[y == "a"], y[y == "a"]).t_ == 20 + SIGNS.sum()


def test_classes_in_the_validation_part_that_were_never_trained_on():
    y = np.repeat([0, 1], 10)
    for made, targets in ((model(), y), (model(2, "softmax", "categorical_crossentropy"), np.eye(2)[y])):
        with pytest.warns(UserWarning, match=r"100% of their labels are of classes .* \(1\)\. Shuffle"):
            made.fit(X, targets, validation_split=0.5, verbose=0)
    model().fit(X, np.arange(20) % 2, validation_split=0.5, verbose=0)
    linear().fit(X, REAL, validation_split=0.5, verbose=0)


# Batches


def test_steps_of_an_iterable_without_end():
    made = linear()
    settings = {"steps_per_epoch": 2, "validation_steps": 2, "verbose": 0}
    assert "val_loss" in made.fit(endless(), validation_data=endless(), epochs=2, **settings).history
    expected = made.evaluate(X[:8], REAL[:8], verbose=0)
    assert made.evaluate(endless(), steps=3, verbose=0) == pytest.approx(expected)
    assert made.predict(endless(), steps=3).shape == (24, 1)


def test_an_iterator_goes_on_where_the_last_validation_ended():
    drawn = []

    def batches():
        for number in range(100):
            drawn.append(number)
            yield X[:8], REAL[:8]

    linear().fit(X, REAL, epochs=3, validation_data=batches(), validation_steps=2, verbose=0)
    assert drawn == list(range(6))


def test_a_generator_to_validate_on_more_than_once_needs_validation_steps():
    for settings in ({"epochs": 2}, {"steps_per_epoch": 2}):
        data = (endless(),) if "steps_per_epoch" in settings else (X, REAL)
        generator = ((X[:8], REAL[:8]) for _ in range(3))
        with pytest.raises(ValueError, match=r"validation_data is a generator.*validation_steps="):
            linear().fit(*data, validation_data=generator, verbose=0, **settings)
    assert linear().fit(X, REAL, validation_data=((X[:8], REAL[:8]) for _ in range(3)), verbose=0)


def test_many_batches_of_an_iterator_are_not_silent(monkeypatch):
    monkeypatch.setattr(streams, "MANY", 5)
    made = linear()
    made.build((3,))
    finite = list(itertools.islice(endless(), 10))
    for call in (lambda data: made.evaluate(data, verbose=0), made.predict):
        with pytest.warns(UserWarning, match="if it has no end, stop this .*steps="):
            call(iter(finite))
        call(finite)


def test_steps_of_arrays_and_of_too_few_batches():
    made = linear()
    made.build((3,))
    first = made.evaluate(X[:10], REAL[:10], verbose=0)
    assert made.evaluate(X, REAL, batch_size=5, steps=2, verbose=0) == pytest.approx(first)
    np.testing.assert_array_equal(made.predict(X, batch_size=5, steps=2), made.predict(X[:10], batch_size=5))
    with pytest.warns(UserWarning, match="steps=9 batches of 5 samples are more than there are"):
        made.predict(X, batch_size=5, steps=9)
    with pytest.warns(UserWarning, match="ended after 2 of 3 batches, steps=3"):
        made.evaluate([(X, REAL)] * 2, steps=3, verbose=0)


def test_predict_takes_batches(any_backend):
    made = linear(backend=any_backend)
    made.build((3,))
    expected, halves = made.predict(X), (slice(0, 12), slice(12, 20))
    given = {
        "(x, y)": [(X[half], REAL[half]) for half in halves],
        "(x,)": [(X[half],) for half in halves],
        "x": [X[half] for half in halves],
        "generator": (X[half] for half in halves),
        "generator of lists": ([X[half], REAL[half]] for half in halves),
        "numbers": (X[half].tolist() for half in halves),
        "rows as tuples": [tuple(row) for row in X.tolist()],
    }
    for name, batches in given.items():
        np.testing.assert_allclose(made.predict(batches), expected, rtol=1e-6, err_msg=name)
    with pytest.raises(ValueError, match=r"it was built for 3 features \(in batch 1, counted from 0\)"):
        made.predict([(X,), (X[:, :2],)])


def test_an_iterable_may_use_its_arrays_again(any_backend):
    made = nnx.Sequential([layers.Activation("linear", input_shape=(3,))], backend=any_backend)
    shared = np.empty((1, 3), "float32")

    def batches():
        for row in X:
            shared[:] = row
            yield shared

    np.testing.assert_array_equal(made.predict(batches()), X.astype("float32"))


# Several inputs


@pytest.mark.parametrize("kind", [tuple, list])
def test_several_inputs_as_a_tuple_or_a_list(kind):
    inputs, y = kind([X, X[:, :2]]), REAL
    made = nnx.Sequential([layers.Inputs([], []), layers.Dense(1)], seed=0)
    made.compile(nnx.optimizers.SGD(0.0), "mse")
    logs = made.fit(inputs, y, validation_data=(inputs, y, np.ones(20)), verbose=0).history
    assert logs["val_loss"] == pytest.approx(logs["loss"])
    assert made.evaluate(inputs, y, verbose=0) == pytest.approx(logs["loss"][0])
    assert made.test_on_batch(inputs, y) == pytest.approx(logs["loss"][0])
    assert made.predict(inputs).shape == (20, 1)
    assert made.predict([(inputs, y)] if kind is tuple else [(tuple(inputs), y)]).shape == (20, 1)


# One number a sample


def test_an_output_of_one_number_a_sample(any_backend):
    """(batch,) is trained on as (batch, 1) is."""
    curves, weight = [], np.linspace(0, 2, 20)
    for tail in ([], [layers.Reshape(())]):
        made = nnx.Sequential([layers.Dense(1), *tail], seed=0, dtype="float64", backend=any_backend)
        made.compile(nnx.optimizers.SGD(0.1), "mae", metrics=["mse"], weighted_metrics=["r2"])
        history = made.fit(
            X, REAL[:, 0], 8, 3, sample_weight=weight, validation_split=0.25, verbose=0
        ).history
        curves.append({**history, "evaluated": made.evaluate(X, REAL, sample_weight=weight, verbose=0)})
        assert made.predict(X).shape == ((20,) if tail else (20, 1))
    assert curves[1] == {name: pytest.approx(values) for name, values in curves[0].items()}


# Arguments

ARGUMENTS = {
    "epochs": (lambda m: m.fit(X, REAL, epochs=2.0), "epochs must be a whole number, got 2.0: give 2"),
    "text": (lambda m: m.fit(X, REAL, epochs="2"), "epochs must be a whole number, got '2'"),
    "initial_epoch": (lambda m: m.fit(X, REAL, initial_epoch=0.5), "initial_epoch must be a whole number, got 0.5"),
    "batch_size": (lambda m: m.fit(X, REAL, batch_size=4.0), "batch_size must be a positive .*, got 4.0: give 4"),
    "steps_per_epoch": (lambda m: m.fit(endless(), steps_per_epoch=0), "steps_per_epoch must be a positive .*, got 0"),
    "validation_steps": (lambda m: m.fit(X, REAL, validation_steps=2), "validation_steps needs validation_data"),
    "validation_split": (lambda m: m.fit(X, REAL, validation_split="0.2"), "must lie between 0 and 1, got '0.2'"),
    "shuffle": (lambda m: m.fit(X, REAL, shuffle="no"), "shuffle must be True, False or a function .*got 'no'"),
    "verbose": (lambda m: m.evaluate(X, REAL, verbose="no"), "verbose must be 'auto', 0, 1 or 2, got 'no'"),
    "steps": (lambda m: m.predict(X, steps=1.5), "steps must be a positive whole number, got 1.5"),
    "validation_data": (lambda m: m.fit(X, REAL, validation_data=X), r"must be .*got ndarray of shape \(20, 3\)"),
    "one of two": (lambda m: m.fit(X, REAL, validation_data=(X,)), r"validation_data must be .*got tuple of 1"),
    "weights of batches": (lambda m: m.evaluate([(X, REAL)], sample_weight=X[:, 0]), "sample_weight needs arrays"),
    "y beside batches": (lambda m: m.fit(endless(), REAL), "gives the targets itself: leave y out"),
    "sample_weight": (lambda m: m.fit(X, REAL, sample_weight=["a"] * 20), "sample_weight must be an array of numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_error(name):
    call, message = ARGUMENTS[name]
    made = linear()
    made.build((3,))
    with pytest.raises(ValueError) as caught:
        call(made)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_callbacks_that_are_no_list():
    with pytest.raises(TypeError, match=r"callbacks must be a list of nnx.callbacks.Callback objects, got 3"):
        linear().fit(X, REAL, callbacks=3)


def test_a_path_may_be_text(tmp_path):
    (tmp_path / "small.csv").write_text("a,b,t\n1,2,x\n3,4,y\n")
    path = tmp_path / "small.csv"
    for found in (nnx.datasets.read_csv(str(path)), nnx.datasets.read_csv(path)):
        assert found.X.tolist() == [[1, 2], [3, 4]]
        assert found.class_names == ["x", "y"]
