"""Make the pictures of this folder: `python docs/images/make_images.py`."""

from pathlib import Path

from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import nnx
from nnx import plot


def main(folder=Path(__file__).parent):
    plot.activation_gallery()[0, 0].figure.savefig(folder / "activations.png", dpi=80)

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
    figure.savefig(folder / "digits.png", dpi=80)


if __name__ == "__main__":
    main()
