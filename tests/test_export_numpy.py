"""Models as modules of plain NumPy predict the same numbers, and need nothing else."""

import ast
import subprocess
import sys

import exported
import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.onnx import ExportError


def loaded(text: str) -> dict:
    space: dict = {}
    exec(compile(text, "net.py", "exec"), space)
    return space


@pytest.mark.parametrize("name", exported.MODELS)
def test_the_same_numbers(name):
    model = exported.build(name)
    predict = loaded(model.to_numpy_function())["predict"]
    for count in (1, 2, 5):
        x = exported.samples(model, count)
        expected, found = (exported.named(y, "output") for y in (model.predict(x), predict(x)))
        assert found.keys() == expected.keys()
        for key, array in expected.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_allclose(found[key], array, rtol=1e-5, atol=1e-6, err_msg=key)


def test_two_files_that_need_numpy_alone(tmp_path):
    model = exported.build("conv2d, twice")
    x = exported.samples(model, 3)
    text = model.to_numpy_function(tmp_path / "net.py")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.npz", "net.py"]
    assert (tmp_path / "net.py").read_text() == text
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert [ast.unparse(node) for node in imports] == ["import numpy as np"]
    with np.load(tmp_path / "net.npz", allow_pickle=False) as file:
        assert set(file) == {"conv2d/kernel", "conv2d/bias", "conv2d_1/kernel", "conv2d_1/bias"}
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, numpy as np, net\n"
        "np.save('y.npy', net.predict(np.load('x.npy')))\n"
        "assert not {'nnx', 'safetensors'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model.predict(x), rtol=1e-5, atol=1e-6)


def test_it_is_readable():
    model = nnx.Sequential(
        [layers.LSTM(2, input_shape=(3, 1)), layers.Dense(2, "softmax", name="class")], seed=0
    )
    text = model.to_numpy_function().partition("def ")[2]
    assert text == READABLE


READABLE = '''predict(x):
    """Return the outputs for x: (batch, 3, 1) -> (batch, 2)."""
    x = np.asarray(x, dtype=np.float32)
    if x.shape[1:] != (3, 1):
        raise ValueError(f'x must be (batch, 3, 1), got {x.shape}')
    batch = len(x)
    # lstm
    lstm = x.transpose((1, 0, 2)).reshape((-1, 1)) @ weights['lstm/kernel'] + weights['lstm/bias']
    lstm_2 = lstm.reshape((3, batch, -1))
    lstm_3 = lstm_2[..., :2]
    lstm_4 = lstm_2[..., 2:4]
    lstm_5 = lstm_2[..., 4:6]
    lstm_6 = lstm_2[..., 6:8]
    lstm_7 = np.zeros_like(lstm_3[0, ...])
    lstm_state = lstm_7
    lstm_state_2 = lstm_7
    lstm_steps = []
    for t in range(3):
        lstm_x = lstm_3[t]
        lstm_x_2 = lstm_4[t]
        lstm_x_3 = lstm_5[t]
        lstm_x_4 = lstm_6[t]
        lstm_8 = lstm_state @ weights['lstm/recurrent_kernel']
        lstm_9 = (np.tanh((lstm_x + lstm_8[..., :2]) * 0.5) * 0.5 + 0.5) * np.tanh(lstm_x_3 + lstm_8[..., 4:6])
        lstm_10 = (np.tanh((lstm_x_2 + lstm_8[..., 2:4]) * 0.5) * 0.5 + 0.5) * lstm_state_2 + lstm_9
        lstm_11 = (np.tanh((lstm_x_4 + lstm_8[..., 6:8]) * 0.5) * 0.5 + 0.5) * np.tanh(lstm_10)
        lstm_steps.append(lstm_11)
        lstm_state, lstm_state_2 = lstm_11, lstm_10
    lstm_steps = np.stack(lstm_steps)
    lstm_12 = lstm_steps[-1, ...]
    # class
    class_ = lstm_12 @ weights['class/kernel'] + weights['class/bias']
    class_2 = np.exp(class_ - np.max(class_, axis=-1, keepdims=True))
    class_3 = class_2 / np.sum(class_2, axis=-1, keepdims=True)
    return class_3
'''


def test_names_that_are_taken():
    names = ["np", "weights", "predict", "len", "batch", "x", "lambda", "7 days", "π"]
    model = nnx.Sequential([layers.Input((2,)), *(layers.Dense(2, "tanh", name=n) for n in names)], seed=0)
    x = exported.samples(model, 3)
    np.testing.assert_allclose(loaded(model.to_numpy_function())["predict"](x), model.predict(x), rtol=1e-5)


@pytest.mark.parametrize("name", ['a"""b', "a\\", "\n", "\nraise", "\r1", '"""\nraise', "\u2028raise"])
def test_a_name_is_never_code(name):
    model = nnx.Sequential([layers.Dense(2, input_shape=(2,), name=name)], seed=0, name=name)
    x = exported.samples(model, 1)
    np.testing.assert_allclose(loaded(model.to_numpy_function())["predict"](x), model.predict(x), rtol=1e-5)


def test_how_tightly_operators_bind():
    def formula(x):
        powers = -(x**2) + (-x) ** 2 - ((x * x + 1.0) ** 2.0) ** 0.5 + (2.0 - x) - (x - 4.0) ** -2
        compared = (x > (x < 1)) * 2.0 + ((x < 1.0) < x) * 3.0 + (-1.5) ** (x > 0)
        return powers - (x - (x - 2.0)) * -3.0 / (x / (x + 5.0)) + compared

    model = nnx.Sequential([layers.Input((3,)), layers.Lambda(formula)])
    x = exported.samples(model, 4)
    np.testing.assert_allclose(loaded(model.to_numpy_function())["predict"](x), model.predict(x), rtol=1e-6)


def test_any_backend_exports_the_same(any_backend):
    with nnx.use_backend("numpy"):
        model = exported.build("transformer")
    expected = model.to_numpy_function()
    assert model.to(any_backend).to_numpy_function() == expected


def test_another_shape_is_an_error():
    predict = loaded(exported.build("dense").to_numpy_function())["predict"]
    with pytest.raises(ValueError, match=r"x must be \(batch, 4\), got \(4,\)"):
        predict([1, 2, 3, 4])


def test_no_samples():
    predict = loaded(exported.build("conv2d, twice").to_numpy_function())["predict"]
    assert predict(np.ones((0, 7, 6, 4))).shape[0] == 0


def test_what_cannot_be_exported(tmp_path):
    model = nnx.Sequential([layers.Input((4,)), layers.Lambda(np.exp)])
    with pytest.raises(ExportError, match="layer 'lambda'"):
        model.to_numpy_function(tmp_path / "net.py")
    with pytest.raises(ValueError, match=r"must end in \.py, got 'net'"):
        model.to_numpy_function("net")
    assert not list(tmp_path.iterdir())
