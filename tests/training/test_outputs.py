"""Models of several inputs and outputs, and masks of time steps: they train as Keras's do."""

import copy
import json

import numpy as np
import pytest
from nnx.backends.shared.replay import CompiledStep
from paths import REFERENCE

import nnx
from nnx import layers
from nnx.testing import check_layer
from nnx.training.runner import StepRunner

RNG = np.random.default_rng(0)
CASES = json.loads((REFERENCE / "models.json").read_text())["cases"]
MASKED, WEIGHTED, OF_TWO = CASES


def as_arrays(value):
    if isinstance(value, dict):
        return {name: as_arrays(part) for name, part in value.items()}
    return None if value is None else np.asarray(value)


def expect_steps(model, case, **compiled):
    """Take the steps of a reference case, and compare logs and weights."""
    x, y, weight = (as_arrays(case[name]) for name in ("x", "y", "weight"))
    model.build(nnx.tree.map(lambda a: a.shape[1:], x))
    model.set_weights([np.asarray(w) for w in case["starts"]])
    model.compile(**compiled)
    for expected in case["logs"]:
        logs = model.train_on_batch(x, y, weight, return_dict=True)
        assert logs == pytest.approx(expected, rel=1e-9)
    for mine, keras in zip(model.get_weights(), case["weights"], strict=True):
        np.testing.assert_allclose(mine, keras, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("case", [MASKED, WEIGHTED], ids=["masked", "weighted"])
def test_masked_loss_agrees_with_keras(any_backend, case):
    model = nnx.Sequential(
        [layers.Embedding(6, 3, mask_zero=True), layers.Dense(4, "tanh"), layers.Dense(6, "softmax")],
        dtype="float64",
    )
    expect_steps(
        model,
        case,
        optimizer=nnx.optimizers.SGD(0.5),
        loss="sparse_categorical_crossentropy",
    )


def test_two_inputs_and_outputs_agree_with_keras(any_backend):
    model = nnx.Sequential(
        [
            layers.Inputs({"numbers": [], "city": [layers.Embedding(4, 2), layers.Flatten()]}),
            layers.Dense(5, "tanh"),
            layers.Outputs({"kind": layers.Dense(3, "softmax"), "price": layers.Dense(1)}),
        ],
        dtype="float64",
    )
    expect_steps(
        model,
        OF_TWO,
        optimizer=nnx.optimizers.SGD(0.1),
        loss={"price": "mse", "kind": "sparse_categorical_crossentropy"},
        loss_weights={"price": 0.5, "kind": 2.0},
        metrics={"price": ["mae"], "kind": ["accuracy"]},
    )


# Training such models as a whole

X = {"numbers": RNG.standard_normal((50, 4)), "city": RNG.integers(0, 5, (50, 1))}
Y = {"price": X["numbers"].sum(axis=1) + X["city"][:, 0], "kind": X["city"][:, 0] % 3}
LOSSES = {"price": "mse", "kind": "sparse_categorical_crossentropy"}


def of_two(**settings):
    model = nnx.Sequential(
        [
            layers.Inputs({"numbers": [], "city": [layers.Embedding(5, 3), layers.Flatten()]}),
            layers.Dense(16, "relu"),
            layers.Outputs({"price": layers.Dense(1), "kind": layers.Dense(3, "softmax")}),
        ],
        seed=0,
        **settings,
    )
    model.compile("adam", LOSSES, metrics={"kind": ["accuracy"]})
    return model


def test_fit_evaluate_predict_and_save(any_backend, tmp_path):
    model = of_two()
    history = model.fit(X, Y, epochs=60, batch_size=8, validation_split=0.2, verbose=0)
    names = ["loss", "price_loss", "kind_loss", "kind_accuracy"]
    assert model.metrics_names == names
    assert list(history.history) == names + [f"val_{name}" for name in names]
    assert history.history["loss"][-1] < 0.5 * history.history["loss"][0]
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(logs["price_loss"] + logs["kind_loss"])
    found = model.predict(X, batch_size=16)
    assert {name: y.shape for name, y in found.items()} == {"kind": (50, 3), "price": (50, 1)}
    assert np.mean(found["kind"].argmax(axis=1) == Y["kind"]) == pytest.approx(logs["kind_accuracy"])
    np.testing.assert_allclose(found["kind"].sum(axis=1), 1, rtol=1e-5)  # its softmax is not lost in training
    model.save(tmp_path / "two.nnx")
    again = nnx.load(tmp_path / "two.nnx")
    assert again.evaluate(X, Y, verbose=0) == pytest.approx(list(logs.values()))
    assert {name: len(y) for name, y in model.predict({k: v[:0] for k, v in X.items()}).items()} == {
        "kind": 0,
        "price": 0,
    }


def test_the_same_curves_on_every_backend(any_backend):
    expected = of_two(backend="numpy").fit(X, Y, epochs=3, verbose=0).history
    found = of_two().fit(X, Y, epochs=3, verbose=0).history
    assert found == {name: pytest.approx(values, rel=1e-4) for name, values in expected.items()}


def test_tuples_of_inputs_and_outputs(any_backend):
    model = nnx.Sequential(
        [layers.Inputs([], layers.Dense(3)), layers.Outputs(layers.Dense(1), layers.Dense(2, "sigmoid"))],
        seed=0,
    )
    model.compile("adam", ["mse", "binary_crossentropy"], metrics=[["mae"], []])
    x = X["numbers"], RNG.standard_normal((50, 2))
    y = Y["price"], RNG.integers(0, 2, (50, 2))
    history = model.fit(x, y, epochs=2, verbose=0).history
    assert list(history) == ["loss", "output_0_loss", "output_1_loss", "output_0_mae"]
    assert [part.shape for part in model.predict(list(x))] == [(50, 1), (50, 2)]
    batches = [((x[0][:8], x[1][:8]), (y[0][:8], y[1][:8]))]
    assert model.fit(batches, verbose=0).history["loss"][0] > 0  # a stream of batches


def test_the_step_is_compiled(any_backend):
    if any_backend.name not in ("numpy", "cupy"):
        pytest.skip("only these trace their steps")
    model = of_two(backend=type(any_backend)())
    model.fit(X, Y, epochs=2, batch_size=10, verbose=0)
    assert [type(p) for p in StepRunner(model).steps.train.programs] == [CompiledStep]


def test_an_output_without_a_loss_is_not_trained():
    model = of_two()
    model.compile(nnx.optimizers.SGD(0.1), {"kind": LOSSES["kind"]})
    model.build({name: x.shape[1:] for name, x in X.items()})
    before = nnx.tree.map(model.backend.to_numpy, model.params)
    model.fit(X, Y, verbose=0)
    after = nnx.tree.map(model.backend.to_numpy, model.params)
    np.testing.assert_array_equal(after["outputs"]["price"]["kernel"], before["outputs"]["price"]["kernel"])
    assert np.any(after["outputs"]["kind"]["kernel"] != before["outputs"]["kind"]["kernel"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(dtype):
    if dtype not in nnx.get_backend().dtypes:
        pytest.skip(f"{nnx.get_backend().name} has no {dtype}")
    exact = of_two().fit(X, Y, epochs=2, verbose=0).history["loss"]
    assert of_two(dtype=dtype).fit(X, Y, epochs=2, verbose=0).history["loss"] == pytest.approx(
        exact, rel=0.02
    )


def fit(x=X, y=Y, model=None, **settings):
    (model or of_two()).fit(x, y, verbose=0, **settings)


def compiled(*arguments, network=None, **settings):
    model = nnx.Sequential(network or [layers.Outputs({"a": layers.Dense(1), "b": layers.Dense(2)})], seed=0)
    model.compile("adam", *arguments, **settings)
    return model


ONE = {"a": np.zeros((4, 1)), "b": np.zeros((4, 2))}
ERRORS = {
    "an array": (lambda: fit(X["numbers"]), r"dict of arrays with the names .numbers., .city., got \(batch, 4\)"),
    "another key": (lambda: fit({"numbers": X["numbers"], "town": X["city"]}), "the names 'numbers', 'city', got"),
    "uneven": (lambda: fit({**X, "city": X["city"][:9]}), r"X\['numbers'\] 50, X\['city'\] 9"),
    "a category": (lambda: fit({**X, "city": X["city"] + 9}), r"X\['city'\] has the value \d+ at row 0"),
    "a missing value": (lambda: fit({**X, "numbers": X["numbers"] * np.nan}), r"X\['numbers'\] has the value nan"),
    "a dict": (
        lambda: fit(X, Y["price"], compiled("mse", network=[layers.Dense(1, input_shape=(4,))])),
        "takes one array.*got a dict with the keys 'numbers', 'city'.*nnx.layers.Inputs",
    ),
    "no Inputs": (
        lambda: fit(X, Y["price"], compiled("mse", network=[layers.Dense(1)])),
        "layer 'dense': Dense takes one array, got .*nnx.layers.Inputs",
    ),
    "y alone": (lambda: fit(y=Y["price"]), "targets of each output that has a loss, 'price', 'kind', got ndarray"),
    "a label": (lambda: fit(y={**Y, "kind": Y["kind"] + 3}), "output 'kind': labels must be whole numbers"),
    "fewer targets": (lambda: fit(y={**Y, "price": Y["price"][:9]}), "X has 50 samples, y has 9"),
    "one loss": (lambda: fit(np.ones((4, 3)), ONE, compiled("mse")), r"several outputs.*loss=\{'a': ..., 'b': ...\}"),
    "two losses": (
        lambda: fit(np.ones((4, 3)), ONE, compiled({"a": "mse"}, network=[layers.Dense(1)])),
        "has one output.*losses for 'a': end it with nnx.layers.Outputs",
    ),
    "an unknown output": (
        lambda: fit(np.ones((4, 3)), ONE, compiled({"c": "mse"})),
        "unknown output 'c'.*Known: a, b",
    ),
    "a weight": (lambda: compiled({"a": "mse"}, {"c": 2.0}), "loss_weights: unknown output 'c'"),
    "weights of one": (lambda: compiled("mse", {"c": 2.0}), "loss_weights needs a loss for each output"),
    "metrics": (
        lambda: fit(np.ones((4, 3)), ONE, compiled({"a": "mse"}, metrics=["mae"])),
        "give metrics as lists by output",
    ),
    "a metric": (
        lambda: fit(np.ones((4, 3)), ONE, compiled({"a": "mse"}, metrics={"b": "mae"})),
        "output 'b' has no loss",
    ),
    "class weights": (lambda: fit(class_weight={0: 2.0}), "several outputs: use sample_weight"),
    "no branch": (lambda: layers.Outputs(), "Outputs needs at least one branch"),
    "a merge": (lambda: layers.Inputs([], merge="max"), "merge must be one of concat, add"),
    "no merge": (lambda: layers.Parallel([], merge=None), "for several outputs use Outputs"),
    "shapes": (
        lambda: layers.Inputs([], [], merge="add").out_shape(((3,), (4,))),
        r"needs outputs of equal shapes, got \(batch, 3\), \(batch, 4\)",
    ),
    "two of three": (lambda: layers.Inputs([], []).out_shape(((3,), (4,), (5,))), "Inputs expects a tuple of 2 arrays"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_error(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


TREES = {
    "inputs": (
        layers.Inputs({"a": layers.Dense(3), "b": [layers.Dense(2, "tanh"), layers.BatchNormalization()]}),
        {"a": (4,), "b": (2,)},
    ),
    "inputs, multiplied": (layers.Inputs(layers.Dense(3), layers.Dense(3), merge="multiply"), ((4,), (2,))),
    "inputs, apart": (layers.Inputs({"a": layers.Dense(3), "b": []}, merge=None), {"a": (4,), "b": (2,)}),
    "outputs": (layers.Outputs(layers.Dense(3), [layers.Dense(2, "tanh"), layers.BatchNormalization()]), (4,)),
    "both": (
        layers.Chain([
            layers.Inputs({"a": layers.Dense(3), "b": layers.Dense(3)}, merge=None),
            layers.Outputs([], layers.Inputs({"a": [], "b": []})),
        ]),
        {"a": (4,), "b": (2,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_pullbacks(name):
    check_layer(*TREES[name])


# Masks


def mask_behind(layer, x, mask):
    """Return the mask that a layer passes on, on the host."""
    backend = nnx.get_backend()
    model = nnx.Model(copy.deepcopy(layer), nnx.tree.map(lambda a: np.shape(a)[1:], x), seed=0)
    ctx = nnx.Context(
        backend, mask=nnx.tree.map(lambda m: None if m is None else backend.asarray(np.asarray(m)), mask)
    )
    model.apply(model.params, nnx.tree.map(lambda a: backend.asarray(np.asarray(a, np.float32)), x), ctx)
    return nnx.tree.map(lambda m: None if m is None else backend.to_numpy(m).tolist(), ctx.mask)


SEQUENCE, MASK = RNG.standard_normal((2, 3, 4)), [[True, False, True], [False, False, True]]


def test_masks_pass_through_what_keeps_time_steps(any_backend):
    inner = [layers.Dense(4, "relu"), layers.Dropout(0.1), layers.LayerNormalization(), layers.PReLU()]
    for layer in (
        *inner,
        layers.Chain(inner),
        layers.Residual(layers.Chain(inner)),
        layers.Parallel([], inner),
    ):
        assert mask_behind(layer, SEQUENCE, MASK) == MASK
    pair = layers.Inputs([], [])
    other = [[True, True, False], [False, True, True]]
    both = np.logical_and(MASK, other).tolist()
    assert mask_behind(pair, (SEQUENCE, SEQUENCE), (MASK, other)) == both
    assert mask_behind(pair, (SEQUENCE, SEQUENCE), (MASK, None)) == MASK
    apart = layers.Outputs(layers.Dense(2), layers.Dense(3))
    assert mask_behind(apart, SEQUENCE, MASK) == (MASK, MASK)


def test_a_mask_that_is_lost_is_told():
    with pytest.warns(UserWarning, match="Flatten does not pass the mask of its input on"):
        assert mask_behind(layers.Flatten(), SEQUENCE, MASK) is None


def test_a_padded_sequence_trains_as_without_its_padding(any_backend):
    def trained(ids):
        model = nnx.Sequential(
            [layers.Embedding(6, 4, mask_zero=True), layers.Dense(6, "softmax")], seed=0, dtype="float64"
        )
        model.compile(nnx.optimizers.SGD(0.5), "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(ids, ids, epochs=3, verbose=0)
        return model.get_weights(), history.history

    weights, history = trained(np.array([[1, 2, 3]]))
    padded_weights, padded_history = trained(np.array([[1, 2, 3, 0, 0]]))
    assert padded_history == {name: pytest.approx(values) for name, values in history.items()}
    for mine, padded in zip(weights, padded_weights, strict=True):
        np.testing.assert_allclose(padded, mine, rtol=1e-12, atol=1e-14)


def test_a_batch_of_nothing_but_padding_changes_nothing(any_backend):
    model = nnx.Sequential([layers.Embedding(6, 4, mask_zero=True), layers.Dense(2)], seed=0)
    model.compile(nnx.optimizers.SGD(0.5), "mse")
    model.build((3,))
    before = model.get_weights()
    assert model.train_on_batch(np.zeros((2, 3), int), np.ones((2, 3, 2))) == 0.0
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize("metric", ["mse", "r2_score", "auc", "precision", "f1_score", "binary_accuracy"])
def test_masked_metrics_are_those_of_what_counts(metric):
    target = RNG.integers(0, 2, (4, 3, 2)).astype(float)
    output = np.clip(target * 0.4 + 0.8 * RNG.random((4, 3, 2)), 0, 1)
    mask = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 0], [1, 1, 0]], bool)
    found = nnx.metrics.get(metric)
    ctx = nnx.Context("numpy")
    sums = found.update_masked(ctx, target, output, np.ones(4), mask)
    seen = found.update(ctx, target[:, :2], output[:, :2], np.ones(4))
    if metric == "r2_score":  # one score for each time step and output, the padded ones 0
        assert found.result(sums) * 3 / 2 == pytest.approx(found.result(seen))
    else:
        assert found.result(sums) == pytest.approx(found.result(seen))


def test_final_activations_are_taken_into_their_losses():
    head = StepRunner(of_two()).steps.head
    assert head["price"] is None
    assert isinstance(head["kind"], nnx.activations.Softmax)
