"""`nnx.compare`: backends that agree, faults planted in one and where they are found, the command."""

import re
import subprocess
import sys

import numpy as np
import pytest
from nnx.backends.numpy.backend import NumpyBackend

import nnx
from nnx import layers
from nnx.__main__ import main
from nnx.compare import CompareError, Difference, Failure, Place, compare, largest_difference
from nnx.compare.script import SourceError, load_source
from nnx.compare.trial import draw_batches, trial_model
from nnx.training.preparation import prepared

SCRIPT = """
import sys
import numpy as np
import nnx

def build():
    layers = [nnx.layers.Dense(5, "tanh", input_shape=(4,)), nnx.layers.Dropout(0.2), nnx.layers.Dense(3, "softmax")]
    model = nnx.Sequential(layers, seed=3)
    model.compile("adam", "sparse_categorical_crossentropy")
    return model

if __name__ == "__main__":
    print("arguments", *sys.argv[1:])
    X = np.random.default_rng(0).normal(size=(40, 4))
    try:
        build().fit(X, np.arange(40) % 3, batch_size=8, validation_split=0.25, class_weight={0: 2.0})
    except Exception:
        print("caught")
    print("trained")
"""


def small_model():
    model = nnx.Sequential(
        [
            layers.Dense(6, "relu", input_shape=(4,)),
            layers.Residual([layers.Dense(6, "tanh", name="inner")]),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(3, "softmax"),
        ],
        seed=1,
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(SCRIPT)
    return path


# Agreement


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_backends_agree_on_the_built_in_network(dtype):
    found = compare(trial_model, ["numpy", "jax", "array_api_strict"], steps=2, dtype=dtype)
    assert found.agree, str(found)
    assert found.first is None
    assert [pair.names for pair in found.pairs] == [("numpy", "jax"), ("numpy", "array_api_strict")]
    assert "numpy and jax agree within " in str(found)


def test_the_built_in_network_has_every_layer():
    def classes(layer):
        yield type(layer)
        for inner in layer.sublayers().values():
            yield from classes(inner)

    used = set(classes(trial_model().network))
    kinds = {getattr(layers, name) for name in layers.__all__} - {layers.Layer, layers.Input}
    assert {kind for kind in kinds if not issubclass(kind, layers.Activation)} <= used | {layers.Activation}
    activations = {layer.activation for layer in trial_model().get_layer("parallel_1").branches}
    assert {type(a).__name__ for a in activations} == {
        type(nnx.activations.get(name)).__name__ for name in nnx.registry.REGISTRIES["activation"].names()
    }


def test_every_layer_is_compared():
    (pair,) = compare(small_model, ["numpy", "array_api_strict"], steps=2).pairs
    places = [difference.place for difference in pair.differences]
    for layer in (
        "dense",
        "residual/chain/inner",
        "residual",
        "batch_normalization",
        "dropout",
        "dense_1",
        "loss",
    ):
        assert Place(2, "forward", layer, "output") in places
        assert layer == "dense" or Place(2, "backward", layer, "dL/dinput") in places
    for layer in ("dense", "residual/chain/inner", "batch_normalization", "dense_1"):
        for stage, what in (
            ("backward", "dL/dweights"),
            ("compiled backward", "gradient with penalties"),
            ("update", "weights"),
            ("update", "mean_square"),
        ):
            assert Place(1, stage, layer, what) in places
    assert Place(1, "forward", "batch_normalization", "state") in places
    assert Place(2, "fit", "", "loss") in places


def test_the_model_is_left_as_it_is():
    model = small_model()
    before = model.get_weights()
    compare(model, ["numpy", "array_api_strict"], steps=1)
    compare(model, ["numpy", "array_api_strict"], steps=1, dtype="float64")
    assert model.step == 0
    assert model.dtype == "float32"
    assert model.backend.name == "numpy"
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "forward" not in vars(model.layers[0])


def test_the_losses_are_those_of_fit():
    batches = draw_batches(small_model(), 3, 16)
    (pair,) = compare(small_model, ["numpy", "array_api_strict"], batches).pairs
    model = small_model()
    expected = [
        model.fit(*batch, batch_size=16, shuffle=False, verbose=0).history["loss"][0] for batch in batches
    ]
    assert [mine for mine, _ in pair.losses] == expected
    assert len(set(expected)) == 3


def test_the_traced_steps_are_those_of_fit():
    """The eager trace follows the same weights as `fit`: its losses are those of the fit."""
    from nnx.compare.trace import Tracer

    model = small_model()
    batches = [prepared(model, *batch, None) for batch in draw_batches(model, 3, 16)]
    tracer = Tracer(model, nnx.as_backend("numpy"))
    for step, batch in enumerate(batches, 1):
        traced = dict(tracer.trace(step, tracer.carry, batch))
        loss, weights = tracer.fit(step, batch)
        assert float(traced[Place(step, "forward", "loss", "mean with penalties")][""]) == pytest.approx(
            loss, rel=1e-6
        )
        for place, arrays in weights.items():
            for name, array in arrays.items():
                same = traced[Place(step, "update", place.layer, "weights")][name]
                np.testing.assert_allclose(array, same, rtol=1e-6)


def test_a_layer_used_twice_in_a_pass_is_compared_twice():
    class Twice(layers.Residual):
        def forward(self, ctx, params, x):
            y, first = super().forward(ctx, params, x)
            z, second = super().forward(ctx, params, y)

            def pullback(dz):
                dy, grads = second(dz)
                dx, more = first(dy)
                return dx, nnx.tree.map(lambda a, b: a + b, grads, more)

            return z, pullback

    model = nnx.Sequential([layers.Dense(3, input_shape=(4,)), Twice(layers.Dense(3))], seed=0)
    model.compile("sgd", "mse")
    (pair,) = compare(model, ["numpy", "array_api_strict"], steps=1).pairs
    places = [difference.place for difference in pair.differences]
    assert Place(1, "forward", "twice/dense", "output #2") in places
    assert Place(1, "backward", "twice/dense", "dL/dinput #2") in places
    assert pair.agree


def test_a_layer_is_compared_where_its_pullback_can_be_derived():
    class Swing(layers.Layer):
        def forward(self, ctx, params, x):
            return x + ctx.xp.sum(ctx.xp.linalg.svdvals(x))

    model = nnx.Sequential([layers.Dense(3, input_shape=(4,)), Swing(), layers.Dense(1)], seed=0)
    model.compile("sgd", "mse")
    with pytest.raises(
        CompareError,
        match=r"step 1, backward, layer swing: numpy raises GraphError: no derivative is known of linalg.svdvals",
    ):
        compare(model, ["numpy", "jax"])
    found = compare(model, ["jax", "numpy"], steps=1)
    assert found.first == Failure(Place(1, "backward", "swing"), found.first.error)
    assert "jax and numpy first part at step 1, backward, layer swing: numpy raises GraphError" in " ".join(
        str(found).split()
    )


def test_the_inside_of_a_layer_without_a_pullback_is_not_compared_while_it_is_derived():
    class Around(layers.Residual):
        def forward(self, ctx, params, x):
            return super().forward(ctx, params, x)[0]

    class Again(type(nnx.as_backend("jax"))):
        name = "again"

    model = nnx.Sequential([layers.Dense(3, input_shape=(4,)), Around(layers.Dense(3))], seed=0)
    model.compile("sgd", "mse")
    (pair,) = compare(model, ["jax", Again()], steps=1).pairs
    places = [difference.place for difference in pair.differences]
    assert pair.agree
    assert Place(1, "forward", "around/dense", "output") in places
    assert Place(1, "backward", "around", "dL/dinput") in places


def test_dtype_is_that_of_the_model_or_as_asked():
    (single,), (double,) = (
        compare(small_model, ["numpy", "array_api_strict"], steps=1, dtype=dtype).pairs
        for dtype in (None, "float64")
    )
    assert (single.tolerance, double.tolerance) == (1e-4, 1e-12)
    assert single.losses[0][0] == float(np.float32(single.losses[0][0])) != double.losses[0][0]
    assert single.losses[0][0] == pytest.approx(double.losses[0][0], rel=1e-6)


def test_the_tables_fit_80_columns():
    inner = [layers.Dense(4, name="the_layer_with_the_long_name"), layers.Dense(4, "relu", name="after_it")]
    for name in ("of_all", "those", "around"):
        inner = [layers.Residual(inner, name=f"the_residual_connection_{name}")]
    model = nnx.Sequential([layers.Input((4,)), *inner], seed=0)
    model.compile("sgd", "mse")
    lines = str(compare(model, ["numpy", "array_api_strict"], steps=1)).splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("...") and "the_layer_with_the_long_name " in line for line in lines)


