"""Data sets: those with a name, CSV files, MNIST's IDX files, and the split."""

import gzip
import struct

import numpy as np
import pytest

from nnx import datasets

CLASSES = {
    "digits": 10,
    "mnist_5000": 10,
    "iris": 3,
    "wine": 3,
    "breast_cancer": 2,
    "diabetes": 0,
    "xor": 2,
    "moons": 2,
}


@pytest.fixture
def csv_file(tmp_path):
    """Return a function that writes a CSV file and returns its path."""

    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# By name


@pytest.mark.parametrize("name", datasets.NAMES)
def test_named_sets_are_whole(name):
    data = datasets.load(name)
    assert data.name == name
    assert data.X.shape == (len(data.y), len(data.feature_names)) == (len(data), data.X.shape[1])
    assert np.isfinite(data.X).all()
    assert len(data.class_names) == CLASSES[name]
    assert data.task == ("classification" if CLASSES[name] else "regression")
    if data.class_names:
        assert sorted(set(data.y.tolist())) == list(range(CLASSES[name]))


def test_digits_lie_between_0_and_1():
    X = datasets.load("digits").X
    assert (X.min(), X.max()) == (0, 1)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'diabets': did you mean 'diabetes'"):
        datasets.load("diabets")


def test_target_and_task_are_not_for_named_sets():
    with pytest.raises(ValueError, match="'iris' are fixed"):
        datasets.load("iris", target="sepal")
    with pytest.raises(ValueError, match="unknown task 'regresion': did you mean 'regression'"):
        datasets.load("iris", task="regresion")


# The split


@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_split_keeps_each_class_in_proportion(name):
    data = datasets.load(name)
    parts = datasets.split(data, seed=3, validation=0.15, test=0.2)
    shares = np.bincount(data.y) / len(data)
    for (_, y), share in ((parts.train, 0.65), (parts.validation, 0.15), (parts.test, 0.2)):
        assert abs(len(y) - share * len(data)) <= 1
        assert np.abs(np.bincount(y) - shares * len(y)).max() <= 2


def test_split_loses_and_repeats_no_sample():
    data = datasets.Dataset(np.arange(40.0)[:, None], np.arange(40.0), "regression", ["x"], [], "line")
    parts = datasets.split(data, seed=0)
    y = np.concatenate([part[1] for part in (parts.train, parts.validation, parts.test)])
    np.testing.assert_allclose(np.sort(parts.target.undo(y)), np.arange(40), atol=1e-12)
    np.testing.assert_allclose(parts.features.undo(parts.test[0])[:, 0], parts.target.undo(parts.test[1]))


