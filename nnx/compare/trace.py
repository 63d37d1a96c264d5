"""The training steps of one backend, as a sequence of places and the arrays computed there."""

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
    """A place in a training step."""

    step: int
    stage: str
    """`"forward"`, `"backward"`, the same after `"compiled "`, `"update"` or `"fit"`."""
    layer: str = ""
    what: str = ""

    def __str__(self):
        layer = self.layer and f"layer {self.layer}"
        return ", ".join(filter(None, (f"step {self.step}", self.stage, layer, self.what)))


Arrays = dict[str, np.ndarray]
"""The arrays of one place by name: a layer's kernel and bias, for example; a single array is named ""."""


class Tracer:
    """A backend with two copies of a model: one to trace, one to fit."""

    def __init__(self, start: Model, backend: Backend):
        self.backend, self.name = backend, backend.name
        self.model, self.fitted = (copy.deepcopy(start).to(backend) for _ in range(2))
        self.fitted._loss_is_checked = True  # no warning about random targets
        self.place = Place(1, "forward")
        """The current place, for error messages."""
        self.carry = self._host(self.model.carry)
        """Weights, state and slots on the host: after `trace`, those of the next step."""
        self.grads: dict = {}
        """The gradients that the optimizer got in `trace`, on the host."""
        self._steps = self.model.engine.steps
        self._first_step = self.model.step
        self._compiled_gradients = backend.compile(self._steps.gradients)
        self._compiled_update = backend.compile(self._update)

    def trace(self, step: int, carry: dict, batch: Samples, grads=None) -> Iterator[tuple[Place, Arrays]]:
        """Yield each place of a step that starts from `carry`, and its arrays: first eager, then compiled.

        The optimizer gets `grads`, by default the computed gradients.
        """
        self.place, failed = Place(step, "forward"), None
        observer = Observer(self.backend)
        try:
            computed = self._pass(partial(self._steps.gradients, observer=observer), step, carry, batch)
        except Exception as error:
            failed, computed = error, {}
        yield from ((Place(step, *key), arrays) for key, arrays in observer.records.items())
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
        """Return the loss and the new weights of the next step of `fit`."""
        self.place = Place(step, "fit")
        settings = {"batch_size": len(batch), "sample_weight": batch.weight, "shuffle": False, "verbose": 0}
        try:
            loss = self.fitted.fit(batch.x, batch.y, **settings).history["loss"][0]
        except NonFiniteError:  # the trace shows its origin
            loss = math.nan
        weights = self._layers(step, "fit", "weights", self._host(self.fitted.params))
        return loss, dict(weights)

    # Computation

    def _pass(self, gradients, step: int, carry: dict, batch: Samples) -> dict:
        """Return gradients, new state and loss; `gradients` is `steps.gradients`, observed or compiled."""
        carry, runner = self._on_device(carry), self.model.engine
        with self.backend.scope(self.model.dtype):
            grads, state, sums = gradients(
                carry["params"], carry["state"], runner.place(batch), self._scalars(step)
            )
        computed = self._host({"grads": grads, "state": state, "loss": sums["loss"]["loss"]})
        return {**computed, "loss": computed["loss"] / len(batch)}

    def _updated(self, step: int, carry: dict) -> dict:
        """Return new weights and slots."""
        carry = self._on_device(carry)
        with self.backend.scope(self.model.dtype):
            grads = tree.map(self.backend.asarray, self.grads)
            params, slots = self._compiled_update(grads, carry["slots"], carry["params"], self._scalars(step))
        return self._host({"params": params, "slots": slots})

    def _update(self, grads, slots, params, scalars):
        rates = {name[5:]: value for name, value in scalars.items() if name.startswith("rate_")}
        return self._steps.optimizer.update(grads, slots, params, rates, self.backend)

    def _scalars(self, step: int) -> dict:
        """Return the scalars of a step, which the host computes, as `fit` passes them to the step function."""
        first = self._first_step + step - 1
        scalars = self.backend.device_put(self.model.engine.scalars(first, first + 1))
        return {name: values[0] for name, values in scalars.items()}

    # Transfers

    def _on_device(self, carry: dict) -> dict:
        """Return a carry from the host on the backend, in the layout of `fit`."""
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