# Planted faults


class FaultyBackend(NumpyBackend):
    """NumPy under another name, with a fault: the test says which."""

    name = "faulty"

    def __init__(self):
        super().__init__()
        self.xp = type(self.xp)("faulty")
        vars(self.xp).update(vars(NumpyBackend.xp))

    def __deepcopy__(self, memo):
        return self


@pytest.fixture
def faulty():
    return FaultyBackend()


def first_part(faulty, model=small_model, **settings):
    found = compare(model, ["numpy", faulty], **settings)
    assert not found.agree
    return found.first


def test_a_fault_in_a_function_is_found_in_the_output_of_its_layer(faulty):
    faulty.xp.tanh = lambda x: np.tanh(x) * 1.01
    first = first_part(faulty)
    assert first.place == Place(1, "forward", "residual/chain/inner", "output")
    assert first.relative == pytest.approx(0.01, rel=0.02)
    mine, theirs = first.values
    assert theirs == pytest.approx(1.01 * mine, rel=1e-5)


def test_a_fault_in_a_backward_pass_is_found_in_the_gradient_of_its_layer(faulty):
    kernel = faulty.kernel

    def off(function, *arrays, overwrite=None):
        result = kernel(function, *arrays, overwrite=overwrite)
        wrong = getattr(function, "__qualname__", "") == "Tanh.gradient"
        return result * np.float32(1.001) if wrong else result

    faulty.kernel = off
    (pair,) = compare(small_model, ["numpy", faulty]).pairs
    assert pair.first.place == Place(1, "backward", "residual/chain/inner", "dL/dweights")
    assert pair.first.relative == pytest.approx(0.001, rel=0.02)
    # The optimizer was given the right gradients.
    assert max(d.relative for d in pair.differences if d.place.stage == "update") == 0


