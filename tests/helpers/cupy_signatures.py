"""What the engine calls through `xp`, read from its source, and what CuPy's namespace offers.

    python tests/helpers/cupy_signatures.py     # after a change of version: writes reference/cupy_signatures.json

The file holds the signatures of the functions of the array-API standard in `array_api_compat.cupy`,
so that the comparison needs neither CuPy nor a device.
"""

import ast
import contextlib
import importlib.metadata
import inspect
import json
import operator
from collections.abc import Iterator
from dataclasses import dataclass

from paths import ROOT

STORED = ROOT / "tests/reference/cupy_signatures.json"


@dataclass(frozen=True)
class Use:
    """One mention of `xp.name`; if it is a call, with the number of its arguments and its keywords."""

    place: str
    name: str
    positional: int | None = None
    keywords: tuple[str, ...] = ()

    def problem(self, signatures: dict[str, str | None]) -> str | None:
        """Return what CuPy would not accept, or None."""
        if self.name not in signatures:
            return f"{self.place}: CuPy has no {self.name}"
        parameters = signatures[self.name]
        if self.positional is None or parameters is None:
            return None
        signature = inspect.signature(eval(f"lambda {parameters}: None"))
        try:
            signature.bind(*[None] * self.positional, **dict.fromkeys(self.keywords))
        except TypeError as error:
            return f"{self.place}: CuPy has {self.name}({parameters}): {error}"
        return None


def uses(source: str, file: str) -> Iterator[Use]:
    """Yield every mention of a name of `xp` (or `ctx.xp`, `self.backend.xp`, ...) in a source."""
    inner = set()  # nodes that are part of one that has been dealt with
    for node in ast.walk(ast.parse(source)):
        call = node if isinstance(node, ast.Call) else None
        attribute = call.func if call else node
        name = None if node in inner else name_in_namespace(attribute)
        if name is None:
            continue
        inner |= set(ast.walk(attribute))
        place = f"{file}:{attribute.lineno}"
        if call is None or any(isinstance(a, ast.Starred) for a in call.args):
            yield Use(place, name)
        else:
            yield Use(place, name, len(call.args), tuple(k.arg for k in call.keywords if k.arg))


def name_in_namespace(node: ast.AST) -> str | None:
    """Return `linalg.norm` for `ctx.xp.linalg.norm`; None for what is no name of a namespace `xp`."""
    names = []
    while isinstance(node, ast.Attribute) and node.attr != "xp":
        names.append(node.attr)
        node = node.value
    is_namespace = isinstance(node, ast.Attribute) or (isinstance(node, ast.Name) and node.id == "xp")
    return ".".join(reversed(names)) if names and is_namespace else None


def engine_uses() -> list[Use]:
    files = [*sorted((ROOT / "nnx").rglob("*.py")), ROOT / "backends/shared/flat.py"]
    return [use for f in files for use in uses(f.read_text(), f.relative_to(ROOT).as_posix())]


def cupy_signatures() -> dict:
    """Return what the file should hold for the CuPy that is installed."""
    import array_api_compat.cupy as xp
    import array_api_strict

    standard = [*array_api_strict.__all__, *(f"linalg.{name}" for name in array_api_strict.linalg.__all__)]
    signatures = {}
    for name in sorted(standard):
        with contextlib.suppress(AttributeError):
            value = operator.attrgetter(name)(xp)
            if not inspect.ismodule(value):
                signatures[name] = parameters(value)
    versions = {name: importlib.metadata.version(name) for name in ("cupy-cuda13x", "array-api-compat")}
    return {**versions, "signatures": signatures}


def parameters(function) -> str | None:
    """Return the parameters of a function with `...` for defaults; None for types, constants and builtins."""
    if hasattr(function, "nin"):  # a ufunc, which has no signature
        names = ", ".join(f"x{i + 1}" for i in range(function.nin))
        return f"{names}, /, out=..., *, dtype=..., casting=..."
    if isinstance(function, type) or inspect.isbuiltin(function) or not callable(function):
        return None
    kept = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:  # they are passed on: nobody says to what
            continue
        default = ... if parameter.default is not parameter.empty else parameter.empty
        kept.append(parameter.replace(default=default, annotation=parameter.empty))
    return str(inspect.Signature(kept)).strip("()").replace("Ellipsis", "...")


def stored() -> dict:
    return json.loads(STORED.read_text())


if __name__ == "__main__":
    STORED.write_text(json.dumps(cupy_signatures(), indent=1) + "\n")
