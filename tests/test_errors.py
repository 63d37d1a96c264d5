"""What a user does wrong is told in one line that names the value, the expectation and the remedy."""

import copy
import inspect
import pickle
import re
import traceback

import numpy as np
import pytest

import nnx
from nnx import layers

RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 4))
Y = np.arange(20) % 3
LETTERS = np.array(["a", "b", "c", "d"] * 5)


def model(loss="sparse_categorical_crossentropy", units=3, activation="softmax", **settings):
    built = nnx.Sequential(
        [layers.Dense(8, "relu", input_shape=(4,)), layers.Dense(units, activation)], seed=0
    )
    built.compile("adam", loss, **settings)
    return built


def fit(*data, **settings):
    return model().fit(*data, verbose=0, **settings)


def with_value(value):
    changed = X.copy()
    changed[3, 2] = value
    return changed


def sequential(*made):
    return nnx.Sequential(list(made))


CASES = {
    # data
    "wrong feature count": (lambda: fit(X[:, :3], Y), ValueError, r"shape \(batch, 4\), got \(20, 3\): it was built for 4 features"),
    "one sample": (lambda: fit(X[0], Y), ValueError, r"shape \(batch, 4\), got \(4,\): for one sample use X\[None\]"),
    "too many axes": (lambda: fit(X[None], Y), ValueError, r"shape \(batch, 4\), got \(1, 20, 4\): reshape X"),
    "predict one sample": (lambda: model().predict(X[0]), ValueError, r"for one sample use X\[None\]"),
    "flat X for a new model": (lambda: _new().fit(X[:, 0], Y), ValueError, r"one row a sample, .* use X.reshape\(-1, 1\)"),
    "NaN in X": (lambda: fit(with_value(np.nan), Y), ValueError, "X has the value nan at row 3, column 2: fill or drop"),
    "infinity in X": (lambda: fit(with_value(-np.inf), Y), ValueError, "X has the value -inf at row 3, column 2"),
    "too large for float32": (lambda: fit(with_value(1e300), Y), ValueError, "X has the value inf at row 3, column 2"),
    "NaN in predict": (lambda: model().predict(with_value(np.nan)), ValueError, "X has the value nan at row 3"),
    "text in X": (lambda: fit(LETTERS[:, None].repeat(4, 1), Y), ValueError, "X must be numbers, got dtype <U1: encode"),
    "shuffle that returns nothing": (
        lambda: fit(X, Y, shuffle=lambda order: None),
        ValueError,
        "the function given as shuffle must return sample indices from 0 to 19, got None",
    ),
    "shuffle beyond the samples": (lambda: fit(X, Y, shuffle=lambda order: order + 5), ValueError, "0 to 19, got numbers from 5 to 24"),
    "ragged X": (lambda: fit([[1, 2], [3]], Y[:2]), ValueError, "its rows differ in shape"),
    "empty data": (lambda: fit(X[:0], Y[:0]), ValueError, r"X is empty, of shape \(0, 4\): expected at least one sample"),
    "different lengths": (lambda: fit(X, Y[:-1]), ValueError, "X has 20 samples, y has 19"),
    "no targets": (lambda: fit(X), ValueError, "y is missing"),
    # targets
    "label too large": (lambda: fit(X, Y + 1), ValueError, "whole numbers from 0 to 2, since the model has 3 outputs; got 3 at row 2"),
    "negative label": (lambda: fit(X, Y - 1), ValueError, "got -1 at row 0"),
    "broken label": (lambda: fit(X, Y + 0.5), ValueError, "got 0.5 at row 0"),
    "string labels": (lambda: fit(X, LETTERS), ValueError, r"labels such as 'a': .*np.unique\(y, return_inverse=True\)"),
    "one-hot for sparse": (lambda: fit(X, np.eye(3)[Y]), ValueError, "use loss='categorical_crossentropy'"),
    "numbers for one-hot": (lambda: model("categorical_crossentropy").fit(X, Y), ValueError, "sparse_categorical_crossentropy"),
    "one-hot, wrong count": (lambda: model("categorical_crossentropy").fit(X, np.eye(4)[Y]), ValueError, r"\(batch, 3\), got y of shape \(20, 4\)"),
    "three binary labels": (lambda: model("binary_crossentropy", 1, "sigmoid").fit(X, Y), ValueError, "labels between 0 and 1, got 2 at row 2"),
    "target of wrong width": (lambda: model("mse").fit(X, Y), ValueError, r"output has shape \(batch, 3\), got y of shape \(20,\)"),
    "NaN in y": (lambda: model("mse", 1, None).fit(X, np.where(Y == 1, np.nan, Y)), ValueError, "y has the value nan at row 1"),
    # settings of fit
    "batch size 0": (lambda: fit(X, Y, batch_size=0), ValueError, "batch_size must be a positive whole number, got 0"),
    "batch size text": (lambda: fit(X, Y, batch_size="all"), ValueError, "got 'all'"),
    "negative epochs": (lambda: fit(X, Y, epochs=-1), ValueError, "epochs must be at least initial_epoch, got -1 and 0"),
    "verbose": (lambda: model().fit(X, Y, verbose=7), ValueError, "verbose must be 'auto', 0, 1 or 2, got 7"),
    "validation split": (lambda: fit(X, Y, validation_split=1.5), ValueError, "between 0 and 1, got 1.5"),
    "validation of nothing": (lambda: fit(X, Y, validation_split=0.99), ValueError, "leaves none to train on"),
    "validation data": (lambda: fit(X, Y, validation_data=(X[:, :2], Y)), ValueError, "it was built for 4 features"),
    "sample weights": (lambda: fit(X, Y, sample_weight=np.ones(3)), ValueError, r"shape \(20,\), .* got \(3,\)"),
    "negative weight": (lambda: fit(X, Y, sample_weight=-np.ones(20)), ValueError, "not negative, got -1.0 at row 0"),
    "class weights of a sequence": (lambda: _time().fit(np.zeros((20, 5, 4)), np.zeros((20, 5)), class_weight={0: 1.0}), ValueError, "one label a sample"),
    "no callback": (lambda: fit(X, Y, callbacks=[3]), TypeError, "must be nnx.callbacks.Callback objects, got 3"),
    "used-up generator": (lambda: fit((b for b in [(X, Y)]), epochs=2), ValueError, "used up after one pass"),
    "no batches": (lambda: fit(iter([X])), ValueError, r"must give \(x, y\) or \(x, y, sample_weight\), got ndarray"),
    "split of a stream": (lambda: fit(iter([(X, Y)]), validation_split=0.5), ValueError, "need arrays, not an iterable"),
    # names
    "loss": (lambda: model("mean_squard_error"), ValueError, "unknown loss 'mean_squard_error': did you mean 'mean_squared_error'"),
    "activation": (lambda: layers.Dense(3, "rellu"), ValueError, "unknown activation 'rellu': did you mean 'relu'"),
    "optimizer": (lambda: sequential(layers.Dense(1)).compile("adm", "mse"), ValueError, "did you mean 'adam'"),
    "metric": (lambda: model(metrics=["acuracy"]), ValueError, "did you mean 'accuracy'"),
    "metrics no list": (lambda: model(metrics="accuracy"), TypeError, "metrics must be a list"),
    "initializer": (lambda: layers.Dense(3, kernel_initializer="he_norml"), ValueError, "did you mean 'he_normal'"),
    "regularizer": (lambda: layers.Dense(3, kernel_regularizer="l3"), ValueError, "did you mean 'l2'"),
    "nothing near": (lambda: layers.Dense(3, "xyzzy"), ValueError, "unknown activation 'xyzzy': Known: elu, exponential"),
    "argument": (lambda: layers.Dense(3, activaton="relu"), TypeError, "unknown argument of Dense 'activaton': did you mean 'activation'"),
    "older name": (lambda: nnx.optimizers.Adam(lr=0.1), TypeError, "unknown argument of Adam 'lr': did you mean 'learning_rate'"),
    "argument of a callback": (lambda: nnx.callbacks.EarlyStopping(patients=3), TypeError, "did you mean 'patience'"),
    "argument of a model": (lambda: nnx.Sequential([], sed=3), TypeError, "did you mean 'seed'"),
    "text for a rate": (lambda: nnx.optimizers.Adam("0.1"), ValueError, "Adam: learning_rate must be 0 or more, or a schedule, got '0.1'"),
    "no rate": (lambda: nnx.optimizers.Adam(learning_rate=None), ValueError, "learning_rate must be 0 or more, or a schedule, got None"),
    "text for a number": (lambda: layers.Dropout("0.5"), ValueError, "Dropout: rate must be a number, got '0.5'"),
    "text for units": (lambda: layers.Dense("64"), ValueError, "Dense: units must be a whole number, got '64'"),
    "text for a switch": (lambda: layers.Dense(4, use_bias="no"), ValueError, "use_bias must be True or False, got 'no'"),
    "negative units": (lambda: layers.Dense(-2), ValueError, "positive whole number, got -2"),
    "layers without a list": (lambda: nnx.Sequential(layers.Dense(1), layers.Dense(2)), ValueError, r"Sequential: layers must be a list such as \[a, b\]"),
    "too many arguments": (lambda: layers.Tanh(3), ValueError, "Tanh: name must be a text"),
    "arguments of none": (lambda: nnx.activations.Tanh(3), TypeError, "Tanh takes no arguments without a name, got 1"),
    "decay rate": (lambda: nnx.optimizers.RMSprop(rho=2.0), ValueError, "RMSprop: rho must be at least 0 and at most 1, got 2.0"),
    # attributes
    "attribute of a layer": (lambda: setattr(layers.Dense(1), "activatoin", "relu"), AttributeError, "unknown attribute of Dense 'activatoin': did you mean 'activation'"),
    "attribute of an optimizer": (lambda: setattr(nnx.optimizers.Adam(), "lr", 0), AttributeError, "unknown attribute of Adam 'lr': did you mean 'learning_rate'"),
    "attribute of a model": (lambda: setattr(model(), "optimzer", 0), AttributeError, "unknown attribute of Sequential 'optimzer': did you mean 'optimizer'"),
    "attribute of a callback": (lambda: setattr(nnx.callbacks.EarlyStopping(), "patienc", 3), AttributeError, "did you mean 'patience'"),
    "attribute of a loss": (lambda: setattr(nnx.losses.Huber(), "detla", 3), AttributeError, "did you mean 'delta'"),
    "frozen layer": (lambda: setattr(layers.Dense(1), "trainable", False), ValueError, "cannot be frozen yet"),
    "frozen from the start": (lambda: layers.Dense(1, trainable=False), ValueError, "cannot be frozen yet"),
    "frozen model": (lambda: setattr(model(), "trainable", False), ValueError, "cannot be frozen yet"),
    # not ready
    "not compiled": (lambda: sequential(layers.Dense(1)).fit(X, Y), nnx.NotReadyError, r"call model.compile\(optimizer='adam', loss="),
    "evaluate, not compiled": (lambda: sequential(layers.Dense(1)).evaluate(X, Y), nnx.NotReadyError, "not compiled"),
    "not built": (lambda: sequential(layers.Dense(1)).predict(X), nnx.NotReadyError, r"call model.build\(\(features,\)\), or fit"),
    "summary, not built": (lambda: sequential(layers.Dense(1)).summary(), nnx.NotReadyError, "not built"),
    "no loss": (lambda: sequential(layers.Dense(1)).compile("adam"), ValueError, "compile needs a loss"),
    # settings of layers and optimizers
    "no units": (lambda: layers.Dense(0), ValueError, "Dense: units must be a positive whole number, got 0"),
    "broken units": (lambda: layers.Dense(2.5), ValueError, "got 2.5"),
    "dropout of all": (lambda: layers.Dropout(1.0), ValueError, "rate must be at least 0 and below 1, got 1.0"),
    "input shape": (lambda: layers.Dense(3, input_shape=(None, 4)), ValueError, "without the batch axis"),
    "residual": (lambda: sequential(layers.Residual(layers.Dense(3))).build((4,)), ValueError, "end them with as many features"),
    "parallel": (lambda: sequential(layers.Parallel(layers.Dense(3), layers.Dense(2), merge="add")).build((4,)), ValueError, "needs outputs of equal shapes"),
    "reshape": (lambda: sequential(layers.Reshape((3, 3), input_shape=(4,))), ValueError, r"4 values a sample, as \(3, 3\)"),
    "axis": (lambda: sequential(layers.BatchNormalization(axis=3)).build((4,)), ValueError, "axis 3 names no feature axis"),
    "no features": (lambda: sequential(layers.Dense(1)).build(()), ValueError, r"at least one feature, got \(batch,\)"),
    "no layer": (lambda: sequential("dense"), TypeError, "expected a layer, a list of layers or a model, got 'dense'"),
    "same name": (lambda: sequential(layers.Dense(1, name="a"), layers.Dense(1, name="a")), ValueError, "two layers are called 'a'"),
    "slash": (lambda: layers.Dense(1, name="a/b"), ValueError, "must not contain '/'"),
    "dtype": (lambda: nnx.Sequential([layers.Dense(1)], dtype="int8"), ValueError, "must be one of float16, bfloat16, float32, float64, got 'int8'"),
    "learning rate": (lambda: nnx.optimizers.Adam(-1), ValueError, "learning_rate must be 0 or more"),
    "two clips": (lambda: nnx.optimizers.SGD(clipnorm=1, clipvalue=1), ValueError, "only one of clipnorm, clipvalue"),
    "metric names": (lambda: model(metrics=["mse", "mse"]), ValueError, "two metrics have the same name"),
    # weights and files
    "weights": (lambda: model().set_weights([1]), ValueError, "the model has 4 weight arrays, got 1"),
    "weight shape": (lambda: model().set_weights([X] * 4), ValueError, r"dense/kernel has shape \(4, 8\), got \(20, 4\)"),
    "no file": (lambda: nnx.load("nope.nnx"), FileNotFoundError, "there is no file nope.nnx"),
    "no folder": (lambda: model().save("/nope/x.nnx"), FileNotFoundError, "there is no folder /nope"),
}  # fmt: skip


