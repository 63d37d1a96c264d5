"""Three ways to search: a grid, at random, and by what was learnt so far (Bayesian).

A network for handwritten digits has settings that no gradient finds: learning rate, width, dropout.
Each search may train 27 networks and judges each by cross-validation. The grid tries three values of
each setting, whatever comes out. The random one tries 27 values of each, so that it looks closer at
the setting that matters. The Bayesian one, by Optuna, looks where earlier trials did well.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import optuna
from matplotlib import pyplot
from scipy.stats import loguniform, randint, uniform
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler

from nnx.estimators import Classifier
from nnx.layers import Dense, Dropout

OUT = "runs/tutorials/10_search.png"
RATE, UNITS, DROPOUT = (
    "classifier__optimizer__learning_rate",
    "classifier__build__units",
    "classifier__build__dropout",
)


def build(outputs, units=32, dropout=0.0):
    return [Dense(units, "relu"), Dropout(dropout), Dense(outputs, "softmax")]


def main(out=OUT, trials=27, epochs=10):
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, random_state=0, stratify=y)
    network = make_pipeline(MinMaxScaler(), Classifier(build, epochs=epochs, random_state=0))
    settings = {"cv": 3, "refit": False}

    values = {RATE: [0.0005, 0.005, 0.05], UNITS: [16, 48, 128], DROPOUT: [0.0, 0.25, 0.5]}
    grid = GridSearchCV(network, values, **settings).fit(X, y)

    space = {RATE: loguniform(0.0001, 0.3), UNITS: randint(8, 192), DROPOUT: uniform(0.0, 0.6)}
    drawn = RandomizedSearchCV(network, space, n_iter=trials, random_state=0, **settings).fit(X, y)

    def objective(trial):
        chosen = {
            RATE: trial.suggest_float(RATE, 0.0001, 0.3, log=True),
            UNITS: trial.suggest_int(UNITS, 8, 191),
            DROPOUT: trial.suggest_float(DROPOUT, 0.0, 0.6),
        }
        return cross_val_score(network.set_params(**chosen), X, y, cv=settings["cv"]).mean()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=0, n_startup_trials=8, multivariate=True
        )  # settings together
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=trials)

    found = {
        "grid": (grid.cv_results_["params"], grid.cv_results_["mean_test_score"]),
        "random": (drawn.cv_results_["params"], drawn.cv_results_["mean_test_score"]),
        "Bayesian": (
            [trial.params for trial in study.trials],
            np.array([trial.value for trial in study.trials]),
        ),
    }
    results = {}
    print("search     best score  learning rate  units  dropout  test accuracy")
    for name, (tried, scores) in found.items():
        best = tried[scores.argmax()]
        accuracy = network.set_params(**best).fit(X, y).score(X_test, y_test)
        results[name] = {"score": scores.max(), "trials": len(scores), "test_accuracy": accuracy, **best}
        print(
            f"{name:9} {scores.max():11.4f} {best[RATE]:14.4g} {best[UNITS]:6} {best[DROPOUT]:8.2f} {accuracy:14.4f}"
        )
    draw(found, out)
    print(f"picture: {out}")
    return results


def draw(found, out):
    """Draw what each search tried, and the best score after each trial."""
    colours = dict(zip(found, ("#0072B2", "#D55E00", "#009E73"), strict=True))
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 7), layout="constrained", height_ratios=(1.15, 1))
    for ax, (name, (tried, scores)) in zip(axes[0], found.items(), strict=True):
        rates, dropouts, sizes = (np.array([params[of] for params in tried]) for of in (RATE, DROPOUT, UNITS))
        order, k = np.argsort(-sizes), scores.argmax()  # small dots on top of large ones
        dots = ax.scatter(rates[order], dropouts[order], c=scores[order], s=sizes[order], cmap="Blues",
                          vmin=0.8, vmax=1.0, edgecolors="#333333", linewidths=0.6)  # fmt: skip
        ax.scatter(rates[k], dropouts[k], marker="x", color="#D55E00", s=60, linewidths=2, label="best")
        ax.set(
            xscale="log",
            xlim=(0.00007, 0.45),
            ylim=(-0.05, 0.65),
            title=f"{name} search",
            xlabel="learning rate",
        )
    axes[0, 0].set_ylabel("dropout")
    axes[0, 0].legend(frameon=False, loc="upper left")
    figure.colorbar(dots, ax=axes[0], label="score (area of a dot: units)", extend="min")
    grid = axes[1, 0].get_gridspec()
    for ax in axes[1]:
        ax.remove()
    ax = figure.add_subplot(grid[1, :])
    for (name, (_, scores)), style in zip(found.items(), ("-", "--", "-."), strict=True):
        steps = np.arange(1, len(scores) + 1)
        ax.step(steps, np.maximum.accumulate(scores), style, where="post", color=colours[name], label=name)
        ax.plot(steps, scores, ".", color=colours[name], alpha=0.5)
    ax.set(xlabel="trial", ylabel="best score so far", title="Best score after each trial (dots: each trial)")
    ax.set_ylim(0.84, 0.98)
    ax.grid(color="#E6E6E6", linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left", ncols=3)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=OUT, help="where the picture goes")
    main(parser.parse_args().out)
