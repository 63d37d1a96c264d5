"""Every layer and activation is proved by `check_layer` over drawn shapes, on every backend."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnx
from nnx import layers
from nnx.testing import check_layer

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
batches = st.integers(1, 5)

ACTIVATIONS = nnx.activations.names()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(shape=shapes, batch=batches)
def test_activation(activation, shape, batch):
    check_layer(layers.Activation(activation), shape, batch=batch)


@pytest.mark.parametrize("activation", ACTIVATIONS)
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


@pytest.mark.parametrize("merge", ["concat", "add"])
@given(shape=shapes)
def test_parallel(merge, shape):
    branches = layers.Dense(3), [layers.Dense(2, "relu"), layers.Dropout(0.5), layers.Dense(3)]
    check_layer(layers.Parallel(*branches, merge=merge), shape)


def test_parallel_may_hold_one_layer_twice():
    shared = layers.Dense(3, activation="tanh")
    check_layer(layers.Parallel(shared, shared), (2,))


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


def test_a_layer_without_pullback_is_derived_on_jax_and_refused_elsewhere():
    x = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    model = nnx.Sequential([Scale(), layers.Dense(1)], seed=0, backend="jax")
    model.compile("sgd", "mse")
    model.build((3,))
    before = model.get_weights()[0]
    model.fit(x, x.sum(axis=1), epochs=2, verbose=0)
    assert np.abs(model.get_weights()[0] - before).max() > 1e-3
    assert model.to("numpy").predict(x).shape == (20, 1)
    with pytest.raises(TypeError, match="return \\(y, pullback\\) from forward, or train on the jax backend"):
        model.fit(x, x.sum(axis=1), epochs=1, verbose=0)
