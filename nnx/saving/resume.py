"""Resume of an interrupted training: the whole state of a run in one file.

After each epoch `ModelCheckpoint(..., save_state=True)` writes weights, optimizer, step, history and
the state of the callbacks to the file `STATE` in its folder. `fit(..., resume=folder)` continues from
there. Shuffles and dropout masks are functions of seed and step, so a resumed training computes the
same as an uninterrupted one.
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
    """Whether any callback saves the state."""
    return bool(_paths(callbacks))


@contextlib.contextmanager
def alone_in_folders(callbacks) -> Iterator[None]:
    """Reserve the folders in which callbacks save the state; see `locks.run_folder`."""
    with contextlib.ExitStack() as stack:
        for folder in sorted({path.parent.resolve() for path in _paths(callbacks)}):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locks.run_folder(folder))
            files.remove_abandoned(folder)
        yield


def describe(samples) -> list | None:
    """Return number and checksums of samples on the host: a resumed run must have the same data."""
    import zlib  # here, to keep `import nnx` fast

    if not isinstance(samples, Samples):
        return None
    arrays = (np.ascontiguousarray(array) for array in tree.leaves(samples.identifying_samples().arrays()))
    return [len(samples), *(zlib.crc32(array.reshape(-1).view(np.uint8).data) for array in arrays)]


@undivided
def begin(model, callbacks, metadata: dict, folder) -> dict | None:
    """Load the state in `folder` into a model; return the rest of the state, or None to start anew.

    Parameters
    ----------
    model : Model
        Compiled, with the layers, loss and optimizer of the interrupted run.
    callbacks : CallbackList
    metadata : dict
        Settings that must be the same as in that run, such as the batch size.
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
        _compare(path, run["facts"], {**_configuration(model), **metadata})
        if model._seed_is_given:
            _compare(path, run, {"seed": model.seed})
        _compare_callbacks(path, callbacks, run)
        _restore(model, path, run, arrays)
    except files.MALFORMED as error:
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
    expect(_is_list(past["epoch"], lambda n: type(n) is int) and len(past["epoch"]) == epochs, "epoch of History",
           past["epoch"], f"{epochs} numbers")  # fmt: skip
    expect(isinstance(past["history"], dict), "history", past["history"], "a dict")
    for name, values in past["history"].items():
        expect(_is_list(values, _is_number) and len(values) <= epochs, f"history of {name}", values,
               f"up to {epochs} numbers")  # fmt: skip


def _is_number(value) -> bool:
    return type(value) in (int, float)


def _is_list(values, fits) -> bool:
    return isinstance(values, list) and all(map(fits, values))


def continue_callbacks(model, callbacks, run: dict) -> None:
    """Restore the state of callbacks, after their `on_train_begin`, and `stop_training`."""
    for name, callback in _named(callbacks):
        if name not in run["callbacks"]:
            continue
        state = dict(run["callbacks"][name])
        if is_builtin(callback):
            _check_state(run["path"], name, callback, state)
        like = {"params": model.params, "state": model.state}
        for key in _snapshots(state):
            with model.backend.scope(model.dtype):
                host = model_files.tree_of(like, f"callbacks/{name}/{key}", run["arrays"])
                state[key] = tree.map(lambda a: model.backend.asarray(np.asarray(a)), host)
        callback.set_state(state)
    model.stop_training = run["stopped"]


def _check_state(path, name: str, callback, state: dict) -> None:
    """Raise a ValueError unless the saved values of a callback of nnx have the types of their starting values."""
    if state.keys() != set(callback.keeps):
        different = ", ".join(sorted(state.keys() ^ set(callback.keeps)))
        raise ValueError(f"{path} is damaged: what {name} keeps differs in {different}")
    for key, value in state.items():
        start = getattr(callback, key, None)
        if key == "best":
            fits = value is None or (_is_number(value) and value == value)
        elif _is_number(start):
            fits = _is_number(value) and value == value and (type(start) is float or value >= 0)
            fits = fits and (type(value) is int or type(start) is float)
        elif key == "best_weights":
            fits = value is None or value == SNAPSHOT
        else:
            fits = start is None or type(value) is type(start)
        if not fits:
            raise ValueError(f"{path} is damaged: {key} of {name} is {str(value)[:80]}, it begins as {start}")


def save(model, callbacks, metadata: dict, epoch: int) -> None:
    """Write the state after an epoch, if callbacks save it."""
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
        "facts": {**_configuration(model), **metadata},
        "epochs": epoch + 1 - metadata["initial_epoch"],
        "step": model.step,
        "seed": model.seed,
        "input_shape": encode(model.input_shape),
        "learning_rate": None if callable(rate) else float(rate),
        "stopped": bool(model.stop_training),
        "callbacks": states,
        "settings": {name: _settings(callback) for name, callback in _compared(callbacks)},
    }
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write(path, arrays, {"run": encode(run)})


SNAPSHOT = "a snapshot of the weights"
"""The value, in the saved state of a callback, of a snapshot whose arrays are stored among the file's arrays."""


def _snapshots(state: dict) -> list[str]:
    return [key for key, value in state.items() if value == SNAPSHOT]


