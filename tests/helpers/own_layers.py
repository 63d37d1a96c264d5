"""Layers, a loss, a metric and an optimizer as users write them: for the random networks of `random_networks`.

Those of `PORTABLE` keep the rules of docs/layers.md. Those of `NUMPY_ONLY` change their own attributes, draw from a
generator of Python, look at values or call NumPy itself: what plain Python allows on NumPy, where a compiled step
must give what the plain step gives. All leave the shape of a sample as it is.
"""

import contextlib
import itertools
import random

import numpy as np

import nnx
from nnx import layers, losses, metrics, optimizers, registry

_NAMED: list[type] = []


def _named_in_files(cls):
    """Let a class be one of those that `registered` makes known."""
    _NAMED.append(cls)
    return cls


@contextlib.contextmanager
def registered():
    """Make these classes known to nnx inside a `with` block alone: other tests go through all that are known."""
    before = {kind: (dict(known._entries), list(known._names)) for kind, known in registry.REGISTRIES.items()}
    for cls in _NAMED:
        nnx.register(cls)
    try:
        yield
    finally:
        for kind, (entries, names) in before.items():
            registry.REGISTRIES[kind]._entries, registry.REGISTRIES[kind]._names = entries, names


class _Weighted(layers.Layer):
    """Has a weight for each feature."""

    supports_masking = True

    def init(self, rng, in_shape):
        return {"w": rng.uniform(0.5, 1.5, in_shape[-1:])}, in_shape

    def out_shape(self, in_shape):
        return in_shape


def _over_samples(xp, dy):
    """Return the sum over all axes but the last."""
    return xp.sum(dy, axis=tuple(range(dy.ndim - 1)))


# What keeps the rules


@_named_in_files
class AddsInPlace(_Weighted):
    """x + w, added up in an array of its own."""

    def forward(self, ctx, params, x):
        h = ctx.xp.zeros_like(x)
        h += x
        h += params["w"]
        return h, lambda dy: (dy, {"w": _over_samples(ctx.xp, dy)})


@_named_in_files
class ScalesInPlace(_Weighted):
    """x * w, where the pullback writes into arrays of its own."""

    def forward(self, ctx, params, x):
        w = params["w"]
        y = x * 1.0
        y *= w

        def pullback(dy):
            dx = dy * 0.0
            dx += dy
            dx *= w
            product = dy * x
            product /= 2.0
            product += product
            return dx, {"w": _over_samples(ctx.xp, product)}

        return y, pullback


@_named_in_files
class KernelOfAMethod(_Weighted):
    """factor * x * w by a kernel that is a method."""

    def __init__(self, factor: float = 0.9, **settings):
        super().__init__(**settings)
        self.factor = factor

    def _scaled(self, xp, x, w):
        return x * w * self.factor

    def forward(self, ctx, params, x):
        w = params["w"]

        def pullback(dy):
            return ctx.kernel(self._scaled, dy, w), {"w": _over_samples(ctx.xp, dy * x) * self.factor}

        return ctx.kernel(self._scaled, x, w), pullback


@_named_in_files
class KernelOfALambda(_Weighted):
    """tanh(factor * x) + w by kernels made anew at each call."""

    def __init__(self, factor: float = 0.7, **settings):
        super().__init__(**settings)
        self.factor = factor

    def forward(self, ctx, params, x):
        factor = self.factor
        y = ctx.kernel(lambda xp, x: xp.tanh(x * factor), x)

        def pullback(dy):
            dx = ctx.kernel(lambda xp, dy, y: dy * (1.0 - y * y) * factor, dy, y)
            return dx, {"w": _over_samples(ctx.xp, dy)}

        return y + params["w"], pullback


