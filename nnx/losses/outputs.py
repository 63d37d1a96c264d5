"""Several outputs: a loss and metrics for each output of a model that ends in `layers.Outputs`."""

import copy
from typing import Any

from nnx import metrics
from nnx.errors import raised_by
from nnx.losses.base import Loss, get, register
from nnx.registry import REGISTRIES, suggest
from nnx.shapes import describe_shape, is_single


@register()
class OutputLosses(Loss):
    """The weighted sum of the losses of several outputs; `compile(loss={"price": "mse", ...})` makes one.

    Parameters
    ----------
    losses : dict of output to loss, or a list of losses in the order of the outputs
        An output that is not in the dict is not trained.
    weights : dict or list of float, optional
        The factor of each loss; by default 1.

    Examples
    --------
    >>> import nnx
    >>> heads = {"price": nnx.layers.Dense(1), "kind": nnx.layers.Dense(3, "softmax")}
    >>> model = nnx.Sequential([nnx.layers.Outputs(heads)])
    >>> model.compile("adam", loss={"price": "mse", "kind": "sparse_categorical_crossentropy"})
    >>> logs = model.train_on_batch([[1.0, 2.0]], {"price": [3.0], "kind": [2]}, return_dict=True)
    >>> list(logs)
    ['loss', 'price_loss', 'kind_loss']
    """

    each: dict[Any, Loss]
    factors: dict[Any, float]

    def __init__(self, losses, weights=None):
        self.losses, self.weights = losses, weights
        self.each = {key: get(loss) for key, loss in _items(losses)}
        given = dict.fromkeys(self.each, 1.0) if weights is None else dict(_items(weights))
        for key in given:
            if key not in self.each:
                raise ValueError(f"loss_weights: {suggest('output', str(key), map(str, self.each))}")
        self.factors = {key: float(given.get(key, 1.0)) for key in self.each}

    def with_each(self, each: dict) -> "OutputLosses":
        """Return the same weighted sum of other losses."""
        changed = copy.copy(self)
        changed.each = each
        return changed

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(f"{output_name(key)}_loss" for key in self.each)

    def total(self, ctx, target, output, weight, mask=None):
        results = {}
        for key, loss in self.each.items():
            part = None if mask is None else mask[key]
            try:
                results[key] = loss.total(ctx, target[key], output[key], weight, part)
            except Exception as error:
                raised_by(error, "loss", getattr(loss, "function", loss), f" of output {output_name(key)}")
                raise
        total = sum(value * self.factors[key] for key, (value, _, _) in results.items())

        def gradient():
            parts = {key: pull() * self.factors[key] for key, (_, pull, _) in results.items()}
            if isinstance(output, dict):
                return {key: parts[key] if key in parts else ctx.xp.zeros_like(output[key]) for key in output}
            return tuple(parts[i] if i in parts else ctx.xp.zeros_like(y) for i, y in enumerate(output))

        return total, gradient, {f"{output_name(key)}_loss": value for key, (value, _, _) in results.items()}

    def steps_counted(self, xp, output, mask, value) -> dict:
        counted = {}
        for key, loss in self.each.items():
            name, part = f"{output_name(key)}_loss", None if mask is None else mask[key]
            for _, own, count in loss.steps_counted(xp, output[key], part, value[name]).values():
                counted[name] = self.factors[key], own, count
        return counted

    def check_target(self, y, out_shape) -> Any:
        """Return the checked targets of the outputs that have a loss."""
        outputs = _keys(out_shape)
        for key in self.each:
            if key not in outputs:
                raise ValueError(f"loss: {suggest('output', str(key), map(str, outputs))}")
        if isinstance(y, (list, tuple)) and not isinstance(out_shape, dict):
            y = dict(enumerate(y))
        if not isinstance(y, dict) or not set(self.each) <= set(y):
            raise ValueError(
                f"y must hold the targets of each output that has a loss, "
                f"{', '.join(repr(key) for key in self.each)}, got "
                f"{f'those of {list(y)}' if isinstance(y, dict) else type(y).__name__}"
            )

        def check(loss, shape, key):
            try:
                return loss.check_target(y[key], shape)
            except ValueError as error:
                raise ValueError(f"output {key!r}: {error}") from None

        return self.map(check, out_shape, {key: key for key in self.each})

    def map(self, function, *trees) -> Any:
        """Return `function(loss, *entries of the trees)` for each output with a loss."""
        results = {key: function(loss, *(tree[key] for tree in trees)) for key, loss in self.each.items()}
        return tuple(results.values()) if isinstance(trees[0], tuple) else results


