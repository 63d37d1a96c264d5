"""Files: a model comes back as it was, on any backend; a broken file is an error, never code."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nnx
from nnx import layers
from nnx.saving import files

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 4)).astype(np.float32)
Y = np.arange(40) % 3


def trained(backend=None, epochs=3, dtype="float32"):
    model = nnx.Sequential(
        [
            layers.Dense(
                8,
                activation=nnx.activations.LeakyReLU(0.1),
                kernel_regularizer=nnx.regularizers.L1L2(0.01, 0.02),
            ),
            layers.BatchNormalization(momentum=0.9),
            layers.Dropout(0.2),
            layers.Residual(
                [layers.Dense(8, "gelu", kernel_initializer=nnx.initializers.RandomNormal(stddev=0.2))]
            ),
            layers.Parallel(layers.Dense(4), [layers.Dense(2, "relu"), layers.Dense(4)], merge="add"),
            layers.Dense(3, "softmax", name="out"),
        ],
        seed=4,
        dtype=dtype,
        backend=backend,
    )
    optimizer = nnx.optimizers.Adam(
        nnx.schedules.Warmup(5, nnx.schedules.ExponentialDecay(0.01, 10, 0.9)), clipnorm=1.0
    )
    model.compile(
        optimizer, nnx.losses.SparseCategoricalCrossentropy(), metrics=["accuracy", nnx.metrics.F1Score()]
    )
    if epochs:
        model.fit(X, Y, epochs=epochs, verbose=0, batch_size=16)
    return model


def same_weights(a, b):
    for mine, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("target", ["numpy", "jax", "array_api_strict"])
def test_a_saved_model_goes_on_as_if_never_saved(any_backend, target, tmp_path):
    model = trained(any_backend, dtype="float64")
    model.save(tmp_path / "net.nnx")
    loaded = nnx.load(tmp_path / "net.nnx", backend=target)
    assert loaded.backend.name == target
    same_weights(model, loaded)
    np.testing.assert_allclose(loaded.predict(X), model.predict(X), rtol=1e-10)
    results = [m.fit(X, Y, epochs=2, verbose=0, batch_size=16).history for m in (model, loaded)]
    assert results[0].keys() == results[1].keys()
    np.testing.assert_allclose(results[1]["loss"], results[0]["loss"], rtol=1e-9)
    assert repr(loaded.layers) == repr(model.layers)
    assert repr(loaded.optimizer) == repr(model.optimizer)


def test_going_on_is_the_same_bits_on_one_backend(tmp_path):
    model = trained()
    model.save(tmp_path / "net.nnx")
    loaded = nnx.load(tmp_path / "net.nnx")
    for m in (model, loaded):
        m.fit(X, Y, epochs=2, verbose=0, batch_size=16)
    same_weights(model, loaded)


def test_without_optimizer(tmp_path):
    model = trained()
    model.save(tmp_path / "net.nnx", include_optimizer=False)
    loaded = nnx.load(tmp_path / "net.nnx")
    same_weights(model, loaded)
    with pytest.raises(nnx.NotReadyError, match="not compiled"):
        loaded.evaluate(X, Y)
    assert not any(name.startswith("slots") for name in load_file(tmp_path / "net.nnx"))


def test_every_layer_loss_optimizer_and_so_on_can_be_written_and_read():
    from nnx.registry import REGISTRIES, decode, encode

    given = {
        "Dense": (3,), "Dropout": (0.5,), "Activation": ("relu",), "Input": ((4,),), "Reshape": ((2, 2),),
        "Chain": ([layers.Dense(2)],), "Residual": (layers.Dense(2),), "Parallel": (layers.Dense(2), layers.Dense(3)),
        "Inputs": ({"a": layers.Dense(2)},), "Outputs": (layers.Dense(2), []), "OutputLosses": (["mse", "mae"], [1, 2]),
        "OutputMetric": ("price", "mae"), "WeightedMean": (nnx.losses.MeanSquaredError(),),
        "LSTM": (2,), "GRU": (2,), "SimpleRNN": (2,),
        "Bidirectional": (layers.LSTM(2),), "TimeDistributed": (layers.Dense(2),), "MultiHeadAttention": (2, 3),
        "TransformerBlock": (2, 4), "PositionEmbedding": (4,),
        "SpatialDropout1D": (0.5,), "SpatialDropout2D": (0.5,), "GaussianNoise": (0.5,), "GaussianDropout": (0.5,),
        "AlphaDropout": (0.5,), "Permute": ((1,),), "RepeatVector": (2,), "Embedding": (2, 3),
        "Conv1D": (4, 3), "Conv2D": (4, 3), "Conv2DTranspose": (4, 3), "DepthwiseConv2D": (3,),
        "SeparableConv2D": (4, 3), "AveragePooling1D": (2,), "AveragePooling2D": (2,),
        "ConstantSchedule": (0.1,), "ExponentialDecay": (0.1, 10, 0.5), "StepDecay": (0.1, 10), "Warmup": (5, 0.1),
        "PiecewiseConstantDecay": ([5], [0.1, 0.2]), "PolynomialDecay": (0.1, 10), "CosineDecay": (0.1, 10),
        "CosineDecayRestarts": (0.1, 10), "OneCycle": (0.1, 10),
    }  # fmt: skip
    count = 0
    for registry in REGISTRIES.values():
        for cls in set(registry._entries.values()):
            if not cls.__module__.startswith("nnx."):
                continue
            made = cls(*given.get(cls.__name__, ()))
            written = json.loads(json.dumps(encode(made)))
            again = decode(written)
            assert type(again) is cls
            assert encode(again) == encode(made)
            count += 1
    assert count > 80


def test_weights_alone(tmp_path):
    model, other = trained(), trained(epochs=0)
    model.save_weights(tmp_path / "weights.safetensors")
    other.build((4,))
    other.load_weights(tmp_path / "weights.safetensors")
    same_weights(model, other)
    with pytest.raises(ValueError, match=r"holds weights only: make the model and call model.load_weights"):
        nnx.load(tmp_path / "weights.safetensors")


def test_weights_of_another_architecture(tmp_path):
    trained().save_weights(tmp_path / "weights.safetensors")
    other = nnx.Sequential([layers.Dense(3, input_shape=(4,))])
    with pytest.raises(
        ValueError, match="does not fit this model: they differ in params/batch_normalization/beta"
    ):
        other.load_weights(tmp_path / "weights.safetensors")


def test_the_old_file_stays_whole_if_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "net.nnx"
    model = trained()
    model.save(path)
    old = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    model.fit(X, Y, verbose=0)
    with pytest.raises(OSError, match="No space left"):
        model.save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["net.nnx"]


@nnx.register
class Doubling(layers.Layer):
    """A layer of one's own."""

    def __init__(self, times=2, **settings):
        super().__init__(**settings)
        self.times = times

    def forward(self, ctx, params, x):
        return x * self.times, lambda dy: (dy * self.times, {})


