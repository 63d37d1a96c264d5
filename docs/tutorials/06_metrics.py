"""How good is it? Metrics of a classifier and of a regression, on samples never seen.

A classifier gives a probability; the threshold makes it a decision. A low threshold misses fewer of
the positives (recall) at the price of false alarms (precision); F1 balances both. AUC needs no
threshold: it is the chance that a positive sample gets a higher probability than a negative one. A
regression is judged by the size of its errors, and by R2: the share of the target's variance that it
explains, 0 for always answering the mean.
"""

import argparse
from pathlib import Path

from matplotlib import pyplot
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import nnx
from nnx import plot
from nnx.metrics import classification_metrics, regression_metrics

OUT = "runs/tutorials/06_metrics.png"


def split_and_scale(X, y):
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=42)
    scaler = StandardScaler().fit(X_train)
    return scaler.transform(X_train), scaler.transform(X_test), y_train, y_test


def main(out=OUT):
    # Tumours, from 30 measurements; positive = malignant, which the data set calls 0.
    data = load_breast_cancer()
    X_train, X_test, y_train, y_test = split_and_scale(data.data, 1 - data.target)
    model = nnx.Sequential([nnx.layers.Dense(16, "relu"), nnx.layers.Dense(1, "sigmoid")], seed=0)
    model.compile("adam", "binary_crossentropy")
    model.fit(X_train, y_train, epochs=30, verbose=0)
    probabilities = model.predict(X_test)
    reports = {t: classification_metrics(y_test, probabilities, threshold=t) for t in (0.5, 0.1)}
    for threshold, report in reports.items():
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in report.items() if "matrix" not in name)
        print(f"threshold {threshold}: {numbers}")
        print(f"  confusion matrix (rows: truth): {report['confusion_matrix'].tolist()}")

    # Progress of diabetes after a year, from 10 measurements.
    X_train, X_test, y_train, y_test = split_and_scale(*load_diabetes(return_X_y=True))
    model = nnx.Sequential([nnx.layers.Dense(32, "relu"), nnx.layers.Dense(1)], seed=0)
    model.compile(nnx.optimizers.Adam(0.01), "mse")
    model.fit(X_train, y_train, epochs=60, verbose=0)
    predicted = model.predict(X_test)
    regression = regression_metrics(y_test, predicted)
    print("regression: " + "  ".join(f"{name} {value:.3f}" for name, value in regression.items()))

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    plot.confusion_matrix(reports[0.5]["confusion_matrix"], class_names=["benign", "malignant"], ax=left)
    plot.predicted_against_true(y_test, predicted, ax=right)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f"pictures: {out}")
    return {"classification": reports, "regression": regression}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=OUT, help="where the picture goes")
    main(parser.parse_args().out)
