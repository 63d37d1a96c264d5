"""XOR: the smallest problem that one neuron cannot solve.

XOR is 1 where exactly one of two inputs is 1. A single neuron parts the plane by one straight line,
and no line parts these four points. Four hidden neurons draw four lines; the output neuron combines
them. All is learnt by gradient descent: every epoch, each weight moves a little against the slope of
the mean squared error over all four points.
"""

import numpy as np

import nnx


def main():
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    y = np.array([[0], [1], [1], [0]])
    model = nnx.Sequential(
        [
            nnx.layers.Dense(4, activation="sigmoid", input_shape=(2,)),
            nnx.layers.Dense(1, activation="sigmoid"),
        ],
        seed=0,
    )
    model.compile(optimizer=nnx.optimizers.SGD(learning_rate=2.0), loss="mse")
    history = model.fit(X, y, batch_size=4, epochs=2000, verbose=0).history

    for epoch in (1, 500, 1000, 2000):
        print(f"epoch {epoch:4}  loss {history['loss'][epoch - 1]:.5f}")
    outputs = model.predict(X).ravel()
    for inputs, target, output in zip(X, y.ravel(), outputs, strict=True):
        print(f"{inputs[0]} xor {inputs[1]} = {target}   the network says {output:.3f}")
    right = int(np.sum((outputs > 0.5) == (y.ravel() == 1)))
    print(f"{right} of 4 right")
    return {"right": right, "outputs": outputs.tolist(), "loss": history["loss"]}


if __name__ == "__main__":
    main()