@_named_in_files
class Cached(_Weighted):
    """x * c + w with a constant c that is made once for each number of features."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.cache = {}

    def forward(self, ctx, params, x):
        features = x.shape[-1]
        if features not in self.cache:
            self.cache[features] = np.linspace(0.8, 1.2, features)
        c = ctx.backend.asarray(self.cache[features], x.dtype)
        return x * c + params["w"], lambda dy: (dy * c, {"w": _over_samples(ctx.xp, dy)})


@_named_in_files
class Centred(_Weighted):
    """x minus a running mean that is state, times w; a penalty on the size of w."""

    def init_state(self, in_shape):
        return {"mean": np.zeros(in_shape[-1:]), "seen": np.zeros(())}

    def forward(self, ctx, params, x):
        xp, w = ctx.xp, params["w"]
        mean = ctx.state["mean"]
        if ctx.training:
            ctx.state["mean"] = mean * 0.9 + 0.1 * xp.mean(x, axis=tuple(range(x.ndim - 1)))
            ctx.state["seen"] = ctx.state["seen"] + 1.0
            ctx.add_penalty(0.01 * xp.sum(w * w))
        centred = x - mean

        def pullback(dy):
            return dy * w, {"w": _over_samples(xp, dy * centred) + 0.02 * w}

        return centred * w, pullback


@_named_in_files
class Views(_Weighted):
    """x with its features in reverse order, times w, by way of views."""

    def forward(self, ctx, params, x):
        xp, w = ctx.xp, params["w"]
        turned = xp.flip(x, axis=-1)
        wide = xp.broadcast_to(w, x.shape)
        y = xp.reshape(xp.reshape(turned * wide, (-1,)), x.shape)

        def pullback(dy):
            dx = (dy * wide)[..., ::-1]
            return dx, {"w": _over_samples(xp, dy * turned)}

        return y, pullback


@_named_in_files
class SameTwice(layers.Layer):
    """x + a + b: two weights of one gradient, whose names are not in sorted order."""

    supports_masking = True

    def init(self, rng, in_shape):
        return {name: rng.uniform(-0.5, 0.5, in_shape[-1:]) for name in ("b", "a", "c")}, in_shape

    def out_shape(self, in_shape):
        return in_shape

    def forward(self, ctx, params, x):
        xp = ctx.xp

        def pullback(dy):
            total = _over_samples(xp, dy)
            return dy, {"b": total, "c": -_over_samples(xp, dy), "a": _over_samples(xp, dy)}

        return x + params["a"] + params["b"] - params["c"], pullback


@_named_in_files
class Chosen(_Weighted):
    """x * w where x > 0, else 0.1 * x; sorted comparisons, whole numbers and truth values on the way."""

    def forward(self, ctx, params, x):
        xp, w = ctx.xp, params["w"]
        is_large = (x > 0.0) & ~(x > 2.0)
        count = xp.astype(xp.sum(xp.astype(is_large, xp.int32), axis=-1, keepdims=True), x.dtype) * 0.01

        def pullback(dy):
            dw = xp.where(is_large, dy * x, xp.zeros_like(dy))
            return xp.where(is_large, dy * w, dy * 0.1), {"w": _over_samples(xp, dw)}

        return xp.where(is_large, x * w, x * 0.1) + count, pullback


# What plain Python allows on NumPy


class WritesOut(_Weighted):
    """x * w + w by `out=`, positional and by name."""

    def forward(self, ctx, params, x):
        w, h = params["w"], np.empty_like(x)
        np.multiply(x, w, out=h)
        np.add(h, w, h)

        def pullback(dy):
            dx, dw = np.empty_like(dy), np.zeros_like(w)
            np.multiply(dy, w, out=dx)
            np.add.reduce(dy * (x + 1.0), axis=tuple(range(dy.ndim - 1)), out=dw)
            return dx, {"w": dw}

        return h, pullback


class WritesByFunctions(_Weighted):
    """x limited to -1 ... 1, plus w, by NumPy functions that write."""

    def forward(self, ctx, params, x):
        h = np.empty_like(x)
        np.copyto(h, x)
        np.clip(h, -1.0, 1.0, out=h)
        inside = np.zeros(x.shape, dtype=bool)
        np.less(abs(x), 1.0, out=inside)

        def pullback(dy):
            dx = dy.copy()
            np.putmask(dx, ~inside, 0.0)
            return dx, {"w": _over_samples(ctx.xp, dy)}

        return h + params["w"], pullback


class WritesItems(_Weighted):
    """x + w, item by item, through views of an array of its own."""

    def forward(self, ctx, params, x):
        h = np.zeros(x.shape, x.dtype)
        h[...] = x
        half = x.shape[-1] // 2
        left, right = h[..., :half], h[..., half:]
        left += params["w"][:half]
        right += params["w"][half:]

        def pullback(dy):
            dw = np.empty_like(params["w"])
            dw.fill(0.0)
            for k in range(dy.shape[-1]):
                dw[k] = dy[..., k].sum()
            return dy, {"w": dw}

        return h, pullback


class WritesByMethods(_Weighted):
    """x - w with each sample's features sorted in place first: the gradient is that of the places."""

    def forward(self, ctx, params, x):
        order = np.argsort(x, axis=-1)
        h = x.copy()
        h.sort(axis=-1)
        h -= params["w"]

        def pullback(dy):
            dx = np.zeros_like(dy)
            np.put_along_axis(dx, order, dy, axis=-1)
            return dx, {"w": -_over_samples(ctx.xp, dy)}

        return h, pullback


