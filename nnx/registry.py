"""Names for things: `activation="relu"`, `loss="mse"`, `optimizer="adam"`.

A `Registry` turns what a user may write (a name, a class, an instance, a saved configuration)
into an object, and suggests the nearest name when it knows none. A `Strict` object refuses
arguments and attributes that it does not know. A `Configurable` object can be written into a file
as plain data and made again from it: it keeps every argument of its `__init__` under the
argument's own name.
"""

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType, NoneType, UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints

__all__ = ["REGISTRIES", "Configurable", "Registry", "Strict", "decode", "encode", "register"]

OTHER_NAMES = {
    "lr": ("learning_rate",),
    "decay": ("weight_decay",),
    "eps": ("epsilon",),
    "alpha": ("negative_slope",),
    "p": ("rate",),
    "out_features": ("units",),
    "out_channels": ("filters",),
    "batch_input_shape": ("input_shape",),
    "bias": ("use_bias",),
}
"""What older versions of Keras, or PyTorch, call an argument: the names it has here."""


def suggest(kind: str, name: str, known) -> str:
    """Return the text of an error about an unknown name: the nearest known one, then all."""
    import difflib  # here, as all that few need: `import nnx` is to be short

    known = sorted(set(known))
    near = [other for other in OTHER_NAMES.get(name, ()) if other in known]
    near = near or difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}Known: {', '.join(known)}"


class Registry:
    """The known objects of one kind, each under one or more names.

    Names are compared without case or underscores, so that `"mean_squared_error"`,
    `"MeanSquaredError"` and the alias `"mse"` all find the same class.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Any] = {}
        self._names: list[str] = []

    def register(self, *names: str):
        """Return a class decorator: the class becomes known under its own name and `names`.

        Without names it can be read from a file, but is not among those that can be chosen. A class that
        is defined again, as when the cell of a notebook is run again, replaces the older one.

        Raises
        ------
        ValueError
            If another class has one of the names.
        """

        def add(cls):
            for name in (cls.__name__, *names):
                other = self._entries.get(_plain(name))
                if other is not None and not is_same_class(other, cls):
                    raise ValueError(
                        f"there is already a {self.kind} called {name!r}, {other.__module__}.{other.__qualname__}: "
                        f"give {cls.__module__}.{cls.__qualname__} another name"
                    )
            self._entries = {key: old for key, old in self._entries.items() if not is_same_class(old, cls)}
            self._entries.update({_plain(name): cls for name in (cls.__name__, *names)})
            self._names += [name for name in names[:1] if name not in self._names]
            return cls

        return add

    def names(self) -> list[str]:
        """Return the name of each entry, in the order of registration."""
        return list(self._names)

    def find(self, name: str):
        """Return what `name` stands for, or raise a ValueError with the nearest known name."""
        try:
            return self._entries[_plain(name)]
        except KeyError:
            raise ValueError(suggest(self.kind, name, self._names)) from None

    def known(self, name: str):
        """Return what `name` stands for, or None."""
        return self._entries.get(_plain(name))

    def get(self, what, base: type | None = None) -> Any:
        """Return the object that `what` names: a name, class, saved configuration or instance."""
        if isinstance(what, str):
            return self.find(what)()
        if isinstance(what, dict):
            what = decode(what)
        if isinstance(what, type):
            what = what()
        if base is not None and not isinstance(what, base):
            raise TypeError(f"{self.kind} must be a name or a {base.__name__}, got {what!r}")
        return what


def is_same_class(one: type, other: type) -> bool:
    """Whether two classes have one place in one module: one definition that has been run twice."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def snake_case(name: str) -> str:
    """Return a class name as Keras names its layers.

    >>> snake_case("BatchNormalization"), snake_case("ReLU"), snake_case("Conv2D")
    ('batch_normalization', 're_lu', 'conv2d')
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z][a-z])|(?<=[a-z])(?=[A-Z]{2})", "_", name).lower()


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


REGISTRIES: dict[str, Registry] = {
    kind: Registry(kind)
    for kind in (
        "activation",
        "initializer",
        "layer",
        "loss",
        "metric",
        "optimizer",
        "regularizer",
        "schedule",
    )
}


_changes = 0


def changes() -> int:
    """Return how many attributes of layers, losses, optimizers, ... have been set so far in this process."""
    return _changes


class Strict:
    """Base of what users make and set: an object of nnx's own classes refuses what it does not know.

    Its class is called with arguments of `__init__` alone, and those that are declared as numbers,
    texts or lists must be such. A public attribute can be set if it is one of the arguments or
    declared in a class: a misspelt one would have no effect. Classes of the user's own are free to
    have any attribute, and so are names that begin with an underscore.

    >>> from nnx.activations import ELU
    >>> ELU().alhpa = 0.1
    Traceback (most recent call last):
    ...
    AttributeError: unknown attribute of ELU 'alhpa': did you mean 'alpha'? Known: alpha, elementwise, kind, needs_input
    """

    other_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments that `__init__` takes beside those it names."""

    def __new__(cls, *arguments, **settings):
        if (arguments or settings) and (getattr(cls.__init__, "__module__", None) or "").startswith("nnx."):
            _check_arguments(cls, arguments, settings)
        return super().__new__(cls)

    def __init__(self):
        pass

    def __setattr__(self, name, value):
        if name not in vars(self) and not name.startswith("_") and is_builtin(self):
            known = _attributes(type(self))
            if name not in known and not hasattr(type(self), name):
                raise AttributeError(
                    suggest(f"attribute of {type(self).__name__}", name, known | _public(vars(self)))
                )
        super().__setattr__(name, value)


