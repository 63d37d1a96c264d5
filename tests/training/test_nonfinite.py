"""Numbers that go wrong in `fit`: noticed, placed at the true step and layer, and undone bit for bit."""

import traceback

import numpy as np
import pytest
from thread_ranks import on_ranks

import nnx
from nnx import callbacks, layers, tree
from nnx.training import nonfinite_guard

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


@nnx.register
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


def build(
    *inner,
    rate=0.1,
    optimizer=nnx.optimizers.SGD,
    first=(),
    loss="sparse_categorical_crossentropy",
    **settings,
):
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
    return [
        model.backend.to_numpy(leaf)
        for part in (model.params, model.state, model.slots)
        for leaf in tree.leaves(part)
    ]


# Where


def test_a_learning_rate_that_is_too_large(any_backend):
    model = build(rate=1e30)
    text = told(
        lambda: fit(model),
        r"^in epoch 1, step 2 \(step 2 since compile\), the output of layer dense_1 \(Dense\)",
    )
    assert "Likely cause: the learning rate is too large: try a smaller learning rate" in text
    assert "learning rate 1e+30" in text
    assert "too large to go on from" in text
    assert_as_if_stopped(model, build(rate=1e30), 1)
    assert model.history.history == {}


def test_inputs_that_are_too_large(any_backend):
    x = X.copy()
    x[:, 2] *= 1e30
    model, reference = build(layers.BatchNormalization()), build(layers.BatchNormalization())
    text = told(
        lambda: fit(model, x), r"^in epoch 1, step 1 .*batch_normalization/moving_variance, a moving average"
    )
    assert "Likely cause: the inputs are not scaled" in text
    assert_as_if_stopped(model, reference, 0)
    told(
        lambda: fit(build(), x),
        r"(?s)^in epoch 1, step 2 .*Likely cause: the inputs are not scaled.*StandardScaler",
    )


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


@pytest.mark.parametrize(
    "settings", [{}, {"shuffle": False}, {"shuffle": np.flip}], ids=["shuffled", "as given", "a function"]
)
@pytest.mark.parametrize("at", [5, 6, 16])
def test_several_epochs_in(any_backend, at, settings):
    """Step 5 is the shorter last batch of the first epoch, 6 the first of the second."""
    model, reference = (build(Countdown(n), optimizer=nnx.optimizers.Adam) for n in (at, 99))
    told(
        lambda: fit(model, epochs=20, **settings),
        rf"^in epoch {at // 6 + 1}, step {at % 6 + 1} \(step {at + 1} .*countdown",
    )
    assert_as_if_stopped(model, reference, at, **settings)
    assert len(model.history.epoch) == at // 6
    assert np.isfinite(model.history.history.get("loss", [])).all()


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
            return (
                values,
                lambda dvalues: -dvalues[..., None] * target / xp.sum(target * output, axis=-1)[..., None],
            )

    y = np.eye(3, dtype=np.float32)[Y]
    y[50] = 0
    model = build(loss=Logarithm())
    step = step_of(model, 50, epoch=0)
    text = told(
        lambda: fit(model, X, y),
        rf"^in epoch 1, step {step + 1} .*the loss is not finite \(1 of \d+ values infinite",
    )
    assert "a logarithm of 0 or a division by 0 in the loss Logarithm" in text


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_gradient_that_is_not_a_number_with_a_finite_loss(any_backend, epochs):
    """In the last step of the first epoch: the loss shows it in the second, if there is one."""

    def positive():
        return layers.Dense(6, use_bias=False, kernel_initializer=nnx.initializers.Constant(1.0))

    model, reference = (build(first=[positive(), BackwardTrap()], rate=0.01) for _ in range(2))
    x = X.copy()
    x[105] = MARK
    text = told(
        lambda: fit(model, x, shuffle=False, epochs=epochs),
        r"^in epoch 1, step 6 .*the gradient of layer backward_trap \(BackwardTrap\) by its input is not finite",
    )
    assert "a derivative that is infinite" in text
    assert_as_if_stopped(model, reference, 5, x, shuffle=False)


