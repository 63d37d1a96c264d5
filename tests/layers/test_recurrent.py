"""Recurrent layers, and what goes with sequences: pullbacks, Keras's numbers, masks, refusals."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from paths import REFERENCE

import nnx
from nnx import layers, tree
from nnx.layers.base import run
from nnx.registry import decode, encode
from nnx.testing import check_layer

CASES = json.loads((REFERENCE / "sequences.json").read_text())["cases"]
KINDS = [
    layers.SimpleRNN,
    layers.LSTM,
    layers.GRU,
    lambda units, **settings: layers.GRU(units, reset_after=False, **settings),
]
RNG = np.random.default_rng(0)


# Pullbacks

flags = st.fixed_dictionaries(
    {name: st.booleans() for name in ("return_sequences", "return_state", "go_backwards", "use_bias")}
    | {"zero_output_for_mask": st.booleans(), "activation": st.sampled_from(["tanh", "linear", "silu"])}
    | {name: st.sampled_from([0.0, 0.4]) for name in ("dropout", "recurrent_dropout")}
)


def masks(batch, steps):
    """Masks of any time steps: none, all, or in between."""
    row = st.lists(st.booleans(), min_size=steps, max_size=steps)
    return st.none() | st.lists(row, min_size=batch, max_size=batch).map(np.array)


@pytest.mark.parametrize("kind", KINDS, ids=["simple", "lstm", "gru", "gru, reset first"])
@settings(max_examples=6)
@given(
    data=st.data(), arguments=flags, batch=st.integers(1, 3), steps=st.integers(1, 4), units=st.integers(1, 3)
)
def test_recurrent(kind, data, arguments, batch, steps, units):
    layer, shape, mask = kind(units, **arguments), (steps, 2), data.draw(masks(batch, steps))
    if data.draw(st.booleans(), "starts from states"):
        count = layer.cell.states
        shape = (shape, *[(units,)] * count)
        mask = None if mask is None else (mask, *[None] * count)
    check_layer(layer, shape, batch=batch, mask=mask)


@pytest.mark.parametrize("kind", KINDS, ids=["simple", "lstm", "gru", "gru, reset first"])
def test_a_sequence_that_is_all_padding(kind, any_backend):
    """It leaves the states as they were, and no gradient."""
    layer = kind(2, return_state=True)
    params, _ = layer.init(np.random.default_rng(0), (3, 2))
    params = tree.map(lambda w: any_backend.asarray(w.astype(np.float32)), params)
    states = [RNG.standard_normal((2, 2)).astype(np.float32) for _ in range(layer.cell.states)]
    x = tuple(map(any_backend.asarray, (RNG.standard_normal((2, 3, 2)).astype(np.float32), *states)))
    mask = any_backend.asarray(np.array([[False] * 3, [True] * 3]))
    ctx = nnx.Context(any_backend, mask=(mask, *[None] * len(states)))
    (y, *last), pullback = run(layer, ctx, params, x)
    for found, expected in zip(last, states, strict=True):
        assert_array_equal(any_backend.to_numpy(found)[0], expected[0])
        assert not np.array_equal(any_backend.to_numpy(found)[1], expected[1])
    assert_array_equal(any_backend.to_numpy(y), any_backend.to_numpy(last[0]))
    dx, *dstates = pullback((y, *last))[0]
    assert not any_backend.to_numpy(dx)[0].any()
    assert_allclose(any_backend.to_numpy(dstates[0])[0], 2 * states[0][0], rtol=1e-6)


@pytest.mark.parametrize(
    ("mode", "steps", "arguments", "mask"),
    [
        ("concat", 3, {"return_sequences": True, "return_state": True}, [[1, 1, 0], [0, 1, 1]]),
        ("concat", 2, {"return_state": True}, None),
        ("sum", 3, {"return_sequences": True}, None),
        ("mul", 1, {}, [[1], [0]]),
        ("ave", 2, {"return_sequences": True}, [[0, 0], [1, 0]]),
        (None, 2, {"return_state": True}, [[1, 0], [1, 1]]),
        (None, 3, {"return_sequences": True}, None),
    ],
)
def test_bidirectional(mode, steps, arguments, mask):
    layer = layers.Bidirectional(layers.GRU(2, **arguments), mode)
    check_layer(layer, (steps, 3), batch=2, mask=mask and np.array(mask, dtype=bool))


def test_bidirectional_of_two_kinds_that_start_from_states():
    both = layers.Bidirectional(layers.LSTM(2), backward_layer=layers.LSTM(2, "relu", go_backwards=True))
    mask = (np.array([[True, False], [True, True]]), *[None] * 4)
    check_layer(both, ((2, 3), *[(2,)] * 4), batch=2, mask=mask)
    other = layers.Bidirectional(layers.LSTM(2), backward_layer=layers.SimpleRNN(3, go_backwards=True))
    check_layer(other, (4, 3))
    assert other.out_shape((4, 3)) == (5,)


@given(data=st.data(), batch=st.integers(1, 3), steps=st.integers(1, 3))
def test_layers_that_look_at_masks(data, batch, steps):
    mask = data.draw(masks(batch, steps))
    inner = [layers.Dense(3), layers.Dropout(0.4), layers.BatchNormalization()]
    for layer in (
        layers.TimeDistributed(inner),
        layers.BatchNormalization(),
        layers.BatchNormalization(axis=1, center=False),
        layers.GlobalAveragePooling1D(),
        layers.GlobalAveragePooling1D(keepdims=True),
        layers.Masking(7.0),
    ):
        check_layer(layer, (steps, 2), batch=batch, mask=mask)


def test_masking(any_backend):
    x = np.array([[[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]]], dtype=np.float32)
    ctx = nnx.Context(any_backend)
    y, pullback = run(layers.Masking(2.0), ctx, {}, any_backend.asarray(x))
    assert_array_equal(any_backend.to_numpy(ctx.mask), [[True, True, False]])
    assert_array_equal(any_backend.to_numpy(y), [[[1, 2], [2, 1], [0, 0]]])
    assert_array_equal(any_backend.to_numpy(pullback(any_backend.asarray(x))[0]), [[[1, 2], [2, 1], [0, 0]]])


# Keras's numbers


def make_layer(case):
    def layer_of(value):
        return getattr(layers, value[0])(2, **value[1]) if isinstance(value, list) else value

    return getattr(layers, case["layer"])(**{key: layer_of(value) for key, value in case["settings"].items()})


def identify(case):
    more = ["mask"] * bool(case["mask"]) + ["states"] * (len(case["x"]) > 1)
    return "-".join(
        [case["layer"], *(f"{k}={v}" for k, v in case["settings"].items() if k != "units"), *more]
    )


@pytest.mark.parametrize("case", CASES, ids=identify)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-6), ("float32", 1e-5)])
def test_reference(case, dtype, tolerance, any_backend):
    layer = make_layer(case)
    with any_backend.scope(dtype):

        def place(values):
            return tuple(any_backend.asarray(np.asarray(v, dtype)) for v in values)

        def as_tuple(value):
            return value if isinstance(value, tuple) else (value,)

        x = place(case["x"])
        shapes = tuple(part.shape[1:] for part in x)
        params, _ = layer.init(np.random.default_rng(0), shapes if len(x) > 1 else shapes[0])
        paths = tree.paths(params)
        assert [tree.at(params, path).shape for path in paths] == [np.shape(w) for w in case["weights"]]
        params = tree.from_paths(paths, place(case["weights"]))
        state = dict(zip(("moving_mean", "moving_variance"), place(case["state"]), strict=False))
        mask = None if case["mask"] is None else any_backend.asarray(np.array(case["mask"]))
        mask = mask if len(x) == 1 or mask is None else (mask, *[None] * (len(x) - 1))
        dy = place(case["dy"])

        def passes(params, state, x, dy):
            ctx = nnx.Context(any_backend, training=True, state=state, mask=mask)
            y, pullback = run(layer, ctx, params, x if len(x) > 1 else x[0])
            return (y, *pullback(dy if len(dy) > 1 else dy[0]), ctx.state)

        y, dx, grads, state_after = any_backend.compile(passes)(params, state, x, dy)
        found = {"y": as_tuple(y), "dx": as_tuple(dx), "grads": [tree.at(grads, path) for path in paths]}
        found["state_after"] = [state_after[name] for name in state]
        for name, arrays in found.items():
            for array, expected in zip(arrays, case[name], strict=True):
                actual = any_backend.to_numpy(array)
                assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=name)


# Behaviour in a model


def model(*inner, shape=(5, 3)):
    built = nnx.Sequential([layers.Input(shape), *inner, layers.Dense(2, "softmax")], seed=0)
    built.compile("adam", "sparse_categorical_crossentropy")
    return built


def test_padding_does_not_count(any_backend):
    """What a masked network says of a short sequence is what it says without its padding."""
    ids = RNG.integers(1, 9, (4, 3))
    padded = np.concatenate([ids, np.zeros((4, 2), int)], axis=1)

    def build(steps):
        return nnx.Sequential(
            [
                layers.Embedding(9, 4, mask_zero=True, input_shape=(steps,)),
                layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
                layers.TimeDistributed(layers.Dense(4, "tanh")),
                layers.GRU(3, return_sequences=True),
                layers.GlobalAveragePooling1D(),
            ],
            seed=0,
        )

    long, short = build(5), build(3)
    short.set_weights(long.get_weights())
    assert_allclose(long.predict(padded), short.predict(ids), rtol=1e-5, atol=1e-6)
    other = long.predict(np.concatenate([ids, np.ones((4, 2), int)], axis=1))
    assert np.abs(other - long.predict(padded)).max() > 1e-3


def test_go_backwards_turns_the_mask_with_the_outputs(any_backend):
    mask = np.array([[True, True, False]])
    ctx = nnx.Context(any_backend, mask=any_backend.asarray(mask))
    layer = layers.SimpleRNN(2, return_sequences=True, go_backwards=True)
    params, _ = layer.init(np.random.default_rng(0), (3, 2))
    run(layer, ctx, tree.map(any_backend.asarray, params), any_backend.asarray(np.ones((1, 3, 2))))
    assert_array_equal(any_backend.to_numpy(ctx.mask), mask[:, ::-1])


@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(batch, any_backend):
    inner = [layers.GRU(3, return_sequences=True), layers.Bidirectional(layers.LSTM(3)), layers.Dense(2)]
    network = nnx.Sequential([layers.Input((5, 3)), layers.Masking(), *inner])
    x = RNG.standard_normal((batch, 5, 3)).astype(np.float32)
    assert network.predict(x).shape == (batch, 2)


def test_states_go_from_one_model_to_another(any_backend):
    """An encoder's states start a decoder: half a sequence at a time is the whole."""
    x = RNG.standard_normal((2, 6, 3)).astype(np.float32)
    layer = layers.LSTM(4, return_sequences=True, return_state=True)
    params, _ = layer.init(np.random.default_rng(0), (6, 3))
    params = tree.map(lambda w: any_backend.asarray(w.astype(np.float32)), params)

    def read(*parts):
        return run(layer, nnx.Context(any_backend), params, tuple(map(any_backend.asarray, parts)))[0]

    zeros = np.zeros((2, 4), np.float32)
    whole, *last = read(x, zeros, zeros)
    first, *between = read(x[:, :2], zeros, zeros)
    second, *end = read(x[:, 2:], *between)
    halves = np.concatenate([any_backend.to_numpy(part) for part in (first, second)], axis=1)
    assert_allclose(halves, any_backend.to_numpy(whole), rtol=1e-5, atol=1e-6)
    for a, b in zip(end, last, strict=True):
        assert_allclose(any_backend.to_numpy(a), any_backend.to_numpy(b), rtol=1e-5, atol=1e-6)


