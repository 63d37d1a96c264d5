"""Layers that work on windows are proved by `check_layer` over drawn shapes, on every backend."""

import copy
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import nnx
from nnx import layers
from nnx.backend import Backend
from nnx.layers.windows import Windows, reach
from nnx.testing import check_layer

small = st.integers(1, 3)
lengths = st.integers(1, 6)


def shapes(rank):
    return st.tuples(*[lengths] * rank, small)


def each_axis(rank, values=small):
    return st.one_of(values, st.tuples(*[values] * rank))


def paddings(rank, *names):
    widths = st.integers(0, 2)
    return st.one_of(
        st.sampled_from(("valid", "same", *names)), widths, st.tuples(*[st.tuples(widths, widths)] * rank)
    )


def check(layer, shape):
    """Check a layer, unless its window is larger than the input, which is another test's business."""
    try:
        layer.out_shape(shape)
    except ValueError as error:
        assume("does not fit" not in str(error))
        raise
    check_layer(layer, shape, batch=2)


@pytest.mark.parametrize("rank", [1, 2])
@given(data=st.data())
def test_conv(rank, data):
    draw, groups = data.draw, data.draw(st.integers(1, 2))
    *spatial, channels = draw(shapes(rank))
    layer = getattr(layers, f"Conv{rank}D")(
        draw(small) * groups,
        draw(each_axis(rank)),
        strides=draw(each_axis(rank)),
        padding=draw(paddings(rank, *(("causal",) if rank == 1 else ()))),
        dilation_rate=draw(each_axis(rank, st.integers(1, 2))),
        groups=groups,
        activation=draw(st.sampled_from([None, "tanh", "gelu", "softmax"])),
        use_bias=draw(st.booleans()),
    )
    check(layer, (*spatial, channels * groups))


@given(data=st.data(), multiplier=st.integers(1, 2))
def test_depthwise_conv(data, multiplier):
    layer = layers.DepthwiseConv2D(
        data.draw(each_axis(2)),
        data.draw(each_axis(2)),
        data.draw(paddings(2)),
        multiplier,
        dilation_rate=data.draw(each_axis(2, st.integers(1, 2))),
        activation="tanh",
        use_bias=data.draw(st.booleans()),
    )
    check(layer, data.draw(shapes(2)))


@given(data=st.data(), multiplier=st.integers(1, 2))
def test_separable_conv(data, multiplier):
    layer = layers.SeparableConv2D(
        data.draw(small),
        data.draw(each_axis(2)),
        data.draw(each_axis(2)),
        data.draw(paddings(2)),
        depth_multiplier=multiplier,
        activation="gelu",
    )
    check(layer, data.draw(shapes(2)))


@given(data=st.data())
def test_conv_transpose(data):
    draw, strides = data.draw, data.draw(st.tuples(small, small))
    layer = layers.Conv2DTranspose(
        draw(small),
        draw(st.tuples(*[st.integers(2, 4)] * 2)),
        strides,
        draw(st.sampled_from(["valid", "same"])),
        draw(st.sampled_from([None, tuple(n - 1 for n in strides)])),
        dilation_rate=draw(each_axis(2, st.integers(1, 2))),
        activation=draw(st.sampled_from([None, "gelu"])),
    )
    check(layer, draw(st.tuples(st.integers(3, 5), st.integers(3, 5), small)))


@given(data=st.data())
def test_layers_that_change_the_size(data):
    widths, shape = st.tuples(st.integers(0, 2), st.integers(0, 2)), data.draw(shapes(2))
    check(layers.ZeroPadding1D(data.draw(widths)), shape[1:])
    check(layers.ZeroPadding2D(data.draw(st.tuples(widths, widths))), shape)
    check(layers.UpSampling2D(data.draw(each_axis(2))), shape)
    larger = tuple(n + 4 for n in shape)
    check(layers.Cropping1D(data.draw(widths)), larger[1:])
    check(layers.Cropping2D(data.draw(st.tuples(widths, widths))), larger)


