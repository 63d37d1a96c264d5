"""What may import what. Each folder of nnx/ and backends/ says it in its docstring: `May import: core, layers, NumPy.`

The core is the modules of nnx/ itself, except the few that users import by name and that build on the folders.
"""

import ast
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from paths import ROOT

from nnx.layers.base import Layer

ARRAY_LIBRARIES = {"numpy", "scipy", "cupy", "cupyx", "jax", "jaxlib", "array_api_compat", "torch"}
FRONT = {"__init__", "__main__", "datasets", "diagnosis", "onnx", "testing", "utils"}
"""Modules of nnx/ that build on the folders."""


def folder_of(module: str) -> str:
    """Return the folder of a module: "layers", "backends.numpy", "core" or "front"."""
    _, *names = module.split(".")
    if names[:1] == ["backends"]:
        return ".".join(names[:2])
    if names and (ROOT / "nnx" / names[0]).is_dir():
        return names[0]
    return "front" if not names or names[0] in FRONT else "core"


@functools.cache
def modules() -> dict[str, Path]:
    """Return the file of each module of nnx and nnx.backends."""
    files = {}
    for root, package in (("nnx", "nnx"), ("backends", "nnx.backends")):
        for path in (ROOT / root).rglob("*.py"):
            names = path.relative_to(ROOT / root).with_suffix("").parts
            names = names[:-1] if names[-1] == "__init__" else names
            if path.relative_to(ROOT).parts[:2] != ("nnx", "backends"):
                files[".".join([package, *names])] = path
    return files


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Return all that a module imports at its top or in a function, but for types alone."""
    path, found = modules()[module], set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    nodes = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            )
            source = ".".join(filter(None, [base, node.module or ""]))
            full = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else source for name in full}
    return frozenset(found - {module})


def rules(folder: str) -> set[str]:
    """Return what the modules of a folder may import: folders and array libraries."""
    if folder == "core":
        return {"core", "numpy"}
    init = (
        ROOT / ("nnx" if not folder.startswith("backends") else "") / Path(*folder.split(".")) / "__init__.py"
    )
    text = " ".join((ast.get_docstring(ast.parse(init.read_text())) or "").split())
    rule = re.search(r"May import: ([^.]*(?:\.\w[^.]*)*)\.(?: |$)", text)
    assert rule, f"{init}: the docstring must end in a sentence such as  May import: core, layers, NumPy."
    return {folder, *rule[1].lower().split(", ")}


MODULES = sorted(module for module in modules() if folder_of(module) != "front")
FOLDERS = sorted({folder_of(module) for module in MODULES} - {"core", "backends"})


def test_modules_are_found():
    assert {"nnx.layers.dense", "nnx.training.step", "nnx.backends.numpy.fusion", "nnx.kernels"} <= set(
        MODULES
    )
    assert {"layers", "backends.shared", "graph"} <= set(FOLDERS)
    assert "nnx.layers.base" in imports("nnx.layers.dense")
    assert "nnx.backends.shared.eager" in imports("nnx.backends.numpy.backend")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_what_its_folder_may(module):
    folder = folder_of(module)
    if folder == "backends":
        return
    allowed = rules(folder)
    for name in imports(module):
        top = name.split(".")[0]
        if top == "nnx":
            assert folder_of(name) in allowed, (
                f"{module} imports {name}: {folder} may import {sorted(allowed)}"
            )
        elif top in ARRAY_LIBRARIES:
            assert top in allowed, f"{module} imports {name}: {folder} may import {sorted(allowed)}"


@pytest.mark.parametrize("module", [module for module in MODULES if folder_of(module) == "core"])
def test_a_core_module_that_imports_numpy_works_on_the_host(module):
    """All others run on every array library."""
    if "numpy" in imports(module):
        assert "host" in (ast.get_docstring(ast.parse(modules()[module].read_text())) or "")


@pytest.mark.parametrize(
    "module", [module for module in MODULES if not folder_of(module).startswith("backends")]
)
def test_no_module_outside_of_backends_asks_which_backend_it_is_on(module):
    """The one that loads backends knows NumPy's by name; a module that imports NumPy may compare that name."""
    chooses = module == "nnx.backend_loading" or "numpy" in imports(module)
    names = {"jax", "cupy"} if chooses else {"jax", "cupy", "numpy"}
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Compare):
            text = ast.unparse(node)
            assert not any(f"'{name}'" in text for name in names), text


def folder_or_core_module(module: str) -> str:
    return module if folder_of(module) == "core" else folder_of(module)


@pytest.mark.parametrize("unit", [str, folder_or_core_module], ids=["modules", "folders"])
def test_nothing_imports_itself_in_a_circle(unit):
    """Imports in functions count as well."""
    edges = {}
    for module in MODULES:
        targets = {unit(name) for name in imports(module) if name in modules()}
        edges.setdefault(unit(module), set()).update(targets - {unit(module)})
    done: set[str] = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for target in sorted(edges.get(name, ())):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(edges):
        visit(name, [])


@pytest.mark.parametrize("module", MODULES)
def test_no_module_is_longer_than_450_lines(module):
    assert len(modules()[module].read_text().splitlines()) <= 450


def test_no_layer_draws_weights_to_tell_its_shape():
    def inherited(cls):
        for derived in cls.__subclasses__():
            yield from (derived, *inherited(derived))

    own = {cls for cls in inherited(Layer) if cls.__module__.startswith("nnx.layers")}
    assert len(own) > 50
    assert [c for c in own if c.init is not Layer.init and c.out_shape is Layer.out_shape] == []


def test_import_nnx_loads_little_beyond_numpy():
    code = (
        "import sys, numpy; before = set(sys.modules); import nnx;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "nnx" in loaded.split()
    pathlib = {"__future__", "errno", "fnmatch", "ipaddress", "ntpath", "pathlib", "urllib"}
    assert set(loaded.split()) <= {
        "nnx",
        "copy",
        "dataclasses",
        "inspect",
        "re",
        "signal",
        "threading",
        *pathlib,
    }


def test_importing_writes_no_file_and_needs_no_home(tmp_path):
    code = "import nnx; nnx.Sequential([nnx.layers.Dense(2, input_shape=(3,))], seed=0).predict([[1, 2, 3]])"
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_holds_all_packages():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {module for module, path in modules().items() if path.name == "__init__.py"}
    assert set(packages) == found
