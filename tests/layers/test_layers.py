"""Every layer and activation is proved by `check_layer` over drawn shapes, on every backend."""

import functools
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnx
from nnx import layers, tree
from nnx.layers.base import Weight
from nnx.testing import check_layer

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
batches = st.integers(1, 5)

ACTIVATIONS = nnx.activations.names()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(shape=shapes, batch=batches)
def test_activation(activation, shape, batch):
    check_layer(layers.Activation(activation), shape, batch=batch)


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "exponential"])
def test_activation_far_from_zero_stays_finite(activation, any_backend):
    x = np.array([[-1000.0, -50.0, 0.0, 50.0, 1000.0]], dtype=np.float32)
    layer, ctx = layers.Activation(activation), nnx.Context(any_backend)
    y, pullback = layer.forward(ctx, {}, any_backend.asarray(x))
    dx, _ = pullback(any_backend.asarray(np.ones_like(x)))
    assert np.isfinite(any_backend.to_numpy(y)).all()
    assert np.isfinite(any_backend.to_numpy(dx)).all()


@pytest.mark.parametrize(
    "layer",
    [
        layers.LeakyReLU(0.01), layers.ELU(0.5), layers.GELU(approximate=True), layers.ReLU(), layers.Sigmoid(),
        layers.Tanh(), layers.SELU(), layers.SiLU(), layers.Softplus(), layers.Softsign(), layers.HardSigmoid(),
        layers.Mish(), layers.Softmax(), layers.LogSoftmax(), layers.Linear(),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
def test_activation_layers_of_their_own(layer):
    check_layer(layer, (3, 2))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_with_each_activation(activation):
    check_layer(layers.Dense(4, activation=activation), (3,))


@given(shape=shapes, batch=batches, units=st.integers(1, 4), use_bias=st.booleans())
def test_dense(shape, batch, units, use_bias):
    check_layer(layers.Dense(units, activation="tanh", use_bias=use_bias), shape, batch=batch)


def test_dense_with_activity_regularizer():
    check_layer(
        layers.Dense(3, activation="relu", activity_regularizer=nnx.regularizers.L1L2(0.1, 0.2)), (4,)
    )


@given(shape=shapes, batch=batches, rate=st.floats(0, 0.9))
def test_dropout(shape, batch, rate):
    check_layer(layers.Dropout(rate), shape, batch=batch)


def test_dropout_drops_its_share_and_keeps_the_mean(any_backend):
    x = any_backend.asarray(np.ones((500, 200), dtype=np.float32))
    ctx = nnx.Context(any_backend, training=True, key=(1, 2))
    y = any_backend.to_numpy(layers.Dropout(0.3).forward(ctx, {}, x)[0])
    assert np.mean(y == 0) == pytest.approx(0.3, abs=0.01)
    assert np.unique(y).tolist() == [0, pytest.approx(1 / 0.7)]
    assert np.mean(y) == pytest.approx(1, abs=0.01)


def test_dropout_layers_of_one_model_and_steps_have_masks_of_their_own():
    keys, numpy = nnx.random.step_keys(0, 0, 2).tolist(), nnx.as_backend("numpy")
    rows = [
        nnx.Context(numpy, training=True, key=k).at(name).random_bits((64,)) for k in keys for name in "ab"
    ]
    bits = np.stack(rows)
    assert len(np.unique(bits)) == bits.size
    seeded = [layers.Dropout(0.5, seed=seed) for seed in (1, 2)]
    x = np.ones((4, 64), dtype=np.float32)
    first, second = (layer.forward(nnx.Context(numpy, training=True), {}, x)[0] for layer in seeded)
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", [layers.GaussianNoise, layers.GaussianDropout, layers.AlphaDropout])
@given(shape=shapes, batch=batches, strength=st.floats(0, 0.9))
def test_noise(kind, shape, batch, strength):
    check_layer(kind(strength), shape, batch=batch)


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (layers.SpatialDropout1D, 2),
        (layers.SpatialDropout2D, 3),
        (functools.partial(layers.SpatialDropout2D, data_format="channels_first"), 3),
    ],
)
@given(data=st.data(), batch=batches, rate=st.floats(0, 0.9))
def test_spatial_dropout(layer, axes, data, batch, rate):
    shape = data.draw(st.tuples(*(axes * [st.integers(1, 4)])))
    check_layer(layer(rate), shape, batch=batch)


