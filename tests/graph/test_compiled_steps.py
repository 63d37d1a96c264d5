"""Steps compiled from a trace do what the plain steps do, bit for bit, or are not compiled.

On NumPy, and on CuPy with `pytest --cupy`.
"""

import copy
import enum
import functools
import itertools
import re
import threading

import numpy as np
import pytest
from nnx.backends.numpy import backend as numpy_backend
from nnx.backends.shared import replay
from nnx.backends.shared.replay import CompiledStep, NotCompiled

import nnx
from nnx import activations, layers, losses, optimizers, tree
from nnx.graph import tracing
from nnx.training.preparation import prepared
from nnx.training.runner import StepRunner

RNG = np.random.default_rng(0)
X = RNG.standard_normal((70, 6)).astype(np.float32)
CLASSES = RNG.integers(0, 3, 70)
VALUES = RNG.random((70, 3)).astype(np.float32)


def fresh(replays: bool):
    """Return the current backend made anew, so that no steps are shared."""
    backend = type(nnx.get_backend())()
    backend.replays = replays
    return backend


def on_numpy() -> bool:
    return nnx.get_backend().name == "numpy"


def train(build, backend, y=CLASSES, **settings):
    """Return the trained model and all numbers it gave."""
    with nnx.use_backend(backend):
        model = build()
        history = model.fit(X, y, **{"epochs": 3, "batch_size": 16, "verbose": 0} | settings)
    assert model.backend is backend
    return model, history.history


def programs(steps) -> list:
    """Return what a `Replay` knows of the shapes it has seen."""
    return steps.programs


def close(a, b):
    """A GPU's compiler may contract what is fused, so that the last bits differ."""
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def expect_same(build, y=CLASSES, compiled=True, **settings):
    """Train with and without compiled steps: everything must be the same bits on NumPy."""
    mine, numbers = train(build, fresh(True), y, **settings)
    plain, expected = train(build, fresh(False), y, **settings)
    carries = [[m.backend.to_numpy(leaf) for leaf in replay.flatten(m.carry)] for m in (mine, plain)]
    same = np.testing.assert_array_equal if on_numpy() else close
    for a, b in zip([*numbers.values(), *carries[0]], [*expected.values(), *carries[1]], strict=True):
        same(a, b)
    found = programs(StepRunner(mine).steps.train)
    assert all(isinstance(p, CompiledStep if compiled else NotCompiled) for p in found), found
    return found


LAST_ACTIVATIONS = {
    "categorical": "softmax",
    "binary": "sigmoid",
    "kl_divergence": "softmax",
    "poisson": "softplus",
}


def network(
    *inner,
    optimizer="adam",
    loss="sparse_categorical_crossentropy",
    metrics=("accuracy",),
    units=3,
    **settings,
):
    def build():
        activation = next((a for part, a in LAST_ACTIVATIONS.items() if part in str(loss)), None)
        model = nnx.Sequential([*copy.deepcopy(inner), layers.Dense(units, activation)], seed=1)
        model.compile(optimizer, loss, metrics=list(metrics), **settings)
        return model

    return build


def _as_ids(xp, x):
    return xp.abs(xp.tanh(x)) * 4, xp.zeros_like