def _check_arguments(cls, arguments, settings) -> None:
    """Raise an error that names the argument, unless the class takes these."""
    known = init_arguments(cls)
    for name in settings:
        if name not in known and name not in cls.other_arguments:
            raise TypeError(suggest(f"argument of {cls.__name__}", name, {*known, *cls.other_arguments}))
    positions, kinds = _kinds_of_arguments(cls)
    for name, value in [*zip(positions, arguments, strict=False), *settings.items()]:
        kind = kinds.get(name)
        if kind is not None and value is not known[name] and not any(_KINDS[k][1](value) for k in kind):
            expected = " or ".join(_KINDS[k][0] for k in kind)
            raise ValueError(f"{cls.__name__}: {name} must be {expected}, got {value!r}")
    if len(arguments) > len(positions) and not _rest(cls):
        most = f"at most {len(positions)}" if positions else "no"
        raise TypeError(f"{cls.__name__} takes {most} arguments without a name, got {len(arguments)}")


def is_number(value, method: str = "__float__") -> bool:
    """Whether a value is one real number, of Python or of an array library; with "__index__", a whole one."""
    return hasattr(value, method) and getattr(value, "shape", ()) == ()


# What an argument that is declared as one of these may be.
_KINDS: dict[type, tuple[str, Callable[[Any], bool]]] = {
    int: ("a whole number", lambda value: is_number(value, "__index__")),
    float: ("a number", is_number),
    bool: ("True or False", lambda value: is_number(value, "__index__") and value in (0, 1)),
    str: ("a text", lambda value: isinstance(value, str)),
    list: (
        "a list such as [a, b]",
        lambda value: hasattr(value, "__iter__") and not isinstance(value, (str, bytes, dict)),
    ),
    NoneType: ("None", lambda value: value is None),
}


@functools.lru_cache(maxsize=512)
def _kinds_of_arguments(cls) -> tuple[list[str], dict[str, tuple[type, ...]]]:
    """Return the positional arguments of a class, and what kinds of value each of its arguments may be."""
    positions: list[str] = []
    kinds: dict[str, tuple[type, ...]] = {}
    owners = []
    for owner, parameter in _init_parameters(cls):
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and owner is (owners or [owner])[0]:
            positions.append(parameter.name)
        if not owners or owners[-1] is not owner:
            owners.append(owner)
    for owner in owners:
        for name, hint in get_type_hints(owner.__init__).items():
            members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            if all(get_origin(m) is None and m in _KINDS for m in members):
                kinds.setdefault(name, members)
    return positions, kinds


@functools.lru_cache(maxsize=512)
def _attributes(cls) -> frozenset[str]:
    """Return the public attributes that objects of a class may have, methods left out."""
    declared = {
        name for owner in cls.__mro__ for name in (*init_arguments(owner), *inspect.get_annotations(owner))
    }
    fixed = {
        name
        for name in dir(cls)
        if callable(value := getattr(cls, name)) or getattr(value, "fset", 1) is None
    }
    return _public({*declared, *dir(cls)} - fixed)


def _public(names) -> frozenset[str]:
    return frozenset(name for name in names if not name.startswith("_") and name != "other_arguments")