def test_conv_transpose_is_the_gradient_of_conv():
    rng = np.random.default_rng(0)
    kernel, dy = rng.standard_normal((3, 2, 4, 5)), rng.standard_normal((2, 4, 3, 5))
    conv = layers.Conv2D(5, (3, 2), 2, "same", use_bias=False)
    _, pullback = conv.forward(nnx.Context("numpy"), {"kernel": kernel}, np.zeros((2, 8, 6, 4)))
    layer = layers.Conv2DTranspose(4, (3, 2), 2, "same", use_bias=False)
    y, _ = layer.forward(nnx.Context("numpy"), {"kernel": kernel}, dy)
    np.testing.assert_allclose(y, pullback(dy)[0], rtol=1e-12)


def test_conv_with_activity_regularizer():
    check_layer(layers.Conv2D(2, 2, activation="relu", activity_regularizer="l2"), (3, 4, 2))


@pytest.mark.parametrize("kind", ["MaxPooling", "AveragePooling"])
@pytest.mark.parametrize("rank", [1, 2])
@given(data=st.data())
def test_pooling(kind, rank, data):
    strides = data.draw(st.one_of(st.none(), each_axis(rank)))
    layer = getattr(layers, f"{kind}{rank}D")(
        data.draw(each_axis(rank)), strides, data.draw(st.sampled_from(["valid", "same"]))
    )
    check(layer, data.draw(shapes(rank)))


@pytest.mark.parametrize("kind", ["GlobalMaxPooling", "GlobalAveragePooling"])
@pytest.mark.parametrize("rank", [1, 2])
@given(data=st.data(), keepdims=st.booleans())
def test_global_pooling(kind, rank, data, keepdims):
    check(getattr(layers, f"{kind}{rank}D")(keepdims=keepdims), data.draw(shapes(rank)))


# What the sums over windows are


def naive(x, kernel, strides, dilation, before, counts):
    """Return a convolution as its definition says, with loops over all places."""
    y = np.zeros((len(x), *counts, kernel.shape[-1]))
    for place in np.ndindex(*counts):
        for k in np.ndindex(*kernel.shape[:-2]):
            at = [
                p * s + i * d - b for p, s, i, d, b in zip(place, strides, k, dilation, before, strict=True)
            ]
            if all(0 <= a < n for a, n in zip(at, x.shape[1:-1], strict=True)):
                y[(slice(None), *place)] += x[(slice(None), *at)] @ kernel[k]
    return y


