"""Starting values of weights, drawn on the host: `initializer(rng, shape) -> array of float64`.

The variance-scaling family draws with variance scale / n, where n is the number of inputs of a
unit (lecun: 1/fan_in, he: 2/fan_in) or the mean of inputs and outputs (glorot: 2/(in+out)).
Sources: Glorot and Bengio, 2010; He et al., 2015 (arXiv:1502.01852); Klambauer et al., 2017
(arXiv:1706.02515); Saxe et al., 2013 (arXiv:1312.6120) for orthogonal.
"""

from __future__ import annotations  # naming np.random in a signature would import it, 35 ms

import contextlib
import functools
import math
from contextvars import ContextVar

import numpy as np

from nnx.arguments import expect_range
from nnx.registry import REGISTRIES, Configurable

__all__ = [
    "Constant",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "Initializer",
    "LecunNormal",
    "LecunUniform",
    "Ones",
    "Orthogonal",
    "RandomNormal",
    "RandomUniform",
    "TruncatedNormal",
    "Zeros",
    "fans",
    "get",
]

_registry = REGISTRIES["initializer"]

# The standard deviation of a normal distribution cut off at two standard deviations.
_TRUNCATED_STDDEV = 0.87962566103423978


_most: ContextVar[int | None] = ContextVar("nnx_most_weights", default=None)


@contextlib.contextmanager
def only_shapes(most: int):
    """Inside a `with` block initializers draw nothing and take no memory: arrays have a shape only.

    Raises a ValueError instead of an array of more than `most` numbers.

    >>> import nnx
    >>> with only_shapes(most=10**9):
    ...     params, _ = nnx.layers.Dense(10**5).init(None, (10**4,))
    >>> params["kernel"].shape
    (10000, 100000)
    """
    token = _most.set(most)
    try:
        yield
    finally:
        _most.reset(token)


def _unless_only_shapes(draw):
    @functools.wraps(draw)
    def call(initializer, rng, shape):
        if (most := _most.get()) is None:
            return draw(initializer, rng, shape)
        if math.prod(shape) > most:
            raise ValueError(f"a weight of shape {shape} was asked for where there are {most} numbers in all")
        # One number seen at all places, which a layer may write to.
        return np.lib.stride_tricks.as_strided(np.zeros(1), shape, (0,) * len(shape))

    return call


class Initializer(Configurable):
    """Base of all initializers.

    >>> import nnx, numpy as np
    >>> nnx.initializers.get("ones")(np.random.default_rng(0), (2, 3))
    array([[1., 1., 1.],
           [1., 1., 1.]])
    """

    kind = "initializer"

    def __init_subclass__(cls, **settings):
        super().__init_subclass__(**settings)
        if "__call__" in vars(cls):
            setattr(cls, "__call__", _unless_only_shapes(vars(cls)["__call__"]))  # noqa: B010

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """Return starting values of `shape`, drawn from `rng`."""
        raise NotImplementedError


class _Seeded(Initializer):
    """An initializer that draws: from the model's generator, or from its own seed if given."""

    seed: int | None = None

    def __call__(self, rng, shape):
        return self.draw(rng if self.seed is None else np.random.default_rng(self.seed), shape)

    def draw(self, rng, shape) -> np.ndarray:
        raise NotImplementedError


@_registry.register("zeros", "zero")
class Zeros(Initializer):
    """All zeros."""

    def __call__(self, rng, shape):
        return np.zeros(shape)


@_registry.register("ones", "one")
class Ones(Initializer):
    """All ones."""

    def __call__(self, rng, shape):
        return np.ones(shape)


@_registry.register("constant")
class Constant(Initializer):
    """All of one value, or the given values (a number or a nested list, broadcast to the shape)."""

    def __init__(self, value=0.0):
        self.value = value.tolist() if isinstance(value, np.ndarray) else value

    def __call__(self, rng, shape):
        return np.broadcast_to(np.asarray(self.value, dtype=float), shape).copy()


