"""Statistics of each layer on some samples, and advice on known obstacles to training.

`nnx.diagnose(model, X, y)` runs one observed training step on a copy of the model, and prints a table and
advice. The thresholds are the constants below, with their sources.
"""

import copy
import math
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnx import activations, losses, tree
from nnx.data.samples import Samples
from nnx.inspect.observe import Observer
from nnx.inspect.suitability import unsuited
from nnx.layers.base import Layer

__all__ = ["Diagnosis", "Row", "diagnose"]

DEAD = 0.4
"""Share of dead units in a layer. Source: Karpathy, CS231n notes, "The dying ReLU problem" (2015)."""
SATURATED, SATURATION = 0.5, 0.99
"""Share of the values of tanh or sigmoid in the outer hundredth of its range. Source: Glorot and Bengio,
"Understanding the difficulty of training deep feedforward neural networks" (2010), section 3."""
GRADIENT_RATIO = 1e-3
"""Gradient of the first layer divided by that of the last, or the inverse."""
LARGE_GRADIENT = 1e3
"""Norm of a layer's gradient, if inputs and targets are scaled."""
UPDATE, UPDATE_TOO_SMALL, UPDATE_TOO_LARGE = 1e-3, 1e-6, 0.1
"""Norm of an update divided by that of the weights. Source: Karpathy, CS231n notes, "Ratio of weights:updates"."""
LARGE_FEATURE, SMALL_FEATURES = 10.0, 0.01
"""Mean or deviation of one feature above the first; deviations of all features below the second.
Source: LeCun et al., "Efficient BackProp" (1998), section 4.3: mean 0, deviation 1."""
LARGE_TARGET = 10.0
CHANCE, STEPS_OF_CHANCE = 0.98, 100
"""The loss, divided by that of the best constant output, after so many steps."""

HEADER = ("layer", "mean", "deviation", "dead", "saturated", "gradient", "update")
WIDTH = 96


@dataclass
class Row:
    """Statistics of a layer in one training step.

    Attributes
    ----------
    layer : str
        The path of the layer in the model.
    mean, deviation : float
        Mean and standard deviation of the output.
    dead : float, optional
        For a ReLU, the share of units that are zero for all samples.
    saturated : float, optional
        For tanh or sigmoid, the share of values near the ends of the range.
    gradient : float, optional
        The norm of the gradient of the weights.
    update : float, optional
        The norm of the optimizer's update divided by that of the weights.
    """

    layer: str
    mean: float
    deviation: float
    dead: float | None = None
    saturated: float | None = None
    gradient: float | None = None
    update: float | None = None


@dataclass
class Diagnosis:
    """The result of `diagnose`: a row for each layer, and advice. `str` returns both as text."""

    rows: list[Row]
    advice: list[str]
    loss: float

    def __str__(self):
        table = _aligned([HEADER, *(_cells(row) for row in self.rows)])
        advice = self.advice or [f"Nothing stands out. Loss {self.loss:.4g}."]
        return "\n".join(
            [*table, "", *(textwrap.fill(text, WIDTH, subsequent_indent="  ") for text in advice)]
        )


def diagnose(model, X, y, sample_weight=None, *, samples: int = 512, print_fn=print) -> Diagnosis:
    """Print statistics of each layer on some samples, and advice if training may fail.

    Parameters
    ----------
    model : Model
        Compiled; trained or not. It is not changed.
    X, y, sample_weight : array
        As for `fit`.
    samples : int
        The number of samples to use, spread evenly.
    print_fn : function
        Prints the text; `lambda text: None` prints nothing.

    Returns
    -------
    Diagnosis
        With `rows`, one for each layer, `advice` and `loss`.

    Examples
    --------
    >>> import nnx
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(100, 4))
    >>> X[:, 2] *= 5000
    >>> model = nnx.Sequential([nnx.layers.Dense(16, "tanh"), nnx.layers.Dense(1)], seed=0)
    >>> model.compile("adam", "mse")
    >>> diagnosis = nnx.diagnose(model, X, X[:, 0], print_fn=lambda text: None)
    >>> print(diagnosis.advice[0].partition(",")[0])
    Unscaled input: feature 2 goes up to 15532
    """
    model._require_compiled()
    prepared = model.check_batch((X, y, sample_weight))
    chosen = np.unique(np.linspace(0, len(prepared) - 1, min(samples, len(prepared))).astype(int))
    batch = prepared.map_arrays(lambda array: np.ascontiguousarray(array[chosen]))
    step = _ObservedStep(model, batch)
    rows = step.rows()
    on_scale = _on_inputs(batch.x) + _on_targets(model, batch)
    unsuited_outputs = unsuited(model.network, model.loss, model.output_shape, batch.y, batch.weight)
    advice = [
        *(f"Unsuited output: {text}." for text in unsuited_outputs),
        *on_scale,
        *_on_rows(rows, is_scaled=not on_scale),
        *_on_chance(model, batch, step.loss),
    ]
    diagnosis = Diagnosis(rows, advice, step.loss)
    print_fn(str(diagnosis))
    return diagnosis