def test_a_wrong_product_of_the_backward_pass_is_found(faulty):
    """Only the product of the gradient with a kernel of 3 outputs is wrong: dL/dinput of dense_1."""

    def matmul(a, b):
        return np.matmul(a, b) * np.float32(1.01 if b.shape == (3, 6) else 1)

    faulty.xp.matmul = matmul
    assert first_part(faulty).place == Place(1, "backward", "dense_1", "dL/dinput")


def test_a_fault_in_the_loss_is_found(faulty):
    faulty.xp.log = lambda x: np.log(x) * 1.01
    assert first_part(faulty).place == Place(1, "forward", "loss", "output")


def test_a_fault_in_the_moving_averages_is_found(faulty):
    reshape = faulty.xp.reshape

    def off(x, shape):
        is_average = x.shape == (1, 6) and shape == (6,)
        return reshape(x, shape) * np.float32(1.5) if is_average else reshape(x, shape)

    faulty.xp.reshape = off
    assert first_part(faulty).place == Place(1, "forward", "batch_normalization", "state")


def test_a_fault_in_the_optimizer_is_found(faulty):
    run = faulty.map

    def off(function, *trees, **options):
        results = run(function, *trees, **options)
        if options.get("scalars"):  # of the optimizer
            results[0]["dense_1"]["bias"][...] += 0.01
        return results

    faulty.map = off
    first = first_part(faulty)
    assert first.place == Place(1, "update", "dense_1", "weights")
    assert first.name == "bias"


def test_a_fault_of_the_compiled_step_alone_is_found(faulty):
    def compiled(function, consume=False):
        def run(*arguments):
            tanh, faulty.xp.tanh = faulty.xp.tanh, lambda x: np.tanh(x) * 1.01
            try:
                return function(*arguments)
            finally:
                faulty.xp.tanh = tanh

        return run

    faulty.compile = compiled
    first = first_part(faulty, tolerance=1e-5)
    assert first.place == Place(1, "compiled forward", "batch_normalization", "state")


