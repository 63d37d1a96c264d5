"""What a compiled step may take as fixed: settings that change take effect, code that is not pure runs as Python."""

import collections
import itertools
import random

import numpy as np
import pytest

import nnx
from nnx import callbacks, layers, losses, optimizers, regularizers
from nnx.graph.fingerprint import Fingerprint, difference, kernel_key
from nnx.training.runner import StepRunner

X = np.random.default_rng(0).normal(size=(50, 4))
Y = X[:, :2]


def fresh(replays: bool):
    """Return NumPy's backend made anew, so that no steps are shared."""
    backend = type(nnx.as_backend("numpy"))()
    backend.replays = replays
    return backend


def train(build, backend, change=None, epochs=4, optimizer=None, loss="mse", metrics=(), batch_size=16):
    """Return the model, and all losses and metrics; `change(model)` is called before the third epoch."""
    with nnx.use_backend(backend):
        model = nnx.Sequential(build(), seed=1, dtype="float64")
        model.compile(
            optimizer() if optimizer else "adam", loss() if callable(loss) else loss, metrics=list(metrics)
        )

        class Change(callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                if epoch == 2 and change:
                    change(self.model)

        history = model.fit(
            X, Y, epochs=epochs, batch_size=batch_size, verbose=0, callbacks=[Change()]
        ).history
    return model, np.asarray(list(history.values()))


def scaled(x, factor):
    return x * factor, lambda dy: (dy * factor, {})


# Layers that are not pure, each in another way. What they refer to starts anew in each test.


class CountsInAttribute(layers.Layer):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, ctx, params, x):
        self.calls += 1
        return scaled(x, 1 + self.calls / 100)


class CountsInArray(layers.Layer):
    def __init__(self):
        super().__init__()
        self.calls = np.zeros(1)

    def forward(self, ctx, params, x):
        self.calls += 1
        return scaled(x, 1 + float(self.calls[0]) / 100)


class CountsInList(layers.Layer):
    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, ctx, params, x):
        self.calls.append(None)
        return scaled(x, 1 + len(self.calls) / 100)


class CountsInDeque(CountsInList):
    def __init__(self):
        super().__init__()
        self.calls = collections.deque()


class CountsInGlobal(layers.Layer):
    def forward(self, ctx, params, x):
        global CALLS
        CALLS += 1
        return scaled(x, 1 + CALLS / 100)


class CountsInClass(layers.Layer):
    calls = 0

    def forward(self, ctx, params, x):
        type(self).calls += 1
        return scaled(x, 1 + self.calls / 100)


class CountsByIterator(layers.Layer):
    def __init__(self):
        super().__init__()
        self.next = itertools.count(1).__next__

    def forward(self, ctx, params, x):
        return scaled(x, 1 + self.next() / 100)


class Cycles(layers.Layer):
    def __init__(self):
        super().__init__()
        self.factors = itertools.cycle([1.0, 1.0, 2.0])

    def forward(self, ctx, params, x):
        return scaled(x, next(self.factors))


class KeepsByShape(layers.Layer):
    kept = None

    def forward(self, ctx, params, x):
        if self.kept is None or self.kept.shape != x.shape:
            self.kept = ctx.xp.ones_like(x) * 2.0
        return x * self.kept, lambda dy: (dy * 2.0, {})


class DrawsSeldom(layers.Layer):
    """Stochastic depth: a generator decides on the host."""

    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, ctx, params, x):
        return scaled(x, 0.5 if self.generator.random() < 0.1 else 1.0)


CALLS = 0


def closure():
    calls = 0

    def function(x):
        nonlocal calls
        calls += 1
        factor = 1 + calls / 100
        return x * factor, lambda dy: dy * factor

    return layers.Lambda(function)