def test_conv_is_what_its_definition_says():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 7, 6, 3)).astype(np.float32)
    layer = layers.Conv2D(
        4, (3, 2), strides=(2, 1), padding=((2, 1), (0, 3)), dilation_rate=(1, 2), use_bias=False
    )
    params, out_shape = layer.init(rng, x.shape[1:])
    y, _ = layer.forward(nnx.Context("numpy"), params, x)
    expected = naive(x, params["kernel"], (2, 1), (1, 2), (2, 0), out_shape[:-1])
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_patches_are_formed_in_pieces_that_fit(samples, any_backend, monkeypatch):
    layer, rng = layers.Conv2D(3, 2, padding="same"), np.random.default_rng(0)
    x, dy = (rng.standard_normal((5, 4, 3, n)).astype(np.float32) for n in (4, 3))
    params = {"kernel": rng.standard_normal((2, 2, 4, 3)).astype(np.float32), "bias": np.ones(3, np.float32)}

    def compute():
        def place(value):
            return nnx.tree.map(any_backend.asarray, value)

        y, pullback = layer.forward(nnx.Context(any_backend), place(params), place(x))
        dx, grads = pullback(place(dy))
        return [any_backend.to_numpy(a) for a in (y, dx, grads["kernel"], grads["bias"])]

    whole = compute()
    products = []
    monkeypatch.setattr(any_backend, "tile_bytes", {"patches": samples * 4 * (4 * 3) * (2 * 2 * 4)})
    matmul = any_backend.xp.matmul
    monkeypatch.setattr(any_backend.xp, "matmul", lambda a, b: (products.append(a.shape), matmul(a, b))[1])
    for found, expected in zip(compute(), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    if any_backend.name == "jax":  # which looks at one piece, and at what is left
        assert len(products) < 10
    else:
        assert len(products) == 3 * math.ceil(5 / samples)
    assert max(shape[0] for shape in products) <= max(samples * 12, 16)


def test_a_1x1_convolution_forms_no_patches(monkeypatch):
    backend = nnx.as_backend("numpy")
    for name in ("concat", "take"):
        monkeypatch.setattr(backend.xp, name, None)
    for name in ("pad", "unslice"):  # of which the other two are made
        monkeypatch.setattr(backend, name, None)
    layer, x = layers.Conv2D(4, 1), np.ones((2, 3, 3, 5), np.float32)
    params, _ = layer.init(np.random.default_rng(0), x.shape[1:])
    y, pullback = layer.forward(nnx.Context(backend), params, x)
    assert pullback(y)[0].shape == x.shape


def test_of_equal_largest_values_the_first_gets_the_gradient(any_backend):
    layer, x = layers.MaxPooling2D(), any_backend.asarray(np.zeros((1, 2, 4, 1), np.float32))
    _, pullback = layer.forward(nnx.Context(any_backend), {}, x)
    dx, _ = pullback(any_backend.asarray(np.array([[[[2.0], [3.0]]]], np.float32)))
    assert any_backend.to_numpy(dx)[0, ..., 0].tolist() == [[2, 0, 3, 0], [0, 0, 0, 0]]


def test_padding_counts_neither_in_the_largest_nor_in_the_mean(any_backend):
    x = any_backend.asarray(np.full((1, 3, 3, 1), -5.0, np.float32))
    for kind in (layers.MaxPooling2D, layers.AveragePooling2D):
        y, _ = kind(2, padding="same").forward(nnx.Context(any_backend), {}, x)
        np.testing.assert_allclose(any_backend.to_numpy(y), -5.0, rtol=1e-6)


def test_the_first_layer_makes_no_gradient_for_its_input():
    layer, x = layers.Conv2D(4, 3), np.ones((2, 5, 5, 1), np.float32)
    params, _ = layer.init(np.random.default_rng(0), x.shape[1:])
    y, pullback = layer.forward(nnx.Context("numpy", needs_input_gradient=False), params, x)
    assert pullback(y)[0] is None


# Backends


@given(data=st.data(), value=st.sampled_from([0.0, -1.5]))
def test_pad_and_unslice_on_every_backend(data, value):
    shape, stride = data.draw(shapes(1)), data.draw(small)
    widths = [(1, 2), (0, 3), (2, 0)]
    x = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    keys = [(slice(None), slice(start, None, stride), ...) for start in range(shape[0])]
    expected = np.zeros_like(x)
    for key in keys:
        expected[key] += 2 * x[key]
    for name in [n for n, info in nnx.available_backends().items() if info.usable]:
        backend = nnx.as_backend(name)
        on_device = backend.asarray(x)
        padded = backend.to_numpy(backend.pad(on_device, widths, value))
        np.testing.assert_array_equal(padded, np.pad(x, widths, constant_values=value))
        found = backend.unslice(x.shape, [2 * on_device[key] for key in keys], keys)
        np.testing.assert_allclose(backend.to_numpy(found), expected, rtol=1e-6)


@given(data=st.data(), rank=st.integers(1, 2), dtype=st.sampled_from(("float16", "float32", "float64")))
def test_patches_and_back_on_every_backend(data, rank, dtype):
    """Whatever a backend does of its own, it is what the plain expressions give."""
    draw = data.draw
    spatial, size = draw(st.tuples(*[lengths] * rank)), draw(st.tuples(*[small] * rank))
    strides, dilation = draw(st.tuples(*[small] * rank)), draw(st.tuples(*[st.integers(1, 2)] * rank))
    padding = draw(st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * rank))
    spans = zip(spatial, padding, reach(size, dilation), strict=True)
    assume(all(n + sum(pair) >= length for n, pair, length in spans))
    windows = Windows(spatial, size, strides, dilation, padding)
    rng, channels, batch = np.random.default_rng(0), draw(small), draw(st.integers(0, 2))
    whole = rng.standard_normal((batch, *spatial, channels + 1)).astype(dtype)
    dy = rng.standard_normal((batch, *windows.counts, math.prod(size) * channels)).astype(dtype)
    plain = nnx.as_backend("numpy")
    expected = Backend.patches(plain, whole[..., 1:], windows)
    back = Backend.from_patches(plain, dy.astype("float64"), windows)
    for name in [n for n, info in nnx.available_backends().items() if info.usable]:
        backend = nnx.as_backend(name)
        if dtype not in backend.dtypes:
            continue
        with backend.scope(dtype):
            found = backend.patches(backend.asarray(whole)[..., 1:], windows)
            np.testing.assert_array_equal(backend.to_numpy(found), expected)
            found = backend.to_numpy(backend.from_patches(backend.asarray(dy), windows))
        assert found.dtype == dtype
        tolerance = {"float16": 2e-2, "float32": 1e-5, "float64": 1e-13}[dtype]
        np.testing.assert_allclose(found, back, rtol=tolerance, atol=tolerance)


