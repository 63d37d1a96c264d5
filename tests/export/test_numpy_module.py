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
    text = model.to_numpy_function().rpartition("def ")[2]
    assert text == READABLE


READABLE = '''predict(x):
    """Return the outputs for x: (batch, 3, 1) -> (batch, 2)."""
    x = checked(x, 'x', (3, 1), np.float32)
    # lstm
    lstm = x.transpose((1, 0, 2)).reshape((-1, 1)) @ weights['lstm/kernel'] + weights['lstm/bias']
    lstm_2 = lstm.reshape((3, -1, 8))
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


class Table:
    """What only says that it can be an array."""

    def __array__(self, dtype=None, copy=None):
        return np.ones((2, 4))


def outcome(predict, x):
    """Return the shape of what is predicted, or the kind of error that is raised."""
    try:
        return predict(x).shape
    except Exception as error:
        return type(error)


WRONG = {
    "one sample": [1.0, 2, 3, 4],
    "a number": 1.0,
    "more features": np.ones((2, 5)),
    "an axis more": np.ones((2, 4, 1)),
    "nan": [[1.0, 2, np.nan, 4]],
    "infinity": [[1.0, 2, np.inf, 4]],
    "too large for the dtype": [[1.0, 2, 1e39, 4]],
    "text": [["1", "2", "3", "4"]],
    "words": [["a", "b", "c", "d"]],
    "complex": np.ones((2, 4)) * 1j,
    "dates": np.zeros((2, 4), "datetime64[D]"),
    "ragged": [[1.0], [2.0, 3.0]],
    "None": None,
    "None within": [[1, 2, 3, None]],
}
RIGHT = {
    "integers": np.arange(8).reshape(2, 4),
    "unsigned": np.arange(8, dtype=np.uint8).reshape(2, 4),
    "booleans": np.ones((2, 4), bool),
    "objects": np.ones((2, 4), object),
    "float16": np.ones((2, 4), np.float16),
    "float64": np.ones((2, 4)),
    "big-endian": np.ones((2, 4), ">f8"),
    "a list": [[1, 2, 3, 4]],
    "a table": Table(),
    "a matrix that may not be written": np.broadcast_to(np.ones(4), (2, 4)),
}


@pytest.mark.parametrize("given", [*WRONG, *RIGHT])
def test_what_predict_refuses_is_refused_and_what_it_takes_is_taken(given):
    model = exported.build("dense")
    predict = loaded(model.to_numpy_function())["predict"]
    x = (WRONG | RIGHT)[given]
    found = outcome(predict, x)
    assert found == outcome(model.predict, x)
    if given in RIGHT:
        np.testing.assert_allclose(predict(x), model.predict(x), rtol=1e-5, atol=1e-6)
    else:
        assert found is ValueError


@pytest.mark.parametrize("number", [-1, 9, 1.7, np.nan, np.inf, 2**31, 2**32, -(2**32)])
@pytest.mark.parametrize("name", ["embedding", "embedding, masked, behind", "inputs, outputs"])
def test_what_is_no_category_is_an_error_that_names_it(name, number):
    """So does `predict`; NumPy itself takes -1 as the last category, and 1.7 as 1."""
    if name == "embedding, masked, behind":
        model = nnx.Sequential(
            [layers.Permute((1,), input_shape=(5,)), layers.Embedding(9, 3, mask_zero=True), layers.GRU(2)],
            seed=0,
        )
    else:
        model = exported.build(name)
    predict, last = loaded(model.to_numpy_function())["predict"], 4 if name == "inputs, outputs" else 8
    x = exported.samples(model, 2)
    ids = np.array(x["city"] if isinstance(x, dict) else x, float)
    ids[1, 1] = number
    x = {**x, "city": ids} if isinstance(x, dict) else ids
    with pytest.raises(ValueError, match="the value"):
        model.predict(x)
    what = r"x\['city'\]" if isinstance(x, dict) else "x"
    with pytest.raises(
        ValueError,
        match=f"{what} must be whole numbers from 0 to {last}, got {float(number)}".replace("+", r"\+"),
    ):
        predict(x)


def test_whole_numbers_of_any_dtype_are_categories():
    model = exported.build("embedding")
    predict, x = loaded(model.to_numpy_function())["predict"], exported.samples(model, 2)
    for dtype in ("int8", "uint8", "int64", "uint64", "float32", "float64", "O"):
        np.testing.assert_array_equal(predict(x.astype(dtype)), predict(x))


def test_inputs_of_different_length():
    predict = loaded(exported.build("inputs, outputs").to_numpy_function())["predict"]
    with pytest.raises(ValueError, match=r"the inputs differ in their number of samples: \[1, 2\]"):
        predict({"numbers": np.ones((1, 4)), "city": np.ones((2, 2), int)})


def test_another_shape_is_an_error():
    predict = loaded(exported.build("dense").to_numpy_function())["predict"]
    with pytest.raises(ValueError, match=r"x must be \(batch, 4\), got \(4,\)"):
        predict([1, 2, 3, 4])


@pytest.mark.parametrize("name", exported.MODELS)
def test_no_samples(name):
    model = exported.build(name)
    x = nnx.tree.map(lambda a: a[:0], exported.samples(model, 1))
    expected = exported.named(model.predict(x), "output")
    found = exported.named(loaded(model.to_numpy_function())["predict"](x), "output")
    assert {key: (y.shape, y.dtype) for key, y in found.items()} == {
        key: (y.shape, y.dtype) for key, y in expected.items()
    }


def test_what_cannot_be_exported(tmp_path):
    model = nnx.Sequential([layers.Input((4,)), layers.Lambda(lambda x: x * float(x[0, 0]))])
    with pytest.raises(ExportError, match=r"layer 'lambda'.* takes the value of an array as a number"):
        model.to_numpy_function(tmp_path / "net.py")
    with pytest.raises(ValueError, match=r"must end in \.py, got 'net'"):
        model.to_numpy_function("net")
    assert not list(tmp_path.iterdir())
