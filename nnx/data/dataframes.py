"""Tables of pandas and Polars as arrays. Errors name the column.

Neither library is imported here: a program that has a table has imported its library.
"""

import sys
from typing import Any

import numpy as np

LIBRARIES = ("pandas", "polars")
# The most columns in one message.
SHOWN = 5


def is_table(value) -> bool:
    """Whether a value is a data frame, lazy or not, or a series."""
    return any(isinstance(value, _classes(name, "DataFrame", "Series", "LazyFrame")) for name in LIBRARIES)


def as_array(table, what: str) -> np.ndarray:
    """Return a frame as an array (rows, columns), a series as (rows,), or raise a ValueError.

    A series of text becomes an array of text: the loss checks y later.
    """
    if isinstance(table, _classes("polars", "LazyFrame")):
        raise ValueError(f"{what} is a LazyFrame, which holds no rows yet: give {what}.collect()")
    if any(isinstance(table, _classes(name, "Series")) for name in LIBRARIES):
        _expect_complete([(table.name, table)], what)
        return _as_numbers(table) if _is_numeric(table) else np.asarray(table)
    columns = _columns(table)
    if texts := [(name, column) for name, column in columns if not _is_numeric(column)]:
        raise ValueError(_not_numbers(texts, what, table))
    if len({str(column.dtype) for _, column in columns}) == 1 and isinstance(columns[0][1].dtype, np.dtype):
        array = np.asarray(table, columns[0][1].dtype)  # pandas may share its memory
        _expect_finite(array, [name for name, _ in columns], what)
        return array
    _expect_complete(columns, what)
    arrays = [_as_numbers(column) for _, column in columns]
    array = np.empty((len(table), len(arrays)), np.result_type(*arrays) if arrays else float)
    for i, column in enumerate(arrays):
        array[:, i] = column
    return array


def _classes(library: str, *names: str) -> tuple:
    """Return those classes that an imported library has."""
    module = sys.modules.get(library)
    return tuple(cls for name in names if (cls := getattr(module, name, None)) is not None)


def _columns(frame) -> list[tuple[Any, Any]]:
    if hasattr(frame, "iloc"):
        # A column of objects may hold numbers.
        return [(name, frame.iloc[:, i].infer_objects()) for i, name in enumerate(frame.columns)]
    return list(zip(frame.columns, frame.get_columns(), strict=True))


def _is_numeric(column) -> bool:
    if hasattr(column.dtype, "is_numeric"):  # of Polars
        return column.dtype.is_numeric() or str(column.dtype) == "Boolean"
    return getattr(column.dtype, "kind", "O") in "buif"


def _as_numbers(column) -> np.ndarray:
    """Return a column without missing values as an array; dtypes of pandas's own become NumPy's."""
    if isinstance(column.dtype, np.dtype) or hasattr(column, "is_null"):
        return np.asarray(column.to_numpy())
    kind = {"b": bool, "u": np.uint64, "i": np.int64}.get(column.dtype.kind, np.float64)
    return column.to_numpy(dtype=kind)


def _expect_complete(columns, what) -> None:
    """Raise a ValueError if a value of a column is missing, not a number or infinite."""
    for name, column in columns:
        missing = np.asarray(column.is_null() if hasattr(column, "is_null") else column.isna())
        if missing.any():
            raise ValueError(_incomplete("a missing value", name, missing, what))
        if _is_numeric(column) and (array := _as_numbers(column)).dtype.kind == "f":
            _expect_finite(array[:, None], [name], what)


def _expect_finite(array, names, what) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        if array.dtype.kind != "f" or np.isfinite(np.sum(array)):
            return
    finite = np.isfinite(array)
    for i, name in enumerate(names):
        if not finite[:, i].all():
            row = int(np.argmin(finite[:, i]))
            raise ValueError(_incomplete(f"the value {array[row, i]}", name, ~finite[:, i], what))


def _incomplete(value, name, wrong, what) -> str:
    column = "" if name is None or name == "" else f", column {name!r}"
    return (
        f"{what} has {value} at row {int(np.argmax(wrong))}{column} ({int(wrong.sum())} such in all): fill or drop "
        f"them first (scikit-learn's SimpleImputer, or methods of the table itself)"
    )


def _not_numbers(columns, what, table) -> str:
    named = ", ".join(f"{name!r} ({_kind(column)})" for name, column in columns[:SHOWN])
    more = f" and {len(columns) - SHOWN} more" if len(columns) > SHOWN else ""
    encode = "pandas.get_dummies(X)" if hasattr(table, "iloc") else "X.to_dummies()"
    return (
        f"{what} must be numbers, but holds other things in column {named}{more}: encode them first "
        f"({encode.replace('X', what)}, or scikit-learn's OneHotEncoder; OrdinalEncoder for an Embedding) or drop them"
    )


def _kind(column) -> str:
    kind = f"{column.dtype}".lower()
    if len(kind) > 12:  # it lists all categories
        kind = kind.partition("(")[0].partition("[")[0]
    values = column.drop_nulls() if hasattr(column, "drop_nulls") else column.dropna()
    if not len(values):
        return kind
    return f"{kind} such as {str(values[0] if hasattr(values, 'is_null') else values.iloc[0])!r}"