def draw(layer, x, backend):
    """Return what a layer makes of `x` in training."""
    ctx = nnx.Context(backend, training=True, key=(1, 2))
    return backend.to_numpy(layer.forward(ctx, {}, backend.asarray(x.astype(np.float32)))[0])


def test_gaussian_noise_is_normal(any_backend):
    z = draw(layers.GaussianNoise(1.0), np.zeros((500, 400)), any_backend).astype(np.float64).ravel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(z**power) - moment) < 4 * (variance / z.size) ** 0.5  # standard errors
    normal = statistics.NormalDist()
    for quantile in (1e-3, 0.05, 0.075, 0.1, 0.5, 0.8, 0.95, 0.999):  # both formulas and where they meet
        assert np.mean(z < normal.inv_cdf(quantile)) == pytest.approx(quantile, abs=0.003)


def test_normal_deviates_are_those_of_the_inverse_distribution():
    tails = np.concatenate([np.arange(50), np.geomspace(50, 2**31 - 1, 500)]).astype(np.uint32)
    bits, normal = np.concatenate([tails, tails | np.uint32(2**31)]), statistics.NormalDist()
    deviates = nnx.kernels.normal(np, bits, np.float64)
    expected = [-normal.inv_cdf((float(k) + 0.5) / 2**32) for k in tails]
    np.testing.assert_allclose(deviates, [*expected, *(-z for z in expected)], atol=1e-6)
    np.testing.assert_allclose(nnx.kernels.normal(np, bits, np.float32), deviates, rtol=1e-5, atol=1e-6)


def test_gaussian_dropout_has_the_moments_of_dropout(any_backend):
    y = draw(layers.GaussianDropout(0.2), np.full((500, 200), 2.0), any_backend)
    assert np.mean(y) == pytest.approx(2, abs=0.02)
    assert np.std(y) == pytest.approx(2 * (0.2 / 0.8) ** 0.5, abs=0.02)


def test_alpha_dropout_keeps_mean_and_variance(any_backend):
    x = np.random.default_rng(0).standard_normal((500, 400))
    y = draw(layers.AlphaDropout(0.3), x, any_backend)
    assert np.mean(y) == pytest.approx(0, abs=0.02)
    assert np.var(y) == pytest.approx(1, abs=0.03)
    assert np.unique(y, return_counts=True)[1].max() / y.size == pytest.approx(0.3, abs=0.01)  # at the limit


@pytest.mark.parametrize(
    ("layer", "shape", "places"),
    [
        (layers.SpatialDropout1D(0.4), (50, 7, 40), (1,)),
        (layers.SpatialDropout2D(0.4), (50, 3, 2, 40), (1, 2)),
        (layers.SpatialDropout2D(0.4, data_format="channels_first"), (50, 40, 3, 2), (2, 3)),
    ],
)
def test_spatial_dropout_drops_whole_channels(layer, shape, places, any_backend):
    y = draw(layer, np.ones(shape), any_backend)
    assert np.all(y == y.max(axis=places, keepdims=True))
    assert np.mean(y == 0) == pytest.approx(0.4, abs=0.03)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.GaussianNoise(-1), "stddev must be at least 0, got -1"),
        (lambda: layers.GaussianDropout(1), "GaussianDropout: rate must be at least 0 and below 1"),
        (lambda: layers.SpatialDropout2D(0.1, "last"), "data_format must be 'channels_last' or"),
        (lambda: layers.SpatialDropout1D(0.1).out_shape((4,)), r"expects .* \(batch, steps, channels\), got"),
        (lambda: layers.SpatialDropout2D(0.1).out_shape((4, 3)), r"\(batch, rows, columns, channels\), got"),
    ],
)
def test_noise_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(shape=shapes, batch=st.integers(2, 5), center=st.booleans(), scale=st.booleans())
def test_batch_normalization(shape, batch, center, scale):
    check_layer(layers.BatchNormalization(center=center, scale=scale), shape, batch=batch)


