"""Models in ONNX compute the same numbers in ONNX Runtime, for batches of any size."""

import threading

import exported
import numpy as np
import onnx
import onnxruntime
import pytest

import nnx
from nnx import layers
from nnx.onnx import ExportError, as_onnx


def run(found, x) -> dict:
    """Return the outputs of an ONNX model by name, as ONNX Runtime computes them."""
    session = onnxruntime.InferenceSession(found.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, exported.named(x, "input")), strict=True))


def expect_same(model, found, count):
    x = exported.samples(model, count)
    expected = exported.named(model.predict(x), "output")
    outputs = run(found, x)
    assert len(outputs) == len(expected)
    for name, array in expected.items():
        assert outputs[name].dtype == array.dtype
        np.testing.assert_allclose(outputs[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", exported.MODELS)
def test_the_same_numbers(name):
    model = exported.build(name)
    found = as_onnx(model)
    for count in (1, 2, 5):
        expect_same(model, found, count)


# What ONNX Runtime before 1.32 cannot run on no samples.
REFUSED = {"masked", "both ways", "one's own"}


@pytest.mark.parametrize("name", exported.MODELS)
def test_no_samples(name):
    if name in REFUSED and tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32):
        pytest.skip(
            f"ONNX Runtime {onnxruntime.__version__} refuses a Transpose of no rows; see docs/export.md"
        )
    model = exported.build(name)
    x = nnx.tree.map(lambda a: a[:0], exported.samples(model, 1))
    expected, found = exported.named(model.predict(x), "output"), run(as_onnx(model), x)
    assert {key: (y.shape, y.dtype) for key, y in found.items()} == {
        key: (y.shape, y.dtype) for key, y in expected.items()
    }


@pytest.mark.parametrize("number", [-1, -9, 9, 2**31 - 1, -(2**31)])
def test_what_is_no_category_is_an_error(number):
    """ONNX itself takes -1 as the last category."""
    model = exported.build("embedding")
    x = exported.samples(model, 2)
    x[1, 1] = number
    with pytest.raises(Exception, match="indices element out of data bounds"):
        run(as_onnx(model), x)


def test_a_category_must_be_one_of_each_embedding():
    """As in `predict`: 3 is one for the second alone."""
    branches = [[layers.Embedding(n, 2), layers.Flatten()] for n in (3, 5)]
    model = nnx.Sequential([layers.Parallel(*branches, input_shape=(2,))], seed=0)
    expect_same(model, as_onnx(model), 3)
    with pytest.raises(ValueError, match="from 0 to 2"):
        model.predict([[0, 3]])
    with pytest.raises(Exception, match="indices element out of data bounds"):
        run(as_onnx(model), np.array([[0, 3]], np.int32))


def test_every_layer_is_exported():
    used = {kind for make in exported.MODELS.values() for kind in exported.kinds(make().network)}
    assert {getattr(layers, name) for name in layers.__all__} <= used | {layers.Layer, layers.Input}


def operations(found) -> list[str]:
    return [node.op_type for node in found.graph.node]


def test_a_convolution_is_a_convolution():
    found = operations(as_onnx(exported.build("conv2d, twice")))
    assert found.count("Conv") == 2
    assert "MatMul" not in found
    found = operations(as_onnx(exported.build("transposed, same, 3, 2, None, 1")))
    assert found.count("ConvTranspose") == 1
    assert "MatMul" not in found


def test_a_recurrence_is_one_loop():
    assert operations(as_onnx(exported.build("LSTM, {}"))).count("Scan") == 1


def test_names_and_shapes():
    found = as_onnx(exported.build("inputs, outputs")).graph
    read = [
        (
            v.name,
            [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            v.type.tensor_type.elem_type,
        )
        for v in (*found.input, *found.output)
    ]
    real, whole = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    assert read == [
        ("numbers", ["batch", 4], real),
        ("city", ["batch", 2], whole),
        ("price", ["batch", 1], real),
        ("as it was", ["batch", 10], real),
        ("kind", ["batch", 3], real),
    ]
    weights = {tensor.name for tensor in found.initializer}
    assert {"inputs/city/embedding/embeddings", "outputs/price/kernel", "outputs/kind/bias"} <= weights


def test_an_output_called_like_an_input():
    heads = layers.Outputs({"a": layers.Dense(2), "b": []})
    model = nnx.Sequential([layers.Inputs({"a": [], "b": []}), heads], seed=0)
    model.build({"a": (2,), "b": (2,)})
    names = [value.name for value in as_onnx(model).graph.output]
    assert names == ["a_2", "b_2"]


def test_no_weight_is_stored_twice():
    model = exported.build("conv2d")
    assert sum(np.prod(t.dims) for t in as_onnx(model).graph.initializer) < model.count_params() + 30


def test_any_backend_exports_the_same(any_backend, tmp_path):
    with nnx.use_backend("numpy"):
        model = exported.build("transformer")
    expected = as_onnx(model).SerializeToString()
    nnx.onnx.export(model.to(any_backend), tmp_path / "net.onnx")
    assert (tmp_path / "net.onnx").read_bytes() == expected
    assert model.backend is any_backend


@pytest.mark.parametrize("name", ["dense", "LSTM, {}", "attention", "masked", "one's own"])
def test_float64(name, monkeypatch):
    model = exported.MODELS[name]()
    model.dtype = "float64"
    found = as_onnx(model)
    x = exported.samples(model, 3)
    (output,) = run(found, x).values()
    np.testing.assert_allclose(output, model.predict(x), rtol=1e-12, atol=1e-14)


def test_half_precision_is_exported_in_float32():
    half, full = (
        nnx.Sequential([layers.Dense(3, input_shape=(4,))], seed=0, dtype=d) for d in ("float16", "float32")
    )
    assert as_onnx(half) == as_onnx(full)


def test_training_goes_on_after_it():
    model = nnx.Sequential([layers.Dense(3), layers.BatchNormalization(), layers.Dense(2)], seed=0)
    model.compile("adam", "mse")
    x, y = np.ones((8, 4)), np.ones((8, 2))
    model.fit(x, y, epochs=2, verbose=0)
    weights = model.get_weights()
    as_onnx(model)
    assert all(map(np.array_equal, model.get_weights(), weights))
    model.fit(x, y, verbose=0)
    expect_same(model, as_onnx(model), 3)


# What cannot be exported


def looks(xp, x):
    return x if x[0, 0] > 0 else -x


def halves(xp, x):
    n = x.shape[0]
    return xp.concat([x[: n // 2], x[n // 2 :]], axis=0)


def with_batch(xp, x):
    return x + xp.zeros((x.shape[0], 4), dtype=x.dtype)


class Sorted(layers.Layer):
    def forward(self, ctx, params, x):
        return ctx.xp.sort(x)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (
            layers.Lambda(lambda x: np.interp(x, [0, 1], [0, 1]), (4,), name="mine"),
            r"layer 'mine' cannot be exported to ONNX: it calls interp",
        ),
        (layers.Lambda(looks, (4,)), r"layer 'lambda' .* it looks at the values of its input"),
        (layers.Lambda(halves, (4,)), r"layer 'lambda' .* something else for a batch of 2 samples and one of 3"),
        (layers.Lambda(with_batch, (4,)), r"layer 'lambda' .* an array \(2, 4\) and an array \(3, 4\)"),
        (layers.Lambda(lambda x: x.tolist(), (4,)), r"layer 'lambda' .* 'tolist'"),
        (layers.Residual(layers.Lambda(looks, (4,))), r"layer 'residual/lambda' \(Lambda\) cannot"),
        (Sorted(), r"layer 'sorted' cannot be exported to ONNX: it calls sort, which has no ONNX operation here"),
        (layers.Lambda(lambda xp, x: xp.ones((1, 4)), (4,)), r"an output does not depend on its input"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_named(layer, why, tmp_path):
    model = nnx.Sequential([layers.Input((4,)), layer], seed=0)
    (tmp_path / "net.onnx").write_bytes(b"old")
    with pytest.raises(ExportError, match=why) as found:
        nnx.onnx.export(model, tmp_path / "net.onnx")
    assert "\n" not in str(found.value)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("net.onnx", b"old")]


def test_a_model_without_a_shape():
    with pytest.raises(nnx.NotReadyError, match="is not built"):
        as_onnx(nnx.Sequential([layers.Dense(3)]))


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'nnx-engine\[onnx\]'"):
        as_onnx(exported.build("dense"))


def test_in_two_threads():
    model, found = exported.build("LSTM, {}"), []
    threads = [threading.Thread(target=lambda: found.append(as_onnx(model))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
