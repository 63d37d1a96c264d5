"""One backend's training steps, as a sequence of places and the arrays that were computed there."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nnx import tree
from nnx.backend import Backend
from nnx.data.samples import Samples
from nnx.errors import NonFiniteError
from nnx.inspect.observe import Observer
from nnx.models.model import Model
from nnx.registry import snake_case


@dataclass(frozen=True)
class Place:
    """Where in a training step something is computed."""

    step: int
    stage: str
    """`"forward"`, `"backward"`, the same after `"compiled "`, `"update"` or `"fit"`."""
    layer: str = ""
    what: str = ""

    def __str__(self):
        layer = self.layer and f"layer {self.layer}"
        return ", ".join(filter(None, (f"step {self.step}", self.stage, layer, self.what)))


Arrays = dict[str, np.ndarray]
"""What belongs together at a place, by name: a layer's kernel and bias; or one array, named ""."""


class Tracer:
    """A backend with copies of a model: one to look into, one to fit."""

    def __init__(self, start: Model, backend: Backend):
        self.backend, self.name = backend, backend.name
        self.model, self.fitted = (copy.deepcopy(start).to(backend) for _ in range(2))
        self.fitted._loss_is_checked = True  # the targets may be drawn at random
        self.place = Place(1, "forward")
        """What is being computed, to be named if it fails."""
        self.carry = self._host(self.model.carry)
        """Weights, state and slots on the host: after `trace`, those of the next step."""
        self.grads: dict = {}
        """The gradients that `trace` gave the optimizer, on the host."""
        self._steps = self.model.engine.steps
        self._first_step = self.model.step
        self._compiled_gradients = backend.compile(self._steps.gradients)
        self._compiled_update = backend.compile(self._update)

    def trace(self, step: int, carry: dict, batch: Samples, grads=None) -> Iterator[tuple[Place, Arrays]]:
        """Yield all that one step computes from `carry`, in order: first eagerly, then compiled.

        The optimizer is given `grads`, by default those that were computed.
        """
        self.place, failed = Place(step, "forward"), None
        observer = Observer(self.backend)
        try:
            computed = self._pass(partial(self._steps.gradients, observer=observer), step, carry, batch)
        except Exception as error:
            failed, computed = error, {}
        yield from ((Place(step, *key), arrays) for key, arrays in observer.kept.items())
        if failed is not None:
            self.place = Place(step, *(observer.failed or ("forward", "")))
            raise failed
        yield from self._pass_places(step, "", computed)

        self.place = Place(step, "compiled forward and backward")
        computed = self._pass(self._compiled_gradients, step, carry, batch)
        yield from self._pass_places(step, "compiled ", computed)

        self.place = Place(step, "update")
        self.grads = computed["grads"] if grads is None else grads
        updated = self._updated(step, carry)
        yield from self._layers(step, "update", "weights", updated["params"])
        for name, slot in zip(self._steps.optimizer.slots, updated["slots"], strict=True):
            yield from self._layers(step, "update", name, slot)
        self.carry = {**updated, "state": computed["state"]}

    def fit(self, step: int, batch: Samples) -> tuple[float, dict[Place, Arrays]]:
        """Take one step of `fit` from where the last one ended; return its loss and the new weights."""
        self.place = Place(step, "fit")
        settings = {"batch_size": len(batch), "sample_weight": batch.weight, "shuffle": False, "verbose": 0}
        try:
            loss = self.fitted.fit(batch.x, batch.y, **settings).history["loss"][0]
        except NonFiniteError:  # where it comes from is what the trace shows
            loss = math.nan
        weights = self._layers(step, "fit", "weights", self._host(self.fitted.params))
        return loss, dict(weights)

    # What is computed

    def _pass(self, gradients, step: int, carry: dict, batch: Samples) -> dict:
        """Return gradients, new state and loss, by `steps.gradients`, observed or compiled."""
        placed, runner = self._placed(carry), self.model.engine
        with self.backend.scope(self.model.dtype):
            grads, state, sums = gradients(
                placed["params"], placed["state"], runner.place(batch), self._row(step)
            )
        computed = self._host({"grads": grads, "state": state, "loss": sums["loss"]["loss"]})
        return {**computed, "loss": computed["loss"] / len(batch)}

    def _updated(self, step: int, carry: dict) -> dict:
        """Return new weights and slots."""
        placed = self._placed(carry)
        with self.backend.scope(self.model.dtype):
            grads = tree.map(self.backend.asarray, self.grads)
            params, slots = self._compiled_update(grads, placed["slots"], placed["params"], self._row(step))
        return self._host({"params": params, "slots": slots})

    def _update(self, grads, slots, params, row):
        scalars = {name[5:]: value for name, value in row.items() if name.startswith("rate_")}
        return self._steps.optimizer.update(grads, slots, params, scalars, self.backend)

    def _row(self, step: int) -> dict:
        """Return what the host computes for a step, as `fit` hands it to the step function."""
        first = self._first_step + step - 1
        row = self.backend.device_put(self.model.engine.scalars(first, first + 1))
        return {name: values[0] for name, values in row.items()}

    # Between host and backend

    def _placed(self, carry: dict) -> dict:
        """Return a carry of the host on the backend, laid out as `fit` has it."""
        self.model.params, self.model.state = carry["params"], carry["state"]
        self.model.set_slots(carry["slots"])
        return self.model.carry

    def _host(self, arrays) -> Any:
        if isinstance(arrays, (list, tuple)):
            return [self._host(part) for part in arrays]
        if isinstance(arrays, dict):
            return {name: self._host(part) for name, part in arrays.items()}
        with self.backend.scope(self.model.dtype):
            return self.backend.to_numpy(arrays)

    # Places

    def _pass_places(self, step, prefix, computed):
        yield from self._layers(step, f"{prefix}forward", "state", computed["state"])
        yield Place(step, f"{prefix}forward", "loss", "mean with penalties"), {"": computed["loss"]}
        yield from self._layers(step, f"{prefix}backward", "gradient with penalties", computed["grads"])

    def _layers(self, step, stage, what, arrays) -> Iterator[tuple[Place, Arrays]]:
        """Yield the arrays of each layer of a tree."""
        layers: dict[str, Arrays] = {}
        for path in filter(None, tree.paths(arrays)):
            name = "/".join(path[:-1]) or snake_case(type(self.model.network).__name__)
            layers.setdefault(name, {})[path[-1]] = tree.at(arrays, path)
        for name, own in layers.items():
            yield Place(step, stage, name, what), own
