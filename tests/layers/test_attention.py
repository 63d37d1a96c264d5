"""Attention, positions and transformer blocks: proved on every backend, and against Keras and PyTorch."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from paths import REFERENCE

import nnx
from nnx import layers, tree
from nnx.layers.base import run
from nnx.testing import check_layer

RNG = np.random.default_rng(0)
REFERENCE = json.loads((REFERENCE / "attention.json").read_text())

lengths = st.integers(1, 5)


@st.composite
def attention(draw):
    """Return a layer, its in_shape, the number of samples and a mask of its input."""
    kind = draw(st.sampled_from(["self", "query, value", "query, value, key"]))
    batch, queries, keys = draw(lengths), draw(lengths), draw(lengths)
    times = {"self": [queries], "query, value": [queries, keys]}.get(kind, [queries, keys, keys])
    shapes = tuple((time, draw(st.integers(1, 4))) for time in times)
    rotary = draw(st.booleans())
    layer = layers.MultiHeadAttention(
        draw(st.integers(1, 3)),
        draw(st.sampled_from([2, 4] if rotary else [1, 3])),
        value_dim=draw(st.none() | lengths),
        dropout=draw(st.sampled_from([0.0, 0.4])),
        use_bias=draw(st.booleans()),
        output_shape=draw(st.none() | lengths),
        use_causal_mask=draw(st.booleans()),
        rotary=rotary,
        block_size=draw(st.none() | st.integers(1, 3)),
    )
    masks = tuple(draw(masks_of(batch, time)) for time in times)
    if len(shapes) == 1:
        return layer, shapes[0], batch, masks[0]
    return layer, shapes, batch, None if all(mask is None for mask in masks) else masks


def masks_of(batch, time):
    rows = st.lists(st.booleans(), min_size=time, max_size=time)
    return st.none() | st.lists(rows, min_size=batch, max_size=batch).map(lambda m: np.array(m, bool))


@given(attention())
def test_attention(drawn):
    layer, in_shape, batch, mask = drawn
    check_layer(layer, in_shape, batch=batch, mask=mask)


@pytest.mark.parametrize("norm_first", [False, True])
@given(
    time=lengths,
    batch=lengths,
    causal=st.booleans(),
    rotary=st.booleans(),
    block_size=st.none() | lengths,
    data=st.data(),
)
def test_transformer_block(norm_first, time, batch, causal, rotary, block_size, data):
    block = layers.TransformerBlock(
        2, 3, dropout=0.3, activation="gelu", norm_first=norm_first, use_causal_mask=causal, rotary=rotary,
        block_size=block_size, epsilon=0.1,
    )  # fmt: skip
    check_layer(block, (time, 4), batch=batch, mask=data.draw(masks_of(batch, time)))


@given(time=lengths, features=st.integers(1, 3), batch=lengths, more=st.integers(0, 2))
def test_positions(time, features, batch, more):
    check_layer(layers.SinusoidalPositions(), (time, features), batch=batch)
    check_layer(layers.PositionEmbedding(time + more), (time, features), batch=batch)
    check_layer(layers.RotaryPositions(), (time, 2 * features), batch=batch)


# Against Keras and PyTorch


def identify(case):
    return f"{case['source']}-{case['layer']}({','.join(f'{k}={v}' for k, v in case['settings'].items())})"


def arrays(values, backend, dtype):
    """Return nested dicts and tuples of lists as arrays on the device."""
    if isinstance(values, dict):
        return {name: arrays(part, backend, dtype) for name, part in values.items()}
    if isinstance(values, tuple):
        return tuple(arrays(part, backend, dtype) for part in values)
    return None if values is None else backend.asarray(np.array(values, dtype))


def several(parts):
    """Return the only one of some parts, or a tuple of them."""
    return None if parts is None else parts[0] if len(parts) == 1 else tuple(parts)


def reference_pass(case, backend, dtype, **settings):
    """Return (y, dx, grads) of the layer of a case, on the host."""
    layer = getattr(layers, case["layer"])(**case["settings"], **settings)
    given = [arrays(part, backend, dtype) for part in (case["params"], several(case["x"]), case["dy"])]
    mask = arrays(several(case["masks"]), backend, bool)

    def passes(params, x, dy):
        y, pullback = run(layer, nnx.Context(backend, mask=mask), params, x)
        return (y, *pullback(dy))

    return tree.map(backend.to_numpy, backend.compile(passes)(*given))


def expected_of(case):
    y, dx, grads = np.array(case["y"]), case["dx"], case["grads"]
    return y, several([np.array(part) for part in dx]), tree.map(np.array, _as_trees(grads))


def _as_trees(values):
    return {n: _as_trees(v) if isinstance(v, dict) else np.array(v) for n, v in values.items()}


def compare(found, case, tolerance):
    """Compare y, where it is defined, dx and all gradients."""
    expected = expected_of(case)
    if case["source"] == "torch" and case["masks"]:
        counted = np.array(case["masks"][0], bool)
        found, expected = ((part[0][counted], *part[1:]) for part in (found, expected))
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(1, np.abs(b).max(initial=0)))


CASES = REFERENCE["cases"]


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_agrees_with_the_reference(backend, case):
    compare(reference_pass(case, backend, "float64"), case, 1e-9)


@pytest.mark.parametrize("case", CASES, ids=identify)
def test_agrees_with_the_reference_in_blocks_and_float32(case):
    for block_size in (None, 1, 2, 3):
        compare(reference_pass(case, nnx.get_backend(), "float32", block_size=block_size), case, 1e-5)


@pytest.mark.parametrize("case", REFERENCE["positions"], ids=identify)
def test_positions_agree_with_the_reference(backend, case):
    layer = getattr(layers, case["layer"])(**case["settings"])
    y, _ = layer.forward(nnx.Context(backend), {}, backend.asarray(case["x"], dtype="float64"))
    assert_allclose(backend.to_numpy(y), case["y"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if c["source"] == "keras"], ids=identify)
def test_weights_have_the_names_and_shapes_of_keras(case):
    in_shape = several([np.shape(part)[1:] for part in case["x"]])
    params, out_shape = layers.MultiHeadAttention(**case["settings"]).init(RNG, in_shape)
    assert out_shape == np.shape(case["y"])[1:]
    shapes = {part: {n: np.shape(w) for n, w in weights.items()} for part, weights in case["params"].items()}
    assert {part: {n: w.shape for n, w in weights.items()} for part, weights in params.items()} == shapes


def test_rotary_attention_turns_queries_and_keys():
    layer = layers.MultiHeadAttention(2, 4, rotary=True, use_bias=False)
    params, _ = layer.init(RNG, (5, 3))
    x = RNG.standard_normal((2, 5, 3))
    turn = lambda a: np.stack([nnx.apply(layers.RotaryPositions(), a[:, :, h]) for h in range(2)], 2)  # noqa: E731
    q, k, v = (np.einsum("btf,fhk->bthk", x, params[name]["kernel"]) for name in ("query", "key", "value"))
    scores = np.einsum("bthk,bshk->bhts", turn(q), turn(k)) / 2
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhts,bshk,hko->bto", weights, v, params["attention_output"]["kernel"])
    y, _ = layer.forward(nnx.Context("numpy"), params, x)
    assert_allclose(y, expected, rtol=1e-5)


def test_rotated_products_depend_on_distances():
    a, b = (np.tile(RNG.standard_normal(6), (1, 9, 1)) for _ in range(2))
    q, k = (nnx.apply(layers.RotaryPositions(), part.astype(np.float32))[0] for part in (a, b))
    products = q @ k.T
    for distance in range(-8, 9):
        diagonal = np.diagonal(products, distance)
        assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)


# Masks


def test_padding_changes_nothing_of_what_counts(any_backend):
    layer, long, short = layers.TransformerBlock(2, 5), RNG.standard_normal((2, 7, 4)), 4
    params, _ = layer.init(RNG, (7, 4))
    params = tree.map(lambda w: any_backend.asarray(w.astype(np.float32)), params)

    def outputs(x, mask=None):
        ctx = nnx.Context(any_backend, mask=None if mask is None else any_backend.asarray(mask))
        y, _ = run(layer, ctx, params, any_backend.asarray(x.astype(np.float32)))
        assert (ctx.mask is None) == (mask is None)
        return any_backend.to_numpy(y)

    mask = np.arange(7)[None, :] < np.array([[short], [short]])
    found = outputs(long, mask)
    assert_allclose(found[:, :short], outputs(long[:, :short]), rtol=1e-5, atol=1e-5)
    changed = np.where(mask[:, :, None], long, 1e3)
    assert_allclose(outputs(changed, mask)[:, :short], found[:, :short], rtol=1e-5, atol=1e-5)


def test_cross_attention_leaves_the_mask_of_the_query(any_backend):
    masks = [np.ones((2, n), bool) for n in (3, 5)]
    layer = layers.MultiHeadAttention(1, 2)
    params, _ = layer.init(RNG, ((3, 2), (5, 2)))
    x = tuple(any_backend.asarray(np.ones((2, n, 2), np.float32)) for n in (3, 5))
    given = tuple(map(any_backend.asarray, masks))
    ctx = nnx.Context(any_backend, mask=given)
    run(layer, ctx, tree.map(lambda w: any_backend.asarray(w.astype(np.float32)), params), x)
    assert ctx.mask is given[0]


def test_a_causal_step_does_not_see_later_ones(any_backend):
    x = RNG.standard_normal((1, 6, 4)).astype(np.float32)
    changed = x.copy()
    changed[:, 4:] += 1
    for block_size in (None, 4):
        layer = layers.TransformerBlock(2, 4, use_causal_mask=True, block_size=block_size)
        y, z = (nnx.apply(layer, part, backend=any_backend) for part in (x, changed))
        assert_array_equal(y[:, :4], z[:, :4])
        assert np.abs(y[:, 4:] - z[:, 4:]).min() > 0


def test_what_sees_nothing_is_the_bias(any_backend):
    layer = layers.MultiHeadAttention(2, 3, bias_initializer="ones", kernel_initializer="ones")
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)
    params, _ = layer.init(RNG, (3, 4))
    params = tree.map(lambda w: any_backend.asarray(w.astype(np.float32)), params)
    ctx = nnx.Context(any_backend, mask=any_backend.asarray(np.zeros((2, 3), bool)))
    y, pullback = layer.forward(ctx, params, any_backend.asarray(x))
    assert_array_equal(any_backend.to_numpy(y), 1.0)
    dx, _ = pullback(y)
    assert_array_equal(any_backend.to_numpy(dx), 0.0)


# Blocks


@pytest.mark.parametrize("causal", [False, True])
def test_blocks_give_the_same_numbers_dropout_included(causal, any_backend):
    x = RNG.standard_normal((2, 7, 4)).astype(np.float32)
    found = []
    for block_size in (None, 2, 3, 7, 100):
        layer = layers.MultiHeadAttention(2, 3, dropout=0.5, use_causal_mask=causal, block_size=block_size)
        params, _ = layer.init(np.random.default_rng(1), (7, 4))
        params = tree.map(lambda w: any_backend.asarray(w.astype(np.float32)), params)
        ctx = nnx.Context(any_backend, training=True, key=(1, 2))
        y, pullback = layer.forward(ctx, params, any_backend.asarray(x))
        found.append(tree.map(any_backend.to_numpy, (y, *pullback(y))))
    for other in found[1:]:
        for a, b in zip(tree.leaves(found[0]), tree.leaves(other), strict=True):
            assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bits_of_a_window_are_those_of_the_whole(any_backend):
    ctx = nnx.Context(any_backend, key=(1, 2))
    whole = any_backend.to_numpy(ctx.random_bits((2, 3, 5, 4), "a"))
    part = any_backend.to_numpy(ctx.random_bits((2, 3, 5, 4), "a", ((1, 4), (0, 3))))
    assert_array_equal(part, whole[:, :, 1:4, :3])
    ctx.part = (3, 2)  # two samples of a batch that starts with three others
    shared = any_backend.to_numpy(ctx.random_bits((2, 3, 5, 4), "a", ((1, 4), (0, 3))))
    ctx.part = None
    assert_array_equal(shared, any_backend.to_numpy(ctx.random_bits((5, 3, 5, 4), "a"))[3:, :, 1:4, :3])


def sizes_on_numpy(layer, time):
    """Return the sizes of all arrays that a forward and a backward pass make on NumPy."""
    seen = []

    class Sized(np.ndarray):
        def __array_finalize__(self, of):
            seen.append(self.size)

    params, _ = layer.init(RNG, (time, 4))
    params = tree.map(lambda w: w.astype(np.float32).view(Sized), params)
    x = RNG.standard_normal((2, time, 4)).astype(np.float32).view(Sized)
    backend = copy.copy(nnx.as_backend("numpy"))
    backend.arange = lambda count, dtype: np.arange(count, dtype=dtype).view(Sized)
    ctx = nnx.Context(backend, training=True, key=(1, 2))
    y, pullback = layer.forward(ctx, params, x)
    pullback(y)
    return seen


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_blocks_never_make_the_whole_matrix_of_weights(dropout):
    time, heads, block = 64, 2, 8
    whole = 2 * heads * time * time
    settings = {"num_heads": heads, "key_dim": 3, "dropout": dropout}
    assert max(sizes_on_numpy(layers.MultiHeadAttention(**settings), time)) >= whole
    assert (
        max(sizes_on_numpy(layers.MultiHeadAttention(**settings, block_size=block), time))
        == whole * block / time
    )


@pytest.mark.optimized
@pytest.mark.parametrize("causal", [False, True])
def test_memory_of_blocks_grows_with_their_size_times_the_length(causal):
    """As XLA plans it for a forward and a backward pass."""
    jax = pytest.importorskip("jax")
    backend, time, heads, block = nnx.as_backend("jax"), 1024, 2, 64

    def planned(block_size):
        layer = layers.MultiHeadAttention(heads, 4, use_causal_mask=causal, block_size=block_size)
        params, _ = layer.init(RNG, (time, 8))
        params = tree.map(lambda w: w.astype(np.float32), params)

        def passes(params, x):
            y, pullback = layer.forward(nnx.Context(backend, training=True), params, x)
            return pullback(y)

        x = np.zeros((1, time, 8), np.float32)
        return jax.jit(passes).lower(params, x).compile().memory_analysis().temp_size_in_bytes

    whole = 4 * heads * time * time
    assert planned(None) > whole
    assert planned(block) < whole / 2


# In a model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_learns_what_needs_two_places(dtype):
    model = nnx.Sequential(
        [
            layers.Embedding(4, 16),
            layers.SinusoidalPositions(),
            layers.TransformerBlock(2, 32, norm_first=True),
            layers.TransformerBlock(2, 32, norm_first=True, rotary=True),
            layers.Flatten(),
            layers.Dense(2, "softmax"),
        ],
        seed=0,
        dtype=dtype,
        backend="jax" if dtype == "bfloat16" else None,
    )
    model.compile(nnx.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = np.random.default_rng(0).integers(0, 4, (256, 5))
    history = model.fit(x, x[:, 0] == x[:, -1], epochs=30, batch_size=32, verbose=0).history
    assert history["accuracy"][-1] > 0.95


@pytest.mark.parametrize("mask", [None, [[True] * 4 + [False] * 3, [False] * 7]])
def test_half_precision_is_near_to_full(mask):
    """With sums over more than float16 has digits for."""
    backend, layer = nnx.get_backend(), layers.MultiHeadAttention(2, 4, use_causal_mask=True)
    params, _ = layer.init(np.random.default_rng(0), (7, 4))
    x = np.random.default_rng(1).standard_normal((2, 7, 4))
    found = []
    for dtype in ("float64", "float16"):
        placed = tree.map(lambda w, dtype=dtype: backend.asarray(w.astype(dtype)), params)
        ctx = nnx.Context(backend, mask=None if mask is None else backend.asarray(np.array(mask)))
        y, pullback = layer.forward(ctx, placed, backend.asarray(x.astype(dtype)))
        found.append(tree.map(backend.to_numpy, (y, *pullback(y))))
    for a, b in zip(*map(tree.leaves, found), strict=True):
        assert b.dtype == "float16"
        assert_allclose(a, b, rtol=1e-2, atol=1e-2)


def test_an_empty_batch_is_predicted(any_backend):
    model = nnx.Sequential([layers.TransformerBlock(2, 5, input_shape=(3, 4))], seed=0, backend=any_backend)
    assert model.predict(np.zeros((0, 3, 4), np.float32)).shape == (0, 3, 4)


def test_cross_attention_in_a_model_saves_and_loads(tmp_path):
    model = nnx.Sequential(
        [
            layers.Inputs([layers.PositionEmbedding(3)], [layers.RotaryPositions()], merge=None),
            layers.MultiHeadAttention(
                2, 3, value_dim=2, output_shape=(2, 2), kernel_regularizer="l2", seed=3
            ),
            layers.Flatten(),
            layers.Dense(1),
        ],
        seed=0,
    )
    model.compile("adam", "mse")
    x = tuple(RNG.standard_normal((20, n, 4)).astype(np.float32) for n in (3, 5))
    model.fit(x, np.ones(20), epochs=2, verbose=0)
    model.save(tmp_path / "net.nnx")
    loaded = nnx.models.load_model(tmp_path / "net.nnx")
    assert_array_equal(loaded.predict(x), model.predict(x))
    assert "multi_head_attention" in str(tree.paths(loaded.params))


def test_a_regularizer_reaches_each_kernel():
    layer = layers.MultiHeadAttention(1, 2, kernel_regularizer="l2", bias_regularizer="l1")
    model = nnx.Sequential([layer], seed=0)
    model.compile("sgd", "mse")
    model.build((3, 2))
    found = {"/".join(path): penalty for path, penalty in nnx.training.step.weight_penalties(model.network)}
    parts = ("query", "key", "value", "attention_output")
    assert set(found) == {f"multi_head_attention/{p}/{w}" for p in parts for w in ("kernel", "bias")}
    x = np.zeros((4, 3, 2), np.float32)
    weights = model.params["multi_head_attention"]
    kernels = [model.backend.to_numpy(weights[part]["kernel"]) for part in parts]
    penalty = sum(0.01 * (kernel**2).sum() for kernel in kernels)
    assert model.evaluate(x, x, verbose=0) == pytest.approx(float(penalty), rel=1e-5)


def test_flops():
    """The products: 2 operations for each number of a kernel and step, and for each pair of steps."""
    layer = layers.MultiHeadAttention(2, 8, use_bias=False)
    products = 2 * 10 * 16 * 16 * 4 + 2 * 2 * 10 * 10 * 2 * 8
    assert products <= layer.flops((10, 16)) <= 1.2 * products
    block = layers.TransformerBlock(2, 64)
    assert block.flops((10, 16)) > products + 2 * 2 * 10 * 16 * 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.MultiHeadAttention(0), "num_heads must be a positive whole number, got 0"),
        (lambda: layers.MultiHeadAttention(1, 1, dropout=1), "dropout must be at least 0 and below 1, got 1"),
        (lambda: layers.MultiHeadAttention(1, 1, block_size=0), "block_size must be a positive .* got 0"),
        (
            lambda: layers.MultiHeadAttention(3).out_shape((5, 4)),
            "4 features cannot be divided among 3 heads: g",
        ),
        (
            lambda: layers.MultiHeadAttention(1, 3, rotary=True).out_shape((5, 4)),
            "needs an even key_dim, got 3",
        ),
        (
            lambda: layers.MultiHeadAttention(1, 1).out_shape((5,)),
            r"\(batch, time, features\), or .* \(batch, 5\)",
        ),
        (lambda: layers.MultiHeadAttention(1, 1).out_shape(((5, 2),) * 4), r"two or three such"),
        (
            lambda: layers.MultiHeadAttention(1, 1).out_shape(((5, 2), (4, 2), (3, 2))),
            "value and key must have the same time steps",
        ),
        (lambda: layers.TransformerBlock(2, 0), "ff_dim must be a positive whole number, got 0"),
        (
            lambda: layers.TransformerBlock(2, 4).init(RNG, (4,)),
            r"TransformerBlock expects .* got \(batch, 4\)",
        ),
        (
            lambda: layers.PositionEmbedding(3).out_shape((4, 2)),
            "samples of 4 time steps are longer than max_l",
        ),
        (lambda: layers.RotaryPositions().out_shape((4, 3)), r"even number of features, got \(batch, 4, 3\)"),
        (
            lambda: layers.SinusoidalPositions().out_shape((4,)),
            r"\(batch, time, features\), got \(batch, 4\)",
        ),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