def _time():
    new = nnx.Sequential([layers.Dense(3, "softmax", input_shape=(5, 4))], seed=0)
    new.compile("adam", nnx.losses.SparseCategoricalCrossentropy())
    return new


def _new():
    new = nnx.Sequential([layers.Dense(3, "softmax")], seed=0)
    new.compile("adam", "sparse_categorical_crossentropy")
    return new


class Counting(layers.Dense):
    """A layer of one's own."""

    def __init__(self, units, **settings):
        super().__init__(units, **settings)
        self.factor = 2


def test_attributes_that_may_be_set():
    own = Counting(2)
    own.calls, own.factor = 3, 4
    layer = layers.Dense(1)
    layer.units, layer.name, layer.trainable, layer._note = 2, "a", True, "free"
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.copy(layer)):
        assert (copied.units, copied._note) == (2, "free")
        with pytest.raises(AttributeError):
            copied.unit = 3
    vars(layer)["forward"] = None
    new = model()
    new.stop_training, new.name = True, "b"


def test_all_classes_of_nnx_have_the_attributes_that_they_set():
    """Each is made from its own configuration: what `__init__` sets is known."""
    made = [registry.find(name) for registry in nnx.registry.REGISTRIES.values() for name in registry.names()]
    needless = [
        cls
        for cls in made
        if all(p is not inspect.Parameter.empty for p in nnx.registry.init_arguments(cls).values())
    ]
    assert len(needless) > 60
    for cls in needless:
        if cls not in (layers.Parallel, layers.Inputs, layers.Outputs):
            assert isinstance(cls(), cls)


@pytest.mark.parametrize("name", CASES)
def test_error(name):
    call, kind, message = CASES[name]
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert len(traceback.extract_tb(caught.value.__traceback__)) <= 10


def test_a_failed_fit_leaves_the_model_as_it_was():
    trained = model()
    before = trained.get_weights()
    for wrong in (X[:, :3], with_value(np.nan)):
        with pytest.raises(ValueError):
            trained.fit(wrong, Y, verbose=0)
    for a, b in zip(before, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    trained.fit(X, Y, verbose=0)


def test_labels_are_checked_on_every_backend(any_backend):
    """On a device a label out of range would wrap or clamp in silence."""
    mine = nnx.Sequential([layers.Dense(3, "softmax")], seed=0, backend=any_backend)
    mine.compile("sgd", "sparse_categorical_crossentropy")
    for wrong in (Y + 1, Y - 1):
        with pytest.raises(ValueError, match="labels must be whole numbers from 0 to 2"):
            mine.fit(X, wrong, verbose=0)