@pytest.mark.parametrize("axis", [1, 2, 3, -1, -2, -3])
def test_batch_normalization_on_any_axis(axis):
    check_layer(layers.BatchNormalization(axis=axis), (2, 3, 4))


def test_batch_normalization_of_a_constant_feature_is_beta():
    model = nnx.Sequential(
        [layers.BatchNormalization(beta_initializer=nnx.initializers.Constant(0.7))], seed=0
    )
    x = model.backend.asarray(np.full((8, 2), 5.0, dtype=np.float32))
    model.build((2,))
    ctx = nnx.Context(training=True, state=model.state)
    y, _ = model.apply(model.params, x, ctx)
    np.testing.assert_allclose(model.backend.to_numpy(y), 0.7, atol=1e-6)


SAMPLE_NORMALIZATIONS = [layers.LayerNormalization, layers.RMSNormalization]


@pytest.mark.parametrize("kind", SAMPLE_NORMALIZATIONS)
@given(shape=shapes, batch=batches)
def test_sample_normalization(kind, shape, batch):
    check_layer(kind(), shape, batch=batch)


@pytest.mark.parametrize("axis", [1, 2, 3, -2, [3], [1, 2], [-1, 1], [2, 3, 1]])
@pytest.mark.parametrize("kind", SAMPLE_NORMALIZATIONS)
def test_sample_normalization_on_any_axes(kind, axis):
    check_layer(kind(axis=axis), (2, 3, 4))


@given(
    places=st.lists(st.integers(1, 3), max_size=2).map(tuple),
    groups=st.sampled_from([-1, 1, 2, 3]),
    batch=batches,
)
def test_group_normalization(places, groups, batch):
    check_layer(layers.GroupNormalization(groups), (*places, 6), batch=batch)
    check_layer(layers.GroupNormalization(groups, axis=1), (6, *places), batch=batch)


@pytest.mark.parametrize("kind", [layers.LayerNormalization, functools.partial(layers.GroupNormalization, 2)])
@pytest.mark.parametrize(("center", "scale"), [(True, False), (False, True), (False, False)])
def test_normalization_without_scale_or_offset(kind, center, scale):
    check_layer(kind(center=center, scale=scale), (3, 4))


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (
            layers.LayerNormalization(axis=0),
            (3,),
            r"axis=0 does not fit .* \(batch, 3\).*axis 0 is the batch",
        ),
        (layers.LayerNormalization(axis=[1, -1]), (3,), r"axis=\[1, -1\] .* each axis once"),
        (layers.RMSNormalization(axis=3), (3, 2), "RMSNormalization: axis=3 .* from 1 to 2"),
        (layers.GroupNormalization(4), (6,), "6 channels, .* cannot be divided into 4 groups"),
        (layers.GroupNormalization(), (6,), "choose groups that divides 6"),
    ],
)
def test_normalization_refuses(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        nnx.Sequential([layer], seed=0).build(shape)


@pytest.mark.parametrize("kind", [layers.LayerNormalization, functools.partial(layers.GroupNormalization, 1)])
def test_normalization_of_a_constant_sample_is_beta(kind, any_backend):
    layer = kind(beta_initializer=nnx.initializers.Constant(0.7))
    np.testing.assert_allclose(nnx.apply(layer, np.full((2, 5), 3.0), backend=any_backend), 0.7, atol=1e-6)


@given(shape=shapes, batch=batches)
def test_flatten(shape, batch):
    check_layer(layers.Flatten(), shape, batch=batch)


@pytest.mark.parametrize(
    ("shape", "target", "out"), [((6,), (2, 3), (2, 3)), ((2, 3), (-1, 2), (3, 2)), ((2, 3), 6, (6,))]
)
def test_reshape(shape, target, out):
    layer = layers.Reshape(target)
    assert layer.out_shape(shape) == out
    check_layer(layer, shape)


@pytest.mark.parametrize("dims", [(1,), (2, 1), (3, 1, 2), (1, 3, 2), (2, 4, 1, 3)])
def test_permute(dims):
    shape = (2, 3, 4, 5)[: len(dims)]
    layer = layers.Permute(dims)
    check_layer(layer, shape)
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    np.testing.assert_array_equal(nnx.apply(layer, x), x.transpose(0, *dims))


@given(features=st.integers(1, 5), n=st.integers(1, 4), batch=batches)
def test_repeat_vector(features, n, batch):
    check_layer(layers.RepeatVector(n), (features,), batch=batch)


@given(shape=shapes, batch=batches, data=st.data())
def test_prelu(shape, batch, data):
    axes = st.lists(st.integers(1, len(shape)), unique=True)
    check_layer(layers.PReLU("uniform", shared_axes=data.draw(st.none() | axes)), shape, batch=batch)


def test_lambda():
    scaled = layers.Lambda(lambda x, by: (x * by, lambda dy: dy * by), arguments={"by": 3.0})
    check_layer(scaled, (2, 3))
    sines = layers.Lambda(lambda xp, x: (xp.sin(x), lambda dy: dy * xp.cos(x)))
    check_layer(sines, (4,))
    first = layers.Lambda(lambda x: x[:, 0])
    assert first.out_shape((5, 2)) == (2,)
    assert layers.Lambda(lambda x: x[:, 0], output_shape=(7,)).out_shape((5, 2)) == (7,)


def test_lambda_without_pullback_is_derived(any_backend):
    model = nnx.Sequential([layers.Dense(3), layers.Lambda(lambda xp, x: xp.sin(x))], seed=0)
    model.compile("sgd", "mse")
    x = np.ones((4, 2), np.float32)
    model.fit(x, x[:, [0, 0, 0]], epochs=2, verbose=0)
    with_pullback = layers.Lambda(lambda xp, x: (xp.sin(x), lambda dy: dy * xp.cos(x)))
    expected = nnx.Sequential([layers.Dense(3), with_pullback], seed=0)
    expected.compile("sgd", "mse")
    expected.fit(x, x[:, [0, 0, 0]], epochs=2, verbose=0)
    for mine, its in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5)


