"""Going on with a training that was cut off: the whole state of a run in one file.

After each epoch `ModelCheckpoint(..., save_state=True)` writes weights, optimizer, step, history and
what the callbacks count to the file `STATE` in its folder. `fit(..., resume=folder)` goes on from
there. Shuffles and masks are functions of seed and step, so the epochs that follow are those that
would have followed.
"""

from pathlib import Path
from typing import Any

import numpy as np

from nnx import distributed, files, log, saving, tree
from nnx.data import Samples
from nnx.interrupt import undivided
from nnx.registry import Configurable, encode, init_arguments

STATE = "state.nnx"


def is_wanted(callbacks) -> bool:
    """Whether any of the callbacks wants the state to be saved."""
    return bool(_paths(callbacks))


def describe(samples) -> list | None:
    """Return number and checksum of samples on the host: a run goes on with those that it began with."""
    import zlib  # here, for the time of `import nnx`

    if not isinstance(samples, Samples):
        return None
    parts = tree.leaves(samples.glance().arrays())
    return [
        len(samples),
        *(zlib.crc32(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data) for part in parts),
    ]


@undivided
def begin(model, callbacks, facts: dict, folder) -> dict | None:
    """Give a model what the state in `folder` holds, and return the rest of it, or None to start anew.

    Parameters
    ----------
    model : Model
        Compiled, and of the same layers, loss and optimizer as in the run that was cut off.
    callbacks : CallbackList
    facts : dict
        What must be as in that run, such as the batch size.
    folder : str or Path

    Raises
    ------
    FileNotFoundError
        If there is no state and none of the callbacks writes one there.
    ValueError
        If the state is damaged, or of another model or other data.
    """
    path = Path(folder) / STATE
    if distributed.rank() == 0:
        for partial in path.parent.glob(f".*{files.PARTIAL}"):  # of a process killed while it wrote
            partial.unlink(missing_ok=True)
    if not path.is_file():
        if distributed.rank() > 0 or path.absolute() in (other.absolute() for other in _paths(callbacks)):
            log.info("there is no %s yet: training starts anew", path)
            return None
        raise FileNotFoundError(
            f"there is no {path} to go on from. For a program that starts there or goes on, give fit "
            f"callbacks=[ModelCheckpoint({str(Path(folder) / 'best.nnx')!r}, save_state=True)] as well"
        )
    arrays, description = files.read(path)
    if "run" not in description:
        raise ValueError(f"{path} is no state of a run: give the folder that save_state=True wrote to")
    try:
        run = description["run"]
        _compare(path, run["facts"], {**_program(model), **facts})
        _restore(model, path, run, arrays)
        names = {name for name, callback in _named(callbacks) if callback.keeps}
        if distributed.rank() == 0 and names != set(run["callbacks"]):
            different = ", ".join(sorted(names ^ set(run["callbacks"])))
            raise ValueError(f"{path} is of a run with other callbacks: they differ in {different}")
        log.info("going on from %s, written after %d epochs, step %d", path, run["epochs"], run["step"])
        return {**run, "arrays": arrays}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {files.one_line(error)}") from None


def continue_callbacks(model, callbacks, run: dict) -> None:
    """Give callbacks that have begun what they had counted, and `stop_training` its value."""
    for name, callback in _named(callbacks):
        if name not in run["callbacks"]:
            continue
        state = dict(run["callbacks"][name])
        for key, like in _snapshots(model, state).items():
            with model.backend.scope(model.dtype):
                host = saving.filled(like, f"callbacks/{name}/{key}", run["arrays"])
                state[key] = tree.map(lambda a: model.backend.asarray(np.asarray(a)), host)
        callback.set_state(state)
    model.stop_training = run["stopped"]


