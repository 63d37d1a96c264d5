"""Fingerprints: all that an object refers to, as a value that can be compared to detect changes.

A compiled step contains the scalars and functions that layers, losses and optimizers referred to when it
was traced. Their fingerprint tells whether they still refer to the same:

    fingerprint(Dropout(0.2)) == fingerprint(Dropout(0.2)) != fingerprint(Dropout(0.3))

The fingerprint of an object of nnx consists of the arguments of its `__init__`; that of a user's object of
all attributes, the code of its class, and all that this code refers to: closures, defaults, and globals.
Arrays and containers are compared by content, everything else by identity.
"""

import collections
import functools
import itertools
import marshal
import operator
import sys
import types
from collections.abc import Hashable, Iterator
from typing import Any

import numpy as np

from nnx import registry
from nnx.registry import Configurable, init_arguments, is_builtin

LARGE = 1 << 24
"""Arrays of more bytes are compared by identity: a compiled step reads them in place."""
MOST_OBJECTS = 20_000
"""The most objects that a fingerprint follows; see `Fingerprint.is_partial`."""

_PLAIN = (bool, int, complex, str, bytes, type(None))
_SCALARS = {*_PLAIN, float}
_CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque)
_WITH_ATTRIBUTES = {"argparse", "collections", "configparser", "types"}
"""Modules of the standard library whose objects are compared by their attributes."""
_UNCHANGEABLE = {"_abc", "_thread", "abc", "builtins", "dataclasses", "datetime", "decimal", "enum", "fractions",
                 "functools", "inspect", "logging", "numbers", "operator", "pathlib", "re", "threading", "typing",
                 "uuid", "weakref", "zoneinfo"}  # fmt: skip
"""Modules of the standard library whose objects do not change in a way that affects a step."""
_UNPREDICTABLE = {"SystemRandom", "Random", "RandomState", "default_rng", "eval", "exec", "globals", "monotonic",
                  "perf_counter", "perf_counter_ns", "secrets", "time_ns", "urandom", "uuid4"}  # fmt: skip
"""Names in code whose results are unpredictable."""
_OUTSIDE = {"ATTR", "GLOBAL", "DEREF", "SUBSCR"}
"""The kinds of store instructions whose effect is visible outside of the function."""
_NOT_IN_A_STEP = {"__init__", "__repr__", "init", "init_state", "out_shape", "get_config", "flops"}
"""Methods that are never called in a step."""


class Settings:
    """Detects whether anything that some objects refer to has changed."""

    def __init__(self):
        self.key: Hashable = None
        """The last fingerprint of the objects."""
        self.is_users = False
        """Whether the user's code is among them."""
        self.is_watched = False
        """Whether they may change without an attribute being set."""
        self._changes = -1
        self._parts: tuple = ()

    def have_changed(self, parts) -> bool:
        """Return whether `parts` refer to anything else than at the last call; True at the first call."""
        # Objects of nnx change only when an attribute is set.
        parts = parts if isinstance(parts, tuple) else (parts,)
        are_same = len(parts) == len(self._parts) and all(map(operator.is_, parts, self._parts))
        if are_same and not self.is_watched and self._changes == registry.changes():
            return False
        self._parts = parts
        before, self._changes, fingerprint = self.key, registry.changes(), Fingerprint()
        self.key = fingerprint.of(parts)
        self.is_users = fingerprint.has_user_code
        self.is_watched = fingerprint.has_user_code or fingerprint.has_containers
        return self.key != before