ADAM = optimizers.Adam
EACH_LAYER = {
    "dense": layers.Dense(5, "relu"),
    "no bias": layers.Dense(5, "tanh", use_bias=False),
    "regularized": layers.Dense(5, kernel_regularizer="l2", activity_regularizer="l1"),
    "batch normalization": layers.BatchNormalization(),
    "dropout": layers.Dropout(0.3),
    "residual": layers.Residual(layers.Dense(6, "relu")),
    "parallel": layers.Parallel([layers.Dense(4), layers.Dense(3)]),
    "parallel, added": layers.Parallel([layers.Dense(4), layers.Dense(4)], merge="add"),
    # Both kernels have the same gradient, and the one that is computed last is packed first.
    "parallel, added, in another order": layers.Parallel(
        {"b": layers.Dense(4), "a": layers.Dense(4)}, merge="add"
    ),
    "chain": layers.Chain(
        [layers.Dense(4, "relu"), layers.Dropout(0.5), layers.Reshape((2, 2)), layers.Flatten()]
    ),
    "layer normalization": layers.LayerNormalization(),
    "group normalization": layers.GroupNormalization(2),
    "rms normalization": layers.RMSNormalization(),
    "spatial dropout": layers.Chain([layers.Reshape((2, 3)), layers.SpatialDropout1D(0.3), layers.Flatten()]),
    "spatial dropout of images": layers.Chain(
        [layers.Reshape((1, 2, 3)), layers.SpatialDropout2D(0.3), layers.Flatten()]
    ),
    "gaussian noise": layers.GaussianNoise(0.3),
    "gaussian dropout": layers.GaussianDropout(0.3),
    "alpha dropout": layers.AlphaDropout(0.3),
    "wide noise": layers.Chain([layers.Dense(900), layers.GaussianDropout(0.2), layers.AlphaDropout(0.2)]),
    "permuted": layers.Chain([layers.Reshape((2, 3)), layers.Permute((2, 1)), layers.Flatten()]),
    "repeated": layers.Chain([layers.RepeatVector(3), layers.Dense(2), layers.Flatten()]),
    "prelu": layers.PReLU(),
    "function": layers.Chain([layers.Dense(4), layers.Lambda(lambda x: (x * 2, lambda dy: dy * 2))]),
    "parallel, multiplied": layers.Parallel(
        *(layers.Dense(4, name=name) for name in "abc"), merge="multiply"
    ),
    "parallel, averaged": layers.Parallel(layers.Dense(4), layers.Dense(4), merge="average"),
    "parallel, maximum": layers.Parallel(layers.Dense(4), layers.Dense(4), merge="maximum"),
    "embedding": layers.Chain([layers.Lambda(_as_ids), layers.Embedding(4, 3), layers.Flatten()]),
    **{name: layers.Chain([layers.Reshape((6, 1)), layers.Dense(4), *made, layers.Flatten()]) for name, made in {
        "attention": [layers.MultiHeadAttention(2, 3, dropout=0.2)],
        "attention, causal, in blocks": [
            layers.MultiHeadAttention(2, 2, dropout=0.2, use_causal_mask=True, rotary=True, block_size=4)
        ],
        "cross attention": [
            layers.Outputs([], layers.Dense(3)), layers.MultiHeadAttention(1, 2, use_causal_mask=True)
        ],
        "positions": [layers.SinusoidalPositions(), layers.PositionEmbedding(7), layers.RotaryPositions()],
        "transformer": [layers.TransformerBlock(2, 5, dropout=0.1, rotary=True)],
        "transformer, pre-norm": [layers.TransformerBlock(2, 5, activation="gelu", norm_first=True)],
    }.items()},
    "recurrent": [
        layers.Reshape((3, 2)),
        layers.Masking(),
        layers.SimpleRNN(3, return_sequences=True, dropout=0.2),
        layers.TimeDistributed(layers.Dense(3, "relu")),
        layers.LSTM(3, recurrent_dropout=0.2, return_sequences=True, go_backwards=True),
        layers.BatchNormalization(),
        layers.GRU(3),
    ],
    "recurrent, both ways": [
        layers.Reshape((2, 3)),
        layers.Bidirectional(layers.GRU(2, reset_after=False, return_sequences=True), "mul"),
        layers.Bidirectional(layers.LSTM(2, "gelu", return_sequences=True)),
        layers.GlobalAveragePooling1D(),
    ],
    "wide": layers.Dense(900, "relu"),  # beyond the block of a kernel
    **{name: layers.Dense(5, name) for name in sorted(activations._registry.names())},
    **{name: [layers.Reshape((2, 3) if "1D" in name else (3, 2, 1)), *made, layers.Flatten()]
       for name, made in {
           "Conv1D": [layers.Conv1D(2, 2, padding="causal")],
           "Conv2D": [layers.Conv2D(2, 2, activation="relu"), layers.Conv2D(2, 3, padding="same")],
           "Conv2D in groups": [layers.Conv2D(2, 1), layers.Conv2D(4, 2, padding="same", groups=2)],
           "DepthwiseConv2D": [layers.Conv2D(2, 1), layers.DepthwiseConv2D(2, padding="same", depth_multiplier=2)],
           "SeparableConv2D": [layers.Conv2D(2, 1), layers.SeparableConv2D(2, 2)],
           "Conv2DTranspose": [layers.Conv2DTranspose(2, 2), layers.Conv2DTranspose(2, 2, 2)],
           "UpSampling2D": [layers.Conv2D(2, 1), layers.UpSampling2D()],
           "ZeroPadding1D": [layers.Conv1D(2, 1), layers.ZeroPadding1D()],
           "ZeroPadding2D": [layers.Conv2D(2, 1), layers.ZeroPadding2D()],
           "Cropping1D": [layers.Conv1D(2, 1), layers.Cropping1D((1, 0))],
           "Cropping2D": [layers.Conv2D(2, 1), layers.Cropping2D((1, 0))],
           "MaxPooling1D": [layers.MaxPooling1D(2, 1)],
           "MaxPooling2D": [layers.Conv2D(2, 1), layers.MaxPooling2D(2, 1, "same")],
           "AveragePooling1D": [layers.Conv1D(2, 1), layers.AveragePooling1D(2, 1, "same")],
           "AveragePooling2D": [layers.Conv2D(2, 1), layers.AveragePooling2D(2, 1)],
           "GlobalMaxPooling1D": [layers.Conv1D(2, 1), layers.GlobalMaxPooling1D()],
           "GlobalMaxPooling2D": [layers.Conv2D(2, 1), layers.GlobalMaxPooling2D()],
           "GlobalAveragePooling1D": [layers.Conv1D(2, 1), layers.GlobalAveragePooling1D()],
           "GlobalAveragePooling2D": [layers.Conv2D(2, 1), layers.GlobalAveragePooling2D()],
       }.items()},
}  # fmt: skip