def test_lambda_is_not_saved(tmp_path):
    model = nnx.Sequential([layers.Lambda(lambda x: x, name="mine"), layers.Dense(1)], seed=0)
    model.build((2,))
    with pytest.raises(TypeError, match=r"cannot save a Lambda, .* save the weights alone .*@nnx.register"):
        model.save(tmp_path / "net.nnx")
    model.save_weights(tmp_path / "net.weights")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.Permute((0, 1)), r"counted from 1, such as \(2, 1\), got \(0, 1\)"),
        (lambda: layers.Permute((2, 1)).out_shape((3,)), r"of 2 axes, got input of shape \(batch, 3\)"),
        (lambda: layers.RepeatVector(0), "n must be a positive whole number, got 0"),
        (
            lambda: layers.RepeatVector(2).out_shape((3, 4)),
            r"\(batch, features\), got \(batch, 3, 4\): put a F",
        ),
        (lambda: layers.PReLU(shared_axes=2).init(None, (3,)), r"shared_axes=\[2\] names an axis that"),
        (lambda: layers.Lambda(lambda x: x @ x).out_shape((3,)), "fails on zeros of .* give output_shape="),
        (lambda: layers.Lambda(lambda xp, x: xp.sum(x)).out_shape((3,)), "first axis must stay the batch"),
        (lambda: layers.Parallel(layers.Dense(1), merge="sum"), "merge must be one of concat, add, .*'sum'"),
    ],
)
def test_shape_layers_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_lambda_of_what_is_no_function():
    with pytest.raises(TypeError, match=r"function must be callable, .* got 3"):
        layers.Lambda(3)


@given(shape=shapes, batch=batches, seed=st.integers(0, 99))
def test_embedding(shape, batch, seed):
    """Of real numbers, so that a derivative by them, 0, can be looked at."""
    ids = np.random.default_rng(seed).integers(0, 3, (batch, *shape))  # few, so that they come again
    check_layer(layers.Embedding(4, 2), shape, batch=batch, x=ids + 0.5)


