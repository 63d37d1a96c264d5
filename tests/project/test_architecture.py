"""What may know what: the engine no array library, nnx/ no backend, `import nnx` nothing heavy."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from nnx.layers.base import Layer

LIBRARIES = {"numpy", "cupy", "cupyx", "jax", "jaxlib", "array_api_compat", "scipy", "torch"}
# Modules that work on the host, before and after the step.
HOST = {
    "backend", "ahead", "classes", "compare/__init__", "compare/trace", "compare/trial", "compare/script", "data",
    "datasets", "diagnosis", "distributed", "files", "frames", "functional", "initializers", "metrics", "model",
    "fingerprint", "nonfinite", "outofcore", "purity", "random", "reports", "resume", "rows", "saving", "sequential",
    "sources", "streams", "suitability", "tables", "targets", "testing", "training", "utils", "watch", "__main__",
}  # fmt: skip
HOST_FOLDERS = {"estimators", "export", "plot"}


def imported(path: Path) -> set[str]:
    """Return the top-level names of all modules that a file imports, and `nnx.backends`."""
    found = (
        {"nnx.backends"} if re.search(r"^\s*(from|import) nnx\.backends", path.read_text(), re.M) else set()
    )
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0] if not node.level else ".")
    return found


ENGINE = sorted(
    p
    for p in (ROOT / "nnx").rglob("*.py")
    if p.relative_to(ROOT / "nnx").with_suffix("").as_posix() not in HOST
    and p.parent.name not in HOST_FOLDERS
)


def test_there_is_an_engine():
    names = {path.name for path in ENGINE}
    assert {
        "losses.py",
        "optimizers.py",
        "kernels.py",
        "activations.py",
        "dense.py",
        "norm.py",
        "context.py",
    } <= names


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_engine_knows_no_array_library(path):
    assert not imported(path) & LIBRARIES


@pytest.mark.parametrize(
    "path", sorted((ROOT / "nnx").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_nnx_imports_no_backend_and_no_accelerated_library(path):
    allowed = (
        {"numpy", "scipy"} if path.parent.name == "estimators" else {"numpy"}
    )  # SciPy comes with scikit-learn
    assert not imported(path) & ((LIBRARIES | {"nnx.backends"}) - allowed)


@pytest.mark.parametrize("path", ENGINE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_engine_never_asks_which_backend(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            text = ast.unparse(node)
            assert not any(f"'{name}'" in text for name in ("numpy", "jax", "cupy")), text


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
    assert set(loaded.split()) <= {"nnx", "copy", "dataclasses", "gc", "inspect", "re", "signal", "threading"}


@pytest.mark.parametrize("before", ["gc.enable()", "gc.disable()", "gc.freeze()"])
def test_import_nnx_leaves_the_garbage_collector_as_it_was(before):
    code = (
        f"import gc, numpy; {before}; state = gc.isenabled(), gc.get_freeze_count();"
        "runs = [generation['collections'] for generation in gc.get_stats()]; import nnx;"
        "assert (gc.isenabled(), gc.get_freeze_count()) == state;"
        "print([now['collections'] - old for now, old in zip(gc.get_stats(), runs)])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (json.loads(found) == [0, 0, 0]) is (before != "gc.freeze()")


def test_importing_writes_no_file_and_needs_no_home(tmp_path):
    code = "import nnx; nnx.Sequential([nnx.layers.Dense(2, input_shape=(3,))], seed=0).predict([[1, 2, 3]])"
    env = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