def save(model, callbacks, facts: dict, epoch: int) -> None:
    """Write the state after an epoch where callbacks ask for it."""
    if not (paths := _paths(callbacks)):
        return
    arrays, states = {**saving.weights(model), **saving.optimizer_arrays(model)}, {}
    for name, callback in _named(callbacks):
        if not callback.keeps:
            continue
        states[name] = state = callback.get_state()
        for key, value in state.items():
            if isinstance(value, dict) and value.keys() == {"params", "state"}:
                arrays |= saving.on_host(model, {f"callbacks/{name}/{key}": value})
                state[key] = SNAPSHOT
    rate = model.optimizer.learning_rate
    run = {
        "facts": {**_program(model), **facts},
        "epochs": epoch + 1 - facts["initial_epoch"],
        "step": model.step,
        "seed": model.seed,
        "input_shape": encode(model.input_shape),
        "learning_rate": None if callable(rate) else float(rate),
        "stopped": bool(model.stop_training),
        "callbacks": states,
    }
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, arrays, {"run": encode(run)})


SNAPSHOT = "a snapshot of the weights"
"""Stands in a callback's state for arrays that the file holds apart."""


def _snapshots(model, state: dict) -> dict[str, Any]:
    like = {"params": model.params, "state": model.state}
    return {key: like for key, value in state.items() if value == SNAPSHOT}


def _restore(model, path, run: dict, arrays: dict) -> None:
    """Give the model the weights, optimizer and step of the state."""
    if not model.built:
        model.build(encode(run["input_shape"]))
    trees = {"params": model.params, "state": model.state}
    trees |= {f"slots/{name}": model.params for name in model.optimizer.slots}
    for name, state in run["callbacks"].items():
        trees |= {f"callbacks/{name}/{key}": like for key, like in _snapshots(model, state).items()}
    if model.dtype == "float16":
        trees["loss_scale"] = {"factor": np.zeros(()), "good_steps": np.zeros(())}
    saving.check_arrays(path, saving.shapes_of(trees), arrays, check_finite=False)
    model.set_weights([arrays["/".join((kind, *place))] for kind, place in model.weight_paths()])
    saving.set_optimizer_arrays(model, arrays)
    model.step, model.seed = run["step"], run["seed"]
    if run["learning_rate"] is not None:
        model.optimizer.learning_rate = run["learning_rate"]


def _program(model) -> dict:
    """Return what a program says about a model, as far as training depends on it."""
    settings = init_arguments(type(model.optimizer))
    optimizer = {name: told(getattr(model.optimizer, name, None)) for name in settings}
    if not callable(model.optimizer.learning_rate):
        optimizer["learning_rate"] = None  # callbacks change it
    return {
        "network": told(model.network),
        "dtype": model.dtype,
        "loss": told(model.loss),
        "metrics": [[told(metric), weighted] for metric, weighted in model.metrics_used],
        "optimizer": {"class_name": type(model.optimizer).__name__, **optimizer},
    }


def told(value) -> Any:
    """Return `encode(value)`; of what cannot be written into a file, such as a function, its name."""
    try:
        return encode(value)
    except TypeError:
        return (
            type(value).__name__ if isinstance(value, Configurable) else getattr(value, "__name__", "unnamed")
        )


def _compare(path, saved: dict, now: dict) -> None:
    now = encode(now)
    for name in now:
        if saved.get(name) != now[name]:
            told = "" if isinstance(now[name], (dict, list)) else f" ({saved.get(name)}, now {now[name]})"
            raise ValueError(
                f"{path} is of a run with another {name}{told}: run the program that wrote it on the same data, or "
                f"train without resume"
            )


def _paths(callbacks) -> set[Path]:
    """Return the files that callbacks want the state in."""
    return {path for callback in callbacks.callbacks if (path := getattr(callback, "state_path", None))}


def _named(callbacks):
    """Yield each callback and the name that it has in every process: its class, numbered if there are more."""
    counts: dict[str, int] = {}
    for callback in callbacks.callbacks:
        name = type(callback).__name__
        counts[name] = counts.get(name, 0) + 1
        yield (name if counts[name] == 1 else f"{name} {counts[name]}"), callback
