"""The same training steps on several backends, compared array by array.

At each step all backends start from the weights of the reference, so that differences do not grow from
step to step. Each backend runs the step *layer by layer*, eagerly, and its outputs and gradients are
recorded; then *compiled*, first the gradients, then the optimizer with the reference's gradients. Each
backend also runs `fit` independently, from the same starting weights.

A difference is the largest one between two arrays, relative to the largest value in them. The weights of
a layer count as one array, and so do their gradients, because some are only rounding errors: the gradient
of a bias before batch normalisation, for example.

May import: core, activations, data, inspect, layers, losses, models, training, front, NumPy.
"""

import copy
from dataclasses import dataclass

import numpy as np

from nnx.backend import as_backend
from nnx.compare.differences import Difference, Failure, Pair
from nnx.compare.tables import as_text
from nnx.compare.trace import Arrays, Place, Tracer
from nnx.compare.trial import draw_batches
from nnx.data.samples import Samples
from nnx.data.streams import as_batch
from nnx.models.model import DTYPES, Model, NotReadyError

__all__ = ["CompareError", "Comparison", "Difference", "Failure", "Pair", "compare"]

# Rounding alone gives 1e-6 in small networks, and 1e-5 in 40 layers or batches of 2048 (NumPy and JAX).
TOLERANCES = {"float32": 1e-4, "float64": 1e-12}


class CompareError(RuntimeError):
    """The reference itself fails, so there is nothing to compare with."""


@dataclass
class Comparison:
    """The result of `compare`. Its text is tables and a sentence for each pair of backends."""

    pairs: list[Pair]
    settings: str
    dtype: str
    not_finite: Place | None = None
    """Where the reference computes the first value that is not finite."""

    @property
    def agree(self) -> bool:
        """Whether all backends agree with the reference."""
        return all(pair.agree for pair in self.pairs)

    @property
    def first(self) -> Difference | Failure | None:
        """The first difference of the first pair that does not agree; None if all do."""
        return next((pair.first for pair in self.pairs if not pair.agree), None)

    def __str__(self):
        return as_text(self)


def compare(
    model, backends=("numpy", "jax"), batches=None, *, steps: int = 3, batch_size: int = 32, seed: int = 0,
    tolerance: float | None = None, dtype: str | None = None,
) -> Comparison:  # fmt: skip
    """Return where the same training steps first differ between backends.

    Parameters
    ----------
    model : Model or function
        A compiled model, which is not changed, or a function that returns one.
    backends : list of str or Backend
        The first is the reference.
    batches : list of (x, y) or (x, y, sample_weight), optional
        One for each step. By default random ones that fit the model's input and loss.
    steps, batch_size, seed : int
        Number, size and seed of the random batches.
    tolerance : float, optional
        The largest difference that counts as rounding, relative to the largest value; by default
        1e-4 in float32, 1e-12 in float64.
    dtype : {"float32", "float64"}, optional
        Precision of the computation; by default the model's.

    Raises
    ------
    CompareError
        If the reference itself cannot run the model.
    ValueError
        If there are fewer than two backends, or the batches do not fit the model.

    Examples
    --------
    >>> import nnx
    >>> model = nnx.Sequential([nnx.layers.Dense(3, "tanh", input_shape=(4,))], seed=0)
    >>> model.compile(optimizer="sgd", loss="mse")
    >>> nnx.compare.compare(model, ["numpy", "jax"], steps=2).agree
    True
    """
    chosen = [as_backend(backend) for backend in backends]
    names = [backend.name for backend in chosen]
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"compare needs two or more different backends, got {', '.join(names) or 'none'}")
    start = as_start(model, dtype)
    drawn = draw_batches(start, steps, batch_size, seed) if batches is None else batches
    samples = [start.check_batch(as_batch(batch)) for batch in drawn]

    reference, *others = [Tracer(start, backend) for backend in chosen]
    limit = TOLERANCES[start.dtype] if tolerance is None else tolerance
    pairs = [Pair((reference.name, other.name), limit) for other in others]
    comparison = Comparison(pairs, _settings(names, start.dtype, samples), start.dtype)
    for step, batch in enumerate(samples, 1):
        _compare_step(step, batch, reference, others, comparison)
    return comparison