IMPURE = {
    "attribute": CountsInAttribute,
    "array": CountsInArray,
    "list": CountsInList,
    "deque": CountsInDeque,
    "global": CountsInGlobal,
    "class": CountsInClass,
    "iterator": CountsByIterator,
    "closure": closure,
    "kept by shape": KeepsByShape,
    **{f"random {seed}": lambda seed=seed: DrawsSeldom(random.Random(seed)) for seed in range(3)},
    **{f"Generator {seed}": lambda seed=seed: DrawsSeldom(np.random.default_rng(seed)) for seed in range(3)},
    "RandomState": lambda: DrawsSeldom(np.random.RandomState(0)),
}


@pytest.fixture(autouse=True)
def _start_anew(monkeypatch):
    monkeypatch.setitem(globals(), "CALLS", 0)
    monkeypatch.setattr(CountsInClass, "calls", 0)


def both(build, **settings):
    """Train with compiled steps and as Python; return the first model once both gave the same numbers."""
    found = []
    for replays in (True, False):
        globals()["CALLS"] = CountsInClass.calls = 0
        found.append(train(build, fresh(replays), **settings))
    np.testing.assert_array_equal(found[0][1], found[1][1])
    return found[0]


@pytest.mark.parametrize("layer", IMPURE.values(), ids=IMPURE)
def test_numpy_a_layer_that_changes_what_it_refers_to_is_not_compiled(layer):
    model, _ = both(lambda: [layer(), layers.Dense(2)])
    assert "changes in a step" in StepRunner(model).steps.guard.reason


def test_numpy_what_cannot_be_compared_is_not_compiled():
    model, _ = both(lambda: [Cycles(), layers.Dense(2)])
    assert "cannot be compared" in StepRunner(model).steps.guard.reason


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.random()], ids=["random", "numpy"])  # noqa: NPY002
def test_numpy_generators_of_the_whole_process_are_noticed(draw):
    class Draws(layers.Layer):
        def forward(self, ctx, params, x):
            return scaled(x, 0.5 if draw() < 0.1 else 1.0)

    def build():
        random.seed(4)
        np.random.seed(4)  # noqa: NPY002
        return [Draws(), layers.Dense(2)]

    both(build)


def test_the_log_says_what_changes(caplog):
    with caplog.at_level("INFO", logger="nnx"):
        both(lambda: [CountsInAttribute(), layers.Dense(2)])
    told = [record.getMessage() for record in caplog.records if "not compiled" in record.getMessage()]
    assert (
        told
        == ["steps on numpy run as Python, not compiled: layers.CountsInAttribute.calls changes in a step"]
        * 2
    )


@pytest.mark.parametrize("layer", [CountsInAttribute, KeepsByShape], ids=["counts", "kept by shape"])
def test_jax_runs_such_steps_as_python_too(layer):
    jax = pytest.importorskip("jax")
    assert jax
    expected = train(lambda: [layer(), layers.Dense(2)], fresh(False), epochs=2)[1]
    found = train(lambda: [layer(), layers.Dense(2)], nnx.as_backend("jax"), epochs=2)[1]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


class CountingLoss(losses.Loss):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, ctx, target, output):
        self.calls += 1
        factor, error = 1 + self.calls / 100, output - target
        return ctx.xp.mean(error**2, axis=-1) * factor, lambda d: 2 * error * (d / 2 * factor)[:, None]


class CountingMetric(nnx.metrics.MeanSquaredError):
    def __init__(self):
        super().__init__(name="counting")
        self.calls = 0

    def update(self, ctx, target, output, weight):
        self.calls += 1
        return {
            name: total * self.calls for name, total in super().update(ctx, target, output, weight).items()
        }


@pytest.mark.parametrize("part", ["loss", "metric"])
def test_numpy_losses_and_metrics_of_ones_own_are_watched_too(part):
    found = [
        train(
            lambda: [layers.Dense(2)],
            fresh(replays),
            loss=CountingLoss if part == "loss" else "mse",
            metrics=[CountingMetric()] if part == "metric" else [],
        )
        for replays in (True, False)
    ]
    np.testing.assert_array_equal(found[0][1], found[1][1])
    assert "calls changes in a step" in StepRunner(found[0][0]).steps.guard.reason


# Settings that change.


