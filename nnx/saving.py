"""A model in one file: weights, and what is needed to make the model again.

The description names classes, and only classes that nnx knows, or that were registered with
`@nnx.register`, are ever made: loading a file runs no code from it.
"""

import numpy as np

from nnx import files, tree
from nnx.registry import decode, encode

WEIGHTS = ("params", "state")


def save(model, path, include_optimizer: bool) -> None:
    """Write `model` to `path`; see `Model.save`."""
    description = {
        "name": model.name,
        "network": encode(model.network),
        "input_shape": encode(model.input_shape),
        "seed": model.seed,
        "dtype": model.dtype,
    }
    slots = {}
    if include_optimizer and model.loss is not None:
        description["compiled"] = {
            "optimizer": encode(model.optimizer),
            "loss": encode(model.loss),
            "metrics": [encode(metric) for metric, weighted in model.metrics_used if not weighted],
            "weighted_metrics": [encode(metric) for metric, weighted in model.metrics_used if weighted],
        }
        description["step"] = model.step
        slots = {f"slots/{name}": slot for name, slot in model.slots.items()}
        if model.loss_scale is not None:
            slots["loss_scale"] = model.loss_scale
    files.write(path, _arrays(model, slots), description)


def save_weights(model, path) -> None:
    """Write the weights and moving averages alone."""
    files.write(path, _arrays(model, {}), {})


def load_weights(model, path) -> None:
    """Read weights into a model of the same architecture."""
    _set_weights(model, path, files.read(path)[0])


def check_description(path, description: dict) -> None:
    """Raise a ValueError unless the file describes a whole model."""
    if "network" not in description:
        raise ValueError(f"{path} holds weights only: make the model and call model.load_weights(path)")


def restore(model, path, arrays: dict[str, np.ndarray], description: dict) -> None:
    """Give a new model the shape, the weights and the optimizer that a file holds."""
    if description["input_shape"] is not None:
        model.build(description["input_shape"])
    if compiled := description.get("compiled"):
        model.compile(**{name: decode(value) for name, value in compiled.items()})
        model.step = description["step"]
    if not model.built:
        return
    _set_weights(model, path, arrays)
    names = model.optimizer.slots if model.optimizer is not None else ()
    paths = tree.paths(model.params)
    saved = [[_key(f"slots/{name}", p) for p in paths] for name in names]
    if saved and all(key in arrays for keys in saved for key in keys):
        slots = [tree.from_paths(paths, [arrays[key] for key in keys]) for keys in saved]
        model.set_slots(slots)
    if (factor := arrays.get("loss_scale/factor")) is not None:
        model.set_loss_scale({"factor": factor, "good_steps": arrays["loss_scale/good_steps"]})


def _key(kind: str, path) -> str:
    return "/".join((kind, *path))


def _arrays(model, slots) -> dict[str, np.ndarray]:
    """Return the arrays of a model on the host, each under its path."""
    trees = {"params": model.params, "state": model.state, **slots}
    with model.backend.scope(model.dtype):
        return {
            _key(kind, path): model.backend.to_numpy(tree.at(arrays, path))
            for kind, arrays in trees.items()
            for path in tree.paths(arrays)
        }


def _set_weights(model, path, arrays) -> None:
    expected = [_key(kind, p) for kind, p in model.weight_paths()]
    found = [name for name in arrays if name.split("/")[0] in WEIGHTS]
    if different := set(expected) ^ set(found):
        raise ValueError(f"{path} does not fit this model: they differ in {', '.join(sorted(different))}")
    model.set_weights([arrays[name] for name in expected])
