"""How often CuPy's device is asked for anything: launches, products, copies, host syncs, cudaMalloc."""

import re

import emulated_cuda
import numpy as np
import pytest
from device_counts import assert_counts, device_counts, forbidden_sync, layer_counts, stream_order
from nnx.backends.cupy.kernels import MOST_ARGUMENTS, CudaKernel

import nnx
from nnx import layers
from nnx.data.samples import Samples
from nnx.training.runner import StepRunner

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 6)).astype(np.float32)
Y = RNG.integers(0, 3, 200)
SAMPLES = Samples(X, Y, np.ones(200, dtype=np.float32))

pytestmark = pytest.mark.skipif(
    emulated_cuda.installed() is None,
    reason="counted on the emulated device only: make test-cupy, where there is no GPU",
)


@pytest.fixture
def model():
    model = nnx.Sequential(
        [
            layers.Dense(16, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(3, "softmax"),
        ],
        seed=0,
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.build((6,))
    return model


def fit(model, epochs, **settings):
    return device_counts(lambda: model.fit(X, Y, batch_size=20, epochs=epochs, verbose=0, **settings))


# Layers


def test_dense():
    assert_counts(layers.Dense(4), (3,), launches=2, products=3)
    assert_counts(layers.Dense(4, "relu"), (3,), launches=3, products=3)
    assert_counts(layers.Dense(4, use_bias=False), (3,), products=3)


@pytest.mark.parametrize(
    "layer",
    [layers.Flatten(), layers.Reshape((6,)), layers.Permute((2, 1))],
    ids=lambda layer: type(layer).__name__,
)
def test_a_change_of_shape_costs_nothing(layer):
    assert_counts(layer, (3, 2))


def test_convolution():
    """Bias and its gradient; patches, formed twice; their gradients, added up. No launch for padding."""
    assert_counts(layers.Conv2D(4, 1), (4, 4, 3), launches=2, products=3)
    for size in (2, 3, 4):
        for settings in ({}, {"strides": 2}, {"padding": "same"}, {"padding": 2, "dilation_rate": 2}):
            assert_counts(layers.Conv2D(4, size, **settings), (6, 6, 3), launches=5, products=3)
    assert_counts(layers.Conv1D(4, 2, padding="causal"), (4, 3), launches=5, products=3)


def test_convolution_in_groups():
    """Each group by itself: a part of its input and output cut out, and the results joined."""
    for groups in (2, 3):
        assert_counts(
            layers.Conv2D(12, 2, groups=groups), (4, 4, 12), launches=2 + 10 * groups, products=3 * groups
        )


def test_other_convolutions():
    # The sum; bias and its gradient; and for each element of the window the products and sums of both gradients.
    assert_counts(layers.DepthwiseConv2D(2), (4, 4, 3), launches=1 + 2 + 5 * 4)
    assert_counts(layers.SeparableConv2D(2, 2), (4, 4, 3), launches=1 + 2 + 5 * 4, products=3)
    assert_counts(layers.Conv2DTranspose(2, 2), (4, 4, 3), launches=2 + 2, products=3)


@pytest.mark.parametrize(
    ("layer", "launches", "products"),
    [
        (layers.SimpleRNN(3), 6, 4),
        (layers.LSTM(3), 8, 4),
        (layers.GRU(3), 12, 4),
        (layers.LSTM(3, return_sequences=True), 7, 4),
        (layers.LSTM(3, dropout=0.2, recurrent_dropout=0.2), 20, 4),
    ],
    ids=repr,
)
def test_a_time_step_is_one_product_and_one_kernel(layer, launches, products):
    """Forward and backward each; the products and launches over all time steps are the rest."""
    for steps in (2, 4, 9):
        assert_counts(layer, (steps, 2), launches=launches + 2 * steps, products=products + 2 * steps)


def test_a_time_step_with_a_mask():
    found = {
        steps: layer_counts(layers.Chain([layers.Masking(), layers.LSTM(3)]), (steps, 2)) for steps in (4, 9)
    }
    assert found[9].keys() == {"launches", "products"}
    assert {name: found[9][name] - found[4][name] for name in found[9]} == {"launches": 10, "products": 10}


def test_a_time_step_of_the_gru_of_2014():
    """Two products and two kernels; backward the first gradients are cut out of the others."""
    found = {steps: layer_counts(layers.GRU(3, reset_after=False), (steps, 2)) for steps in (4, 9)}
    assert {name: found[9][name] - found[4][name] for name in found[9]} == {"launches": 25, "products": 20}


@pytest.mark.parametrize("kind", [layers.LSTM, layers.GRU])
def test_a_training_step_of_a_recurrent_network(kind):
    """In a compiled step, too, and nothing waits for the device or comes from the host."""
    found = {}
    for steps in (3, 8):
        x = RNG.standard_normal((200, steps, 2)).astype(np.float32)
        model = nnx.Sequential([kind(4), layers.Dense(3, "softmax")], seed=0)
        model.compile("adam", "sparse_categorical_crossentropy")
        found[steps] = counts_of_a_step(model, x)
        waits = ("syncs", "mallocs", "host_to_device_copies", "device_to_host_copies", "library_calls")
        assert not any(found[steps].get(name) for name in waits)
    growth = {name: found[8][name] - found[3][name] for name in found[8]}
    assert {name: count for name, count in growth.items() if count} == {"launches": 2 * 5, "products": 2 * 5}


def test_a_change_of_size():
    """Zeros are filled in, not launched; a part that is cut out is a view."""
    assert_counts(layers.ZeroPadding1D(), (4, 3), launches=1)
    assert_counts(layers.ZeroPadding2D(), (4, 4, 3), launches=1)
    assert_counts(layers.Cropping1D(), (4, 3), launches=1)
    assert_counts(layers.Cropping2D(1), (4, 4, 3), launches=1)
    assert_counts(layers.UpSampling2D(), (4, 4, 3), launches=2)


@pytest.mark.parametrize(("rank", "elements"), [(1, 2), (2, 4)])
def test_pooling(rank, elements):
    in_shape = (4, 4, 3)[-rank - 1 :]
    assert_counts(getattr(layers, f"MaxPooling{rank}D")(2), in_shape, launches=3 * elements)
    assert_counts(getattr(layers, f"AveragePooling{rank}D")(2), in_shape, launches=2 + elements)
    assert_counts(getattr(layers, f"GlobalMaxPooling{rank}D")(), in_shape, launches=6)
    assert_counts(getattr(layers, f"GlobalAveragePooling{rank}D")(), in_shape, launches=2)


@pytest.mark.parametrize("name", nnx.activations.names())
def test_an_activation_is_one_launch_each_way(name):
    activation = nnx.activations.get(name)
    if activation.elementwise:
        assert_counts(layers.Activation(name), (3,), launches=0 if name == "linear" else 2)
    else:
        assert layer_counts(layers.Activation(name), (3,)).keys() == {"launches"}


def test_normalization_of_samples():
    assert_counts(layers.LayerNormalization(), (3, 2), launches=21)
    assert_counts(layers.GroupNormalization(2), (3, 2), launches=21)
    assert_counts(layers.RMSNormalization(), (3, 2), launches=15)


def test_noise():
    assert_counts(layers.Dropout(0.2), (3,), launches=5)
    assert_counts(layers.SpatialDropout1D(0.2), (3, 2), launches=5)
    assert_counts(layers.SpatialDropout2D(0.2), (3, 2, 2), launches=5)
    assert_counts(layers.GaussianNoise(0.2), (3,), launches=3)
    assert_counts(layers.GaussianDropout(0.2), (3,), launches=4)
    assert_counts(layers.AlphaDropout(0.2), (3,), launches=5)


def test_slopes_repetition_and_functions():
    assert_counts(layers.PReLU(), (3,), launches=4)
    assert_counts(layers.RepeatVector(2), (3,), launches=1)
    assert_counts(layers.Lambda(lambda x: (x * 2, lambda dy: dy * 2)), (3,), launches=2)


def test_embedding():
    """On real numbers: most launches make ids of them."""
    assert_counts(layers.Embedding(5, 2), (3,), launches=10)


def test_attention():
    """However long the sequence, however many the heads."""
    counts = {"products": 4 * 3 + 2 + 4}
    for heads, time in ((2, 3), (3, 3), (2, 40)):
        assert_counts(layers.MultiHeadAttention(heads, 2), (time, 4), launches=32, **counts)
    assert_counts(layers.MultiHeadAttention(2, 2, use_causal_mask=True), (5, 4), launches=39, **counts)


def test_a_step_of_transformer_blocks():
    """Its launches grow by as many for each block, and not with the length of the sequence."""

    def counts(blocks, time):
        inner = [layers.TransformerBlock(2, 8, dropout=0.1, use_causal_mask=True) for _ in range(blocks)]
        first = [layers.Dense(6 * time), layers.Reshape((time, 6))]
        return step_counts(layers.Chain([*first, *inner, layers.Flatten()]))

    found = {(blocks, time): counts(blocks, time) for blocks, time in ((1, 3), (2, 3), (3, 3), (3, 20))}
    for counted in found.values():
        assert not any(counted.get(name) for name in ("syncs", "library_calls"))
        assert not any(counted.get(name) for name in ("host_to_device_copies", "device_to_host_copies"))
    for name, most in {"launches": 75, "products": 24}.items():
        one, two, three, long = (counted[name] for counted in found.values())
        assert two - one == three - two <= most
        assert long == three


# Training and inference


def test_a_training_step_waits_for_nothing(model):
    def step():
        StepRunner(model).train_on_batch(SAMPLES)

    # In the pieces that other tests leave in the pool, a step takes long to settle.
    model.backend.cupy.get_default_memory_pool().free_all_blocks()
    for _ in range(12):  # until it is compiled and has its memory
        step()
    with forbidden_sync():
        counts = device_counts(step)
    assert counts["products"] == 3 * 2 - 1  # none for the gradient of the data
    assert counts["host_to_device_copies"] == 3  # features, labels, weights
    assert not counts.keys() & {"syncs", "device_to_host_copies", "mallocs"}


def test_an_epoch_reads_once_and_stages_its_indices_only(model):
    for epochs in (1, 3):
        counts = fit(model, epochs)
        assert counts["syncs"] == epochs + 1  # the last for the weights
        # Loss, right answers, their number, in float64; in the end whether weights and moving averages are finite.
        assert counts["device_to_host_bytes"] == 24 * epochs + 8
        assert counts["host_to_device_copies"] == 3 + epochs
        once, each_epoch = X.nbytes + 200 * (4 + 4), 200 * 8  # labels and weights; indices
        assert counts["host_to_device_bytes"] == once + each_epoch * epochs
        assert "mallocs" not in counts


def test_an_epoch_with_validation_reads_once_more(model):
    counts = fit(model, 3, validation_data=(X, Y))
    assert counts["syncs"] == 2 * 3 + 1
    assert "mallocs" not in counts


def test_predict_waits_once_however_many_batches(model):
    counts = device_counts(lambda: model.predict(X, batch_size=50))
    assert counts["syncs"] == 1
    assert counts["host_to_device_copies"] == counts["device_to_host_copies"] == 4
    assert counts["products"] == 2 * 4
    assert "mallocs" not in counts


def test_evaluate_waits_once(model):
    assert device_counts(lambda: model.evaluate(X, Y, batch_size=50, verbose=0))["syncs"] == 1


def test_a_step_with_a_large_kernel():
    """Its gradient is written into its part of the flat one, and large arrays are freed along the way."""
    model = nnx.Sequential([layers.Dense(3000, "relu"), layers.Dense(3, "softmax")], seed=0)
    model.compile("adam", "sparse_categorical_crossentropy")
    losses = [
        fit_loss for _ in range(3) for fit_loss in model.fit(X, Y, batch_size=20, verbose=0).history["loss"]
    ]
    assert losses[2] < losses[0]
    counts = fit(model, 1)
    assert counts["products"] == 10 * (3 * 2 - 1)
    assert not counts.keys() & {"device_to_device_copies", "mallocs"}


# Streaming


BATCHES = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 200, 20)]
BATCH_BYTES = 20 * (6 * 4 + 4 + 4)  # features, labels, weights


