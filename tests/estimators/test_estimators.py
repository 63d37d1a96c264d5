"""`nnx.estimators` against scikit-learn: the same numbers, the same rules, and what is added."""

import pickle
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse
import sklearn.neural_network
from sklearn import datasets
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import nnx
from nnx.estimators import MLPClassifier, MLPRegressor
from nnx.estimators import sparse as nnx_sparse

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

EPOCHS = {"max_iter": 12, "random_state": 3}


def scaled(load):
    x, y = load(return_X_y=True)
    return StandardScaler().fit_transform(x), y


def weights(y):
    return np.random.default_rng(0).uniform(0.1, 2.0, len(y))


PROBLEMS = {
    "three classes": lambda: scaled(datasets.load_iris),
    "two classes": lambda: scaled(datasets.load_breast_cancer),
    "digits": lambda: tuple(part[:300] for part in scaled(datasets.load_digits)),
    "labels": lambda: datasets.make_multilabel_classification(150, 10, n_classes=4, random_state=0),
    "one output": lambda: (lambda x, y: (x, y / 100))(*scaled(datasets.load_diabetes)),
    "three outputs": lambda: (lambda x, y: (x, y / 100))(
        *datasets.make_regression(150, 8, n_targets=3, random_state=0)
    ),
    "names": lambda: (scaled(datasets.load_iris)[0], np.array(["a", "b", "c"])[datasets.load_iris().target]),
    "counts": lambda: (lambda x: (x, np.random.default_rng(0).poisson(3.0, len(x))))(
        scaled(datasets.load_diabetes)[0]
    ),
}
REGRESSION = ("one output", "three outputs", "counts")

SETTINGS = {
    "default": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.01},
    "sgd, plain momentum": {"solver": "sgd", "learning_rate_init": 0.01, "nesterovs_momentum": False},
    "sgd, no momentum": {"solver": "sgd", "momentum": 0.0},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.1, "power_t": 0.3},
    "adaptive": {
        "solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.2, "tol": 0.1, "n_iter_no_change": 1,
    },
    "lbfgs": {"solver": "lbfgs"},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 3, "validation_fraction": 0.2, "max_iter": 30},
    "early stopping, adaptive": {
        "early_stopping": True, "n_iter_no_change": 1, "solver": "sgd", "learning_rate": "adaptive",
    },
    "two tanh layers": {"hidden_layer_sizes": (20, 7), "activation": "tanh", "alpha": 0.1},
    "logistic": {"activation": "logistic", "alpha": 0},
    "identity, no hidden layer": {"hidden_layer_sizes": (), "activation": "identity"},
    "small batches in order": {"batch_size": 17, "shuffle": False},
    "stops by itself": {"tol": 0.05, "n_iter_no_change": 2, "max_iter": 100},
}  # fmt: skip


def both(problem, backend="numpy", **settings):
    """Return scikit-learn's estimator and nnx's, not fitted, for a problem."""
    name = "MLPRegressor" if problem in REGRESSION else "MLPClassifier"
    settings = {**EPOCHS, **settings}
    if problem == "counts":
        settings["loss"] = "poisson"
    theirs = getattr(sklearn.neural_network, name)(**settings)
    return theirs, getattr(nnx.estimators, name)(**settings, backend=backend)


def outputs(estimator, x):
    return estimator.predict_proba(x) if hasattr(estimator, "predict_proba") else estimator.predict(x)


RECORD = ("n_iter_", "t_", "n_layers_", "n_outputs_", "n_features_in_", "out_activation_")


def assert_same(theirs, ours, x, tolerance):
    """Both have learnt the same, and have recorded the same."""
    for name in RECORD:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert hasattr(ours, "loss_curve_") == hasattr(theirs, "loss_curve_")
    for name in ("loss_", "loss_curve_", "best_loss_", "validation_scores_", "best_validation_score_"):
        expected = getattr(theirs, name, None)
        if expected is None:
            assert getattr(ours, name, None) is None, name
        else:
            np.testing.assert_allclose(
                getattr(ours, name), expected, rtol=tolerance, atol=tolerance, err_msg=name
            )
    for mine, other in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        assert mine.dtype == other.dtype
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * max(1, np.abs(other).max()))
    expected = outputs(theirs, x)
    scale = max(1.0, np.abs(expected).max())
    assert outputs(ours, x).dtype == expected.dtype
    np.testing.assert_allclose(outputs(ours, x), expected, rtol=0, atol=tolerance * scale)
    np.testing.assert_array_equal(ours.predict(x).shape, theirs.predict(x).shape)