def test_dropout_is_the_same_at_all_time_steps(any_backend):
    x = any_backend.asarray(np.ones((64, 4, 30), dtype=np.float32))
    layer = layers.SimpleRNN(1, "linear", dropout=0.5, kernel_initializer="ones", return_sequences=True)
    params = {"kernel": np.ones((30, 1)), "recurrent_kernel": np.zeros((1, 1)), "bias": np.zeros(1)}
    params = tree.map(lambda w: any_backend.asarray(w.astype(np.float32)), params)
    y = any_backend.to_numpy(run(layer, nnx.Context(any_backend, training=True, key=(1, 2)), params, x)[0])
    assert np.all(y == y[:, :1])
    assert np.std(y[:, 0]) > 1
    assert np.mean(y) == pytest.approx(30, rel=0.05)


def test_a_recurrent_network_learns_and_is_saved(tmp_path, any_backend):
    """Which of two places comes first, with a padded tail: only the order tells."""
    x = np.zeros((200, 6, 2), np.float32)
    first, second = np.sort(np.stack([RNG.permutation(5)[:2] for _ in range(200)]), axis=1).T
    y = RNG.integers(0, 2, 200)
    x[np.arange(200), first, y] = x[np.arange(200), second, 1 - y] = 1
    network = nnx.Sequential(
        [
            layers.Masking(input_shape=(6, 2)),
            layers.Bidirectional(layers.GRU(8, return_sequences=True, dropout=0.1)),
            layers.LSTM(8, recurrent_dropout=0.1),
            layers.Dense(2, "softmax"),
        ],
        seed=0,
    )
    network.compile(nnx.optimizers.Adam(0.02), "sparse_categorical_crossentropy", metrics=["accuracy"])
    network.fit(x, y, epochs=15, batch_size=20, verbose=0)
    assert network.evaluate(x, y, verbose=0)[1] > 0.95
    network.save(tmp_path / "model.nnx")
    again = nnx.models.load_model(tmp_path / "model.nnx")
    assert_allclose(again.predict(x), network.predict(x), rtol=1e-6)