@pytest.mark.parametrize("inner", EACH_LAYER.values(), ids=EACH_LAYER)
def test_layers(inner):
    inner = layers.Chain(inner) if isinstance(inner, list) else inner
    assert len(expect_same(network(inner))) == 2  # whole batches, and the last


EACH_OPTIMIZER = {
    **{name: optimizers.get(name) for name in sorted(optimizers._registry.names())},
    "weight decay": ADAM(weight_decay=0.1),
    "clipvalue": ADAM(clipvalue=0.01),
    "clipnorm": ADAM(clipnorm=0.1),
    "global_clipnorm": ADAM(global_clipnorm=0.1),
    "amsgrad": ADAM(amsgrad=True),
    "nesterov": optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "schedule": ADAM(nnx.schedules.ExponentialDecay(0.1, 3, 0.5)),
}


@pytest.mark.parametrize("optimizer", EACH_OPTIMIZER.values(), ids=EACH_OPTIMIZER)
def test_optimizers(optimizer):
    expect_same(network(layers.Dense(5, "relu"), optimizer=optimizer))


TARGETS = {
    "sparse_categorical_crossentropy": (CLASSES, 3),
    "categorical_crossentropy": (np.eye(3, dtype=np.float32)[CLASSES], 3),
    "binary_crossentropy": ((VALUES > 0.5).astype(np.float32), 3),
    "poisson": (np.floor(VALUES * 5), 3),
}


@pytest.mark.parametrize("loss", sorted(nnx.registry.REGISTRIES["loss"].names()))
def test_losses(loss):
    y, units = TARGETS.get(loss, (VALUES, 3))
    metrics = ["accuracy"] if "crossentropy" in loss else ["mae", "mse"]
    expect_same(network(layers.Dense(5), loss=loss, metrics=metrics, units=units), y)


