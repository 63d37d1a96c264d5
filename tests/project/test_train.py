"""train.py: every option, the files it writes, what it prints where, mistakes, and Ctrl-C."""

import csv
import fcntl
import importlib.util
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios

import numpy as np
import pytest
from paths import ROOT

import nnx
from nnx import datasets

SCRIPT = ROOT / "train.py"
SHORT = ["--data", "iris", "--epochs", "2", "--hidden", "8"]


@pytest.fixture(scope="module")
def train():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("train_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(train, tmp_path, capsys):
    """Return a function that runs the script in this process and returns its folder and output."""

    def run_with(*options, out="run"):
        assert train.main([*map(str, options), "--out", str(tmp_path / out)]) == 0
        return tmp_path / out, capsys.readouterr().out

    return run_with


def read_json(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# What it writes


def test_a_run_keeps_everything(run):
    folder, output = run(*SHORT)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "confusion_matrix.png", "history.csv", "learning_curves.png", "metrics.json",
        "model.nnx", "state.nnx", "weights.safetensors",
    ]  # fmt: skip
    config, found = read_json(folder / "config.json"), read_json(folder / "metrics.json")
    assert config["options"]["epochs"] == 2
    assert config["backend"]["name"] == "numpy"
    assert config["versions"]["numpy"] == np.__version__
    assert config["data"]["classes"] == ["setosa", "versicolor", "virginica"]
    assert (found["epochs"], found["interrupted"]) == (2, False)
    assert set(found["test"]) == {"accuracy", "precision", "recall", "f1", "auc", "confusion_matrix"}
    assert np.sum(found["test"]["confusion_matrix"]) == 30
    rows = list(csv.DictReader((folder / "history.csv").read_text().splitlines()))
    assert list(rows[0]) == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert len(rows) == 2
    for name in ("learning_curves.png", "confusion_matrix.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    for text in (
        "backend   numpy",
        "data      iris: classification, 4 features, 3 classes",
        "samples   98 to train on, 22 to validate, 30 to test",
        "network   4-8-3, relu, 67 parameters",
        "trained   2 epochs",
        f"accuracy  {found['test']['accuracy']:10.4f}",
        f"results   {folder}",
    ):
        assert text in output


def test_the_saved_model_gives_the_tested_predictions(run, train):
    folder, _ = run(*SHORT, "--seed", 5)
    parts = datasets.split(datasets.load("iris"), seed=5)
    model = nnx.load(folder / "model.nnx")
    report = nnx.metrics.classification_metrics(parts.test[1], model.predict(parts.test[0]))
    kept = read_json(folder / "metrics.json")["test"]
    assert report["auc"] == kept["auc"]
    assert report["confusion_matrix"].tolist() == kept["confusion_matrix"]

    bare = nnx.Sequential([nnx.layers.Dense(8, "relu", input_shape=(4,)), nnx.layers.Dense(3, "softmax")])
    bare.load_weights(folder / "weights.safetensors")
    np.testing.assert_array_equal(bare.predict(parts.test[0]), model.predict(parts.test[0]))


def test_config_has_what_prepares_new_samples(run):
    folder, _ = run("--data", "diabetes", "--epochs", 2)
    data = datasets.load("diabetes")
    scaling = read_json(folder / "config.json")["standardised"]
    X = (data.X - scaling["features"]["mean"]) / scaling["features"]["scale"]
    predicted = nnx.load(folder / "model.nnx").predict(X)[:, 0]
    predicted = predicted * scaling["target"]["scale"] + scaling["target"]["mean"]
    parts = datasets.split(data, seed=0)
    tested = np.isin(data.y, parts.target.undo(parts.test[1]).round())
    assert np.corrcoef(predicted[tested], data.y[tested])[0, 1] > 0.5


def test_default_folder_is_named_by_data_and_time(train, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train.main(SHORT)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("iris-20")


def test_a_used_folder_has_the_results_of_the_last_run_alone(run):
    folder, _ = run(*SHORT)
    (folder / "notes.txt").write_text("mine")
    (folder / "checkpoints").mkdir()
    (folder / "history.csv").unlink()
    _, output = run("--data", "diabetes", "--epochs", 1)
    files = {path.name for path in folder.iterdir()}
    assert {"notes.txt", "checkpoints", "predicted_against_true.png", "history.csv"} <= files
    assert "confusion_matrix.png" not in files
    assert (folder / "notes.txt").read_text() == "mine"
    assert "notes.txt" not in output  # which is no result
    assert read_json(folder / "config.json")["data"]["name"] == "diabetes"


def test_a_run_that_ends_early_leaves_nothing_of_an_earlier_one(run, train, monkeypatch):
    """Its metrics and weights would be taken for the new run's."""
    folder, _ = run(*SHORT)

    def fails(*_):
        raise RuntimeError("the power fails")

    monkeypatch.setattr(train, "fit", fails)
    with pytest.raises(RuntimeError, match="the power fails"):
        train.main([*SHORT, "--out", str(folder)])
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_mistake_removes_nothing(run, train):
    folder, _ = run(*SHORT)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(SystemExit):
        train.main(["--data", "digts", "--out", str(folder)])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("config", [None, "{}", '{"options": 1}', "[]", "name = 1"])
def test_files_of_others_are_not_replaced(train, tmp_path, capsys, config):
    (tmp_path / "model.nnx").write_text("of somebody else")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(SystemExit) as caught:
        train.main([*SHORT, "--out", str(tmp_path)])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "model.nnx, which no run of train.py has left there" in error
    assert error.count("\n") == 1
    assert (tmp_path / "model.nnx").read_text() == "of somebody else"


def test_same_seed_same_result(run):
    first, again, other = (run(*SHORT, "--dropout", 0.5, "--seed", seed, out=out)[0]
                           for seed, out in ((1, "a"), (1, "b"), (2, "c")))  # fmt: skip
    assert (first / "history.csv").read_text() == (again / "history.csv").read_text()
    mine, same = (nnx.load(folder / "model.nnx").get_weights() for folder in (first, again))
    assert all((a == b).all() for a, b in zip(mine, same, strict=True))
    assert (first / "history.csv").read_text() != (other / "history.csv").read_text()


def test_without_matplotlib_it_says_so_and_goes_on(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder, output = run(*SHORT)
    assert "no plots: matplotlib cannot be imported" in output
    assert (folder / "metrics.json").exists()
    assert not list(folder.glob("*.png"))


# Data


def test_regression_reports_in_the_units_of_the_target(run):
    folder, output = run("--data", "diabetes", "--hidden", 16, "--epochs", 40)
    found = read_json(folder / "metrics.json")["test"]
    assert set(found) == {"mse", "rmse", "mae", "r2"}
    assert 30 < found["mae"] < 70
    assert found["r2"] > 0.25
    assert (folder / "predicted_against_true.png").exists()
    assert "data      diabetes: regression, 10 features\n" in output


@pytest.mark.parametrize("name", ["digits", "wine", "breast_cancer", "xor", "moons"])
def test_named_data(run, name):
    folder, _ = run("--data", name, "--epochs", 2, "--hidden", 16)
    assert read_json(folder / "config.json")["data"]["name"] == name


def test_csv_files(run, tmp_path):
    rng = np.random.default_rng(0)
    rows = [(x, rng.choice(["old", "new"])) for x in rng.normal(size=120)]
    table = "x,state,price,kind\n" + "".join(
        f"{x:.3f},{state},{100 * x + (50 if state == 'new' else 0):.2f},{'big' if x > 0 else 'small'}\n"
        for x, state in rows
    )
    path = tmp_path / "houses.csv"
    path.write_text(table)
    folder, output = run("--data", path, "--target", "price", "--epochs", 60, "--dropout", 0)
    assert "houses: regression, 5 features\n" in output
    assert read_json(folder / "metrics.json")["test"]["r2"] > 0.9
    folder, output = run("--data", path, "--epochs", 20)
    assert "houses: classification, 4 features, 2 classes" in output
    assert read_json(folder / "metrics.json")["test"]["accuracy"] > 0.9
    path.write_text("x,y\n" + "".join(f"{i},{i % 3}\n" for i in range(30)))
    assert "regression" in run("--data", path, "--task", "regression", "--epochs", 1)[1]


def test_mnist_files(run, tmp_path):
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        header = bytes([0, 0, 8, 3]) + struct.pack(">3I", count, 3, 3)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(header + rng.bytes(count * 9))
        labels = bytes(i % 10 for i in range(count))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + struct.pack(">I", count) + labels
        )
    _, output = run("--data-dir", tmp_path, "--epochs", 1)
    assert "classification, 9 features, 10 classes" in output
    assert "samples   51 to train on, 9 to validate, 20 to test" in output


# Options


def test_options_reach_the_network(run):
    folder, _ = run(
        *("--data", "wine", "--hidden", 7, 5, "--activation", "tanh", "--dropout", 0.25, "--batch-norm"),
        *("--optimizer", "sgd", "--lr", 0.05, "--l2", 0.01, "--epochs", 3, "--batch-size", 16),
        *("--dtype", "float64", "--seed", 4),
    )
    model = nnx.load(folder / "model.nnx")
    Dense, Norm, Dropout = nnx.layers.Dense, nnx.layers.BatchNormalization, nnx.layers.Dropout
    assert [type(layer) for layer in model.layers] == [Dense, Norm, Dropout, Dense, Norm, Dropout, Dense]
    assert [layer.units for layer in model.layers if isinstance(layer, Dense)] == [7, 5, 3]
    assert type(model.layers[0].activation).__name__ == "Tanh"
    assert model.layers[0].kernel_regularizer.get_config()["l2"] == 0.01
    assert model.layers[2].rate == 0.25
    assert (type(model.optimizer).__name__, model.optimizer.learning_rate) == ("SGD", 0.05)
    assert (model.dtype, model.seed, model.step) == ("float64", 4, 3 * 8)  # 116 samples: 8 batches


def test_no_hidden_layer_no_dropout_no_penalty(run):
    folder, output = run("--data", "iris", "--epochs", 1, "--hidden", "--dropout", 0, "--l2", 0)
    (layer,) = nnx.load(folder / "model.nnx").layers
    assert layer.kernel_regularizer is None
    assert "network   4-3, relu, 15 parameters" in output


def test_patience_ends_the_training(run):
    folder, output = run("--data", "iris", "--lr", 0, "--patience", 3, "--epochs", 50)
    found = read_json(folder / "metrics.json")
    assert found["epochs"] < 10
    assert f"the best was number {found['best_epoch']}\n" in output


def test_backend_by_option_and_by_environment(run, monkeypatch):
    if not nnx.available_backends()["jax"].usable:
        pytest.skip("JAX is not installed")
    assert "backend   jax" in run(*SHORT, "--backend", "jax")[1]
    monkeypatch.setenv("NNX_BACKEND", "jax")
    folder, output = run(*SHORT)
    assert "backend   jax" in output
    assert read_json(folder / "config.json")["options"]["backend"] == "jax"
    assert "backend   numpy" in run(*SHORT, "--backend", "numpy")[1]


def test_verbose_prints_a_line_an_epoch(run):
    lines = [line for line in run(*SHORT, "--verbose")[1].splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    for word in ("epoch 1/2", "loss", "accuracy", "val_loss", "val_accuracy", " s"):
        assert word in lines[0]


def test_help_names_every_option_and_default(train, capsys):
    with pytest.raises(SystemExit) as caught:
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "(default: adam)" in text
    assert "(default: None)" not in text
    assert "NNX_BACKEND=jax python train.py" in text


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data digts", "unknown data set 'digts': did you mean 'digits'?"),
        ("--data none.csv", "there is no file none.csv"),
        ("--data iris --target x", "those of 'iris' are fixed"),
        ("--data iris --data-dir x", "argument --data-dir: not allowed with argument --data"),
        ("--data-dir none", "there is no folder none"),
        ("--data-dir . --task regression", "not for --data-dir"),
        ("--backend numpi", "unknown backend 'numpi': did you mean 'numpy'?"),
        ("--activation rleu", "unknown activation 'rleu': did you mean 'relu'?"),
        ("--optimizer adm", "unknown optimizer 'adm': did you mean 'adam'?"),
        ("--hidden 8 0", "argument --hidden: expected a whole number not below 1, got '0'"),
        ("--hidden 8,4", "argument --hidden: expected a whole number not below 1, got '8,4'"),
        ("--dropout 1", "Dropout: rate must be at least 0 and below 1, got 1.0"),
        ("--lr nan", "argument --lr: expected a number not below 0, got 'nan'"),
        ("--l2 -1", "argument --l2: expected a number not below 0, got '-1'"),
        ("--epochs 0", "argument --epochs: expected a whole number not below 1"),
        ("--batch-size 2.5", "argument --batch-size: expected a whole number"),
        ("--patience x", "argument --patience: expected a whole number"),
        ("--seed -1", "argument --seed: expected a whole number not below 0"),
        ("--dtype int8", "invalid choice: 'int8'"),
        ("--task ranking", "invalid choice: 'ranking'"),
        ("--out a-file/run", "cannot write to a-file/run (Not a directory): give another folder as --out"),
        ("--epoch-count 3", "unrecognized arguments: --epoch-count"),
    ],
)
def test_a_mistake_ends_in_one_line(train, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    with pytest.raises(SystemExit) as caught:
        train.main(options.split())
    output, error = capsys.readouterr()
    assert caught.value.code == 2
    assert output == ""
    assert error.startswith("train.py: error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "runs").exists()


def test_a_broken_csv_file_is_reported_with_its_line(train, tmp_path, capsys):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n3\n")
    with pytest.raises(SystemExit):
        train.main(["--data", str(path)])
    assert capsys.readouterr().err.startswith(f"train.py: error: {path}, line 3: 1 values")


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_diverged_training_is_reported(train, tmp_path, capsys):
    options = ["--data", "diabetes", "--optimizer", "sgd", "--lr", "1e6", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as caught:
        train.main(options)
    assert caught.value.code == 2
    assert "no longer finite. Try a smaller --lr" in capsys.readouterr().err


# As a command


def start(*options, **settings):
    """Start the script as a process that hears Ctrl-C even if this one does not."""
    listen = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code = f"{listen} sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-u", "-c", code, str(SCRIPT), *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **settings)


def test_away_from_a_terminal_it_is_quiet(tmp_path):
    process = start(*SHORT, "--out", str(tmp_path), stdout=subprocess.PIPE)
    output, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    assert "trained   2 epochs" in output
    assert "epoch 1/2" not in output
    assert "\r" not in output


def test_on_a_terminal_it_shows_a_bar_and_a_line_an_epoch(tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    with start(*SHORT, "--out", str(tmp_path), stdout=theirs) as process:
        os.close(theirs)
        output = b""
        while chunk := _read(ours):
            output += chunk
    os.close(ours)
    text = output.decode()
    assert process.returncode == 0
    assert "\repoch 1/2:   0%|" in text
    assert "epoch 2/2  loss " in text
    assert "val_accuracy " in text


def _read(descriptor) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux's way of saying that the other end is closed
        return b""


@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_ctrl_c_keeps_what_was_learnt(tmp_path, backend):
    if not nnx.available_backends()[backend].usable:
        pytest.skip(f"{backend} cannot run here")
    endless = ["--epochs", "100000", "--patience", "100000", "--verbose", "--backend", backend]
    with start(*endless, "--hidden", "8", "--out", str(tmp_path), stdout=subprocess.PIPE) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("epoch      2/"):
                process.send_signal(signal.SIGINT)
        error = process.stderr.read()
    assert (process.returncode, error) == (130, "")
    assert "interrupted: what was learnt so far is kept\n" in lines
    found = read_json(tmp_path / "metrics.json")
    assert found["interrupted"]
    assert 2 <= found["epochs"] < 100000
    parts = datasets.split(datasets.load("digits"), seed=0)
    predicted = nnx.load(tmp_path / "model.nnx", backend="numpy").predict(parts.test[0]).argmax(axis=1)
    assert np.mean(predicted == parts.test[1]) == pytest.approx(found["test"]["accuracy"], abs=0.01)


def test_ctrl_c_in_the_first_epoch(train, run, monkeypatch, tmp_path):
    def interrupted(callback, done, total):
        raise KeyboardInterrupt

    monkeypatch.setattr(nnx.callbacks.EarlyStopping, "on_progress", interrupted)
    assert train.main([*SHORT, "--out", str(tmp_path)]) == 130
    assert read_json(tmp_path / "metrics.json")["epochs"] == 0
    assert not (tmp_path / "learning_curves.png").exists()