def tolerance(backend) -> float:
    return 1e-6 if backend.name == "numpy" else 1e-5


@pytest.fixture(params=["numpy", "jax"])
def fast_backend(request):
    return nnx.as_backend(request.param)


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("setting", ["default", "sgd", "lbfgs", "early stopping"])
def test_every_problem_gives_scikit_learns_numbers(problem, setting, fast_backend):
    if (problem, setting) == ("names", "early stopping") and sklearn.__version__[:4] in ("1.7.", "1.8."):
        pytest.skip("scikit-learn before 1.9 stops with a TypeError")
    x, y = PROBLEMS[problem]()
    for weight in (None, weights(y)):
        theirs, ours = both(problem, fast_backend, **SETTINGS[setting])
        assert_same(theirs.fit(x, y, weight), ours.fit(x, y, weight), x, tolerance(fast_backend))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("problem", ["three classes", "one output"])
def test_every_setting_gives_scikit_learns_numbers(problem, setting):
    x, y = PROBLEMS[problem]()
    theirs, ours = both(problem, **SETTINGS[setting])
    assert_same(theirs.fit(x, y), ours.fit(x, y), x, 1e-6)


def test_every_backend_gives_scikit_learns_numbers(any_backend):
    x, y = PROBLEMS["three classes"]()
    theirs, ours = both("three classes", any_backend, batch_size=40, early_stopping=True)
    assert_same(theirs.fit(x, y), ours.fit(x, y), x, tolerance(any_backend))
    theirs, ours = both("one output", any_backend, solver="lbfgs")
    assert_same(theirs.fit(x, y), ours.fit(x, y), x, tolerance(any_backend))


@pytest.mark.parametrize("problem", ["two classes", "one output"])
def test_float32_stays_float32(problem, fast_backend):
    x, y = PROBLEMS[problem]()
    theirs, ours = both(problem, fast_backend)
    x = x.astype(np.float32)
    assert_same(theirs.fit(x, y), ours.fit(x, y), x, 1e-3)
    assert ours.predict(x).dtype == theirs.predict(x).dtype
    assert outputs(ours, x.astype(np.float64)).dtype == np.float64


@pytest.mark.parametrize("make", [scipy.sparse.csr_matrix, scipy.sparse.csc_array])
@pytest.mark.parametrize("setting", ["default", "lbfgs", "early stopping"])
@pytest.mark.parametrize("limit", [nnx_sparse.DENSE_BYTES, 0])
def test_sparse_samples(make, setting, limit, monkeypatch, fast_backend):
    monkeypatch.setattr(nnx_sparse, "DENSE_BYTES", limit)
    x, y = datasets.load_digits(return_X_y=True)
    x, y = x[:200] / 16, y[:200]
    theirs, ours = both("digits", fast_backend, **SETTINGS[setting])
    weight = weights(y)
    theirs.fit(make(x), y, weight), ours.fit(make(x), y, weight)
    assert_same(theirs, ours, make(x), tolerance(fast_backend))


@pytest.mark.parametrize("setting", ["default", "sgd", "invscaling"])
@pytest.mark.parametrize("problem", ["names", "labels", "three outputs"])
def test_partial_fit(problem, setting, fast_backend):
    x, y = PROBLEMS[problem]()
    theirs, ours = both(problem, fast_backend, **SETTINGS[setting])
    first = {} if problem == "three outputs" else {"classes": np.unique(y) if y.ndim == 1 else np.arange(4)}
    for start in range(0, 150, 50):
        rows = slice(start, start + 50)
        for estimator in (theirs, ours):
            estimator.partial_fit(x[rows], y[rows], weights(y[rows]), **first)
        first = {}
        assert ours.t_ == theirs.t_
    assert_same(theirs, ours, x, tolerance(fast_backend))