@REGISTRIES["metric"].register()
class OutputMetric(metrics.Metric):
    """A metric of one of several outputs."""

    def __init__(self, output, metric, name: str | None = None):
        self.output, self.metric = output, metrics.get(metric)
        super().__init__(name or f"{output_name(output)}_{self.metric.name}")
        self.higher_is_better = self.metric.higher_is_better

    def takes_probabilities(self, output):
        return self.metric.takes_probabilities(output[self.output])

    def update_masked(self, ctx, target, output, weight, mask):
        mask = None if mask is None else mask[self.output]
        return self.metric.update_masked(ctx, target[self.output], output[self.output], weight, mask)

    def result(self, sums):
        return self.metric.result(sums)


def as_loss(loss, weights=None) -> Loss:
    """Return the loss for an argument of `compile`: one loss, or several by output."""
    if isinstance(loss, (dict, list, tuple)) and not _is_configuration(loss):
        return OutputLosses(loss, weights)
    if weights is not None:
        raise ValueError("loss_weights needs a loss for each output, as loss={'price': 'mse', 'kind': ...}")
    return get(loss)


def as_metrics(given, weighted: bool) -> list[tuple[metrics.Metric, bool]]:
    """Return (metric, weighted) pairs for an argument of `compile`: a list, or lists by output."""
    if given is None:
        return []
    several = isinstance(given, dict) or (
        isinstance(given, (list, tuple)) and any(isinstance(item, (list, tuple)) for item in given)
    )
    if several:
        pairs = [
            (key, metric)
            for key, chosen in _items(given)
            for metric in (chosen if isinstance(chosen, (list, tuple)) else [chosen])
        ]
        return [(OutputMetric(key, metric), weighted) for key, metric in pairs]
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"metrics must be a list of names or metrics, or lists by output, got {given!r}")
    return [(metrics.get(metric), weighted) for metric in given]


def expect_outputs(loss, metrics_used, out_shape) -> None:
    """Raise a ValueError unless loss and metrics fit a model of one output, or of several."""
    if not is_single(out_shape) and not isinstance(loss, OutputLosses):
        names = ", ".join(f"{key!r}: ..." for key in _keys(out_shape))
        raise ValueError(
            f"the model has several outputs, {describe_shape(out_shape)}: compile it with a loss for each, "
            f"loss={{{names}}}"
        )
    if is_single(out_shape) and isinstance(loss, OutputLosses):
        raise ValueError(
            f"the model has one output, {describe_shape(out_shape)}, but was compiled with losses for "
            f"{', '.join(repr(key) for key in loss.each)}: end it with nnx.layers.Outputs, or give one loss"
        )
    several = {metric.output for metric, _ in metrics_used if isinstance(metric, OutputMetric)}
    if is_single(out_shape) != (not several) and metrics_used:
        raise ValueError(
            f"the model has {'one output' if is_single(out_shape) else 'several outputs'}, "
            f"{describe_shape(out_shape)}: give metrics as {'a list' if is_single(out_shape) else 'lists by output'}"
        )
    known = loss.each if isinstance(loss, OutputLosses) else {}
    for key in several:
        if key not in known:
            raise ValueError(f"metrics: output {key!r} has no loss, so no targets are known: give it one")


def output_name(key) -> str:
    """Return the name of an output in logs; `output_0` for the first of a tuple."""
    return key if isinstance(key, str) else f"output_{key}"


def _keys(shapes) -> list:
    return list(shapes) if isinstance(shapes, dict) else list(range(len(shapes)))


def _items(given):
    """Return (key, value) pairs of a dict, or (index, value) pairs of a list."""
    return given.items() if isinstance(given, dict) else enumerate(given)


def _is_configuration(given) -> bool:
    return isinstance(given, dict) and "class_name" in given
