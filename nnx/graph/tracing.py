"""A training step traced while it runs: its calls of the array library, and their arguments.

A `Traced` array wraps a real array. Each operation on it runs on the real array, and is recorded. So the
step computes its real results, and leaves a list of library calls, free of layers, dicts and closures.

Operators and NumPy's functions are recorded through NumPy's protocols `__array_ufunc__` and
`__array_function__`, functions of another library through a `TracingNamespace`.
"""

import operator
import types
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from nnx.graph.fingerprint import kernel_key
from nnx.graph.graph import has_symbols, innermost


class NotTraceableError(Exception):
    """The step does something that a list of calls cannot repeat, such as reading the value of an array."""


class Traced(NDArrayOperatorsMixin):
    """An array or scalar that records the operations on it."""

    def __init__(self, trace: "Trace", index: int, value):
        self.trace, self.index, self.value = trace, index, value

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        if has_symbols(inputs):
            return NotImplemented  # whose graph computes on Traced arrays
        if method not in ("__call__", "reduce"):
            self.trace.refuse(f"{ufunc.__name__}.{method}")
        if "out" in settings and not any(map(self.trace.backend.is_array, untraced(settings["out"]))):
            del settings["out"]  # `a += b` of scalars, which are immutable
        return self.trace.call(getattr(ufunc, method) if method == "reduce" else ufunc, inputs, settings)

    @property
    def __class__(self):  # pyright: ignore
        # So that `isinstance` in the user's code gives the same as without a trace.
        return type(self.value)

    def __array_function__(self, function, types, inputs, settings):
        if has_symbols(inputs):
            return NotImplemented
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
        if type(self.value) in (int, float) or has_symbols((exponent,)):
            return super().__pow__(exponent)
        # Before NumPy 2.3, the ufunc rounds differently from the operator.
        return self.trace.call(operator.pow, (self, exponent))

    def __len__(self):
        return len(self.value)

    def refuse(self, *_):
        """Stop the trace: the step reads or overwrites a value."""
        self.trace.refuse("the value of an array")

    __bool__ = __int__ = __float__ = __index__ = __array__ = __iter__ = __setitem__ = refuse
    __repr__ = __str__ = __format__ = refuse


class TracingNamespace:
    """A library's namespace whose functions record calls on `Traced` arrays."""

    def __init__(self, namespace):
        self._namespace = namespace

    def __getattr__(self, name):
        function = getattr(self._namespace, name)
        if not callable(function) or isinstance(function, type):
            return function

        def call(*arguments, **settings):
            trace = trace_of(arguments)
            if trace is None:
                if has_symbols(arguments):
                    return innermost(arguments).add_by_name(name, arguments, settings)
                return function(*arguments, **settings)
            return trace.call(function, arguments, settings)

        setattr(self, name, call)  # for the next lookup
        return call


@dataclass
class Kind:
    """The metadata of a value."""

    shape: tuple
    dtype: Any
    """`int` or `float` for a Python scalar."""
    is_array: bool
    is_view: bool
    is_contiguous: bool
    nbytes: int
    memory: int
    """The index of the first value that shares its memory, which may be the value itself."""


class Ref(int):
    """The index of a value; an int is a Python scalar."""


@dataclass
class Call:
    """One call of a function; a str names a method of the first argument.

    With a `plan` it is a recorded kernel, which may be replaced by its operations.
    """

    function: Any
    arguments: Any
    settings: dict
    writes: tuple = ()
    """The values whose memory it overwrites."""
    plan: Any = None
    results: tuple = ()
    unpacks: bool = False
    """Whether it returns a tuple."""