def test_validation_weights_and_classes():
    weights = RNG.random(70)
    expect_same(
        network(
            layers.Dense(5, "relu"),
            metrics=("accuracy", "f1"),
            weighted_metrics=["sparse_top_k_categorical_accuracy"],
        ),
        sample_weight=weights,
        class_weight={0: 1.0, 1: 2.0, 2: 0.5},
        validation_split=0.2,
    )


def test_float64_and_evaluate():
    def build():
        model = nnx.Sequential([layers.Dense(5, "relu"), layers.Dense(3, "softmax")], seed=1, dtype="float64")
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    expect_same(build)
    mine, plain = (train(build, fresh(r))[0] for r in (True, False))
    assert mine.evaluate(X, CLASSES, batch_size=8) == plain.evaluate(X, CLASSES, batch_size=8)
    assert all(
        isinstance(p, (CompiledStep, tracing.Trace)) for p in programs(StepRunner(mine).steps.evaluate)
    )
    assert any(isinstance(p, CompiledStep) for p in programs(StepRunner(mine).steps.evaluate))


class Writes(layers.Layer):
    """y = x + w, written into an array that the layer has just made."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def init(self, rng, in_shape):
        return {"w": rng.uniform(0.5, 1.5, in_shape).astype(np.float32)}, in_shape

    def forward(self, ctx, params, x):
        made = self.way(x, params["w"])
        return made, lambda dy: (dy, {"w": ctx.xp.sum(dy, axis=0)})


def adds_in_place(x, w):
    made = np.zeros_like(x)
    made += x
    made += w
    return made


def copies(x, w):
    made = x * 2
    np.copyto(made, x)
    return made + w


def adds_into(x, w):
    made = np.empty_like(x)
    return np.add(x, w, made)


def writes_into_a_view(x, w):
    made = x + w
    view = np.reshape(made, (-1,))
    np.multiply(view, 2.0, out=view)
    np.nan_to_num(made, copy=False)
    return made


def fills_where(x, w):
    made = x + w
    np.putmask(made, made > 1e6, made)
    return made


def into_an_array_of_its_own(x, w):
    made = np.zeros(x.shape, x.dtype)
    made += x
    made += w
    return made


@pytest.mark.parametrize(
    "way", [adds_in_place, copies, adds_into, writes_into_a_view, fills_where, into_an_array_of_its_own]
)
def test_numpy_a_step_that_writes_into_an_array_is_not_compiled(way):
    expect_same(lambda: network(Writes(way))(), compiled=False)


def test_numpy_numbers_may_be_added_to_in_place():
    class Squares(losses.MeanSquaredError):
        def forward(self, ctx, target, output):
            values, pullback = super().forward(ctx, target, output)
            total = ctx.xp.sum(values)
            total *= 0.0  # a number, which is not written into
            return values + total, pullback

    expect_same(network(layers.Dense(4), loss=Squares(), metrics=()), VALUES)


def test_what_reads_a_weight_is_computed_before_the_optimizer_writes_it():
    class Averages(layers.Layer):
        """y = x * w, with a moving average of w."""

        def init(self, rng, in_shape):
            return {"w": np.ones(in_shape, np.float32)}, in_shape

        def init_state(self, in_shape):
            return {"mean": np.zeros(in_shape, np.float32)}

        def forward(self, ctx, params, x):
            ctx.state["mean"] = ctx.state["mean"] * 0.5 + params["w"] * 0.5
            return x * params["w"], lambda dy: (dy * params["w"], {"w": ctx.xp.sum(dy * x, axis=0)})

    expect_same(lambda: network(Averages(), optimizer=optimizers.SGD(0.5))(), batch_size=35)


def texts(build, **settings):
    return [
        p.loop.__doc__ for p in programs(StepRunner(train(build, fresh(True), **settings)[0]).steps.train)
    ]


def test_numpy_gradients_are_written_into_the_flat_buffer():
    text = texts(network(layers.Dense(5, "relu")), batch_size=35)[0]
    assert "concatenate" not in text
    assert len(re.findall(r"^ +o\d+ = v\d+\[\d+:\d+\]\.reshape", text, re.M)) == 4
    assert not re.search(r"v\d+\[\d+:\d+\] = ", text)  # no copy


def test_numpy_a_large_gradient_with_a_penalty_is_freed_only_if_it_was_made():
    penalised = network(layers.Dense(256), layers.Dense(128, kernel_regularizer="l2"))
    text = texts(penalised, batch_size=35)[0]
    freed = {name for line in re.findall(r"del (.+)", text) for name in line.split(", ")}
    assert freed
    assert freed <= set(re.findall(r"^ +(v\d+) = ", text, re.M))


def test_numpy_the_optimizer_writes_all_weights_at_once():
    text = texts(network(layers.Dense(5, "relu"), layers.Dense(4, "relu")), batch_size=35)[0]
    parameters = r"out=v0\)"  # the first input is the flat buffer of all parameters
    assert len(re.findall(parameters, text)) == 1


def test_numpy_what_is_computed_twice_is_computed_once():
    text = texts(network(), batch_size=35)[0]
    assert len(re.findall("= exp_", text)) == 2  # of the softmax, and in its gradient; none for the accuracy


def test_layers_are_not_run_again(monkeypatch):
    calls, forward = [], layers.Dense.forward

    def counted(self, ctx, params, x):  # in the place of nnx's own code, which is not watched
        calls.append(x.shape)
        return forward(self, ctx, params, x)

    monkeypatch.setattr(layers.Dense, "forward", counted)
    train(network(), fresh(True), epochs=5, batch_size=35)
    assert calls == [(35, 6)] * 3  # one for the totals, and twice traced


def test_random_masks_differ_in_every_step():
    """Each epoch's dropout is another, though the counters it is made of are constants."""

    class Watched(layers.Dropout):
        def init(self, rng, in_shape):
            return {}, in_shape

        def init_state(self, in_shape):
            return {"kept": np.zeros(in_shape, np.float32)}

        def forward(self, ctx, params, x):
            y, pullback = super().forward(ctx, params, x * 0 + 1)
            ctx.state["kept"] = ctx.state["kept"] * 0.5 + y[0]
            return y * x, lambda dy: (dy * y, pullback(dy)[1])

    expect_same(network(Watched(0.5)), epochs=6)


