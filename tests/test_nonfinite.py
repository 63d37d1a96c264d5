"""Numbers that go wrong in `fit`: noticed, placed at the true step and layer, and undone bit for bit."""

import re
import traceback
import warnings

import numpy as np
import pytest
from test_distributed import on_ranks

import nnx
from nnx import callbacks, layers, tree, watch

RNG = np.random.default_rng(0)
X = RNG.standard_normal((110, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 110)
MARK = 77.0
# NumPy below array_api_strict warns of what is looked for here.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


class Trap(layers.Layer):
    """Passes its input on, but a sample whose first feature is MARK or more."""

    def forward(self, ctx, params, x):
        factor = nan_where(ctx.xp, x[:, :1] >= MARK)
        return x * factor, lambda dy: (dy * factor, {})


class BackwardTrap(layers.Layer):
    """A layer whose gradient alone goes wrong, at the same sample."""

    def forward(self, ctx, params, x):
        factor = nan_where(ctx.xp, x[:, :1] >= MARK)
        return x, lambda dy: (dy * factor, {})


def nan_where(xp, condition):
    ones = xp.astype(xp.ones_like(condition), xp.float32)
    return xp.where(condition, ones * float("nan"), ones)


class Countdown(layers.Layer):
    """Passes its input on, but for one step, whose number its state counts."""

    def __init__(self, at):
        super().__init__()
        self.at = at

    def init_state(self, in_shape):
        return {"passes": np.zeros(1)}

    def forward(self, ctx, params, x):
        xp = ctx.xp
        if not ctx.training:
            return x, lambda dy: (dy, {})
        passes = ctx.state["passes"]
        ctx.state["passes"] = passes + 1.0
        factor = nan_where(xp, passes == self.at)
        return x * factor, lambda dy: (dy * factor, {})


def build(*inner, rate=0.1, optimizer=nnx.optimizers.SGD, first=(), loss="sparse_categorical_crossentropy", **settings):
    model = nnx.Sequential(
        [*first, layers.Dense(8, "relu"), layers.Dropout(0.2), *inner, layers.Dense(3, "softmax")],
        seed=4,
        **settings,
    )
    model.compile(optimizer(rate), loss)
    return model


def marked(row=37):
    x = X.copy()
    x[row, 0] = MARK
    return x


def step_of(model, row, epoch, batch_size=20):
    """Return the step of an epoch, counted from 0, in which a sample is visited: shuffles are those of `fit`."""
    order = np.arange(len(X))
    steps = -(-len(X) // batch_size)
    nnx.random.generator(model.seed, nnx.random.SHUFFLE, epoch * steps).shuffle(order)
    return int(np.flatnonzero(order == row)[0]) // batch_size


def fit(model, x=X, y=Y, epochs=3, **settings):
    return model.fit(x, y, **{"batch_size": 20, "epochs": epochs, "verbose": 0, **settings})


def told(call, message, error=nnx.NonFiniteError):
    """Assert that a call fails with a message of a few lines and a short traceback; return its text."""
    with pytest.raises(error, match=message) as caught:
        call()
    text = str(caught.value)
    assert len(text.splitlines()) == 4
    assert len(traceback.extract_tb(caught.value.__traceback__)) <= 6
    return text


class Stop(callbacks.Callback):
    """Ends training after so many steps."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = self.model.step >= self.steps


def assert_as_if_stopped(model, reference, steps, x=X, y=Y, **settings):
    """Assert that all of a model is as in one that took so many steps on good numbers."""
    assert model.step == steps
    if steps:
        fit(reference, x, y, epochs=20, callbacks=[Stop(steps)], **settings)
        assert reference.step == steps
    else:
        reference.build((6,))
    for mine, theirs in zip(everything(model), everything(reference), strict=True):
        if model.backend.name == "jax":  # one step at a time is another program
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(mine, theirs)


def everything(model):
    return [model.backend.to_numpy(leaf) for part in (model.params, model.state, model.slots) for leaf in tree.leaves(part)]


# Where


def test_a_learning_rate_that_is_too_large(any_backend):
    model = build(rate=1e30)
    text = told(lambda: fit(model), r"^in epoch 1, step 2 \(step 2 since compile\), the output of layer dense_1 \(Dense\)")
    assert "Likely cause: the learning rate is too large: try a smaller learning rate" in text
    assert "learning rate 1e+30" in text
    assert "too large to go on from" in text
    assert_as_if_stopped(model, build(rate=1e30), 1)
    assert model.history.history == {}


def test_inputs_that_are_too_large(any_backend):
    x = X.copy()
    x[:, 2] *= 1e30
    model = build(layers.BatchNormalization(), optimizer=nnx.optimizers.Adam, rate=0.01)
    text = told(lambda: fit(model, x), r"^in epoch 1, step 1 .*batch_normalization, moving_variance|layer batch_normalization")
    assert "the inputs are not scaled" in text
    assert_as_if_stopped(model, build(layers.BatchNormalization(), optimizer=nnx.optimizers.Adam), 0)


@pytest.mark.parametrize("optimizer", [nnx.optimizers.Adam, nnx.optimizers.SGD])
def test_a_layer_that_fails_at_one_sample(any_backend, optimizer):
    """Dropout, shuffle, schedule and moving averages are in the steps that are taken again."""
    parts = {"optimizer": optimizer, "rate": nnx.schedules.ExponentialDecay(0.1, 4, 0.5)}
    model, reference = (build(layers.BatchNormalization(), first=[Trap()], **parts) for _ in range(2))
    fit(model, epochs=2)
    step = step_of(model, 37, epoch=2)
    place = rf"^in epoch 1, step {step + 1} \(step {12 + step + 1} since compile\), the output of layer trap \(Trap\)"
    text = told(lambda: fit(model, marked(), epochs=2), place + r" is not finite \(6 of \d+ values nan\)")
    assert "what the layer of your own computes" in text
    assert_as_if_stopped(model, reference, 12 + step)
    fit(model)  # it is usable
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.parametrize("settings", [{}, {"shuffle": False}, {"shuffle": np.flip}], ids=["shuffled", "as given", "a function"])
@pytest.mark.parametrize("at", [5, 6, 16])
def test_several_epochs_in(any_backend, at, settings):
    """Step 5 is the shorter last batch of the first epoch, 6 the first of the second."""
    model, reference = (build(Countdown(n), optimizer=nnx.optimizers.Adam) for n in (at, 99))
    told(lambda: fit(model, epochs=20, **settings), rf"^in epoch {at // 6 + 1}, step {at % 6 + 1} \(step {at + 1} .*countdown")
    assert_as_if_stopped(model, reference, at, **settings)
    assert len(model.history.epoch) == at // 6
    assert np.isfinite(model.history.history["loss"]).all()


def test_two_backends_say_the_same():
    def say(backend):
        model = build(Countdown(8), layers.BatchNormalization(), backend=backend)
        return told(lambda: fit(model), "^in epoch 2, step 3")

    assert say("numpy") == say("jax")


def test_a_logarithm_of_zero_in_a_loss(any_backend):
    class Logarithm(nnx.losses.Loss):
        def forward(self, ctx, target, output):
            xp = ctx.xp
            values = -xp.log(xp.sum(target * output, axis=-1))
            return values, lambda dvalues: -dvalues[..., None] * target / xp.sum(target * output, axis=-1)[..., None]

    y = np.eye(3, dtype=np.float32)[Y]
    y[50] = 0
    model = build(loss=Logarithm())
    step = step_of(model, 50, epoch=0)
    text = told(lambda: fit(model, X, y), rf"^in epoch 1, step {step + 1} .*the loss is not finite \(1 of \d+ values infinite")
    assert "a logarithm of 0 or a division by 0 in the loss Logarithm" in text


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_gradient_that_is_not_a_number_with_a_finite_loss(any_backend, epochs):
    """In the last step of the first epoch: the loss shows it in the second, if there is one."""
    positive = layers.Dense(6, use_bias=False, kernel_initializer=nnx.initializers.Constant(1.0))
    model, reference = (build(first=[positive, BackwardTrap()], rate=0.01) for _ in range(2))
    x = X.copy()
    x[105] = MARK
    text = told(
        lambda: fit(model, x, shuffle=False, epochs=epochs),
        r"^in epoch 1, step 6 .*the gradient of layer backward_trap \(BackwardTrap\) by its input is not finite",
    )
    assert "a derivative that is infinite" in text
    assert_as_if_stopped(model, reference, 5, x, shuffle=False)


def test_weights_that_overflow_in_the_last_step(any_backend):
    model, reference = build(loss="mse"), build(loss="mse")
    model.compile(nnx.optimizers.SGD(3e38), "mse")
    text = told(
        lambda: fit(model, X, 1e3 * np.eye(3)[Y], epochs=1, batch_size=110),
        r"^in epoch 1, step 1 .*the updated weights .*/.* are not finite, of a gradient that is",
    )
    assert "Likely cause: the targets are not scaled" in text or "the learning rate is too large" in text
    assert_as_if_stopped(model, reference, 0)
