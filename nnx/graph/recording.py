"""Elementwise kernels recorded as a list of operations.

The function is called once with placeholders instead of arrays, and each operation on a placeholder is
recorded. The record can then be run in blocks, or compiled.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnx.graph.fingerprint import global_draws


class NotRecordableError(Exception):
    """The function does something that may not be elementwise."""


def cast(x, out):
    np.copyto(out, x, casting="unsafe")


def where_into(condition, x, y, out):
    np.copyto(out, y)
    np.copyto(out, x, where=condition)


class Placeholder:
    """Stands for an array or a scalar while a kernel is recorded."""

    def __init__(self, recorder, index: int, dtype, is_cut: bool):
        self.recorder, self.index, self.dtype, self.is_cut = recorder, index, dtype, is_cut

    def __bool__(self):
        raise NotRecordableError("a kernel that looks at a value")

    __array_ufunc__ = None  # NumPy arrays defer to the operators of this class

    def __pow__(self, exponent):
        cheaper = {2: np.square, 0.5: np.sqrt, -1: np.reciprocal}
        if isinstance(exponent, (int, float)) and exponent in cheaper:
            return self.recorder.call(cheaper[exponent], self)
        return self.recorder.call(np.power, self, exponent)

    def __neg__(self):
        return self.recorder.call(np.negative, self)


def _give_operators():
    functions = {
        "add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "xor": np.bitwise_xor,
        "rshift": np.right_shift, "and": np.bitwise_and, "or": np.bitwise_or,
    }  # fmt: skip
    comparisons = {
        "gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal,
        "eq": np.equal, "ne": np.not_equal,
    }  # fmt: skip
    for name, function in {**functions, **comparisons}.items():
        setattr(Placeholder, f"__{name}__", lambda a, b, f=function: a.recorder.call(f, a, b))
    for name, function in functions.items():
        setattr(Placeholder, f"__r{name}__", lambda a, b, f=function: a.recorder.call(f, b, a))


_give_operators()


@dataclass
class Operation:
    """One call of `function`: its arguments are values, by index, or Python scalars; so is its result a value."""

    function: Callable
    arguments: tuple
    result: int
    dtype: Any


@dataclass
class RecordedKernel:
    """The operations of a kernel: on scalars (`setup`, once per call), and on arrays (`body`, once per block)."""

    setup: list[Operation] = field(default_factory=list)
    body: list[Operation] = field(default_factory=list)
    results: list[int] = field(default_factory=list)


class Recorder:
    """The namespace `xp` that a kernel is called with while it is recorded."""

    def __init__(self):
        self.recorded = RecordedKernel()
        self.count = 0

    def placeholder(self, dtype, is_cut: bool) -> Placeholder:
        self.count += 1
        return Placeholder(self, self.count - 1, dtype, is_cut)

    def __getattr__(self, name):
        function = getattr(np, name, None)
        if isinstance(function, type) and issubclass(function, np.generic):
            return function  # a dtype
        if not isinstance(function, np.ufunc):
            raise NotRecordableError(name)
        return lambda *arguments: self.call(function, *arguments)

    def astype(self, x, dtype):
        return self.add(cast, (x,), np.dtype(dtype))

    def where(self, condition, x, y):
        # A Python scalar, unlike its type, takes the dtype of the array beside it.
        kinds = [kind(1) if isinstance(kind, type) else kind for kind in map(_dtype_of, (x, y))]
        return self.add(where_into, (condition, x, y), np.result_type(*kinds))

    def call(self, function, *arguments):
        if not any(isinstance(a, Placeholder) for a in arguments):
            raise NotRecordableError(function)
        kinds = tuple(_dtype_of(a) for a in arguments)
        if all(isinstance(kind, type) for kind in kinds):  # scalars alone give Python scalars
            return self.add(function, arguments, int if set(kinds) == {int} else float)
        return self.add(function, arguments, resolve(function, kinds)[-1])

    def add(self, function, arguments, dtype) -> Placeholder:
        is_cut = any(isinstance(a, Placeholder) and a.is_cut for a in arguments)
        result = self.placeholder(dtype, is_cut)
        operands = tuple(Value(a.index) if isinstance(a, Placeholder) else a for a in arguments)
        operations = self.recorded.body if is_cut else self.recorded.setup
        operations.append(Operation(function, operands, result.index, dtype))
        return result


def resolve(function: np.ufunc, kinds) -> Sequence:
    """Return the dtypes of a ufunc's arguments and result, by NumPy's promotion rules.

    NumPy has no rules for bfloat16, which is treated as float16.
    """
    bfloat16 = next((k for k in kinds if isinstance(k, np.dtype) and k.name == "bfloat16"), None)
    if bfloat16 is None:
        return function.resolve_dtypes((*kinds, None))
    dtypes = function.resolve_dtypes((*(np.dtype(np.float16) if k == bfloat16 else k for k in kinds), None))
    return [bfloat16 if dtype == np.float16 else dtype for dtype in dtypes]


class Value(int):
    """The index of a value; an int is a Python scalar."""


def _dtype_of(x):
    if isinstance(x, Placeholder):
        return x.dtype
    if isinstance(x, (bool, int, float)):
        return type(x)
    raise NotRecordableError(x)


def record(function, kinds, is_cut) -> RecordedKernel:
    """Return the operations of `function(xp, *arguments)`.

    `kinds` has the dtype of each argument, or the type of a Python scalar; `is_cut` says which arguments
    are arrays of the full shape, to be cut into blocks. Raises NotRecordableError if the function does
    anything but elementwise operations.
    """
    recorder = Recorder()
    placeholders = [recorder.placeholder(kind, cut) for kind, cut in zip(kinds, is_cut, strict=True)]
    draws = global_draws()
    returned = function(recorder, *placeholders)
    if draws != global_draws():
        raise NotRecordableError("a kernel that draws random numbers")
    results = returned if isinstance(returned, tuple) else (returned,)
    if not all(isinstance(r, Placeholder) and r.is_cut for r in results):
        raise NotRecordableError(function)
    recorder.recorded.results = [r.index for r in results]
    return recorder.recorded