def test_partial_fit_goes_on_after_a_change_of_settings_and_after_pickling():
    x, y = PROBLEMS["three outputs"]()
    theirs, ours = both("three outputs")
    for alpha in (0.1, 10.0, 10.0):
        theirs.set_params(alpha=alpha).partial_fit(x, y)
        ours = pickle.loads(pickle.dumps(ours)).set_params(alpha=alpha).partial_fit(x, y)
    assert_same(theirs, ours, x, 1e-6)


@pytest.mark.parametrize("alphas", [(0.1, 0.1), (0.1, 10.0)], ids=["the same model", "a new model"])
@pytest.mark.parametrize("how", ["partial_fit", "warm_start"])
def test_training_goes_on_from_weights_that_were_changed(how, alphas):
    x, y = PROBLEMS["three outputs"]()
    theirs, ours = both("three outputs", warm_start=how == "warm_start")
    for alpha in alphas:
        for estimator in (theirs, ours):
            estimator.set_params(alpha=alpha)
            (estimator.partial_fit if how == "partial_fit" else estimator.fit)(x, y)
            for weight in (*estimator.coefs_, *estimator.intercepts_):
                weight *= 0.5
    for estimator in (theirs, ours):
        (estimator.partial_fit if how == "partial_fit" else estimator.fit)(x, y)
    assert_same(theirs, ours, x, 1e-6)


@pytest.mark.parametrize("setting", ["default", "adaptive", "lbfgs"])
def test_warm_start(setting):
    x, y = PROBLEMS["three classes"]()
    theirs, ours = both("three classes", warm_start=True, **SETTINGS[setting])
    for _ in range(3):
        theirs.fit(x, y), ours.fit(x, y)
    assert_same(theirs, ours, x, 1e-6)
    for estimator in (theirs, ours):
        with pytest.raises(ValueError, match="warm_start can only be used where `y` has the same classes"):
            estimator.fit(x[y < 2], y[y < 2])


def test_a_warm_start_without_improvement_keeps_the_best_weights():
    # scikit-learn's best weights are the very arrays that it goes on to train.
    x, y = PROBLEMS["three classes"]()
    ours = MLPClassifier(warm_start=True, early_stopping=True, max_iter=40, random_state=3).fit(x, y)
    best, score = [w.copy() for w in ours.coefs_], ours.best_validation_score_
    ours.set_params(solver="sgd", learning_rate_init=1e-9, max_iter=2).fit(x, y)
    assert ours.best_validation_score_ == score
    for kept, before in zip(ours.coefs_, best, strict=True):
        np.testing.assert_array_equal(kept, before)


@pytest.mark.parametrize("settings", [{}, {"batch_size": 10_000}], ids=str)
@pytest.mark.filterwarnings("ignore:Got `batch_size`")
def test_a_random_state_is_drawn_from_in_the_same_way(settings):
    x, y = PROBLEMS["three classes"]()
    theirs, ours = both("three classes", early_stopping=True, **settings)
    states = [np.random.RandomState(7), np.random.RandomState(7)]
    for estimator, state in zip((theirs, ours), states, strict=True):
        estimator.set_params(random_state=state).fit(x, y)
    assert states[0].randint(2**30) == states[1].randint(2**30)


@pytest.mark.parametrize("setting", ["adaptive", "stops by itself", "early stopping"])
def test_verbose_says_the_same(setting, capsys):
    x, y = PROBLEMS["three classes"]()
    theirs, ours = both("three classes", verbose=True, **SETTINGS[setting])
    said = []
    for estimator in (theirs, ours):
        estimator.fit(x, y)
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


def test_coefs_can_be_set():
    x, y = PROBLEMS["three classes"]()
    theirs, ours = both("three classes")
    for estimator in (theirs.fit(x, y), ours.fit(x, y)):
        estimator.coefs_[0][:] *= 0.5
        estimator.intercepts_ = [b + 0.1 for b in estimator.intercepts_]
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-9)
    np.testing.assert_allclose(ours.predict_log_proba(x), theirs.predict_log_proba(x), atol=1e-9)


def test_small_probabilities_keep_their_logarithm():
    x, y = PROBLEMS["two classes"]()
    theirs, ours = both("two classes")
    with np.errstate(divide="ignore"):
        expected = theirs.fit(x, y).predict_log_proba(x * 20)[:, 1]
        assert expected.min() < -37  # below what 1 - p can be
        np.testing.assert_allclose(
            ours.fit(x, y).predict_log_proba(x * 20)[:, 1], expected, rtol=1e-6, atol=1e-9
        )