def test_a_layer_of_ones_own(tmp_path):
    model = nnx.Sequential([Doubling(3, input_shape=(4,)), layers.Dense(1)], seed=0)
    model.save(tmp_path / "net.nnx")
    loaded = nnx.load(tmp_path / "net.nnx")
    assert loaded.layers[0].times == 3
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


def test_what_cannot_be_written_says_so(tmp_path):
    model = nnx.Sequential([layers.Dense(1, input_shape=(4,))])
    model.compile("sgd", lambda y_true, y_pred: (y_true - y_pred) ** 2)
    with pytest.raises(
        TypeError, match=r"cannot save <function .*; make it a class decorated with @nnx.register"
    ):
        model.save(tmp_path / "net.nnx")
    assert list(tmp_path.iterdir()) == []


def changed(path, edit):
    """Rewrite a saved model with an edited description, and a checksum that fits it."""
    arrays, description = files.read(path)
    edit(description)
    text = json.dumps(description)
    save_file(arrays, path, metadata={"nnx": text, "checksum": files.checksum(text, arrays)})


def unknown_layer(description):
    description["network"]["config"]["layers"][0]["class_name"] = "Dnse"


def evil_kind(description):
    description["network"]["config"]["layers"][0]["kind"] = "os.system"


def newer(description):
    description["format"] = 99


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            unknown_layer,
            "unknown layer 'Dnse': did you mean 'dense'.*must be decorated with @nnx.register first",
        ),
        (evil_kind, "unknown kind of object 'os.system'"),
        (newer, "has format 99, this nnx reads up to 2: install a newer nnx-engine"),
    ],
)
def test_descriptions_that_do_not_hold(edit, message, tmp_path):
    path = tmp_path / "net.nnx"
    trained().save(path)
    changed(path, edit)
    with pytest.raises(ValueError, match=message):
        nnx.load(path)


def test_broken_files(tmp_path):
    path = tmp_path / "net.nnx"
    trained().save(path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            nnx.load(path)
    save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="was not saved by nnx"):
        nnx.load(path)
