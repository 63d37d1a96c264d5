"""The derivative of each operation, against JAX's, on every backend."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import nnx
from nnx import tree
from nnx.graph.derivatives import derive_by_graph
from nnx.graph.graph import GraphError
from nnx.graph.rules import FLAT, RULES

rng = np.random.default_rng(0)
A = rng.standard_normal((3, 4))
B = rng.standard_normal((3, 4))
POSITIVE = rng.uniform(0.2, 0.9, (3, 4))
SQUARE = rng.standard_normal((2, 3, 3)) + 3 * np.eye(3)
CUBE = rng.standard_normal((2, 3, 4))
INDEX = np.array([2, 0, 2, -1])
PLACES = np.array([[0, 2, 2, 1], [1, 1, 0, 0], [2, 0, 1, 2]])


def placed(xp, x, values):
    """Return an array on the device of x."""
    return xp.asarray(values) if xp.__name__ == "jax.numpy" else xp.asarray(values, device=x.device)


def symmetric(xp, x):
    return x @ xp.matrix_transpose(x)


# name of the operation, function(xp, *arrays), arrays. Several cases of one operation are numbered by their place.
CASES = [
    ("add", lambda xp, x, y: x + y, (A, B[0])),
    ("subtract", lambda xp, x, y: x - y, (A, B[:, :1])),
    ("multiply", lambda xp, x, y: x * y * 2.0, (A[:1], B)),
    ("divide", lambda xp, x, y: x / y, (A, POSITIVE)),
    ("pow", lambda xp, x, y: x**y, (POSITIVE, B)),
    ("pow", lambda xp, x: x**3 + 2.0**x + x**0 + 0.5 * x**2, (A,)),
    ("pow", lambda xp, x: x**2 + xp.pow(x, 2 * xp.ones_like(x)), (np.zeros(3),)),
    ("remainder", lambda xp, x, y: xp.remainder(x, y), (A, POSITIVE)),
    ("atan2", lambda xp, x, y: xp.atan2(x, y), (A, B)),
    ("hypot", lambda xp, x, y: xp.hypot(x, y), (A, B)),
    ("logaddexp", lambda xp, x, y: xp.logaddexp(x, y), (A, B)),
    ("copysign", lambda xp, x, y: xp.copysign(x, y), (A, B)),
    ("maximum", lambda xp, x, y: xp.maximum(x, y), (A, B)),
    ("maximum", lambda xp, x, y: xp.maximum(x, y), (np.array([1.0, 2.0]), np.array([1.0, 1.0]))),
    ("minimum", lambda xp, x, y: xp.minimum(x, y), (A, B)),
    ("minimum", lambda xp, x, y: xp.minimum(x, y), (np.array([1.0, 2.0]), np.array([1.0, 3.0]))),
    ("where", lambda xp, x, y: xp.where(x > 0, x, y), (A, B)),
    ("clip", lambda xp, x: xp.clip(x, -0.5, 0.5), (A,)),
    ("clip", lambda xp, x: xp.clip(x, max=0.5) + xp.clip(x, min=-0.5), (np.array([-0.5, 0.0, 0.5, 1.0]),)),
    ("negative", lambda xp, x: -x, (A,)),
    ("positive", lambda xp, x: xp.positive(x), (A,)),
    ("abs", lambda xp, x: xp.abs(x), (A,)),
    *[
        (name, lambda xp, x, name=name: getattr(xp, name)(x), (POSITIVE,))
        for name in (
            "exp", "expm1", "log", "log1p", "log2", "log10", "sqrt", "square", "reciprocal", "sin", "cos", "tan",
            "asin", "acos", "atan", "sinh", "cosh", "tanh", "asinh", "atanh",
        )
    ],
    ("acosh", lambda xp, x: xp.acosh(x + 1.0), (POSITIVE,)),
    ("sum", lambda xp, x: xp.sum(x), (A,)),
    ("sum", lambda xp, x: xp.sum(x, axis=(0, -1), keepdims=True), (CUBE,)),
    ("mean", lambda xp, x: xp.mean(x, axis=1), (CUBE,)),
    ("max", lambda xp, x: xp.max(x, axis=-1), (A,)),
    ("max", lambda xp, x: xp.max(x), (np.array([1.0, 2.0, 2.0]),)),
    ("min", lambda xp, x: xp.min(x, axis=0, keepdims=True), (A,)),
    ("prod", lambda xp, x: xp.prod(x, axis=1), (A,)),
    ("prod", lambda xp, x: xp.prod(x, axis=1), (np.array([[0.0, 2.0, 3.0], [0.0, 0.0, 3.0]]),)),
    ("var", lambda xp, x: xp.var(x, axis=1), (CUBE,)),
    ("var", lambda xp, x: xp.var(x, correction=1), (A,)),
    ("std", lambda xp, x: xp.std(x, axis=(1, 2), correction=1.0, keepdims=True), (CUBE,)),
    ("cumulative_sum", lambda xp, x: xp.cumulative_sum(x, axis=1), (CUBE,)),
    ("cumulative_sum", lambda xp, x: xp.cumulative_sum(x, axis=0, include_initial=True), (A,)),
    ("matmul", lambda xp, x, y: x @ y, (A, B.T)),
    ("matmul", lambda xp, x, y: x @ y, (CUBE, B.T)),
    ("matmul", lambda xp, x, y: x @ y, (A[0], B[0])),
    ("matmul", lambda xp, x, y: x @ y, (A[0], B.T)),
    ("matmul", lambda xp, x, y: x @ y, (CUBE, B[0])),
    ("matmul", lambda xp, x, y: x @ y, (B[0], np.swapaxes(CUBE, 1, 2))),
    ("tensordot", lambda xp, x, y: xp.tensordot(x, y, axes=((1, 2), (1, 0))), (CUBE, B.T[:, :, None])),
    ("tensordot", lambda xp, x, y: xp.tensordot(x, y, axes=1), (CUBE, B.T)),
    ("tensordot", lambda xp, x, y: xp.tensordot(x, y, axes=((2, 0), (0, 2))), (CUBE, rng.random((4, 5, 2)))),
    ("vecdot", lambda xp, x, y: xp.vecdot(x, y), (A, B)),
    ("matrix_transpose", lambda xp, x: xp.matrix_transpose(x) * 1.0, (CUBE,)),
    ("linalg.inv", lambda xp, x: xp.linalg.inv(x), (SQUARE,)),
    ("linalg.det", lambda xp, x: xp.linalg.det(x), (SQUARE,)),
    ("linalg.slogdet", lambda xp, x: xp.linalg.slogdet(x)[1], (SQUARE,)),
    ("linalg.solve", lambda xp, x, y: xp.linalg.solve(x, y), (SQUARE, CUBE)),
    ("linalg.solve", lambda xp, x, y: xp.linalg.solve(x, y), (SQUARE[0], A[:, 0])),
    ("linalg.cholesky", lambda xp, x: xp.linalg.cholesky(symmetric(xp, x)), (SQUARE,)),
    ("linalg.eigh", lambda xp, x: xp.linalg.eigh(symmetric(xp, x))[0], (SQUARE,)),
    ("linalg.eigh", lambda xp, x: xp.linalg.eigh(symmetric(xp, x))[1] ** 2, (SQUARE,)),
    ("linalg.trace", lambda xp, x: xp.linalg.trace(x, offset=1), (CUBE,)),
    ("linalg.diagonal", lambda xp, x: xp.linalg.diagonal(x), (CUBE,)),
    ("linalg.diagonal", lambda xp, x: xp.linalg.diagonal(x, offset=-1), (CUBE,)),
    ("linalg.outer", lambda xp, x, y: xp.linalg.outer(x, y), (A[0], B[:, 0])),
    ("linalg.vector_norm", lambda xp, x: xp.linalg.vector_norm(x, axis=1), (A,)),
    ("linalg.vector_norm", lambda xp, x: xp.linalg.vector_norm(x, ord=3), (A,)),
    ("linalg.matrix_norm", lambda xp, x: xp.linalg.matrix_norm(x), (CUBE,)),
    ("linalg.cross", lambda xp, x, y: xp.linalg.cross(x, y), (A[:, :3], B[:, 1:])),
    ("getitem", lambda xp, x: x[1, ...], (A,)),
    ("getitem", lambda xp, x: x[..., -1], (CUBE,)),
    ("getitem", lambda xp, x: x[None, 1:, ::-2], (A,)),
    ("getitem", lambda xp, x: x[:, 1, None, 1:3], (CUBE,)),
    ("getitem", lambda xp, x: x[placed(xp, x, INDEX)], (A[:, 0],)),
    ("take", lambda xp, x: xp.take(x, placed(xp, x, INDEX[:3]), axis=1), (CUBE,)),
    ("take", lambda xp, x: xp.take(x, placed(xp, x, INDEX), axis=0), (A,)),
    ("take_along_axis", lambda xp, x: xp.take_along_axis(x, placed(xp, x, PLACES), axis=0), (A,)),
    ("sort", lambda xp, x: xp.sort(x, axis=0), (A,)),
    ("sort", lambda xp, x: xp.sort(x), (CUBE,)),
    ("reshape", lambda xp, x: xp.reshape(x, (4, 3)) * 2.0, (A,)),
    ("expand_dims", lambda xp, x: xp.expand_dims(x, axis=1), (A,)),
    ("squeeze", lambda xp, x: xp.squeeze(x, axis=0), (A[:1],)),
    ("permute_dims", lambda xp, x: xp.permute_dims(x, (2, 0, 1)), (CUBE,)),
    ("moveaxis", lambda xp, x: xp.moveaxis(x, 0, -1), (CUBE,)),
    ("broadcast_to", lambda xp, x: xp.broadcast_to(x, (2, 3, 4)), (A[:, :1],)),
    ("broadcast_arrays", lambda xp, x, y: xp.broadcast_arrays(x, y)[1], (A, B[0])),
    ("concat", lambda xp, x, y: xp.concat([x, y, x], axis=1), (A, B[:, :2])),
    ("concat", lambda xp, x, y: xp.concat([x, y], axis=None), (A, B[0])),
    ("stack", lambda xp, x, y: xp.stack([x, y], axis=-1), (A, B)),
    ("unstack", lambda xp, x: xp.unstack(x, axis=1)[2] * 2.0, (CUBE,)),
    ("flip", lambda xp, x: xp.flip(x, axis=1), (A,)),
    ("roll", lambda xp, x: xp.roll(x, (1, -2), axis=(0, 1)), (A,)),
    ("repeat", lambda xp, x: xp.repeat(x, 3, axis=1), (A,)),
    ("tile", lambda xp, x: xp.tile(x, (2, 1, 2)), (A,)),
    ("tril", lambda xp, x: xp.tril(x, k=-1), (CUBE,)),
    ("triu", lambda xp, x: xp.triu(x), (CUBE,)),
    ("diff", lambda xp, x: xp.diff(x, axis=-1, n=2), (CUBE,)),
    ("astype", lambda xp, x: xp.astype(xp.astype(x, xp.float32), xp.float64) * 2.0, (np.ones(3),)),
    ("round", lambda xp, x: xp.round(x) * x + xp.sign(x) * xp.floor(x) * xp.ceil(x), (A,)),
]  # fmt: skip

# Methods of the backend, and NumPy's own functions, have no counterpart in jax.numpy: others test them.
ELSEWHERE = {
    "pad", "patches", "from_patches", "unslice", "scatter_add", "item", "asarray", "copy", "float_power", "fabs",
    "exp2", "cbrt", "nan_to_num", "ravel", "transpose", "swapaxes", "linalg.eigvalsh",
    *(name for name in FLAT if name != "round"),
    *(f"linalg.{name}" for name in ("matmul", "tensordot", "vecdot", "matrix_transpose")),
}  # fmt: skip


def test_each_rule_has_a_case():
    assert set(RULES) - {name for name, *_ in CASES} == ELSEWHERE


EXPECTED = {}


def by_jax(function, values):
    """Return the value, a direction, and the gradients of JAX, in float64; of one function once for all backends."""
    if function not in EXPECTED:
        EXPECTED[function] = _by_jax(function, values)
    return EXPECTED[function]


def _by_jax(function, values):
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        jnp = jax.numpy
        value, pullback = jax.vjp(lambda *xs: function(jnp, *xs), *map(jnp.asarray, values))
        direction = np.cos(np.arange(np.size(value), dtype=float)).reshape(np.shape(value))
        return np.asarray(value), direction, [np.asarray(d) for d in pullback(jnp.asarray(direction))]


def check(backend, function, values):
    value, direction, expected = by_jax(function, values)
    try:
        mine, pullback = derive_by_graph(
            backend, lambda b, *xs: function(b.xp, *xs), *map(backend.asarray, values)
        )
    except (AttributeError, TypeError, NotImplementedError) as error:
        if any(word in str(error) for word in ("has no attribute", "unexpected keyword")):
            pytest.skip(f"{backend.name}: {error}")  # of a later version of the standard
        raise
    np.testing.assert_allclose(backend.to_numpy(mine), value, rtol=1e-9, atol=1e-12)
    for derived, jax_derived in zip(pullback(backend.asarray(direction)), expected, strict=True):
        np.testing.assert_allclose(backend.to_numpy(derived), jax_derived, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("function", "values"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_rules_against_jax(backend, function, values):
    try:
        check(backend, function, values)
    except Exception as error:
        if type(error).__name__ == "NotEmulatedError":  # the emulated device has no linear algebra
            pytest.skip(f"{backend.name}: {error}")
        raise


@pytest.mark.hypothesis
@given(data=st.data())
def test_elementwise_rules_for_drawn_shapes(data):
    shapes = data.draw(
        arrays.mutually_broadcastable_shapes(num_shapes=3, max_dims=3, max_side=3)
    ).input_shapes
    values = [rng.standard_normal(shape) for shape in shapes]

    def function(xp, x, y, z):
        return xp.where(x > y, xp.tanh(x * y), x / (1.0 + z * z)) - xp.maximum(y, z)

    check(nnx.as_backend("numpy"), function, values)


@pytest.mark.hypothesis
@given(data=st.data())
def test_reductions_for_drawn_axes(data):
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=4, max_side=3))
    axes = data.draw(st.none() | arrays.valid_tuple_axes(len(shape), min_size=1))
    keepdims, values = data.draw(st.booleans()), [rng.standard_normal(shape)]
    for name in ("sum", "mean", "max", "min", "prod", "var"):
        check(
            nnx.as_backend("numpy"),
            lambda xp, x, name=name: getattr(xp, name)(x, axis=axes, keepdims=keepdims),
            values,
        )


@pytest.mark.hypothesis
@given(data=st.data())
def test_indexing_for_drawn_keys(data):
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=3, max_side=4))
    key = data.draw(arrays.basic_indices(shape, allow_newaxis=True))
    check(nnx.as_backend("numpy"), lambda xp, x: x[key] * 1.0, [rng.standard_normal(shape)])


@pytest.mark.parametrize(
    "key", [(PLACES, 1), (slice(None), PLACES), (PLACES[:, :3], PLACES[:, :3]), PLACES > 1], ids=str
)
def test_indices_that_are_arrays(key):
    check(nnx.as_backend("numpy"), lambda xp, x: x[key], [A])


def test_functions_of_numpy_itself():
    def function(xp, x):
        if xp.__name__ == "jax.numpy":
            np_ = xp
        else:
            np_ = np
        y = np_.concatenate([np_.arctan(x), np_.power(x, 2.0)], axis=0).T
        y = np_.swapaxes(np_.expand_dims(y, 0), 0, 1) + np_.exp2(x[0, 0]) + np_.cbrt(np_.abs(x[0, 1]))
        return np_.transpose(y).mean(axis=0) * np_.nan_to_num(x[0, 0])

    check(nnx.as_backend("numpy"), function, [A])


def test_rules_of_the_backend(backend):
    x = rng.standard_normal((5, 3))
    indices = backend.asarray(np.array([1, 1, 0, 3, 1]))

    def function(b, x):
        padded = b.pad(x, ((1, 2), (0, 1)), 3.0)
        parts = b.unslice(
            (8, 4), (padded[1:3, :], padded[:2, :]), ((slice(0, 2), slice(None)), (slice(1, 3), slice(None)))
        )
        return b.scatter_add(indices, parts[:5, :], 4) * b.scatter_add(indices, x * x, 4)[:, :1]

    def objective(values):
        with backend.scope("float64"):
            return float(np.sum(backend.to_numpy(function(backend, backend.asarray(values))) * direction))

    value, pullback = derive_by_graph(backend, function, backend.asarray(x))
    direction = rng.standard_normal(value.shape)
    (derived,) = pullback(backend.asarray(direction))
    step = 1e-6 * rng.standard_normal(x.shape)
    difference = objective(x + step) - objective(x - step)
    assert difference == pytest.approx(2 * np.sum(backend.to_numpy(derived) * step), rel=1e-6)


# For people


def test_slope_of_abs_at_zero():
    _, pullback = derive_by_graph(nnx.as_backend("numpy"), lambda b, x: b.xp.abs(x), np.zeros(1))
    assert pullback(np.ones(1))[0] == 0.0


def test_trees_several_arguments_and_others(any_backend):
    def loss(weights, x, scale):
        xp = nnx.get_backend().xp
        y = xp.tanh(x @ weights["kernel"]) * scale
        return xp.sum(y * y), {"output": y}

    weights = {"kernel": A.T.astype("float32")}
    (value, others), (gradients, by_scale) = nnx.value_and_grad(loss, argnums=(0, 2), has_aux=True)(
        weights, any_backend.asarray(B.astype("float32")), 2.0
    )
    y = 2 * np.tanh(B @ A.T)
    assert float(value) == pytest.approx(np.sum(y * y), rel=1e-5)
    assert any_backend.to_numpy(others["output"]) == pytest.approx(y, rel=1e-4, abs=1e-5)
    expected = B.T @ (2 * y * 2 * (1 - (y / 2) ** 2))
    assert any_backend.to_numpy(gradients["kernel"]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert float(by_scale) == pytest.approx(np.sum(y * y), rel=1e-5)


def test_second_derivatives(backend):
    """The product of a Hessian and a vector, and of a gradient penalty its gradient."""
    jax = pytest.importorskip("jax")

    def function(xp, x):
        return xp.sum(xp.tanh(x @ x.T) * xp.exp(-x[:, :1])) + xp.sum(xp.sort(x, axis=0)[0, :] ** 3)

    def product(namespace, grad, x):
        slope = grad(lambda x: function(namespace(), x))
        return grad(lambda x: namespace().sum(slope(x) * 3.0 * x))(x)

    def penalty(namespace, grad, x):
        slope = grad(lambda x: function(namespace(), x))
        return grad(lambda x: (namespace().sum(slope(x) ** 2) - 1.0) ** 2)(x)

    for second in (product, penalty):
        with jax.enable_x64(True):
            expected = np.asarray(second(lambda: jax.numpy, jax.grad, jax.numpy.asarray(A)))
        found = second(lambda: nnx.get_backend().xp, nnx.grad, backend.asarray(A))
        np.testing.assert_allclose(backend.to_numpy(found), expected, rtol=1e-9)


def test_a_namespace_taken_outside_of_the_function():
    xp = nnx.as_backend("numpy").xp
    with nnx.use_backend("numpy"):
        found = nnx.grad(
            lambda x: 6 * xp.mean(xp.sum(xp.concat([x, xp.linalg.inv(x)], axis=0), axis=(0, 2)) * 0.5)
        )(SQUARE)
    inverse = np.linalg.inv(SQUARE).swapaxes(1, 2)
    np.testing.assert_allclose(found, 1 - inverse @ np.ones((2, 3, 3)) @ inverse)


def test_stopped_gradients(any_backend):
    assert float(nnx.grad(lambda x: x * nnx.stop_gradient(x * x))(3.0)) == 9.0
    assert float(nnx.grad(nnx.grad(lambda x: x * x * nnx.stop_gradient(x)))(3.0)) == 6.0
    assert float(nnx.stop_gradient(any_backend.asarray(2.0))) == 2.0


def test_a_layer_inside_of_a_function(any_backend):
    layer = nnx.layers.Dense(2, activation="relu")
    params, _ = layer.init(np.random.default_rng(0), (4,))
    x = any_backend.asarray(A.astype("float32"))
    y, pullback = layer.forward(nnx.Context(), tree.map(any_backend.asarray, params), x)
    expected = pullback(2 * y)[1]

    def loss(params, ctx):
        return nnx.get_backend().xp.sum(layer.forward(ctx(), params, x)[0] ** 2)

    for ctx in (nnx.Context, lambda: nnx.Context(any_backend)):
        gradients = nnx.grad(loss)(params, ctx)
        for key in params:
            got, want = (any_backend.to_numpy(t[key]) for t in (gradients, expected))
            np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: float(x[0]) * x[1], "takes the value of an array as a number.* stop_gradient"),
        (lambda x: x, r"a gradient is that of a scalar, and the function returns an array of shape \(2,\)"),
        (lambda x: 1.0, r"a gradient is that of a scalar, and the function returns 1.0"),
        (lambda x: np.abs(np.fft.fft(x)).sum(), "no derivative is known of fft.fft, whose result is complex"),
        (lambda x: x.__setitem__(0, 1.0), "it writes into an array"),
        (lambda x: np.add(x, 1.0, out=np.zeros(2)).sum(), "add writes into an array"),
        (lambda x: np.linalg.svd(x[None])[1].sum(), "no derivative is known of linalg.svd"),
        (lambda x: np.array(x).sum(), "it hands an array to a library itself"),
    ],
)
def test_what_has_no_derivative_is_an_error(function, message):
    with nnx.use_backend("numpy"), pytest.raises(GraphError, match=message):
        nnx.grad(function)([1.0, 2.0])


def test_wrong_arguments_are_errors():
    with pytest.raises(GraphError, match=r"by arrays of floats, got int64: write 1\.0 for 1"):
        nnx.grad(lambda x: x)(1)
    with pytest.raises(IndexError, match="argnums=2 names an argument that is not among the 1 given"):
        nnx.grad(lambda x: x, argnums=2)(1.0)
    with pytest.raises(AttributeError, match="no attribute 'cumprod', which not every library has"):
        nnx.grad(lambda x: x.cumprod())([1.0])


def test_a_condition_on_a_value_is_followed():
    function = nnx.grad(lambda x: x * x if x > 0 else -x)
    assert (float(function(3.0)), float(function(-3.0))) == (6.0, -1.0)