# Warnings and errors


def told(estimator, *data, method="fit", **arguments) -> str:
    """Return kind and text of the error that a call raises."""
    with pytest.raises(Exception) as caught:
        getattr(estimator, method)(*data, **arguments)
    return f"{type(caught.value).__name__}: {caught.value}"


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_layer_sizes": (5, 0)}, {"hidden_layer_sizes": -1}, {"alpha": -1.0}, {"max_iter": 0},
        {"momentum": 2.0}, {"beta_1": 1.0}, {"epsilon": 0.0}, {"solver": "newton"}, {"batch_size": 0},
        {"tol": -1.0}, {"early_stopping": True, "validation_fraction": 0.001}, {"n_iter_no_change": 0},
        {"shuffle": "yes"},
    ],
    ids=str,
)  # fmt: skip
def test_errors_are_scikit_learns(wrong):
    x, y = PROBLEMS["three classes"]()
    theirs, ours = both("three classes", **wrong)
    assert told(ours, x, y) == told(theirs, x, y)


def test_errors_of_calls_are_scikit_learns():
    x, y = PROBLEMS["three classes"]()
    for call in (
        {"method": "partial_fit"},
        {"method": "partial_fit", "classes": [0, 1]},
        {"method": "fit", "sample_weight": [1.0]},
    ):
        theirs, ours = both("three classes")
        assert told(ours, x, y, **call) == told(theirs, x, y, **call)
    theirs, ours = both("three classes", early_stopping=True)
    assert told(ours, x, y, method="partial_fit", classes=[0, 1, 2]) == told(
        theirs, x, y, method="partial_fit", classes=[0, 1, 2]
    )
    theirs, ours = both("three classes")
    assert told(ours, x, method="predict") == told(theirs, x, method="predict")
    theirs, ours = both("one output", solver="sgd", learning_rate_init=1e6)
    with np.errstate(all="ignore"):
        assert told(ours, x * 1e4, y * 1e9) == told(theirs, x * 1e4, y * 1e9)
    zeros = np.zeros(len(y))
    assert told(ours, x, y, sample_weight=zeros) == told(theirs, x, y, sample_weight=zeros)
    lbfgs = both("three classes", solver="lbfgs")
    for estimator in lbfgs:
        assert not hasattr(estimator, "partial_fit")


def test_one_batch_without_weight_is_an_error_as_in_scikit_learn():
    """The only sample that has a weight is held out for validation, or those held out have none."""
    x, y = (part[:20] for part in PROBLEMS["three classes"]())

    def outcome(estimator, weight):
        with warnings.catch_warnings(action="ignore"):
            try:
                estimator.fit(x, y, sample_weight=weight)
            except (ValueError, ZeroDivisionError) as error:
                return str(error)
        return "fitted"

    outcomes = set()
    for weight in np.eye(20):
        theirs, ours = both("three classes", early_stopping=True, max_iter=1, random_state=3)
        outcomes.add(outcome(ours, weight))
        assert outcome(theirs, weight) == outcome(ours, weight)
    assert "Weights sum to zero, can't be normalized" in outcomes


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("setting", [{}, {"solver": "lbfgs", "max_iter": 2}, {"batch_size": 1000}], ids=str)
def test_warnings_are_scikit_learns(setting):
    x, y = PROBLEMS["three classes"]()
    found = []
    for estimator in both("three classes", **setting):
        with pytest.warns() as caught:
            estimator.fit(x, y)
        found.append([(w.category, str(w.message)) for w in caught])
    assert found[0] == found[1] != []


def test_ctrl_c_keeps_what_was_learnt():
    x, y = PROBLEMS["three classes"]()

    def press(epoch, logs):
        if epoch == 2:
            raise KeyboardInterrupt

    ours = MLPClassifier(**EPOCHS, callbacks=[nnx.callbacks.LambdaCallback(on_epoch_end=press)])
    with pytest.warns(UserWarning, match="Training interrupted by user"):
        ours.fit(x, y)
    assert ours.n_iter_ == 3
    assert ours.score(x, y) > 0


# What scikit-learn asks of an estimator


