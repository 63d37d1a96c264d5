"""A training step written down as it runs: which functions of the array library it calls, on what.

A `Traced` array does each call on the real array inside it, and notes it. So a step runs once as it
stands, with real results, and leaves a list of its calls behind, in which no layer, no dict and no
closure appears. `replay` makes a plain function of the list.

Operators, and NumPy's own functions, come here by NumPy's protocols `__array_ufunc__` and
`__array_function__`; the functions of another library through a `TracingNamespace`.
"""

import operator
import types
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from nnx.graph.fingerprint import kernel_key


class NotTraceableError(Exception):
    """The step does something that a list of calls cannot repeat, such as looking at a value."""


class Traced(NDArrayOperatorsMixin):
    """An array, or a number, that notes what is done with it."""

    def __init__(self, trace: "Trace", index: int, value):
        self.trace, self.index, self.value = trace, index, value

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        if method not in ("__call__", "reduce"):
            self.trace.refuse(f"{ufunc.__name__}.{method}")
        if "out" in settings and not any(map(self.trace.backend.is_array, untraced(settings["out"]))):
            del settings["out"]  # `a += b` of numbers, which are not written into
        return self.trace.call(getattr(ufunc, method) if method == "reduce" else ufunc, inputs, settings)

    @property
    def __class__(self):  # pyright: ignore
        # What code of the user's asks by `isinstance` has the answer of the plain step.
        return type(self.value)

    def __array_function__(self, function, types, inputs, settings):
        if function in (np.shape, np.ndim, np.size):
            return function(*untraced(inputs), **untraced(settings))
        return self.trace.call(function, inputs, settings, may_write=True)

    def __getitem__(self, key):
        return self.trace.call("__getitem__", (self, key))

    def __getattr__(self, name):
        if name in ("reshape", "take", "astype", "argmax"):
            return lambda *inputs, **settings: self.trace.call(name, (self, *inputs), settings)
        if name in ("shape", "ndim", "size", "dtype"):
            return getattr(self.value, name)
        self.trace.refuse(name)

    @property
    def T(self):
        return self.trace.call("T", (self,))

    def __pow__(self, exponent):
        if type(self.value) in (int, float):
            return super().__pow__(exponent)
        # Before NumPy 2.3 its ufunc rounds otherwise than its operator, which the plain step uses.
        return self.trace.call(operator.pow, (self, exponent))

    def __len__(self):
        return len(self.value)

    def refuse(self, *_):
        """Stop the trace: the value is looked at, or written to."""
        self.trace.refuse("the value of an array")

    __bool__ = __int__ = __float__ = __index__ = __array__ = __iter__ = __setitem__ = refuse
    __repr__ = __str__ = __format__ = refuse


class TracingNamespace:
    """A library's namespace whose functions note calls on `Traced` arrays."""

    def __init__(self, namespace):
        self._namespace = namespace

    def __getattr__(self, name):
        found = getattr(self._namespace, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*arguments, **settings):
            trace = trace_of(arguments)
            return found(*arguments, **settings) if trace is None else trace.call(found, arguments, settings)

        setattr(self, name, call)  # found without this function from now on
        return call


@dataclass
class Kind:
    """What is known of a value without keeping it."""

    shape: tuple
    dtype: Any
    """Or `int` or `float`, for a plain number."""
    is_array: bool
    is_view: bool
    is_contiguous: bool
    nbytes: int
    memory: int
    """The number of the first value that lies in the same memory; its own, if there is none."""


class Ref(int):
    """The number of a value, told apart from a plain number."""


@dataclass
class Call:
    """One call of a function; a string names a method of the first argument.

    With a `plan` it is a recorded kernel, whose own operations can stand in its place.
    """

    function: Any
    arguments: Any
    settings: dict
    writes: tuple = ()
    """The values whose memory it overwrites."""
    plan: Any = None
    results: tuple = ()
    unpacks: bool = False
    """Whether it returns a tuple of its results."""


