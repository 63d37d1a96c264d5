"""A training loop of ten lines, on any backend: what `fit` does, written out.

`fit` is made of pure functions, which a loop of your own can call. Nothing is hidden in objects: the
weights are `params`, a tree (nested dicts) of arrays of the backend; what changes without a gradient,
such as the moving averages of batch normalisation, is `state`; what the optimizer remembers of each
weight is `slots`. One step takes them and returns new ones:

1.  `model.apply` runs the layers: it returns the output, and a function, the pullback, that carries
    dL/d(output) back through all layers to dL/d(params).
2.  `loss.value_and_grad` gives L, the mean loss of the samples, and dL/d(output).
3.  `optimizer.update` moves the weights against the gradient.

Because the step is pure, it can be compiled as it stands: `backend.compile`.
Run it anywhere: `NNX_BACKEND=jax python docs/training_loop.py`.
"""

import numpy as np
from sklearn.datasets import load_iris
from sklearn.preprocessing import StandardScaler

import nnx


def train(model, loss, optimizer, x, y, steps):
    """Return the trained params and state, and the loss of each step. `x` and `y` are on the device."""
    backend = model.backend

    @backend.compile  # one XLA program on JAX; where nothing compiles, the function itself
    def step(params, state, slots, x, y, key, rates):
        ctx = nnx.Context(backend, training=True, state=state, key=key)
        output, pullback = model.apply(params, x, ctx)
        value, doutput = loss.value_and_grad(ctx, y, output)
        _, grads = pullback(doutput)
        params, slots = optimizer.update(grads, slots, params, rates, backend)
        return params, ctx.state, slots, value

    params, state = model.init(seed=0)
    slots, losses = optimizer.init(params, backend), []
    for i in range(steps):
        key, rates = (0, i), optimizer.scalars(i)  # what dropout drops, and the learning rate
        params, state, slots, value = step(params, state, slots, x, y, key, rates)
        losses.append(value)  # on the device: the loop never waits for a number
    return params, state, backend.read(losses)


def main():
    X, y = load_iris(return_X_y=True)
    X = StandardScaler().fit_transform(X).astype(np.float32)
    model = nnx.Sequential(
        [
            nnx.layers.Dense(16, input_shape=(4,)),
            nnx.layers.BatchNormalization(momentum=0.9),
            nnx.layers.Activation("relu"),
            nnx.layers.Dropout(0.1),
            nnx.layers.Dense(3, activation="softmax"),
        ]
    )
    asarray, loss = model.backend.asarray, nnx.losses.SparseCategoricalCrossentropy()
    params, state, losses = train(model, loss, nnx.optimizers.Adam(0.02), asarray(X), asarray(y), steps=100)

    # Without a training context, dropout lets all pass and batch normalisation uses its averages.
    output, _ = model.apply(params, asarray(X), nnx.Context(model.backend, state=state))
    accuracy = float(np.mean(model.backend.to_numpy(output).argmax(axis=1) == y))
    for step in range(0, 100, 20):
        print(f"step {step:3}  loss {float(losses[step]):.4f}")
    print(f"last loss {float(losses[-1]):.4f}, {accuracy:.1%} right, on {model.backend.name}")
    return {"losses": [float(value) for value in losses], "accuracy": accuracy, "state": state}


if __name__ == "__main__":
    main()