def streamed(model, monkeypatch):
    """Let no data fit on the device."""
    monkeypatch.setattr(model.backend, "free_memory", lambda: 1)
    fit(model, 3)  # until the step is compiled
    return model


def test_a_streamed_batch_is_copied_once_from_pinned_memory_and_waits_for_nothing(model, monkeypatch):
    streamed(model, monkeypatch)
    for data in ((X, Y), (BATCHES,)):
        counts = device_counts(lambda data=data: model.fit(*data, batch_size=20, epochs=3, verbose=0))
        assert counts["host_to_device_copies"] == 3 * 10 * 3
        assert counts["host_to_device_bytes"] == 3 * 10 * BATCH_BYTES
        assert not counts.keys() & {"pageable_copies", "mallocs"}
        assert counts["syncs"] == 3 + 1  # one an epoch, for its numbers, and the last for the weights
        assert counts["device_to_host_bytes"] == 3 * 24 + 8


def test_a_streamed_step_launches_no_more_than_another(model, monkeypatch):
    fit(model, 3)
    resident = fit(model, 3)
    counts = fit(streamed(model, monkeypatch), 3)
    assert counts["launches"] <= resident["launches"]  # it gathers nothing, but makes its ones each time
    assert counts["products"] == resident["products"]
    assert counts["device_to_device_copies"] == resident["device_to_device_copies"]


