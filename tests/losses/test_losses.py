"""Every loss is proved by `check_loss` over drawn shapes, on every backend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nnx
from nnx import losses
from nnx.registry import REGISTRIES
from nnx.testing import check_loss

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(lambda sides: (*sides, 3))
RNG = np.random.default_rng(0)


def real(shape):
    return RNG.standard_normal(shape)


def inside(shape):
    """Numbers between 0 and 1, away from both."""
    return RNG.uniform(0.05, 0.95, shape)


def shares(shape):
    """Distributions over the last axis."""
    values = inside(shape)
    return values / values.sum(axis=-1, keepdims=True)


def labels(shape):
    return RNG.integers(0, 2, shape).astype(float)


def one_hot(shape):
    return np.eye(shape[-1])[RNG.integers(0, shape[-1], shape[:-1])]


def numbers(shape):
    return RNG.integers(0, shape[-1], shape[:-1]).astype(np.int32)


# loss, target, output
CASES = [
    (losses.MeanSquaredError(), real, real),
    (losses.MeanAbsoluteError(), real, real),
    (losses.LogCosh(), real, real),
    (losses.Huber(), real, real),
    (losses.Huber(delta=0.3), real, real),
    (losses.Quantile(), real, real),
    (losses.Quantile(0.9), real, real),
    (losses.Poisson(), inside, inside),
    (losses.Hinge(), labels, real),
    (losses.SquaredHinge(), labels, real),
    (losses.KLDivergence(), shares, shares),
    (losses.BinaryCrossentropy(), labels, inside),
    (losses.BinaryCrossentropy(from_logits=True), inside, real),
    (losses.BinaryCrossentropy(label_smoothing=0.2), labels, inside),
    (losses.BinaryFocalCrossentropy(), labels, inside),
    (losses.BinaryFocalCrossentropy(from_logits=True, apply_class_balancing=True, gamma=1.5), labels, real),
    (losses.CategoricalCrossentropy(), one_hot, inside),
    (losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), one_hot, real),
    (losses.CategoricalFocalCrossentropy(), one_hot, shares),
    (losses.CategoricalFocalCrossentropy(from_logits=True, gamma=1.5), one_hot, real),
    (losses.SparseCategoricalCrossentropy(), numbers, shares),
    (losses.SparseCategoricalCrossentropy(from_logits=True), numbers, real),
]


@pytest.mark.parametrize(("loss", "target", "output"), CASES, ids=lambda v: getattr(v, "__name__", repr(v)))
@given(shape=shapes)
def test_loss(loss, target, output, shape):
    check_loss(loss, target(shape), output(shape))


def test_no_loss_is_left_out():
    entries = REGISTRIES["loss"]._entries.values()
    known = {cls for cls in entries if cls.__name__ in losses.__all__}
    assert known == {type(loss) for loss, _, _ in CASES}


def test_check_loss_notices_a_wrong_gradient():
    class Wrong(losses.MeanSquaredError):
        def slope(self, xp, target, output):
            return output - target

    with pytest.raises(AssertionError, match="not the derivative"):
        check_loss(Wrong(), real((4, 2)), real((4, 2)))


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (losses.BinaryCrossentropy(from_logits=True), [[1.0], [0.0], [1.0], [0.0]]),
        (losses.BinaryFocalCrossentropy(from_logits=True), [[1.0], [0.0], [1.0], [0.0]]),
    ],
)
def test_binary_losses_of_huge_logits_stay_finite(loss, target, any_backend):
    output = np.array([[-1e4], [1e4], [1e4], [-1e4]], dtype=np.float32)
    assert_finite(loss, np.array(target, np.float32), output, any_backend)


@pytest.mark.parametrize("cls", [losses.CategoricalCrossentropy, losses.CategoricalFocalCrossentropy])
def test_categorical_losses_of_huge_logits_stay_finite(cls, any_backend):
    output = np.array([[-1e4, 1e4, 0.0], [1e4, 1e4, 1e4]], dtype=np.float32)
    assert_finite(cls(from_logits=True), np.eye(3, dtype=np.float32)[:2], output, any_backend)


@pytest.mark.parametrize(
    "loss", [losses.BinaryCrossentropy(), losses.KLDivergence(), losses.CategoricalCrossentropy()]
)
def test_losses_of_certain_and_wrong_probabilities_stay_finite(loss, any_backend):
    output = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    assert_finite(loss, output[::-1].copy(), output, any_backend)


def assert_finite(loss, target, output, backend):
    values, pullback = loss.forward(nnx.Context(backend), backend.asarray(target), backend.asarray(output))
    assert np.isfinite(backend.to_numpy(values)).all()
    assert np.isfinite(backend.to_numpy(pullback(values * 0 + 1))).all()


def test_called_on_arrays_and_as_a_function(any_backend):
    y_true, y_pred = [[0.0, 1.0], [1.0, 1.0]], [[0.5, 0.5], [1.0, 0.0]]
    each = losses.mean_squared_error(y_true, y_pred)
    np.testing.assert_allclose(any_backend.to_numpy(each), [0.25, 0.5])
    assert float(losses.MeanSquaredError()(y_true, y_pred)) == pytest.approx(0.375)
    assert float(losses.MeanSquaredError()(y_true, y_pred, sample_weight=[1.0, 0.0])) == pytest.approx(0.125)


def test_value_and_grad(any_backend):
    target, output = (real((5, 2)).astype(np.float32).astype(np.float64) for _ in range(2))
    value, gradient = losses.MeanSquaredError().value_and_grad(
        nnx.Context(any_backend),
        any_backend.asarray(target, dtype="float32"),
        any_backend.asarray(output, dtype="float32"),
    )
    assert float(value) == pytest.approx(np.mean((output - target) ** 2), rel=1e-5)
    np.testing.assert_allclose(any_backend.to_numpy(gradient), 2 * (output - target) / 10, rtol=1e-5)