class Identity:
    """An object compared by identity. It is kept alive, so that its address is not reused."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, Identity) and self.value is other.value

    def __hash__(self):
        return id(self.value)


class HoldsArrayError(Exception):
    """An array was met though `refuse_arrays` is set; see `Fingerprint`."""


def kernel_key(function) -> Hashable | None:
    """Return a key of all that a kernel depends on besides its arguments.

    None if it depends on arrays, which are slow to compare, or on anything that may change at each call.
    """
    if isinstance(function, types.FunctionType) and function.__closure__ is None and _is_nnx(function):
        return function
    owner = getattr(function, "__self__", None)
    if isinstance(owner, Configurable) and is_builtin(
        owner
    ):  # such as an activation: the usual case, and quick
        settings = [getattr(owner, name) for name in settings_of(type(owner))]
        if {*map(type, settings)} <= _SCALARS:
            return getattr(function, "__func__", None), type(owner), repr(settings)
    fingerprint = Fingerprint(refuse_arrays=True)
    try:
        key = fingerprint.of(function)
    except HoldsArrayError:
        return None
    return None if fingerprint.has_generators or fingerprint.is_partial else key


class Fingerprint:
    """One computation of a fingerprint: `of(value)` returns it.

    Parameters
    ----------
    draws : bool
        Whether it includes the states of random number generators.
    refuse_arrays : bool
        Whether `HoldsArrayError` is raised at the first array, because hashing arrays is slow.
    """

    def __init__(self, draws: bool = False, refuse_arrays: bool = False):
        self.draws, self.refuse_arrays = draws, refuse_arrays
        self.has_user_code = False
        """Whether it includes a function or class of neither nnx nor a library."""
        self.has_containers = False
        """Whether it includes a list, dict or array, whose elements may be replaced."""
        self.sets_names = False
        """Whether the user's code sets attributes or globals."""
        self.has_generators = False
        """Whether it includes a random number generator or an iterator."""
        self.is_partial = False
        """Whether it includes something that cannot be compared, or more objects than are followed."""
        self._packages: set[str] = set()  # installed packages that count as the user's code
        self._indices: dict[int, int] = {}  # of the objects met, by their address
        self._alive: list = []  # these objects
        self._count = 0  # how many of them are not of nnx

    def of(self, value) -> Hashable:
        """Return the fingerprint of `value`."""
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if kind is float:
            return kind, value.hex()  # distinguishes 0.0 from -0.0, and nan equals nan
        if isinstance(value, np.generic):
            return kind, value.tobytes()
        if id(value) in self._indices:
            return "met before", self._indices[id(value)]
        self._indices[id(value)] = len(self._indices)
        self._alive.append(value)
        if isinstance(value, Configurable) and is_builtin(value):
            return self._settings(value)
        self._count += 1
        if self._count > MOST_OBJECTS:
            self.is_partial = True
            return Identity(value)
        return self._of_object(value)

    def _of_object(self, value) -> Hashable:
        if isinstance(value, np.ndarray) and type(value) is np.ndarray:
            return self._array(value)
        if isinstance(value, types.MappingProxyType):
            return "proxy", self.of(dict(value))
        for plain in (int, float, complex, str, bytes):
            if isinstance(value, plain):  # an instance of a subclass
                content: Any = plain.__repr__
                return content(value), self._attributes(value)
        if isinstance(value, (bytearray, memoryview)) or type(value).__module__ == "array":
            return type(value), bytes(value)
        if isinstance(value, _CONTAINERS):
            own = () if type(value) in _CONTAINERS else self._attributes(value)
            return self._container(value), own
        if isinstance(value, np.ndarray):
            return self._array(value), self._attributes(value)
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if isinstance(value, (np.ufunc, np.dtype)):
            return Identity(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return "method", self.of(value.__func__), self.of(value.__self__)
        if isinstance(value, (types.BuiltinMethodType, types.MethodWrapperType)):
            return self._builtin(value)
        if isinstance(value, functools.partial):
            return "partial", self.of(value.func), self.of(value.args), self.of(value.keywords)
        if _is_generator(value):
            self.has_generators = True
            if type(value).__name__ == "SystemRandom":  # it has no state
                self.is_partial = True
                return Identity(value)
            return Identity(value), generator_state(value) if self.draws else None
        if isinstance(value, Iterator):
            return self._iterator(value)
        return self._attributes(value)

    def _array(self, value):
        if self.refuse_arrays:
            raise HoldsArrayError
        self.has_containers = True
        if value.nbytes > LARGE or value.dtype.hasobject:
            return Identity(value)
        return value.shape, value.dtype.str, hash(value.tobytes())

    def _container(self, value) -> Hashable:
        items = [*value, *value.values()] if isinstance(value, dict) else value
        if type(value) in _CONTAINERS[:-1] and {*map(type, items)} <= _SCALARS:
            self.has_containers |= bool(value) and not isinstance(value, (tuple, frozenset))
            return marshal.dumps(value, 2)  # distinguishes 1, 1.0 and True
        if isinstance(value, dict):
            items = tuple((self.of(key), self._named(key, item)) for key, item in value.items())
        else:
            items = tuple(self.of(item) for item in value)
        return type(value), items

    def _named(self, name, value):
        return (name, self.of(value)) if isinstance(name, str) else self.of(value)

    def _settings(self, value):
        # And public attributes that `__init__` computed from its arguments.
        computed = [n for n in vars(value) if not n.startswith("_") and n != "learning_rate"]
        names = dict.fromkeys([*settings_of(type(value)), *computed])
        return type(value), tuple(self._named(name, getattr(value, name)) for name in names)

    def _module(self, value):
        if self._is_library_module(value.__name__):
            return Identity(value)
        self.has_user_code = True
        items = [item for item in vars(value).items() if not item[0].startswith("__")]
        return Identity(value), tuple(self._named(*item) for item in items)

    def _iterator(self, value):
        self.has_generators = True
        if isinstance(value, types.GeneratorType):
            frame = value.gi_frame
            return Identity(value), frame and (frame.f_lasti, self.of(dict(frame.f_locals)))
        left = operator.length_hint(value, -1)
        if (
            left < 0 and type(value) is not itertools.count
        ):  # such as itertools.cycle, whose position is unknown
            self.is_partial = True
        return Identity(value), repr(value), left

    def _attributes(self, value):
        cls, module = type(value), type(value).__module__ or ""
        if _is_nnx(cls) and hasattr(value, "_params"):
            # A model: its weights are compared by identity, as its own training changes them.
            leaves = tuple(map(Identity, _leaves(value._params)))
            return Identity(value), value.step, leaves, self.of(value.network), self.of(value.optimizer)
        if module.startswith("nnx.backends") or (hasattr(cls, "dtype") and hasattr(cls, "shape")):
            return Identity(value)  # a backend, or an array of another library
        wrapped = self.of(getattr(value, "__wrapped__", None))
        package = module.partition(".")[0]
        is_standard = package in sys.stdlib_module_names and module != "__main__"
        if is_standard and module not in _WITH_ATTRIBUTES:
            if hasattr(value, "get") and package == "_contextvars":
                return Identity(value), self.of(value.get(None))
            self.is_partial |= package not in _UNCHANGEABLE and wrapped == (type(None), None)
            return Identity(value), wrapped
        if isinstance(value, Configurable):
            self._packages.add(module.partition(".")[0])
        held = {**getattr(value, "__dict__", {}), **_slots(value)}
        if not held and cls.__hash__ is object.__hash__:
            return Identity(value)
        parts = tuple(self._named(name, item) for name, item in held.items())
        return cls.__name__, self.of(cls), parts, wrapped

    def _builtin(self, value):
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            return Identity(value)
        return "method", value.__name__, self.of(owner)

    def _class(self, value):
        if self._is_library(value):
            return Identity(value)
        self.has_user_code = True
        owners = [owner for owner in value.__mro__ if not self._is_library(owner)]
        is_component = issubclass(value, Configurable)
        items = [(n, v) for owner in owners for n, v in vars(owner).items() if _counts(n, v, is_component)]
        return Identity(value), tuple(self._named(name, _function_of(item)) for name, item in items)

    def _function(self, value):
        references = {"closure": tuple(map(_content, value.__closure__ or ()))}
        references["defaults"] = (value.__defaults__, value.__kwdefaults__)
        if not self._is_library(value):
            self.has_user_code = True
            references |= vars(value) | self._globals(value)
        return Identity(value.__code__), tuple(self._named(*item) for item in references.items())

    def _globals(self, function) -> dict[str, Any]:
        """Return the globals that a function's code uses; of the user's modules, the attributes that it uses."""
        used, space = {}, function.__globals__
        names, attributes, sets, imports = _names(function.__code__)
        self.sets_names |= bool(sets)
        self.is_partial |= not _UNPREDICTABLE.isdisjoint([*names, *attributes])
        for module in filter(None, map(sys.modules.get, imports)):
            if not self._is_library_module(module.__name__):
                used |= {f"{module.__name__}.{part}": vars(module).get(part) for part in attributes}
        for name in names:
            value = space.get(name)
            if not isinstance(value, types.ModuleType):
                used |= {name: value} if name in space else {}
            elif not self._is_library_module(value.__name__):
                used |= {f"{name}.{part}": vars(value)[part] for part in attributes if part in vars(value)}
        return used

    def _is_library(self, value) -> bool:
        return self._is_library_module(getattr(value, "__module__", None) or "builtins")

    def _is_library_module(self, module: str) -> bool:
        package = module.partition(".")[0]
        return package not in self._packages and _is_installed(package)


@functools.lru_cache(maxsize=512)
def settings_of(cls) -> tuple[str, ...]:
    """Return the arguments of a class of nnx that a step depends on. The learning rate is an input of each step."""
    return tuple(name for name in init_arguments(cls) if name != "learning_rate")


def global_draws() -> tuple:
    """Return the states of the global generators of `random` and `numpy.random`."""
    python, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    return (
        ("the state of Python's random", None if python is None else python.getstate()),
        (
            "the state of numpy.random",
            None if numpy is None else repr(numpy.get_state()),
        ),
    )


def generator_state(generator) -> Hashable:
    """Return the state of a random number generator of Python or NumPy."""
    if isinstance(generator, (np.random.BitGenerator, np.random.SeedSequence)):
        return repr(generator.state)
    if isinstance(generator, np.random.RandomState):
        return repr(generator.get_state())
    if isinstance(generator, np.random.Generator):
        return repr(generator.bit_generator.state)
    return generator.getstate()


def _is_generator(value) -> bool:
    # Looked up in sys.modules, because importing them takes time.
    python, numpy = sys.modules.get("random"), sys.modules.get("numpy.random")
    if python is not None and isinstance(value, python.Random):
        return True
    names = ("Generator", "RandomState", "BitGenerator", "SeedSequence")
    return numpy is not None and isinstance(value, tuple(getattr(numpy, name) for name in names))


def difference(before, after) -> str:
    """Return the path to the first difference of two fingerprints, such as `Noise.scale`."""
    if type(before) is not tuple or type(after) is not tuple or len(before) != len(after):
        return ""
    named = before[0] if before and isinstance(before[0], str) and before[0] == after[0] else ""
    for a, b in zip(before, after, strict=True):
        if a != b:
            rest = difference(a, b)
            return f"{named}.{rest}" if named and rest else named or rest
    return ""


def _is_nnx(value) -> bool:
    return (value.__module__ or "").startswith("nnx.")


@functools.cache
def _is_installed(package: str) -> bool:
    """Whether a package is nnx, in the standard library, or installed."""
    if package == "__main__":
        return False
    file = getattr(sys.modules.get(package), "__file__", None) or ""
    return package in sys.stdlib_module_names or package == "nnx" or "-packages" in file


def _counts(name: str, value, is_component: bool) -> bool:
    """Whether a class attribute is compared; `is_component`: nnx creates the objects before any step."""
    if is_component and name in _NOT_IN_A_STEP:
        return False
    return not name.startswith("__") or isinstance(_function_of(value), types.FunctionType)


def _function_of(value):
    """Return the function of a property, static method or class method."""
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, functools.cached_property) else value