@pytest.mark.parametrize("name", ["wine", "diabetes"])
def test_split_standardises_by_the_training_part_alone(name):
    parts = datasets.split(datasets.load(name), seed=0)
    X, y = parts.train
    np.testing.assert_allclose(X.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(X.std(axis=0), 1)
    assert np.abs(parts.test[0].mean(axis=0)).max() > 1e-3
    if name == "diabetes":
        assert (abs(y.mean()), y.std()) == (pytest.approx(0, abs=1e-12), pytest.approx(1))
        assert parts.target.undo(y).min() >= 25
    else:
        assert y.dtype.kind == "i"


def test_split_standardises_pixels_all_alike():
    parts = datasets.split(datasets.load("digits"), seed=0)
    assert np.ndim(parts.features.mean) == np.ndim(parts.features.scale) == 0
    assert abs(parts.train[0].mean()) < 1e-12


def test_split_leaves_a_constant_feature_finite():
    X = np.column_stack([np.ones(20), np.arange(20.0)])
    data = datasets.Dataset(X, np.arange(20.0), "regression", ["one", "x"], [], "constant")
    assert (datasets.split(data, seed=0).train[0][:, 0] == 0).all()


def test_split_follows_the_seed():
    iris = datasets.load("iris")
    first, again, other = (datasets.split(iris, seed=seed).test[1] for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_split_takes_a_test_set_of_its_own():
    xor = datasets.load("xor")
    parts = datasets.split(xor, seed=0, test=datasets.load("moons"))
    assert (len(parts.train[1]), len(parts.validation[1]), len(parts.test[1])) == (340, 60, 600)


def test_split_refuses_what_leaves_a_part_empty():
    few = datasets.Dataset(np.ones((3, 1)), np.arange(3.0), "regression", ["x"], [], "few")
    with pytest.raises(ValueError, match="few has too few samples, 3"):
        datasets.split(few, seed=0)
    with pytest.raises(ValueError, match=r"shares below 1 in all, got 0.6 and 0.6"):
        datasets.split(datasets.load("xor"), seed=0, validation=0.6, test=0.6)


# CSV files


def test_csv_classification_of_text(csv_file):
    path = csv_file("size,colour,kind\n1.5,red,cat\n2,blue,dog\n3,red,cat\n\n4,green,dog\n")
    data = datasets.load(path)
    assert (data.task, data.name, data.class_names) == ("classification", "table", ["cat", "dog"])
    assert data.feature_names == ["size", "colour=blue", "colour=green", "colour=red"]
    assert data.X.tolist() == [[1.5, 0, 0, 1], [2, 1, 0, 0], [3, 0, 0, 1], [4, 0, 1, 0]]
    assert data.y.tolist() == [0, 1, 0, 1]


def test_csv_regression_on_a_named_column(csv_file):
    data = datasets.load(csv_file("price,rooms\n1.5,2\n2.5,3\n3.25,5\n"), target="price")
    assert (data.task, data.class_names, data.feature_names) == ("regression", [], ["rooms"])
    assert data.y.tolist() == [1.5, 2.5, 3.25]


def test_csv_task_is_found_from_the_target_and_can_be_overridden(csv_file):
    few = csv_file("x,y\n" + "".join(f"{i},{i % 3 + 4}\n" for i in range(12)))
    many = csv_file("x,y\n" + "".join(f"{i},{i * 7}\n" for i in range(100)), "many.csv")
    assert datasets.load(few).class_names == ["4", "5", "6"]
    assert datasets.load(few).y.max() == 2
    assert datasets.load(many).task == "regression"
    assert datasets.load(few, task="regression").y.max() == 6
    with pytest.raises(ValueError, match="every value of the target 'y' is another number"):
        datasets.load(many, task="classification")


@pytest.mark.parametrize(
    "text", ["\ufeffa;b\r\n1;2,5\r\n3;4,5\r\n", "a\tb\n1\tx y\n3\tz\n", 'a, b\n1, "x, y"\n3, z\n']
)
def test_csv_of_other_programs(csv_file, text):
    data = datasets.load(csv_file(text))
    assert data.feature_names == ["a"]
    assert data.X.tolist() == [[1], [3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table.csv is empty: it needs a line of column names"),
        ("a,b\n", "table.csv has column names, but no samples below them"),
        ("a,b\n1,2\n3\n", "table.csv, line 3: 1 values, but line 1 names 2 columns: correct the line"),
        ("a,b\n1,2\n3,4,5\n", "line 3: 3 values"),
        ("a,b\n1,2\n,4\n", "table.csv, line 3, column 'a': the value is missing: fill it in or remove"),
        ("a,b\n1,2\nNaN,4\n", "line 3, column 'a': the value is missing"),
        ("a,b\n1,2\n3,?\n", "line 3, column 'b': the value is missing"),
        ("a,b\n1,2\n3,4\nx,5\n", "table.csv, line 4, column 'a': 'x' is not a number, as most values"),
        ("a,b\n1,2\ninf,4\n", "line 3, column 'a': 'inf' is not finite"),
        ("1,2\n3,4\n", "line 1 must name the columns, but holds numbers"),
        ("a,,c\n1,2,3\n", "line 1: column 2 has no name"),
        ("a,b,a\n1,2,3\n", "line 1: 2 columns are called 'a'"),
        ("a\n1\n2.5\n", "no column besides the target 'a'"),
        ("a,b\n1,x\n2,x\n", "all values of the target 'b' are 'x'"),
        (b"a,b\n1,\xff\n", "is not UTF-8 text"),
        ("a,b\n" + "".join(f"n{i},{i % 2}\n" for i in range(101)), "column 'a' has 101 distinct texts"),
    ],
)
def test_csv_mistakes_are_named(csv_file, text, message):
    with pytest.raises(ValueError) as caught:
        datasets.load(csv_file(text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_csv_missing_target_and_file_and_text_for_regression(csv_file, tmp_path):
    path = csv_file("width,species\n1,a\n2,b\n")
    with pytest.raises(ValueError, match="unknown column 'speces': did you mean 'species'"):
        datasets.load(path, target="speces")
    with pytest.raises(ValueError, match=r"line 2, column 'species': regression needs numbers, got 'a'"):
        datasets.load(path, task="regression")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none.csv"):
        datasets.load(tmp_path / "none.csv")


def test_an_unknown_column_of_a_wide_file_is_told_in_one_short_line(csv_file):
    names = [f"column_{i}" for i in range(1000)]
    path = csv_file(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    with pytest.raises(ValueError, match="did you mean") as caught:
        datasets.load(path, target="column_9999")
    assert len(str(caught.value)) <= 500


# IDX files


def idx(array) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture(params=["-idx{}-ubyte", ".idx{}-ubyte", "-idx{}-ubyte.gz", ".idx{}-ubyte.gz"])
def mnist(request, tmp_path):
    """A folder of the four files, and the arrays in them."""
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 50), ("t10k", 20)):
        arrays[f"{part}-images"] = rng.integers(0, 256, (count, 4, 3), dtype=np.uint8)
        arrays[f"{part}-labels"] = (np.arange(count) % 10).astype(np.uint8)
    for stem, array in arrays.items():
        name = stem + request.param.format(array.ndim)
        content = gzip.compress(idx(array)) if name.endswith(".gz") else idx(array)
        (tmp_path / name).write_bytes(content)
    return tmp_path, arrays


def test_idx_files_are_read_under_all_their_names(mnist):
    folder, arrays = mnist
    found = [array for part in datasets.load_idx(folder) for array in part]
    for mine, given in zip(found, arrays.values(), strict=True):
        assert mine.dtype == np.uint8
        np.testing.assert_array_equal(mine, given)


def test_mnist_as_a_data_set(mnist):
    folder, arrays = mnist
    train, test = datasets.load_mnist(folder)
    assert (train.X.shape, test.X.shape, len(train.class_names)) == ((50, 12), (20, 12), 10)
    np.testing.assert_allclose(train.X[0], arrays["train-images"][0].ravel() / 255, rtol=1e-6)
    parts = datasets.split(train, seed=0, test=test)
    assert parts.train[0].dtype == np.float32
    assert len(parts.test[1]) == 20


def plain_folder(folder, **changed):
    """Write the four files into a folder, with some of them changed."""
    files = {
        "train_images": idx(np.zeros((3, 2, 2), np.uint8)),
        "train_labels": idx(np.zeros(3, np.uint8)),
        "t10k_images": idx(np.zeros((2, 2, 2), np.uint8)),
        "t10k_labels": idx(np.zeros(2, np.uint8)),
    }
    for name, content in {**files, **changed}.items():
        path = folder / f"{name.replace('_', '-')}-idx{3 if 'images' in name else 1}-ubyte"
        if content is not None:
            path.write_bytes(content)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"t10k_labels": None}, "has no file t10k-labels-idx1-ubyte, gzipped or not"),
        ({"train_images": b"<html>"}, "train-images-idx3-ubyte starts with 3c 68 74 6d, an IDX file with 00 00 08"),
        ({"train_labels": idx(np.zeros((3, 1, 1), np.uint8))}, "starts with 00 00 08 03, an IDX file"),
        ({"train_images": bytes([0, 0, 8, 3, 0])}, "is cut off: its header has 5 of 16 bytes"),
        ({"train_images": idx(np.zeros((3, 2, 2), np.uint8))[:-1]}, "announces 3 x 2 x 2 values, but holds 11"),
        ({"train_images": idx(np.zeros((3, 2, 2), np.uint8)) + b"!"}, "but holds 13"),
        ({"train_images": idx(np.zeros((0, 2, 2), np.uint8))}, "holds no samples"),
        ({"train_labels": idx(np.zeros(4, np.uint8))}, "holds 3 images, but train-labels-idx1-ubyte 4 labels"),
        ({"t10k_images": idx(np.zeros((2, 3, 2), np.uint8))}, "training images are (2, 2), test images (3, 2)"),
    ],
)  # fmt: skip
def test_broken_idx_files_are_named(tmp_path, changed, message):
    plain_folder(tmp_path, **changed)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        datasets.load_idx(tmp_path)
    assert message in str(caught.value)


@pytest.mark.parametrize("cut", [5, 30])
def test_a_broken_gzip_file_is_named(tmp_path, cut):
    plain_folder(tmp_path, train_images=None)
    content = gzip.compress(idx(np.arange(12, dtype=np.uint8).reshape(3, 2, 2)))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content[:cut])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz is not a whole gzip file"):
        datasets.load_idx(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none"):
        datasets.load_idx(tmp_path / "none")
