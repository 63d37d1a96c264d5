"""A convolutional network: digits told apart by small patterns, wherever in the image they lie.

A convolution lays the same few weights on every place of the image, so it learns a stroke once and
finds it anywhere. Pooling keeps the strongest answer of each neighbourhood. Batch normalisation keeps
the numbers between layers in range, and dropout keeps the network from relying on single ones. An
image is an array (height, width, channels): digits have one channel.
"""

import argparse

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import nnx


def main(epochs=15):
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 8, 8, 1) / 16
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=42, stratify=y)

    model = nnx.Sequential(
        [
            nnx.layers.Conv2D(16, 3, padding="same", use_bias=False, input_shape=(8, 8, 1)),
            nnx.layers.BatchNormalization(momentum=0.9),
            nnx.layers.ReLU(),
            nnx.layers.MaxPooling2D(),
            nnx.layers.Conv2D(32, 3, padding="same", activation="relu"),
            nnx.layers.MaxPooling2D(),
            nnx.layers.Flatten(),
            nnx.layers.Dropout(0.3),
            nnx.layers.Dense(10, activation="softmax"),
        ],
        seed=0,
    )
    model.compile(
        optimizer=nnx.optimizers.Adam(learning_rate=0.003),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.summary()
    history = model.fit(X_train, y_train, batch_size=32, epochs=epochs, verbose=0)
    loss, accuracy = model.evaluate(X_test, y_test, verbose=0)
    print(f"training loss {history.history['loss'][0]:.3f} -> {history.history['loss'][-1]:.3f}")
    print(f"test loss {loss:.3f}, test accuracy {accuracy:.4f}")
    return {"accuracy": accuracy, "loss": history.history["loss"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    main(parser.parse_args().epochs)