def _restore(model, path, run: dict, arrays: dict) -> None:
    """Give the model the weights, optimizer and step of the state."""
    shape = as_shapes(run["input_shape"])
    if model.input_shape not in (None, shape):
        raise ValueError(_mismatch(path, "input_shape", shape, model.input_shape))
    if (run["learning_rate"] is None) is not callable(model.optimizer.learning_rate):
        raise ValueError("the learning rate is a number in one and a schedule in the other")
    if model.built:
        like = {"params": model.params, "state": model.state}
    else:
        like = model_files.shapes_only(model.network, shape, sum(array.size for array in arrays.values()))
    trees = like | {f"slots/{name}": like["params"] for name in model.optimizer.slots}
    for name, saved in run["callbacks"].items():
        trees |= {f"callbacks/{name}/{key}": like for key in _snapshots(saved)}
    if model.dtype == "float16":
        trees["loss_scale"] = {"factor": np.zeros(()), "good_steps": np.zeros(())}
    model_files.check_arrays(path, model_files.shapes_of(trees), arrays, check_finite=False)
    if not model.built:
        model.build(shape)
    model.set_weights([arrays["/".join((kind, *keys))] for kind, keys in model.weight_paths()])
    model_files.set_optimizer_arrays(model, arrays)
    model.step, model.seed = run["step"], run["seed"]
    if run["learning_rate"] is not None:
        model.optimizer.learning_rate = run["learning_rate"]


def _configuration(model) -> dict:
    """Return the settings of a model on which training depends."""
    settings = init_arguments(type(model.optimizer))
    optimizer = {name: encode_or_name(getattr(model.optimizer, name, None)) for name in settings}
    if not callable(model.optimizer.learning_rate):
        optimizer["learning_rate"] = None  # callbacks change it
    return {
        "network": encode_or_name(model.network),
        "dtype": model.dtype,
        "loss": encode_or_name(model.loss),
        "metrics": [[encode_or_name(metric), weighted] for metric, weighted in model.metrics_used],
        "optimizer": {"class_name": type(model.optimizer).__name__, **optimizer},
    }


def encode_or_name(value) -> Any:
    """Return `encode(value)`, with the name of what cannot be encoded, such as a function."""
    try:
        return encode(value)
    except (TypeError, ValueError):
        pass
    if isinstance(value, Configurable):  # of a class that is not registered
        config = {name: encode_or_name(getattr(value, name, None)) for name in init_arguments(type(value))}
        return {"class_name": type(value).__name__, "config": config}
    if isinstance(value, (list, tuple)):
        return [encode_or_name(item) for item in value]
    if isinstance(value, dict):
        return {str(key): encode_or_name(item) for key, item in value.items()}
    return getattr(value, "__name__", "unnamed")


def _compare(path, saved: dict, now: dict) -> None:
    import json

    for name, value in now.items():
        before, after = (json.dumps(encode(v), sort_keys=True) for v in (saved.get(name), value))
        if before != after:
            raise ValueError(_mismatch(path, name, saved.get(name), value))


def _compare_callbacks(path, callbacks, run: dict) -> None:
    """Raise a ValueError unless the callbacks that affect training are those of the run, with equal settings."""
    now, saved = {name: _settings(callback) for name, callback in _compared(callbacks)}, run["settings"]
    for name in now.keys() & saved.keys():
        _compare(path, {f"{key} of {name}": value for key, value in saved[name].items()},
                 {f"{key} of {name}": value for key, value in now[name].items()})  # fmt: skip
    kept = {name for name, callback in _named(callbacks) if callback.keeps}
    different = (now.keys() ^ saved.keys()) | (kept ^ run["callbacks"].keys())
    if ranks.rank() == 0 and different:
        raise ValueError(
            f"{path} is of a run with other callbacks: they differ in {', '.join(sorted(different))}"
        )


IGNORED_SETTINGS = ("filepath", "filename", "log_dir", "verbose")
"""Settings of callbacks that do not affect training: the folder may have been moved."""


def _settings(callback) -> dict:
    """Return the settings of a callback on which training depends."""
    names = [name for name in init_arguments(type(callback)) if name not in IGNORED_SETTINGS]
    return {name: encode_or_name(getattr(callback, name)) for name in names if hasattr(callback, name)}


def _compared(callbacks):
    """Yield name and callback of those that have a state, and of those of nnx that run in every process."""
    for name, callback in _named(callbacks):
        if callback.keeps or (is_builtin(callback) and not callback.first_rank_only):
            yield name, callback


def _mismatch(path, name: str, saved, now) -> str:
    is_long = any(isinstance(v, (dict, list)) and len(str(v)) > 40 for v in (saved, now))
    values = "" if is_long else f" ({saved}, now {now})"
    return (
        f"{path} is of a run with another {name}{values}: run the program that wrote it on the same data, or train "
        f"without resume"
    )


def _paths(callbacks) -> set[Path]:
    """Return the files to which callbacks save the state."""
    return {path for callback in callbacks.callbacks if (path := getattr(callback, "state_path", None))}


def _named(callbacks):
    """Yield each callback after its name, the same in every process: its class, with a number if repeated."""
    counts: dict[str, int] = {}
    for callback in callbacks.callbacks:
        name = type(callback).__name__
        counts[name] = counts.get(name, 0) + 1
        yield (name if counts[name] == 1 else f"{name} {counts[name]}"), callback