@given(rows=st.integers(1, 40), length=st.integers(1, 9), width=st.integers(1, 4))
def test_scatter_add_counts_what_comes_again(rows, length, width):
    rng = np.random.default_rng(0)
    indices = rng.integers(0, length, rows).astype(np.int32)
    values = rng.standard_normal((rows, width)).astype(np.float32)
    expected = np.stack([values[indices == i].sum(axis=0) for i in range(length)])
    for name, info in nnx.testing.available_backends().items():
        if info.usable:
            backend = nnx.as_backend(name)
            found = backend.scatter_add(backend.asarray(indices), backend.asarray(values), length)
            np.testing.assert_allclose(backend.to_numpy(found), expected, rtol=1e-5, atol=1e-5, err_msg=name)


IDS = np.random.default_rng(0).integers(0, 5, (60, 3))


def embedding_model(*first, backend=None, dtype="float32", seed=0):
    model = nnx.Sequential(
        [*first, layers.Embedding(5, 4), layers.Flatten(), layers.Dense(2, "softmax")],
        seed=seed,
        dtype=dtype,
        backend=backend,
    )
    model.compile(nnx.optimizers.Adam(0.05), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.mark.parametrize("first", [(), (layers.Input((3,)), layers.Permute((1,)))])
def test_a_model_of_categories_learns(first, any_backend):
    model = embedding_model(*first, backend=any_backend)
    history = model.fit(IDS, IDS[:, 0] > IDS[:, 1], epochs=40, verbose=0).history
    assert history["accuracy"][-1] > 0.95
    np.testing.assert_allclose(model.predict(IDS.astype(float)), model.predict(IDS))


def test_integers_reach_the_embedding_in_half_precision():
    model = nnx.Sequential([layers.Embedding(5000, 2, input_shape=(2,))], seed=0, dtype="float16")
    table = nnx.Sequential([layers.Embedding(5000, 2, input_shape=(2,))], seed=0)
    ids = np.array([[2049, 4999]])
    np.testing.assert_allclose(model.predict(ids), table.predict(ids), atol=1e-3)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0, 5, 1]], "the value 5 at row 0, column 1: .* from 0 to 4. Number .* or enlarge input_dim"),
        ([[0, 1, 2], [3, -1, 0]], "the value -1 at row 1, column 1"),
        ([[0.5, 1, 1]], "the value 0.5 at row 0, column 0"),
        ([[np.nan, 1, 1]], "the value nan"),
        ([["a", "b", "c"]], "X must be numbers|array of numbers"),
        ([[0, 1]], "the model expects X of shape"),
    ],
)
def test_categories_are_checked_on_the_host(x, message):
    model = embedding_model()
    model.build((3,))
    for use in (model.predict, lambda x: model.fit(x, np.zeros(len(x)), verbose=0)):
        with pytest.raises(ValueError, match=message):
            use(np.asarray(x))


def test_categories_of_branches():
    both = layers.Parallel(layers.Embedding(5, 2), [layers.Flatten(), layers.Embedding(3, 2)], merge="add")
    assert both.categories == 3
    assert layers.Parallel(layers.Embedding(5, 2), layers.Dense(3)).categories is None
    assert layers.Chain([layers.Dense(3), layers.Embedding(5, 2)]).categories is None


def test_a_computed_category_out_of_range_gives_nan(any_backend):
    layer = layers.Chain([layers.Linear(), layers.Embedding(2, 1, "ones")])
    found = nnx.apply(layer, [[0.0, 1.9, 2.0, -1.0]], backend=any_backend)
    np.testing.assert_array_equal(found[0, :, 0], [1, 1, np.nan, np.nan])


def test_embedding_refuses():
    with pytest.raises(
        ValueError, match=r"mask_zero=True expects input of shape \(batch, time\), got \(batch, 2, 2"
    ):
        layers.Embedding(3, 2, mask_zero=True).out_shape((2, 2))
    with pytest.raises(ValueError, match="output_dim must be a positive whole number, got 0"):
        layers.Embedding(3, 0)
    with pytest.raises(
        ValueError, match="3000 categories cannot be told apart as float16: make it the first"
    ):
        nnx.Sequential(
            [layers.Linear(input_shape=(1,)), layers.Embedding(3000, 2)], seed=0, dtype="float16"
        ).predict([[1.0]])


