"""A rule learnt from examples, and validation: does the network know the rule or only the examples?

Each sample has three random features; its label is 1 where the first two are both positive, and the
third does not matter. The network is shown 80 samples with their labels, never the rule, and after
each epoch it is tried on 20 others. While both losses fall it learns the rule; where the validation
loss turns and rises, it has begun to learn the training samples by heart.
"""

import numpy as np

import nnx


def main():
    X = np.random.default_rng(42).standard_normal((100, 3))
    y = (X[:, 0] > 0) & (X[:, 1] > 0)
    X_train, y_train, X_val, y_val = X[:80], y[:80], X[80:], y[80:]

    model = nnx.Sequential(
        [
            nnx.layers.Dense(4, activation="relu", input_shape=(3,)),
            nnx.layers.Dense(6, activation="relu"),
            nnx.layers.Dense(1, activation="sigmoid"),
        ],
        seed=42,
    )
    model.compile(optimizer=nnx.optimizers.Adam(0.01), loss="binary_crossentropy", metrics=["accuracy"])

    def report(epoch, logs):
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3}  loss {logs['loss']:.4f}  validation loss {logs['val_loss']:.4f}")

    history = model.fit(
        X_train,
        y_train,
        batch_size=10,
        epochs=100,
        validation_data=(X_val, y_val),
        callbacks=[nnx.callbacks.LambdaCallback(on_epoch_end=report)],
        verbose=0,
    ).history
    print(f"right on validation samples: {history['val_accuracy'][-1]:.0%}")
    return {name: values[-1] for name, values in history.items()} | {"epochs": len(history["loss"])}


if __name__ == "__main__":
    main()