# What a summary says


@pytest.mark.parametrize(
    ("layer", "flops"),
    [
        (layers.DepthwiseConv2D(3, depth_multiplier=2), 36 * 6 * (2 * 9 + 1)),
        (layers.SeparableConv2D(4, 3, depth_multiplier=2), 36 * 6 * 2 * 9 + 36 * 4 * (2 * 6 + 1)),
        (layers.Conv2DTranspose(4, 2, strides=2), 64 * 3 * 4 * 4 * 2 + 256 * 4),
        (layers.UpSampling2D(), 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_flops(layer, flops):
    assert layer.flops((8, 8, 3)) == flops


def test_flops_and_summary():
    model = nnx.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(4, 3, padding="same"),
            layers.MaxPooling2D(),
            layers.Conv2D(6, 3, groups=2, use_bias=False),
            layers.GlobalAveragePooling2D(),
            layers.Dense(2),
        ],
        seed=0,
    )
    model.build(model.input_shape)
    flops = [
        layer.flops(s) for layer, s in zip(model.layers, model.network.in_shapes((8, 8, 3)), strict=False)
    ]
    assert flops == [64 * 4 * (2 * 27 + 1), 16 * 4 * 4, 4 * 6 * (2 * 9 * 2), 4 * 6, 2 * (2 * 6 + 1)]
    text = nnx.models.summary.summary_table(model)
    for line in ("(batch, 8, 8, 4)", "(batch, 4, 4, 4)", "(batch, 2, 2, 6)", "(batch, 6)", "112", "108"):
        assert line in text


# Mistakes

MISTAKES = {
    "no channels": (lambda: layers.Conv2D(4, 3).out_shape((28, 28)), r"Conv2D expects input of shape \(batch, height, width, channels\), got \(batch, 28, 28\): add a channel axis: x\[..., None\]"),
    "rows": (lambda: layers.Conv1D(4, 3).out_shape((28,)), r"Conv1D expects input of shape \(batch, steps, channels\), got \(batch, 28\): add a channel axis"),
    "flat images": (lambda: layers.MaxPooling2D().out_shape((784,)), "MaxPooling2D expects .*: give each sample its spatial axes"),
    "too many axes": (lambda: layers.GlobalMaxPooling1D().out_shape((4, 4, 3)), r"GlobalMaxPooling1D expects input of shape \(batch, steps, channels\), got \(batch, 4, 4, 3\)"),
    "large kernel": (lambda: layers.Conv2D(4, 5).out_shape((4, 8, 1)), r"Conv2D: a window of \(5, 5\) does not fit into input of shape \(batch, 4, 8, 1\): make the window smaller, or use padding='same'"),
    "large pool": (lambda: layers.MaxPooling1D(5).out_shape((4, 1)), r"MaxPooling1D: a window of \(5,\) does not fit"),
    "padding": (lambda: layers.Conv2D(4, 3, padding="full"), "Conv2D: padding must be one of 'valid', 'same', got 'full'"),
    "causal": (lambda: layers.Conv2D(4, 3, padding="causal"), "got 'causal'"),
    "negative padding": (lambda: layers.Conv2D(4, 3, padding=-1), "padding must be whole numbers from 0 on, such as"),
    "three paddings": (lambda: layers.Conv2D(4, 3, padding=(1, 2, 3)), r"got \(1, 2, 3\)"),
    "channels first": (lambda: layers.Conv2D(4, 3, data_format="channels_first"), r"'channels_last', got 'channels_first': move the channels of your data last, np.moveaxis\(x, 1, -1\)"),
    "kernel size": (lambda: layers.Conv2D(4, (3, 3, 3)), r"kernel_size must be a whole number or 2 of them, got \(3, 3, 3\)"),
    "kernel of 0": (lambda: layers.Conv2D(4, 0), "kernel_size must be a positive whole number, got 0"),
    "filters of groups": (lambda: layers.Conv2D(4, 3, groups=3), "filters must be a multiple of groups, got filters=4, groups=3"),
    "channels of groups": (lambda: layers.Conv2D(4, 1, groups=2).out_shape((3, 3, 3)), "channels must be a multiple of groups, got 3 channels and groups=2"),
    "output padding": (lambda: layers.Conv2DTranspose(4, 3, 2, output_padding=2), "output_padding must be below strides, got 2 and 2"),
    "bilinear": (lambda: layers.UpSampling2D(2, interpolation="bilinear"), "interpolation must be 'nearest', got 'bilinear': for a smooth one use Conv2DTranspose"),
    "cropped away": (lambda: layers.Cropping2D(2).out_shape((4, 8, 1)), r"Cropping2D: cropping \(\(2, 2\), \(2, 2\)\) leaves nothing of input of shape \(batch, 4, 8, 1\): crop less"),
    "padding of a transposed": (lambda: layers.Conv2DTranspose(4, 3, padding=1), "padding must be one of 'valid', 'same', got 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_error(name):
    call, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        call()


BY_LIBRARY = {
    "Conv1D": (layers.Conv1D(4, 3, strides=2, padding="causal"), (9, 2)),
    "Conv2D": (layers.Conv2D(4, (3, 2), strides=(2, 1), padding="same", activation="tanh"), (7, 6, 3)),
    "dilated": (layers.Conv2D(4, 2, dilation_rate=(2, 3), padding=((1, 2), (0, 1))), (7, 6, 2)),
    "in groups": (layers.Conv2D(6, 3, groups=3), (5, 5, 3)),
    "Depthwise": (layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2), (7, 7, 3)),
    "Separable": (layers.SeparableConv2D(5, 2, padding="same"), (5, 4, 3)),
    "transposed": (layers.Conv2DTranspose(4, 3, strides=2, padding="same"), (4, 5, 2)),
    "transposed, more": (
        layers.Conv2DTranspose(3, 2, strides=3, output_padding=1, dilation_rate=1),
        (3, 4, 2),
    ),
}


@pytest.mark.parametrize("name", BY_LIBRARY)
def test_jax_convolves_by_xla_where_it_is_accelerated(name):
    """On a GPU or TPU, as if there were one."""
    pytest.importorskip("jax")
    from nnx.backends.jax.backend import JaxBackend

    layer, in_shape = BY_LIBRARY[name]
    accelerated = JaxBackend()
    accelerated.is_accelerated = True
    found = []
    for backend in (nnx.as_backend("numpy"), accelerated):
        model = nnx.Model(copy.deepcopy(layer), in_shape, seed=1, dtype="float64", backend=backend)
        x = np.random.default_rng(0).standard_normal((3, *in_shape))
        dy = np.random.default_rng(1).standard_normal((3, *model.output_shape))
        with backend.scope("float64"):
            y, pullback = model.apply(model.params, backend.asarray(x))
            dx, grads = pullback(backend.asarray(dy))
            found.append(nnx.tree.map(backend.to_numpy, {"y": y, "dx": dx, **grads}))
    with accelerated.scope("float64"):
        calls = str(accelerated.jax.make_jaxpr(lambda x: model.apply(model.params, x)[0])(x))
    assert "conv_general_dilated" in calls
    for key, expected in found[0].items():
        np.testing.assert_allclose(found[1][key], expected, rtol=1e-10, atol=1e-12, err_msg=key)