def test_a_fault_of_fit_alone_is_found(faulty):
    repeat = faulty.repeat

    def off(step):
        run = repeat(step)

        def later(carry, totals, rows, data, start, stop):
            carry, totals = run(carry, totals, rows, data, start, stop)
            return carry, nnx.tree.map(lambda total: total * 1.01, totals)

        return later

    faulty.repeat = off
    assert first_part(faulty).place == Place(1, "fit", "", "loss")


def test_a_fault_that_shows_at_a_later_step_is_found_there(faulty):
    calls = []

    def tanh(x):
        calls.append(x)
        return np.tanh(x) * (1.01 if len(calls) > 3 else 1)  # eager, compiled, fit: once each a step

    faulty.xp.tanh = tanh
    assert first_part(faulty).place == Place(2, "forward", "residual/chain/inner", "output")


def test_a_fault_does_not_spread_to_later_steps(faulty):
    """Each step starts from the reference's weights: only the update is off, at every step by as much."""
    run = faulty.map

    def off(function, *trees, **options):
        results = run(function, *trees, **options)
        if options.get("scalars"):  # of the optimizer
            results[0]["dense"]["bias"][...] += 1e-3
        return results

    faulty.map = off
    (pair,) = compare(small_model, ["numpy", faulty]).pairs
    beyond = {d.place for d in pair.differences if d.relative > pair.tolerance and d.place.stage != "fit"}
    assert beyond == {Place(step, "update", "dense", "weights") for step in (1, 2, 3)}


def test_a_value_that_is_not_finite_on_one_backend_is_found(faulty):
    faulty.xp.tanh = lambda x: np.where(x == x.max(), np.nan, np.tanh(x))
    first = first_part(faulty)
    assert first.place == Place(1, "forward", "residual/chain/inner", "output")
    assert first.relative == np.inf


def test_values_that_are_not_finite_on_the_reference_are_mentioned():
    model = small_model()
    model.set_weights([w * np.inf if w.ndim == 2 else w for w in model.get_weights()])
    text = " ".join(str(compare(model, ["numpy", "array_api_strict"], steps=1)).split())
    assert (
        "numpy, the reference, has a value that is not finite: step 1, forward, layer dense, output" in text
    )


def test_an_error_on_one_backend_is_a_part(faulty):
    def tanh(x):
        raise NotImplementedError("no tanh here\nsecond line")

    faulty.xp.tanh = tanh
    found = compare(small_model, ["numpy", faulty, "array_api_strict"])
    assert found.first == Failure(
        Place(1, "forward", "residual/chain/inner"), "NotImplementedError: no tanh here"
    )
    assert [pair.agree for pair in found.pairs] == [False, True]
    assert (
        "numpy and faulty first part at step 1, forward, layer residual/chain/inner: faulty raises"
        in " ".join(str(found).split())
    )


def test_an_error_on_the_reference_ends_the_comparison(faulty):
    faulty.xp.matmul = None
    with pytest.raises(CompareError, match="step 1, forward, layer dense: faulty raises TypeError"):
        compare(small_model, [faulty, "numpy"])


def test_tolerance_decides(faulty):
    faulty.xp.tanh = lambda x: np.tanh(x) * 1.01
    assert compare(small_model, ["numpy", faulty], steps=1, tolerance=0.1).agree
    assert not compare(small_model, ["numpy", faulty], steps=1, tolerance=0.001).agree


# Differences


def test_the_text_names_place_index_and_values():
    a = np.zeros((8, 20))
    a[0, 0], a[5, 17] = 1.0, 0.1312
    b = a.copy()
    b[5, 17] = 0.0998
    found = largest_difference(Place(2, "forward", "dense_1", "output"), {"": a}, {"": b})
    assert found.describe(("numpy", "cupy")) == (
        "step 2, forward, layer dense_1, output: largest difference 3.1e-02 at index (5, 17): numpy 0.1312, cupy 0.0998"
    )


def test_values_are_shown_with_as_many_digits_as_tell_them_apart():
    difference = Difference(Place(1, "fit", "", "loss"), 1e-7, values=(1.00000001, 1.00000002))
    assert difference.describe(("a", "b")).endswith("a 1.00000001, b 1.00000002")