class Looks(layers.Dense):
    """Decides by a value."""

    def forward(self, ctx, params, x):
        SEEN.append(x)
        return super().forward(ctx, params, -x if float(x[0, 0]) > 0 else x)


class Counts(layers.Dense):
    """Does something else each time."""

    def forward(self, ctx, params, x):
        SEEN.append(x)
        return super().forward(ctx, params, x * len(SEEN))


SEEN: list = []


@pytest.mark.parametrize("layer", [Looks, Counts])
def test_a_step_that_is_not_pure_runs_as_it_stands(layer):
    def build():
        SEEN.clear()
        return network(layer(4))()

    expect_same(build, compiled=False)


def test_numpy_drawing_outside_the_context_is_noticed():
    class Drawn(layers.Dense):
        def forward(self, ctx, params, x):
            return super().forward(ctx, params, x + np.random.random(x.shape).astype(np.float32))  # noqa: NPY002

    def build():
        np.random.seed(3)  # noqa: NPY002
        return network(Drawn(4))()

    expect_same(build, compiled=False, batch_size=35)


def test_numpy_a_trace_that_fails_late_leaves_no_trace():
    """What it had written into the weights is taken back before the plain step runs."""

    class Late(optimizers.SGD):
        def update(self, grads, slots, params, step, backend=None):
            found = super().update(grads, slots, params, step, backend)
            float(next(iter(tree.leaves(found[0]))).sum())
            return found

    expect_same(network(layers.Dense(4), optimizer=Late(0.1)), compiled=False)