@_registry.register("random_normal", "normal")
class RandomNormal(_Seeded):
    """Normal with the given mean and standard deviation."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None):
        expect_range(self, at_least=0, stddev=stddev)
        self.mean, self.stddev, self.seed = mean, stddev, seed

    def draw(self, rng, shape):
        return rng.normal(self.mean, self.stddev, shape)


@_registry.register("random_uniform", "uniform")
class RandomUniform(_Seeded):
    """Uniform between minval and maxval."""

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: int | None = None):
        expect_range(self, at_least=minval, maxval=maxval)
        self.minval, self.maxval, self.seed = minval, maxval, seed

    def draw(self, rng, shape):
        return rng.uniform(self.minval, self.maxval, shape)


@_registry.register("truncated_normal")
class TruncatedNormal(_Seeded):
    """Normal, with values beyond two standard deviations drawn again."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None):
        expect_range(self, at_least=0, stddev=stddev)
        self.mean, self.stddev, self.seed = mean, stddev, seed

    def draw(self, rng, shape):
        return self.mean + self.stddev * _truncated_normal(rng, shape)


def _truncated_normal(rng, shape):
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(np.count_nonzero(outside))
    return values


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of inputs and of outputs of a unit whose kernel has this shape.

    >>> fans((784, 10)), fans((3, 3, 16, 32))
    ((784, 10), (144, 288))
    """
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    receptive_field = math.prod(shape[:-2])
    return shape[-2] * receptive_field, shape[-1] * receptive_field


class _VarianceScaling(_Seeded):
    scale = 1.0
    mode = "fan_in"
    distribution = "uniform"

    def __init__(self, seed: int | None = None):
        self.seed = seed

    def draw(self, rng, shape):
        fan_in, fan_out = fans(shape)
        n = {"fan_in": fan_in, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, n)
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            return rng.uniform(-limit, limit, shape)
        return math.sqrt(variance) / _TRUNCATED_STDDEV * _truncated_normal(rng, shape)


@_registry.register("glorot_uniform")
class GlorotUniform(_VarianceScaling):
    """Uniform with variance 2 / (inputs + outputs): Keras's default for kernels."""

    mode = "fan_avg"


@_registry.register("glorot_normal")
class GlorotNormal(_VarianceScaling):
    """Truncated normal with variance 2 / (inputs + outputs)."""

    mode, distribution = "fan_avg", "normal"


@_registry.register("he_uniform")
class HeUniform(_VarianceScaling):
    """Uniform with variance 2 / inputs: for relu and its kin."""

    scale = 2.0


@_registry.register("he_normal")
class HeNormal(_VarianceScaling):
    """Truncated normal with variance 2 / inputs: for relu and its kin."""

    scale, distribution = 2.0, "normal"


@_registry.register("lecun_uniform")
class LecunUniform(_VarianceScaling):
    """Uniform with variance 1 / inputs: for selu and tanh."""


@_registry.register("lecun_normal")
class LecunNormal(_VarianceScaling):
    """Truncated normal with variance 1 / inputs: for selu and tanh."""

    distribution = "normal"


@_registry.register("orthogonal")
class Orthogonal(_Seeded):
    """A random matrix with orthonormal rows or columns, times `gain`."""

    def __init__(self, gain: float = 1.0, seed: int | None = None):
        self.gain, self.seed = gain, seed

    def draw(self, rng, shape):
        if len(shape) < 2:
            raise ValueError(f"orthogonal needs a shape of two dimensions or more, got {shape}")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        matrix = rng.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(matrix)
        q = q * np.sign(np.diag(r))  # makes the draw uniform over orthogonal matrices
        return self.gain * (q if rows >= columns else q.T).reshape(shape)


def get(initializer) -> Initializer:
    """Return the initializer of this name."""
    return _registry.get(initializer, Initializer)
