"""`fit` and the train step against what people would use instead, each when installed.

All run in turns in one process. The first call of each, which compiles, is reported by itself.
"""

import numpy as np
import pytest

from . import networks, peers
from .measure import interleave


def digits() -> peers.Task:
    """scikit-learn's 1797 digits, 64-64-32-10."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    return peers.Task((x / 16).astype(np.float32), y.astype(np.int64), (64, 64, 32, 10), batch=32, epochs=20)


def random_task(sizes, samples, batch, epochs) -> peers.Task:
    """Random samples of any size, in classes that can be learnt."""
    x, y = networks.Network("", sizes).data(samples)
    return peers.Task(x, y, sizes, batch, epochs)


TASKS = {
    "digits, 64-64-32-10, batch 32": digits,
    "MNIST-shaped, 784-256-128-10, batch 128": lambda: random_task((784, 256, 128, 10), 4096, 128, 3),
    "tiny, 4-64-32-3, batch 16": lambda: random_task((4, 64, 32, 3), 1600, 16, 3),
}


@pytest.mark.parametrize("name", TASKS)
def test_fit(benchmark, name, backends):
    task = TASKS[name]()
    benchmark.group = f"fit: {name}, {task.epochs} epochs"
    fits = {peer: make(task) for peer, make in peers.contestants(backends).items()}
    losses = {}

    def keep_first_losses(peer, fit):
        def run():
            found = fit()
            losses.setdefault(peer, [float(found[0]), float(found[-1])])

        return run

    runs = {peer: keep_first_losses(peer, fit) for peer, fit in fits.items()}
    measured = interleave(runs, budget=8.0, settle=True, benchmark=benchmark)
    for peer, (first, last) in losses.items():
        assert last < first, f"{peer} does not learn: loss {first} at first, {last} at last"
    benchmark.extra_info |= {
        "kind": "fit",
        "task": name,
        "samples": len(task.x),
        "epochs": task.epochs,
        "steps": task.steps,
        "base": next(iter(runs)),
        "times": measured.table(next(iter(runs))),
        "losses": losses,
    }


@pytest.mark.parametrize("batch", networks.BATCH_SIZES)
def test_train_step_of_peers(benchmark, batch, backends):
    network, steps = networks.WIDE, networks.steps_a_run(batch, training=True)
    benchmark.group = f"train step against peers, {network.name}, batch {batch} ({steps} steps a round)"
    others = peers.step_runs(network, batch, steps)
    for peer, run in others.items():
        losses = [run() for _ in range(3)]
        assert losses[-1] < losses[0], f"{peer} does not learn: losses {losses}"
    # What runs on XLA takes turns by itself, without rests: after one, and beside the idle threads of
    # other libraries, a long call of it is slower than many short ones.
    times = {}
    for backend in backends:
        on_xla, floor = backend.name == "jax", f"floor, {backend.name}"
        rivals = {
            name: run for name, run in others.items() if ("JAX" in name) is on_xla and name not in times
        }
        runs = {
            f"nnx, {backend.name}": networks.train(network, backend, batch, steps, gathers=True),
            **rivals,
            floor: networks.floor(network, backend, batch, steps, looped=True),
        }
        measured = interleave(runs, budget=1.5, settle=not on_xla, benchmark=None if times else benchmark)
        times |= measured.table(floor, divided_by=steps)
    benchmark.extra_info |= {
        "kind": "peer step",
        "network": network.name,
        "batch": batch,
        "base": "the floor",
        "times": times,
    }