def test_numpy_mistakes_read_as_they_did():
    class Wrong(layers.Dense):
        def forward(self, ctx, params, x):
            return super().forward(ctx, params, x[:, :3])

    messages = []
    for replays in (True, False):
        with pytest.raises(ValueError) as caught:
            train(network(Wrong(4)), fresh(replays))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_what_leaves_a_step_is_not_overwritten_by_the_next():
    """A layer keeps a view of its own gradient as state."""

    class Keeps(layers.Dense):
        def init_state(self, in_shape):
            return {
                "bias_gradient": np.zeros((1, self.units), np.float32),
                "before": np.zeros((1, self.units)),
            }

        def forward(self, ctx, params, x):
            y, pullback = super().forward(ctx, params, x)

            def and_keep(dy):
                dx, grads = pullback(dy)
                ctx.state["before"] = ctx.state["bias_gradient"]
                ctx.state["bias_gradient"] = ctx.xp.reshape(grads["bias"], (1, -1))
                return dx, grads

            return y, and_keep

    expect_same(network(Keeps(4)), epochs=5, batch_size=7)


def test_numpy_two_threads_train_two_models_of_equal_settings():
    backend, found = fresh(True), {}

    def run(name):
        found[name] = train(network(layers.Dense(64, "relu"), layers.Dropout(0.2)), backend, epochs=20)[1]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == found[2]


def test_numpy_arrays_of_another_layout_get_a_program_of_their_own():
    backend = fresh(True)

    def step(carry, row, data):
        y = backend.kernel(lambda xp, a, b: a * b + 1, data["x"], row["rate"])
        return {"a": carry["a"] * 0.5 + y}, {"sum": backend.xp.sum(y, axis=0)}

    run, plain = backend.repeat(step), fresh(False).repeat(step)
    rows = {"rate": [0.1, 0.2, 0.3, 0.4, 0.5]}
    for x in (X, np.asfortranarray(X), X[::2], X[:, ::2]):
        found, expected = (f({"a": np.zeros_like(x)}, None, rows, {"x": x}, 0, 5) for f in (run, plain))
        np.testing.assert_array_equal(found[0]["a"], expected[0]["a"])
        np.testing.assert_array_equal(found[1]["sum"], expected[1]["sum"])
    assert len(programs(run)) == 4


def repeated(step, carry, steps=6):
    """Return what a step of one's own gives, compiled and not, after some steps."""
    found = []
    for replays in (True, False):
        backend = fresh(replays)
        run = backend.repeat(functools.partial(step, backend))
        arrays = {name: backend.pack({name: backend.asarray(a)}) for name, a in carry.items()}
        carry_out, totals = run(arrays, None, {"rate": [0.1] * steps}, {"x": backend.asarray(X)}, 0, steps)
        if replays:
            assert isinstance(programs(run)[0], CompiledStep), programs(run)
        found.append([backend.to_numpy(leaf) for leaf in [*replay.flatten(carry_out), *tree.leaves(totals)]])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    return found[0]


