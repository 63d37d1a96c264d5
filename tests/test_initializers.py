"""Initializers: mean, variance, bounds and structure of what they draw."""

import math

import numpy as np
import pytest

from nnx import initializers

SHAPE = (400, 250)
FAN_IN, FAN_OUT = SHAPE

# Draws from 100,000 values: a mean of squares is off by 3 per mille (one standard deviation) for
# a uniform and by 4.5 for a normal distribution; the bounds below are 5 of those.
TOLERANCE = {"uniform": 0.015, "normal": 0.023}

SCALED = [
    ("GlorotUniform", "uniform", 2 / (FAN_IN + FAN_OUT)),
    ("GlorotNormal", "normal", 2 / (FAN_IN + FAN_OUT)),
    ("HeUniform", "uniform", 2 / FAN_IN),
    ("HeNormal", "normal", 2 / FAN_IN),
    ("LecunUniform", "uniform", 1 / FAN_IN),
    ("LecunNormal", "normal", 1 / FAN_IN),
]

RANDOM = ["RandomNormal", "RandomUniform", "TruncatedNormal", "Orthogonal", *(name for name, _, _ in SCALED)]


def draw(name, shape=SHAPE, generator_seed=0, **settings):
    return getattr(initializers, name)(**settings)(np.random.default_rng(generator_seed), shape)


@pytest.mark.parametrize(("name", "distribution", "variance"), SCALED)
def test_scaled_initializers_have_the_variance_of_their_paper(name, distribution, variance):
    values = draw(name)
    assert np.mean(values**2) == pytest.approx(variance, rel=TOLERANCE[distribution])
    assert abs(values.mean()) < 5 * math.sqrt(variance / values.size)


@pytest.mark.parametrize(("name", "distribution", "variance"), SCALED)
def test_scaled_initializers_stay_within_their_bounds_and_reach_them(name, distribution, variance):
    # A normal distribution cut off at 2 deviations has 0.8796 of its deviation left.
    bound = (
        math.sqrt(3 * variance) if distribution == "uniform" else 2 * math.sqrt(variance) / 0.8796256610342398
    )
    largest = np.abs(draw(name)).max()
    assert 0.998 * bound < largest <= bound


def test_fans_of_a_convolution_count_its_window():
    assert initializers.fans((3, 5, 16, 32)) == (3 * 5 * 16, 3 * 5 * 32)
    values = draw("HeNormal", (3, 5, 16, 400))
    assert np.mean(values**2) == pytest.approx(2 / (3 * 5 * 16), rel=TOLERANCE["normal"])


@pytest.mark.parametrize(
    ("shape", "fans"), [((), (1, 1)), ((7,), (7, 7)), ((7, 3), (7, 3)), ((2, 7, 3), (14, 6))]
)
def test_fans(shape, fans):
    assert initializers.fans(shape) == fans


def test_random_normal():
    values = draw("RandomNormal", mean=3.0, stddev=0.5)
    assert values.mean() == pytest.approx(3.0, abs=5 * 0.5 / math.sqrt(values.size))
    assert values.var() == pytest.approx(0.25, rel=TOLERANCE["normal"])
    assert np.mean(np.abs(values - 3.0) > 1.0) == pytest.approx(0.0455, abs=0.0035)  # beyond 2 deviations


def test_random_uniform():
    values = draw("RandomUniform", minval=-1.0, maxval=3.0)
    assert values.min() == pytest.approx(-1.0, abs=1e-3)
    assert values.max() == pytest.approx(3.0, abs=1e-3)
    assert np.all((values >= -1.0) & (values < 3.0))
    assert values.mean() == pytest.approx(1.0, abs=5 * math.sqrt(16 / 12 / values.size))
    assert values.var() == pytest.approx(16 / 12, rel=TOLERANCE["uniform"])


def test_truncated_normal():
    values = draw("TruncatedNormal", mean=3.0, stddev=0.5)
    assert 0.999 < np.abs(values - 3.0).max() <= 1.0
    assert values.mean() == pytest.approx(3.0, abs=5 * 0.44 / math.sqrt(values.size))
    assert values.var() == pytest.approx((0.5 * 0.8796256610342398) ** 2, rel=TOLERANCE["normal"])


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (3, 2, 4), (2, 2, 10)])
def test_orthogonal_has_orthonormal_rows_or_columns(shape):
    matrix = draw("Orthogonal", shape, gain=1.5).reshape(-1, shape[-1])
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    np.testing.assert_allclose(short @ short.T, 1.5**2 * np.eye(len(short)), atol=1e-12)


def test_orthogonal_prefers_no_sign():
    rng = np.random.default_rng(0)
    corners = [initializers.Orthogonal()(rng, (2, 2))[0, 0] for _ in range(400)]
    assert abs(np.mean(corners)) < 5 * math.sqrt(0.5 / len(corners))


def test_orthogonal_needs_two_dimensions():
    with pytest.raises(ValueError, match="two dimensions"):
        draw("Orthogonal", (3,))


def test_constants():
    np.testing.assert_array_equal(draw("Zeros", (2, 3)), np.zeros((2, 3)))
    np.testing.assert_array_equal(draw("Ones", (2, 3)), np.ones((2, 3)))
    np.testing.assert_array_equal(draw("Constant", (2, 3), value=0.25), np.full((2, 3), 0.25))
    np.testing.assert_array_equal(draw("Constant", (2, 3), value=[1, 2, 3]), [[1, 2, 3], [1, 2, 3]])


@pytest.mark.parametrize("name", RANDOM)
def test_draws_follow_the_generator(name):
    first, again = (draw(name, (4, 3), generator_seed=5) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, draw(name, (4, 3), generator_seed=6))


@pytest.mark.parametrize("name", RANDOM)
def test_an_own_seed_overrides_the_generator(name):
    first, again = (draw(name, (4, 3), generator_seed=seed, seed=7) for seed in (0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, draw(name, (4, 3), seed=8))