def as_start(model, dtype: str | None = None) -> Model:
    """Return a copy of a compiled model, or of the one that a function returns, if it can be compared."""
    start = copy.deepcopy(model if isinstance(model, Model) or not callable(model) else model())
    if not isinstance(start, Model):
        raise TypeError(f"expected a compiled model or a function that returns one, got {start!r}")
    if start.loss is None:
        raise NotReadyError("the model is not compiled, so it has no gradient: call model.compile(loss=...)")
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    start.dtype = dtype or start.dtype
    return start


def _settings(names, dtype, samples) -> str:
    sizes = " and ".join(map(str, sorted({len(batch) for batch in samples})))
    count = "1 step" if len(samples) == 1 else f"{len(samples)} steps"
    return f"{', '.join(names[:-1])} and {names[-1]}: {count} of {sizes} samples in {dtype}"


def _compare_step(step: int, batch: Samples, reference: Tracer, others, comparison: Comparison) -> None:
    """Run one step on the reference, then on the others from its weights and gradients."""
    carry = reference.carry
    try:
        expected = dict(reference.trace(step, carry, batch))
        loss, weights = reference.fit(step, batch)
    except Exception as error:
        failure = Failure(reference.place, _one_line(error)).describe(("", reference.name))
        raise CompareError(f"there is nothing to compare with: {failure}") from error
    if comparison.not_finite is None:
        comparison.not_finite = next((place for place in expected if not _finite(expected[place])), None)
    for tracer, pair in zip(others, comparison.pairs, strict=True):
        if pair.failure is not None:
            continue
        try:
            for place, arrays in tracer.trace(step, carry, batch, reference.grads):
                pair.differences.append(largest_difference(place, expected[place], arrays))
            own_loss, own_weights = tracer.fit(step, batch)
        except Exception as error:
            pair.failure = Failure(tracer.place, _one_line(error))
            continue
        ours, theirs = ({"": np.asarray(value)} for value in (loss, own_loss))
        pair.differences.append(largest_difference(Place(step, "fit", "", "loss"), ours, theirs))
        pair.losses.append((loss, own_loss))
        differences = [largest_difference(place, weights[place], own_weights[place]) for place in weights]
        pair.weights.append(max((difference.relative for difference in differences), default=0.0))


def largest_difference(place: Place, expected: Arrays, actual: Arrays) -> Difference:
    """Return the largest difference between two groups of arrays, relative to their largest value.

    >>> import numpy as np
    >>> arrays = {"kernel": np.array([1.0, -2.0])}, {"kernel": np.array([1.0, -1.5])}
    >>> difference = largest_difference(Place(1, "update", "dense"), *arrays)
    >>> difference.relative, difference.name, difference.index
    (0.25, 'kernel', (1,))
    """
    largest = Difference(place, 0.0)
    scale = max(_scale(array) for arrays in (expected, actual) for array in arrays.values()) or 1.0
    for name in expected:
        a, b = (np.asarray(arrays[name], dtype=np.float64) for arrays in (expected, actual))
        if a.shape != b.shape:
            return Difference(place, np.inf, f"{name} shapes {a.shape} and {b.shape}")
        with np.errstate(invalid="ignore"):
            relative = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b)) / scale
        relative = np.where(np.isnan(relative), np.inf, relative)
        if relative.size and relative.max() > largest.relative:
            index = tuple(int(i) for i in np.unravel_index(relative.argmax(), relative.shape))
            values = float(a[index]), float(b[index])
            largest = Difference(place, float(relative.max()), name, index, values)
    return largest


def _scale(array) -> float:
    size = np.abs(np.asarray(array, dtype=np.float64))
    return float(np.max(size, where=np.isfinite(size), initial=0.0))


def _finite(arrays: Arrays) -> bool:
    return all(np.isfinite(array).all() for array in arrays.values())


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
