"""Going on with a training that was cut off: the whole state of a run in one file.

After each epoch `ModelCheckpoint(..., save_state=True)` writes weights, optimizer, step, history and
what the callbacks count to the file `STATE` in its folder. `fit(..., resume=folder)` goes on from
there. Shuffles and masks are functions of seed and step, so the epochs that follow are those that
would have followed.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nnx import log, tree
from nnx.data.samples import Samples
from nnx.distributed import ranks
from nnx.interrupt import undivided
from nnx.registry import Configurable, encode, init_arguments, is_builtin
from nnx.saving import files, locks, model_files
from nnx.shapes import as_shapes

STATE = "state.nnx"


def is_wanted(callbacks) -> bool:
    """Whether any of the callbacks wants the state to be saved."""
    return bool(_paths(callbacks))


@contextlib.contextmanager
def alone_in_folders(callbacks) -> Iterator[None]:
    """Keep other trainings out of the folders that callbacks want the state in; see `locks.run_folder`."""
    with contextlib.ExitStack() as stack:
        for folder in sorted({path.parent.resolve() for path in _paths(callbacks)}):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.run_folder(folder))
            files.remove_abandoned(folder)
        yield


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
    if not path.is_file():
        if ranks.rank() > 0 or path.absolute() in (other.absolute() for other in _paths(callbacks)):
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
        _check(run)
        _compare(path, run["facts"], {**_program(model), **facts})
        _compare_seed(path, model, run["seed"])
        _compare_callbacks(path, callbacks, run)
        _restore(model, path, run, arrays)
    except files.UNFIT as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} is damaged: {files.one_line(error)}") from None
    log.info("going on from %s, written after %d epochs, step %d", path, run["epochs"], run["step"])
    return {**run, "arrays": arrays, "path": path}


def _check(run: dict) -> None:
    """Raise a ValueError unless each field of a state is of its type and in its range."""

    def expect(fits: bool, name: str, value, what: str):
        if not fits:
            raise ValueError(f"{name} is {str(value)[:80]}, expected {what}")

    for name in ("facts", "callbacks", "settings"):
        expect(isinstance(run[name], dict), name, run[name], "a dict")
    for name, least, beyond in (("seed", 0, math.inf), ("step", 1, 2**32), ("epochs", 1, run["step"] + 1)):
        value = run[name]
        expect(type(value) is int and least <= value < beyond, name, value, f"{least} to {beyond}")
    rate, epochs = run["learning_rate"], run["epochs"]
    expect(rate is None or (_is_number(rate) and 0 <= rate < math.inf), "learning_rate", rate, "0 or more")
    expect(type(run["stopped"]) is bool, "stopped", run["stopped"], "true or false")
    as_shapes(run["input_shape"])
    for name, state in run["callbacks"].items():
        expect(isinstance(state, dict), f"what {name} keeps", state, "a dict")
    past = run["callbacks"]["History"]
    expect(_are(past["epoch"], lambda n: type(n) is int) and len(past["epoch"]) == epochs, "epoch of History",
           past["epoch"], f"{epochs} numbers")  # fmt: skip
    expect(isinstance(past["history"], dict), "history", past["history"], "a dict")
    for name, values in past["history"].items():
        expect(_are(values, _is_number) and len(values) <= epochs, f"history of {name}", values,
               f"up to {epochs} numbers")  # fmt: skip


def _is_number(value) -> bool:
    return type(value) in (int, float)


def _are(values, what) -> bool:
    return isinstance(values, list) and all(map(what, values))


def continue_callbacks(model, callbacks, run: dict) -> None:
    """Give callbacks that have begun what they had counted, and `stop_training` its value."""
    for name, callback in _named(callbacks):
        if name not in run["callbacks"]:
            continue
        state = dict(run["callbacks"][name])
        if is_builtin(callback):
            _check_kept(run["path"], name, callback, state)
        for key, like in _snapshots(model, state).items():
            with model.backend.scope(model.dtype):
                host = model_files.filled(like, f"callbacks/{name}/{key}", run["arrays"])
                state[key] = tree.map(lambda a: model.backend.asarray(np.asarray(a)), host)
        callback.set_state(state)
    model.stop_training = run["stopped"]


def _check_kept(path, name: str, callback, state: dict) -> None:
    """Raise a ValueError unless what a callback of nnx kept is of the kind that it has as it begins."""
    if state.keys() != set(callback.keeps):
        different = ", ".join(sorted(state.keys() ^ set(callback.keeps)))
        raise ValueError(f"{path} is damaged: what {name} keeps differs in {different}")
    for key, value in state.items():
        begins = getattr(callback, key, None)
        if key == "best":
            fits = value is None or (_is_number(value) and value == value)
        elif _is_number(begins):
            fits = _is_number(value) and value == value and (type(begins) is float or value >= 0)
            fits = fits and (type(value) is int or type(begins) is float)
        elif key == "best_weights":
            fits = value is None or value == SNAPSHOT
        else:
            fits = begins is None or type(value) is type(begins)
        if not fits:
            raise ValueError(
                f"{path} is damaged: {key} of {name} is {str(value)[:80]}, it begins as {begins}"
            )


def save(model, callbacks, facts: dict, epoch: int) -> None:
    """Write the state after an epoch where callbacks ask for it."""
    if not (paths := _paths(callbacks)):
        return
    arrays, states = {**model_files.weights(model), **model_files.optimizer_arrays(model)}, {}
    for name, callback in _named(callbacks):
        if not callback.keeps:
            continue
        states[name] = state = callback.get_state()
        for key, value in state.items():
            if isinstance(value, dict) and value.keys() == {"params", "state"}:
                arrays |= model_files.on_host(model, {f"callbacks/{name}/{key}": value})
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
        "settings": {name: _settings(callback) for name, callback in _deciding(callbacks)},
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
    shape = as_shapes(run["input_shape"])
    if model.input_shape not in (None, shape):
        raise ValueError(_another(path, "input_shape", shape, model.input_shape))
    if (run["learning_rate"] is None) is not callable(model.optimizer.learning_rate):
        raise ValueError("the learning rate is a number in one and a schedule in the other")
    trees = {"params": model.params, "state": model.state} if model.built else None
    trees = trees or model_files.shapes_only(
        model.network, shape, most=sum(array.size for array in arrays.values())
    )
    params, state = trees["params"], trees["state"]
    trees |= {f"slots/{name}": params for name in model.optimizer.slots}
    for name, kept in run["callbacks"].items():
        like = {"params": params, "state": state}
        trees |= {f"callbacks/{name}/{key}": like for key, value in kept.items() if value == SNAPSHOT}
    if model.dtype == "float16":
        trees["loss_scale"] = {"factor": np.zeros(()), "good_steps": np.zeros(())}
    model_files.check_arrays(path, model_files.shapes_of(trees), arrays, check_finite=False)
    if not model.built:
        model.build(shape)
    model.set_weights([arrays["/".join((kind, *place))] for kind, place in model.weight_paths()])
    model_files.set_optimizer_arrays(model, arrays)
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
    except (TypeError, ValueError):
        pass
    if isinstance(value, Configurable):  # of a class that is not registered
        config = {name: told(getattr(value, name, None)) for name in init_arguments(type(value))}
        return {"class_name": type(value).__name__, "config": config}
    if isinstance(value, (list, tuple)):
        return [told(item) for item in value]
    if isinstance(value, dict):
        return {str(key): told(item) for key, item in value.items()}
    return getattr(value, "__name__", "unnamed")


def _compare(path, saved: dict, now: dict) -> None:
    for name, value in now.items():
        if _differs(saved.get(name), value):
            raise ValueError(_another(path, name, saved.get(name), value))


def _compare_seed(path, model, saved: int) -> None:
    if model._seed_is_given and model.seed != saved:
        raise ValueError(_another(path, "seed", saved, model.seed))


def _compare_callbacks(path, callbacks, run: dict) -> None:
    """Raise a ValueError unless the callbacks that decide or keep something are those of the run, set alike."""
    now, saved = {name: _settings(callback) for name, callback in _deciding(callbacks)}, run["settings"]
    for name in now.keys() & saved.keys():
        _compare(path, {f"{key} of {name}": value for key, value in saved[name].items()},
                 {f"{key} of {name}": value for key, value in now[name].items()})  # fmt: skip
    kept = {name for name, callback in _named(callbacks) if callback.keeps}
    different = (now.keys() ^ saved.keys()) | (kept ^ run["callbacks"].keys())
    if ranks.rank() == 0 and different:
        raise ValueError(
            f"{path} is of a run with other callbacks: they differ in {', '.join(sorted(different))}"
        )


NO_MATTER = ("filepath", "filename", "log_dir", "verbose")
"""Settings of callbacks that change nothing in what is trained: the folder may have been moved."""


def _settings(callback) -> dict:
    """Return the settings of a callback, as far as training depends on them."""
    names = [name for name in init_arguments(type(callback)) if name not in NO_MATTER]
    return {name: told(getattr(callback, name)) for name in names if hasattr(callback, name)}


def _deciding(callbacks):
    """Yield name and callback of those that keep something, and of nnx's own that decide about the course."""
    for name, callback in _named(callbacks):
        if callback.keeps or (is_builtin(callback) and not callback.first_rank_only):
            yield name, callback


def _differs(a, b) -> bool:
    import json

    a, b = (json.dumps(encode(value), sort_keys=True) for value in (a, b))
    return a != b


def _another(path, name: str, saved, now) -> str:
    values = (
        ""
        if any(isinstance(v, (dict, list)) and len(str(v)) > 40 for v in (saved, now))
        else f" ({saved}, now {now})"
    )
    return (
        f"{path} is of a run with another {name}{values}: run the program that wrote it on the same data, or train "
        f"without resume"
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
