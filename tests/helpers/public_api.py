"""What is public: every name of nnx and of its public modules, with its signature.

`python tests/helpers/public_api.py` writes the list to docs/api.txt; a test compares the two. So no name or argument
changes without the change being seen.
"""

import functools
import importlib
import inspect
import textwrap
import types

from paths import ROOT

import nnx
from nnx import registry

LIST = ROOT / "docs" / "api.txt"
HEADING = """\
Every public name of nnx, with its arguments. Names that begin with a dot are methods and attributes of the class
above; those of a layer are those of Layer, and so on. What is not here may change at any time.
Written by `make api`; a test compares.
"""


def public_modules() -> list[str]:
    """Return `nnx`, the modules among its names, and those for who writes a backend."""
    named = [name for name in nnx.__all__ if isinstance(getattr(nnx, name), types.ModuleType)]
    return ["nnx", *(f"nnx.{name}" for name in sorted({*named, *nnx._LAZY, "backend", "kernels"}))]


def listing() -> str:
    """Return the list."""
    lines, places = [HEADING], {}
    for module_name in public_modules():
        module = importlib.import_module(module_name)
        lines.append(f"\n{module_name}\n")
        for name in sorted(module.__all__):
            found = getattr(module, name)
            if isinstance(found, types.ModuleType):
                continue
            where = places.setdefault(found, f"{module_name}.{name}") if _has_identity(found) else None
            if where in (None, f"{module_name}.{name}"):
                lines.append(_entry(_described(name, found), indent=4))
                lines += [_entry(member, indent=8) for member in _members(found)]
            else:
                lines.append(_entry(f"{name} = {where}", indent=4))
    return "".join(lines)


def _entry(text: str, indent: int) -> str:
    return textwrap.fill(text, 118, initial_indent=" " * indent, subsequent_indent=" " * (indent + 8)) + "\n"


def _has_identity(found) -> bool:
    return isinstance(found, (type, types.FunctionType))


def _described(name: str, found) -> str:
    if isinstance(found, type) and issubclass(found, BaseException):
        return f"{name}, a {found.__bases__[0].__name__}"
    if not callable(found):
        return name
    return name + _signature(found)


def _signature(function) -> str:
    """Return the arguments, without annotations, and of a default that is no plain value only that there is one."""
    signature, parameters = inspect.signature(function), []
    for parameter in signature.parameters.values():
        default = parameter.default
        if default is not parameter.empty and not isinstance(default, (str, int, float, tuple, type(None))):
            parameter = parameter.replace(default=_SomeDefault())
        if parameter.name not in ("self", "cls"):
            parameters.append(parameter.replace(annotation=parameter.empty))
    return str(signature.replace(parameters=parameters, return_annotation=signature.empty))


class _SomeDefault:
    def __repr__(self):
        return "..."


def _members(cls):
    """Yield the public methods and attributes of a class, unless a public one that it is made from has them."""
    if not isinstance(cls, type) or issubclass(cls, BaseException):
        return
    bases = {base for base in cls.__mro__[1:] if base in _public_classes()}
    if bases - {registry.Strict} and nnx.Model not in bases:
        return
    members, known = {}, {*inspect.signature(cls).parameters, *(name for base in bases for name in dir(base))}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] == "nnx":
            members |= vars(base)
    for name in sorted(members.keys() - known):
        if name.startswith("_") or name.endswith("_request"):  # which scikit-learn makes
            continue
        found = getattr(members[name], "__func__", members[name])  # of a class method
        yield f".{name}{_signature(found) if isinstance(found, types.FunctionType) else ''}"


@functools.cache
def _public_classes() -> set[type]:
    modules = [importlib.import_module(name) for name in public_modules()]
    named = [getattr(module, name) for module in modules for name in module.__all__]
    return {found for found in named if isinstance(found, type)}


if __name__ == "__main__":
    LIST.write_text(listing(), encoding="utf-8")
    print(f"wrote {LIST}")
