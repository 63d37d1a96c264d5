"""`Sequential`: building, training, weights, and the small things people rely on."""

import copy
import math

import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.training.runner import StepRunner

RNG = np.random.default_rng(0)
X = RNG.standard_normal((120, 5)).astype(np.float32)
Y = (X @ np.array([1.0, -2.0, 0.5, 0.0, 1.0]) + 0.3).astype(np.float32)
LABELS = (Y > 0).astype(int)


def regressor(backend=None, **settings):
    model = nnx.Sequential([layers.Dense(16, "tanh"), layers.Dense(1)], seed=0, backend=backend, **settings)
    model.compile(nnx.optimizers.Adam(0.02), "mse", metrics=["mae"])
    return model


def classifier(loss="sparse_categorical_crossentropy", units=2, activation="softmax", metrics=("accuracy",)):
    model = nnx.Sequential([layers.Dense(16, "relu"), layers.Dense(units, activation)], seed=0)
    model.compile(nnx.optimizers.Adam(0.02), loss, metrics=list(metrics))
    return model


def test_fit_learns_on_each_backend(any_backend):
    model = regressor(any_backend)
    history = model.fit(X, Y, epochs=30, batch_size=16, validation_split=0.25, verbose=0)
    assert list(history.history) == ["loss", "mae", "val_loss", "val_mae"]
    assert history.epoch == list(range(30))
    assert history.history["val_loss"][-1] < 0.1 * history.history["val_loss"][0]
    assert model.predict(X).shape == (120, 1)
    assert model.evaluate(X, Y, verbose=0)[0] < 0.3


def test_evaluate_is_the_mean_over_samples_whatever_the_batch_size(any_backend):
    model = regressor(any_backend)
    model.build((5,))
    by_hand = np.mean((model.predict(X)[:, 0] - Y) ** 2)
    for batch_size in (1, 7, 120, 1000):
        loss, mae = model.evaluate(X, Y, batch_size=batch_size, verbose=0)
        assert loss == pytest.approx(by_hand, rel=1e-5)
        assert mae == pytest.approx(np.mean(np.abs(model.predict(X)[:, 0] - Y)), rel=1e-5)
    assert set(model.evaluate(X, Y, verbose=0, return_dict=True)) == {"loss", "mae"}


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_predict_does_not_depend_on_the_batch_size(any_backend, batch_size):
    model = regressor(any_backend)
    model.build((5,))
    np.testing.assert_allclose(
        model.predict(X, batch_size=batch_size), model.predict(X), rtol=1e-5, atol=1e-6
    )


def test_predict_of_nothing_and_of_one():
    model = regressor()
    model.build((5,))
    assert model.predict(X[:0]).shape == (0, 1)
    assert model.predict(X[:1]).shape == (1, 1)


@pytest.mark.parametrize(
    ("loss", "activation", "units", "target"),
    [
        ("sparse_categorical_crossentropy", "softmax", 2, LABELS),
        ("categorical_crossentropy", "softmax", 2, nnx.utils.to_categorical(LABELS)),
        (
            nnx.losses.CategoricalCrossentropy(label_smoothing=0.1),
            "softmax",
            2,
            nnx.utils.to_categorical(LABELS),
        ),
        (nnx.losses.CategoricalFocalCrossentropy(), "softmax", 2, nnx.utils.to_categorical(LABELS)),
        ("binary_crossentropy", "sigmoid", 1, LABELS),
        ("binary_focal_crossentropy", "sigmoid", 1, LABELS),
    ],
)
def test_final_activation_and_cross_entropy_are_fused(loss, activation, units, target):
    """Same loss and gradients as from probabilities, and finite where those overflow."""
    fused, plain = classifier(loss, units, activation), classifier(loss, units, activation)
    hiding = layers.Lambda(lambda x: (x, lambda dy: dy))  # it might do anything
    plain.network = layers.Chain([*plain.network.layers, hiding])
    results = [model.fit(X, target, epochs=3, verbose=0).history["loss"] for model in (fused, plain)]
    assert type(StepRunner(fused).steps.head) is not type(StepRunner(plain).steps.head)
    np.testing.assert_allclose(*results, rtol=2e-4)
    assert np.all(fused.predict(X) <= 1)
    fused.set_weights([w * 1e4 for w in fused.get_weights()])
    loss, accuracy = fused.evaluate(X, target, verbose=0)
    assert math.isfinite(loss)
    assert loss > 100 or accuracy == 1
    assert math.isfinite(fused.fit(X, target, epochs=1, verbose=0).history["loss"][0])