def test_input_changes_nothing():
    check_layer(layers.Input((4,)), (4,))


@given(shape=shapes, batch=batches)
def test_residual(shape, batch):
    inner = [
        layers.Dense(4, activation="tanh"),
        layers.BatchNormalization(),
        layers.Dropout(0.2),
        layers.Dense(shape[-1]),
    ]
    check_layer(layers.Residual(inner), shape, batch=batch + 1)


@pytest.mark.parametrize("merge", ["concat", "add", "multiply", "average", "maximum", "minimum"])
@given(shape=shapes)
def test_parallel(merge, shape):
    branches = (
        layers.Dense(3),
        [layers.Dense(2, "relu"), layers.Dropout(0.5), layers.Dense(3)],
        layers.Dense(3, "tanh"),
    )
    check_layer(layers.Parallel(*branches, merge=merge), shape)


def test_merges_are_those_of_numpy(any_backend):
    x = np.array([[-2.0, 3.0]], np.float32)
    branches = layers.Activation("linear"), layers.Activation("relu"), layers.Lambda(lambda x: x + 1)
    expected = {
        "add": [[-3, 10]], "multiply": [[0, 36]], "average": [[-1, 10 / 3]], "maximum": [[0, 4]], "minimum": [[-2, 3]]
    }  # fmt: skip
    for merge, y in expected.items():
        found = nnx.apply(layers.Parallel(*branches, merge=merge), x, backend=any_backend)
        np.testing.assert_allclose(found, y, rtol=1e-6)


def test_equal_outputs_share_the_gradient_of_their_maximum():
    same = layers.Parallel(layers.Activation("linear"), layers.Activation("linear"), merge="maximum")
    check_layer(same, (3,))


def test_a_chain_of_everything():
    check_layer(
        layers.Chain(
            [
                layers.Flatten(),
                layers.Dense(6, activation="gelu"),
                layers.BatchNormalization(),
                layers.Residual([layers.Dense(6, activation="selu"), layers.Dropout(0.1)]),
                layers.Parallel(layers.Dense(2), layers.Activation("mish")),
                layers.Dense(3, activation="softmax"),
            ]
        ),
        (2, 3),
        batch=4,
    )


class WrongGradient(layers.Layer):
    def forward(self, ctx, params, x):
        return x**3, lambda dy: (2 * x**2 * dy, {})


class WritesIntoItsInput(layers.Layer):
    def forward(self, ctx, params, x):
        x *= 2
        return x, lambda dy: (2 * dy, {})


class Widens(layers.Layer):
    def forward(self, ctx, params, x):
        factor = ctx.xp.asarray([2.0], dtype=ctx.xp.float64)
        return x * factor, lambda dy: (dy * factor, {})


class LeavesOutAGradient(layers.Dense):
    def forward(self, ctx, params, x):
        y, pullback = super().forward(ctx, params, x)
        return y, lambda dy: (pullback(dy)[0], {"kernel": pullback(dy)[1]["kernel"]})