class NumpyFunctions(_Weighted):
    """x + a mean over features, plus w, by NumPy's own functions."""

    def forward(self, ctx, params, x):
        n = x.shape[-1]
        mixing = np.full((n, n), 0.1 / n, x.dtype)
        y = np.einsum("...i,ij->...j", x, np.eye(n, dtype=x.dtype) + mixing)
        y = np.concatenate([y[..., :1], y[..., 1:]], axis=-1)

        def pullback(dy):
            dx = np.einsum("...j,ij->...i", dy, np.eye(n, dtype=x.dtype) + mixing)
            return dx, {"w": np.einsum("ki->i", dy.reshape((-1, n)))}

        return np.where(np.isfinite(y), y, 0.0) + params["w"], pullback


class Draws(_Weighted):
    """x * w, and with some probability x alone: a branch drawn by a generator of its own."""

    def __init__(self, probability: float = 0.1, seed: int = 0, **settings):
        super().__init__(**settings)
        self.probability, self.random = probability, random.Random(seed)

    def forward(self, ctx, params, x):
        w = params["w"]
        if ctx.training and self.random.random() < self.probability:
            return x, lambda dy: (dy, {"w": w * 0})
        return x * w, lambda dy: (dy * w, {"w": _over_samples(ctx.xp, dy * x)})


class DrawsNoise(_Weighted):
    """x + w + noise drawn by NumPy, in training."""

    def __init__(self, seed: int = 0, **settings):
        super().__init__(**settings)
        self.rng = np.random.default_rng(seed)

    def forward(self, ctx, params, x):
        noise = self.rng.normal(size=x.shape).astype(x.dtype) * 0.1 if ctx.training else 0.0
        return x + params["w"] + noise, lambda dy: (dy, {"w": _over_samples(ctx.xp, dy)})


DRAWN = random.Random(0)


class DrawsGlobally(_Weighted):
    """As `Draws`, by a generator that is a global; `init` starts it again."""

    def init(self, rng, in_shape):
        DRAWN.seed(5)
        return super().init(rng, in_shape)

    def forward(self, ctx, params, x):
        w = params["w"]
        if ctx.training and DRAWN.random() < 0.1:
            return x, lambda dy: (dy, {"w": w * 0})
        return x * w, lambda dy: (dy * w, {"w": _over_samples(ctx.xp, dy * x)})


class Counts(_Weighted):
    """x * w * k, where k grows with the passes, as a number, an array or a generator says."""

    def __init__(self, kind: str = "number", **settings):
        super().__init__(**settings)
        self.kind, self.passes = kind, 0
        self.array, self.iterator, self.entries = np.zeros(1), itertools.count(1), [0]

    def _passes(self):
        if self.kind == "array":
            self.array += 1
            return self.array[0]
        if self.kind == "iterator":
            return next(self.iterator)
        if self.kind == "list":
            self.entries.append(self.entries[-1] + 1)
            return len(self.entries) - 1
        self.passes += 1
        return self.passes

    def forward(self, ctx, params, x):
        k = 1.0 + 0.1 * float(self._passes()) if ctx.training else 1.0
        w = params["w"]
        return x * (w * k), lambda dy: (dy * (w * k), {"w": _over_samples(ctx.xp, dy * x) * k})


class Switches(_Weighted):
    """x * w in the first `after` passes of training, then x * w * 2: what a few traced steps do not show."""

    def __init__(self, after: int = 5, **settings):
        super().__init__(**settings)
        self.after, self.passes = after, 0

    def forward(self, ctx, params, x):
        self.passes += ctx.training
        k, w = 2.0 if self.passes > self.after else 1.0, params["w"]
        return x * (w * k), lambda dy: (dy * (w * k), {"w": _over_samples(ctx.xp, dy * x) * k})


class CachesByShape(_Weighted):
    """x * c + w with a constant c that is made once for each shape of the batch, an array of the backend."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.cache = {}

    def forward(self, ctx, params, x):
        if x.shape not in self.cache:
            self.cache[x.shape] = ctx.xp.full(x.shape, 0.9, dtype=x.dtype)
        c = self.cache[x.shape]
        return x * c + params["w"], lambda dy: (dy * c, {"w": _over_samples(ctx.xp, dy)})


class CachesTheLast(_Weighted):
    """x * c + w with a constant c that is made again only where the shape differs from the last one's."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.constant = None

    def forward(self, ctx, params, x):
        if self.constant is None or self.constant.shape != x.shape:
            self.constant = ctx.xp.ones_like(x) * 1.1
        c = self.constant
        return x * c + params["w"], lambda dy: (dy * c, {"w": _over_samples(ctx.xp, dy)})


