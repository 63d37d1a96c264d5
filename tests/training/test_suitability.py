"""Outputs that do not suit the loss are told of once, and suited ones never."""

import re
import warnings

import numpy as np
import pytest

import nnx
from nnx.layers import (
    Activation,
    Chain,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePooling1D,
    Lambda,
    Outputs,
    Reshape,
    Softmax,
    TimeDistributed,
)  # fmt: skip

X = np.random.default_rng(0).normal(size=(20, 3))
LABEL = (X[:, 0] > 0).astype(int)
ONE_HOT = np.eye(2)[LABEL]
SPARSE_OF_LOGITS = nnx.losses.SparseCategoricalCrossentropy(from_logits=True)
BINARY_OF_LOGITS = nnx.losses.BinaryCrossentropy(from_logits=True)


def told(layers, loss, y, fits=1) -> list[str]:
    model = nnx.Sequential(layers, seed=0)
    model.compile(nnx.optimizers.SGD(0.0), loss)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for _ in range(fits):
            model.fit(X, y, verbose=0)
    assert all(warning.filename == __file__ for warning in found)
    return [str(warning.message) for warning in found]


UNSUITED = {
    "softmax twice": ([Dense(2, "softmax")], SPARSE_OF_LOGITS, LABEL, "the softmax .* applied twice"),
    "softmax layer": ([Dense(2), Softmax()], SPARSE_OF_LOGITS, LABEL, "applied twice"),
    "softmax before others": (
        [Dense(2, "softmax"), Dropout(0.1), Flatten(), Reshape((2,))],
        SPARSE_OF_LOGITS, LABEL, "applied twice",
    ),
    "softmax in a chain": (
        [Chain([Dense(2), Chain([Activation("softmax")])])],
        SPARSE_OF_LOGITS, LABEL, "applied twice",
    ),
    "softmax in time": (
        [Reshape((3, 1)), TimeDistributed(Dense(2, "softmax")), GlobalAveragePooling1D()],
        SPARSE_OF_LOGITS, LABEL, "applied twice",
    ),
    "sigmoid twice": ([Dense(1, "sigmoid")], BINARY_OF_LOGITS, LABEL, "the sigmoid .* applied twice"),
    "relu as logits": ([Dense(1, "relu")], BINARY_OF_LOGITS, LABEL, "logits of either sign"),
    "linear": (
        [Dense(1)],
        "binary_crossentropy", LABEL, "from -infinity to infinity: give the last layer activation='sigmoid'",
    ),
    "linear classes": (
        [Dense(2)],
        "sparse_categorical_crossentropy", LABEL, "activation='softmax', or the loss from_logits=True",
    ),
    "linear divergence": ([Dense(2)], "kl_divergence", ONE_HOT, "activation='softmax'"),
    "tanh": ([Dense(1, "tanh")], "binary_crossentropy", LABEL, "from -1 to 1"),
    "softmax of one": ([Dense(1, "softmax")], "binary_crossentropy", LABEL, "always 1"),
    "sigmoid of classes": ([Dense(2, "sigmoid")], "sparse_categorical_crossentropy", LABEL, "exclude each other"),
    "several labels": ([Dense(2, "softmax")], "binary_crossentropy", np.ones((20, 2)), "several labels"),
    "tanh for large": ([Dense(1, "tanh")], "mse", 5 * X[:, 0], "tanh, gives values from -1 to 1"),
    "sigmoid for signs": ([Dense(1, "sigmoid")], "mae", X[:, 0], "sigmoid, gives values from 0 to 1"),
    "relu for negatives": ([Dense(1, "relu")], "huber", X[:, 0], "relu, gives values from 0 to infinity"),
    "sigmoid with margins": ([Dense(1, "sigmoid")], "hinge", LABEL, "or take tanh"),
    "sigmoid for counts": ([Dense(1, "sigmoid")], "poisson", 5 * LABEL, "cannot reach"),
    "negative counts": ([Dense(1, "softplus")], "poisson", X[:, 0], "not negative"),
}  # fmt: skip

SUITED = {
    "several labels": ([Dense(2, "sigmoid")], "binary_crossentropy", ONE_HOT),
    "softmax": ([Dense(2, "softmax")], "sparse_categorical_crossentropy", LABEL),
    "logits": ([Dense(2)], SPARSE_OF_LOGITS, LABEL),
    "two units": ([Dense(2, "softmax")], "binary_crossentropy", ONE_HOT),
    "Brier": ([Dense(2, "softmax")], "mse", ONE_HOT),
    "logs of probabilities": ([Dense(2, "log_softmax")], SPARSE_OF_LOGITS, LABEL),
    "margins": ([Dense(1)], "hinge", LABEL),
    "regression": ([Dense(1)], "mse", 100 * X[:, 0]),
    "relu for positives": ([Dense(1, "relu")], "mse", np.abs(X[:, 0])),
    "tanh within": ([Dense(1, "tanh")], "mse", np.tanh(X[:, 0])),
    "counts": ([Dense(1, "exponential")], "poisson", 5 * LABEL),
    "a function of one's own": (
        [Dense(1), Lambda(lambda x: (0 * x + 0.5, lambda dy: 0 * dy))],
        "binary_crossentropy", LABEL,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUITED)
def test_one_warning_at_the_first_fit(name):
    layers, loss, y, message = UNSUITED[name]
    (text,) = told(layers, loss, y, fits=2)
    assert re.search(message, text), text


@pytest.mark.parametrize("name", SUITED)
def test_no_warning_of_what_suits(name):
    assert told(*SUITED[name]) == []


def test_each_output_is_looked_at():
    heads = Outputs({"kind": [], "size": Dense(1, "tanh"), "free": Dense(1)})
    found = told(
        [Dense(2, "softmax"), heads],
        {"kind": SPARSE_OF_LOGITS, "size": "mse"},
        {"kind": LABEL, "size": 9 * LABEL},
    )
    assert [text.partition(":")[0] for text in found] == ["Output 'kind'", "Output 'size'"]


def test_samples_without_weight_are_not_looked_at():
    model = nnx.Sequential([Dense(1, "relu")], seed=0)
    model.compile("sgd", "mse")
    model.fit(X, X[:, 0], sample_weight=(X[:, 0] > 0).astype(float), verbose=0)


def test_batches_are_looked_at_too():
    model = nnx.Sequential([Dense(1, "relu")], seed=0)
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="cannot reach"):
        model.fit([(X, X[:, 0])], verbose=0)


def test_diagnose_repeats_it():
    model = nnx.Sequential([Dense(1)], seed=0)
    model.compile("sgd", "binary_crossentropy")
    found = nnx.diagnose(model, X, LABEL, print_fn=lambda text: None)
    assert found.advice[0].startswith("Unsuited output: BinaryCrossentropy expects probabilities")
