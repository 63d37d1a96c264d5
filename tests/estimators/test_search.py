"""scikit-learn's searches, Optuna and Dask over networks: on one process, on several, without too many threads."""

import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import pytest

import nnx
from nnx import layers

pytest.importorskip("sklearn")

import joblib
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from nnx.estimators import Classifier, Regressor

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
RATES = "classifier__optimizer__learning_rate"


def build(outputs, units=8, dropout=0.0):
    return [layers.Dense(units, "relu"), layers.Dropout(dropout), layers.Dense(outputs, "softmax")]


def classifier(**settings):
    return Classifier(
        build, **{"epochs": 10, "random_state": 0, "optimizer__learning_rate": 0.02, **settings}
    )


def pipeline(**settings):
    return make_pipeline(StandardScaler(), classifier(**settings))


def test_cross_validation():
    scores = cross_val_score(pipeline(), X, NAMES, cv=5)
    assert scores.shape == (5,)
    assert scores.mean() > 0.9
    assert (scores == cross_val_score(pipeline(), X, NAMES, cv=5)).all()


def test_grid_search_over_architecture_optimizer_and_training():
    grid = {
        "classifier__build__units": [1, 16],
        RATES: [0.0, 0.02],
        "classifier__optimizer": ["adam", "sgd"],
        "classifier__batch_size": [16],
    }
    search = GridSearchCV(pipeline(), grid, cv=3).fit(X, NAMES)
    assert search.best_params_["classifier__build__units"] == 16
    assert search.best_params_["classifier__optimizer"] == "adam"
    assert search.best_score_ > 0.9
    model = search.best_estimator_[-1].model_
    assert (model.layers[0].units, float(model.optimizer.learning_rate)) == (16, 0.02)
    assert search.predict(X[:2]).tolist() == ["setosa", "setosa"]
    scores = dict(
        zip(map(str, search.cv_results_["params"]), search.cv_results_["mean_test_score"], strict=True)
    )
    assert {score for params, score in scores.items() if "rate': 0.0," in params}.isdisjoint(
        {search.best_score_}
    )


def test_grid_search_over_whole_networks():
    def line(outputs):
        return layers.Dense(outputs, "softmax")

    search = GridSearchCV(
        classifier(), [{"build": [line]}, {"build": [build], "build__units": [8, 16]}], cv=3
    )
    results = search.fit(X, Y).cv_results_
    assert len(results["params"]) == 3
    assert np.isfinite(results["mean_test_score"]).all()


def test_randomized_search_draws_from_distributions():
    stats = pytest.importorskip("scipy.stats")
    space = {"build__units": stats.randint(4, 32), "optimizer__learning_rate": stats.loguniform(1e-3, 1e-1)}
    search = RandomizedSearchCV(classifier(), space, n_iter=4, cv=3, random_state=0).fit(X, Y)
    rates = search.cv_results_["param_optimizer__learning_rate"]
    assert len(set(rates)) == 4
    assert (
        search.best_estimator_.model_.optimizer.learning_rate
        == search.best_params_["optimizer__learning_rate"]
    )
    assert search.best_score_ > 0.85


def test_halving_search_spends_epochs_on_the_promising():
    grid = {"build__units": [1, 2, 8, 16]}
    search = HalvingGridSearchCV(
        classifier(),
        grid,
        resource="epochs",
        min_resources=3,
        max_resources=12,
        factor=2,
        cv=3,
        random_state=0,
    ).fit(X, Y)
    assert search.n_resources_ == [3, 6, 12]
    assert search.n_candidates_ == [4, 2, 1]
    assert len(search.best_estimator_.history_.epoch) == 12


def test_columns_of_several_kinds_in_a_frame():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {"length": X[:, 2], "width": X[:, 3], "garden": np.where(Y == 1, "south", "north")}
    )
    prepare = ColumnTransformer(
        [
            ("number", StandardScaler(), ["length", "width"]),
            ("kind", OneHotEncoder(sparse_output=False), ["garden"]),
        ]
    )
    whole = make_pipeline(prepare, classifier(epochs=20))
    assert cross_val_score(whole, frame, NAMES, cv=3).mean() > 0.95
    assert whole.fit(frame, NAMES)[-1].n_features_in_ == 4


def test_fit_parameters_reach_the_network_through_a_pipeline():
    scaled = StandardScaler().fit_transform(X)
    fitted = pipeline().fit(
        X, Y, classifier__validation_data=(scaled, Y), classifier__sample_weight=np.ones(150)
    )
    assert len(fitted[-1].history_.history["val_loss"]) == 10