class _ObservedStep:
    """One training step of a copy of a model, observed layer by layer."""

    def __init__(self, model, samples: Samples):
        self.model = copy.deepcopy(model)
        self.model.loss_scale = None
        backend, runner = self.model.backend, self.model.engine
        steps, observer = runner.steps, Observer(backend)
        with backend.scope(model.dtype):
            batch, step = runner.place(samples), self.model.step
            scalars = runner.scalars(step, step + 1, runner.shard(len(samples)))
            first = {name: values[0] for name, values in backend.device_put(scalars).items()}
            carry = self.model.carry
            self.before = tree.map(backend.to_numpy, carry["params"])
            grads, _, _ = steps.gradients(carry["params"], carry["state"], batch, first, None, observer)
            self.grads = tree.map(backend.to_numpy, grads)
            carry, _ = steps.train(carry, None, backend.device_put(scalars), {"samples": batch}, 0, 1)
            self.after = tree.map(backend.to_numpy, carry["params"])
        self.network, self.records, self.layers = steps.network, observer.records, observer.layers
        logs = model.evaluate(samples.x, samples.y, sample_weight=samples.weight, verbose=0, return_dict=True)
        self.loss = logs["loss"]

    def rows(self) -> list[Row]:
        """Return a row for each layer, in the order of computation."""
        rows = []
        for (stage, name, what), arrays in self.records.items():
            if stage == "forward" and name != "loss":
                rows.append(self._row(name, list(arrays.values()), is_first=what == "output"))
        return rows

    def _row(self, name: str, outputs, is_first: bool) -> Row:
        values = np.concatenate([np.asarray(y, dtype=np.float64).ravel() for y in outputs])
        row = Row(name, float(values.mean()), float(values.std()))
        layer = self.layers[name]
        activation = _activation(layer)
        if type(activation) is activations.ReLU:
            row.dead = float(np.mean((outputs[0] == 0).reshape(-1, outputs[0].shape[-1]).all(axis=0)))
        ends = _ends(activation)
        if ends is not None:
            low, high = ends
            centred = (values - (low + high) / 2) / ((high - low) / 2)
            row.saturated = float(np.mean(np.abs(centred) > SATURATION))
        path = [] if layer is self.network else name.split("/")
        weights = _own(self.before, path) if is_first else {}
        if weights:
            row.gradient = _norm(_own(self.grads, path))
            size, after = _norm(weights), _own(self.after, path)
            moved = _norm({key: after[key] - weights[key] for key in weights})
            row.update = moved / size if size else None
        return row


def _activation(layer: Layer) -> Any:
    """Return the activation whose values are the layer's output, if it has one."""
    if hasattr(layer, "recurrent_activation"):
        return None
    return getattr(layer, "activation", None)


def _ends(activation) -> tuple[float, float] | None:
    """Return the smallest and the largest value of an activation that saturates at both ends."""
    if type(activation) is activations.Tanh:
        return -1.0, 1.0
    return (0.0, 1.0) if type(activation) in (activations.Sigmoid, activations.HardSigmoid) else None


def _own(values, path) -> dict:
    """Return the arrays of the layer at a path by name, without those of inner layers."""
    for key in path:
        values = values.get(key, {})
    return {key: value for key, value in values.items() if not isinstance(value, dict)}