class Configurable(Strict):
    """An object that remembers its `__init__` arguments as attributes of the same names.

    >>> from nnx.layers import Dropout
    >>> Dropout(0.5).get_config()
    {'rate': 0.5, 'seed': None, 'name': None, 'input_shape': None}
    """

    kind: ClassVar[str]

    def __setattr__(self, name, value):
        # A NumPy number, as a random search draws it, would widen the dtype of what it meets.
        if hasattr(value, "item") and getattr(value, "shape", None) == ():
            value = value.item()
        super().__setattr__(name, value)
        global _changes
        _changes += 1

    def get_config(self) -> dict:
        """Return the `__init__` arguments as plain data: numbers, strings, lists and dicts."""
        return {name: encode(getattr(self, name)) for name in init_arguments(type(self))}

    def __repr__(self):
        defaults = init_arguments(type(self))
        shown = {name: getattr(self, name, None) for name in defaults}
        changed = [f"{name}={value!r}" for name, value in shown.items() if _differs(value, defaults[name])]
        return f"{type(self).__name__}({', '.join(changed)})"


def register(cls):
    """Class decorator: make a layer, loss, optimizer, ... of your own known by its class name.

    It can then be named in a string and read back from a saved model. A class that is defined again, as
    in a notebook, replaces the older one; a name that another class has is a ValueError.

    >>> import nnx
    >>> @nnx.register
    ... class Swing(nnx.layers.Layer):
    ...     "A layer of one's own."
    >>> nnx.registry.decode(nnx.registry.encode(Swing()))
    Swing()
    """
    kind = getattr(cls, "kind", None)
    if not isinstance(cls, type) or kind not in REGISTRIES:
        raise TypeError(
            f"nnx.register takes a class derived from one of nnx's, of the kinds {', '.join(REGISTRIES)}, got {cls!r}"
        )
    REGISTRIES[kind].register(cls.__name__)(cls)
    return cls


def is_builtin(value) -> bool:
    """Whether nnx itself defines the class of `value`: then its `__init__` arguments describe it completely."""
    return type(value).__module__.startswith("nnx.")


def _init_parameters(cls) -> Iterator[tuple[type, inspect.Parameter]]:
    """Yield the class and the parameter of each argument of `cls.__init__`, those of `**settings` included."""
    for owner in cls.__mro__:
        if "__init__" not in vars(owner) or owner is object:
            continue
        parameters = list(inspect.signature(owner.__init__).parameters.values())[1:]
        yield from ((owner, p) for p in parameters if p.kind is not p.VAR_KEYWORD)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break


@functools.lru_cache(maxsize=512)
def init_arguments(cls) -> Mapping[str, Any]:
    """Return the arguments of `cls.__init__` and their defaults, those of `**settings` included."""
    arguments: dict[str, Any] = {}
    for _, parameter in _init_parameters(cls):
        rest = parameter.kind is parameter.VAR_POSITIONAL
        arguments.setdefault(parameter.name, () if rest else parameter.default)
    return MappingProxyType(arguments)


def _differs(value, default) -> bool:
    if isinstance(default, str) and isinstance(value, Configurable):
        return type(value) is not REGISTRIES[value.kind].find(default)
    return value is not default and value != default


def encode(value) -> Any:
    """Return `value` as plain data that JSON can hold and `decode` can read."""
    if isinstance(value, Configurable):
        name, config = type(value).__name__, value.get_config()
        known = REGISTRIES[value.kind].known(name)
        # One of a class that was defined again is made anew from the newer; not so where classes are made
        # in a function, whose variables may differ.
        is_local = "<locals>" in type(value).__qualname__
        if known is not type(value) and (known is None or is_local or not is_same_class(known, type(value))):
            raise TypeError(
                f"cannot save {value!r}: decorate class {name} with @nnx.register, under a name of its own"
            )
        return {"kind": value.kind, "class_name": name, "config": config}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {key: encode(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "item"):  # a NumPy scalar
        return value.item()
    raise TypeError(
        f"cannot save {value!r}: only numbers, strings and registered objects can be written to a file; "
        f"make it a class decorated with @nnx.register"
    )


def decode(value) -> Any:
    """Make the object again that `encode` described. Runs no code but that of registered classes."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "class_name" not in value:
        return {key: decode(item) for key, item in value.items()}
    kind, name = value.get("kind"), value["class_name"]
    if kind not in REGISTRIES:
        raise ValueError(suggest("kind of object", str(kind), REGISTRIES))
    try:
        cls = REGISTRIES[kind].find(name)
    except ValueError as error:
        raise ValueError(f"{error}. A class of your own must be decorated with @nnx.register first") from None
    config = {key: decode(item) for key, item in value.get("config", {}).items()}
    return cls(*config.pop(_rest(cls), []), **config)


@functools.cache
def _rest(cls) -> str | None:
    """Return the name of the argument `*rest` of a class, if it has one."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
