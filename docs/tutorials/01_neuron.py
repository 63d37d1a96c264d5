"""One neuron: a weighted sum of its inputs, squashed to a number between 0 and 1.

    y = sigmoid(w1 x1 + w2 x2 + w3 x3 + b),    sigmoid(z) = 1 / (1 + exp(-z))

Learning needs to know how y changes when a weight is nudged. By the chain rule, and because the
slope of the sigmoid is y (1 - y),

    dy/dw = y (1 - y) x        dy/db = y (1 - y)        dy/dx = y (1 - y) w

A layer computes both: `forward` returns the output and a function, the pullback, that carries
dL/dy back to the inputs and to the weights. Here L is y itself, so dL/dy = 1.
"""

import math

import nnx

WEIGHTS, BIAS, INPUTS = [0.5, -0.6, 0.3], 0.1, [0.2, 0.3, 0.4]


def main():
    ctx = nnx.Context()
    asarray, to_list = ctx.xp.asarray, lambda array: ctx.backend.to_numpy(array).ravel().tolist()
    neuron = nnx.layers.Dense(1, activation="sigmoid")
    params = {"kernel": asarray([[w] for w in WEIGHTS]), "bias": asarray([BIAS])}

    y, pullback = neuron.forward(ctx, params, asarray([INPUTS]))
    dx, grads = pullback(ctx.xp.ones_like(y))
    found = {
        "y": to_list(y),
        "dy/dw": to_list(grads["kernel"]),
        "dy/db": to_list(grads["bias"]),
        "dy/dx": to_list(dx),
    }

    z = sum(w * x for w, x in zip(WEIGHTS, INPUTS, strict=True)) + BIAS
    output = 1 / (1 + math.exp(-z))
    slope = output * (1 - output)
    by_hand = {
        "y": [output],
        "dy/dw": [slope * x for x in INPUTS],
        "dy/db": [slope],
        "dy/dx": [slope * w for w in WEIGHTS],
    }

    print(f"weighted sum z = {z:.2f}")
    for name in found:
        values, formula = (" ".join(f"{v:9.6f}" for v in result[name]) for result in (found, by_hand))
        print(f"{name:6} nnx {values:30} by hand {formula}")
    return {"found": found, "by_hand": by_hand}


if __name__ == "__main__":
    main()