@parametrize_with_checks([MLPClassifier(max_iter=100), MLPRegressor(max_iter=100)])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("Estimator", [MLPClassifier, MLPRegressor])
def test_scikit_learns_parameters_come_first_with_its_defaults(Estimator):
    theirs = getattr(sklearn.neural_network, Estimator.__name__)
    mine, others = Estimator().get_params(), theirs().get_params()
    assert others.items() <= mine.items()
    positional = theirs.__init__.__code__.co_varnames[: theirs.__init__.__code__.co_argcount]
    assert Estimator.__init__.__code__.co_varnames[: len(positional)] == positional


def test_search_pipeline_clone_and_pickle(fast_backend, tmp_path):
    import joblib

    x, y = PROBLEMS["names"]()
    pipeline = make_pipeline(StandardScaler(), MLPClassifier((10,), **EPOCHS, backend=fast_backend.name))
    search = GridSearchCV(pipeline, {"mlpclassifier__alpha": [1e-4, 10.0]}, cv=3).fit(x, y)
    assert search.best_params_["mlpclassifier__alpha"] == 1e-4
    joblib.dump(search, tmp_path / "search.joblib")
    again = joblib.load(tmp_path / "search.joblib")
    np.testing.assert_array_equal(again.predict_proba(x), search.predict_proba(x))
    copied = clone(search.best_estimator_)
    assert not hasattr(copied[-1], "coefs_")
    scores = cross_val_score(copied, x, y, cv=3)
    assert scores.mean() == pytest.approx(search.best_score_)


THREADS = """
import joblib, threadpoolctl
from sklearn.datasets import load_iris
from nnx.estimators import MLPClassifier

def threads():
    MLPClassifier(max_iter=2).fit(*load_iris(return_X_y=True))
    return max(pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")

print(max(joblib.Parallel(n_jobs=2)(joblib.delayed(threads)() for _ in range(2))), joblib.cpu_count())
"""


def test_parallel_jobs_share_the_cores():
    found = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True).stdout
    threads, cores = map(int, found.split())
    assert threads <= max(1, cores // 2)
    x, y = PROBLEMS["three classes"]()
    parallel = cross_val_score(MLPClassifier(**EPOCHS), x, y, n_jobs=2)
    np.testing.assert_allclose(parallel, cross_val_score(MLPClassifier(**EPOCHS), x, y))


def test_nnx_does_not_import_scikit_learn_until_asked():
    loaded = "print('sklearn' in sys.modules)"
    code = f"import sys, nnx; {loaded}; nnx.estimators.MLPClassifier; {loaded}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True"]