class Mine(layers.Layer):
    """A layer of one's own whose setting is an attribute."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = factor

    def scale(self, xp, x):
        return x * self.factor

    def forward(self, ctx, params, x):
        return ctx.kernel(self.scale, x), lambda dy: (ctx.kernel(self.scale, dy), {})


def set_layer(**settings):
    return lambda model: [setattr(model.layers[0], name, value) for name, value in settings.items()]


def set_optimizer(**settings):
    return lambda model: [setattr(model.optimizer, name, value) for name, value in settings.items()]


def dense(**settings):
    return lambda: [layers.Dense(3, "tanh", **settings), layers.Dense(2)]


CHANGES = {
    "own": {"build": lambda: [Mine(), layers.Dense(2)], "change": set_layer(factor=3.0)},
    "dropout": {"build": lambda: [layers.Dropout(0.2), layers.Dense(2)], "change": set_layer(rate=0.7)},
    "noise": {"build": lambda: [layers.GaussianNoise(0.2), layers.Dense(2)], "change": set_layer(stddev=3.0)},
    "batch normalization": {
        "build": lambda: [layers.BatchNormalization(), layers.Dense(2)],
        "change": set_layer(momentum=0.2, epsilon=0.3),
    },
    "slope": {
        "build": lambda: [layers.LeakyReLU(0.3), layers.Dense(2)],
        "change": set_layer(negative_slope=0.9),
    },
    "regularizer": {
        "build": lambda: dense(kernel_regularizer=regularizers.L2(0.1))(),
        "change": lambda model: setattr(model.layers[0].kernel_regularizer, "l2", 3.0),
    },
    "loss": {
        "build": dense(),
        "loss": lambda: losses.Huber(1.0),
        "change": lambda model: setattr(model.loss, "delta", 0.1),
    },
    "momentum": {
        "build": dense(),
        "optimizer": lambda: optimizers.SGD(0.1, momentum=0.5),
        "change": set_optimizer(momentum=0.9),
    },
    "momentum from 0": {
        "build": dense(),
        "optimizer": lambda: optimizers.SGD(0.1),
        "change": set_optimizer(momentum=0.9),
    },
    "no momentum": {
        "build": dense(),
        "optimizer": lambda: optimizers.SGD(0.1, momentum=0.5),
        "change": set_optimizer(momentum=0.0),
    },
    "nesterov": {
        "build": dense(),
        "optimizer": lambda: optimizers.SGD(0.1, momentum=0.5),
        "change": set_optimizer(nesterov=True),
    },
    "beta_1": {"build": dense(), "change": set_optimizer(beta_1=0.5)},
    "amsgrad": {"build": dense(), "change": set_optimizer(amsgrad=True)},
    "clipnorm": {"build": dense(), "change": set_optimizer(clipnorm=1e-6)},
    "clipvalue": {"build": dense(), "change": set_optimizer(clipvalue=1e-6)},
    "weight_decay": {"build": dense(), "change": set_optimizer(weight_decay=5.0)},
    "centered": {
        "build": dense(),
        "optimizer": optimizers.RMSprop,
        "change": set_optimizer(centered=True, momentum=0.5),
    },
}


@pytest.mark.parametrize("case", CHANGES.values(), ids=CHANGES)
def test_numpy_a_setting_takes_effect_at_the_next_step(case):
    _, changed = both(**case)
    _, unchanged = train(**{**case, "change": None}, backend=fresh(True))
    np.testing.assert_array_equal(changed[..., :2], unchanged[..., :2])
    assert not np.allclose(changed[..., 3], unchanged[..., 3], rtol=1e-9)


@pytest.mark.parametrize("name", ["own", "slope", "momentum from 0"])
def test_jax_a_setting_takes_effect_at_the_next_step(name):
    pytest.importorskip("jax")
    expected = train(**CHANGES[name], backend=fresh(False))[1]
    np.testing.assert_allclose(train(**CHANGES[name], backend=nnx.as_backend("jax"))[1], expected, rtol=1e-9)


def test_a_momentum_that_is_set_gives_what_it_gives_from_the_start(any_backend):
    def weights(momentum, then):
        model = nnx.Sequential([layers.Dense(2)], seed=0)
        model.compile(optimizers.SGD(0.1, momentum=momentum), "mse")
        model.build((4,))
        model.optimizer.momentum = then
        model.fit(X, Y, epochs=2, verbose=0)
        return model.get_weights()

    for mine, expected in zip(weights(0.0, 0.9), weights(0.9, 0.9), strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_predictions_follow_the_settings(any_backend):
    for layer, name in ((layers.LeakyReLU(0.5), "negative_slope"), (Mine(0.5), "factor")):
        model = nnx.Sequential([layer], seed=0)
        model.build((4,))
        for rows in (2, 20_000):  # on NumPy large arrays take another way
            x = -np.ones((rows, 4), np.float32)
            setattr(layer, name, 0.5)
            np.testing.assert_allclose(model.predict(x, batch_size=rows), x * 0.5)
            setattr(layer, name, 0.25)
            np.testing.assert_allclose(model.predict(x, batch_size=rows), x * 0.25)


def test_a_setting_that_the_weights_do_not_fit_is_an_error():
    model, _ = train(dense(), fresh(True), epochs=1)
    model.layers[0].use_bias = False
    with pytest.raises(
        ValueError, match=r"settings have changed since the model was built: weight dense/bias .*anew"
    ):
        model.fit(X, Y, verbose=0)


def test_steps_are_compiled_once_as_long_as_nothing_changes():
    model, _ = train(dense(), fresh(True), epochs=2)
    steps = StepRunner(model).steps
    model.optimizer.learning_rate = 0.5  # an argument of each step
    layers.Dense(3).units = 4  # another's
    model.fit(X, Y, verbose=0)
    assert StepRunner(model).steps is steps
    own, _ = train(lambda: [Mine(), layers.Dense(2)], fresh(True), epochs=2)
    steps = StepRunner(own).steps
    own.fit(X, Y, verbose=0)
    assert StepRunner(own).steps is steps


# Fingerprints.


def test_fingerprints_tell_values_apart():
    def taken(value):
        return Fingerprint().of(value)

    class Holds:
        def __init__(self, value):
            self.value = value

    values = [
        0, 0.0, -0.0, False, None, "0", b"0", (0,), [0], {0}, {0: 0}, {"0": 0}, np.zeros(1), np.zeros(1, "f4"),
        np.zeros((1, 1)), np.float32(0), [np.zeros(1)], [[0]], [np.ones(1)], collections.deque([0]), range(1),
        lambda x: x, lambda x, y=0: x, Holds(0), Holds(0.0), Holds([0]), layers.Dropout(0.1), layers.Dropout(0.2),
    ]  # fmt: skip
    for a, b in itertools.combinations(values, 2):
        assert taken(a) != taken(b), (a, b)
    for value in values:
        assert taken(value) == taken(value), value
        assert hash(taken(value)) == hash(taken(value))
    assert taken(float("nan")) == taken(float("nan"))


def test_fingerprints_end_with_objects_that_refer_to_themselves():
    ring = []
    ring.append(ring)
    before = Fingerprint().of({"ring": ring, "other": [1, ring]})
    ring.append(1)
    assert Fingerprint().of({"ring": ring, "other": [1, ring]}) != before


def test_the_difference_is_named():
    layer = Mine()
    before = Fingerprint().of(layer)
    layer.factor = 2.0
    assert difference(before, Fingerprint().of(layer)) == "Mine.factor"


def test_a_kernel_is_remembered_by_what_it_refers_to():
    def times(factor):
        return lambda xp, x: x * factor

    assert kernel_key(times(2.0)) == kernel_key(times(2.0)) != kernel_key(times(3.0))
    for may_change in (np.ones(2), random.Random(0), itertools.cycle([1])):
        assert kernel_key(times(may_change)) is None  # such a kernel is not remembered
    slope = nnx.activations.LeakyReLU(0.1)
    before = kernel_key(slope.forward)
    slope.negative_slope = 0.2
    assert kernel_key(slope.forward) != before