def test_a_final_activation_layer_is_fused_too():
    model = nnx.Sequential([layers.Dense(2), layers.Softmax()], seed=0)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, LABELS, verbose=0)
    assert type(StepRunner(model).steps.head).__name__ == "Softmax"
    np.testing.assert_allclose(model.predict(X).sum(axis=1), 1, rtol=1e-5)


def test_sample_weights_count_like_repeated_samples(any_backend):
    repeats = np.arange(120) % 3
    weighted, repeated = regressor(any_backend, dtype="float64"), regressor(any_backend, dtype="float64")
    weighted.optimizer = nnx.optimizers.SGD(0.03)
    repeated.optimizer = nnx.optimizers.SGD(0.03)
    weighted.fit(X, Y, sample_weight=repeats, epochs=5, batch_size=120, verbose=0)
    repeated.fit(X.repeat(repeats, axis=0), Y.repeat(repeats), epochs=5, batch_size=1000, verbose=0)
    for a, b in zip(weighted.get_weights(), repeated.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_class_weights_are_sample_weights():
    results = []
    for settings in ({"class_weight": {0: 0.5, 1: 3.0}}, {"sample_weight": np.where(LABELS == 1, 3.0, 0.5)}):
        results.append(classifier().fit(X, LABELS, epochs=2, verbose=0, **settings).history["loss"])
    assert results[0] == results[1]
    one_hot = classifier("categorical_crossentropy")
    one_hot.fit(X, nnx.utils.to_categorical(LABELS), epochs=2, verbose=0, class_weight={0: 0.5, 1: 3.0})
    np.testing.assert_allclose(one_hot.history.history["loss"], results[0], rtol=1e-5)


def test_metrics_ignore_sample_weights_unless_weighted():
    model = nnx.Sequential([layers.Dense(2, "softmax")], seed=0)
    weighted = nnx.metrics.SparseCategoricalAccuracy(name="weighted")
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], weighted_metrics=[weighted])
    model.build((5,))
    right = model.predict(X).argmax(axis=1) == LABELS
    found = model.evaluate(X, LABELS, sample_weight=right.astype(float), verbose=0, return_dict=True)
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["weighted"] == pytest.approx(1)