class Trace:
    """The calls of a step, on numbered values: first the inputs, then the results."""

    def __init__(self, backend):
        self.backend = backend
        self.values: list[Kind] = []
        self.calls: list[Call] = []
        self.refused: str | None = None
        """What the trace was ended by, though the step may have caught the error."""
        self._inputs: list[Traced] = []
        self._constants: list[tuple] = []  # arrays that are no values of the trace, each with a copy

    def input(self, value: Any) -> Traced:
        """Give a value that comes into the step its number."""
        traced = self._value(value, self._inputs)
        self._inputs.append(traced)
        return traced

    def refuse(self, reason: Any) -> NoReturn:
        """End the trace."""
        self.refused = str(reason)
        raise NotTraceableError(reason)

    def _value(self, value: Any, others, makes_view: bool = False) -> Traced:
        """Give a value its number. `others` are the earlier ones whose memory it may lie in."""
        number, is_array = len(self.values), self.backend.is_array
        if is_array(value):
            share = self.backend.share_memory
            shared = next((o for o in others if is_array(o.value) and share(o.value, value)), None)
            memory = number if shared is None else self.values[shared.index].memory
            is_view = makes_view and shared is not None
            kind = Kind(
                value.shape, value.dtype, True, is_view, value.flags.c_contiguous, value.nbytes, memory
            )
        elif isinstance(value, (np.generic, int, float)):
            kind = Kind((), getattr(value, "dtype", type(value)), False, False, False, 0, number)
        else:
            self.refuse(type(value))
        self.values.append(kind)
        return Traced(self, number, value)

    def call(
        self, function, arguments, settings=None, writes=(), plan=None, run=None, may_write=False
    ) -> Any:
        """Do a call, or `run` in its place, and note it. It returns an array, a tuple of new arrays, or None.

        `writes` are the arguments that it overwrites. A call that writes into any other array, as `a += b`
        does, ends the trace: the order of such calls and others is not kept. `may_write` says that the
        function is not known to leave its arguments alone.
        """
        settings = settings or {}
        given, named = untraced(arguments), untraced(settings)
        numbers_only = all(type(a) in (int, float) for a in given)  # a float64 of NumPy is a float, too
        if not numbers_only:
            function = self.backend.native(function)
        elif all(isinstance(a, int) for a in given) and isinstance(function, np.ufunc):
            exact = function(*(np.array(a, dtype=object) for a in given))
            if abs(exact) >= 2**53:  # Python's whole numbers have no end, those of a compiled step have
                self.refuse(f"{function.__name__} of large whole numbers")
        if writes_in_place(function, named):
            self.refuse(f"{_name_of(function)} writes into an array")
        if run is not None:
            value = run(*given)
        elif isinstance(function, str):
            value = getattr(given[0], function)
            value = value if function == "T" else value(*given[1:], **named)
        elif may_write:
            value = self.backend.run_without_writing(function, given, named)
        else:
            value = function(*given, **named)
            value = value.item() if numbers_only else value  # numbers alone stay numbers
        noted = Call(
            function,
            self._numbered(arguments),
            self._numbered(settings),
            tuple(Ref(array.index) for array in writes),
            plan,
        )
        self.calls.append(noted)
        if value is None:
            return None
        others = [leaf for leaf in leaves([arguments, settings]) if type(leaf) is Traced]
        if type(value) is tuple:
            results = tuple(self._value(item, others, makes_view=not writes) for item in value)
            noted.results, noted.unpacks = tuple(Ref(result.index) for result in results), True
            return results
        result = self._value(value, others, makes_view=not writes)
        noted.results = (Ref(result.index),)
        return result

    def _numbered(self, value):
        """Return an argument with the number of each value in its place; note the constants in it."""

        def number(leaf):
            if type(leaf) is Traced:
                return Ref(leaf.index)
            if self.backend.is_array(leaf):
                self._constants.append((leaf, leaf.copy()))
            return leaf

        return _each(value, number)

    def end(self) -> bool:
        """Return whether the arrays that the calls refer to beside the values still hold what they held."""
        self._inputs.clear()  # a trace is kept longer than the arrays of its step
        return all(self._same(array, copy) for array, copy in self._constants)

    def same_as(self, other: "Trace") -> bool:
        """Whether both make the same calls on the same values."""

        def parts(trace):
            return [[c.function, c.arguments, c.settings, c.writes, c.results] for c in trace.calls]

        copies = [[copy for _, copy in trace._constants] for trace in (self, other)]
        return self.values == other.values and self._same(*copies) and self._same(parts(self), parts(other))

    def _same(self, a, b) -> bool:
        if type(a) is not type(b):
            return False
        if type(a) in (tuple, list):
            return len(a) == len(b) and all(map(self._same, a, b))
        if type(a) is dict:
            return a.keys() == b.keys() and all(self._same(a[name], b[name]) for name in a)
        if isinstance(a, np.generic) or self.backend.is_array(a):
            return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
        if isinstance(a, types.FunctionType) and a is not b:  # such as a lambda, made anew in each step
            return a.__code__ is b.__code__ and self._same(*(_surroundings(f) for f in (a, b)))
        if (
            callable(a)
            and hasattr(type(a), "__dict__")
            and not isinstance(a, (type, *_COMPARABLE))
            and a is not b
        ):
            key = kernel_key(a)  # equal objects may do different things
            return key is not None and key == kernel_key(b)
        # Methods of ufuncs, such as np.add.reduce, are made anew each time they are looked up.
        return a is b or (a == b and (type(a) is not float or str(a) == str(b)))


# Those that are equal do the same: methods of one object, and functions written in C.
_COMPARABLE = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType, np.ufunc)


def _surroundings(function) -> list:
    """Return what a function refers to beside its arguments and globals."""
    return [
        function.__defaults__,
        function.__kwdefaults__,
        [c.cell_contents for c in function.__closure__ or ()],
    ]


def trace_of(values) -> Trace | None:
    """Return the trace that any of some values belongs to, also inside lists, if one does."""
    for value in values:
        if type(value) is Traced:
            return value.trace
        if type(value) in (list, tuple) and (trace := trace_of(value)) is not None:
            return trace
    return None


def untraced(value):
    """Return a value, or values inside tuples, lists and dicts, without their `Traced` shells."""
    return _each(value, lambda leaf: leaf.value if type(leaf) is Traced else leaf)


# Functions that write into their first argument; of others, those that are given `out` do.
_WRITERS = frozenset({"copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask"})


def writes_in_place(function, settings: dict) -> bool:
    """Whether a call writes into an array that it is given, as far as its name and settings tell."""
    copies = settings.get("copy", True) is not False or _name_of(function) != "nan_to_num"
    return settings.get("out") is not None or _name_of(function) in _WRITERS or not copies


def _name_of(function) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", "")


def leaves(value) -> list:
    """Return what is in tuples, lists and dicts, one after another."""
    if type(value) is dict:
        value = list(value.values())
    return [leaf for item in value for leaf in leaves(item)] if type(value) in (tuple, list) else [value]


def _each(value, function):
    if type(value) in (tuple, list):
        return type(value)([_each(item, function) for item in value])
    if type(value) is dict:
        return {name: _each(item, function) for name, item in value.items()}
    return function(value)
