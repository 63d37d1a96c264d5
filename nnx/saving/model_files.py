"""A model in one file: its weights, and a description from which the model is made again.

The description names classes. Loading makes objects only of classes of nnx, and of those registered
with `@nnx.register`: it runs no code from the file. The arrays in the file are compared with those
that the network expects before memory of that size is allocated.
"""

import contextlib
from typing import Any

import numpy as np

from nnx import initializers, tree
from nnx.layers.containers import LARGEST_OUTPUT
from nnx.random import generator
from nnx.registry import decode, encode
from nnx.saving import files
from nnx.shapes import as_shapes, elements

KINDS = ("params", "state")


def save(model, path, include_optimizer: bool) -> None:
    """Write `model` to `path`; see `Model.save`."""
    description = {
        "name": model.name,
        "network": encode(model.network),
        "input_shape": encode(model.input_shape),
        "seed": model.seed,
        "dtype": model.dtype,
    }
    arrays = weights(model)
    if include_optimizer and model.loss is not None:
        description["compiled"] = {
            "optimizer": encode(model.optimizer),
            "loss": encode(model.loss),
            "metrics": [encode(metric) for metric, weighted in model.metrics_used if not weighted],
            "weighted_metrics": [encode(metric) for metric, weighted in model.metrics_used if weighted],
        }
        description["step"] = model.step
        arrays |= optimizer_arrays(model)
    files.write(path, arrays, description)


def save_weights(model, path) -> None:
    """Write the weights and moving averages alone."""
    files.write(path, weights(model), {})


def load_weights(model, path, check_finite: bool) -> None:
    """Read weights into a model of the same architecture."""
    arrays = {name: array for name, array in files.read(path)[0].items() if name.split("/")[0] in KINDS}
    shapes = {
        f"{kind}/{'/'.join(keys)}": np.shape(tree.at(getattr(model, kind), keys))
        for kind, keys in model.weight_paths()
    }
    check_arrays(path, shapes, arrays, check_finite)
    model.set_weights([arrays[name] for name in shapes])


def check_description(path, description: dict) -> None:
    """Raise a ValueError unless the file describes a whole model."""
    if "network" not in description:
        raise ValueError(f"{path} holds weights only: make the model and call model.load_weights(path)")
    seed, step, name = (description.get(key, 0) for key in ("seed", "step", "name"))
    if not (type(seed) is type(step) is int and seed >= 0 and 0 <= step < 2**32 and type(name) is str):
        raise ValueError(f"{path} is damaged: its name, seed or step is not valid")


def nesting(description) -> int:
    """Return how deeply the objects of a description are nested."""
    deepest, waiting = 0, [(description, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict):
            depth += "class_name" in value
            waiting += ((inner, depth) for inner in value.values())
        elif isinstance(value, list):
            waiting += ((inner, depth) for inner in value)
        deepest = max(deepest, depth)
    return deepest


@contextlib.contextmanager
def errors_name(path):
    """Turn any error inside a `with` block into a ValueError of one line that names the file."""
    try:
        yield
    except Exception as error:  # a layer may raise anything on invalid settings
        raise ValueError(f"cannot make the model of {path}: {files.one_line(error)}") from error


def restore(model, path, arrays: dict[str, np.ndarray], description: dict, check_finite: bool) -> None:
    """Give a new model the input shape, the weights and the optimizer of a file."""
    step = 0
    with errors_name(path):
        if compiled := description.get("compiled"):
            model.compile(**{name: decode(value) for name, value in compiled.items()})
            step = description["step"]
        shape, trees = description["input_shape"], {"params": {}, "state": {}}
        if shape is not None:
            shape = as_shapes(shape)
            trees = shapes_only(model.network, shape, most=sum(array.size for array in arrays.values()))
    slots = model.optimizer.slots if compiled and shape is not None else ()
    expected = {**trees, **{f"slots/{name}": trees["params"] for name in slots}}
    if compiled and model.dtype == "float16" and shape is not None:
        expected["loss_scale"] = {"factor": np.zeros(()), "good_steps": np.zeros(())}
    check_arrays(path, shapes_of(expected), arrays, check_finite)
    if shape is None:
        return
    model.build_from(shape, *(tree_of(trees[kind], kind, arrays) for kind in KINDS))
    if compiled:
        set_optimizer_arrays(model, arrays)
        model.step = step


def shapes_only(network, shape, most: int) -> dict[str, Any]:
    """Return {"params": ..., "state": ...} of arrays that take no memory, of at most `most` elements each."""
    if elements(shape) > LARGEST_OUTPUT:
        raise ValueError(f"one sample of shape {shape} is more than any machine can hold")
    with initializers.only_shapes(most):
        return {"params": network.init(generator(0), shape)[0], "state": network.init_state(shape)}


def weights(model) -> dict[str, np.ndarray]:
    """Return weights and moving averages on the host, by path."""
    return on_host(model, {"params": model.params, "state": model.state})


def optimizer_arrays(model) -> dict[str, np.ndarray]:
    """Return the optimizer's slots and the loss scale on the host, by path."""
    trees = {f"slots/{name}": slot for name, slot in model.slots.items()}
    return on_host(model, trees if model.loss_scale is None else {**trees, "loss_scale": model.loss_scale})


def set_optimizer_arrays(model, arrays) -> None:
    """Set the arrays that `optimizer_arrays` returned."""
    slots = model.optimizer.slots
    model.set_slots([tree_of(model.params, f"slots/{name}", arrays) for name in slots])
    scale = {name: arrays.get(f"loss_scale/{name}") for name in ("factor", "good_steps")}
    model.set_loss_scale(None if scale["factor"] is None else scale)


def on_host(model, trees: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the arrays of trees on the host, by "tree/path"."""
    with model.backend.scope(model.dtype):
        return {name: model.backend.to_numpy(array) for name, array in _by_path(trees)}


def tree_of(like, name: str, arrays) -> Any:
    """Return the arrays whose paths begin with `name` as a tree like `like`."""
    if not isinstance(like, dict):
        return arrays[name]
    return {key: tree_of(inner, f"{name}/{key}", arrays) for key, inner in like.items()}


def _by_path(trees):
    """Yield "tree/path" and the array, for each array."""
    for kind, arrays in trees.items():
        yield from (("/".join((kind, *path)), tree.at(arrays, path)) for path in tree.paths(arrays) if path)


def shapes_of(trees: dict[str, Any]) -> dict[str, tuple]:
    """Return the shape of each array in trees, by "tree/path"."""
    return {name: np.shape(array) for name, array in _by_path(trees)}


def check_arrays(path, shapes: dict[str, tuple], arrays, check_finite: bool) -> None:
    """Raise a ValueError unless `arrays` have these shapes and hold real numbers."""
    if fault := _fault(shapes, arrays, check_finite):
        raise ValueError(f"{path} {files.one_line(fault)}")


def _fault(shapes, arrays, check_finite) -> str | None:
    if different := sorted(shapes.keys() ^ arrays.keys()):
        more = f" and {len(different) - 10} more" if len(different) > 10 else ""
        return f"does not fit this model: they differ in {', '.join(different[:10])}{more}"
    for name, array in arrays.items():
        if array.shape != shapes[name]:
            return f"does not fit this model: {name} has shape {array.shape}, and the model {shapes[name]}"
        if array.dtype.kind != "f":
            return f"is damaged: {name} holds {array.dtype}, not real numbers"
        if check_finite and name.split("/")[0] in KINDS and not np.isfinite(array).all():
            return (
                f"holds weights that are infinite or not a number ({name}): the model diverged before it was saved. "
                f"check_finite=False reads it all the same"
            )
    return None