def test_without_scikit_learn_one_line_says_what_to_install():
    code = (
        "import importlib.util as u, nnx; found = u.find_spec; "
        "u.find_spec = lambda name, *rest: None if name == 'sklearn' else found(name, *rest); nnx.estimators"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = result.stderr.strip().splitlines()[-1]
    assert last == "ImportError: nnx.estimators needs scikit-learn: pip install 'nnx-engine[sklearn]'"


# What nnx adds


def fitted(estimator, problem, **arguments):
    x, y = PROBLEMS[problem]()
    return estimator.fit(x, y, **arguments), x, y


def test_class_weight_is_a_weight_of_the_samples(fast_backend):
    x, y = PROBLEMS["names"]()
    weight = np.where(y == "b", 5.0, 1.0)
    _, ours = both("names", fast_backend)
    by_sample = clone(ours).fit(x, y, weight)
    by_class = clone(ours).set_params(class_weight={"b": 5.0}).fit(x, y)
    np.testing.assert_allclose(by_class.coefs_[0], by_sample.coefs_[0], atol=1e-12)
    both_weights = clone(ours).set_params(class_weight={"b": 5.0}).fit(x, y, np.full(len(y), 2.0))
    np.testing.assert_allclose(both_weights.loss_, by_class.loss_, rtol=0.1)
    balanced = clone(ours).set_params(class_weight="balanced").fit(x[20:], y[20:])
    assert balanced.predict(x).shape == y.shape
    with pytest.raises(ValueError, match="'balanced' needs all labels at once"):
        clone(ours).set_params(class_weight="balanced").partial_fit(x, y, classes=["a", "b", "c"])


def test_dropout_and_batch_norm_learn(any_backend):
    net = MLPClassifier((32, 16), dropout=[0.2, 0.1], batch_norm=True, max_iter=60, random_state=0, batch_size=32,
                        backend=any_backend, activation=["swish", "tanh"], dtype="float32")  # fmt: skip
    net, x, y = fitted(net, "three classes")
    assert net.score(x, y) > 0.9
    assert [w.shape for w in net.coefs_] == [(4, 32), (32, 16), (16, 3)]
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(again.predict_proba(x), net.predict_proba(x))
    before = net.score(x, y)
    net.set_params(warm_start=True, max_iter=5).fit(x, y)
    assert net.score(x, y) > before - 0.1


def test_dropout_depends_on_the_random_state_alone():
    settings = {**EPOCHS, "dropout": 0.5}
    first, x, y = fitted(MLPClassifier(**settings), "three classes")
    again, other = (
        MLPClassifier(**settings).fit(x, y),
        MLPClassifier(**{**settings, "random_state": 4}).fit(x, y),
    )
    assert first.loss_curve_ == again.loss_curve_ != other.loss_curve_


@pytest.mark.parametrize("loss", ["focal", "binary_crossentropy", nnx.losses.MeanSquaredError(), "log_loss"])
@pytest.mark.parametrize("problem", ["three classes", "two classes", "labels"])
def test_losses_of_the_classifier(loss, problem):
    net = MLPClassifier((20,), loss=loss, max_iter=50, learning_rate_init=0.01, random_state=0)
    net, x, _ = fitted(net, problem)
    assert net.loss_curve_[-1] < net.loss_curve_[0]
    probabilities = net.predict_proba(x)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    if problem != "labels":
        np.testing.assert_allclose(probabilities.sum(axis=1), 1.0)


def test_a_quantile_lies_above_its_share_of_the_targets(fast_backend):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(1000, 2)), rng.exponential(size=1000)
    net = MLPRegressor(nnx.losses.Quantile(0.9), (8,), learning_rate_init=0.01, max_iter=60, random_state=0,
                       backend=fast_backend).fit(x, y)  # fmt: skip
    assert np.mean(y <= net.predict(x)) == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize(
    "loss", ["absolute_error", "huber", "quantile", "log_cosh", "poisson", nnx.losses.Poisson()]
)
def test_losses_of_the_regressor_with_weights_are_those_of_repeated_samples(loss):
    x, y = PROBLEMS["counts"]()
    x, y = x[:60], y[:60]
    weight = np.random.default_rng(1).integers(1, 4, len(y))
    net = MLPRegressor(loss, (10,), max_iter=20, random_state=0, batch_size=10**4, shuffle=False)
    with pytest.warns(UserWarning, match="clipped"):
        weighted = clone(net).fit(x, y, weight)
    with pytest.warns(UserWarning, match="clipped"):
        repeated = clone(net).fit(np.repeat(x, weight, axis=0), np.repeat(y, weight))
    np.testing.assert_allclose(weighted.predict(x), repeated.predict(x), rtol=1e-6)


def test_a_loss_of_ones_own():
    class Cubed(nnx.losses.Loss):
        def forward(self, ctx, target, output):
            xp, difference = ctx.xp, output - target

            def pullback(dvalues):
                return 3 * difference * xp.abs(difference) * dvalues[..., None]

            return xp.sum(xp.abs(difference) ** 3, axis=-1), pullback

    net, _, y = fitted(MLPRegressor(Cubed(), solver="lbfgs", max_iter=20, random_state=0), "counts")
    assert net.loss_ < Cubed()(y[:, None].astype(float), np.full((len(y), 1), y.mean()))


def test_validation_data_metrics_and_callbacks(fast_backend):
    x, y = PROBLEMS["names"]()
    seen = []
    watch = nnx.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["val_accuracy"]))
    net = MLPClassifier(**EPOCHS, metrics=["accuracy"], callbacks=[watch], backend=fast_backend)
    net.fit(x[::2], y[::2], validation_data=(x[1::2], y[1::2]))
    assert net.history_.keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert net.history_["val_accuracy"] == seen
    assert net.history_["loss"] == net.loss_curve_
    assert seen[-1] == pytest.approx(net.score(x[1::2], y[1::2]))


