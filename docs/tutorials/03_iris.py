"""Iris: three kinds of flower told apart by four lengths.

The usual course of a classification: part the samples into some to learn from and some to be judged
by; bring every feature to mean 0 and spread 1, as found on the training part alone; train; look at
the loss; measure on the samples never seen. Softmax turns three outputs into probabilities, and
cross-entropy asks that the right one be large. Plain gradient descent: every step uses all training
samples, so an epoch is one step.
"""

import argparse
from pathlib import Path

from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import nnx
from nnx import plot

OUT = "runs/tutorials/03_iris.png"


def main(out=OUT):
    X, y = load_iris(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=42)
    scaler = StandardScaler().fit(X_train)
    X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)

    model = nnx.Sequential(
        [
            nnx.layers.Dense(16, activation="relu", input_shape=(4,)),
            nnx.layers.Dense(3, activation="softmax"),
        ],
        seed=42,
    )
    model.compile(
        optimizer=nnx.optimizers.SGD(learning_rate=0.05),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    history = model.fit(X_train, y_train, batch_size=len(X_train), epochs=500, verbose=0)
    loss, accuracy = model.evaluate(X_test, y_test, verbose=0)
    print(f"training loss {history.history['loss'][0]:.3f} -> {history.history['loss'][-1]:.3f}")
    print(f"test loss {loss:.3f}, test accuracy {accuracy:.4f}")

    Path(out).parent.mkdir(parents=True, exist_ok=True)
    plot.learning_curves(history).figure.savefig(out)
    print(f"loss curve: {out}")
    return {"accuracy": accuracy, "loss": history.history["loss"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=OUT, help="where the picture goes")
    main(parser.parse_args().out)
