"""Whatever holds the numbers, tables, tensors, files, lists: training is that on a plain array, bit for bit."""

import array
import re
import traceback
import warnings

import numpy as np
import pytest

import nnx
from nnx import layers
from nnx.data.sources import on_host

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 4)).astype(np.float32)
Y = np.arange(40) % 3
NAMES = ["age", "height", "weight", "score"]


class WithDlpack:
    """An array on the host that shows itself through DLPack alone."""

    def __init__(self, values):
        self.values = values

    def __dlpack__(self, **settings):
        return self.values.__dlpack__(**settings)

    def __dlpack_device__(self):
        return self.values.__dlpack_device__()


class WithArray:
    """An array that NumPy can ask for, as old libraries have them."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)


class Tensor(WithDlpack):
    """As a tensor of PyTorch: one that requires a gradient is not given away, nor one on a GPU."""

    dtype = "torch.float32"

    def __init__(self, values, requires_grad=False, device="cpu"):
        super().__init__(values)
        self.requires_grad, self.device, self.shape = requires_grad, device, values.shape

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy()")
        if self.device != "cpu":
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu()")
        return self.values

    def detach(self):
        return Tensor(self.values, device=self.device)


def pandas_frame(values, tmp_path):
    return pytest.importorskip("pandas").DataFrame(values, columns=NAMES)


def pandas_nullable(values, tmp_path):
    frame = pandas_frame(values, tmp_path)
    return frame.astype({"age": "Float32", "score": object})


def polars_frame(values, tmp_path):
    return pytest.importorskip("polars").DataFrame(values, schema=NAMES, orient="row")


def memory_map(values, tmp_path):
    np.save(tmp_path / "x.npy", values)
    return np.load(tmp_path / "x.npy", mmap_mode="r")


def hdf5(values, tmp_path):
    file = pytest.importorskip("h5py").File(tmp_path / "x.h5", "w")
    return file.create_dataset("X", data=values, chunks=(7, 2), compression="gzip")


def zarr(values, tmp_path):
    created = pytest.importorskip("zarr").create_array(
        tmp_path / "x.zarr", shape=values.shape, dtype=values.dtype, chunks=(7, 2)
    )
    created[:] = values
    return created


def read_only(values, tmp_path):
    values = values.copy()
    values.flags.writeable = False
    return values


def jax_array(values, tmp_path):
    return pytest.importorskip("jax").numpy.asarray(values)


KINDS = {
    "pandas": pandas_frame,
    "pandas, dtypes of its own": pandas_nullable,
    "polars": polars_frame,
    "memmap": memory_map,
    "h5py": hdf5,
    "zarr": zarr,
    "jax": jax_array,
    "dlpack": lambda values, tmp_path: WithDlpack(values),
    "__array__": lambda values, tmp_path: WithArray(values),
    "tensor": lambda values, tmp_path: Tensor(values, requires_grad=True),
    "list": lambda values, tmp_path: values.tolist(),
    "memoryview": lambda values, tmp_path: memoryview(values),
    "read-only": read_only,
    "columns first": lambda values, tmp_path: np.asfortranarray(values),
    "big-endian": lambda values, tmp_path: values.astype(">f4"),
}
TARGETS = {
    "pandas": lambda y: pytest.importorskip("pandas").Series(y, name="species", index=np.arange(40)[::-1]),
    "pandas, nullable": lambda y: pytest.importorskip("pandas").Series(y, dtype="Int64"),
    "pandas, one column": lambda y: pytest.importorskip("pandas").DataFrame({"species": y}),
    "polars": lambda y: pytest.importorskip("polars").Series("species", y),
    "polars, one column": lambda y: pytest.importorskip("polars").DataFrame({"species": y}),
    "dlpack": WithDlpack,
    "array.array": lambda y: array.array("q", y.tolist()),
    "memoryview": memoryview,
    "list": list,
    "bytes of their own": lambda y: np.asarray(y, dtype=np.uint8),
}


def build(backend=None, loss="sparse_categorical_crossentropy", units=3):
    model = nnx.Sequential(
        [layers.Dense(8, "relu"), layers.Dropout(0.2), layers.Dense(units, "softmax" if units > 1 else None)],
        seed=3,
        backend=backend,
    )
    model.compile("adam", loss, metrics=["accuracy"] if units > 1 else [])
    return model


def numbers_of(model, x, y):
    """Return all that training, evaluating and predicting gives."""
    fitted = model.fit(x, y, batch_size=16, epochs=2, validation_data=(x, y), verbose=0).history
    stepped = model.train_on_batch(x, y)
    tested = model.test_on_batch(x, y)
    return fitted, stepped, tested, model.evaluate(x, y, verbose=0), model.predict(x).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_features(any_backend, kind, tmp_path):
    expected = numbers_of(build(any_backend), X, Y)
    assert numbers_of(build(any_backend), KINDS[kind](X, tmp_path), Y) == expected


@pytest.mark.parametrize("kind", TARGETS)
def test_targets(any_backend, kind):
    expected = numbers_of(build(any_backend), X, Y)
    assert numbers_of(build(any_backend), X, TARGETS[kind](Y)) == expected


def test_one_hot_targets_as_a_table():
    one_hot = np.eye(3, dtype=np.float32)[Y]
    expected = numbers_of(build(loss="categorical_crossentropy"), X, one_hot)
    frame = pytest.importorskip("pandas").DataFrame(one_hot.astype(bool), columns=["a", "b", "c"])
    assert numbers_of(build(loss="categorical_crossentropy"), X, frame) == expected


@pytest.mark.parametrize("kind", ["pandas", "polars", "h5py", "tensor"])
def test_several_inputs(kind, tmp_path):
    def fit(left):
        inputs = layers.Inputs({"left": layers.Dense(3), "right": layers.Dense(3)}, merge="concat")
        model = nnx.Sequential([inputs, layers.Dense(3, "softmax")], seed=0)
        model.compile("adam", "sparse_categorical_crossentropy")
        return model.fit({"left": left, "right": X}, Y, verbose=0).history

    assert fit(KINDS[kind](X, tmp_path)) == fit(X)


def test_batches_of_a_stream():
    expected = build().fit([(X[:20], Y[:20]), (X[20:], Y[20:])], verbose=0).history
    for kind in (WithDlpack, WithArray, lambda a: Tensor(a, requires_grad=True)):
        assert build().fit([(kind(X[:20]), Y[:20]), (kind(X[20:]), Y[20:])], verbose=0).history == expected


def test_nothing_is_copied_that_need_not_be(tmp_path):
    backend = nnx.as_backend("numpy")
    for kind in ("dlpack", "tensor", "memmap", "pandas", "read-only"):
        source = KINDS[kind](X.copy(), tmp_path)
        first, second = on_host(source, "X", backend), on_host(source, "X", backend)
        assert np.shares_memory(np.asarray(first), np.asarray(second)), kind


def test_bfloat16_is_read():
    jax = pytest.importorskip("jax")
    half = jax.numpy.asarray(X, "bfloat16")
    expected = build().fit(np.asarray(half.astype("float32")), Y, verbose=0).history
    assert build().fit(half, Y, verbose=0).history == expected


def _hidden_layers():
    return [layers.Dense(8, "relu"), layers.Dense(3, "softmax")]


def test_estimators_take_tables(tmp_path):
    classifier = nnx.estimators.MLPClassifier((8,), max_iter=3, random_state=0)
    network = nnx.estimators.Classifier(_hidden_layers, epochs=2, random_state=0)
    for estimator in (classifier, network):
        expected = _quietly(estimator, X, Y).predict_proba(X)
        for kind in ("pandas", "polars"):
            table = KINDS[kind](X, tmp_path)
            fitted = _quietly(estimator, table, TARGETS[kind](Y))
            assert fitted.feature_names_in_.tolist() == NAMES
            # scikit-learn makes a table an array of its own layout, which BLAS rounds otherwise.
            np.testing.assert_allclose(fitted.predict_proba(table), expected, rtol=1e-5)


def _quietly(estimator, x, y):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(x, y)


# What is wrong


def frame(**columns):
    table = pandas_frame(X.astype(float), None)
    return table.assign(**columns)


def polars(**columns):
    return polars_frame(X.astype(float), None).with_columns(**columns)


def series(values, **settings):
    return pytest.importorskip("pandas").Series(values, **settings)


def polars_series(values):
    return pytest.importorskip("polars").Series("y", values)


def category(values):
    return series(values, dtype="category")


def with_hole(values, hole, at=7):
    return [*values[:at], hole, *values[at + 1 :]]


CITIES = ["Rome", "Oslo"] * 20
FLOATS = [0.5] * 40
FIT = {
    "text column": (lambda: (frame(city=CITIES), Y), r"X must be numbers, but holds other things in column 'city' \(str such as 'Rome'\): encode them first \(pandas.get_dummies\(X\), .*OneHotEncoder"),
    "two text columns": (lambda: (frame(city=CITIES, day=CITIES), Y), r"column 'city' \(str such as 'Rome'\), 'day' \("),
    "category column": (lambda: (frame(city=category(CITIES)), Y), r"column 'city' \(category such as 'Rome'\)"),
    "date column": (lambda: (frame(day=pytest.importorskip("pandas").date_range("2020", periods=40)), Y), r"column 'day' \(datetime64 such as '2020-01-01 00:00:00'\)"),
    "polars text column": (lambda: (polars(city=polars_series(CITIES)), Y), r"column 'city' \(string such as 'Rome'\): encode them first \(X.to_dummies\(\)"),
    "many text columns": (lambda: (frame(**{f"c{i}": CITIES for i in range(7)}), Y), r"'c4' \(str such as 'Rome'\) and 2 more"),
    "missing value": (lambda: (frame(age=with_hole(FLOATS, np.nan)), Y), r"X has the value nan at row 7, column 'age' \(1 such in all\): fill or drop them first"),
    "infinite value": (lambda: (frame(age=with_hole(FLOATS, np.inf)), Y), r"X has the value inf at row 7, column 'age'"),
    "missing, nullable": (lambda: (frame(age=series(with_hole(FLOATS, None), dtype="Float64")), Y), r"X has a missing value at row 7, column 'age'"),
    "missing, whole numbers": (lambda: (frame(age=series(with_hole([1] * 40, None), dtype="Int64")), Y), r"X has a missing value at row 7, column 'age'"),
    "missing, mixed dtypes": (lambda: (frame(old=[True] * 40, age=with_hole(FLOATS, np.nan)), Y), r"at row 7, column 'age'"),
    "polars null": (lambda: (polars(age=polars_series(with_hole(FLOATS, None))), Y), r"X has a missing value at row 7, column 'age' \(1 such"),
    "polars NaN": (lambda: (polars(age=polars_series(with_hole(FLOATS, np.nan))), Y), r"X has the value nan at row 7, column 'age'"),
    "polars plan": (lambda: (polars().lazy(), Y), r"X is a LazyFrame, .* give X.collect\(\)"),
    "wrong width": (lambda: (frame().drop(columns="age"), Y), r"\(batch, 4\), got \(40, 3\): it was built for 4 features"),
    "series as X": (lambda: (frame()["age"], Y), r"shape \(batch, 4\), got \(40,\)"),
    "text as y": (lambda: (X, series(CITIES)), r"labels such as 'Rome': .*np.unique\(y, return_inverse=True\)"),
    "categories as y": (lambda: (X, category(CITIES)), "labels such as 'Rome'"),
    "polars text as y": (lambda: (X, polars_series(CITIES)), "labels such as 'Rome'"),
    "missing y": (lambda: (X, series(with_hole([1] * 40, None), dtype="Int64", name="species")), "y has a missing value at row 7, column 'species'"),
    "missing label": (lambda: (X, series(with_hole(CITIES, None))), r"y has a missing value at row 7 \(1 such"),
    "text table as y": (lambda: (X, series(CITIES).to_frame("city")), r"y must be numbers, .* column 'city'"),
    "sparse": (lambda: (pytest.importorskip("scipy.sparse").csr_array(X), Y), r"X is a sparse matrix: give X.toarray\(\)"),
    "masked": (lambda: (np.ma.masked_greater(X, 1), Y), "X has a masked value at row"),
    "tensor on a GPU": (lambda: (Tensor(X, device="cuda"), Y), r"X is a \S*Tensor on a device, .* give X.detach\(\).cpu\(\).numpy\(\)"),
    "y on a GPU": (lambda: (X, Tensor(Y, device="cuda")), "y is a .*Tensor on a device"),
    "record": (lambda: (np.zeros(40, [("a", "f4"), ("b", "f4")]), Y), "X must be numbers, got dtype"),
    "complex": (lambda: (X.astype(complex), Y), "X must be numbers, got dtype complex128"),
}  # fmt: skip


@pytest.mark.parametrize("name", FIT)
def test_error(name):
    make, message = FIT[name]
    x, y = make()
    model = build()
    model.build((4,))
    with pytest.raises((ValueError, TypeError)) as caught:
        model.fit(x, y, verbose=0)
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert len(traceback.extract_tb(caught.value.__traceback__)) <= 10
    assert np.isfinite(model.fit(X, Y, verbose=0).history["loss"]).all()


def test_an_input_of_several_is_named():
    inputs = layers.Inputs({"left": layers.Dense(3), "right": layers.Dense(3)}, merge="concat")
    model = nnx.Sequential([inputs, layers.Dense(3, "softmax")])
    model.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"X\['right'\] must be numbers, .* column 'city'"):
        model.fit({"left": X, "right": frame(city=CITIES)}, Y)


# Streams


def test_an_error_names_the_batch_of_a_stream(any_backend):
    wrong = X[:20].copy()
    wrong[3, 2] = np.nan
    for last, message in (
        ((X[:20, :3], Y[:20]), r"built for 4 features \(in batch 2, counted from 0\)$"),
        ((wrong, Y[:20]), r"X has the value nan at row 3, column 2: .* \(in batch 2, counted from 0\)$"),
        ((X[:20], Y[:19]), r"X has 20 samples, y has 19.* \(in batch 2,"),
        (X[:20], r"must give \(x, y\) .* \(in batch 2,"),
    ):
        model = build(any_backend)
        with pytest.raises(ValueError, match=message):
            model.fit([(X[:20], Y[:20]), (X[20:], Y[20:]), last], verbose=0)
        assert model.step == 2
        with pytest.raises(ValueError, match=message):
            model.evaluate([(X[:20], Y[:20]), (X[20:], Y[20:]), last], verbose=0)