class WrongShape(layers.Layer):
    def out_shape(self, in_shape):
        return (*in_shape, 1)

    def forward(self, ctx, params, x):
        return x, lambda dy: (dy, {})


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (WrongGradient(), "not the derivative"),
        (WritesIntoItsInput(), "wrote into"),
        (Widens(), "makes float64 of float32"),
        (LeavesOutAGradient(2), "returned gradients for"),
        (WrongShape(), "announced outputs of shape"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_check_layer_notices(layer, message):
    with pytest.raises(AssertionError, match=message):
        check_layer(layer, (3,), backends=["numpy"])


def test_check_layer_notices_a_gradient_that_is_wrong_in_training_only():
    class Wrong(layers.Dropout):
        def forward(self, ctx, params, x):
            y, _ = super().forward(ctx, params, x)
            return y, lambda dy: (dy, {})

    with pytest.raises(AssertionError, match="training=True"):
        check_layer(Wrong(0.5), (4,), backends=["numpy"])


class Scale(layers.Layer):
    """A user's layer without a pullback."""

    def init(self, rng, in_shape):
        return {"factor": np.ones(in_shape[-1:])}, in_shape

    def forward(self, ctx, params, x):
        return x * params["factor"]


class Counted(layers.Layer):
    """A layer of one's own with a weight, state, a mask, random bits and a penalty, whose pullback is derived."""

    supports_masking = True

    def init(self, rng, in_shape):
        return {"factor": np.ones(in_shape[-1:])}, in_shape

    def init_state(self, in_shape):
        return {"calls": np.zeros(1)}

    def forward(self, ctx, params, x):
        xp, calls = ctx.xp, ctx.state["calls"]
        y = xp.tanh(x * params["factor"]) * (1.0 + calls)
        if ctx.training:
            ctx.state = {"calls": calls + 1.0}
            kept = xp.astype(ctx.random_bits(x.shape) >> 31, x.dtype)
            y = y * kept * 2.0
        if ctx.mask is not None:
            y = y * xp.astype(ctx.mask, x.dtype)[:, :, None]
        ctx.add_penalty(0.01 * xp.sum(params["factor"] ** 2))
        return y


class CountedByHand(Counted):
    """The same, with its pullback."""

    def forward(self, ctx, params, x):
        xp, scale = ctx.xp, 1.0 + ctx.state["calls"]
        if ctx.training:
            scale = scale * xp.astype(ctx.random_bits(x.shape) >> 31, x.dtype) * 2.0
        if ctx.mask is not None:
            scale = scale * xp.astype(ctx.mask, x.dtype)[:, :, None]
        y = super().forward(ctx, params, x)
        slope = (1.0 - xp.tanh(x * params["factor"]) ** 2) * scale

        def pullback(dy):
            d = dy * slope
            return d * params["factor"], {"factor": xp.sum(d * x, axis=(0, 1)) + 0.02 * params["factor"]}

        return y, pullback


def test_a_layer_without_pullback_trains_as_with_one(any_backend, caplog):
    caplog.set_level("INFO", "nnx")
    x = np.random.default_rng(0).standard_normal((20, 5, 3)).astype(np.float32)
    x[:7, 3:] = 0
    trained = []
    for layer in (Counted(name="mine"), CountedByHand(name="mine")):
        model = nnx.Sequential(
            [layers.Masking(), layer, layers.GlobalAveragePooling1D(), layers.Dense(1)], seed=0
        )
        model.compile("adam", "mse")
        model.fit(x, x.sum(axis=(1, 2)), epochs=3, batch_size=8, verbose=0)
        trained.append(model.get_weights())
    assert "not compiled" not in caplog.text
    assert np.abs(trained[0][0] - 1).max() > 1e-3
    for mine, by_hand in zip(*trained, strict=True):
        np.testing.assert_allclose(mine, by_hand, rtol=2e-4, atol=1e-6)


class Wave(nnx.activations.Activation):
    """y = x * tanh(x), with a derived gradient."""

    def forward(self, xp, x):
        return x * xp.tanh(x)


class WaveByHand(Wave):
    needs_input = True

    def gradient(self, xp, dy, saved):
        t = xp.tanh(saved)
        return dy * (t + saved * (1.0 - t * t))


def test_activations_of_ones_own(any_backend, caplog):
    """A function, and a class without a gradient, train as a class with one."""
    caplog.set_level("INFO", "nnx")
    x, trained = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32), []
    for activation in (lambda xp, x: x * xp.tanh(x), Wave(), WaveByHand()):
        model = nnx.Sequential([layers.Dense(4, activation=activation), layers.Dense(1)], seed=0)
        model.compile("adam", "mse")
        model.fit(x, x.sum(axis=1), epochs=3, batch_size=8, verbose=0)
        trained.append(model.get_weights())
    assert "not compiled" not in caplog.text
    for mine in trained[:2]:
        for weight, expected in zip(mine, trained[2], strict=True):
            np.testing.assert_allclose(weight, expected, rtol=2e-4, atol=1e-6)