def _norm(arrays: dict) -> float:
    return math.sqrt(sum(float(np.sum(np.square(array, dtype=np.float64))) for array in arrays.values()))


# Advice


def _on_inputs(x, name: str = "") -> list[str]:
    if isinstance(x, (dict, tuple)):
        items = x.items() if isinstance(x, dict) else enumerate(x)
        return [text for key, array in items for text in _on_inputs(array, f" of input {key!r}")]
    if x.dtype.kind != "f":  # category indices
        return []
    values = x.astype(np.float64)
    if values.ndim != 2:
        mean, deviation = values.mean(), values.std()
        if max(abs(mean), deviation) <= LARGE_FEATURE:
            return []
        return [
            f"Unscaled input: the values{name} have mean {mean:.4g} and deviation {deviation:.4g}. Divide them by "
            f"their largest value (images: by 255), or put a BatchNormalization first."
        ]
    advice, means, deviations = [], values.mean(axis=0), values.std(axis=0)
    large = np.flatnonzero((np.abs(means) > LARGE_FEATURE) | (deviations > LARGE_FEATURE))
    constant = np.flatnonzero((deviations == 0) & (means != 0))
    scale = "Bring features to mean 0 and deviation 1: scikit-learn's StandardScaler."
    large = np.asarray([k for k in large if deviations[k] > 0], dtype=int)
    if len(large):
        worst = large[np.argmax(np.maximum(np.abs(means[large]), deviations[large]))]
        others = f", the largest of {len(large)} such features," if len(large) > 1 else ""
        advice.append(
            f"Unscaled input: feature {worst}{name}{others} goes up to {np.abs(values[:, worst]).max():.5g}, of mean "
            f"{means[worst]:.4g} and deviation {deviations[worst]:.4g}. {scale}"
        )
    elif deviations.any() and deviations.max() < SMALL_FEATURES:
        advice.append(
            f"Unscaled input: no feature{name} deviates by more than {deviations.max():.2g}. {scale}"
        )
    if len(constant):
        named = ", ".join(map(str, constant[:8])) + (", ..." if len(constant) > 8 else "")
        advice.append(
            f"Constant input: feature{'s' * (len(constant) > 1)} {named}{name} "
            f"{'have' if len(constant) > 1 else 'has'} the same value in all samples and tells nothing: leave it out."
        )
    return advice


_REGRESSION = (
    losses.MeanSquaredError, losses.MeanAbsoluteError, losses.Huber, losses.LogCosh, losses.Quantile
)  # fmt: skip


def _on_targets(model, samples: Samples) -> list[str]:
    if not isinstance(model.loss, _REGRESSION) or isinstance(samples.y, (dict, tuple)):
        return []
    mean, deviation = float(np.mean(samples.y)), float(np.std(samples.y))
    if max(abs(mean), deviation) <= LARGE_TARGET:
        return []
    return [
        f"Unscaled targets: mean {mean:.4g}, deviation {deviation:.4g}, while outputs start near 0. Train on "
        f"(y - mean) / deviation: scikit-learn's TransformedTargetRegressor."
    ]


def _on_rows(rows: list[Row], is_scaled: bool) -> list[str]:
    advice = []
    for row in rows:
        if not (math.isfinite(row.mean) and math.isfinite(row.deviation)):
            return [f"The output of layer {row.layer} is not finite: look at it first."]
    for row in rows:
        if row.dead is not None and row.dead > DEAD:
            advice.append(
                f"Dead units: {row.dead:.0%} of those of layer {row.layer} are 0 for every sample and learn nothing. "
                f"Take a smaller learning rate, he_normal kernels, or leaky_relu."
            )
        if row.saturated is not None and row.saturated > SATURATED:
            advice.append(
                f"Saturated: {row.saturated:.0%} of the values of layer {row.layer} are at the ends of its "
                f"activation, where it has no slope. Scale its input (BatchNormalization before it), take smaller "
                f"starting weights, or relu."
            )
    return [*advice, *_on_gradients(rows, is_scaled), *_on_updates(rows)]