def test_a_regressor_with_scaled_targets():
    features, target = load_diabetes(return_X_y=True)
    regressor = Regressor(build__units=(16,), epochs=20, optimizer__learning_rate=0.01, random_state=0)
    whole = TransformedTargetRegressor(
        make_pipeline(StandardScaler(), regressor), transformer=StandardScaler()
    )
    assert cross_val_score(whole, features, target, cv=3).mean() > 0.35
    grid = {"regressor__regressor__build__units": [(4,), (16, 8)]}
    assert GridSearchCV(whole, grid, cv=2).fit(features, target).best_score_ > 0.2


# Several processes


def process(estimator, X, y):
    """A score that tells where it was computed."""
    return float(os.getpid())


def threads(estimator, X, y):
    """A score that tells how many threads a matrix product may use there."""
    import threadpoolctl

    return float(
        max(pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas")
    )


def search(n_jobs=None):
    found = GridSearchCV(classifier(epochs=3), {"build__units": [2, 8]}, cv=2, n_jobs=n_jobs).fit(X, Y)
    return found.cv_results_["mean_test_score"]


@pytest.mark.parametrize("kind", ["loky", "threading"])
def test_several_jobs_find_what_one_finds(kind):
    alone = search()
    with joblib.parallel_config(kind):
        assert (search(n_jobs=2) == alone).all()


def test_worker_processes_share_the_cores():
    """Two processes with as many threads as there are cores each would get into each other's way."""
    scoring = {"threads": threads, "process": process}
    found = GridSearchCV(
        classifier(epochs=1), {"build__units": [2, 4, 8]}, cv=2, n_jobs=2, scoring=scoring, refit=False
    ).fit(X, Y)
    pids = {found.cv_results_[f"split{k}_test_process"][i] for k in range(2) for i in range(3)}
    assert os.getpid() not in pids
    assert found.cv_results_["mean_test_threads"].max() <= max(1, joblib.cpu_count() // 2)
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        found.fit(X, Y)
    assert found.cv_results_["mean_test_threads"].tolist() == [1, 1, 1]


def xla_threads():
    classifier(epochs=1, backend="jax").fit(X, Y)
    tasks = Path("/proc/self/task")
    return sum("XLAEigen" in (task / "comm").read_text() for task in tasks.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads by /proc")
def test_xla_takes_its_threads_from_nproc(monkeypatch):
    """joblib sets no variable that XLA reads: docs/search.md says which one to set."""
    if not nnx.available_backends()["jax"].usable:
        pytest.skip("jax is not installed")
    monkeypatch.setenv("NPROC", "1")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(xla_threads) == 1


# Optuna


@pytest.fixture
def optuna():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def test_a_study_prunes_hopeless_trials(optuna):
    epochs = []

    def objective(trial):
        rate = trial.suggest_float("rate", 1e-6, 0.1, log=True)
        pruning = nnx.callbacks.OptunaPruning(trial, "val_loss")
        count = nnx.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: epochs.append(trial.number))
        found = classifier(optimizer__learning_rate=rate, validation_split=0.3, callbacks=[count, pruning])
        return min(found.fit(X, Y).history_.history["val_loss"])

    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=0), pruner=optuna.pruners.MedianPruner(n_startup_trials=2)
    )
    study.optimize(objective, n_trials=8)
    pruned = [trial.number for trial in study.trials if trial.state.name == "PRUNED"]
    complete = [trial.number for trial in study.trials if trial.state.name == "COMPLETE"]
    assert len(pruned) + len(complete) == 8
    assert pruned
    assert all(epochs.count(number) < 10 for number in pruned)
    assert all(epochs.count(number) == 10 for number in complete)
    assert all(len(study.trials[number].intermediate_values) == 10 for number in complete)
    assert study.best_params["rate"] > 1e-3


def test_a_clone_reports_to_the_same_trial(optuna):
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    trial = study.ask()
    estimator = classifier(epochs=3, validation_split=0.3, callbacks=nnx.callbacks.OptunaPruning(trial))
    cross_val_score(estimator, X, Y, cv=[(np.arange(0, 150, 2), np.arange(1, 150, 2))])
    study.tell(trial, 0.0)
    assert sorted(study.trials[0].intermediate_values) == [0, 1, 2]


# Dask


def test_a_search_is_spread_over_a_dask_cluster():
    distributed = pytest.importorskip("dask.distributed")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config("dask"),
    ):
        scoring = {"accuracy": "accuracy", "process": process}
        settings = {"cv": 2, "scoring": scoring, "refit": False}
        found = GridSearchCV(classifier(epochs=3), {"build__units": [2, 8]}, **settings).fit(X, Y)
    pids = {found.cv_results_[f"split{k}_test_process"][i] for k in range(2) for i in range(2)}
    assert os.getpid() not in pids
    assert (found.cv_results_["mean_test_accuracy"] == search()).all()
