"""What people would use instead: the same network, batch, loss, optimizer and data in float32.

Each peer takes a `Task` and returns `fit()`, which trains for the task's epochs and returns the
loss of each; called again, it trains on (scikit-learn starts afresh), with nothing to compile. All
but scikit-learn, which cannot, compute the accuracy of each epoch beside the loss.
"""

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

import nnx

from .measure import stopwatch

RATE = 1e-3
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Task:
    """A classification problem and how to train on it."""

    x: np.ndarray
    y: np.ndarray
    sizes: tuple[int, ...]
    batch: int
    epochs: int

    @property
    def steps(self) -> int:
        """Steps of a fit."""
        return self.epochs * -(-len(self.x) // self.batch)


def nnx_model(task: Task, backend) -> nnx.Sequential:
    """Return the task's network as a user would write it."""
    *hidden, classes = task.sizes[1:]
    layers = [nnx.layers.Dense(size, activation="relu") for size in hidden]
    model = nnx.Sequential(
        [*layers, nnx.layers.Dense(classes, activation="softmax")], backend=backend, seed=0
    )
    adam = nnx.optimizers.Adam(learning_rate=RATE)
    model.compile(optimizer=adam, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def nnx_on(backend) -> Callable:
    """nnx with history, metrics and a moving progress bar."""

    def peer(task: Task):
        model = nnx_model(task, backend)

        def fit():
            bar = nnx.callbacks.ProgressBar(bar=True)
            history = model.fit(
                task.x, task.y, batch_size=task.batch, epochs=task.epochs, verbose=0, callbacks=[bar]
            )
            return history.history["loss"]

        return fit

    return peer


def scikit_learn(task: Task):
    """`MLPClassifier` with the same settings, for a fixed number of epochs."""
    from sklearn.neural_network import MLPClassifier

    def fit():
        model = MLPClassifier(
            task.sizes[1:-1],
            alpha=0.0,
            batch_size=task.batch,
            learning_rate_init=RATE,
            max_iter=task.epochs,
            n_iter_no_change=task.epochs + 1,
        )
        return model.fit(task.x, task.y).loss_curve_

    return fit


def torch_step(sizes, fused: bool) -> Callable:
    """Return `step(x, y) -> (loss, logits)`: one eager training step."""
    import torch

    layers = []
    for n, m in pairwise(sizes):
        layers += [torch.nn.Linear(n, m), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, **({"fused": True} if fused else {}))
    loss_function = torch.nn.CrossEntropyLoss()

    def step(x, y):
        optimizer.zero_grad()
        logits = model(x)
        loss = loss_function(logits, y)
        loss.backward()
        optimizer.step()
        return loss.detach(), logits.detach()

    return step


def torch_threads(trial: Callable) -> int:
    """Return which is faster for `trial`, one thread or all.

    Small networks on a busy machine wait for their second thread: PyTorch is shown at its best.
    """
    import torch

    seconds = {}
    for threads in (CORES, 1):
        torch.set_num_threads(threads)
        trial()
        seconds[threads] = min(stopwatch(trial) for _ in range(3))
    return min(seconds, key=seconds.get)


def pytorch(task: Task, fused=False):
    """A plain PyTorch loop; loss and accuracy are read once an epoch."""
    import torch

    x, y = torch.from_numpy(task.x), torch.from_numpy(task.y)
    first_x, first_y, trial = x[: task.batch], y[: task.batch], torch_step(task.sizes, fused)
    threads = torch_threads(lambda: [trial(first_x, first_y) for _ in range(10)])
    step = torch_step(task.sizes, fused)

    def fit():
        torch.set_num_threads(threads)
        losses = []
        for _ in range(task.epochs):
            total, correct = torch.zeros(()), torch.zeros((), dtype=torch.int64)
            for index in torch.randperm(len(x)).split(task.batch):
                target = y[index]
                loss, logits = step(x[index], target)
                total += loss * len(index)
                correct += (logits.argmax(1) == target).sum()
            losses.append(total.item() / len(x))
            correct.item()
        return losses

    return fit


def pytorch_fused(task: Task):
    """The same with PyTorch's fused Adam."""
    return pytorch(task, fused=True)


def keras_on_jax(task: Task):
    """Keras's `fit` on its JAX backend, without progress bar."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("KERAS_HOME", tempfile.mkdtemp())  # it writes a settings file when imported
    import keras

    *hidden, classes = task.sizes[1:]
    layers = [keras.layers.Dense(size, activation="relu") for size in hidden]
    model = keras.Sequential([*layers, keras.layers.Dense(classes, activation="softmax")])
    adam = keras.optimizers.Adam(learning_rate=RATE)
    model.compile(optimizer=adam, loss="sparse_categorical_crossentropy", metrics=["accuracy"])

    def fit():
        history = model.fit(task.x, task.y, batch_size=task.batch, epochs=task.epochs, verbose=0)
        return history.history["loss"]

    return fit


def optax_step(sizes) -> tuple[Callable, tuple]:
    """Return a jitted `step(carry, x, y, index) -> carry` and its first carry, which it consumes.

    The carry is (params, optimizer state, sum of losses, number of correct answers).
    """
    import jax
    import jax.numpy as jnp
    import optax

    adam = optax.adam(RATE)
    shapes = list(pairwise(sizes))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    initial = jax.nn.initializers.glorot_uniform()
    params = [(initial(key, shape), jnp.zeros(shape[1])) for key, shape in zip(keys, shapes, strict=True)]

    def loss_of(params, x, y):
        *hidden, (kernel, bias) = params
        for k, b in hidden:
            x = jax.nn.relu(x @ k + b)
        logits = x @ kernel + bias
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), logits

    def step(carry, x, y, index):
        params, state, total, correct = carry
        x, y = x[index], y[index]
        (loss, logits), grads = jax.value_and_grad(loss_of, has_aux=True)(params, x, y)
        updates, state = adam.update(grads, state, params)
        right = jnp.sum(jnp.argmax(logits, 1) == y)
        return optax.apply_updates(params, updates), state, total + loss * len(index), correct + right

    return jax.jit(step, donate_argnums=0), (params, adam.init(params), jnp.zeros(()), jnp.zeros((), int))


def jax_optax(task: Task):
    """A hand-written JAX loop with Optax: one jitted step a batch."""
    import jax
    import jax.numpy as jnp

    x, y = jnp.asarray(task.x), jnp.asarray(task.y)
    step, carry = optax_step(task.sizes)
    rng = np.random.default_rng(0)

    def fit():
        nonlocal carry
        losses = []
        for _ in range(task.epochs):
            order = rng.permutation(len(task.x)).astype(np.int32)
            carry = (*carry[:2], jnp.zeros(()), jnp.zeros((), int))
            for start in range(0, len(order), task.batch):
                carry = step(carry, x, y, order[start : start + task.batch])
            losses.append(float(jax.block_until_ready(carry)[2]) / len(order))
        return losses

    return fit


PEERS = {
    "scikit-learn": (scikit_learn, ["sklearn"]),
    "PyTorch": (pytorch, ["torch"]),
    "PyTorch, fused Adam": (pytorch_fused, ["torch"]),
    "Keras on JAX": (keras_on_jax, ["keras", "jax"]),
    "JAX + Optax": (jax_optax, ["jax", "optax"]),
}


def installed(*modules: str) -> bool:
    """Whether all these modules can be imported."""
    return all(importlib.util.find_spec(module) for module in modules)


def contestants(backends) -> dict[str, Callable]:
    """Return nnx on each backend and all peers that are installed, by name."""
    found = {f"nnx, {backend.name}": nnx_on(backend) for backend in backends}
    return found | {name: peer for name, (peer, needed) in PEERS.items() if installed(*needed)}


def step_runs(network, batch: int, steps: int) -> dict[str, Callable]:
    """Return, for each installed library, a function that takes `steps` steps and returns their mean loss.

    As in nnx's own step, each batch is gathered from the data by an index.
    """
    x, y = network.data(max(2048, batch))
    order = np.random.default_rng(2).permuted(np.tile(np.arange(len(x)), (steps, 1)), axis=1)[:, :batch]
    found = {}
    if installed("torch"):
        found["PyTorch"] = _torch_run(network.sizes, x, y, order, fused=False)
        found["PyTorch, fused Adam"] = _torch_run(network.sizes, x, y, order, fused=True)
    if installed("jax", "optax"):
        found["JAX + Optax"] = _optax_run(network.sizes, x, y, order)
    return found


def _torch_run(sizes, x, y, order, fused):
    import torch

    step, x, y = torch_step(sizes, fused), torch.from_numpy(x), torch.from_numpy(y)
    order = torch.from_numpy(order)
    threads = torch_threads(lambda: step(x[order[0]], y[order[0]]))

    def run():
        torch.set_num_threads(threads)
        losses = [step(x[index], y[index])[0] for index in order]
        return float(sum(losses)) / len(losses)

    return run


def _optax_run(sizes, x, y, order):
    import jax.numpy as jnp

    step, carry = optax_step(sizes)
    order_size = order.size
    x, y, order = jnp.asarray(x), jnp.asarray(y), [jnp.asarray(row) for row in order]

    def run():
        nonlocal carry
        carry = (*carry[:2], jnp.zeros(()), jnp.zeros((), int))
        for index in order:
            carry = step(carry, x, y, index)
        return float(carry[2]) / order_size

    return run