def _on_gradients(rows: list[Row], is_scaled: bool) -> list[str]:
    rows_with_weights = [row for row in rows if row.gradient is not None]
    if not rows_with_weights:
        return []
    first, last = rows_with_weights[0], rows_with_weights[-1]
    low, high = first.gradient or 0.0, last.gradient or 0.0
    largest = max(rows_with_weights, key=lambda row: row.gradient or 0.0)
    if low == 0 and any((row.dead or 0.0) > DEAD for row in rows):
        return []  # the dead units explain it
    if low == high == 0:
        return ["No gradient: those of the first and of the last layer are 0, and nothing is learnt."]
    if low < GRADIENT_RATIO * high:
        return [
            f"Vanishing gradients: {low:.1e} in {first.layer}, {high:.1e} in {last.layer}. Take relu or gelu in place "
            f"of tanh and sigmoid, he_normal kernels, BatchNormalization, or layers.Residual."
        ]
    if high < GRADIENT_RATIO * low or (is_scaled and (largest.gradient or 0.0) > LARGE_GRADIENT):
        return [
            f"Exploding gradients: {largest.gradient:.1e} in {largest.layer}, {high:.1e} in {last.layer}. Give the "
            f"optimizer clipnorm=1.0, take smaller starting weights, or BatchNormalization."
        ]
    return []


def _on_updates(rows: list[Row]) -> list[str]:
    updated = [row for row in rows if row.update is not None]
    if not updated:
        return []
    largest = max(updated, key=lambda row: row.update or 0.0)
    largest_update = largest.update or 0.0
    if largest_update > UPDATE_TOO_LARGE:
        share = f"{largest_update:.0%} of" if largest_update < 100 else f"{largest_update:.1e} times"
        return [
            f"Large steps: one step changes the weights of layer {largest.layer} by {share} their size; about "
            f"{UPDATE:.1%} is usual. Try a smaller learning rate."
        ]
    if largest_update < UPDATE_TOO_SMALL:
        return [
            f"Small steps: one step changes no layer's weights by more than {largest_update:.0e} of their size; "
            f"about {UPDATE:.0e} is usual. Try a larger learning rate."
        ]
    return []


def _on_chance(model, samples: Samples, loss: float) -> list[str]:
    chance = _chance(model.loss, samples.y)
    if chance is None or model.step < STEPS_OF_CHANCE or loss < CHANCE * chance:
        return []
    return [
        f"Nothing learnt: after {model.step} steps the loss is {loss:.4g}, and {chance:.4g} for an answer that ignores "
        f"the input. Check that each y belongs to its X; try another learning rate, or a larger network."
    ]


def _chance(loss, y) -> float | None:
    """Return the loss of the best constant output; None if that is not known."""
    if isinstance(y, (dict, tuple)):
        return None
    y = np.asarray(y)
    if type(loss) is losses.MeanSquaredError:
        return float(np.mean(np.var(y, axis=0, dtype=np.float64)))
    if type(loss) is losses.SparseCategoricalCrossentropy and y.ndim <= 2:
        shares = np.unique(y, return_counts=True)[1] / y.size
    elif type(loss) is losses.CategoricalCrossentropy and y.ndim == 2:
        shares = y.mean(axis=0)
    elif type(loss) is losses.BinaryCrossentropy:
        p = np.clip(y.reshape(len(y), -1).mean(axis=0), 1e-12, 1 - 1e-12)
        return float(np.mean(-p * np.log(p) - (1 - p) * np.log(1 - p)))
    else:
        return None
    shares = shares[shares > 0]
    return float(-np.sum(shares * np.log(shares)))


# The table


def _cells(row: Row) -> tuple[str, ...]:
    share = lambda value: "-" if value is None else f"{value:.0%}"  # noqa: E731
    number = lambda value: "-" if value is None else f"{value:.1e}"  # noqa: E731
    return (row.layer, f"{row.mean:.3g}", f"{row.deviation:.3g}", share(row.dead), share(row.saturated),
            number(row.gradient), number(row.update))  # fmt: skip


def _aligned(rows) -> list[str]:
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return [
        "  ".join([name.ljust(first), *(cell.rjust(w) for cell, w in zip(cells, others, strict=True))])
        for name, *cells in rows
    ]
