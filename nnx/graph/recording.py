"""Kernels recorded: what a pure elementwise function does, as a list of operations.

The function is called once with symbols in place of arrays; each operation on a symbol is written
down. The record can then be run in other ways than one whole array at a time.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nnx.graph.fingerprint import global_draws


class NotRecordableError(Exception):
    """The function does something that is not known to be elementwise."""


def cast(x, out):
    np.copyto(out, x, casting="unsafe")


def where_into(condition, x, y, out):
    np.copyto(out, y)
    np.copyto(out, x, where=condition)


class Symbol:
    """Stands for an array, or a number, while a kernel is recorded."""

    def __init__(self, recorder, index: int, dtype, is_cut: bool):
        self.recorder, self.index, self.dtype, self.is_cut = recorder, index, dtype, is_cut

    def __bool__(self):
        raise NotRecordableError("a kernel that looks at a value")

    __array_ufunc__ = None  # NumPy's own operators leave the work to ours

    def __pow__(self, exponent):
        by_hand = {2: np.square, 0.5: np.sqrt, -1: np.reciprocal}
        if isinstance(exponent, (int, float)) and exponent in by_hand:
            return self.recorder.call(by_hand[exponent], self)
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
        setattr(Symbol, f"__{name}__", lambda a, b, f=function: a.recorder.call(f, a, b))
    for name, function in functions.items():
        setattr(Symbol, f"__r{name}__", lambda a, b, f=function: a.recorder.call(f, b, a))


_give_operators()


@dataclass
class Operation:
    """One call: of `function`, on numbered values or plain numbers, into a numbered value."""

    function: Callable
    arguments: tuple
    result: int
    dtype: Any


@dataclass
class Program:
    """The operations of a kernel: some once for each call (`before`), the others for each block."""

    before: list[Operation] = field(default_factory=list)
    block: list[Operation] = field(default_factory=list)
    results: list[int] = field(default_factory=list)


class Recorder:
    """The namespace `xp` of a kernel while it is recorded."""

    def __init__(self):
        self.program = Program()
        self.count = 0

    def symbol(self, dtype, is_cut: bool) -> Symbol:
        self.count += 1
        return Symbol(self, self.count - 1, dtype, is_cut)

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
        # A plain number, unlike its type, leaves the dtype to the array beside it.
        kinds = [kind(1) if isinstance(kind, type) else kind for kind in map(_dtype_of, (x, y))]
        return self.add(where_into, (condition, x, y), np.result_type(*kinds))

    def call(self, function, *arguments):
        if not any(isinstance(a, Symbol) for a in arguments):
            raise NotRecordableError(function)
        kinds = tuple(_dtype_of(a) for a in arguments)
        if all(isinstance(kind, type) for kind in kinds):  # numbers alone stay numbers
            return self.add(function, arguments, int if set(kinds) == {int} else float)
        return self.add(function, arguments, resolve(function, kinds)[-1])

    def add(self, function, arguments, dtype) -> Symbol:
        is_cut = any(isinstance(a, Symbol) and a.is_cut for a in arguments)
        result = self.symbol(dtype, is_cut)
        named = tuple(Value(a.index) if isinstance(a, Symbol) else a for a in arguments)
        part = self.program.block if is_cut else self.program.before
        part.append(Operation(function, named, result.index, dtype))
        return result


def resolve(function: np.ufunc, kinds) -> Sequence:
    """Return the dtypes in which a ufunc takes its arguments and gives its result.

    Beside a bfloat16, which NumPy does not know itself, a plain number is as weak as beside a float16.
    """
    bfloat16 = next((k for k in kinds if isinstance(k, np.dtype) and k.name == "bfloat16"), None)
    if bfloat16 is None:
        return function.resolve_dtypes((*kinds, None))
    found = function.resolve_dtypes((*(np.dtype(np.float16) if k == bfloat16 else k for k in kinds), None))
    return [bfloat16 if dtype == np.float16 else dtype for dtype in found]


class Value(int):
    """The number of a value, told apart from a plain number."""


def _dtype_of(x):
    if isinstance(x, Symbol):
        return x.dtype
    if isinstance(x, (bool, int, float)):
        return type(x)
    raise NotRecordableError(x)


def record(function, kinds, is_cut) -> Program:
    """Return the operations of `function(xp, *arguments)`.

    `kinds` has the dtype of each argument, or the type of a plain number; `is_cut` says which are
    arrays of the full shape. Raises NotRecordableError if it does anything but elementwise operations.
    """
    recorder = Recorder()
    symbols = [recorder.symbol(kind, cut) for kind, cut in zip(kinds, is_cut, strict=True)]
    before = global_draws()
    found = function(recorder, *symbols)
    if before != global_draws():
        raise NotRecordableError("a kernel that draws random numbers")
    results = found if isinstance(found, tuple) else (found,)
    if not all(isinstance(r, Symbol) and r.is_cut for r in results):
        raise NotRecordableError(function)
    recorder.program.results = [r.index for r in results]
    return recorder.program