def test_validation_split_takes_the_last_samples_before_shuffling():
    seen = []

    class Last(nnx.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(logs["val_loss"])

    model = regressor()
    model.fit(X, Y, validation_split=0.25, epochs=1, verbose=0, callbacks=[Last()])
    assert seen[0] == pytest.approx(model.evaluate(X[90:], Y[90:], verbose=0)[0], rel=1e-5)


def test_without_shuffle_batches_come_in_order():
    model = nnx.Sequential([layers.Dense(1, use_bias=False, kernel_initializer="zeros")], seed=0)
    model.compile(nnx.optimizers.SGD(0.1), "mse")
    x, y = np.array([[1.0], [2.0], [3.0]]), np.array([1.0, 1.0, 1.0])
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    w = 0.0
    for value in (1.0, 2.0, 3.0):
        w -= 0.1 * 2 * (w * value - 1) * value
    assert model.get_weights()[0].item() == pytest.approx(w, rel=1e-5)


def test_penalties_are_part_of_the_loss_and_pull_the_weights():
    plain, penalised = (nnx.Sequential([layers.Dense(1, kernel_regularizer=r)], seed=0) for r in (None, "l2"))
    for model in (plain, penalised):
        model.compile("sgd", "mse")
        model.build((5,))
    kernel = plain.get_weights()[0]
    extra = penalised.evaluate(X, Y, verbose=0) - plain.evaluate(X, Y, verbose=0)
    assert extra == pytest.approx(0.01 * np.sum(kernel**2), rel=1e-4)
    for model in (plain, penalised):
        model.fit(X, Y, batch_size=120, verbose=0)
    difference = plain.get_weights()[0] - penalised.get_weights()[0]
    np.testing.assert_allclose(difference, 0.01 * 2 * 0.01 * kernel, rtol=1e-3, atol=1e-8)


def test_train_on_batch_is_a_step_of_fit():
    fitted, stepped = regressor(), regressor()
    fitted.fit(X[:32], Y[:32], batch_size=32, shuffle=False, verbose=0)
    loss, mae = stepped.train_on_batch(X[:32], Y[:32])
    assert loss == pytest.approx(fitted.history.history["loss"][0], rel=1e-5)
    assert set(stepped.train_on_batch(X, Y, return_dict=True)) == {"loss", "mae"}
    assert stepped.step == 2
    assert mae > 0


def test_fit_on_an_iterable_equals_fit_on_arrays(any_backend):
    arrays, batches = regressor(any_backend), regressor(any_backend)
    arrays.fit(X, Y, batch_size=32, shuffle=False, epochs=3, verbose=0, validation_data=(X[:50], Y[:50]))
    parts = [(X[i : i + 32], Y[i : i + 32]) for i in range(0, 120, 32)]
    batches.fit(parts, epochs=3, verbose=0, validation_data=iter_again(parts=[(X[:50], Y[:50])]))
    for name, values in arrays.history.history.items():
        np.testing.assert_allclose(batches.history.history[name], values, rtol=1e-4)
    np.testing.assert_allclose(
        batches.evaluate(parts, verbose=0), arrays.evaluate(X, Y, verbose=0), rtol=1e-4
    )


class iter_again:
    """An iterable that can be iterated over again."""

    def __init__(self, parts):
        self.parts = parts

    def __iter__(self):
        return iter(self.parts)


def test_an_endless_generator_with_steps_per_epoch():
    def endless():
        while True:
            yield X[:10], Y[:10], np.ones(10)

    model = regressor()
    model.fit(endless(), steps_per_epoch=4, epochs=3, verbose=0)
    assert model.step == 12
    assert len(model.history.epoch) == 3


def test_a_second_fit_goes_on():
    once, twice = regressor(), regressor()
    once.fit(X, Y, epochs=4, verbose=0)
    twice.fit(X, Y, epochs=2, verbose=0)
    twice.fit(X, Y, epochs=4, initial_epoch=2, verbose=0)
    for a, b in zip(once.get_weights(), twice.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_compiling_again_starts_the_optimizer_afresh():
    model = regressor()
    model.fit(X, Y, verbose=0)
    assert model.step > 0
    model.compile("adam", "mse")
    assert model.step == 0
    assert all(np.all(leaf == 0) for slot in model.slots.values() for leaf in nnx.tree.leaves(slot))


def test_weights_in_keras_order_and_back():
    model = nnx.Sequential(
        [layers.Dense(3, input_shape=(2,)), layers.BatchNormalization(), layers.Residual([layers.Dense(3)])],
        seed=0,
    )
    shapes = [w.shape for w in model.get_weights()]
    assert shapes == [(2, 3), (3,), (3,), (3,), (3,), (3,), (3, 3), (3,)]
    other = nnx.Sequential(copy.deepcopy(model.layers), seed=1)
    other.build((2,))
    other.set_weights(model.get_weights())
    np.testing.assert_array_equal(other.predict(X[:, :2]), model.predict(X[:, :2]))
    assert model.count_params() == 6 + 3 + 12 + 12


def test_restored_weights_are_not_changed_by_later_training(any_backend):
    model = regressor(any_backend)
    model.build((5,))
    kept, before = model.snapshot(), model.get_weights()
    for _ in range(2):
        model.fit(X, Y, verbose=0)
        model.restore(kept)
        for a, b in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(a, b)


def test_input_shape_may_be_given_in_any_of_keras_ways():
    ways = [
        nnx.Sequential([layers.Dense(3, input_shape=(5,))]),
        nnx.Sequential([layers.Input((5,)), layers.Dense(3)]),
        nnx.Sequential([nnx.Input(shape=(5,)), layers.Dense(3)]),
    ]
    by_add = nnx.Sequential()
    by_add.add(layers.Input((5,)))
    by_add.add(layers.Dense(3))
    by_build = nnx.Sequential([layers.Dense(3)])
    by_build.build((None, 5))
    for model in (*ways, by_add, by_build):
        assert (model.input_shape, model.output_shape) == ((5,), (3,))
        assert len(model.layers) == 1


def test_pop_takes_the_last_layer_off():
    model = nnx.Sequential([layers.Dense(3, input_shape=(5,)), layers.Dense(2)], seed=0)
    assert model.pop().units == 2
    assert model.output_shape == (3,)


def test_a_model_can_be_a_layer_of_another():
    inner = nnx.Sequential([layers.Dense(5, "relu"), layers.Dropout(0.1)])
    model = nnx.Sequential([layers.Residual(inner), copy.deepcopy(inner), layers.Dense(1)], seed=0)
    model.compile("adam", "mse")
    model.fit(X, Y, epochs=2, verbose=0)
    assert len(model.get_weights()) == 6


def test_summary(capsys):
    model = nnx.Sequential(
        [
            layers.Dense(8, "relu", input_shape=(4,)),
            layers.BatchNormalization(),
            layers.Residual([layers.Dense(8)]),
        ],
        seed=0,
    )
    model.summary()
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert len({len(line) for line in lines[:6]}) == 1
    assert [c.strip() for c in lines[2].split("  ") if c.strip()] == [
        "dense (Dense)",
        "(batch, 8)",
        "40",
        "72",
        "32 B",
    ]
    assert "Parameters 144 (128 trained, 16 moving averages), 576 B" in printed


def test_losses_of_ones_own_train(any_backend, caplog):
    caplog.set_level("INFO", "nnx")

    def quartic(y_true, y_pred):
        return nnx.get_backend().xp.mean((y_true - y_pred) ** 4, axis=-1)

    class Quartic(nnx.losses.Loss):
        def forward(self, ctx, target, output):
            return ctx.xp.mean((target - output) ** 4, axis=-1)

    class QuarticByHand(nnx.losses.Loss):
        def forward(self, ctx, target, output):
            difference = output - target
            count = output.shape[-1]
            return ctx.xp.mean(difference**4, axis=-1), lambda d: 4 * difference**3 * d[:, None] / count

    histories = []
    for loss in (quartic, Quartic(), QuarticByHand()):
        model = nnx.Sequential([layers.Dense(1)], seed=0)
        model.compile(nnx.optimizers.Adam(0.05), loss)
        histories.append(model.fit(X, Y, epochs=20, verbose=0).history["loss"])
    assert "not compiled" not in caplog.text
    assert histories[0][-1] < 0.1 * histories[0][0]
    for history in histories[:2]:
        assert history == pytest.approx(histories[2], rel=1e-4)


def test_float64_is_kept_from_data_to_prediction(any_backend):
    model = regressor(any_backend, dtype="float64")
    model.fit(X.astype(np.float64), Y, verbose=0)
    assert model.predict(X).dtype == np.float64
    assert all(w.dtype == np.float64 for w in model.get_weights())


@pytest.mark.parametrize("batch_size", [32, 120])
def test_data_and_labels_are_never_written_into(batch_size):
    x, y, w = X.copy(), Y.copy(), np.ones(120)
    for array in (x, y, w):
        array.flags.writeable = False
    regressor().fit(x, y, batch_size, sample_weight=w, epochs=5, shuffle=False, verbose=0)


def test_a_layer_that_writes_into_the_data_is_told():
    def centre(x):
        x -= 1.0
        return x

    x = X.copy()
    model = nnx.Sequential([layers.Lambda(centre), layers.Dense(1)], seed=0, backend="numpy")
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="read-only\nraised by layer Lambda"):
        model.fit(x, Y, 120, epochs=2, shuffle=False, verbose=0)
    np.testing.assert_array_equal(x, X)


@pytest.mark.parametrize("batch_size", [120, 200])
def test_one_batch_of_all_samples_in_order_is_not_gathered(any_backend, monkeypatch, batch_size):
    given, train_rows = [], StepRunner.train

    def spy(runner, rows, *arguments):
        given.append(set(rows))
        return train_rows(runner, rows, *arguments)

    monkeypatch.setattr(StepRunner, "train", spy)
    model, by_hand = regressor(any_backend), regressor(any_backend)
    curve = model.fit(X, Y, batch_size, epochs=6, shuffle=False, verbose=0).history["loss"]
    assert len(given) == 6
    assert not any("index" in names for names in given)
    assert curve == pytest.approx([by_hand.train_on_batch(X, Y)[0] for _ in range(6)], rel=1e-6)
    for mine, theirs in zip(model.get_weights(), by_hand.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    for settings in ({"batch_size": 119, "shuffle": False}, {"batch_size": 120}):
        model.fit(X, Y, epochs=1, verbose=0, **settings)
        assert "index" in given[-1]


def test_the_functional_core_trains_on_each_backend(any_backend):
    model = nnx.Sequential([layers.Dense(16, "tanh", input_shape=(5,)), layers.Dense(1)], seed=0)
    loss, optimizer = nnx.losses.MeanSquaredError(), nnx.optimizers.Adam(0.02)
    params, _ = model.init()
    slots = optimizer.init(params)
    x, y, curve = any_backend.asarray(X), any_backend.asarray(Y[:, None]), []
    for step in range(50):
        ctx = nnx.Context(training=True)
        output, pullback = model.apply(params, x, ctx)
        values, pull_loss = loss.forward(ctx, y, output)
        _, grads = pullback(pull_loss(ctx.xp.ones_like(values) / 120))
        params, slots = optimizer.update(grads, slots, params, step)
        curve.append(float(np.mean(any_backend.to_numpy(values))))
    assert curve[-1] < 0.1 * curve[0]


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_what_fit_prints(verbose, capsys):
    regressor().fit(X, Y, epochs=2, verbose=verbose)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (0 if verbose == 0 else 2)
    assert all(
        line.startswith(f"epoch {i + 1}/2  loss ") and line.endswith(" s") for i, line in enumerate(lines)
    )


def test_models_of_equal_settings_share_compiled_steps():
    def steps(units=4, rate=0.1, learning_rate=0.1, loss="mse"):
        model = nnx.Sequential([layers.Dense(units), layers.Dropout(rate), layers.Dense(1)], seed=0)
        model.compile(nnx.optimizers.Adam(learning_rate), loss)
        return StepRunner(model).steps

    assert steps() is steps(learning_rate=lambda step: 0.2)
    assert len({id(s) for s in (steps(), steps(units=5), steps(rate=0.2), steps(loss="mae"))}) == 4
    on_numpy = steps()
    with nnx.use_backend("jax"):
        assert steps() is not on_numpy


def test_a_setting_changed_later_does_not_leak_into_other_models():
    def build():
        model = nnx.Sequential([layers.Dropout(0.5), layers.Dense(1)], seed=0)
        model.compile("sgd", "mse")
        return model

    first = build()
    expected = first.fit(X, Y, verbose=0).history["loss"]
    first.layers[0].rate = 0.0
    assert build().fit(X, Y, verbose=0).history["loss"] == expected
    first.compile("sgd", "mse")
    zeros = [np.zeros((5, 1)), np.zeros(1)]
    first.set_weights(zeros)
    second = nnx.Sequential([layers.Dropout(0.0), layers.Dense(1)], seed=0)
    second.compile("sgd", "mse")
    second.build((5,))
    second.set_weights(zeros)
    assert first.fit(X, Y, verbose=0).history == second.fit(X, Y, verbose=0).history


def test_a_class_defined_again_is_another_class():
    """As when a notebook's cell is run again."""

    def train(factor):
        class Scale(layers.Layer):
            def forward(self, ctx, params, x):
                return x * factor, lambda dy: (dy * factor, {})

        model = nnx.Sequential([Scale(), layers.Dense(1)], seed=0)
        model.compile("sgd", "mse")
        return model.fit(X, Y, verbose=0).history["loss"]

    assert train(1.0) != train(2.0)


def test_weights_trained_by_hand_come_back_into_the_model():
    model = regressor()
    model.build((5,))
    model.params = nnx.tree.map(lambda w: w * 0 + 1, model.params)
    np.testing.assert_allclose(
        model.predict(X), 16 * np.tanh(X.sum(axis=1, keepdims=True) + 1) + 1, rtol=1e-5
    )
    model.fit(X, Y, verbose=0)
    with pytest.raises(ValueError, match="expected arrays of shapes"):
        model.params = {"dense": {"kernel": np.zeros(3)}}


def test_settings_may_be_numpy_numbers(any_backend):
    """As a random search draws them: a float64 would widen what it is multiplied with."""

    def losses_with(number, whole):
        model = nnx.Sequential(
            [layers.Dense(whole(8), "relu"), layers.Dropout(number(0.25)), layers.Dense(1)], seed=0
        )
        model.compile(nnx.optimizers.Adam(number(0.125), weight_decay=number(0.5)), "mse")
        assert type(model.layers[1].rate) is float
        return model.fit(X, Y, epochs=4, batch_size=4, verbose=0).history["loss"]

    assert losses_with(np.float64, np.int64) == losses_with(float, int)


def test_masks_of_a_context_are_those_of_fit(any_backend):
    model = nnx.Sequential([layers.Dropout(0.5)], seed=3)
    model.compile(nnx.optimizers.SGD(0.0), "mse")
    target = np.zeros((4, 5), np.float32)
    for step in range(3):
        loss = model.train_on_batch(X[:4], target)
        ctx = model.context(training=True, step=step)
        output, _ = model.apply({}, model.backend.asarray(X[:4].astype("float32")), ctx)
        assert loss == pytest.approx(np.mean(model.backend.to_numpy(output) ** 2), rel=1e-5)


def test_an_activity_penalty_on_a_final_softmax_looks_at_the_probabilities():
    model = nnx.Sequential(
        [layers.Dense(2, "softmax", activity_regularizer=nnx.regularizers.L2(1.0))], seed=0
    )
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.build((5,))
    p = model.predict(X)
    by_hand = np.mean(-np.log(p[np.arange(120), LABELS])) + np.sum(p**2) / 120
    assert model.evaluate(X, LABELS, batch_size=120, verbose=0) == pytest.approx(by_hand, rel=1e-5)


class Times(layers.Layer):
    """A user's layer whose arguments do not tell all about it."""

    def __init__(self, **settings):
        self._factor = settings.pop("factor")
        super().__init__(**settings)

    def forward(self, ctx, params, x):
        return x * self._factor, lambda dy: (dy * self._factor, {})


def test_layers_of_ones_own_are_never_mistaken_for_each_other(any_backend):
    def loss(factor):
        model = nnx.Sequential([Times(factor=factor), layers.Dense(1)], seed=0)
        model.compile("sgd", "mse")
        model.build((5,))
        return model.evaluate(X, Y, verbose=0), np.mean((model.predict(X)[:, 0] - Y) ** 2)

    for factor in (1.0, 10.0):
        evaluated, by_hand = loss(factor)
        assert evaluated == pytest.approx(by_hand, rel=1e-4)


def test_losses_and_activations_of_ones_own_are_not_fused():
    class OnProbabilities(nnx.losses.BinaryCrossentropy):
        """Means something else of probabilities than of logits, whatever `from_logits` says."""

        def forward(self, ctx, target, output):
            return nnx.losses.MeanSquaredError().forward(ctx, target, output)

    class Hot(nnx.activations.Softmax):
        def forward(self, xp, x):
            return super().forward(xp, x * 5)

    for loss, last, target in (
        (OnProbabilities(), layers.Dense(1, "sigmoid"), LABELS),
        (nnx.losses.SparseCategoricalCrossentropy(), layers.Dense(2, Hot()), LABELS),
    ):
        model = nnx.Sequential([last], seed=0)
        model.compile("sgd", loss)
        model.build((5,))
        assert model.evaluate(X, target, verbose=0) == pytest.approx(
            float(loss(target, model.predict(X))), rel=1e-4
        )


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
def test_a_copy_trains_on_from_where_the_model_was(any_backend, way):
    import copy
    import pickle

    model = regressor(any_backend)
    model.fit(X, Y, epochs=2, verbose=0)
    twin = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    histories = [m.fit(X, Y, epochs=2, verbose=0).history for m in (model, twin)]
    assert histories[0] == histories[1]
    assert histories[0]["loss"][1] < histories[0]["loss"][0]


def test_class_weights_do_not_touch_validation():
    plain, weighted = classifier(), classifier()
    for model, weights in ((plain, None), (weighted, {0: 100.0, 1: 100.0})):
        model.optimizer.learning_rate = 0.0
        model.fit(X, LABELS, validation_split=0.5, class_weight=weights, verbose=0)
    assert weighted.history.history["val_loss"] == plain.history.history["val_loss"]
    assert weighted.history.history["loss"][0] == pytest.approx(
        100 * plain.history.history["loss"][0], rel=1e-4
    )


def test_a_class_that_is_not_named_weighs_one():
    named, unnamed = classifier(), classifier()
    named.fit(X, LABELS, class_weight={0: 1.0, 1: 5.0}, verbose=0)
    unnamed.fit(X, LABELS, class_weight={1: 5.0}, verbose=0)
    assert named.history.history == unnamed.history.history


def test_stopping_within_an_epoch_reports_the_loss_of_what_was_seen():
    class Stops(nnx.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.seen = logs["loss"]
            self.model.stop_training = True

    stops, model = Stops(), regressor()
    model.fit(X, Y, batch_size=12, verbose=0, callbacks=[stops])
    assert model.history.history["loss"] == [stops.seen]


def test_metrics_on_flat_arrays_match_row_by_row():
    assert nnx.metrics.MeanSquaredError()([1.0, 2.0, 3.0], [[1.0], [2.0], [3.0]]) == 0
    assert nnx.metrics.BinaryAccuracy()([1, 0], [[0.9], [0.1]]) == 1
    assert nnx.metrics.BinaryAccuracy()([1, 0], [0.9, 0.1]) == 1
    assert nnx.metrics.AUC()([1, 0], [0.9, 0.1]) == 1
    with pytest.raises(ValueError, match="with class numbers use accuracy"):
        classifier(metrics=["mse"]).fit(X, LABELS, verbose=0)


def test_masks_of_nested_layers_of_one_name_differ():
    ctx = nnx.Context(training=True, key=(1, 2))
    places = [
        ("a",),
        ("a", "a"),
        ("a", "a", "a"),
        ("a", "b"),
        ("b", "a"),
        ("residual", "chain", "residual", "chain", "a"),
    ]
    bits = []
    for place in places:
        inner = ctx
        for name in place:
            inner = inner.at(name)
        bits.append(inner.random_bits((64,)))
    assert len(np.unique(np.stack(bits))) == 64 * len(places)


def test_adding_and_taking_off_layers_keeps_the_weights_of_the_others():
    model = nnx.Sequential([layers.Dense(4, "relu", input_shape=(5,)), layers.Dense(1)], seed=0)
    model.compile("adam", "mse")
    model.fit(X, Y, verbose=0)
    before = model.get_weights()
    model.pop()
    model.add(layers.Dense(3))
    np.testing.assert_array_equal(model.get_weights()[0], before[0])
    assert model.predict(X).shape == (120, 3)


def test_a_trained_model_inside_another_is_refused_rather_than_forgotten():
    inner = nnx.Sequential([layers.Dense(4, input_shape=(5,))])
    inner.predict(X)
    with pytest.raises(ValueError, match="has weights of its own already, which would be lost"):
        nnx.Sequential([inner, layers.Dense(1)])
    with pytest.raises(ValueError, match="cannot be frozen yet"):
        inner.layers[0].trainable = False


def test_what_fails_changes_nothing():
    model = regressor()
    with pytest.raises(ValueError, match="unknown loss"):
        model.compile("adam", "bogus")
    with pytest.raises(ValueError, match="they must be as many"):
        model.fit(X[:, :3], Y[:9])
    model.fit(X, Y, verbose=0)
    grown = nnx.Sequential([layers.Dense(4, input_shape=(5,))])
    with pytest.raises(ValueError, match="cannot arrange"):
        grown.add(layers.Reshape((3, 3)))
    grown.add(layers.Dense(2))
    assert grown.output_shape == (2,)


def test_float64_in_the_functional_core(any_backend):
    model = nnx.Sequential([layers.Dense(3, input_shape=(5,))], seed=0, dtype="float64", backend=any_backend)
    with any_backend.scope("float64"):
        x = any_backend.asarray(X.astype(np.float64))
    output, pullback = model.apply(model.params, x)
    _, grads = pullback(output)
    for array in (output, *nnx.tree.leaves(grads)):
        assert any_backend.to_numpy(array).dtype == np.float64


def test_weights_put_into_two_models_stay_apart(any_backend):
    first, second = regressor(any_backend), regressor(any_backend)
    for model in (first, second):
        model.build((5,))
    second.params = first.params
    before = second.predict(X)
    first.fit(X, Y, epochs=2, verbose=0)
    np.testing.assert_array_equal(second.predict(X), before)


def test_an_iterable_that_ends_early_says_so():
    model = regressor()
    with pytest.warns(UserWarning, match="ended after 1 of 3 batches of this epoch: training stops"):
        model.fit(iter([(X, Y)] * 4), steps_per_epoch=3, epochs=5, verbose=0)
    assert len(model.history.epoch) == 2


def test_validation_on_a_list_of_batches():
    model = regressor()
    model.fit(X, Y, verbose=0, validation_data=[(X[:50], Y[:50]), (X[50:], Y[50:])])
    loss = model.evaluate(X, Y, verbose=0)[0]
    assert model.history.history["val_loss"][0] == pytest.approx(loss, rel=1e-5)


def test_a_layer_with_weights_of_its_own_and_layers_inside(tmp_path):
    @nnx.register
    class Gained(layers.Residual):
        def init(self, rng, in_shape):
            params, out_shape = super().init(rng, in_shape)
            return {**params, "gain": np.ones(in_shape)}, out_shape

        def forward(self, ctx, params, x):
            y, pull = super().forward(ctx, params, x)
            gain = params["gain"]

            def pullback(dy):
                dx, grads = pull(dy * gain)
                return dx, {**grads, "gain": ctx.xp.sum(dy * y, axis=0)}

            return y * gain, pullback

    nnx.testing.check_layer(Gained(layers.Dense(5)), (5,), backends=["numpy"])
    model = nnx.Sequential([Gained(layers.Dense(5))], seed=0)
    model.build((5,))
    assert len(model.get_weights()) == 3
    model.save(tmp_path / "net.nnx")
    np.testing.assert_array_equal(nnx.load(tmp_path / "net.nnx").predict(X), model.predict(X))


def test_keras_spellings():
    model = nnx.models.Sequential(
        [layers.Dense(1, input_dim=1, kernel_regularizer=nnx.regularizers.l2(0.01))]
    )
    model.compile(nnx.optimizers.SGD(nnx.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)), "mse")
    model.fit(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0]), batch_size=None, verbose=0)
    assert model.predict(np.array([1.0])).shape == (1, 1)
    assert model.get_layer("dense") is model.get_layer(index=0)
    assert model.test_on_batch(np.array([1.0]), np.array([2.0])) > 0


def test_validation_freq_counts_epochs_from_the_first():
    seen = []
    note = nnx.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append((epoch, "val_loss" in logs))
    )
    model = regressor()
    model.fit(X, Y, epochs=5, validation_split=0.2, validation_freq=2, verbose=0, callbacks=[note])
    model.fit(
        X, Y, epochs=8, initial_epoch=5, validation_split=0.2, validation_freq=2, verbose=0, callbacks=note
    )
    assert [epoch for epoch, validated in seen if validated] == [1, 3, 5, 7]
    with pytest.raises(ValueError, match="validation_freq must be a positive whole number, got 0"):
        model.fit(X, Y, validation_split=0.2, validation_freq=0, verbose=0)
