"""The text of `NonFiniteError`: the first array of a training step that is not finite, and the likely cause.

The step runs layer by layer under an `Observer`. The first array that is not finite, in the order of
computation, is the place of the error; the largest values of other arrays show the likely cause.
"""

import numpy as np

from nnx import tree
from nnx.inspect.observe import Observer
from nnx.registry import is_builtin

LARGE_INPUT = 1e3
"""Larger inputs and targets should be scaled: layers and their starting weights are made for values near 1."""
LARGE_WEIGHT = 1e3
"""Larger weights have diverged: they start below 1."""
LARGE_OUTPUT = 1e6
"""Larger outputs alone can make a loss overflow."""
LARGE_GRADIENT = 1e6
"""Larger gradients explode."""
LARGE_HALF = 256.0
"""The square of this overflows float16."""

RATE = "the learning rate is too large: try a smaller learning rate, a tenth of it, or clipnorm=1.0 in the optimizer"
INPUTS = "the inputs are not scaled: bring each to mean 0 and deviation 1 (scikit-learn's StandardScaler)"
TARGETS = "the targets are not scaled: bring them to mean 0 and deviation 1"
HALF = "float16 holds nothing beyond 65504: use dtype='bfloat16' or 'float32'"
GRADIENTS = "gradients explode: give the optimizer clipnorm=1.0, or try a smaller learning rate"


def explain(runner, run, i: int, after: dict, sums: dict) -> str:
    """Return place and cause of the error in step `i` of a `nonfinite_guard.Run`; the model is as before that step.

    `after` is the carry after the step, and `sums` are its sums of loss and metrics.
    """
    with runner.backend.scope(runner.model.dtype):
        where, sizes, causes = _Step(runner, run, i, after, sums).place()
    largest = ", ".join(f"{name} {value:.3g}" for name, value in sizes.items())
    is_usable = sizes["weight"] <= LARGE_WEIGHT
    then = "and can go on" if is_usable else "but they are too large to go on from: build it anew"
    return (
        f"in {run.where(i)}, {where}.\n"
        f"Largest values: {largest}.\n"
        f"Likely cause: {'; or '.join(causes)}.\n"
        f"The model has the weights from before that step, {then}."
    )