@pytest.mark.filterwarnings("ignore:Targets go from 0 to 1000")
def test_weights_that_overflow_in_the_last_step(any_backend):
    model, reference = build(loss="mse"), build(loss="mse")
    model.compile(nnx.optimizers.SGD(3e38), "mse")
    text = told(
        lambda: fit(model, X, 1e3 * np.eye(3)[Y], epochs=1, batch_size=110),
        r"^in epoch 1, step 1 .*the updated weights .*/.* are not finite, of a gradient that is",
    )
    assert "Likely cause: the targets are not scaled" in text or "the learning rate is too large" in text
    assert_as_if_stopped(model, reference, 0)


def test_float16(any_backend):
    """Steps that the scale of the loss leaves out are none that go wrong; a loss that is not finite is."""
    if "float16" not in any_backend.dtypes:
        pytest.skip(f"{any_backend.name} has no float16")
    model = build(dtype="float16", rate=0.01)
    model.build((6,))
    model.loss_scale = {**model.carry["scale"], "factor": model.carry["scale"]["factor"] * 2.0**20}
    fit(model, epochs=3)
    assert float(any_backend.to_numpy(model.loss_scale["factor"])) < 2.0**30
    before = model.step
    text = told(lambda: fit(model, X * 1e4), r"the output of layer dense.* is not finite")
    assert "float16 holds nothing beyond 65504" in text
    assert model.step >= before


def test_weights_that_were_not_finite_at_the_start(any_backend):
    model = build()
    model.build((6,))
    model.set_weights([w * np.nan if w.shape == (3,) else w for w in model.get_weights()])
    text = told(lambda: fit(model), r"^in epoch 1, step 1 .*the output of layer dense_1 ")
    assert "Likely cause: the weights held it before this step" in text


# When it is looked at


@pytest.fixture
def reads(any_backend, monkeypatch):
    """Return a list that grows by one at each read of the host."""
    found, read = [], any_backend.read
    monkeypatch.setattr(any_backend, "read", lambda values: (found.append(1), read(values))[1])
    return found


@pytest.mark.parametrize("extra", [[], [callbacks.Callback()]], ids=["quiet", "callback"])
@pytest.mark.parametrize("data", ["arrays", "batches"])
def test_one_read_an_epoch(any_backend, reads, extra, data):
    x, y = (X, Y) if data == "arrays" else ([(X[i : i + 20], Y[i : i + 20]) for i in range(0, 110, 20)], None)
    fit(build(), x, y, epochs=4, callbacks=extra)
    assert len(reads) == 4


@pytest.mark.parametrize(
    "kept", [{"SECONDS_A_SNAPSHOT": 0.0}, {"SECONDS_A_CHECK": 0.0}, {"RUNS_KEPT": 1}], ids=str
)
@pytest.mark.parametrize("data", ["arrays", "batches", "a callback at each batch"])
def test_copies_are_made_anew(any_backend, monkeypatch, kept, data):
    for name, value in kept.items():
        monkeypatch.setattr(nonfinite_guard, name, value)
    model, reference = (build(Countdown(at), optimizer=nnx.optimizers.Adam) for at in (15, 99))
    model.build((6,))
    model._compiled_steps.steps_a_run = 4
    batches = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 110, 20)]
    x, y = (batches, None) if data == "batches" else (X, Y)
    extra = [Stop(99)] if data.startswith("a callback") else []
    told(lambda: fit(model, x, y, epochs=20, callbacks=extra), r"^in epoch 3, step 4 \(step 16 .*countdown")
    assert_as_if_stopped(model, reference, 15, x, y)


def test_within_a_long_epoch(any_backend, monkeypatch):
    """It is said at the next look, not at the end of the epoch."""
    monkeypatch.setattr(nonfinite_guard, "SECONDS_A_CHECK", 0.0)
    model = build(Countdown(7))
    seen = []
    hook = callbacks.LambdaCallback(on_progress=lambda done, total: seen.append(done))
    model.build((6,))
    model._compiled_steps.steps_a_run = 2
    monkeypatch.setattr(model.backend, "seconds_a_run", 1e-9)  # then of one step each
    told(lambda: fit(model, batch_size=5, callbacks=[hook]), r"^in epoch 1, step 8 ")
    assert max(seen) <= 8