LARGE = RNG.standard_normal((600, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("inner", "in_place"),
    [
        ([layers.Dense(96, "relu"), layers.Dense(64, "tanh"), layers.Dense(96, "relu")], 3),
        ([layers.Dense(96, "relu"), layers.Residual(layers.Dense(96, "relu"))], 0),  # its dy goes two ways
        ([layers.Dense(96, "relu"), layers.Reshape((8, 12)), layers.Activation("relu"), layers.Flatten()], 0),
    ],
    ids=["chain", "residual", "views"],
)
def test_large_kernels_write_over_what_is_not_needed_any_more(inner, in_place, monkeypatch):
    if not on_numpy():
        pytest.skip("NumPy's kernels")
    monkeypatch.setattr(numpy_backend, "BLOCK", 1000)
    monkeypatch.setitem(globals(), "X", LARGE)
    found = expect_same(network(*inner), y=LARGE[:, 0] > 0, batch_size=300)
    text = found[0].loop.__doc__
    assert len(re.findall(r"run_kernel_\d+\((?!forward)\w+, 0, ", text)) == in_place, text


def a_view(xp, x):
    made = xp.exp(xp.matmul(x, x.T))
    return made, xp.reshape(made, (-1,))


def the_same_in_each_step(xp, x):
    ones = xp.ones_like(x)
    return xp.matmul(ones, ones.T), xp.exp(x)


def itself(xp, x):
    made = xp.matmul(x, x.T)
    return made, made


@pytest.mark.parametrize("make", [a_view, the_same_in_each_step, itself])
def test_large_kernels_do_not_write_over_what_is_needed(make, monkeypatch):
    def step(backend, carry, row, data):
        xp = backend.xp
        made, also = make(xp, data["x"])
        if also is made:
            result = backend.kernel(lambda xp, a, b, rate: xp.where(a > 0, b, rate), made, also, row["rate"])
            return carry, {"sum": xp.sum(result, axis=None)}
        result = backend.kernel(lambda xp, a, rate: a * 0.5 + rate, made, row["rate"])
        return carry, {"sum": xp.sum(result, axis=None) + xp.sum(also * 2.0, axis=None)}

    if not on_numpy():
        pytest.skip("NumPy's kernels")
    monkeypatch.setenv("NNX_NUMBA", "0")
    monkeypatch.setattr(numpy_backend, "BLOCK", 1000)
    monkeypatch.setitem(globals(), "X", LARGE)
    repeated(step, {"w": np.zeros(6, np.float32)})


def test_what_is_read_again_after_it_was_written_is_computed_again():
    def step(backend, carry, row, data):
        weight = carry["w"]["w"]
        before = backend.xp.sum(weight)
        backend.update_in_place(
            lambda xp, w, g, rate: (w + g * rate,), [carry["w"].buffer, data["x"][0]], row, (0,)
        )
        return carry, {"before": before, "after": backend.xp.sum(weight)}

    _, _, after, before = repeated(step, {"w": np.zeros(6, np.float32)})
    assert abs(after - before) > 0.1


def test_a_gradient_that_counts_twice_is_copied():
    def step(backend, carry, row, data):
        gradient = backend.xp.sum(data["x"] * row["rate"], axis=0)
        both = backend.xp.concat([gradient, gradient])
        backend.update_in_place(lambda xp, w, g, rate: (w + g * rate,), [carry["w"].buffer, both], row, (0,))
        return carry, {"sum": backend.xp.sum(both)}

    (weights, *_) = repeated(step, {"w": np.zeros(12, np.float32)})
    np.testing.assert_array_equal(weights[:6], weights[6:])


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_state_of_one_number_stays_a_number_of_the_library(dtype, is_compiled):
    class Counts(layers.Layer):
        def init_state(self, in_shape):
            return {"passes": np.zeros(())}

        def forward(self, ctx, params, x):
            if ctx.training:
                if not is_compiled:
                    float(x[0, 0])  # ends the trace
                ctx.state["passes"] = ctx.state["passes"] + 1.0
            return x, lambda dy: (dy, {})

    found = []
    for replays in (True, False):
        with nnx.use_backend(fresh(replays)):
            model = nnx.Sequential([Counts(), layers.Dense(3)], seed=0, dtype=dtype)
            model.compile("sgd", "mse")
            for batch_size in (16, 20):  # another shape is traced anew
                model.fit(X, VALUES, batch_size=batch_size, epochs=2, verbose=0)
        found.append(float(model.state["counts"]["passes"]))
    assert found == [18.0, 18.0]


def test_numbers_keep_their_kind_beside_integers():
    def step(backend, carry, row, data):
        half = backend.kernel(lambda xp, n: n * 0.5 + 1, carry["n"]["n"])
        return carry, {
            "half": half,
            "where": backend.kernel(lambda xp, n: xp.where(n > 1, 0.25, n), carry["n"]["n"]),
        }

    *_, half, where = repeated(step, {"n": np.arange(3, dtype=np.int32)})
    np.testing.assert_allclose(half, [6, 9, 12])
    np.testing.assert_allclose(where, [0, 6, 1.5])


def test_a_function_made_anew_is_the_same_if_what_it_refers_to_is():
    def scaled(factor):
        return lambda xp, x: x * factor

    class Scales(layers.Layer):
        def __init__(self, next_factor):
            super().__init__()
            self.next_factor = next_factor

        def forward(self, ctx, params, x):
            factor = self.next_factor()
            return ctx.kernel(scaled(factor), x), lambda dy: (ctx.kernel(scaled(factor), dy), {})

    expect_same(network(Scales(lambda: 2.0)))
    expect_same(lambda: network(Scales(itertools.count(1).__next__))(), compiled=False)


def test_not_all_programs_are_remembered(monkeypatch):
    monkeypatch.setattr(replay, "MOST_PROGRAMS", 3)
    model, _ = train(network(layers.Dense(4)), fresh(True))
    for size in range(1, 9):
        model.fit(X[: 2 * size], CLASSES[: 2 * size], batch_size=size, verbose=0)
    assert len(programs(StepRunner(model).steps.train)) == 3


def test_numpy_it_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("NNX_REPLAY", "0")
    assert not type(nnx.get_backend())().replays
    monkeypatch.delenv("NNX_REPLAY")
    assert type(nnx.get_backend())().replays


def test_data_that_is_fixed_and_data_that_is_not_are_read_each_in_its_way():
    backend = fresh(True)
    with nnx.use_backend(backend):
        model = nnx.Sequential([layers.Dense(8, "relu"), layers.Dense(3, "softmax")], seed=0)
        model.compile("adam", "sparse_categorical_crossentropy")
        data = prepared(model, X, CLASSES, None)
    runner, losses = StepRunner(model), []
    with backend.scope("float32"):
        placed = runner.place(data)
        for samples in [backend.put_samples(data.arrays()), placed] * 4:
            rows = backend.device_put(
                {"index": np.arange(70).reshape(7, 10), **runner.scalars(model.step, model.step + 7)}
            )
            carry, totals = runner.steps.train(model.carry, None, rows, {"samples": samples}, 0, 7)
            model.set_carry(carry, steps=7)
            losses.append(float(totals["loss"]["loss"]))
    assert losses == sorted(losses, reverse=True)
    assert [type(found) for found in programs(runner.steps.train)] == [CompiledStep, CompiledStep]


class Side(enum.StrEnum):
    LEFT = "l"
    RIGHT = "r"


@pytest.mark.parametrize(
    "names", [np.array(["left", "right"]), list(Side), ["it's", 'a\n"{}']], ids=["NumPy", "enum", "odd"]
)
def test_names_of_inputs_that_are_not_plain_text(names):
    backend = fresh(True)
    with nnx.use_backend(backend):
        model = nnx.Sequential(
            [layers.Inputs({name: layers.Dense(4) for name in names}), layers.Dense(3)], seed=0
        )
        model.compile("sgd", nnx.losses.SparseCategoricalCrossentropy(from_logits=True))
        data = prepared(model, dict.fromkeys(names, X), CLASSES, None)
    runner, losses = StepRunner(model), []
    with backend.scope("float32"):
        for _ in range(5):
            rows = backend.device_put(runner.scalars(model.step, model.step + 1))
            carry, totals = runner.steps.train(model.carry, None, rows, {"samples": runner.place(data)}, 0, 1)
            model.set_carry(carry, steps=1)
            losses.append(float(totals["loss"]["loss"]))
    assert losses == sorted(losses, reverse=True)
    assert [type(found) for found in programs(runner.steps.train)] == [CompiledStep]