def test_a_layers_weights_have_one_scale():
    """The gradient of a bias that does nothing is rounding: 1e-9 beside a kernel's of 1."""
    ours = {"kernel": np.array([1.0]), "bias": np.array([1e-9])}
    theirs = {"kernel": np.array([1.0]), "bias": np.array([-1e-9])}
    assert largest_difference(Place(1, "backward"), ours, theirs).relative == pytest.approx(2e-9)


@pytest.mark.parametrize(
    ("a", "b", "relative"),
    [
        ([np.nan, np.inf, 1.0], [np.nan, np.inf, 1.0], 0.0),
        ([np.nan, 1.0], [2.0, 1.0], np.inf),
        ([np.inf, 1.0], [-np.inf, 1.0], np.inf),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0], [1e-30], 1.0),
        ([1.0], [1.0, 2.0], np.inf),
    ],
)
def test_what_is_not_finite_or_zero_or_of_another_shape(a, b, relative):
    found = largest_difference(Place(1, "forward"), {"": np.array(a)}, {"": np.array(b)})
    assert found.relative == relative


@pytest.mark.parametrize("loss", nnx.registry.REGISTRIES["loss"].names())
def test_targets_are_drawn_for_every_loss(loss):
    real = ("mean_squared_error", "mean_absolute_error", "log_cosh", "huber", "poisson", "quantile")
    for units, activation in ((1, "sigmoid"), (4, "softmax")):
        if loss in real or "hinge" in loss:
            activation = "tanh" if "hinge" in loss else "softplus"
        model = nnx.Sequential([layers.Dense(units, activation, input_shape=(5,))], seed=0)
        model.compile("sgd", loss)
        ((x, y),) = draw_batches(model, 1, 64)
        assert np.isfinite(model.train_on_batch(x, y))
        if units == 4 or "categorical" not in loss:
            assert len(np.unique(y)) > 1
        assert (len(np.unique(y)) > 4) == (loss in real)


def test_a_loss_that_takes_no_drawn_targets_is_refused():
    class Picky(nnx.losses.MeanSquaredError):
        def check_target(self, y, out_shape):
            raise ValueError("not these")

    model = nnx.Sequential([layers.Dense(1, input_shape=(2,))], seed=0)
    model.compile("sgd", Picky())
    with pytest.raises(ValueError, match=r"class numbers as targets.*not these"):
        compare(model, ["numpy", "array_api_strict"])


# Mistakes


def test_mistakes_are_named():
    model = nnx.Sequential([layers.Dense(1, input_shape=(2,))], seed=0)
    with pytest.raises(nnx.NotReadyError, match=r"not compiled.*model.compile"):
        compare(model, ["numpy", "jax"])
    with pytest.raises(ValueError, match="two or more different backends, got numpy"):
        compare(small_model, ["numpy"])
    with pytest.raises(ValueError, match="two or more different backends, got numpy, numpy"):
        compare(small_model, ["numpy", "numpy"])
    with pytest.raises(TypeError, match="expected a compiled model or a function that returns one, got 3"):
        compare(3, ["numpy", "array_api_strict"])
    with pytest.raises(ValueError, match=r"dtype must be one of .*float64, got 'int8'"):
        compare(small_model, ["numpy", "array_api_strict"], dtype="int8")
    with pytest.raises(ValueError, match="the model expects X of shape"):
        compare(small_model, ["numpy", "array_api_strict"], [(np.ones((2, 9)), [0, 1])])
    unbuilt = nnx.Sequential([layers.Dense(1)], seed=0)
    unbuilt.compile("sgd", "mse")
    with pytest.raises(nnx.NotReadyError, match="input is not known"):
        compare(unbuilt, ["numpy", "array_api_strict"])


# What the command line names