def test_the_batches_of_a_stream_that_are_kept_are_bounded(any_backend, monkeypatch):
    held = []
    note = nonfinite_guard.NonfiniteGuard.before
    monkeypatch.setattr(
        nonfinite_guard.NonfiniteGuard,
        "before",
        lambda self, *a, **k: (note(self, *a, **k), held.append(len(self.journal)))[0],
    )
    monkeypatch.setattr(
        nonfinite_guard, "ELEMENTS_KEPT", 10 * 20 * 8
    )  # ten batches of 20 samples of 8 numbers
    model, reference = (build(Countdown(at)) for at in (57, 99))
    batches = [(X[:20], Y[:20])] * 60
    told(lambda: fit(model, batches, None, epochs=1), r"^in epoch 1, step 58 ")
    assert max(held) == 10
    assert_as_if_stopped(model, reference, 57, batches, None)


def test_in_one_batch_of_all_samples(any_backend):
    model, reference = (build(Countdown(at)) for at in (5, 99))
    text = told(
        lambda: fit(model, epochs=20, batch_size=110, shuffle=False),
        r"^in epoch 6, step 1 \(step 6 since compile\), the output",
    )
    assert "countdown" in text
    assert_as_if_stopped(model, reference, 5, batch_size=110, shuffle=False)


def test_a_batch_whose_memory_is_used_again(any_backend):
    """The batches that are kept are not those of the host."""
    x, y = np.empty((20, 6), np.float32), np.empty(20, np.int64)

    def batches():
        for i in range(0, 100, 20):
            x[...], y[...] = X[i : i + 20], Y[i : i + 20]
            yield x, y

    given = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 100, 20)]
    model, reference = (build(Countdown(at)) for at in (4, 99))
    told(lambda: fit(model, batches(), None, epochs=1), r"^in epoch 1, step 5 ")
    assert_as_if_stopped(model, reference, 4, given, None)


def test_a_copy_that_is_kept_on_the_host(any_backend, monkeypatch):
    model, reference = (
        build(Countdown(at), layers.BatchNormalization(), optimizer=nnx.optimizers.Adam) for at in (8, 99)
    )
    monkeypatch.setattr(any_backend, "free_memory", lambda: 10_000)
    monkeypatch.setattr(nonfinite_guard, "SMALL", 0)
    told(lambda: fit(model), r"^in epoch 2, step 3 ")
    assert_as_if_stopped(model, reference, 8)


# Beside callbacks