class Remembers(_Weighted):
    """x * w + m, where m is a mean of the batches before, kept as an attribute."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.mean = 0.0

    def forward(self, ctx, params, x):
        w, before = params["w"], self.mean
        if ctx.training:
            self.mean = 0.5 * self.mean + 0.5 * ctx.xp.mean(x)
        return x * w + before, lambda dy: (dy * w, {"w": _over_samples(ctx.xp, dy * x)})


class Looks(_Weighted):
    """x * w, or x / 2 * w if the largest number of the batch is above 1.5."""

    def forward(self, ctx, params, x):
        w, k = params["w"], 0.5 if float(ctx.xp.max(ctx.xp.abs(x))) > 1.5 else 1.0
        return x * w * k, lambda dy: (dy * w * k, {"w": _over_samples(ctx.xp, dy * x * k)})


class InPullback(_Weighted):
    """x * w, whose gradient is scaled by a number that changes in the pullback."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.scale = 1.0

    def forward(self, ctx, params, x):
        w = params["w"]

        def pullback(dy):
            self.scale *= 0.9
            return dy * w * self.scale, {"w": _over_samples(ctx.xp, dy * x)}

        return x * w, pullback


SETTINGS = {"factor": 1.0}


class ReadsSettings(_Weighted):
    """x * w * factor, of a dict that `TurnsDown` changes at each epoch."""

    def init(self, rng, in_shape):
        SETTINGS["factor"] = 1.0
        return super().init(rng, in_shape)

    def forward(self, ctx, params, x):
        w, k = params["w"], SETTINGS["factor"]
        return x * w * k, lambda dy: (dy * w * k, {"w": _over_samples(ctx.xp, dy * x * k)})


class TurnsDown(nnx.callbacks.Callback):
    """Changes what `ReadsSettings` reads."""

    def on_epoch_begin(self, epoch, logs=None):
        SETTINGS["factor"] *= 0.8


PORTABLE = (
    "AddsInPlace()", "ScalesInPlace()", "KernelOfAMethod()", "KernelOfALambda()", "Cached()", "Centred()",
    "Views()", "SameTwice()", "Chosen()",
)  # fmt: skip
NUMPY_ONLY = (
    "WritesOut()", "WritesByFunctions()", "WritesItems()", "WritesByMethods()", "NumpyFunctions()",
    "Draws()", "Draws(0.5, 3)", "Draws(0.02, 4)", "DrawsNoise()", "DrawsGlobally()", "Counts()", "Counts('array')",
    "Counts('iterator')", "Counts('list')", "Switches(3)", "Switches(7)", "CachesByShape()", "CachesTheLast()",
    "Remembers()", "Looks()", "InPullback()", "ReadsSettings()",
)  # fmt: skip


# Losses, metrics and optimizers


@_named_in_files
class WritesLoss(losses.Loss):
    """The mean of squares, in arrays of its own that are written in place."""

    def forward(self, ctx, target, output):
        difference = output - target
        squares = difference * 1.0
        squares *= difference

        def pullback(dvalues):
            slope = difference * 2.0
            slope *= (dvalues / output.shape[-1])[..., None]
            return slope

        return ctx.xp.mean(squares, axis=-1), pullback


class GrowingLoss(losses.Loss):
    """The mean of squares times a number that grows at each step of training."""

    def __init__(self):
        self.calls = 0

    def forward(self, ctx, target, output):
        self.calls += ctx.training
        k, difference = 1.0 + 0.1 * self.calls, output - target

        def pullback(dvalues):
            return 2.0 * k * difference * (dvalues / output.shape[-1])[..., None]

        return ctx.xp.mean(difference * difference, axis=-1) * k, pullback


@_named_in_files
class WritesMetric(metrics.Metric):
    """The weighted mean of absolute outputs, in an array of its own that is written in place."""

    def update(self, ctx, target, output, weight):
        xp = ctx.xp
        size = xp.zeros_like(weight)
        size += xp.mean(xp.abs(output), axis=tuple(range(1, output.ndim)))
        size *= weight
        return {"total": xp.sum(size), "count": xp.sum(weight)}

    def result(self, sums):
        return float(sums["total"] / max(sums["count"], 1e-7))


class CountingMetric(metrics.Metric):
    """How often it was asked, added up."""

    def __init__(self, name=None):
        super().__init__(name)
        self.calls = 0

    def update(self, ctx, target, output, weight):
        self.calls += 1
        return {"total": ctx.xp.sum(weight) * 0.0 + float(self.calls)}

    def result(self, sums):
        return float(sums["total"])


@_named_in_files
class SignedMean(optimizers.Optimizer):
    """A step along the gradient divided by its running size, written with a setting in the rule."""

    slots = ("size",)

    def __init__(self, learning_rate=0.01, share: float = 0.3, **settings):
        super().__init__(learning_rate, **settings)
        self.share = share

    def rule(self, xp, param, grad, size, *, learning_rate):
        size = size + (xp.abs(grad) - size) * self.share
        return param - learning_rate * grad / (size + 0.01), size