@pytest.mark.parametrize("data", [(X, Y), (BATCHES,)], ids=["arrays", "batches"])
def test_steps_wait_for_their_batch_and_copies_for_earlier_steps(model, monkeypatch, data):
    """On the device, by events: on the emulated one all is done at once, so that only this shows it."""
    streamed(model, monkeypatch)
    order = stream_order(lambda: model.fit(*data, batch_size=20, verbose=0))
    compute, copies = 0, model.backend.copies.ptr
    steps = [(seen.get(copies, 0), begun[copies]) for stream, seen, begun in order if stream == compute]
    assert sorted({*steps}) == [(3 * (n + 1), min(3 * (n + 3), 30)) for n in range(10)]  # two ahead
    waited = [
        (seen.get(compute, 0), begun.get(compute, 0)) for stream, seen, begun in order if stream == copies
    ]
    assert len(waited) == 30
    assert all(seen == launched for seen, launched in waited)


def test_streamed_validation_and_evaluation_wait_once(model, monkeypatch):
    streamed(model, monkeypatch)
    counts = device_counts(lambda: model.evaluate(X, Y, batch_size=20, verbose=0))
    assert counts["syncs"] == 1
    assert counts["host_to_device_bytes"] == 10 * BATCH_BYTES
    assert "mallocs" not in counts
    assert fit(model, 3, validation_data=(X, Y))["syncs"] == 2 * 3 + 1