class Trace:
    """The calls of a step. Its values have indices: first the inputs, then the results of calls."""

    def __init__(self, backend):
        self.backend = backend
        self.values: list[Kind] = []
        self.calls: list[Call] = []
        self.refused: str | None = None
        """Why the trace ended; the step may have caught the error."""
        self._inputs: list[Traced] = []
        self._constants: list[tuple] = []  # arrays that are not values of the trace, each with a copy

    def input(self, value: Any) -> Traced:
        """Return an input of the step as a `Traced` value."""
        traced = self._value(value, self._inputs)
        self._inputs.append(traced)
        return traced

    def refuse(self, reason: Any) -> NoReturn:
        """End the trace."""
        self.refused = str(reason)
        raise NotTraceableError(reason)

    def _value(self, value: Any, others, makes_view: bool = False) -> Traced:
        """Add a value. `others` are the earlier values whose memory it may share."""
        index, is_array = len(self.values), self.backend.is_array
        if is_array(value):
            share = self.backend.share_memory
            shared = next((o for o in others if is_array(o.value) and share(o.value, value)), None)
            memory = index if shared is None else self.values[shared.index].memory
            is_view = makes_view and shared is not None
            kind = Kind(
                value.shape, value.dtype, True, is_view, value.flags.c_contiguous, value.nbytes, memory
            )
        elif isinstance(value, (np.generic, int, float)):
            kind = Kind((), getattr(value, "dtype", type(value)), False, False, False, 0, index)
        else:
            self.refuse(type(value))
        self.values.append(kind)
        return Traced(self, index, value)

    def call(
        self, function, arguments, settings=None, writes=(), plan=None, run=None, may_write=False
    ) -> Any:
        """Run a call, or `run` instead of its function, and record it.

        It returns an array, a tuple of new arrays, or None. `writes` are the arguments that it overwrites. A
        call that writes into any other array, such as `a += b`, ends the trace, which does not keep the order
        of such calls. `may_write` says that the function may write into its arguments.
        """
        settings = settings or {}
        given, named = untraced(arguments), untraced(settings)
        scalars_only = all(type(a) in (int, float) for a in given)  # np.float64 is a subclass of float
        if not scalars_only:
            function = self.backend.native(function)
        elif all(isinstance(a, int) for a in given) and isinstance(function, np.ufunc):
            exact = function(*(np.array(a, dtype=object) for a in given))
            if abs(exact) >= 2**53:  # integers of Python are unbounded, those of a compiled step are not
                self.refuse(f"{function.__name__} of large integers")
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
            value = value.item() if scalars_only else value  # scalars alone give Python scalars
        call = Call(
            function,
            self._as_refs(arguments),
            self._as_refs(settings),
            tuple(Ref(array.index) for array in writes),
            plan,
        )
        self.calls.append(call)
        if value is None:
            return None
        others = [leaf for leaf in leaves([arguments, settings]) if type(leaf) is Traced]
        if type(value) is tuple:
            results = tuple(self._value(item, others, makes_view=not writes) for item in value)
            call.results, call.unpacks = tuple(Ref(result.index) for result in results), True
            return results
        result = self._value(value, others, makes_view=not writes)
        call.results = (Ref(result.index),)
        return result

    def _as_refs(self, value):
        """Return an argument with a `Ref` for each value; record the constants in it."""

        def ref(leaf):
            if type(leaf) is Traced:
                return Ref(leaf.index)
            if self.backend.is_array(leaf):
                self._constants.append((leaf, leaf.copy()))
            return leaf

        return _each(value, ref)

    def end(self) -> bool:
        """End the trace; return whether the constant arrays are unchanged."""
        self._inputs.clear()  # the trace outlives the arrays of the step
        return all(self._same(array, copy) for array, copy in self._constants)

    def same_as(self, other: "Trace") -> bool:
        """Whether two traces have the same calls on the same values."""

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
        if isinstance(a, types.FunctionType) and a is not b:  # such as a lambda, created in each step
            return a.__code__ is b.__code__ and self._same(*(_surroundings(f) for f in (a, b)))
        if (
            callable(a)
            and hasattr(type(a), "__dict__")
            and not isinstance(a, (type, *_COMPARABLE))
            and a is not b
        ):
            key = kernel_key(a)  # objects that compare equal may behave differently
            return key is not None and key == kernel_key(b)
        # Methods of ufuncs, such as np.add.reduce, are new objects at each lookup.
        return a is b or (a == b and (type(a) is not float or str(a) == str(b)))


# Objects of these types that compare equal do the same: bound methods, and functions in C.
_COMPARABLE = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType, np.ufunc)


def _surroundings(function) -> list:
    """Return the defaults and the closure of a function."""
    return [
        function.__defaults__,
        function.__kwdefaults__,
        [c.cell_contents for c in function.__closure__ or ()],
    ]


def trace_of(values) -> Trace | None:
    """Return the trace of the first `Traced` value among some, or inside their lists; None if there is none."""
    for value in values:
        if type(value) is Traced:
            return value.trace
        if type(value) in (list, tuple) and (trace := trace_of(value)) is not None:
            return trace
    return None


def untraced(value):
    """Return a value, or the values in tuples, lists and dicts, without their `Traced` wrappers."""
    return _each(value, lambda leaf: leaf.value if type(leaf) is Traced else leaf)


# Functions that write into their first argument. Others do so with `out`.
_WRITERS = frozenset({"copyto", "fill_diagonal", "place", "put", "put_along_axis", "putmask"})


def writes_in_place(function, settings: dict) -> bool:
    """Whether a call writes into one of its arguments, according to its name and settings."""
    copies = settings.get("copy", True) is not False or _name_of(function) != "nan_to_num"
    return settings.get("out") is not None or _name_of(function) in _WRITERS or not copies


def _name_of(function) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", "")


def leaves(value) -> list:
    """Return the leaves of nested tuples, lists and dicts."""
    if type(value) is dict:
        value = list(value.values())
    return [leaf for item in value for leaf in leaves(item)] if type(value) in (tuple, list) else [value]


def _each(value, function):
    if type(value) in (tuple, list):
        return type(value)([_each(item, function) for item in value])
    if type(value) is dict:
        return {name: _each(item, function) for name, item in value.items()}
    return function(value)