@pytest.mark.parametrize("dtype", nnx.training.mixed_precision.HALF)
def test_half_precision(dtype, any_backend):
    if dtype not in any_backend.dtypes:
        pytest.skip(f"{any_backend.name} has no {dtype}")
    network = nnx.Sequential(
        [layers.LSTM(4, return_sequences=True), layers.GRU(4), layers.Dense(2, "softmax")],
        seed=0,
        dtype=dtype,
    )
    network.compile("adam", "sparse_categorical_crossentropy")
    history = network.fit(
        RNG.standard_normal((40, 5, 3)), RNG.integers(0, 2, 40), epochs=3, verbose=0
    ).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize(
    "layer",
    [
        layers.LSTM(3, "relu", unit_forget_bias=False, dropout=0.2, kernel_regularizer="l2"),
        layers.GRU(3, recurrent_activation="hard_sigmoid", reset_after=False, return_state=True),
        layers.Bidirectional(layers.LSTM(2), None),
        layers.Bidirectional(layers.LSTM(2), backward_layer=layers.GRU(3, go_backwards=True)),
        layers.TimeDistributed(layers.Dense(2)),
        layers.Masking(-1.0),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_settings_are_saved(layer):
    again = decode(json.loads(json.dumps(encode(layer))))
    assert encode(again) == encode(layer)
    assert again.out_shape((4, 2)) == layer.out_shape((4, 2))


def test_flops():
    assert layers.LSTM(3).flops((4, 2)) == 4 * 4 * 3 * (2 * (2 + 3) + 5)
    one = layers.GRU(3).flops((4, 2))
    assert layers.Bidirectional(layers.GRU(3)).flops((4, 2)) == 2 * one
    assert layers.Bidirectional(layers.GRU(3), "sum").flops((4, 2)) == 2 * one + 3
    assert layers.TimeDistributed(layers.Dense(3)).flops((4, 2)) == 4 * layers.Dense(3).flops((2,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.LSTM(0), "LSTM: units must be a positive whole number, got 0"),
        (lambda: layers.LSTM(2, "softmax"), "activation must work element by element, got 'softmax': put it"),
        (lambda: layers.GRU(2, recurrent_activation="softmax"), "recurrent_activation must work element by element"),
        (lambda: layers.GRU(2, dropout=1.0), "GRU: dropout must be at least 0 and below 1, got 1.0"),
        (lambda: layers.GRU(2, recurrent_dropout=-1), "recurrent_dropout must be at least 0 and below 1, got -1"),
        (lambda: layers.GRU(2, stateful=True), "stateful=True is not supported: .* given \\(x, \\*states\\) it starts"),
        (lambda: layers.LSTM(2).out_shape((4,)),
         r"expects input of shape \(batch, time, features\) .*, got \(batch, 4\)"),
        (lambda: layers.LSTM(2).out_shape(((4, 3), (2,))),
         r"LSTM expects, beside the sequence, .*, got \(\(batch, 4, 3\), "),
        (lambda: layers.LSTM(2).out_shape({"a": (4, 3)}), "LSTM expects input of shape"),
        (lambda: layers.Bidirectional(layers.Dense(2)), r"takes a SimpleRNN, LSTM or GRU, got Dense"),
        (lambda: layers.Bidirectional(layers.GRU(2), "add"),
         "merge_mode must be one of concat, sum, mul, ave, or None, got 'add'"),
        (lambda: layers.Bidirectional(layers.GRU(2), weights=[]), "weights must be None: use model.set_weights"),
        (lambda: layers.Bidirectional(layers.GRU(2, go_backwards=True)),
         "go_backwards=True and the other False, got True for both"),
        (lambda: layers.Bidirectional(layers.GRU(2), None, None, layers.GRU(2, return_state=True, go_backwards=True)),
         "both layers must have the same return_state"),
        (lambda: layers.Bidirectional(layers.GRU(2), "sum", None, layers.GRU(3, go_backwards=True)).out_shape((4, 2)),
         "needs outputs of equal shapes, got"),
        (lambda: layers.TimeDistributed(layers.Dense(2)).out_shape((4,)), "at least one axis behind time, got"),
        (lambda: layers.TimeDistributed(layers.Outputs(layers.Dense(2), [])).out_shape((4, 2)),
         "must return one array"),
        (lambda: layers.Masking().out_shape((4,)), "Masking expects input of shape"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