class Both(layers.Layer):
    """Two inputs and two outputs."""

    def out_shape(self, in_shape):
        return {"sum": in_shape["a"], "product": in_shape["a"]}

    def forward(self, ctx, params, x):
        return {"sum": x["a"] + 2.0 * x["b"], "product": x["a"] * x["b"]}


def test_a_layer_of_several_inputs_and_outputs_without_pullback():
    check_layer(Both(), {"a": (3,), "b": (3,)})


def test_an_operation_without_derivative_names_the_layer():
    model = nnx.Sequential(
        [layers.Dense(4), layers.Lambda(lambda xp, x: xp.linalg.svd(x)[1])], seed=0, backend="numpy"
    )
    model.layers[1].output_shape = (4,)
    model.compile("sgd", "mse")
    with pytest.raises(nnx.GraphError, match=r"no derivative is known of linalg.svd") as caught:
        model.fit(np.ones((4, 2), "float32"), np.ones((4, 4), "float32"), verbose=0)
    assert "raised by layer Lambda" in str(caught.value.__notes__)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: layers.Dense(2, use_bias=False, bias_regularizer="l2"), (4,)),
        (lambda: layers.Conv1D(2, 2, use_bias=False, bias_regularizer="l2"), (4, 2)),
        (lambda: layers.Conv2DTranspose(2, 2, use_bias=False, bias_regularizer="l2"), (4, 4, 2)),
        (lambda: layers.DepthwiseConv2D(2, use_bias=False, bias_regularizer="l2"), (4, 4, 2)),
        (lambda: layers.SeparableConv2D(2, 2, use_bias=False, bias_regularizer="l2"), (4, 4, 2)),
        (lambda: layers.GRU(2, use_bias=False, bias_regularizer="l2"), (4, 2)),
        (lambda: layers.MultiHeadAttention(1, 2, use_bias=False, bias_regularizer="l2"), (4, 2)),
        (lambda: layers.LayerNormalization(center=False, beta_regularizer="l2"), (4,)),
        (lambda: layers.LayerNormalization(scale=False, gamma_regularizer="l2"), (4,)),
    ],
)
def test_a_regularizer_of_a_weight_that_is_not_there_is_ignored(make, shape):
    layer = make()
    params, _ = layer.init(np.random.default_rng(0), shape)
    paths = {"/".join(path) for path in tree.paths(params)}
    assert set(layer.regularizers()) <= paths


def test_a_layer_declares_its_weights_once():
    class Mixed(layers.Layer):
        mix_initializer = nnx.initializers.RandomNormal()
        mix_regularizer = nnx.regularizers.L2(0.1)
        scale_initializer = nnx.initializers.Ones()

        def declare_weights(self):
            yield Weight.of(self, "inner/kernel", lambda in_shape: (in_shape[-1], 2), "mix")
            yield Weight.of(self, "scale", (2,))
            yield Weight("shift", (1,), nnx.initializers.Zeros(), nnx.regularizers.L1(0.2))

    layer = Mixed()
    params, out_shape = layer.init(np.random.default_rng(7), (3,))
    assert out_shape == (3,)
    assert list(params) == ["inner", "scale", "shift"]
    expected = layer.mix_initializer(np.random.default_rng(7), (3, 2))
    np.testing.assert_array_equal(params["inner"]["kernel"], expected)
    np.testing.assert_array_equal(params["scale"], [1.0, 1.0])
    assert {name: repr(r) for name, r in layer.regularizers().items()} == {
        "inner/kernel": "L2(l2=0.1)",
        "shift": "L1(l1=0.2)",
    }


def test_a_layer_of_ones_own_may_write_init_and_regularizers_itself():
    class Own(layers.Dense):
        def init(self, rng, in_shape):
            params, out_shape = super().init(rng, in_shape)
            return {**params, "gain": np.ones(self.units)}, out_shape

        def regularizers(self):
            return {**super().regularizers(), "gain": nnx.regularizers.L1(0.5)}

    layer = Own(2, kernel_regularizer="l2")
    params, out_shape = layer.init(np.random.default_rng(0), (3,))
    assert (list(params), out_shape) == (["kernel", "bias", "gain"], (2,))
    assert list(layer.regularizers()) == ["kernel", "gain"]