# The counting itself


class Wasteful(layers.Layer):
    """Doubles its input, on the device, and does one more thing."""

    def __init__(self, waste):
        super().__init__()
        self.waste = waste

    def forward(self, ctx, params, x):
        self.waste(x)
        return x + x, lambda dy: (dy + dy, {})


def test_a_layer_is_held_to_its_counts():
    assert_counts(Wasteful(lambda x: None), (3,), launches=2)
    with pytest.raises(
        AssertionError, match=r"Wasteful asks the device for {'launches': 3}, not for {'launches': 2}"
    ):
        assert_counts(Wasteful(lambda x: x * 2), (3,), launches=2)
    with pytest.raises(AssertionError, match="'products': 1"):
        assert_counts(Wasteful(lambda x: x.T @ x), (3,), launches=2)
    with pytest.raises(AssertionError, match="'host_to_device_copies': 1"):
        assert_counts(Wasteful(lambda x: nnx.as_backend("cupy").asarray(np.ones(3))), (3,), launches=2)


@pytest.mark.parametrize(
    "waste", [lambda x: float(x[0, 0]), lambda x: bool((x > 0).any()), lambda x: x.get()]
)
def test_a_layer_that_waits_for_the_device_is_refused(waste):
    with pytest.raises(emulated_cuda.HostSyncError):
        layer_counts(Wasteful(waste), (3,))


def test_memory_that_is_not_given_back_is_counted():
    kept = []
    new = lambda: kept.append(nnx.as_backend("cupy").cupy.zeros(1 << 20, "float32"))  # noqa: E731
    assert device_counts(new)["mallocs"] == 1


# Fast by construction


def step_counts(hidden, optimizer="adam", dtype="float32", **compiled) -> dict[str, float]:
    """Return what one more step of `fit` asks for, of a network of these, or so many dense, hidden layers."""
    inner = [layers.Dense(16, "relu") for _ in range(hidden)] if isinstance(hidden, int) else [hidden]
    model = nnx.Sequential([*inner, layers.Dense(3, "softmax")], seed=0, dtype=dtype)
    model.compile(optimizer, "sparse_categorical_crossentropy", **compiled)
    return counts_of_a_step(model, X)


def counts_of_a_step(model, x) -> dict[str, float]:
    """Return what one more step of `fit` asks for, on batches of `x`."""

    def fit(samples):
        model._compiled_steps.steps_a_run = (
            1000  # however slow the machine: what a run of steps prepares counts once
        )
        model.fit(x[:samples], Y[:samples], batch_size=20, verbose=0)

    model.build(x.shape[1:])
    short, long = (device_counts(lambda n=n: fit(n)) for n in (120, 200))
    names = {*short, *long}
    assert (long["syncs"], long["host_to_device_copies"]) == (short["syncs"], short["host_to_device_copies"])
    return {
        name: (long.get(name, 0) - short.get(name, 0)) / 4 for name in names if not name.endswith("_bytes")
    }