class _Step:
    """One training step, run again layer by layer."""

    def __init__(self, runner, run, i, after, sums):
        self.runner, self.model, self.backend = runner, runner.model, runner.backend
        steps, carry = runner.steps, self.model.carry
        batch, scalars = run.batch(steps, i)
        scale = carry.get("scale")
        self.is_scaled = scale is not None
        observer = Observer(self.backend)
        grads, state, _ = steps.gradients(
            carry["params"], carry["state"], batch, scalars, scale and scale["factor"], observer
        )
        self.records, self.layers = observer.records, observer.layers
        self.grads, self.state, self.sums, self.params = map(
            self._host, (grads, state, sums["loss"], after["params"])
        )
        self.rate = float(np.asarray(scalars["rate_learning_rate"]))
        weights = self._host(carry["params"])
        self.began_finite = _is_finite(weights) and _is_finite(self._host(carry["state"]))
        self.sizes = {  # largest absolute values
            "input": _largest(self._host(batch["x"])),
            "target": _largest(self._host(batch["y"])),
            "weight": _largest(weights),
        }

    def _host(self, arrays):
        return tree.map(self.backend.to_numpy, arrays)

    def place(self) -> tuple[str, dict[str, float], list[str]]:
        """Return the place of the first array that is not finite, largest values, and likely causes."""
        where, causes = self._forward() or self._loss() or self._backward() or self._update()
        if not self.began_finite:
            causes = ["the weights held it before this step: build the model anew, or load other weights"]
        return where, {**self.sizes, "learning rate": self.rate}, causes

    # In the order of computation. Each returns the place and its causes, or None if all values are finite.

    def _forward(self):
        before = self.sizes["input"]
        for (stage, name, _), arrays in self.records.items():
            if stage == "backward":
                break
            if not _is_finite(arrays):
                self.sizes["output of the layers before" if name != "loss" else "output"] = before
                if name == "loss":
                    where = f"the loss is not finite ({_count(arrays)}), of outputs that are finite"
                    return where, self._loss_causes(before)
                where = f"the output of layer {self._named(name)} is not finite ({_count(arrays)})"
                return where, self._layer_causes(name, before)
            before = _largest(arrays) if name != "loss" else before
        return None

    def _loss(self):
        if not _is_finite(self.state):
            path = next(p for p in tree.paths(self.state) if not _is_finite(tree.at(self.state, p)))
            return f"{'/'.join(path)}, a moving average, is not finite", self._size_causes() or [INPUTS]
        if _is_finite(self.sums):
            return None
        where = "the loss is not finite, of finite values for each sample"
        return where, self._size_causes() or ["a penalty of a layer, or a sum that is too large"]

    def _backward(self):
        if self.is_scaled:  # loss scaling skips steps whose gradients overflow in float16
            return None
        before, whose = 0.0, {"dL/dweights": "its weights", "dL/dinput": "its input"}
        for (stage, name, what), arrays in self.records.items():
            if stage == "forward":
                continue
            if not _is_finite(arrays):
                self.sizes["gradient before"] = before
                layer = "the loss" if name == "loss" else f"layer {self._named(name)}"
                where = f"the gradient of {layer} by {whose[what.split(' #')[0]]} is not finite ({_count(arrays)})"
                return where, self._gradient_causes(name, before)
            before = max(before, _largest(arrays))
        if not _is_finite(self.grads):
            path = next(p for p in tree.paths(self.grads) if not _is_finite(tree.at(self.grads, p)))
            where = f"the gradient by {'/'.join(path)} with its penalty is not finite"
            return where, self._size_causes() or [RATE]
        return None

    def _update(self):
        self.sizes["gradient"] = _largest(self.grads)
        wrong = [p for p in tree.paths(self.params) if not _is_finite(tree.at(self.params, p))]
        if self.runner.communicator is not None and self.sizes["gradient"] < LARGE_GRADIENT:
            return "another process has a value that is not finite in its shard of the batch", [
                "see its message"
            ]
        if wrong:
            causes = self._size_causes()
            where = f"the updated weights {'/'.join(wrong[0])} are not finite, of a gradient that is finite"
            return where, causes if RATE in causes else [RATE, *causes]
        where = "the loss is not finite in the step as it is compiled; layer by layer all numbers are"
        return where, self._size_causes() or ["values at the edge of what the precision holds"]

    # Causes

    def _size_causes(self) -> list[str]:
        """Return the causes that large inputs, targets or weights show."""
        causes = {INPUTS: self.sizes["input"] > LARGE_INPUT, TARGETS: self.sizes["target"] > LARGE_INPUT,
                RATE: self.sizes["weight"] > LARGE_WEIGHT}  # fmt: skip
        return [cause for cause, holds in causes.items() if holds]

    def _layer_causes(self, name, before) -> list[str]:
        causes = [cause for cause in self._size_causes() if cause != TARGETS]
        if self.model.dtype == "float16" and before > LARGE_HALF:
            causes.append(HALF)
        if causes:
            return causes
        if before > LARGE_OUTPUT:
            return [
                f"values that grow from layer to layer: normalise them (BatchNormalization) before {name}"
            ]
        whose = "" if is_builtin(self.layers[name]) else " of your own"
        return [
            f"what the layer{whose} computes: a logarithm or root of a number below 0, a division by 0; keep its "
            f"input away from these, or add a small number"
        ]

    def _loss_causes(self, largest_output) -> list[str]:
        causes = self._size_causes()
        if causes or largest_output > LARGE_OUTPUT:
            return causes or [RATE]
        loss = type(self.model.loss).__name__
        return [
            f"a logarithm of 0 or a division by 0 in the loss {loss}: keep outputs and targets away from it"
        ]

    def _gradient_causes(self, name, before) -> list[str]:
        if before > LARGE_GRADIENT:
            return [*self._size_causes(), GRADIENTS]
        what = "the loss" if name == "loss" else "the layer"
        return [
            f"a derivative that is infinite where {what} is finite, as that of a root or a norm at 0, or a division by "
            f"0 in its pullback: add a small number inside",
            *self._size_causes(),
        ]

    def _named(self, name: str) -> str:
        return f"{name} ({type(self.layers[name]).__name__})"


def _is_finite(arrays) -> bool:
    return all(np.isfinite(array).all() for array in _as_float64(arrays))


def _count(arrays) -> str:
    """Return how many of the values are not finite, in words."""
    values = np.concatenate([array.ravel() for array in _as_float64(arrays)])
    wrong, nan = int((~np.isfinite(values)).sum()), int(np.isnan(values).sum())
    kinds = "nan" if nan == wrong else "infinite" if nan == 0 else "nan or infinite"
    return f"{wrong:,} of {values.size:,} values {kinds}"


def _largest(arrays) -> float:
    """Return the largest finite absolute value, or 0."""
    sizes = [np.abs(array) for array in _as_float64(arrays)]
    return max((float(np.max(size, where=np.isfinite(size), initial=0.0)) for size in sizes), default=0.0)


def _as_float64(arrays) -> list[np.ndarray]:
    return [np.asarray(array, dtype=np.float64) for array in tree.leaves(arrays)]
