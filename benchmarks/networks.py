"""The networks that are measured, what nnx does with them, and the floor beneath it.

The floor is the matrix products of a step and nothing else, through the backend's own matmul:
what no step on that backend can beat. Everything here returns a function without arguments that
runs a number of steps and waits until they are computed.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

import nnx
from nnx import tree
from nnx.training.preparation import prepared
from nnx.training.runner import StepRunner

BATCH_SIZES = (1, 32, 128, 512, 2048, 8192)


@dataclass(frozen=True)
class Network:
    """Dense layers with relu between them; the last one gives logits."""

    name: str
    sizes: tuple[int, ...]

    @property
    def layers(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of each layer."""
        return list(pairwise(self.sizes))

    def flops(self, batch: int, backward: bool) -> int:
        """Return the floating-point operations of the products of one step.

        Backward, each layer has two more products of the same size, but the first layer only one:
        nothing asks for the gradient of the data.
        """
        forward = sum(2 * batch * n * m for n, m in self.layers)
        first = 2 * batch * self.sizes[0] * self.sizes[1]
        return 3 * forward - first if backward else forward

    def model(self, backend, dtype="float32") -> nnx.Sequential:
        """Return the network as a compiled model: Adam and the cross-entropy of its logits."""
        *hidden, last = self.sizes[1:]
        layers = [nnx.layers.Dense(size, activation="relu") for size in hidden]
        model = nnx.Sequential([*layers, nnx.layers.Dense(last)], seed=0, dtype=dtype, backend=backend)
        model.build(self.sizes[:1])
        loss = nnx.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=nnx.optimizers.Adam(1e-3), loss=loss)
        return model

    def data(self, samples: int, dtype="float32") -> tuple[np.ndarray, np.ndarray]:
        """Return random features and the classes that a random linear teacher gives them."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((samples, self.sizes[0]), dtype)
        teacher = rng.standard_normal((self.sizes[0], self.sizes[-1]), dtype)
        return x, np.argmax(x @ teacher, axis=1)


WIDE = Network("784-512-512-10", (784, 512, 512, 10))
DEEP = Network("256-(256x8)-10", (256,) * 9 + (10,))


FEWEST = 4
"""Training steps that are timed at a time at least, as `fit` runs them: XLA has work to do for each run."""


def steps_a_run(batch: int, training: bool) -> int:
    """Return how many steps of this batch size are timed at a time: short ones are timed together."""
    return max(FEWEST if training else 1, min(16, 1024 // batch))


def forward(network: Network, backend, batch: int, steps: int, dtype="float32"):
    """Run the forward pass, compiled where the backend can."""
    model = network.model(backend, dtype)

    def call(params, x):
        return model.apply(params, x, nnx.Context(backend))[0]

    return _calls(model, call, batch, steps, network.data(batch, dtype)[0])


def gradients(network: Network, backend, batch: int, steps: int, dtype="float32"):
    """Run the forward and the backward pass, without loss and optimizer."""
    model = network.model(backend, dtype)

    def call(params, x, dy):
        ctx = nnx.Context(backend, training=True)
        ctx.needs_input_gradient = False
        return model.apply(params, x, ctx)[1](dy)[1]

    dy = np.random.default_rng(1).standard_normal((batch, *model.output_shape), dtype)
    return _calls(model, call, batch, steps, network.data(batch, dtype)[0], dy)


def _calls(model, call, batch, steps, *arrays):
    backend = model.backend
    with backend.scope(model.dtype):
        compiled = backend.compile(call)
        params, placed = model.params, [backend.asarray(array) for array in arrays]

    def run():
        with backend.scope(model.dtype):
            results = [compiled(params, *placed) for _ in range(steps)]
            backend.synchronize([tree.leaves(result) for result in results])

    return run


def train(network: Network, backend, batch: int, steps: int, dtype="float32", *, gathers=False):
    """Run whole training steps with Adam on one batch; or, as `fit`, on one that is gathered in each step."""
    model = network.model(backend, dtype)
    samples = max(2048, batch) if gathers else batch
    data = prepared(model, *network.data(samples, dtype), None)
    runner, totals = StepRunner(model), None
    if not gathers:
        # So small that the batch is not learnt by heart: gradients that vanish would leave Adam with
        # denormal numbers, which processors are slow with.
        model.optimizer.learning_rate = 1e-8
    numbers = runner.scalars(0, steps)
    if gathers:
        order = np.tile(np.arange(samples), (steps, 1))
        numbers["index"] = np.random.default_rng(2).permuted(order, axis=1)[:, :batch]
    with backend.scope(dtype):
        placed, rows = backend.put_samples(data.arrays()), backend.device_put(numbers)

    def run():
        nonlocal totals
        with backend.scope(dtype):
            carry, totals = runner.steps.train(model.carry, totals, rows, {"samples": placed}, 0, steps)
            model.set_carry(carry, steps=steps)
            backend.synchronize(tree.leaves(carry))

    return run


def floor(network: Network, backend, batch: int, steps: int, dtype="float32", *, backward=True, looped=False):
    """Run the matrix products of the steps and nothing else.

    With `looped`, a backend that compiles runs all steps in one dispatch, as its train steps do.
    """
    rng = np.random.default_rng(3)

    def random(*shapes):
        return [backend.asarray(rng.standard_normal(shape, dtype)) for shape in shapes]

    with backend.scope(dtype):
        inputs = random(*((batch, n) for n, _ in network.layers))
        kernels = random(*network.layers)
        grads = random(*((batch, m) for _, m in network.layers)) if backward else []
        if backend.name in ("numpy", "cupy"):
            once = _into_buffers(backend, _pairs(inputs, kernels, grads))
        else:
            once, steps = _compiled_products(backend, (inputs, kernels, grads), steps if looped else 1, steps)

    def run():
        with backend.scope(dtype):
            backend.synchronize([once() for _ in range(steps)])

    return run


def _pairs(inputs, kernels, grads) -> list[tuple]:
    """Return the operands of each product: y = x @ k, then dk = x.T @ dy and dx = dy @ k.T."""
    pairs = list(zip(inputs, kernels, strict=True))
    if grads:
        pairs += [(x.T, dy) for x, dy in zip(inputs, grads, strict=True)]
        pairs += [(dy, k.T) for dy, k in zip(grads[1:], kernels[1:], strict=True)]
    return pairs


def _into_buffers(backend, pairs):
    outputs = [backend.xp.matmul(a, b) for a, b in pairs]
    # The namespace of array-api-compat knows no out=; CuPy's own does.
    matmul = backend.cupy.matmul if backend.name == "cupy" else backend.xp.matmul

    def once():
        for (a, b), out in zip(pairs, outputs, strict=True):
            matmul(a, b, out=out)
        return outputs

    return once


def _compiled_products(backend, operands, at_once: int, steps: int):
    """Return (function of one dispatch, number of dispatches).

    The operands are arguments and the products results, so that none can be left out. In a loop,
    one element of each input and gradient is set to the number of the turn: XLA multiplies what
    does not change only once, even behind an optimization barrier.
    """

    def products(operands):
        return [a @ b for a, b in _pairs(*operands)]

    def loop(operands):
        inputs, kernels, grads = operands

        def turn(i, carry):
            inputs, grads = ([a.at[0, 0].set(i) for a in arrays] for arrays in carry[:2])
            return inputs, grads, products((inputs, kernels, grads))

        shapes = backend.jax.eval_shape(products, operands)
        zeros = [backend.xp.zeros(s.shape, s.dtype) for s in shapes]
        return backend.jax.lax.fori_loop(0, at_once, turn, (inputs, grads, zeros))[2]

    compiled = backend.compile(products if at_once == 1 else loop)
    return lambda: compiled(operands), steps // at_once
