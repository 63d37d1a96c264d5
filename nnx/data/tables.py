"""CSV files, read with the standard library: columns of numbers, and columns of text as categories.

Errors name file, line and column, and the remedy.
"""

import csv
import textwrap
from collections import Counter
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nnx.registry import suggest

TASKS = ("classification", "regression")
MISSING = ("", "na", "n/a", "nan", "null", "?")
# A target with more distinct whole numbers than this is a quantity, not a class.
MOST_CLASSES = 20
# A text feature with more distinct values than this is an identifier, not a category.
MOST_CATEGORIES = 100


class Table(NamedTuple):
    """Features and targets of a CSV file, and the names of features and classes (none for regression)."""

    X: np.ndarray
    y: np.ndarray
    feature_names: list[str]
    class_names: list[str]


def read_csv(path: str | PathLike, target: str | None = None, task: str | None = None) -> Table:
    """Return X, y, and the names of features and classes (none for regression) of a CSV file.

    The first line names the columns. The separator is a comma, semicolon or tab.
    """
    path = Path(path)
    columns = {column.name: column for column in _read_columns(path)}
    target = list(columns)[-1] if target is None else target
    if target not in columns:
        raise ValueError(textwrap.shorten(f"{path}: {suggest('column', target, columns)}", 400))
    for column in columns.values():
        column.check_complete()
    y, class_names = _as_target(columns.pop(target), task)
    if not columns:
        raise ValueError(f"{path} has no column besides the target {target!r}: nothing to predict it from")
    features = {}
    for column in columns.values():
        features.update(_as_features(column))
    X = np.stack(list(features.values()), axis=1)
    return Table(X, y, list(features), class_names)


@dataclass
class _Column:
    """One column of a CSV file, with the line numbers for error messages."""

    path: Path
    name: str
    texts: list[str]
    lines: list[int]

    def where(self, row: int) -> str:
        return f"{self.path}, line {self.lines[row]}, column {self.name!r}"

    def check_complete(self):
        for row, text in enumerate(self.texts):
            if text.lower() in MISSING:
                raise ValueError(f"{self.where(row)}: the value is missing: fill it in or remove the line")

    def numbers(self) -> np.ndarray | None:
        """Return the values as numbers, or None for a column of text."""
        parsed = [_as_number(text) for text in self.texts]
        wrong = [row for row, number in enumerate(parsed) if number is None]
        if len(wrong) > len(parsed) / 2:
            return None
        if wrong:
            raise ValueError(
                f"{self.where(wrong[0])}: {self.texts[wrong[0]]!r} is not a number, as most values of this "
                f"column are: correct it, or make all of them text"
            )
        numbers = np.asarray(parsed, dtype=np.float64)
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise ValueError(f"{self.where(row)}: {self.texts[row]!r} is not finite: correct or remove it")
        return numbers


def _as_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_columns(path: Path) -> list[_Column]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
            rows = [(reader.line_num, [text.strip() for text in row]) for row in reader if row]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except csv.Error as error:
        raise ValueError(f"{path} is not a CSV file: {error}") from None
    if not rows:
        raise ValueError(f"{path} is empty: it needs a line of column names, then a line for each sample")
    (_, header), *body = rows
    _check_header(path, header)
    if not body:
        raise ValueError(f"{path} has column names, but no samples below them")
    for line, row in body:
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {line}: {len(row)} values, but line 1 names {len(header)} columns: "
                f"correct the line, and put values that contain {delimiter!r} in quotes"
            )
    lines = [line for line, _ in body]
    values = zip(*(row for _, row in body), strict=True)
    return [_Column(path, name, list(texts), lines) for name, texts in zip(header, values, strict=True)]


def _check_header(path: Path, header: list[str]):
    if all(_as_number(name) is not None for name in header):
        raise ValueError(f"{path}, line 1 must name the columns, but holds numbers: add a line of names")
    if "" in header:
        raise ValueError(
            f"{path}, line 1: column {header.index('') + 1} has no name: name it or remove the column"
        )
    name, count = Counter(header).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{path}, line 1: {count} columns are called {name!r}: give each its own name")


def _as_target(column: _Column, task: str | None) -> tuple[np.ndarray, list[str]]:
    """Return class indices and names; or real numbers and no names."""
    numbers = column.numbers()
    if task is None:
        task = "classification" if numbers is None or _look_like_classes(numbers) else "regression"
    if task == "regression":
        if numbers is None:
            raise ValueError(f"{column.where(0)}: regression needs numbers, got {column.texts[0]!r}")
        return numbers, []
    values = np.asarray(column.texts) if numbers is None else numbers
    classes, y = np.unique(values, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{column.path}: all values of the target {column.name!r} are {column.texts[0]!r}")
    if numbers is not None and len(classes) == len(values):
        raise ValueError(
            f"{column.path}: every value of the target {column.name!r} is another number: use regression"
        )
    return y, [str(c) if numbers is None else f"{c:g}" for c in classes]


def _look_like_classes(numbers: np.ndarray) -> bool:
    """Whether these are few distinct whole numbers, most of them repeated."""
    distinct, count = len(np.unique(numbers)), len(numbers)
    whole = bool((numbers == np.floor(numbers)).all())
    return whole and distinct < count and distinct <= max(2, min(MOST_CLASSES, count // 3))


def _as_features(column: _Column) -> dict[str, np.ndarray]:
    """Return the column; for text, one column of zeros and ones for each distinct value."""
    numbers = column.numbers()
    if numbers is not None:
        return {column.name: numbers}
    texts = np.asarray(column.texts)
    categories = np.unique(texts)
    if len(categories) > MOST_CATEGORIES:
        raise ValueError(
            f"{column.path}: column {column.name!r} has {len(categories)} distinct texts, such as "
            f"{column.texts[0]!r}, more than {MOST_CATEGORIES}: remove it, or group them"
        )
    return {f"{column.name}={c}": (texts == c).astype(np.float64) for c in categories}