def _slots(value) -> dict[str, Any]:
    names = [(owner, name) for owner in type(value).__mro__ for name in getattr(owner, "__slots__", ())]
    private = {
        f"_{owner.__name__.lstrip('_')}{name}" if name.startswith("__") else name for owner, name in names
    }
    return {name: getattr(value, name) for name in sorted(private) if hasattr(value, name)}


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


@functools.lru_cache(maxsize=1024)
def _names(code: types.CodeType) -> tuple[list[str], list[str], list[str], list[str]]:
    """Return the globals that code reads, the attributes it uses, what it stores, and the modules it imports."""
    import dis  # rarely needed

    steps = [(step.opname.partition("_"), step.argval) for step in dis.get_instructions(code)]
    names = [name for (kind, _, what), name in steps if kind == "LOAD" and what in ("GLOBAL", "NAME")]
    sets = [name for (kind, _, what), name in steps if kind == "STORE" and what in _OUTSIDE]
    imports = [name for (kind, _, what), name in steps if (kind, what) == ("IMPORT", "NAME")]
    lists = names, [*code.co_names], sets, imports
    for part in code.co_consts:
        if isinstance(part, types.CodeType):  # of an inner function
            lists = tuple(a + b for a, b in zip(lists, _names(part), strict=True))
    names, attributes, sets, imports = ([*dict.fromkeys(each)] for each in lists)
    return names, attributes, sets, imports


def _leaves(tree) -> list:
    if isinstance(tree, dict):
        return [leaf for part in tree.values() for leaf in _leaves(part)]
    return [] if tree is None else [tree]