def test_a_step_of_a_perceptron():
    """Three products and three other launches a layer; the loss and the gathering of a batch are the rest."""
    found = {hidden: step_counts(hidden) for hidden in (1, 2, 5)}
    for hidden, counts in found.items():
        assert counts["products"] == 3 * (hidden + 1) - 1  # none for the gradient of the data
        assert counts["launches"] <= 3 * (hidden + 1) + 16
        assert not any(
            counts.get(name) for name in ("syncs", "mallocs", "device_to_device_copies", "library_calls")
        )
        assert not any(counts.get(name) for name in ("host_to_device_copies", "device_to_host_copies"))
    assert (
        found[5]["launches"] - found[2]["launches"] == 3 * 3
    )  # so the optimizer does not grow with the parameters


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_step_of_a_convolutional_network(dtype):
    """Each convolution: three products, and patches twice, their gradient, bias, activation, two gradients."""
    reshape = layers.Reshape((2, 3, 1))
    found = {
        n: step_counts(
            layers.Chain([reshape, *(layers.Conv2D(4, 3, padding="same", activation="relu") for _ in range(n)),
                          layers.Flatten()]), dtype=dtype)
        for n in (1, 2, 4)
    }  # fmt: skip
    for n, counts in found.items():
        assert counts["products"] == 3 * (n + 1) - 1
        assert not any(counts.get(name) for name in ("syncs", "mallocs", "library_calls"))
        assert not any(counts.get(f"{way}_copies") for way in ("host_to_device", "device_to_host"))
    assert found[2]["launches"] - found[1]["launches"] == 6
    assert found[4]["launches"] - found[2]["launches"] == 2 * 6


@pytest.mark.parametrize("name", sorted(nnx.optimizers._registry.names()))
def test_every_optimizer_is_one_launch(name):
    without = step_counts(1, nnx.optimizers.SGD(0.1))
    assert step_counts(1, name)["launches"] == without["launches"]


def test_a_metric_costs_a_few_launches():
    assert step_counts(1, metrics=["accuracy"])["launches"] - step_counts(1)["launches"] <= 6


def test_a_fused_kernel_has_no_more_arguments_than_cuda_passes():
    """The moving averages of many layers, all of one shape, must not end up in a single launch."""
    model = nnx.Sequential(
        [layers.BatchNormalization() for _ in range(40)] + [layers.Dense(3, "softmax")], seed=0
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, Y, batch_size=20, epochs=2, verbose=0)
    (program,) = StepRunner(model).steps.train.programs
    kernels = {name: k for name, k in program.loop.__globals__.items() if isinstance(k, CudaKernel)}
    calls = re.findall(r"^ +(?:(.*) = )?(\w+)\((.*)\)$", program.loop.__doc__, re.M)
    counts = [(results + ", " + given).count("v") for results, name, given in calls if name in kernels]
    assert len(counts) > 40
    assert max(counts) <= MOST_ARGUMENTS


def test_a_kernel_of_too_many_arrays_is_run_in_parts():
    """A depthwise convolution adds up as many products as its window has elements."""
    x = RNG.standard_normal((2, 9, 9, 1)).astype(np.float32)
    found = nnx.apply(layers.DepthwiseConv2D(7, depthwise_initializer="ones"), x)
    windows = np.lib.stride_tricks.sliding_window_view(x, (7, 7), axis=(1, 2))
    np.testing.assert_allclose(found, windows.sum(axis=(-2, -1)), rtol=1e-4, atol=1e-5)
    pure = nnx.kernels.weighted_sum
    kinds = (np.dtype("float32"),) * (2 * 49)
    assert nnx.as_backend("cupy").cuda_kernel(pure, kinds, (None,)) is None
    assert nnx.as_backend("cupy").cuda_kernel(pure, kinds[:18], (None,)) is not None


@pytest.mark.parametrize("dtype", nnx.training.mixed_precision.HALF)
def test_half_precision_costs_a_few_launches_however_many_layers(dtype):
    half, full = ({n: step_counts(n, dtype=d)["launches"] for n in (1, 3)} for d in (dtype, "float32"))
    assert half[3] - half[1] == full[3] - full[1]
    assert half[1] - full[1] <= 12
