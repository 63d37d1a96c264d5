"""A Keras program, run by nnx: only the line `import keras` is another.

Batch normalisation brings each layer's inputs back to mean 0 and spread 1; dropout silences random
units in training, so that none relies on one other. Both act otherwise in `evaluate` and `predict`.
Early stopping ends training when the validation loss has not fallen for ten epochs, and puts back the
weights of the best one.
"""

import argparse
from pathlib import Path

from matplotlib import pyplot as plt
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

import nnx as keras

OUT = "runs/tutorials/07_from_keras.png"


def main(out=OUT):
    keras.utils.set_random_seed(42)
    X, y = load_iris(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=42, stratify=y)
    scaler = StandardScaler().fit(X_train)
    X_train, X_test = scaler.transform(X_train), scaler.transform(X_test)
    y_train, y_test = keras.utils.to_categorical(y_train, 3), keras.utils.to_categorical(y_test, 3)

    model = keras.Sequential(
        [
            keras.layers.Dense(64, activation="relu", kernel_initializer="he_normal", input_shape=(4,)),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate=0.001),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.summary()
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", patience=10, restore_best_weights=True)
    history = model.fit(
        X_train, y_train, epochs=100, batch_size=16, validation_split=0.2, callbacks=[stop], verbose=0
    )
    loss, accuracy = model.evaluate(X_test, y_test, verbose=0)
    print(f"{len(history.epoch)} epochs; test loss {loss:.3f}, test accuracy {accuracy:.3f}")

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for ax, name in zip(axes, ("loss", "accuracy"), strict=True):
        ax.plot(history.history[name], label="training")
        ax.plot(history.history[f"val_{name}"], label="validation")
        ax.set(xlabel="epoch", ylabel=name)
        ax.legend(frameon=False)
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    print(f"curves: {out}")
    return {"accuracy": accuracy, "loss": loss, "history": history.history}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=OUT, help="where the picture goes")
    main(parser.parse_args().out)
