"""Make the pictures of this folder: `python docs/images/make_images.py`.

Those of the benchmarks are made by `make bench-report`, that of the searches by its tutorial.
"""

from pathlib import Path

from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, make_moons
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.preprocessing import StandardScaler

import nnx
from nnx import plot
from nnx.estimators import Classifier, Regressor
from nnx.layers import Dense

DPI = 80


def main(folder=Path(__file__).parent):
    plot.activation_gallery()[0, 0].figure.savefig(folder / "activations.png", dpi=DPI)
    for name, ax in {
        **digits(folder),
        **curves(),
        **regression(),
        **boundary(),
        **search(),
        **depth(),
    }.items():
        ax.figure.savefig(folder / f"plot_{name}.png", dpi=DPI)


def scaled_split(X, y, **settings):
    X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=42, **settings)
    scaler = StandardScaler().fit(X_train)
    return scaler.transform(X_train), scaler.transform(X_test), y_train, y_test


def digits(folder):
    """Train on digits: both pictures in one for the README, and each alone."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, test_size=0.2, random_state=42, stratify=y)
    model = nnx.Sequential(
        [
            nnx.layers.Dense(128, activation="relu"),
            nnx.layers.Dense(64, activation="relu"),
            nnx.layers.Dense(10, activation="softmax"),
        ],
        seed=42,
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(X_train, y_train, epochs=40, validation_split=0.2, verbose=0)
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    curves, matrix = figure.subplots(1, 2)
    plot.learning_curves(history, ax=curves)
    plot.confusion_matrix(y_test, model.predict(X_test), ax=matrix)
    figure.savefig(folder / "digits.png", dpi=DPI)
    return {
        "learning_curves": plot.learning_curves(history),
        "confusion_matrix": plot.confusion_matrix(y_test, model.predict(X_test)),
    }


def curves():
    """Tell malignant tumours by two of thirty measurements, and irises by one of four."""
    data = load_breast_cancer()
    X_train, X_test, y_train, y_test = scaled_split(data.data[:, [1, 4]], 1 - data.target, test_size=0.5)
    classifier = Classifier(epochs=30, random_state=0).fit(X_train, y_train)
    p, names = classifier.predict_proba(X_test), ["benign", "malignant"]
    X, y = load_iris(return_X_y=True)
    X_train, X_test, y_train, y_iris = scaled_split(X[:, :2], y, test_size=0.5, stratify=y)
    p_iris = Classifier(epochs=60, random_state=0).fit(X_train, y_train).predict_proba(X_test)
    kinds = load_iris().target_names.tolist()
    return {
        "roc_curve": plot.roc_curve(y_iris, p_iris, class_names=kinds),
        "precision_recall_curve": plot.precision_recall_curve(y_test, p, class_names=names),
    }


def regression():
    X_train, X_test, y_train, y_test = scaled_split(*load_diabetes(return_X_y=True), test_size=0.3)
    regressor = Regressor(build__units=(32,), epochs=60, optimizer__learning_rate=0.01, random_state=0)
    predicted = regressor.fit(X_train, y_train).predict(X_test)
    return {
        "predicted_against_true": plot.predicted_against_true(y_test, predicted),
        "residuals": plot.residuals(y_test, predicted),
    }


def boundary():
    X, y = make_moons(200, noise=0.2, random_state=0)
    classifier = Classifier(build__units=(32, 32), epochs=80, optimizer__learning_rate=0.01, random_state=0)
    return {"decision_boundary": plot.decision_boundary(classifier.fit(X, y), X, y)}


def search():
    X, y = load_digits(return_X_y=True)
    grid = {
        "build__units": [2, 4, 8, 16, 32, 64, 128],
        "optimizer__learning_rate": [0.0001, 0.001, 0.01, 0.1],
    }
    classifier = Classifier(epochs=10, random_state=0)
    found = GridSearchCV(classifier, grid, cv=3, return_train_score=True, refit=False).fit(
        X[:600] / 16, y[:600]
    )
    return {
        "validation_curve": plot.validation_curve(found, "build__units"),
        "search_heatmap": plot.search_heatmap(found, "build__units", "optimizer__learning_rate"),
    }


def depth():
    """A deep network of sigmoids, whose gradients vanish towards the input."""
    X, y = load_digits(return_X_y=True)
    model = nnx.Sequential([*(Dense(32, "sigmoid") for _ in range(5)), Dense(10, "softmax")], seed=0)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X / 16, y, epochs=3, verbose=0)
    return {
        "weight_histograms": plot.weight_histograms(model),
        "gradient_histograms": plot.gradient_histograms(model, X[:256] / 16, y[:256]),
    }


if __name__ == "__main__":
    main()