def test_weights_and_rates_that_callbacks_set(any_backend):
    class Meddler(callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.set_weights([w * 0.5 for w in self.model.get_weights()])  # the count of passes too
            self.model.optimizer.learning_rate = 0.1 / (epoch + 1)

    def run(at, *extra):
        model = build(Countdown(at))
        settings = {"epochs": 20, "callbacks": [Meddler(), *extra]}
        if extra:
            fit(model, **settings)
        else:
            told(lambda: fit(model, **settings), r"^in epoch 4, step 6 \(step 24 ")
        return model

    model, reference = run(20), run(99, Stop(23))
    for mine, theirs in zip(everything(model), everything(reference), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)


def test_terminate_on_nan(any_backend, capsys):
    model, reference = build(Countdown(8)), build(Countdown(99))
    fit(model, epochs=9, callbacks=[callbacks.TerminateOnNaN()])
    assert [np.isfinite(loss) for loss in model.history.history["loss"]] == [True, False]
    assert (
        "training stops: in epoch 2, step 3 (step 9 since compile), the output of layer countdown"
        in capsys.readouterr().out
    )
    assert_as_if_stopped(model, reference, 8)


def test_terminate_on_nan_within_an_epoch(any_backend, monkeypatch, capsys):
    monkeypatch.setattr(nonfinite_guard, "SECONDS_A_CHECK", 0.0)
    for x, y in ((X, Y), ([(X[i : i + 20], Y[i : i + 20]) for i in range(0, 110, 20)], None)):
        model = build(Countdown(8))
        fit(model, x, y, epochs=9, callbacks=[callbacks.TerminateOnNaN()])
        assert model.step == 8
        assert capsys.readouterr().out.count("training stops: in epoch 2, step 3") == 1


def test_no_file_holds_what_is_not_finite(any_backend, tmp_path):
    """Not even where the loss does not show it yet, in the last step of an epoch."""
    positive = layers.Dense(6, use_bias=False, kernel_initializer="ones")
    model, x = build(first=[positive, BackwardTrap()], rate=0.01), X.copy()
    saving = callbacks.ModelCheckpoint(tmp_path / "{epoch}.nnx", save_state=True)
    keeping = callbacks.EarlyStopping("loss", patience=9, restore_best_weights=True)
    settings = {"callbacks": [saving, keeping], "shuffle": False}
    fit(model, epochs=2, **settings)
    x[105] = MARK
    told(
        lambda: fit(model, x, epochs=3, **settings),
        r"^in epoch 1, step 6 \(step 18 .*gradient of layer backward_trap",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.nnx", "2.nnx", "state.nnx"]
    assert all(np.isfinite(weights).all() for weights in model.get_weights())
    nnx.load(tmp_path / "2.nnx").fit(X, Y, verbose=0)


def test_a_validation_loss_that_is_not_finite_is_a_warning(any_backend):
    x = marked()
    model = build(first=[Trap()])
    with pytest.warns(UserWarning, match=r"^val_loss is nan in epoch 1, while the loss is finite") as seen:
        history = fit(model, validation_data=(x, Y), epochs=3).history
    assert [warning.filename for warning in seen] == [__file__]
    assert np.isnan(history["val_loss"]).all()
    assert np.isfinite(history["loss"]).all()


def test_train_on_batch_returns_what_it_finds(any_backend):
    model = build(first=[Trap()])
    assert np.isnan(model.train_on_batch(marked(), Y))


# Several processes


class NanLoss(nnx.losses.MeanSquaredError):
    """A loss that is not a number at a certain target, with a gradient that is."""

    def value(self, xp, target, output):
        return super().value(xp, target, output) * nan_where(xp, target == MARK)

    def slope(self, xp, target, output):
        return output * 0.0


@pytest.mark.parametrize("row", [0, 19])
@pytest.mark.parametrize("of_loss", [False, True])
def test_all_ranks_raise(row, of_loss):
    """The sample is in the part of one of them."""

    def run(communicator):
        model = build(first=[Trap()])
        if of_loss:
            model.compile("sgd", NanLoss())
        with pytest.raises(nnx.NonFiniteError) as caught:
            fit(model, x, y, shuffle=False, epochs=3)
        return str(caught.value), model.step, model.get_weights()

    x, y = X.copy(), Y
    if of_loss:
        y = np.zeros((110, 3), np.float32)
        y[40 + row] = MARK
    else:
        x[40 + row, 0] = MARK
    found = on_ranks(2, run)
    assert all(text.startswith("in epoch 1, step 3 ") for text, _, _ in found)
    own, other = found if row == 0 else found[::-1]
    assert "the loss is not finite" in own[0] if of_loss else "layer trap" in own[0]
    assert "another process has a value that is not finite" in other[0]
    assert found[0][1] == found[1][1] == 2
    for a, b in zip(found[0][2], found[1][2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_batches_of_a_stream_are_looked_at_by_all_ranks_at_the_same_step(monkeypatch):
    monkeypatch.setattr(nonfinite_guard, "BATCHES_SHARED", 3)

    def run(communicator):
        model = build(first=[Trap()])
        with pytest.raises(nnx.NonFiniteError) as caught:
            fit(model, batches, None, epochs=1)
        return str(caught.value), model.step

    batches = [(X[:20], Y[:20])] * 7 + [(marked(0)[:20], Y[:20])]
    found = on_ranks(2, run)
    assert all(text.startswith("in epoch 1, step 8 ") and step == 7 for text, step in found)


# Estimators


def test_estimators_say_what_scikit_learn_says():
    """And, as the cause of that, where it began."""
    estimators = pytest.importorskip("nnx.estimators")
    net = estimators.MLPClassifier(solver="sgd", learning_rate_init=1e30, max_iter=5)
    with pytest.raises(
        ValueError, match=r"^Solver produced non-finite parameter weights\. The input .*\.$"
    ) as caught:
        net.fit(X, Y)
    assert isinstance(caught.value.__cause__, nnx.NonFiniteError)
    assert str(caught.value.__cause__).startswith("in epoch 2, step 1 ")