def test_a_script_is_run_up_to_its_first_fit(script, capsys):
    model, batches = load_source(str(script), ["--fast"], steps=3)
    captured = capsys.readouterr()
    assert captured.err == "arguments --fast\n"
    assert captured.out == ""
    assert sys.argv[0] != str(script)
    assert [len(x) for x, _, _ in batches] == [8, 8, 8]
    # They are the batches that fit would have taken: shuffled, without those to validate on, weighted.
    X, y = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32), np.arange(40) % 3
    order = np.arange(30)
    nnx.random.generator(3, nnx.random.SHUFFLE, 0).shuffle(order)
    for i, (x, labels, weight) in enumerate(batches):
        index = order[8 * i : 8 * i + 8]
        np.testing.assert_array_equal(x, X[index])
        np.testing.assert_array_equal(labels, y[index])
        np.testing.assert_array_equal(weight, np.where(y[index] == 0, 2.0, 1.0))
    assert model.seed == 3
    assert compare(model, ["numpy", "array_api_strict"], batches).agree


def test_a_script_with_fewer_batches_than_steps_goes_round(script):
    _, batches = load_source(str(script), steps=5, batch_size=25)
    assert [len(x) for x, _, _ in batches] == [25, 5, 25, 5, 25]


def test_fit_is_itself_again_after_a_script(script):
    load_source(str(script))
    model = small_model()
    assert len(model.fit(np.ones((4, 4)), [0, 1, 2, 0], verbose=0).history["loss"]) == 1


def test_a_script_that_fits_a_stream(tmp_path):
    path = tmp_path / "stream.py"
    path.write_text(
        "import nnx, numpy as np\n"
        "model = nnx.Sequential([nnx.layers.Dense(1)], seed=0)\n"
        "model.compile('sgd', 'mse')\n"
        "model.fit(((np.ones((i + 1, 2)), np.ones(i + 1)) for i in range(9)), steps_per_epoch=9)\n"
    )
    model, batches = load_source(str(path), steps=2)
    assert [len(x) for x, _, _ in batches] == [1, 2]
    assert compare(model, ["numpy", "array_api_strict"], batches).agree


def test_a_function_of_a_file(script):
    model, batches = load_source(f"{script}:build")
    assert batches is None
    assert model.loss is not None


@pytest.mark.parametrize(
    ("content", "source", "message"),
    [
        (None, "net.py", "there is no file net.py"),
        (None, "net.py:build", "there is no file net.py"),
        (None, "net.nnx", "there is no file net.nnx: expected a saved model, script.py or file.py:function"),
        ("x = 1", "net.py", "net.py ran to its end without calling fit"),
        ("def make(): pass", "net.py:build", "net.py has no function 'build': it has make"),
        ("x = 1\nx / 0", "net.py", "net.py, line 2: ZeroDivisionError: division by zero"),
        ("def build():\n    return 1 / 0", "net.py:build", "net.py, line 2: ZeroDivisionError"),
        ("import sys; sys.exit(3)", "net.py", "net.py exited with code 3 before it called fit"),
        ("x = (", "net.py", "net.py: SyntaxError"),
        ("rubbish", "net.nnx", "net.nnx is not a whole safetensors file"),
    ],
)
def test_a_source_that_gives_no_model(content, source, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / source.split(":")[0]).write_text(content)
    with pytest.raises(SourceError, match=re.escape(message)):
        load_source(source)


def test_arguments_are_for_scripts():
    with pytest.raises(SourceError, match=r"arguments after -- are for a script, and net\.nnx is none"):
        load_source("net.nnx", ["--fast"])


# The command


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "nnx", "compare", *arguments], capture_output=True, text=True
    )


def test_the_command_on_a_script(script):
    result = command("--backends", "numpy,jax", str(script), "--steps", "2", "--", "--epochs", "9")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("numpy and jax: 2 steps of 8 samples in float32\n")
    assert result.stdout.endswith("\nnumpy and jax agree within 0.0001 over 2 steps.\n")
    assert result.stderr == "arguments --epochs 9\n"
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_the_command_on_a_saved_model(tmp_path, capsys):
    small_model().save(tmp_path / "net.nnx")
    assert (
        main(["compare", "--backends", "numpy,array_api_strict", str(tmp_path / "net.nnx"), "--steps", "1"])
        == 0
    )
    assert "numpy and array_api_strict agree within 0.0001 over 1 step." in capsys.readouterr().out


@pytest.fixture
def faulty_installed(faulty, monkeypatch):
    as_backend = nnx.as_backend
    faulty.xp.tanh = lambda x: np.tanh(x) * 1.01
    monkeypatch.setattr(nnx, "as_backend", lambda name: faulty if name == "faulty" else as_backend(name))