def test_early_stopping_on_data_of_ones_own():
    x, y = PROBLEMS["names"]()
    net = MLPClassifier(max_iter=100, random_state=0, early_stopping=True, n_iter_no_change=3)
    net.fit(x[::2], y[::2], validation_data=(x[1::2], y[1::2]))
    assert net.t_ == 75 * net.n_iter_
    assert net.n_iter_ < 100
    assert net.best_validation_score_ == max(net.validation_scores_) == net.score(x[1::2], y[1::2])


def test_restore_best():
    x, y = PROBLEMS["two classes"]()
    settings = {"learning_rate_init": 0.3, "max_iter": 8, "random_state": 0, "solver": "sgd"}
    data = {"validation_data": (x[300:], y[300:])}
    net = MLPClassifier(**settings, restore_best=True, alpha=0).fit(x[:300], y[:300], **data)
    best = int(np.argmin(net.history_["val_loss"]))
    assert best < 7
    until = MLPClassifier(**{**settings, "max_iter": best + 1}, alpha=0).fit(x[:300], y[:300])
    np.testing.assert_array_equal(net.coefs_[0], until.coefs_[0])


@pytest.mark.parametrize(
    "optimizer", ["rmsprop", "adamw", nnx.optimizers.Lion(1e-3), nnx.optimizers.Nadam(1e-3)]
)
def test_optimizers(optimizer):
    net, _, _ = fitted(MLPClassifier(optimizer=optimizer, max_iter=30, random_state=0), "three classes")
    assert net.loss_curve_[-1] < net.loss_curve_[0]


def test_an_optimizer_given_is_not_changed():
    given = nnx.optimizers.SGD(0.5, momentum=0.9)
    net = MLPClassifier(optimizer=given, learning_rate="adaptive", tol=1.0, n_iter_no_change=1, **EPOCHS)
    net, _, _ = fitted(net, "three classes")
    assert given.learning_rate == 0.5


def test_a_schedule_and_clipped_gradients():
    x, y = PROBLEMS["three classes"]()
    stops = MLPClassifier(learning_rate=lambda step: 0.01 if step < 5 else 0.0, batch_size=75, **EPOCHS).fit(
        x, y
    )
    assert stops.loss_curve_[3] == pytest.approx(stops.loss_curve_[-1], abs=1e-12)
    clipped = MLPClassifier(solver="sgd", learning_rate_init=1.0, momentum=0, clipnorm=1e-9, **EPOCHS).fit(
        x, y
    )
    assert clipped.loss_curve_[0] == pytest.approx(clipped.loss_curve_[-1], abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_dtype(dtype):
    net, x, _ = fitted(MLPClassifier(dtype=dtype, **EPOCHS), "three classes")
    assert net.coefs_[0].dtype == ("float64" if dtype == "float64" else "float32")
    assert np.isfinite(net.predict_proba(x)).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"activation": ["relu"]}, "activation has 1 values for 2 hidden layers"),
        ({"dropout": [0.1, 0.1, 0.1]}, "dropout has 3 values for 2 hidden layers"),
        ({"solver": "lbfgs", "dropout": 0.5}, "dropout needs solver='adam' or 'sgd'"),
        (
            {"solver": "lbfgs", "learning_rate": lambda step: 0.1},
            "a schedule as learning_rate needs solver='adam'",
        ),
        ({"optimizer": nnx.optimizers.SGD(), "clipnorm": 1.0}, "give clipnorm to the optimizer itself"),
        ({"activation": "relux"}, "The 'activation' parameter of MLPClassifier must be a str among"),
        ({"optimizer": "adamm"}, "The 'optimizer' parameter of MLPClassifier must be None, a str among"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_of_what_is_added(settings, text):
    x, y = PROBLEMS["three classes"]()
    with pytest.raises(ValueError, match=re.escape(text)):
        MLPClassifier((4, 4), **settings).fit(x, y)


def test_a_loss_given_as_a_function():
    def squared(y_true, y_pred):
        return nnx.get_backend().xp.mean((y_true - y_pred) ** 2, axis=-1) / 2

    x = np.random.default_rng(0).standard_normal((60, 3))
    settings = {"max_iter": 5, "random_state": 0}
    with warnings.catch_warnings(action="ignore"):
        mine, theirs = (
            MLPRegressor(**more, **settings).fit(x, x.sum(axis=1)) for more in ({"loss": squared}, {})
        )
    assert mine.predict(x) == pytest.approx(theirs.predict(x), rel=1e-4)