def test_the_command_ends_with_1_where_backends_part(faulty_installed, script, capsys):
    assert main(["compare", "--backends", "numpy,faulty", f"{script}:build"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert re.search(r"dense 9\.\de-03 !", out)
    assert (
        "numpy and faulty first part at step 1, forward, layer dense, output: largest difference 9.9e-03"
        in out
    )
    assert out.endswith(
        "In float64 (--dtype float64) rounding is far smaller: what is left there is a fault."
    )
    assert main(["compare", "--backends", "numpy,faulty", f"{script}:build", "--dtype", "float64"]) == 1
    assert "--dtype float64" not in capsys.readouterr().out
    assert main(["compare", "--backends", "numpy,faulty", f"{script}:build", "--tolerance", "1"]) == 0


@pytest.fixture
def unusable(monkeypatch):
    """A backend, `cupy`, that cannot run here."""
    as_backend = nnx.as_backend

    def without_cupy(name):
        if name == "cupy":
            raise nnx.BackendError("no GPU")
        return as_backend(name)

    infos = {**nnx.available_backends(), "cupy": nnx.BackendInfo("cupy", False, reason="no GPU\nhere")}
    monkeypatch.setattr(nnx, "as_backend", without_cupy)
    monkeypatch.setattr(nnx, "available_backends", lambda: infos)


def test_a_backend_that_cannot_run_is_named_and_left_out(unusable, script, capsys):
    assert main(["compare", "--backends", "numpy,cupy,array_api_strict", str(script), "--steps", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("cupy cannot run here: no GPU here\n")
    assert captured.out.startswith("numpy and array_api_strict: 1 step")


def refused(capsys, *arguments):
    """Return the one line with which the command refuses its arguments, after those about backends."""
    with pytest.raises(SystemExit) as caught:
        main(["compare", *arguments])
    assert caught.value.code == 2
    *lines, last = capsys.readouterr().err.splitlines()
    assert last.startswith("python -m nnx compare: error: ")
    return [*lines, last.removeprefix("python -m nnx compare: error: ")]


def test_one_backend_is_refused(unusable, capsys):
    assert refused(capsys, "--backends", "cupy,numpy") == [
        "cupy cannot run here: no GPU here",
        "two backends that can run here are needed, got numpy: see python -m nnx info",
    ]
    assert refused(capsys, "--backends", "numpy") == [
        "two backends that can run here are needed, got numpy: see python -m nnx info"
    ]
    assert refused(capsys, "--backends", "numpy,numpy")[-1].startswith("two backends")


def test_an_unknown_backend_is_refused(capsys):
    (error,) = refused(capsys, "--backends", "numpy,numpi")
    assert error.startswith("unknown backend 'numpi': did you mean 'numpy'? Known: ")


def test_a_bad_file_is_refused(capsys, tmp_path):
    path = tmp_path / "net.nnx"
    assert refused(capsys, "--backends", "numpy,array_api_strict", str(path)) == [
        f"there is no file {path}: expected a saved model, script.py or file.py:function"
    ]
    path.write_bytes(b"rubbish")
    (error,) = refused(capsys, "--backends", "numpy,array_api_strict", str(path))
    assert "is not a whole safetensors file" in error


def test_a_model_without_loss_is_refused(capsys, tmp_path):
    nnx.Sequential([layers.Dense(1, input_shape=(2,))], seed=0).save(tmp_path / "net.nnx")
    (error,) = refused(capsys, "--backends", "numpy,array_api_strict", str(tmp_path / "net.nnx"))
    assert error == "the model is not compiled, so it has no gradient: call model.compile(loss=...)"


def test_the_seed_decides_about_models_without_one(tmp_path, capsys):
    path = tmp_path / "net.py"
    path.write_text(SCRIPT.replace(", seed=3", ""))

    def text(seed):
        main(
            [
                "compare",
                "--backends",
                "numpy,array_api_strict",
                f"{path}:build",
                "--steps",
                "1",
                "--seed",
                seed,
            ]
        )
        return capsys.readouterr().out

    assert text("1") == text("1") != text("2")
